"""Searches at equal cost: the whole search takes as many steps, or FLOPs, as one dense training of the recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, TypeVar

from ticketry.errors import UsageError
from ticketry.lab.search_result import Found
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result, Segment
    from ticketry.search.common.method import Replicate
    from ticketry.search.common.settings import PruningSettings

AnySettings = TypeVar("AnySettings", bound="PruningSettings")


def own_steps(retrain: str, step: int, total: int) -> int:
    """Return the steps of a ticket's own training.

    Args:
        retrain: how the ticket is trained, see `lab.retrain`.
        step: the rewind step.
        total: length of the schedule.

    Raises:
        UsageError: for a rewind step at the end of the schedule, after which nothing would be trained.
    """
    if step == total and retrain in ("continue", "rewind_lr"):
        raise UsageError(
            f"rewound to step {step} of {total} nothing is left to train: choose an earlier step, or rewind end, after"
            " which a ticket is fine-tuned"
        )
    return {"restart": total, "none": 0, "finetune": total - step or total}.get(retrain, total - step)


def compress_to_steps(
    replicate: Replicate,
    settings: AnySettings,
    steps_needed: Callable[[Segment, AnySettings], int],
    points: tuple[str, ...],
) -> tuple[Replicate, AnySettings]:
    """Return a replicate and settings with a shorter schedule, by which a search of several trainings costs `steps`.

    The schedule gets the length T * T / steps, rounded down to whole iterations; points in it keep their share of it,
    in whole iterations too. Where this rounding makes the sum more than T, the length is reduced by as much.

    Args:
        steps_needed: steps of everything that the sparsest ticket needs, for the dense training of a schedule and the
            settings with their points in it.
        points: names of the settings that are points of the schedule.
    """
    total, steps = replicate.whole.total, steps_needed(replicate.whole, settings)  # raises for a rewind step at the end
    if settings.equal_cost != "steps":
        return replicate, settings
    for length in range(total * total // steps, 0, -1):
        own, scaled = _with_length(replicate, settings, length, points)
        if steps_needed(own.whole, scaled) <= total:
            return own, scaled
    raise UsageError(f"with equal_cost steps {total} steps are too few for {steps / total:.3g} trainings of them")


def _with_length(
    replicate: Replicate, settings: AnySettings, length: int, points: tuple[str, ...]
) -> tuple[Replicate, AnySettings]:
    per_epoch, factor = replicate.whole.per_epoch, Fraction(length, replicate.whole.total)
    scaled: Any = {
        name: str(Step.parse(getattr(settings, name)).scaled(factor, per_epoch=per_epoch)) for name in points
    }
    recipe = replicate.recipe.scaled(length, per_epoch=per_epoch)
    return replace(replicate, recipe=recipe), replace(settings, **scaled)


def comparable_dense(replicate: Replicate, found: Found) -> Found:
    """Return the dense network to compare with: the search's own if that has the recipe's schedule, else another."""
    if found.result.segment.recipe == replicate.recipe:
        return found
    dense = replicate.lab.train(replicate.whole, label="dense")
    return replace(found, dense=dense, result=dense)


def stretch_to_flops(lab: Lab, rest: Segment, before: list[Result], equal_cost: str) -> Segment:
    """Return the last stretch of a training, with as many steps as the FLOPs of one dense training pay for.

    With equal cost in ``flops`` the schedule is as much longer as its rest gets. It continues at the same share
    of its schedule, with the same learning rates, but changing more slowly. Earlier trainings, and scores that use
    examples, are subtracted first. Otherwise `rest` is returned.

    Args:
        rest: from the last pruning step to the end of the schedule, with the final mask.
        before: all trainings that led to it.

    Raises:
        UsageError: if the network's FLOPs cannot be counted, or none are left.
    """
    if equal_cost != "flops":
        return rest
    from ticketry.lab.costs.phases import phases_before
    from ticketry.lab.costs.step_cost import Costs, step_flops

    assert rest.mask is not None
    dense, _ = step_flops(lab, replace(rest, variants=()))
    _, flops = step_flops(lab, rest)
    spent = Costs(lab).flops(phases_before(before, rest.mask))
    if spent is None or flops <= 0:
        raise UsageError("equal_cost flops: the FLOPs of this network cannot be counted: use equal_cost steps")
    steps = floor((rest.total * dense - spent) / flops + 1e-9)
    if steps < 1:
        raise UsageError(
            f"equal_cost flops: {spent:.3g} FLOPs are spent before the last cut, and a dense training has"
            f" {rest.total * dense:.3g}: let scores see fewer examples, or cut less often"
        )
    factor = Fraction(steps, rest.steps)
    first = floor(rest.first * factor + Fraction(1, 2))
    recipe = rest.recipe.scaled(first + steps, per_epoch=rest.per_epoch)
    return replace(rest, recipe=recipe, first=first, last=first + steps, total=first + steps)
