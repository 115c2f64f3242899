"""AC/DC: compressed and decompressed phases take turns.

After a dense warm-up only the weights of largest magnitude over all layers are retained and trained for a phase. Then
all weights are trained again, the removed ones from 0, and so on. The last phase is longer and compressed. Peste,
Iofinova, Vladu & Alistarh, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks" (NeurIPS 2021,
arXiv 2106.12379), algorithm 1. Costs one training per density; the warm-up is shared with the dense network.

Defaults are the shares of the 100 epochs on ImageNet in the authors' code (warm-up 10 epochs, phases of 5, the last
from epoch 85 on); for their CIFAR-100: --warmup 10ep --phase 20ep --end 170ep, of 200. As there, each decompressed
phase begins with a new optimiser. Controls continue from the decompressed network that was pruned last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

from ticketry.core.sparse_training.schedule import phases_within
from ticketry.lab.search_result import GRADUAL, Found
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Schedule, Training
from ticketry.search.common.pruning import check_score_setting, prunable_scope, prune, stretch_to_flops
from ticketry.search.common.settings import ScoreSettings

ABOUT = About(paper="Peste et al. 2021", prunes="during training", costs="1 a density")


@dataclass(frozen=True, kw_only=True)
class Settings(ScoreSettings):
    """Settings of AC/DC.

    Examples:
        >>> run = tk.run("acdc", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    points: ClassVar[tuple[str, ...]] = ("warmup", "phase", "end")
    warmup: str = "10%"
    """Length of the dense training at the beginning."""
    phase: str = "5%"
    """Length of each compressed and each decompressed phase. The network's state after each phase is stored."""
    end: str = "85%"
    """The step at which the last compressed phase begins and the decompressed phase before it ends."""


def _list_phase_starts(settings: Settings, schedule: Schedule) -> list[tuple[int, bool]]:
    """Return (first step, whether the network is pruned) of each phase; dense and pruned phases alternate."""
    return phases_within(
        warmup=settings.warmup,
        phase=settings.phase,
        end=settings.end,
        total=schedule.total,
        per_epoch=schedule.per_epoch,
    )


def plan(settings: Settings) -> list[Training]:
    """Plan one training for each density, split into phases that train the pruned or the dense network."""

    def densities_by_step(density: float | None, schedule: Schedule) -> dict[int, float | None]:
        phases = _list_phase_starts(settings, schedule)
        first = next(step for step, sparse in phases if sparse)
        return {step: density if sparse else 1.0 for step, sparse in phases if step >= first}

    return [replace(one, cuts=partial(densities_by_step, one.density)) for one in settings.plan_tickets()]


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    check_score_setting(settings)
    lab, whole = replicate.lab, replicate.dense_training
    phases = _list_phase_starts(settings, whole)
    compressed = [step for step, sparse in phases if sparse]
    first, last = compressed[0], compressed[-1]
    scope = prunable_scope(replicate, settings)
    dense = replicate.train_dense(first, last)
    yield dense

    def find_ticket(level: int, density: float) -> Found:
        chain, mask = [lab.at(dense.result, first)], None
        turns = [phase for phase in phases if phase[0] >= first]
        for (step, sparse), (after, _) in pairwise([*turns, (whole.total, False)]):
            before = chain[-1]
            mask = prune(replicate, before, scope, density, settings) if sparse else None
            segment = replicate.continue_from(before, step, mask=mask, last=after, optimizer=before if sparse else None)
            if step == last:
                segment = stretch_to_flops(lab, segment, chain, settings.equal_cost)
            label = f"{settings.describe_target(density)} {'compressed' if sparse else 'decompressed'} from step {step}"
            chain.append(lab.train(segment, label=label, measure=step == last))
        *searched, result = chain
        return Found(
            *(level, mask, searched[-1], dense.result, GRADUAL, result),
            searched=tuple(searched),
            behind=last,
            aim=settings.budget_cache_key,
        )

    yield from replicate.find_each(find_ticket, settings.targets)
