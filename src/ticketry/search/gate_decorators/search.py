"""Gate Decorators: gates on norms tell which channels go, a few at a time, between ticks and tocks.

In a tick only the gates on norms and the last linear layer are trained, for a few steps at a small learning rate, and
each channel is worth the sum over these steps of |phi dL/dphi|; the channels worth least go. In a tock all that is left
is trained, under an L1 penalty on the gates. After the last cut the network trains on, without the penalty, to the end
of the schedule. Whole channels leave, coupled ones together by the sum over their norms, and what is left is trained in
a physically smaller network. You, Yan, Ye, Ma & Wang, "Gate Decorator: Global Filter Pruning Method for Accelerating
Deep Convolutional Neural Networks" (2019, arXiv 1909.08174), sections 3 and 4. Costs one training a density; up to the
first tick that is the dense network's own, which is not trained again.

A gate begins as its norm's scale and takes the scale's place, as in the authors' code (see the module ``tick`` beside
this one): no gate is left in the network. From the code: lambda 1e-3 and ticks at a learning rate of 1e-3. Ours: all
of it in one schedule, ticks and tocks from --begin to --end, where the paper begins with a trained network and fine-
tunes another one for long, with learning rates of its own; tocks at the learning rates of the recipe and with its
optimiser; one tock after each tick (the paper: after some); a tick of 1 % of the steps (the code: an epoch); the same
share of what is left at each cut, in weights; at least one channel left everywhere (the code: a tenth of each layer);
no regard for FLOPs (in the code an option). Controls begin with the dense network at the step of the last cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from ticketry.core.structure.pattern import check_at_least
from ticketry.errors import UsageError
from ticketry.lab.search_result import Found
from ticketry.search.common import densities
from ticketry.search.common.budget import stretched
from ticketry.search.common.method import About, Replicate, on_replicate
from ticketry.search.common.plan import Schedule, Training
from ticketry.search.common.scope import check_norms, prunable
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.training.segment import Result
    from ticketry.lab.training.variants import Penalty
    from ticketry.search.gate_decorators.tick import Tick


ABOUT = About(
    paper="You et al. 2019",
    prunes="during training",
    costs="1 a density",
    removes="channels",
)


@dataclass(frozen=True, kw_only=True)
class Settings(densities.Densities):
    """Settings of Gate Decorators.

    Examples:
        >>> task = tk.task("digits", model="resnet-20@0.25")
        >>> ticks = {"rounds": 2, "tick": "2it", "recipe": {"length": "20it"}}
        >>> run = tk.run("decorators", task, density=0.8, **ticks, replicates=1, controls=(), workers=0)
        >>> [round(ticket.density, 1) for ticket in run.tickets]
        [0.8]
    """

    points: ClassVar[tuple[str, ...]] = ("begin", "end", "tick")
    begin: str = "25%"
    """The step of the first tick (with a single round it is the last before end)."""
    end: str = "75%"
    """The step of the last cut; from there on the network trains at its final density, without a penalty."""
    rounds: int = 10
    """Ticks, with a cut after each; between two of them there is a tock."""
    tick: str = "1%"
    """Length of a tick, at least one step."""
    tick_lr: float = 1e-3
    """Learning rate of the gates and the last linear layer in a tick, by SGD with momentum 0.9."""
    strength: float = 1e-3
    """lambda: coefficient of the sum of all |gates| in the loss of a tock."""
    keep_at_least: int = 1
    """Channels that each group keeps at least."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self.keep_at_least)
        if self.rounds < 1 or self.keep_at_least < 1:
            raise UsageError("rounds and keep_at_least are at least 1")
        if not (0 <= self.strength <= 1e6 and 0 <= self.tick_lr <= 1e6):
            raise UsageError(
                f"strength and tick_lr are numbers from 0 to 1e6, not {self.strength:g} and {self.tick_lr:g}"
            )

    @property
    def structured(self) -> bool:
        """Whole channels go."""
        return True


def _tick_steps(settings: Settings, schedule: Schedule) -> int:
    length = Step.parse(settings.tick).at(total=schedule.total, per_epoch=schedule.per_epoch, of="tick")
    return max(length, 1)


def _cut_steps(settings: Settings, schedule: Schedule) -> list[int]:
    """Return the steps at which channels go, each at the end of a tick."""

    def at(name: str) -> int:
        point = Step.parse(getattr(settings, name))
        return point.at(total=schedule.total, per_epoch=schedule.per_epoch, of=name)

    length, last, gaps = _tick_steps(settings, schedule), at("end"), settings.rounds - 1
    first = at("begin") + length if gaps else last
    cuts = [first + (last - first) * number // max(gaps, 1) for number in range(gaps)] + [last]
    if any(two - one <= length for one, two in pairwise(cuts)) or first < length:
        raise UsageError(
            f"{settings.rounds} ticks of {length} steps with tocks between them do not fit between"
            f" {settings.begin} and {settings.end}, steps {at('begin')} and {last}: fewer rounds,"
            " shorter ticks, or more steps"
        )
    if last >= schedule.total:
        raise UsageError(
            f"the last cut is at {settings.end}, step {last} of {schedule.total}, which leaves nothing to train at the"
            " final density: let it end earlier"
        )
    return cuts


def _shares(settings: Settings, density: float) -> list[float]:
    """Return the density after each cut."""
    return [float(f"{density ** (number / settings.rounds):.12g}") for number in range(1, settings.rounds + 1)]


def plan(settings: Settings) -> list[Training]:
    """Plan a training for each density, in ticks and tocks."""

    def cuts(density: float, schedule: Schedule) -> dict[int, float | None]:
        length, shares = _tick_steps(settings, schedule), [1.0, *_shares(settings, density)]
        found: dict[int, float | None] = {}
        for cut, before, after in zip(_cut_steps(settings, schedule), shares, shares[1:], strict=False):
            found |= {cut - length: before, cut: after}
        return found

    return [replace(one, cuts=partial(cuts, one.density)) for one in settings.plan_tickets() if one.density]


@on_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    lab, scope = replicate.lab, prunable(replicate, settings)
    rounds = _Rounds(replicate, settings, scope)
    check_norms(replicate, scope)
    first, last = rounds.cuts[0] - rounds.length, rounds.cuts[-1]
    dense = replicate.dense(first, last)
    yield dense

    def member(level: int, density: float) -> Found:
        searched, mask, result = rounds.run(lab.at(dense.result, first), density)
        return replace(dense, level=level, mask=mask, result=result, searched=searched, behind=last)

    yield from replicate.side_by_side(member, settings.targets)


class _Rounds:
    """Ticks and tocks of one replicate: when they are, and what is trained."""

    def __init__(self, replicate: Replicate, settings: Settings, scope: Scope) -> None:
        from ticketry.lab.training.variants import Penalty
        from ticketry.search.gate_decorators.tick import Tick

        self.replicate, self.settings, self.scope, whole = replicate, settings, scope, replicate.whole
        self.length, self.cuts = _tick_steps(settings, whole), _cut_steps(settings, whole)
        self.ticking: Tick = Tick.of(replicate.lab.model(replicate.task), lr=settings.tick_lr)
        self.penalties: list[Penalty] = []
        """Of a tock."""
        if settings.strength:
            self.penalties = [Penalty(kind="l1_scales", strength=settings.strength, names=self.ticking.scales)]

    def run(self, begun: Result, density: float) -> tuple[tuple[Result, ...], str, Result]:
        """From the dense network before the first tick: all trainings on the way, the last mask, and the result."""
        from ticketry.search.gate_decorators.masks import ticked_mask

        replicate, lab, told = self.replicate, self.replicate.lab, f"density {density:g}"
        searched: list[Result] = [begun]
        mask: str | None = None
        shares = _shares(self.settings, density)
        for number, (cut, share) in enumerate(zip(self.cuts, shares, strict=True), start=1):
            trained, final = searched[-1], number == len(self.cuts)
            # A tick has an optimiser of its own; that of the last tock goes on afterwards.
            segment = replicate.onward(
                trained,
                cut - self.length,
                mask=mask,
                last=cut,
                shrunk=mask is not None,
                variants=[self.ticking],
            )
            tick = lab.train(segment, label=f"{told} tick {number}", measure=False)
            searched.append(tick)
            mask = ticked_mask(lab, tick, self.scope, share, within=mask, keep_at_least=self.settings.keep_at_least)
            segment = replicate.onward(
                tick,
                cut,
                optimizer=trained,
                mask=mask,
                last=None if final else self.cuts[number] - self.length,
                shrunk=True,
                variants=[] if final else self.penalties,
            )
            if final:
                segment = stretched(lab, segment, searched, self.settings.budget)
            searched.append(lab.train(segment, label=f"{told} from step {cut}", measure=final))
        assert mask is not None
        return tuple(searched[:-1]), mask, searched[-1]
