"""Gradual magnitude pruning: weights are removed a few at a time while the network trains.

Training runs once. From time to time the mask shrinks between two steps, first fast, then slowly, along a cubic
schedule. Training goes on with what is left, momentum included, and in the end at the final density. Zhu & Gupta, "To
prune, or not to prune" (2017, arXiv 1710.01878), section 3. Costs one training a density; up to the first cut that is
the dense network's own, which is not trained again.

With --pattern 4x1 blocks of weights are removed, instead of single ones.

With --structured whole channels are removed, a few at a time, and each stretch between two cuts is trained in the
smaller network that is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

from ticketry.core.sparse_training.schedule import cuts_within
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import UsageError
from ticketry.lab.search_result import Found
from ticketry.search.common import densities
from ticketry.search.common.aims import goal
from ticketry.search.common.budget import stretched
from ticketry.search.common.method import About, Replicate, on_replicate
from ticketry.search.common.plan import Schedule, Training
from ticketry.search.common.scope import check_score, prunable, pruned

ABOUT = About(
    paper="Zhu & Gupta 2017",
    prunes="during training",
    costs="1 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(densities.DensitySettings):
    """Settings of gradual pruning.

    Examples:
        >>> run = tk.run("gradual", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    points: ClassVar[tuple[str, ...]] = ("begin", "end", "frequency")
    begin: str = "25%"
    """The step at which the density begins to fall from 1."""
    end: str = "75%"
    """The step of the last cut; from there on the network trains at its final density."""
    frequency: str = "2.5%"
    """Steps between two cuts, at least one. The state at each cut is kept in the store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if Pattern.parse(self.pattern).m:
            raise UsageError(
                f"gradual pruning goes through every density from 1 on, and no mask of pattern {self.pattern} is so"
                " dense: take oneshot or iterative, or another pattern"
            )


def _cuts(settings: Settings, density: float, schedule: Schedule) -> dict[int, float]:
    """Return the pruning steps on the way to a density (or share of a budget), with the density after each."""
    return cuts_within(
        density,
        begin=settings.begin,
        end=settings.end,
        frequency=settings.frequency,
        total=schedule.total,
        per_epoch=schedule.per_epoch,
    )


def plan(settings: Settings) -> list[Training]:
    """Plan a training for each density, in pieces from one pruning step to the next."""

    def cuts(target: float, schedule: Schedule) -> dict[int, float | None]:
        found = _cuts(settings, target, schedule)
        return dict.fromkeys(found) if settings.aim else {**found}

    planned = zip(settings.plan_tickets(), settings.targets, strict=True)
    return [replace(one, cuts=partial(cuts, target)) for one, target in planned]


@on_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    check_score(settings)  # a wrong word is told before the dense network is trained
    lab, whole = replicate.lab, replicate.whole
    schedules = [_cuts(settings, target, whole) for target in settings.targets]
    first, last = min(schedules[0]), max(schedules[0])  # those of all densities have the same steps
    scope = prunable(replicate, settings)
    dense = replicate.dense(first, last)
    yield dense

    def member(level: int, schedule: dict[int, float]) -> Found:
        chain, mask = [lab.at(dense.result, first)], None
        for step, after in pairwise([*schedule, whole.total]):
            mask = pruned(replicate, chain[-1], scope, schedule[step], settings, within=mask)
            segment = replicate.retrained(mask, rewound=chain[-1], trained=chain[-1], shrunk=settings.structured)
            segment = segment.until(after)
            if step == last:
                segment = stretched(lab, segment, chain, settings.budget)
            label = f"{goal(settings, schedule[last])} from step {step}"
            chain.append(lab.train(segment, label=label, measure=step == last))
        *searched, result = chain
        return replace(
            dense,
            level=level,
            mask=mask,
            result=result,
            searched=tuple(searched),
            behind=last,
            pattern=settings.pattern,
            aim=settings.terms,
        )

    yield from replicate.side_by_side(member, schedules)
