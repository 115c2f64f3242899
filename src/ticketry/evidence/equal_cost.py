"""Dense networks that cost as much as a ticket: what its user would otherwise take, and so the strongest control.

Of the ticket's own network, at another width, or of another one that is named (``dense_of_flops:vgg-11``): deeper or
shallower. It is trained for as many steps as are in the ticket's weights, by the same recipe, from the replicate's own
seeds. Rounding never favours the ticket: the narrowest network is taken that costs no less.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from fractions import Fraction

from ticketry.core.mask import Mask
from ticketry.errors import TaskError, UsageError
from ticketry.evidence.comparison_names import network_named
from ticketry.evidence.dense_references import train_for
from ticketry.lab.budget_masks import dense_multiplications, left_multiplications
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds, budget
from ticketry.lab.training.segment import Result
from ticketry.tasks import catalogue
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task

STEPS = 1000
"""Widths are tried in steps of a thousandth: for layers of up to 1,000 filters or neurons every width is among them."""


def dense_of_cost(lab: Lab, task: Task, role: str, mask: Mask) -> Task:
    """The task with the narrowest network of a kind that takes at least the multiplications that a mask leaves.

    Args:
        task: that the mask is of.
        role: a name of `records.network.DENSE_RIVALS`, with the network after a colon if it is not the task's own.

    Raises:
        UsageError: if the task's network has no other widths, or even the widest form costs less.
    """
    wanted = left_multiplications(lab, task, mask)
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

    whole = of_steps(STEPS)
    if dense_multiplications(lab, whole) < wanted:
        raise UsageError(
            f"{role}: {whole.key()['model']} takes {dense_multiplications(lab, whole):,} multiplications, fewer than"
            f" the ticket's {wanted:,}: name a network that is dearer at its full width"
        )
    least = bisect_left(range(1, STEPS), wanted, key=lambda steps: dense_multiplications(lab, of_steps(steps))) + 1
    return of_steps(least)


def train_dense_of_cost(
    lab: Lab, task: Task, recipe: Recipe, role: str, found: Found, seeds: Seeds, *, label: str = ""
) -> Result:
    """Train the dense rival of a found ticket: from its own initialisation, for all steps that are in the ticket's."""
    assert found.mask is not None
    rival = dense_of_cost(lab, task, role, lab.store.get_mask(found.mask))
    return train_for(lab, rival, recipe, budget(found), seeds, label=label)
