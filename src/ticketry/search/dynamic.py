"""Dynamic sparse training (RigL, SET): sparse from the first step, with a mask that moves.

Training begins with a random mask. Every so many steps each layer drops a share of its weights, those of smallest
magnitude, and grows as many that it did not have: those with the largest gradient (RigL; Evci et al., "Rigging the
Lottery", 2020, arXiv 1911.11134, section 3) or any (SET; Mocanu et al. 2018, arXiv 1707.04780). Grown weights begin at
0, without momentum. The share falls along a cosine, and the mask stays for the last quarter. No layer's density ever
changes; by default they are those of ERK. Costs one training per density, sparse throughout; the dense network is
trained to compare with.

As in the paper's algorithm, the batch whose gradient decides trains nothing: with growth by gradient a move replaces a
step, and is counted as one. Ours: weights that were just dropped are not grown back at the same move (in the paper they
may be: --regrow); the mask first moves after one interval, in the authors' code before the first step; ties by
position, where the code adds noise; SET with RigL's schedule, as the paper compares it (its own moves a fixed share
every epoch). Tickets are reported with what they trained after the last move; controls hold one mask, on the weights of
step 0, for the whole schedule: the paper's static training.
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
from ticketry.search.common.method import About, Replicate, on_replicate
from ticketry.search.common.plan import Schedule, Training
from ticketry.search.common.pruning import draw_mask, prunable
from ticketry.search.common.settings import PruningSettings
from ticketry.step import Step

if TYPE_CHECKING:
    from torch import Tensor

    from ticketry.core.mask import Mask
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Segment
    from ticketry.tasks.recipe import Recipe


ABOUT = About(
    paper="Evci et al. 2020 (RigL); Mocanu et al. 2018 (SET)",
    prunes="during training",
    costs="1 a density, sparse",
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
    """Which weights are grown: gradient (those with the largest gradient, RigL) or random (SET)."""
    alpha: float = 0.3
    """Share of each layer's weights that would be dropped at step 0; it falls along a cosine, to 0 at end."""
    frequency: str = "100it"
    """Steps between two moves of the mask. The state at each is stored."""
    end: str = "75%"
    """The step after which the mask stays."""
    distribution: Literal["erk", "uniform"] = "erk"
    """erk or uniform: how the retained weights are distributed over the layers; that never changes."""
    regrow: bool = False
    """Let weights that have just been dropped be grown again at the same move, as in the paper; those keep their
    value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise UsageError(
                f"alpha is the share of weights that are dropped at first, 0 < alpha < 1, not {self.alpha}"
            )

    @property
    def gradients(self) -> int:
        """Number of steps that each move replaces: one if it needs a gradient."""
        return int(self.grow == "gradient")


def plan(settings: Settings) -> list[Training]:
    """Plan a training for each density, in pieces from move to move; controls hold one mask from the start."""

    def cuts(density: float | None, schedule: Schedule) -> dict[int, float | None]:
        return dict.fromkeys([0, *_moves(settings, schedule, schedule.total)], density)

    return [replace(one, cuts=partial(cuts, one.density), controls_from="0") for one in settings.plan_tickets()]


@on_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """One replicate: the dense network, to compare with, then a sparse one for each density, the densest first."""
    lab, whole, seeds = replicate.lab, replicate.whole, replicate.seeds
    if settings.gradients and min(_moves(settings, whole, whole.total)) < 2:
        raise UsageError(
            f"frequency {settings.frequency} is one step, and with growth by gradient a move takes the place of a step:"
            " nothing would be trained between moves"
        )
    scope = prunable(replicate, settings)
    initial = lab.train(whole.until(0), label="initialisation", measure=False)
    chosen = {"score": "random", "distribution": settings.distribution}
    masks = [draw_mask(replicate, initial, scope, share, settings.budget_terms, **chosen) for share in settings.targets]
    dense = lab.train(whole, label="dense")
    yield Found(0, None, initial, dense, DYNAMIC, dense)

    def member(level: int, piece: tuple[float, str]) -> Found:
        density, mask = piece
        own = replace(replicate, recipe=_recipe_of_equal_flops(lab, replicate.from_initialisation(mask), settings))
        begun = own.from_initialisation(mask)
        moves = _moves(settings, whole, begun.total)
        goal = settings.goal(density)
        chain = [lab.train(begun.until(min(moves)), label=f"{goal} from step 0", measure=False)]
        for step, after in pairwise([*moves, begun.total]):
            before = chain[-1]
            still = own.onward(before, step, optimizer=before, mask=mask)
            mask = move_mask(lab, still, moves[step], grow=settings.grow, seed=seeds.mask, regrow=settings.regrow)
            segment = own.onward(before, step + settings.gradients, optimizer=before, mask=mask, last=after)
            label = f"{goal} from step {step}"
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
            gradients=settings.gradients * len(moves),
            aim=settings.budget_terms,
        )

    pieces = zip(settings.targets, masks, strict=True)
    yield from replicate.side_by_side(member, pieces)


def _moves(settings: Settings, whole: Schedule, length: int) -> dict[int, float]:
    """Return the share of each move by its step, in a schedule of another length with the same steps between moves."""
    end = Step.parse(settings.end).scaled(Fraction(length, whole.total), per_epoch=whole.per_epoch)
    return moves_within(
        settings.alpha, end=str(end), frequency=settings.frequency, total=length, per_epoch=whole.per_epoch
    )


def _recipe_of_equal_flops(lab: Lab, begun: Segment, settings: Settings) -> Recipe:
    """Return the recipe; for equal cost in FLOPs a longer one, moves included, as in RigL 5x (Evci et al. 2020).

    It has as many steps as the FLOPs of one dense training pay for.

    Args:
        begun: the training without moves: dense FLOPs, mask, recipe.
    """
    if settings.equal_cost != "flops":
        return begun.recipe
    from ticketry.lab.costs.step_cost import dense_gradient_flops, step_flops

    dense, flops = step_flops(lab, begun)
    if flops <= 0:
        raise UsageError("equal_cost flops: the FLOPs of this network cannot be counted: use equal_cost steps")
    total = begun.total

    def affordable(length: int) -> bool:
        gradients = settings.gradients * len(_moves(settings, begun, length))
        return (length - gradients) * flops + gradients * dense_gradient_flops(dense, flops) <= total * dense * (
            1 + 1e-12
        )

    enough, too_long = total, floor(total * dense / flops) + 1
    while too_long - enough > 1:
        middle = (enough + too_long) // 2
        enough, too_long = (middle, too_long) if affordable(middle) else (enough, middle)
    return begun.recipe.scaled(enough, per_epoch=begun.per_epoch)


def move_mask(lab: Lab, segment: Segment, share: float, *, grow: Growth, seed: int = 0, regrow: bool = False) -> str:
    """Return the digest of the stored mask that a segment's mask becomes by moving before its first step. Remembered.

    Args:
        segment: how training would continue; it starts from a stored state and has a mask.
        share, regrow: see `core.sparse_training.mask_dynamics`.
        grow: ``gradient`` (|gradient| of the segment's first batch) or ``random``.
        seed: seed of random growth.
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
            growth = {name: gradient.abs() for name, gradient in first_gradient(lab, segment).items()}
        else:
            growth = {
                name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "grow", segment.first, index))
                for index, (name, shape) in enumerate(mask.shapes.items())
            }
        return drop_and_grow(mask, lab.store.get_tensors(state), growth, share, regrow=regrow)

    described = {"moved": segment.until(segment.first + 1).key, "grow": grow, "share": share, "regrow": regrow}
    return lab.load_or_compute_mask(
        described | ({"seed": seed} if grow == "random" else {}),
        compute_mask,
        ready=lambda: segment.course(lab.data) if grow == "gradient" else None,
    )


def first_gradient(lab: Lab, segment: Segment) -> dict[str, Tensor]:
    """Return the gradient of the loss of a segment's first batch, by parameter, before anything is trained.

    It is dense: removed weights have one too. Like the segment's training it is a pure function of its start, mask,
    order seed and first step, augmentation and dropout included, so masks derived from it are remembered by the
    segment's key. It is not stored, because it is as large as the network. It is computed in this process, in one
    forward and one backward pass, wherever the lab trains segments.

    Raises:
        TrainingError: if it is not finite.
    """
    from ticketry.lab.training.job import start_state
    from ticketry.lab.training.loop import Loop

    assert all(one.masked_by() for one in segment.variants), "gradients are taken of plain networks, masked or not"
    course, state = segment.course(lab.data), start_state(lab.store, segment)
    with segment.arithmetic.active():
        return Loop(lab.store, course, segment.until(segment.first + 1), state).compute_next_gradient()
