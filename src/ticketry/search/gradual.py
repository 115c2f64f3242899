"""Gradual magnitude pruning: weights are removed a few at a time while the network trains.

Training runs once. At intervals the mask shrinks between two steps, first fast, then slowly, along a cubic schedule.
Training continues with the remaining weights, momentum included, and ends at the final density. Zhu & Gupta, "To prune,
or not to prune" (2017, arXiv 1710.01878), section 3. Costs one training per density; the part before the first pruning
step is shared with the dense network.

With --structure rows:4 blocks of weights are removed instead of single ones.

With --structure channels whole channels are removed, a few at a time, and the network is physically smaller after each
pruning step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

from ticketry.core.sparse_training.schedule import cuts_within
from ticketry.lab.search_result import Found
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Schedule, Training
from ticketry.search.common.pruning import check_score_setting, prunable_scope, prune, stretch_to_flops
from ticketry.search.common.settings import Family, ScoreSettings

ABOUT = About(paper="Zhu & Gupta 2017", prunes="during training", costs="1 a density")


@dataclass(frozen=True, kw_only=True)
class Settings(ScoreSettings):
    """Settings of gradual pruning.

    Examples:
        >>> run = tk.run("gradual", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    points: ClassVar[tuple[str, ...]] = ("begin", "end", "frequency")
    structures: ClassVar[tuple[Family, ...]] = ("blocks", "channels")
    structure: str = "none"
    """Weights that are removed together, by their mean score: none (single weights), rows:4, rows:16 (so many
    neighbouring rows, at one column), filters (whole rows of one layer), channels (whole coupled channels; the network
    becomes physically smaller), channels:16 (each group that loses any keeps a multiple of 16)."""
    begin: str = "25%"
    """The step at which the density begins to fall from 1."""
    end: str = "75%"
    """The last pruning step; afterwards the network trains at its final density."""
    frequency: str = "2.5%"
    """Steps between two pruning steps, at least one. The network's state at each pruning step is stored."""


def _pruning_steps(settings: Settings, density: float, schedule: Schedule) -> dict[int, float]:
    """Return pruning step -> density after that step, falling to the final `density` (or share of the dense cost)."""
    return cuts_within(
        density,
        begin=settings.begin,
        end=settings.end,
        frequency=settings.frequency,
        total=schedule.total,
        per_epoch=schedule.per_epoch,
    )


def plan(settings: Settings) -> list[Training]:
    """Plan one training for each density, split into parts at the pruning steps."""

    def densities_by_step(target: float, schedule: Schedule) -> dict[int, float | None]:
        found = _pruning_steps(settings, target, schedule)
        return dict.fromkeys(found) if settings.budget else {**found}

    planned = zip(settings.plan_tickets(), settings.targets, strict=True)
    return [replace(one, cuts=partial(densities_by_step, target)) for one, target in planned]


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    check_score_setting(settings)
    lab, whole = replicate.lab, replicate.dense_training
    schedules = [_pruning_steps(settings, target, whole) for target in settings.targets]
    first, last = min(schedules[0]), max(schedules[0])  # those of all densities have the same steps
    scope = prunable_scope(replicate, settings)
    dense = replicate.train_dense(first, last)
    yield dense

    def find_ticket(level: int, schedule: dict[int, float]) -> Found:
        chain, mask = [lab.at(dense.result, first)], None
        for step, after in pairwise([*schedule, whole.total]):
            mask = prune(replicate, chain[-1], scope, schedule[step], settings, within=mask)
            segment = replicate.ticket_training(
                mask, rewound=chain[-1], trained=chain[-1], shrunk=settings.parsed_structure.channels
            )
            segment = segment.shortened_to(after)
            if step == last:
                segment = stretch_to_flops(lab, segment, chain, settings.equal_cost)
            label = f"{settings.describe_target(schedule[last])} from step {step}"
            chain.append(lab.train(segment, label=label, measure=step == last))
        *searched, result = chain
        return replace(
            dense,
            level=level,
            mask=mask,
            result=result,
            searched=tuple(searched),
            behind=last,
            pattern=settings.parsed_structure.pattern,
            aim=settings.budget_cache_key,
        )

    yield from replicate.find_each(find_ticket, schedules)
