"""Schedules of mask changes during training: densities, fractions of weights to replace, phases; no torch needed."""

from __future__ import annotations

from math import cos, pi
from numbers import Real
from typing import Any

from ticketry.core.structure.pattern import check_density
from ticketry.errors import UsageError
from ticketry.step import Step


def cubic(progress: float, density: float, initial: float = 1.0) -> float:
    """Return the density at `progress` along the cubic schedule from `initial` to `density`.

    The density is density + (initial - density) * (1 - progress)^3: equation 1 of Zhu & Gupta, "To prune, or not to
    prune" (2017, arXiv 1710.01878), who write it with sparsities, 1 - density. Most weights are removed early, when
    many are redundant.

    Args:
        progress: from 0 (nothing is removed yet) to 1 (the end).
        density: fraction of weights retained at the end.
        initial: fraction of weights retained at the beginning.

    Raises:
        UsageError: for a progress outside [0, 1], a density outside (0, 1], or `density` above `initial`.

    Examples:
        >>> [round(tk.schedule.cubic(progress, density=0.2), 4) for progress in (0.0, 0.5, 1.0)]
        [1.0, 0.3, 0.2]
    """
    given: Any = progress
    if not isinstance(given, Real) or not 0 <= progress <= 1:
        raise UsageError(f"progress must be in [0, 1], got {progress}")
    if check_density(density) > check_density(initial):
        raise UsageError(
            f"density {density:g} is above the {initial:g} that pruning begins with, and masks only shrink"
        )
    return density + (initial - density) * (1 - progress) ** 3


def cuts(density: float, *, begin: int, end: int, frequency: int, initial: float = 1.0) -> dict[int, float]:
    """Return the density to prune to at each pruning step of gradual pruning, by training step in ascending order.

    At step `begin` the density is still `initial`. From there, weights are pruned every `frequency` steps, and last at
    step `end` to `density`. Zhu & Gupta (2017) found frequencies of 100 to 1000 steps equally good.

    Args:
        density: fraction of weights retained at the end.
        begin: training step after which the density falls.
        end: training step at which `density` is reached.
        frequency: number of training steps between two pruning steps.
        initial: fraction of weights retained at the beginning.

    Raises:
        UsageError: unless 0 <= begin < end and frequency >= 1; for invalid densities, see `cubic`.

    Examples:
        >>> tk.schedule.cuts(0.2, begin=0, end=40, frequency=20)
        {20: 0.3, 40: 0.2}
    """
    if not 0 <= begin < end:
        raise UsageError(f"gradual pruning must end after it begins (0 <= begin < end), got begin {begin}, end {end}")
    if frequency < 1:
        raise UsageError(f"frequency, the number of steps between two cuts, must be at least 1, got {frequency}")
    steps = [*range(begin + frequency, end, frequency), end]
    return {step: _round_to_12_digits(cubic((step - begin) / (end - begin), density, initial)) for step in steps} | {
        end: density
    }


def cuts_within(
    density: float,
    *,
    begin: str | Step,
    end: str | Step,
    frequency: str | Step,
    total: int,
    per_epoch: int | None = None,
) -> dict[int, float]:
    """Return the result of `cuts` for positions in training that are written as ``500it``, ``2ep`` or ``3%``.

    A frequency of less than one step counts as one step.

    Args:
        density: fraction of weights retained at the end.
        begin: position at which the density begins to fall.
        end: position at which `density` is reached.
        frequency: distance between two pruning steps.
        total: steps of the whole training.
        per_epoch: steps of an epoch, required if a position is in epochs.

    Raises:
        UsageError: if no step remains after `end` to train at the final density, or if a position is in epochs and
            `per_epoch` is missing; see also `cuts`.

    Examples:
        >>> tk.schedule.cuts_within(0.2, begin="0%", end="40%", frequency="20%", total=100)
        {20: 0.3, 40: 0.2}
    """
    first, last, every = (_convert_to_iterations(point, total, per_epoch) for point in (begin, end, frequency))
    if last >= total:
        raise UsageError(
            f"pruning ends at {Step.parse(end)}, step {last} of {total}, which leaves nothing to train at the final"
            " density: let it end earlier"
        )
    if first >= last:
        raise UsageError(
            f"pruning begins at {Step.parse(begin)}, step {first} of {total}, and ends at {Step.parse(end)}, step"
            f" {last}: let it end at a later step than it begins, or train for more steps"
        )
    return cuts(density, begin=first, end=last, frequency=max(1, every))


def cosine(progress: float, share: float) -> float:
    """Return the fraction of a layer's weights to replace at `progress`: share / 2 * (1 + cos(pi * progress)).

    This is the update schedule of Evci et al., "Rigging the Lottery" (2020, arXiv 1911.11134), section 3, where `share`
    is called alpha.

    Args:
        progress: fraction of the schedule that has passed, 0 to 1.
        share: fraction of the weights to replace at the beginning.

    Examples:
        >>> [round(tk.schedule.cosine(progress, share=0.3), 4) for progress in (0.0, 0.5, 1.0)]
        [0.3, 0.15, 0.0]
    """
    return share / 2 * (1 + cos(pi * progress))


def moves_within(
    share: float, *, end: str | Step, frequency: str | Step, total: int, per_epoch: int | None = None
) -> dict[int, float]:
    """Return, by step, the fraction of each layer's weights that each mask update of dynamic sparse training replaces.

    Updates happen every `frequency` steps (at least every step) before `end`; the fractions fall along `cosine`.

    Args:
        share: fraction at the beginning of the schedule, in (0, 1).
        end: position from which the mask no longer changes.
        frequency: distance between two updates.
        total: steps of the whole training.
        per_epoch: steps of an epoch, required if a position is in epochs.

    Raises:
        UsageError: unless 0 < share < 1 and there is at least one update before the last step.

    Examples:
        >>> tk.schedule.moves_within(0.3, end="75%", frequency="100it", total=400)
        {100: 0.225, 200: 0.075}
    """
    if not 0 < share < 1:
        raise UsageError(f"the share of weights that move must be in (0, 1), got {share}")
    last, every = (_convert_to_iterations(point, total, per_epoch) for point in (end, frequency))
    steps = range(max(1, every), min(last, total), max(1, every))
    if not steps:
        raise UsageError(
            f"the mask would never move: every {Step.parse(frequency)} is every {every} steps, and it is fixed from"
            f" {Step.parse(end)}, step {last} of {total}, on: let it move more often, or for longer"
        )
    return {step: _round_to_12_digits(cosine(step / last, share)) for step in steps}


def phases_within(
    *, warmup: str | Step, phase: str | Step, end: str | Step, total: int, per_epoch: int | None = None
) -> list[tuple[int, bool]]:
    """Return the phases of AC/DC training, as pairs of the first step and whether the phase is compressed (sparse).

    After a dense `warmup`, compressed and decompressed (dense) phases of length `phase` alternate. The last compressed
    phase begins at `end`. If the time before `end` does not fit a whole number of phases, the last decompressed phase
    is longer. Peste et al., "AC/DC" (2021, arXiv 2106.12379), algorithm 1, and the schedules in the authors' code.

    Args:
        warmup: length of the dense training at the beginning.
        phase: length of a phase.
        end: position at which the last compressed phase begins.
        total: steps of the whole training.
        per_epoch: steps of an epoch, required if a position is in epochs.

    Raises:
        UsageError: unless a compressed and a decompressed phase fit between `warmup` and `end`, and steps remain after
            `end`.

    Examples:
        >>> tk.schedule.phases_within(warmup="10ep", phase="5ep", end="28ep", total=40, per_epoch=1)
        [(0, False), (10, True), (15, False), (28, True)]
    """
    first, length, last = (_convert_to_iterations(point, total, per_epoch) for point in (warmup, phase, end))
    if length < 1 or first + 2 * length > last or last >= total:
        raise UsageError(
            f"between the warm-up ({Step.parse(warmup)}, {first} steps) and the last phase (from {Step.parse(end)},"
            f" step {last} of {total}) there must be a compressed and a decompressed phase of {Step.parse(phase)}"
            f" ({length} steps), and steps after it"
        )
    found = [(0, False)] if first else []
    for step in range(first, last - 2 * length + 1, 2 * length):
        found += [(step, True), (step + length, False)]
    return [*found, (last, True)]


def _round_to_12_digits(density: float) -> float:
    """Return `density` rounded to 12 digits, since the last bits of computed densities differ between machines."""
    return float(f"{density:.12g}")


def _convert_to_iterations(point: str | Step, total: int, per_epoch: int | None) -> int:
    step = Step.parse(point)
    if step.unit == "ep" and per_epoch is None:
        raise UsageError(
            f"{step} is counted in epochs, whose length is not known here: write steps (it) or a share (%)"
        )
    return step.iterations(per_epoch=per_epoch or 1, total=total)
