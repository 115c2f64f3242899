"""Gate Decorators: gates on norms rank channels, and the least important ones are removed step by step.

In a tick only the gates on norms and the last linear layer are trained, for a few steps at a small learning rate. The
importance of a channel is the sum over these steps of |phi dL/dphi|, and the least important channels are removed. In a
tock all remaining weights are trained, under an L1 penalty on the gates. After the last pruning step the network trains
on, without the penalty, to the end of the schedule. Coupled channels are removed together, by the sum over their norms,
and the rest is trained in a physically smaller network. You, Yan, Ye, Ma & Wang, "Gate Decorator: Global Filter Pruning
Method for Accelerating Deep Convolutional Neural Networks" (2019, arXiv 1909.08174), sections 3 and 4. Costs one
training per density; the part before the first tick is shared with the dense network.

As in the authors' code, the scale of a norm serves as its gate (see `search.gating.tick`), so that no gate is left in
the network. Lambda 1e-3 and ticks at a learning rate of 1e-3 are also from the code. This implementation departs from
the paper as follows. Everything happens in one schedule, with ticks and tocks from --begin to --end; the paper begins
with a trained network and fine-tunes for long, with separate learning rates. Tocks use the recipe's learning rates and
optimiser. A tock follows each tick (the paper: some ticks). A tick takes 1 % of the steps (the code: an epoch). Each
pruning step removes the same share of the remaining weights. At least one channel is left everywhere (the code: a tenth
of each layer). FLOPs have no influence (in the code an option). Controls begin with the dense network at the last
pruning step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from ticketry.budgets.units import Base
from ticketry.core.structure.pattern import check_layer_minimum_option
from ticketry.errors import UsageError
from ticketry.lab.search_result import Found
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Schedule, Training
from ticketry.search.common.pruning import prunable_scope, require_norm_scales, stretch_to_flops
from ticketry.search.common.settings import ParsedStructure, PruningSettings
from ticketry.step import Step

if TYPE_CHECKING:
    from torch import Tensor

    from ticketry.core.mask import Mask
    from ticketry.core.scope import Scope
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result


ABOUT = About(paper="You et al. 2019", prunes="during training", costs="1 a density", removes="channels")


@dataclass(frozen=True, kw_only=True)
class Settings(PruningSettings):
    """Settings of Gate Decorators.

    Channels are always ranked by their gates, and the method has no cost budget: `flops`, `time`, `base`, `bytes`,
    `profile`, `measured` and `unweighed` cannot be given.

    Examples:
        >>> task = tk.task("digits", model="resnet-20@0.25")
        >>> ticks = {"rounds": 2, "tick": "2it", "recipe": {"length": "20it"}}
        >>> run = tk.run("decorators", task, density=0.8, **ticks, replicates=1, controls=(), workers=0)
        >>> [round(ticket.density, 1) for ticket in run.tickets]
        [0.8]
    """

    points: ClassVar[tuple[str, ...]] = ("begin", "end", "tick")
    flops: tuple[float, ...] = field(default=(), init=False)
    time: tuple[float | str, ...] = field(default=(), init=False)
    base: Base = field(default="eager", init=False)
    bytes: tuple[float | str, ...] = field(default=(), init=False)
    profile: str = field(default="", init=False)
    measured: bool = field(default=False, init=False)
    unweighed: bool = field(default=False, init=False)
    begin: str = "25%"
    """The step at which the first tick begins. With a single round, the only tick ends at `end` instead."""
    end: str = "75%"
    """The last pruning step; afterwards the network trains at its final density, without a penalty."""
    rounds: int = 10
    """Number of ticks. A pruning step follows each tick, and a tock fills the time until the next tick."""
    tick: str = "1%"
    """Length of a tick, such as 1% or 20it; at least one step."""
    tick_lr: float = 1e-3
    """Learning rate of the gates and the last linear layer in a tick, by SGD with momentum 0.9."""
    strength: float = 1e-3
    """lambda: coefficient of the sum of all |gates| in the loss of a tock."""
    keep_at_least: int = 1
    """Channels that each group retains at least."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer_minimum_option(self.keep_at_least)
        if self.rounds < 1 or self.keep_at_least < 1:
            raise UsageError("rounds and keep_at_least are at least 1")
        if not (0 <= self.strength <= 1e6 and 0 <= self.tick_lr <= 1e6):
            raise UsageError(
                f"strength and tick_lr are numbers from 0 to 1e6, not {self.strength:g} and {self.tick_lr:g}"
            )

    @property
    def parsed_structure(self) -> ParsedStructure:
        """The structure that this method prunes: always whole channels."""
        return ParsedStructure(channels=True)


def _tick_length_and_pruning_steps(settings: Settings, schedule: Schedule) -> tuple[int, list[int]]:
    """Return (length of a tick, training steps at which channels are removed: the ends of the ticks)."""

    def parse_step(name: str) -> int:
        point = Step.parse(getattr(settings, name))
        return point.at(total=schedule.total, per_epoch=schedule.per_epoch, of=name)

    length, last, gaps = max(parse_step("tick"), 1), parse_step("end"), settings.rounds - 1
    first = parse_step("begin") + length if gaps else last
    cuts = [first + (last - first) * number // max(gaps, 1) for number in range(gaps)] + [last]
    if any(two - one <= length for one, two in pairwise(cuts)) or first < length:
        raise UsageError(
            f"{settings.rounds} ticks of {length} steps with tocks between them do not fit between"
            f" {settings.begin} and {settings.end}, steps {parse_step('begin')} and {last}: fewer rounds,"
            " shorter ticks, or more steps"
        )
    if last >= schedule.total:
        raise UsageError(
            f"the last cut is at {settings.end}, step {last} of {schedule.total}, which leaves nothing to train at the"
            " final density: let it end earlier"
        )
    return length, cuts


def _falling_densities(settings: Settings, density: float) -> list[float]:
    """Return the density after each pruning step: it falls by the same factor every time, down to `density`."""
    return [float(f"{density ** (number / settings.rounds):.12g}") for number in range(1, settings.rounds + 1)]


def plan(settings: Settings) -> list[Training]:
    """Plan one training per density, in which ticks (only gates are trained) and tocks (all weights) alternate."""

    def densities_by_step(density: float, schedule: Schedule) -> dict[int, float | None]:
        length, cuts = _tick_length_and_pruning_steps(settings, schedule)
        found: dict[int, float | None] = {}
        before = 1.0
        for cut, after in zip(cuts, _falling_densities(settings, density), strict=True):
            found |= {cut - length: before, cut: after}
            before = after
        return found

    return [
        replace(one, cuts=partial(densities_by_step, one.density)) for one in settings.plan_tickets() if one.density
    ]


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    from ticketry.lab.training.variants import Penalty
    from ticketry.search.gating.tick import Tick

    lab, scope, whole = replicate.lab, prunable_scope(replicate, settings), replicate.dense_training
    length, cuts = _tick_length_and_pruning_steps(settings, whole)
    gates = Tick.for_model(lab.model(replicate.task), lr=settings.tick_lr)
    penalties: list[Penalty] = []  # of tocks
    if settings.strength:
        penalties = [Penalty(kind="l1_scales", strength=settings.strength, names=gates.scale_names)]
    require_norm_scales(replicate, scope)
    first, last = cuts[0] - length, cuts[-1]
    dense = replicate.train_dense(first, last)
    yield dense

    def find_ticket(level: int, density: float) -> Found:
        goal, chain, mask = settings.describe_target(density), [lab.at(dense.result, first)], None
        for number, (cut, share) in enumerate(zip(cuts, _falling_densities(settings, density), strict=True), start=1):
            trained, final = chain[-1], number == len(cuts)
            # A tick has its own optimiser; that of the last tock continues afterwards.
            segment = replicate.continue_from(
                trained, cut - length, mask=mask, last=cut, shrunk=mask is not None, variants=[gates]
            )
            tick = lab.train(segment, label=f"{goal} tick {number}", measure=False)
            chain.append(tick)
            mask = _prune_least_important(lab, tick, scope, share, within=mask, keep_at_least=settings.keep_at_least)
            segment = replicate.continue_from(
                tick,
                cut,
                optimizer=trained,
                mask=mask,
                last=None if final else cuts[number] - length,
                shrunk=True,
                variants=[] if final else penalties,
            )
            if final:
                segment = stretch_to_flops(lab, segment, chain, settings.equal_cost)
            chain.append(lab.train(segment, label=f"{goal} from step {cut}", measure=final))
        *searched, result = chain
        return replace(dense, level=level, mask=mask, result=result, searched=tuple(searched), behind=last)

    yield from replicate.find_each(find_ticket, settings.targets)


def channel_importance(lab: Lab, result: Result) -> dict[str, Tensor]:
    """Return the importance of channels, measured by training only gates: norm's scale name -> float64 [channels]."""
    from ticketry.search.gating.tick import IMPORTANCE, Tick

    tick = result.segment.variant(Tick)
    assert tick is not None
    state = lab.store.get_tensors(result.variants[Tick.name])
    return {name: state[f"{name}/{IMPORTANCE}"] for name in tick.scale_names}


def _prune_least_important(
    lab: Lab, result: Result, scope: Scope, density: float, *, within: str | None, keep_at_least: int
) -> str:
    """Store the mask that removes the channels of least importance, and return the mask's digest (cached).

    A channel that passes several norms, such as one on a residual shortcut, has the sum of the importances.

    Args:
        within: digest of the mask under which the importance was measured; channels that it removes stay removed.
    """
    from ticketry.core.structure.channel_masks import channels

    task = result.segment.task

    def compute_mask() -> Mask:
        importance = channel_importance(lab, result)

        def score(*_: Any, **__: Any) -> dict[str, Tensor]:
            return importance

        return channels(
            lab.model(task, result),
            lambda: lab.structure(task),
            density,
            scope=scope,
            within=lab.store.get_mask(within) if within else None,
            score=score,
            reduce="sum",
            keep_at_least=keep_at_least,
        )

    described = {
        "worth": result.segment.key,
        "scope": list(scope),
        "density": density,
        "within": within,
        "keep_at_least": keep_at_least,
    }
    return lab.load_or_compute_mask(described, compute_mask)
