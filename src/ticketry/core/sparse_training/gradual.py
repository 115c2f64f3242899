"""Gradual pruning in any training loop: prune along a schedule, and enforce the mask between pruning steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TypedDict

from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from ticketry.choices import describe_name_difference
from ticketry.core.allocate import check_layer_minimum
from ticketry.core.mask import Mask
from ticketry.core.prune import name_final_target_in_errors, prune
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Score, get
from ticketry.core.score.protocol import describe_score, get_score_description
from ticketry.core.sparse_training.hold import Hold, hold, release_interrupted_trainings
from ticketry.core.sparse_training.schedule import cuts_within
from ticketry.core.structure.layout import layouts
from ticketry.core.structure.pattern import Pattern, check_density, check_distribution, parse_layer_minimum
from ticketry.errors import MaskError, UsageError
from ticketry.step import Step
from ticketry_engine.support.entry_points import Need, entry_point


class PruneOptions(TypedDict, total=False):
    """Arguments of `prune` for the choice of weights that `gradual` also accepts."""

    scope: Scope | None
    score: str | Score
    """A score that needs no data."""
    distribution: str
    half_rate: tuple[str, ...]
    collapse: str
    keep_at_least: int
    pattern: str | Pattern
    """Any pattern except N:M, which has a single density."""
    seed: int


class GradualOptions(PruneOptions, total=False):
    """Arguments of `gradual`: the schedule, and the arguments of `prune` that choose the weights."""

    sparsity: float | None
    begin: str | Step
    end: str | Step
    frequency: str | Step


class Gradual:
    """Prunes a model gradually while it trains. Created by `gradual`."""

    def __init__(
        self, model: nn.Module, cuts: Mapping[int, float], *, steps: int, **choice: Unpack[PruneOptions]
    ) -> None:
        self.cuts = dict(cuts)
        """The density after each pruning step, by the number of optimiser steps before it, see `schedule.cuts`."""
        self.steps = steps
        """Expected number of optimiser steps of the whole training."""
        self.done = 0
        """Number of optimiser steps so far."""
        self._model = model
        if unknown := sorted(choice.keys() - PruneOptions.__annotations__):
            known = ", ".join(sorted(PruneOptions.__annotations__))
            raise UsageError(f"gradual pruning has no {', '.join(unknown)}: weights are chosen by {known}")
        scope = choice.get("scope") or scope_of(model)
        check_distribution(choice.get("distribution", "global"))
        least = parse_layer_minimum(choice.get("collapse", "raise"), choice.get("keep_at_least", 0))
        score, pattern = get(choice.get("score", "magnitude")), Pattern.parse(choice.get("pattern", "unstructured"))
        if get_score_description(score).data in ("yes", "shapes"):
            raise UsageError(
                f"gradual pruning has no data for a score, and {describe_score(score)} needs some: take magnitude, or"
                " another that `ticketry list scores` names as without data"
            )
        if pattern.m:
            raise UsageError(
                f"gradual pruning goes through every density from 1 on, and no mask of pattern {pattern} is so dense:"
                " take prune, or another pattern"
            )
        self._choice: PruneOptions = {**choice, "scope": scope, "score": score, "pattern": pattern}
        # Before training, because the final density may be too low for `keep_at_least`.
        where = None if pattern.unstructured else layouts(model, scope)
        check_layer_minimum(scope.shapes, min(self.cuts.values()), least, pattern=pattern, layouts=where)
        self._mask = Mask.ones(scope)
        self._hold: Hold | None = None
        self._is_copy = False  # of one that held weights, which the copy does not
        release_interrupted_trainings(model)

    @property
    def mask(self) -> Mask:
        """The current mask; before the first pruning step, it retains all weights in scope."""
        return self._mask

    @entry_point()
    def step(self) -> bool:
        """Count an optimiser step, prune the model if a pruning step is due, and return whether it was.

        After pruning, removed weights are kept at exactly 0, and the optimiser's state for removed weights is cleared
        before its next step (see `hold`).

        Raises:
            LayerCollapseError: if a layer would be left without weights.
            UsageError: if this object is a copy, because a copy does not keep weights at 0.
        """
        self._refuse_copy()
        self.done += 1
        if self.done not in self.cuts:
            return False
        density = self.cuts[self.done]
        with name_final_target_in_errors(density, self.cuts[max(self.cuts)]):
            mask = prune(self._model, density, within=self._mask, **self._choice)
        self._hold_mask(mask)
        return True

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Raise `HoldError` if removed weights, or the state of `optimizer` for them, are not exactly 0."""
        self._refuse_copy()
        if self._hold:
            self._hold.check(optimizer)

    def release(self) -> None:
        """Stop enforcing the mask. The weights do not change."""
        if self._hold:
            self._hold.release()
            self._hold = None

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of gradual pruning, to save in a checkpoint besides the states of model and optimiser.

        ``done`` is the number of steps so far, ``mask`` has bool tensors on the CPU by name, and ``cuts`` is the
        schedule as pairs [step, density] in order.
        """
        cuts = [[step, density] for step, density in self.cuts.items()]
        return {"done": self.done, "mask": {name: kept.cpu() for name, kept in self._mask.items()}, "cuts": cuts}

    @entry_point()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`; the model must have the weights of the same checkpoint.

        If the state is from after the first pruning step, pruning continues along the schedule in the state; there is a
        warning if pruning steps remain and this object has another schedule. Otherwise this object's schedule applies.

        Raises:
            MaskError: if the state belongs to another model or scope, if its schedule ends at another density, or if
                its last pruning step is not before the end of this training.
        """
        if not {"done", "mask"} <= state.keys():
            raise MaskError("this is no state of gradual pruning: it has done and mask")
        mask = Mask(state["mask"])
        if mask.shapes != self._mask.shapes:
            names = describe_name_difference(mask, self._mask)
            raise MaskError("the state is of pruning another model or scope" + (f": {names}" if names else ""))
        done = int(state["done"])
        if "cuts" in state:
            self.cuts = self._resume_density_steps(_parse_density_steps(state["cuts"]), done)
        else:  # written before states had a schedule
            self._check_reachable(mask, done)
        self.done = done
        if mask.kept == mask.total:
            self.release()
            self._mask, self._is_copy = mask, False
        else:
            self._hold_mask(mask)

    def _resume_density_steps(self, cuts: dict[int, float], done: int) -> dict[int, float]:
        """Return the schedule to continue with after `done` steps; `cuts` is the schedule in the loaded state."""
        if cuts == self.cuts or done < min(*cuts, *self.cuts):
            return self.cuts
        (last, density), (_, wanted) = list(cuts.items())[-1], list(self.cuts.items())[-1]
        said = f"the state is of gradual pruning to density {density:g}, {_describe_density_steps(cuts)}"
        if density != wanted:
            raise MaskError(
                f"{said}, and density {wanted:g} is requested now: resume with density={density:g}, or start from a"
                " checkpoint of before the first cut"
            )
        if done >= last:
            return cuts
        if last >= self.steps:
            raise MaskError(
                f"{said}, and this training has only {self.steps:,} steps, of which {done:,} are done: resume with more"
                f" than {last:,} steps, or start from a checkpoint of before the first cut"
            )
        warnings.warn(
            f"{said}. It continues along that schedule, not along the one of this training"
            f" ({_describe_density_steps(self.cuts)} of {self.steps:,})",
            stacklevel=4,
        )
        return cuts

    def _check_reachable(self, mask: Mask, done: int) -> None:
        """Raise `MaskError` if this object's schedule cannot lead to `mask` after `done` steps."""
        left = [density for step, density in self.cuts.items() if step > done]
        shares = [1.0, *self.cuts.values()]
        # Densities are met up to rounding in each layer, or exceeded where layers keep a few weights.
        too_sparse = bool(left) and left[0] * mask.total > mask.kept + len(mask)
        too_dense = not left and mask.density >= shares[(len(shares) - 1) // 2]
        if too_sparse or too_dense:
            raise MaskError(
                f"the state has a mask of density {mask.density:.4g} after {done:,} steps, which gradual pruning to"
                f" density {shares[-1]:g}, {_describe_density_steps(self.cuts)} of {self.steps:,}, does not reach"
                " there: resume with the schedule that it was trained with (steps, begin, end, frequency and density)"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy of this object; a copy does not keep weights at 0."""
        return {**self.__dict__, "_hold": None, "_is_copy": self._is_copy or self._hold is not None}

    def _refuse_copy(self) -> None:
        """Raise `UsageError` if this object is a copy: its mask would not be enforced between pruning steps."""
        if self._is_copy:
            raise UsageError(
                "this is a copy of gradual pruning, and copies hold no weights: let it hold those of its model,"
                " copy.load_state_dict(copy.state_dict()), or make one on the model that you train, and give it that"
                " state"
            )

    # -- as a context manager --------------------------------------------------------------------------------------

    def __enter__(self) -> Gradual:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = self._hold
        self.release()
        if kind is not None:
            return
        if held:
            held.check()
        if early := self.describe_early_end():
            warnings.warn(
                f"{early}; call step() after each step of the optimiser, and give as many steps= as there are",
                stacklevel=2,
            )

    def describe_early_end(self) -> str:
        """Return the text of a warning if training ended before the last pruning step; otherwise an empty string."""
        *_, (last, density) = self.cuts.items()
        if self.done >= last:
            return ""
        return (
            f"gradual pruning is left at density {self._mask.density:.4g} and not {density:g}: {self.done:,} steps were"
            f" made of steps={self.steps:,}, and the last cut is at step {last:,}"
        )

    def __repr__(self) -> str:
        return f"Gradual(step {self.done}, density {self._mask.density:.4g}, to be {list(self.cuts.values())[-1]:g})"

    def _hold_mask(self, mask: Mask) -> None:
        self.release()
        self._mask, self._is_copy = mask, False
        self._hold = hold(self._model, mask)


@entry_point(Need(python=False, floats=False, training=True))
def gradual(
    model: nn.Module,
    density: float | str | None = None,
    *,
    steps: int,
    sparsity: float | str | None = None,
    begin: str | Step = "25%",
    end: str | Step = "75%",
    frequency: str | Step = "2.5%",
    **choice: Unpack[PruneOptions],
) -> Gradual:
    """Prune `model` gradually, along the schedule `cubic`, while you train it in your own loop.

    Call `Gradual.step` after each step of all optimisers, which may be of any kind. The result is a context manager; if
    its block ends before the last pruning step, there is a warning. Zhu & Gupta, "To prune, or not to prune" (2017,
    arXiv 1710.01878), section 3.

    Args:
        model: any module; it keeps its class, names and state dict.
        density: fraction of the weights in scope that is retained at the end.
        steps: number of optimiser steps of the whole training.
        sparsity: fraction of the weights in scope that is removed at the end; give this or `density`.
        begin: position in training from which the density falls below 1: ``500it`` or ``25%``.
        end: position at which the final density is reached; training then continues at this density.
        frequency: distance between two pruning steps, at least one optimiser step.
        choice: further arguments of `prune`: scope, score, distribution, half_rate, collapse, keep_at_least, pattern,
            seed. The score must not need data.

    Raises:
        UsageError: for an impossible schedule (see `schedule.cuts_within`), an unknown option, a score that needs data,
            or an N:M pattern, which has a single density.
        ScopeError: see `scope`.
        LayerCollapseError: if the density is too low for `keep_at_least`.

    Examples:
        >>> model = nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tk.gradual(model, density=0.1, steps=40) as pruning:
        ...     for step in range(1, 41):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(8, 10)).square().mean().backward()
        ...         optimizer.step()
        ...         if pruning.step() and step % 5 == 0:
        ...             print(step, pruning.mask.density)
        15 0.48
        20 0.21
        25 0.11
        30 0.1
        >>> model.weight.count_nonzero()
        tensor(10)
    """
    cuts = cuts_within(check_density(density, sparsity), begin=begin, end=end, frequency=frequency, total=steps)
    return Gradual(model, cuts, steps=steps, **choice)


def _describe_density_steps(cuts: Mapping[int, float]) -> str:
    return (
        f"at step {min(cuts):,}" if len(cuts) == 1 else f"in {len(cuts)} cuts at steps {min(cuts):,} to {max(cuts):,}"
    )


def _parse_density_steps(stored: Any) -> dict[int, float]:
    """Return the schedule (density by step) that a state contains; raise `MaskError` if it is malformed."""
    try:
        cuts = {int(step): float(density) for step, density in stored}
    except (TypeError, ValueError):
        cuts = {}
    if not cuts or list(cuts) != sorted(cuts) or min(cuts) < 1 or not all(0 < one <= 1 for one in cuts.values()):
        raise MaskError(
            "the state's cuts are no schedule of gradual pruning, [step, density] in order: take another checkpoint"
        )
    return cuts
