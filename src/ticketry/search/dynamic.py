"""Dynamic sparse training (RigL, SET): sparse from the first step, while the mask moves.

Training begins with a random mask. Every so many steps each layer drops a share of its weights, those of smallest
magnitude, and grows as many that it did not have: those with the largest gradient (RigL; Evci et al., "Rigging the
Lottery", 2020, arXiv 1911.11134, section 3) or any (SET; Mocanu et al. 2018, arXiv 1707.04780). Grown weights begin at
0, without momentum. The share falls along a cosine, and the mask stays for the last quarter. No layer's density ever
changes; by default they are those of ERK. Costs one training a density, sparse all the way; the dense network is
trained to compare with.

As in the paper's algorithm, the batch whose gradient is looked at trains nothing: with growth by gradient a move takes
the place of a step, and is counted as one. Ours: what was just dropped is not grown back at the same move (in the
paper it may be: --regrow); the mask first moves after one interval, in the authors' code before the first step; ties
by position, where the code adds noise; SET with RigL's schedule, as the paper compares it (its own moves a fixed share
every epoch). Tickets are told with what they trained after the last move; controls hold one mask, on the weights of
step 0, for the whole schedule: the paper's static training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ticketry.errors import UsageError
from ticketry.lab.found import DYNAMIC, GROWTHS, Found, Seeds
from ticketry.search import _densities
from ticketry.search._about import About
from ticketry.search._budget import stretched_moves
from ticketry.search._scope import prunable
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab, Result
    from ticketry.lab.segment import Segment
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe

_DISTRIBUTIONS = ("erk", "uniform")


ABOUT = About(
    paper="Evci et al. 2020 (RigL); Mocanu et al. 2018 (SET)",
    prunes="during training",
    costs="1 a density, sparse",
)


@dataclass(frozen=True, kw_only=True)
class Settings(_densities.Densities):
    """Settings of dynamic sparse training."""

    grow: str = "gradient"
    """Which weights are grown: gradient (those with the largest, RigL) or random (SET)."""
    alpha: float = 0.3
    """Share of each layer's weights that would be dropped at step 0; it falls along a cosine, to 0 at end."""
    frequency: str = "100it"
    """Steps between two moves of the mask. The state at each is kept in the store."""
    end: str = "75%"
    """From this step on the mask stays."""
    distribution: str = "erk"
    """erk or uniform: how the weights kept are spread over the layers, for good."""
    regrow: bool = False
    """Let weights that have just been dropped be grown again at the same move, as in the paper; those keep their
    value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, word, words in (
            ("grow", self.grow, GROWTHS),
            ("distribution", self.distribution, _DISTRIBUTIONS),
        ):
            if word not in words:
                raise UsageError(f"{name} is {' or '.join(words)}, not {word!r}")
        if not 0 < self.alpha < 1:
            raise UsageError(
                f"alpha is the share of weights that are dropped at first, 0 < alpha < 1, not {self.alpha}"
            )
        for point in (self.frequency, self.end):
            Step.parse(point)


levels = _densities.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, to compare with, then a sparse one for each density, the densest first."""
    from ticketry.lab.growth import moved_mask

    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    looks = int(settings.grow == "gradient")
    moving: dict[str, Any] = {name: getattr(settings, name) for name in ("alpha", "end", "frequency", "budget")}
    moves = stretched_moves(lab, whole, looks=looks, **moving | {"budget": ""})[1]
    if looks and min(moves) < 2:
        raise UsageError(
            f"frequency {settings.frequency} is one step, and with growth by gradient a move takes the place of a step:"
            " nothing would be trained between moves"
        )
    scope = prunable(lab, task, settings)
    initial = lab.train(whole.until(0), label="initialisation", measure=False)
    masks = [
        lab.prune(
            task,
            initial,
            scope,
            density=density,
            score="random",
            distribution=settings.distribution,
            seed=seeds.mask,
        )
        for density in settings.targets
    ]
    dense = lab.train(whole, label="dense")
    yield Found(0, None, initial, dense, DYNAMIC, dense)

    def member(level: int, density: float, mask: str) -> Found:
        own, moves = stretched_moves(lab, replace(whole, mask=mask), looks=looks, **moving)
        begun = lab.segment(task, start=seeds.initialisation, mask=mask, order_seed=seeds.order, recipe=own)
        chain = [lab.train(begun.until(min(moves)), label=f"density {density:g} from step 0", measure=False)]
        for step, after in pairwise([*moves, begun.total]):
            still = _onward(lab, chain[-1], mask, step)
            mask = moved_mask(lab, still, moves[step], grow=settings.grow, seed=seeds.mask, regrow=settings.regrow)
            segment = _onward(lab, chain[-1], mask, step + looks).until(after)
            label = f"density {density:g} from step {step}"
            chain.append(lab.train(segment, label=label, measure=after == begun.total))
        *searched, result = chain
        return Found(
            level,
            mask,
            initial,
            dense,
            DYNAMIC,
            result,
            tuple(searched),
            behind=result.segment.first,
            gradients=looks * len(moves),
        )

    pieces = zip(settings.targets, masks, strict=True)
    yield from lab.gather([partial(member, level, *each) for level, each in enumerate(pieces, start=1)])


def _onward(lab: Lab, before: Result, mask: str, first: int) -> Segment:
    """Training that goes on, optimiser's state included, with another mask from step `first` to the end."""
    from ticketry.lab.segment import Start

    segment = before.segment
    return lab.segment(
        segment.task,
        start=Start(state=before.model, optimizer=before.training),
        mask=mask,
        first=first,
        order_seed=segment.order_seed,
        recipe=segment.recipe,
    )
