"""Dense networks that cost as much as a ticket: what its user would otherwise take, and so the strongest control.

Of the ticket's own network, at another width, or of another one that is named (``dense_of_flops:vgg-11``): deeper or
shallower. It is trained for as many steps as are in the ticket's weights, by the same recipe, from the replicate's own
seeds. Rounding never favours the ticket: the narrowest network is taken that costs no less.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from ticketry.core.costs.cost_model import CostModel
from ticketry.core.mask import Mask
from ticketry.errors import TaskError, UsageError
from ticketry.evidence.comparison_names import network_named
from ticketry.evidence.dense_references import train_for
from ticketry.lab.budget_masks import dense_multiplications, left_multiplications, terms_in
from ticketry.lab.lab import Lab
from ticketry.lab.measured_time import time_of, time_of_dense
from ticketry.lab.search_result import Found, Seeds, budget
from ticketry.lab.training.segment import Result
from ticketry.records.network import LATENCY_MATCHED
from ticketry.tasks import catalogue
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task

HUNDRED = 100
"""Widths of networks that are timed: less than a timing tells apart."""

STEPS = 1000
"""Widths are tried in steps of a thousandth: for layers of up to 1,000 filters or neurons every width is among them."""


def dense_of_cost(lab: Lab, task: Task, role: str, mask: Mask, terms: str = "") -> Task:
    """The task with the narrowest network of a kind that takes at least what a mask leaves: of multiplications or time.

    Times are measured here, and remembered in the store.

    Args:
        task: that the mask is of.
        role: a name of `records.network.MATCHED_DENSE`, with the network after a colon if it is not the task's own.
        terms: of the ticket's budget, see `Aimed.terms`: they name the costs that a time goes by.

    Raises:
        UsageError: if the task's network has no other widths, or even the widest form costs less; for a network of
            equal time to a ticket that has no budget of time.
        CostError: if these costs are of another machine.
    """
    own = str(task.key().get("model", ""))
    base = NetworkName.parse(network_named(role) or own)
    if task.spec is None or not own or base.library:
        raise UsageError(f"{role}: the network of the task {task.name} has no other widths: leave this control out")
    widest = NetworkName.parse(own).width if base.base == NetworkName.parse(own).base else Fraction(1)

    def of_steps(steps: int) -> Task:
        """The task with the network that is so many steps wide."""
        assert task.spec is not None
        width = NetworkName.parse(f"{base.base}@{float(widest * steps / STEPS):.6f}").width  # as names write it
        try:
            return catalogue.make(replace(task.spec, model=str(NetworkName(base.base, width))))
        except TaskError as error:
            raise UsageError(f"{role}: {error}") from None

    if role.startswith(LATENCY_MATCHED):
        return _of_time(lab, task, role, mask, terms, of_steps)
    wanted, whole = left_multiplications(lab, task, mask), of_steps(STEPS)
    if dense_multiplications(lab, whole) < wanted:
        raise UsageError(
            f"{role}: {whole.key()['model']} takes {dense_multiplications(lab, whole):,} multiplications, fewer than"
            f" the ticket's {wanted:,}: name a network that is dearer at its full width"
        )
    least = bisect_left(range(1, STEPS), wanted, key=lambda steps: dense_multiplications(lab, of_steps(steps))) + 1
    return of_steps(least)


def _of_time(lab: Lab, task: Task, role: str, mask: Mask, terms: str, of_steps: Callable[[int], Task]) -> Task:
    """The narrowest network, in steps of a hundredth, that takes at least the time of the task's under a mask."""
    costs = terms_in(lab, task, mask, terms) if terms.startswith("time") else None
    if not isinstance(costs, CostModel):
        raise UsageError(f"{role} is of tickets for a time: search with --time, or take dense_of_flops")
    wanted = time_of(lab, task, mask, costs)

    def share(hundredths: int) -> float:
        return time_of_dense(lab, of_steps(hundredths * STEPS // HUNDRED), task, costs).share

    if share(HUNDRED) < wanted.share:
        raise UsageError(
            f"{role}: even {of_steps(STEPS).key()['model']} takes only {100 * share(HUNDRED):.1f} % of the dense time,"
            f" and the ticket {wanted}: name a network that is slower at its full width"
        )
    least = bisect_left(range(1, HUNDRED), wanted.share, key=share) + 1
    return of_steps(least * STEPS // HUNDRED)


def train_dense_of_cost(
    lab: Lab, task: Task, recipe: Recipe, role: str, found: Found, seeds: Seeds, *, label: str = ""
) -> Result:
    """Train the dense rival of a found ticket: from its own initialisation, for all steps that are in the ticket's."""
    assert found.mask is not None
    rival = dense_of_cost(lab, task, role, lab.store.get_mask(found.mask), found.aim)
    return train_for(lab, rival, recipe, budget(found), seeds, label=label)
