"""Equal budgets: what a whole search may cost, in steps or in FLOPs of one dense training of the recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, TypeVar

from ticketry.core.schedule import moves_within
from ticketry.errors import UsageError
from ticketry.lab.found import Found, Seeds
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab, Result
    from ticketry.lab.segment import Segment
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe

BUDGETS = ("steps", "flops")
STRETCHED = ("acdc", "decorators", "dynamic", "early", "gradual", "l0", "regularised")
"""Methods of one training, which a budget of FLOPs can stretch."""

AnySettings = TypeVar("AnySettings")


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """What a whole search may cost."""

    budget: str = ""
    """Of all that the sparsest ticket needs: steps (those of one dense training: schedules are compressed), flops (its
    FLOPs: the network is trained for longer once it is sparse, where a method has one training), or as published."""

    def check_budget(self, *, trainings: str) -> None:
        """Raises `UsageError` for an unknown word, or for one that does not suit a method of ``one`` or ``many``."""
        if self.budget and self.budget not in BUDGETS:
            raise UsageError(f"budget {self.budget!r} is not known: {', '.join(BUDGETS)}, or leave it out")
        if self.budget == "flops" and trainings != "one":
            raise UsageError(
                "budget flops trains a network for longer once it is sparse, which this method of several trainings has"
                f" no place for: use budget steps, or one of {', '.join(STRETCHED)}"
            )


def own_steps(retrain: str, step: int, total: int) -> int:
    """Steps of a ticket's own training, see `lab.retrain`, with the rewind step and the length of the schedule."""
    return {"restart": total, "none": 0, "finetune": total - step or total}.get(retrain, total - step)


def compressed(
    lab: Lab, task: Task, recipe: Recipe, settings: AnySettings, steps: Fraction | int, points: tuple[str, ...]
) -> tuple[Recipe, AnySettings]:
    """Recipe and settings by which a search of several trainings keeps the budget ``steps``; unchanged without it.

    The schedule gets the length T * T / steps, rounded down to whole iterations; whatever lies in it keeps its share.

    Args:
        steps: of everything that the sparsest ticket needs, by the recipe and the settings as they are.
        points: names of the settings that are steps of the schedule.
    """
    if settings.budget != "steps":  # type: ignore[attr-defined]
        return recipe, settings
    per_epoch = lab.per_epoch(task, recipe)
    total = recipe.steps(per_epoch)
    length = floor(Fraction(total * total) / steps)
    if length < 1:
        raise UsageError(
            f"with budget steps {total} steps are too few for {float(steps / total):.3g} trainings of them"
        )
    factor = Fraction(length, total)
    told = {name: Step.parse(getattr(settings, name)).scaled(factor, per_epoch=per_epoch) for name in points}
    changed: Any = replace(settings, **{name: str(step) for name, step in told.items()})  # type: ignore[type-var]
    return recipe.scaled(length, per_epoch=per_epoch), changed


def compared(lab: Lab, task: Task, recipe: Recipe, seeds: Seeds, found: Found) -> Found:
    """The dense network to compare with, one training of the recipe: the search's own, where it has followed that."""
    if found.result.segment.recipe == recipe:
        return found
    dense = reference(lab, task, recipe, seeds)
    return replace(found, dense=dense, result=dense)


def reference(lab: Lab, task: Task, recipe: Recipe, seeds: Seeds, keep: tuple[int, ...] = ()) -> Result:
    """One dense training of the recipe."""
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    return lab.train(whole, keep=keep, label="dense")


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
    from ticketry.lab.costs import Costs, step_flops
    from ticketry.lab.phases import phases_before

    assert rest.mask is not None
    dense, _ = step_flops(lab, replace(rest, mask=None, shrunk=False))
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


def stretched_moves(
    lab: Lab, begun: Segment, *, alpha: float, end: str, frequency: str, looks: int, budget: str
) -> tuple[Recipe, dict[int, float]]:
    """The recipe of dynamic sparse training, and the moves of its mask in it.

    With the budget ``flops`` the whole schedule is longer, moves and all, as of RigL 5x (Evci et al. 2020): there are
    as many steps as the FLOPs of one dense training are enough for. Steps between moves stay.

    Args:
        begun: the training without moves: dense FLOPs, mask, recipe.
        looks: 1 if each move takes the place of a step, else 0.
    """
    per_epoch, total = begun.per_epoch, begun.total

    def moves(length: int) -> dict[int, float]:
        last = str(Step.parse(end).scaled(Fraction(length, total), per_epoch=per_epoch))
        return moves_within(alpha, end=last, frequency=frequency, total=length, per_epoch=per_epoch)

    if budget != "flops":
        return begun.recipe, moves(total)
    from ticketry.lab.costs import look_flops, step_flops

    dense, flops = step_flops(lab, begun)
    if flops <= 0:
        raise UsageError("budget flops: the FLOPs of this network cannot be counted: use budget steps")

    def affordable(length: int) -> bool:
        looked = looks * len(moves(length))
        return (length - looked) * flops + looked * look_flops(dense, flops) <= total * dense * (1 + 1e-12)

    enough, too_long = total, floor(total * dense / flops) + 1
    while too_long - enough > 1:
        middle = (enough + too_long) // 2
        enough, too_long = (middle, too_long) if affordable(middle) else (enough, middle)
    return begun.recipe.scaled(enough, per_epoch=per_epoch), moves(enough)
