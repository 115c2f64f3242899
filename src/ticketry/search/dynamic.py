"""Dynamic sparse training (RigL, SET): sparse from the first step, with a mask that moves.

Training begins with a random mask, which is changed at regular intervals (a move of the mask). In a move, each layer
drops a share of its weights, those of smallest magnitude, and grows as many removed weights: those with the largest
gradient (RigL; Evci et al., "Rigging the Lottery", 2020, arXiv 1911.11134, section 3) or random ones (SET; Mocanu et
al. 2018, arXiv 1707.04780). Grown weights begin at 0, without momentum. The share falls along a cosine, and the mask is
fixed in the last quarter of training. No layer's density ever changes; by default densities are those of ERK. Costs one
training per density, sparse throughout; the dense network is trained only for comparison.

As in the paper's algorithm, the batch whose gradient decides what grows is not trained on: with growth by gradient, a
move replaces a training step, and is counted as one. This implementation departs from the paper as follows. Weights
that were just dropped are not grown back in the same move (in the paper they may be: --regrow). The mask first moves
after one interval (in the authors' code before the first step). Ties are broken by position (the code adds noise). SET
has RigL's schedule, as in the paper's comparison (the original SET replaces a fixed share every epoch). Tickets report
the training after the last move. Controls keep one mask, from the weights of step 0, for the whole schedule, which is
the paper's static training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from math import floor
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from ticketry.choices import check_choice
from ticketry.core.sparse_training.schedule import moves_within
from ticketry.errors import UsageError
from ticketry.lab.search_result import DYNAMIC, Found, Growth
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Schedule, Training
from ticketry.search.common.pruning import prunable_scope, store_chosen_mask
from ticketry.search.common.settings import PruningSettings
from ticketry.step import Step

if TYPE_CHECKING:
    from torch import Tensor

    from ticketry.core.mask import Mask
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Segment
    from ticketry.tasks.recipe import Recipe


ABOUT = About(
    paper="Evci et al. 2020 (RigL); Mocanu et al. 2018 (SET)", prunes="during training", costs="1 a density, sparse"
)


@dataclass(frozen=True, kw_only=True)
class Settings(PruningSettings):
    """Settings of dynamic sparse training.

    Examples:
        >>> recipe = {"length": "20it"}
        >>> run = tk.run("dynamic", density=0.2, frequency="5it", replicates=1, controls=(), recipe=recipe, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    points: ClassVar[tuple[str, ...]] = ("frequency", "end")
    grow: Growth = "gradient"
    """Which removed weights are grown: gradient (those with the largest gradient, RigL) or random (SET)."""
    alpha: float = 0.3
    """Share of each layer's weights to drop in a change of the mask: this value at step 0, falling along a cosine to 0
    at `end`."""
    frequency: str = "100it"
    """Steps between two changes of the mask. The network's state at each change is stored."""
    end: str = "75%"
    """The step after which the mask no longer changes."""
    distribution: Literal["erk", "uniform"] = "erk"
    """How the retained weights are distributed over the layers: erk or uniform. No layer's density ever changes."""
    regrow: bool = False
    """Allow weights that were just dropped to be grown again in the same change of the mask, as in the paper; such
    weights keep their value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise UsageError(
                f"alpha is the share of weights that are dropped at first, 0 < alpha < 1, not {self.alpha}"
            )

    @property
    def steps_replaced_per_mask_change(self) -> int:
        """Number of training steps that each change of the mask replaces: 1 if the change needs a gradient, else 0."""
        return int(self.grow == "gradient")


def plan(settings: Settings) -> list[Training]:
    """Plan one training for each density, split where the mask changes; controls train a fixed mask from step 0."""

    def densities_by_step(density: float | None, schedule: Schedule) -> dict[int, float | None]:
        return dict.fromkeys([0, *_replaced_shares_by_step(settings, schedule, schedule.total)], density)

    return [
        replace(one, cuts=partial(densities_by_step, one.density), controls_from="0") for one in settings.plan_tickets()
    ]


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    lab, whole, seeds = replicate.lab, replicate.dense_training, replicate.seeds
    if settings.steps_replaced_per_mask_change and min(_replaced_shares_by_step(settings, whole, whole.total)) < 2:
        raise UsageError(
            f"frequency {settings.frequency} is one step, and with growth by gradient a move takes the place of a step:"
            " nothing would be trained between moves"
        )
    scope = prunable_scope(replicate, settings)
    initial = lab.train(whole.shortened_to(0), label="initialisation", measure=False)
    chosen = {"score": "random", "distribution": settings.distribution}
    masks = [
        store_chosen_mask(replicate, initial, scope, share, settings.budget_cache_key, **chosen)
        for share in settings.targets
    ]
    dense = lab.train(whole, label="dense")
    yield Found(0, None, initial, dense, DYNAMIC, dense)

    def find_ticket(level: int, piece: tuple[float, str]) -> Found:
        density, mask = piece
        own = replace(replicate, recipe=_prolong_to_dense_flops(lab, replicate.from_initialisation(mask), settings))
        sparse = own.from_initialisation(mask)
        moves = _replaced_shares_by_step(settings, whole, sparse.total)
        goal = settings.describe_target(density)
        chain = [lab.train(sparse.shortened_to(min(moves)), label=f"{goal} from step 0", measure=False)]
        for step, after in pairwise([*moves, sparse.total]):
            before = chain[-1]
            still = own.continue_from(before, step, optimizer=before, mask=mask)
            mask = update_dynamic_mask(
                lab, still, moves[step], grow=settings.grow, seed=seeds.mask, regrow=settings.regrow
            )
            segment = own.continue_from(
                before, step + settings.steps_replaced_per_mask_change, optimizer=before, mask=mask, last=after
            )
            label = f"{goal} from step {step}"
            chain.append(lab.train(segment, label=label, measure=after == sparse.total))
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
            gradients=settings.steps_replaced_per_mask_change * len(moves),
            aim=settings.budget_cache_key,
        )

    pieces = zip(settings.targets, masks, strict=True)
    yield from replicate.find_each(find_ticket, pieces)


def _replaced_shares_by_step(settings: Settings, whole: Schedule, length: int) -> dict[int, float]:
    """Return a mapping from each step at which the mask changes to the share of each layer's weights to replace.

    Points such as 75% refer to `whole`, the schedule of the recipe. The training has `length` steps, which are more in
    a search at equal FLOPs; the interval between changes is not scaled.
    """
    end = Step.parse(settings.end).scaled(Fraction(length, whole.total), per_epoch=whole.per_epoch)
    return moves_within(
        settings.alpha, end=str(end), frequency=settings.frequency, total=length, per_epoch=whole.per_epoch
    )


def _prolong_to_dense_flops(lab: Lab, segment: Segment, settings: Settings) -> Recipe:
    """Return the recipe of `segment`, prolonged to a dense training's FLOPs if `equal_cost` is ``flops``.

    The FLOPs include changes of the mask, as in RigL 5x (Evci et al. 2020).
    """
    if settings.equal_cost != "flops":
        return segment.recipe
    from ticketry.lab.costs.step_cost import dense_gradient_flops, step_flops

    dense, flops = step_flops(lab, segment)
    if flops <= 0:
        raise UsageError("equal_cost flops: the FLOPs of this network cannot be counted: use equal_cost steps")
    total = segment.total

    def is_affordable(length: int) -> bool:
        gradients = settings.steps_replaced_per_mask_change * len(_replaced_shares_by_step(settings, segment, length))
        return (length - gradients) * flops + gradients * dense_gradient_flops(dense, flops) <= total * dense * (
            1 + 1e-12
        )

    enough, too_long = total, floor(total * dense / flops) + 1
    while too_long - enough > 1:
        middle = (enough + too_long) // 2
        enough, too_long = (middle, too_long) if is_affordable(middle) else (enough, middle)
    return segment.recipe.scaled(enough, per_epoch=segment.per_epoch)


def update_dynamic_mask(
    lab: Lab, segment: Segment, share: float, *, grow: Growth, seed: int = 0, regrow: bool = False
) -> str:
    """Drop and grow weights of a segment's mask before its first step; return the new mask's digest (cached).

    Args:
        segment: the training as it would continue, from a stored state, with the present mask.
        share: share of each layer's weights to replace.
        grow: which weights are grown: those with the largest |gradient| on the segment's first batch (``gradient``), or
            ``random`` ones.
        regrow: whether dropped weights may be grown again at once, see `core.sparse_training.mask_dynamics`.
    """
    import torch

    from ticketry.core.sparse_training.mask_dynamics import drop_and_grow
    from ticketry_engine.support.seeds import generator

    check_choice("grow", grow, get_args(Growth))
    state, digest = segment.start.state, segment.mask
    assert state is not None
    assert digest is not None

    def compute_mask() -> Mask:
        mask = lab.store.get_mask(digest)
        if grow == "gradient":
            growth = {name: gradient.abs() for name, gradient in first_batch_gradient(lab, segment).items()}
        else:
            growth = {
                name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "grow", segment.first, index))
                for index, (name, shape) in enumerate(mask.shapes.items())
            }
        return drop_and_grow(mask, lab.store.get_tensors(state), growth, share, regrow=regrow)

    described = {"moved": segment.shortened_to(segment.first + 1).key, "grow": grow, "share": share, "regrow": regrow}
    return lab.load_or_compute_mask(
        described | ({"seed": seed} if grow == "random" else {}),
        compute_mask,
        ready=lambda: segment.course(lab.data) if grow == "gradient" else None,
    )


def first_batch_gradient(lab: Lab, segment: Segment) -> dict[str, Tensor]:
    """Return the gradient of the loss on the first batch of `segment`, by parameter name, also of pruned weights.

    The gradient includes augmentation and dropout. It depends only on the start, mask, order seed and first step of
    the segment, so masks derived from it can be cached by the segment's key. It is always computed in this process,
    and not stored.
    """
    from ticketry.lab.training.job import load_start_state
    from ticketry.lab.training.loop import Loop

    assert all(one.masked_by() for one in segment.variants), "gradients are taken of plain networks, masked or not"
    course, state = segment.course(lab.data), load_start_state(lab.store, segment)
    with segment.arithmetic.active():
        return Loop(lab.store, course, segment.shortened_to(segment.first + 1), state).compute_next_gradient()
