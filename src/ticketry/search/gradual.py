"""Gradual magnitude pruning: weights are removed a few at a time while the network trains.

Training runs once. Between two steps of it the mask shrinks again and again, first fast, then slowly, along a cubic
schedule, and training goes on with what is left, momentum included, at the final density in the end. Zhu & Gupta, "To
prune, or not to prune" (2017, arXiv 1710.01878), section 3. Costs one training a density; up to the first cut that is
the dense network's own, which is not trained again.

With --pattern 4x1 blocks of weights are removed, instead of single ones.

With --structured whole channels leave, a few at a time, and each stretch between two cuts is trained in the smaller
network that is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from ticketry.core.pattern import Pattern
from ticketry.core.schedule import cuts_within
from ticketry.errors import UsageError
from ticketry.lab.found import GRADUAL, Found, Seeds
from ticketry.search import _densities
from ticketry.search._about import About
from ticketry.search._budget import stretched
from ticketry.search._scope import check_score, prunable, pruned
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe


ABOUT = About(
    paper="Zhu & Gupta 2017",
    prunes="during training",
    costs="1 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(_densities.DensitySettings):
    """Settings of gradual pruning."""

    begin: str = "25%"
    """The step at which the density begins to fall from 1."""
    end: str = "75%"
    """The step of the last cut; from there on the network trains at its final density."""
    frequency: str = "2.5%"
    """Steps between two cuts, at least one. The state at each cut is kept in the store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for point in (self.begin, self.end, self.frequency):
            Step.parse(point)
        if Pattern.parse(self.pattern).m:
            raise UsageError(
                f"gradual pruning goes through every density from 1 on, and no mask of pattern {self.pattern} is so"
                " dense: take oneshot or iterative, or another pattern"
            )


levels = _densities.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    from ticketry.lab.retrain import retraining

    check_score(settings)  # a wrong word is told before the dense network is trained
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    schedules = [
        cuts_within(
            density,
            begin=settings.begin,
            end=settings.end,
            frequency=settings.frequency,
            total=whole.total,
            per_epoch=whole.per_epoch,
        )
        for density in settings.targets
    ]
    first, last = min(schedules[0]), max(schedules[0])  # those of all densities have the same steps
    scope = prunable(lab, task, settings)
    dense = lab.train(whole, keep=(first, last), label="dense")
    yield Found(0, None, lab.at(dense, last), dense, GRADUAL, dense)

    def member(level: int, schedule: dict[int, float]) -> Found:
        chain, mask = [lab.at(dense, first)], None
        for step, after in pairwise([*schedule, whole.total]):
            mask = pruned(lab, task, chain[-1], scope, mask, schedule[step], settings, seeds)
            segment = retraining(
                lab,
                task,
                recipe,
                retrain=GRADUAL,
                mask=mask,
                rewound=chain[-1],
                trained=chain[-1],
                order_seed=seeds.order,
                shrunk=settings.structured,
            ).until(after)
            if step == last:
                segment = stretched(lab, segment, chain, settings.budget)
            label = f"density {schedule[last]:g} from step {step}"
            chain.append(lab.train(segment, label=label, measure=step == last))
        *searched, result = chain
        begun, pattern = lab.at(dense, last), settings.pattern
        return Found(level, mask, begun, dense, GRADUAL, result, tuple(searched), behind=last, pattern=pattern)

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(schedules, start=1)])
