"""One-shot pruning: train, cut once, train what is left.

The dense network is trained, all weights but the best by a score are removed at once, and what is left is trained
further: at the last learning rate (fine-tuning; Han et al. 2015), from the trained weights with the learning rates from
a step k on (learning-rate rewinding; Renda, Frankle & Carbin 2020), or from the weights of step k (rewinding; Frankle &
Carbin 2019). Several densities are cut from one dense network, each by itself: with a single one this is iterative
pruning (`iterative`) with a single level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ticketry.lab.found import REWINDING, Found, Seeds, retrain_after
from ticketry.search import _densities
from ticketry.search._scope import prunable, pruned

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Settings(_densities.DensitySettings):
    """Settings of one-shot pruning."""

    rewind: str = "0"
    """The step k: training after the cut has the length of steps k … T of the schedule (end: the whole length)."""
    retrain: str = "finetune"
    """How what is left is trained: finetune (final weights, last learning rate), rewind_lr (final weights, learning
    rates of steps k..T), continue (the weights of step k, steps k..T) or restart (those, the whole schedule again)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        retrain_after(self.rewind, self.retrain)


levels = _densities.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    from ticketry.core.score import get
    from ticketry.lab.retrain import retraining

    get(settings.score)  # a wrong word is told before the dense network is trained
    retrain = retrain_after(settings.rewind, settings.retrain)
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    step = whole.at(settings.rewind)
    scope = prunable(lab, task, settings)
    dense = lab.train(whole, keep=(step,), label="dense")
    rewound = lab.at(dense, step)
    yield Found(0, None, rewound, dense, retrain, dense)

    def member(level: int, density: float) -> Found:
        mask = pruned(lab, task, dense, scope, None, density, settings, seeds)
        segment = retraining(
            lab,
            task,
            recipe,
            retrain=retrain,
            mask=mask,
            rewound=rewound,
            trained=dense,
            order_seed=seeds.order,
        )
        result = lab.train(segment, label=f"density {density:g}")
        behind = step if retrain in REWINDING else whole.total
        return Found(level, mask, rewound, dense, retrain, result, searched=(dense,), behind=behind)

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(settings.targets, start=1)])
