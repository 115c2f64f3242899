"""Equal budgets: what a whole search may cost, in steps or in FLOPs of one dense training of the recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ticketry.choices import check_choices
from ticketry.errors import UsageError
from ticketry.lab.search_result import Found
from ticketry.search.common.written import take_as_written
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result, Segment
    from ticketry.search.common.method import Replicate


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """What a whole search may cost."""

    budget: Literal["", "steps", "flops"] = ""
    """Of all that the sparsest ticket needs: steps (those of one dense training: schedules are compressed), flops (its
    FLOPs: the network is trained for longer once it is sparse, where a method has one training), or as published."""

    def __post_init__(self) -> None:
        take_as_written(self)

    @property
    def one_training(self) -> bool:
        """Whether a ticket takes one training, sparse at the end, which a budget of FLOPs can prolong."""
        return False

    def check_budget(self) -> None:
        """Raise `UsageError` for an unknown word, or for flops where a ticket takes several trainings."""
        check_choices(self)
        if self.budget == "flops" and not self.one_training:
            from ticketry.search import METHODS

            able = [name for name in METHODS.built_in if METHODS.get(name).Settings().one_training]
            raise UsageError(
                "budget flops trains a network for longer once it is sparse, which this method of several trainings has"
                f" no place for: use budget steps, or one of {', '.join(able)}"
            )


AnySettings = TypeVar("AnySettings", bound=Budgeted)


def own_steps(retrain: str, step: int, total: int) -> int:
    """Steps of a ticket's own training, see `lab.retrain`, with the rewind step and the length of the schedule.

    Raises:
        UsageError: for a rewind step at the end of the schedule, however it is written, where nothing is left to train.
    """
    if step == total and retrain in ("continue", "rewind_lr"):
        raise UsageError(
            f"rewound to step {step} of {total} nothing is left to train: choose an earlier step, or rewind end, after"
            " which a ticket is fine-tuned"
        )
    return {"restart": total, "none": 0, "finetune": total - step or total}.get(retrain, total - step)


def compressed(
    replicate: Replicate,
    settings: AnySettings,
    needed: Callable[[Segment, AnySettings], int],
    points: tuple[str, ...],
) -> tuple[Replicate, AnySettings]:
    """What a search of several trainings trains by, to keep the budget ``steps``; as it is without that budget.

    The schedule gets the length T * T / steps, rounded down to whole iterations; whatever lies in it keeps its share,
    in whole iterations too. Where their rounding makes the sum more than T, the length is that much less.

    Args:
        needed: steps of everything that the sparsest ticket needs, by the dense training of a schedule and the settings
            that go with it.
        points: names of the settings that are steps of the schedule.
    """
    total, steps = replicate.whole.total, needed(replicate.whole, settings)  # a rewind step at the end is told here
    if settings.budget != "steps":
        return replicate, settings
    for length in range(total * total // steps, 0, -1):
        own, scaled = _of_length(replicate, settings, length, points)
        if needed(own.whole, scaled) <= total:
            return own, scaled
    raise UsageError(f"with budget steps {total} steps are too few for {steps / total:.3g} trainings of them")


def _of_length(
    replicate: Replicate, settings: AnySettings, length: int, points: tuple[str, ...]
) -> tuple[Replicate, AnySettings]:
    """By a schedule of so many iterations, whose `points` keep their share of it."""
    per_epoch, factor = replicate.whole.per_epoch, Fraction(length, replicate.whole.total)
    scaled: Any = {
        name: str(Step.parse(getattr(settings, name)).scaled(factor, per_epoch=per_epoch)) for name in points
    }
    recipe = replicate.recipe.scaled(length, per_epoch=per_epoch)
    return replace(replicate, recipe=recipe), replace(settings, **scaled)


def compared(replicate: Replicate, found: Found) -> Found:
    """The dense network to compare with, one training of the recipe: the search's own, where it has followed that."""
    if found.result.segment.recipe == replicate.recipe:
        return found
    dense = replicate.lab.train(replicate.whole, label="dense")
    return replace(found, dense=dense, result=dense)


def stretched(lab: Lab, rest: Segment, before: list[Result], budget: str) -> Segment:
    """The last stretch of a training, for as many steps as the FLOPs of one dense training are enough for.

    With the budget ``flops`` the schedule is as much longer as its rest gets, so that it goes on where it was, at the
    same share of it: the same learning rates, but more slowly. What was trained before, and scores that looked at
    examples, are paid for. Without the budget it is `rest` itself.

    Args:
        rest: from the last cut to the end of the schedule, with the final mask.
        before: all trainings that led to it.

    Raises:
        UsageError: if the network's FLOPs cannot be counted, or nothing is left of them.
    """
    if budget != "flops":
        return rest
    from ticketry.lab.costs.phases import phases_before
    from ticketry.lab.costs.step_cost import Costs, step_flops

    assert rest.mask is not None
    dense, _ = step_flops(lab, replace(rest, variants=()))
    _, flops = step_flops(lab, rest)
    spent = Costs(lab).flops(phases_before(before, rest.mask))
    if spent is None or flops <= 0:
        raise UsageError("budget flops: the FLOPs of this network cannot be counted: use budget steps")
    steps = floor((rest.total * dense - spent) / flops + 1e-9)
    if steps < 1:
        raise UsageError(
            f"budget flops: {spent:.3g} FLOPs are spent before the last cut, and a dense training has"
            f" {rest.total * dense:.3g}: let scores see fewer examples, or cut less often"
        )
    factor = Fraction(steps, rest.steps)
    first = floor(rest.first * factor + Fraction(1, 2))
    recipe = rest.recipe.scaled(first + steps, per_epoch=rest.per_epoch)
    return replace(rest, recipe=recipe, first=first, last=first + steps, total=first + steps)
