"""Schedules of mask changes during training: densities, fractions of weights to replace, phases. Does not import
torch.
"""

from __future__ import annotations

from math import cos, pi
from numbers import Real
from typing import Any

from ticketry.core.structure.pattern import check_density
from ticketry.errors import UsageError
from ticketry.step import Step


def cubic(progress: float, density: float, initial: float = 1.0) -> float:
    """Return the density at `progress` along the cubic schedule from `initial` to `density`.

    density + (initial - density) * (1 - progress)^3: equation 1 of Zhu & Gupta, "To prune, or not to prune" (2017,
    arXiv 1710.01878), whose sparsities are 1 - density. Most weights are removed early, when many are redundant.

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
    """Return the pruning steps of gradual pruning, in order: training step -> density; the last is `end` -> `density`.

    Pruning steps happen every `frequency` steps after `begin`, where the density is still `initial`, and at `end`. Zhu
    & Gupta (2017) found frequencies of 100 to 1000 steps equally good.

    Args:
        density: fraction of weights retained at the end.
        begin: step after which the density falls.
        end: step at which `density` is reached.
        frequency: steps between two pruning steps.
        initial: fraction of weights retained at the beginning.

    Raises:
        UsageError: unless 0 <= begin < end and frequency >= 1; see `cubic` for densities.

    Examples:
        >>> tk.schedule.cuts(0.2, begin=0, end=40, frequency=20)
        {20: 0.3, 40: 0.2}
    """
    if not 0 <= begin < end:
        raise UsageError(f"gradual pruning must end after it begins (0 <= begin < end), got begin {begin}, end {end}")
    if frequency < 1:
        raise UsageError(f"frequency, the number of steps between two cuts, must be at least 1, got {frequency}")
    steps = [*range(begin + frequency, end, frequency), end]
    return {step: _round_last_bits(cubic((step - begin) / (end - begin), density, initial)) for step in steps} | {
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
    """Return `cuts` for a training of `total` steps, with positions written as ``500it``, ``2ep`` or ``3%``.

    A frequency below one step counts as one step.

    Args:
        density: fraction of weights retained at the end.
        begin: position at which the density begins to fall.
        end: position at which `density` is reached.
        frequency: distance between two pruning steps.
        total: steps of the whole training.
        per_epoch: steps of an epoch, required if a position is in epochs.

    Raises:
        UsageError: if no step is left at the final density, or a position is in epochs without `per_epoch`; see `cuts`.

    Examples:
        >>> tk.schedule.cuts_within(0.2, begin="0%", end="40%", frequency="20%", total=100)
        {20: 0.3, 40: 0.2}
    """
    first, last, every = (_to_iterations(point, total, per_epoch) for point in (begin, end, frequency))
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
    """Return the mask updates of dynamic sparse training: step -> fraction of each layer's weights to replace.

    Updates happen every `frequency` steps (at least one) before `end`; the fractions fall along `cosine`.

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
    last, every = (_to_iterations(point, total, per_epoch) for point in (end, frequency))
    steps = range(max(1, every), min(last, total), max(1, every))
    if not steps:
        raise UsageError(
            f"the mask would never move: every {Step.parse(frequency)} is every {every} steps, and it is fixed from"
            f" {Step.parse(end)}, step {last} of {total}, on: let it move more often, or for longer"
        )
    return {step: _round_last_bits(cosine(step / last, share)) for step in steps}


def phases_within(
    *, warmup: str | Step, phase: str | Step, end: str | Step, total: int, per_epoch: int | None = None
) -> list[tuple[int, bool]]:
    """Return the phases of alternating compressed and decompressed training: (first step, whether it is compressed).

    After a dense `warmup`, compressed and decompressed phases of length `phase` alternate. The last compressed phase
    begins at `end`; the decompressed phase before it is extended if no full pair fits. Peste et al., "AC/DC" (2021,
    arXiv 2106.12379), algorithm 1, and the schedules in the authors' code.

    Args:
        warmup: length of the dense training at the beginning.
        phase: length of a phase.
        end: position at which the last compressed phase begins.
        total: steps of the whole training.
        per_epoch: steps of an epoch, required if a position is in epochs.

    Raises:
        UsageError: unless a compressed and a decompressed phase of this length fit between `warmup` and `end`, and
            steps are left after it.

    Examples:
        >>> tk.schedule.phases_within(warmup="10ep", phase="5ep", end="28ep", total=40, per_epoch=1)
        [(0, False), (10, True), (15, False), (28, True)]
    """
    first, length, last = (_to_iterations(point, total, per_epoch) for point in (warmup, phase, end))
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


def _round_last_bits(density: float) -> float:
    """Round to 12 digits, such as 0.3 for 0.30000000000000004, because the last bits may differ between machines."""
    return float(f"{density:.12g}")


def _to_iterations(point: str | Step, total: int, per_epoch: int | None) -> int:
    step = Step.parse(point)
    if step.unit == "ep" and per_epoch is None:
        raise UsageError(
            f"{step} is counted in epochs, whose length is not known here: write steps (it) or a share (%)"
        )
    return step.iterations(per_epoch=per_epoch or 1, total=total)
