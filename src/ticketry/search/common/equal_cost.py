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


def ticket_training_steps(retrain: str, step: int, total: int) -> int:
    """Return the number of steps for which a ticket is trained after it was pruned and rewound.

    Args:
        retrain: how the ticket is trained, see `lab.retrain`.
        step: the rewind step.
        total: number of steps of the schedule.

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
    """Shorten the schedule until a whole search takes no more steps than one dense training by the full recipe.

    If a dense training has T steps and the search would have N, the new length is T * T / N, rounded down. It is
    shorter still if rounding `points` would make the search longer than T. Both arguments are returned unchanged unless
    the setting `equal_cost` is ``steps``.

    Args:
        steps_needed: function of (dense training, settings) that returns how many steps the search for the sparsest
            ticket takes in all.
        points: names of the settings that are steps of the schedule, such as ``rewind``; they are scaled with the
            schedule.
        replicate: replicate whose recipe is shortened.
        settings: settings of the search.
    """
    whole = replicate.dense_training
    total, steps = whole.total, steps_needed(whole, settings)  # raises for a rewind step at the end
    if settings.equal_cost != "steps":
        return replicate, settings
    for length in range(total * total // steps, 0, -1):
        own, scaled = _with_schedule_length(replicate, settings, length, points)
        if steps_needed(own.dense_training, scaled) <= total:
            return own, scaled
    raise UsageError(f"with equal_cost steps {total} steps are too few for {steps / total:.3g} trainings of them")


def _with_schedule_length(
    replicate: Replicate, settings: AnySettings, length: int, points: tuple[str, ...]
) -> tuple[Replicate, AnySettings]:
    per_epoch, factor = replicate.dense_training.per_epoch, Fraction(length, replicate.dense_training.total)
    scaled: Any = {
        name: str(Step.parse(getattr(settings, name)).scaled(factor, per_epoch=per_epoch)) for name in points
    }
    recipe = replicate.recipe.scaled(length, per_epoch=per_epoch)
    return replace(replicate, recipe=recipe), replace(settings, **scaled)


def dense_for_comparison(replicate: Replicate, found: Found) -> Found:
    """Return `found`, or, if its schedule was shortened, a dense network trained by the whole recipe instead."""
    if found.result.segment.recipe == replicate.recipe:
        return found
    dense = replicate.lab.train(replicate.dense_training, label="dense")
    return replace(found, dense=dense, result=dense)


def stretch_to_flops(lab: Lab, rest: Segment, before: list[Result], equal_cost: str) -> Segment:
    """Prolong the last training until the ticket's whole search costs the FLOPs of one dense training.

    FLOPs of earlier trainings, and of scores that use examples, count as spent. The whole schedule is stretched by one
    factor, so learning rates continue from the same value and change more slowly. Unless `equal_cost` is ``flops``,
    `rest` is returned unchanged.

    Args:
        rest: the last training, from the last pruning step to the end of the schedule, with the final mask.
        before: all trainings before `rest`.
        equal_cost: the setting of this name.

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
