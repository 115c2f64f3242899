"""AC/DC: compressed and decompressed phases take turns.

After a dense warm-up the weights of largest magnitude over all layers are kept, and trained alone for a phase; then all
are trained again, those that were removed from 0 on; and so on. The last phase, a longer one, is compressed. Peste,
Iofinova, Vladu & Alistarh, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks" (NeurIPS 2021,
arXiv 2106.12379), algorithm 1. Costs one training a density; the warm-up is the dense network's own, which is not
trained again.

Defaults are the shares of the 100 epochs on ImageNet in the authors' code (warm-up 10 epochs, phases of 5, the last
from epoch 85 on); for their CIFAR-100: --warmup 10ep --phase 20ep --end 170ep, of 200. As there, the optimiser begins
afresh with each decompressed phase. Controls go on from the decompressed network that was cut last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from ticketry.core.schedule import phases_within
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
    paper="Peste et al. 2021",
    prunes="during training",
    costs="1 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(_densities.WeightSettings):
    """Settings of AC/DC."""

    warmup: str = "10%"
    """How long the network is trained densely at first."""
    phase: str = "5%"
    """Length of each compressed and each decompressed phase. The state at the end of each is kept in the store."""
    end: str = "85%"
    """The step at which the last compressed phase begins; the decompressed one before it lasts until then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for point in (self.warmup, self.phase, self.end):
            Step.parse(point)


levels = _densities.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    from ticketry.lab.segment import Start

    check_score(settings)  # a wrong word is told before the dense network is trained
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    phases = phases_within(
        warmup=settings.warmup,
        phase=settings.phase,
        end=settings.end,
        total=whole.total,
        per_epoch=whole.per_epoch,
    )
    compressed = [step for step, sparse in phases if sparse]
    first, last = compressed[0], compressed[-1]
    scope = prunable(lab, task, settings)
    dense = lab.train(whole, keep=(first, last), label="dense")
    yield Found(0, None, lab.at(dense, last), dense, GRADUAL, dense)

    def member(level: int, density: float) -> Found:
        chain, mask = [lab.at(dense, first)], None
        turns = [phase for phase in phases if phase[0] >= first]
        for (step, sparse), (after, _) in pairwise([*turns, (whole.total, False)]):
            before = chain[-1]
            mask = pruned(lab, task, before, scope, None, density, settings, seeds) if sparse else None
            segment = lab.segment(
                task,
                start=Start(state=before.model, optimizer=before.training if sparse else None),
                mask=mask,
                first=step,
                last=after,
                order_seed=seeds.order,
                recipe=recipe,
            )
            if step == last:
                segment = stretched(lab, segment, chain, settings.budget)
            label = f"density {density:g} {'compressed' if sparse else 'decompressed'} from step {step}"
            chain.append(lab.train(segment, label=label, measure=step == last))
        *searched, result = chain
        return Found(level, mask, searched[-1], dense, GRADUAL, result, tuple(searched), behind=last)

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(settings.targets, start=1)])
