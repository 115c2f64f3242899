"""Cyclic training: a fixed mask, trained as often as the search trained.

A search of several rounds trains the network again and again, and each time the learning rate falls anew. Gadhikar,
Nelaturu & Burkholz, "Cyclic Sparse Training: Is it Enough?" (2024, arXiv 2406.02773) ask how much of the gain is due to
these cycles alone: they train a mask that is fixed from the start for as many cycles, weights going on from cycle to
cycle and the optimiser beginning afresh, as in the authors' code. There the mask is one of pruning at initialisation.
Here it is the ticket's own (`cyclic`), or that mask shuffled within each layer (`cyclic_random`: random, with the
layers' densities); both begin with the ticket's early weights.

A cycle is the ticket's own training: the same steps of the schedule (steps k..T for a ticket that keeps final weights,
which the control does not have). There are as many as the search and the ticket's training together would pay for, to
the nearest: L + 1 for level L of iterative pruning, the dense network being one; R + 1 for round R of a search that
trains in rounds. So the budget is not the ticket's but that of its search, and no verdict rests on these controls.

The first cycle is the training of the ticket (of `shuffled`) itself, and taken from the store where it is there; each
further one has a data order of its own. Chains of two levels share no cycle: their masks differ.
"""

from __future__ import annotations

from dataclasses import replace

from ticketry.lab.lab import Lab
from ticketry.lab.retrain import retraining
from ticketry.lab.search_result import GRADUAL, REWINDING, Found, Seeds, search_cost
from ticketry.lab.training.segment import Result, Segment, Start
from ticketry.lab.training.variant import under_mask
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import mix


def train_cycles(
    lab: Lab, task: Task, recipe: Recipe, mask: str, found: Found, seeds: Seeds, label: str = ""
) -> list[Result]:
    """The result of each cycle of a stored mask, as many as `cycles` tells."""
    first = _first(lab, task, recipe, mask, found, seeds)
    results: list[Result] = []
    count = cycles(found, first.steps)
    for number in range(count):
        if not results:
            segment = first
        else:
            start = Start(state=results[-1].model)
            segment = replace(first, start=start, order_seed=mix(seeds.order, "cycle", number))
        results.append(lab.train(segment, label=f"{label} (cycle {number + 1} of {count})"))
    return results


def cycles(found: Found, steps: int) -> int:
    """How many cycles of so many `steps` come nearest to a ticket's whole cost, after the steps of its rewind step."""
    left = search_cost(found) - found.rewound.segment.last
    return max(1, (2 * left + steps) // (2 * steps))


def _first(lab: Lab, task: Task, recipe: Recipe, mask: str, found: Found, seeds: Seeds) -> Segment:
    at_end = found.rewound.segment.last >= found.result.segment.total
    retrain = found.retrain if found.retrain in REWINDING else "restart" if at_end else "continue"
    return retraining(
        lab,
        task,
        recipe,
        retrain=retrain,
        mask=None,
        rewound=found.rewound,
        trained=found.rewound,
        order_seed=seeds.order,
        entered=found.result.segment.first if found.retrain == GRADUAL else None,
        variants=under_mask(found.result.segment.variants, mask),
    )
