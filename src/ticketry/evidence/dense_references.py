"""The dense network at other budgets: at all that finding the ticket has cost, and at no more than its FLOPs.

A ticket has the budget of *one* dense training, but its search had that of many, and a sparse network's training could
in principle take fewer operations. Both are shown beside a verdict; neither decides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ticketry.core.mask import Mask
from ticketry.core.scope import named_parameters
from ticketry.evidence.ticket_under_test import Subject
from ticketry.lab.costs.meters.flops import FlopsByWeight, forward_flops, removed_shares
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.segment import Result
from ticketry.lab.training.variant import Variant
from ticketry.step import Step
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task


@dataclass(frozen=True)
class Reference:
    """A dense network of another budget."""

    role: str
    steps: int
    note: str
    """How the number of steps came about."""


def references(subject: Subject) -> list[Reference]:
    """Those that can be told of a ticket."""
    made = []
    spent, once = subject.info.get("search_steps"), subject.budget
    if spent:
        note = (
            f"the {spent:,} steps that the search had trained when the ticket was found, {spent / once:.1f} trainings"
        )
        made.append(Reference("dense_at_cost", int(spent), note))
    share = flops_share(subject.lab, subject.task, subject.mask)
    own = subject.last - subject.first
    steps = max(1, subject.step + round(share * own))
    note = (
        f"as many operations as the ticket's training has where zeros cost nothing: {100 * share:.1f} % of the dense"
        f" network's over {own:,} steps{f', after {subject.step:,} dense ones' if subject.step else ''}"
    )
    return [*made, Reference("dense_at_flops", steps, note)]


def train_reference(subject: Subject, reference: Reference, seeds: Seeds) -> Result:
    """The dense network of the ticket's initialisation, trained for the reference's steps."""
    own = replace(seeds, initialisation=subject.seeds.initialisation)
    return train_for(subject.lab, subject.task, subject.recipe, reference.steps, own, label=reference.role)


def train_for(
    lab: Lab, task: Task, recipe: Recipe, steps: int, seeds: Seeds, *, variants: Sequence[Variant] = (), label: str = ""
) -> Result:
    """Train from the initialisation for so many steps: by the recipe, or by its whole schedule stretched or squeezed.

    Args:
        variants: what acts on the network, such as a mask that is held all the while; without them it is dense.
    """
    per_epoch = lab.per_epoch(task, recipe)
    if steps != recipe.steps(per_epoch):
        recipe = stretched(recipe, per_epoch, steps)
    segment = lab.segment(task, start=seeds.initialisation, variants=variants, order_seed=seeds.order, recipe=recipe)
    return lab.train(segment, label=label)


def stretched(recipe: Recipe, per_epoch: int, steps: int) -> Recipe:
    """The recipe over `steps` iterations: its milestones and warm-up keep their places in the whole."""
    scale = Fraction(steps, recipe.steps(per_epoch))

    def scaled(text: str) -> str:
        step = Step.parse(text)
        return text if step.unit == "%" else f"{round(step.iterations(per_epoch=per_epoch) * scale)}it"

    return recipe.changed(
        length=f"{steps}it", warmup=scaled(recipe.warmup), milestones=tuple(scaled(text) for text in recipe.milestones)
    )


def flops_share(lab: Lab, task: Task, mask: Mask) -> float:
    """FLOPs of the masked network as a share of the dense one's, if a removed weight takes none. Remembered.

    Counted on one example, in a forward pass, see `lab.costs.meters.flops`. Products with a weight are proportional to
    what is kept of it; those with weights that have no mask count in full. Biases and norms take none.
    """
    key = digest_of({"flops": 2, "task": dict(task.key())})
    known = lab.store.memo("flops", key)
    if known is None:
        found = _counted(lab, task)
        known = {"dense": found.dense, "products": [[list(names), flops] for names, flops in found.products.items()]}
        lab.store.put_memo("flops", key, known)
    by_weight = FlopsByWeight(known["dense"], {tuple(names): flops for names, flops in known["products"]})
    return by_weight.left(removed_shares(mask)) / by_weight.dense if by_weight.dense else 1.0


def _counted(lab: Lab, task: Task) -> FlopsByWeight:
    """FLOPs of the forward pass of one example."""
    model = lab.model(task).eval()
    inputs = lab.course(task).inputs(1)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    return forward_flops(named_parameters(model), lambda: model(*arguments))
