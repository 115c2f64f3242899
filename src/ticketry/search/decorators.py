"""Gate Decorators: gates on norms tell which channels go, a few at a time, between ticks and tocks.

In a tick only the gates on norms and the last linear layer are trained, for a few steps at a small learning rate, and
each channel is worth the sum over these steps of |phi dL/dphi|; the channels worth least go. In a tock all that is left
is trained, under an L1 penalty on the gates. After the last cut the network trains on, without the penalty, to the end
of the schedule. Whole channels leave, coupled ones together by the sum over their norms, and what is left is trained in
a physically smaller network. You, Yan, Ye, Ma & Wang, "Gate Decorator: Global Filter Pruning Method for Accelerating
Deep Convolutional Neural Networks" (2019, arXiv 1909.08174), sections 3 and 4. Costs one training a density; up to the
first tick that is the dense network's own, which is not trained again.

A gate begins as its norm's scale and takes the scale's place, as in the authors' code (see `lab.tick`): no gate is left
in the network. From the code: lambda 1e-3 and ticks at a learning rate of 1e-3. Ours: all of it in one schedule, ticks
and tocks from --begin to --end, where the paper begins with a trained network and fine-tunes another one for long, with
learning rates of its own; tocks at the learning rates of the recipe and with its optimiser; one tock after each tick
(the paper: after some); a tick of 1 % of the steps (the code: an epoch); the same share of what is left at each cut,
in weights; at least one channel left everywhere (the code: a tenth of each layer); no regard for FLOPs (in the code an
option). Controls begin with the dense network at the step of the last cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from ticketry.core.density import check_at_least
from ticketry.errors import UsageError
from ticketry.lab.found import GRADUAL, Found, Seeds
from ticketry.search import _densities
from ticketry.search._about import About
from ticketry.search._budget import stretched
from ticketry.search._scope import check_norms, prunable
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.lab import Lab, Result
    from ticketry.lab.penalty import Penalty
    from ticketry.lab.segment import Segment
    from ticketry.lab.ticking import Ticking
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe


ABOUT = About(
    paper="You et al. 2019",
    prunes="during training",
    costs="1 a density",
    removes="channels",
)


@dataclass(frozen=True, kw_only=True)
class Settings(_densities.Densities):
    """Settings of Gate Decorators."""

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
        for point in (self.begin, self.end, self.tick):
            Step.parse(point)
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


levels = _densities.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    scope = prunable(lab, task, settings)
    rounds = _Rounds(lab, task, recipe, settings, seeds, scope, whole)
    check_norms(lab, task, scope)
    first, last = rounds.cuts[0] - rounds.length, rounds.cuts[-1]
    dense = lab.train(whole, keep=(first, last), label="dense")
    yield Found(0, None, lab.at(dense, last), dense, GRADUAL, dense)

    def member(level: int, density: float) -> Found:
        searched, mask, result = rounds.run(lab.at(dense, first), density)
        return Found(level, mask, lab.at(dense, last), dense, GRADUAL, result, searched, behind=last)

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(settings.targets, start=1)])


class _Rounds:
    """Ticks and tocks of one replicate: when they are, and what is trained."""

    def __init__(
        self, lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds, scope: Scope, whole: Segment
    ) -> None:
        from ticketry.lab.penalty import Penalty
        from ticketry.lab.ticking import Ticking

        self.lab, self.task, self.recipe, self.settings, self.seeds = lab, task, recipe, settings, seeds
        self.scope, self.total = scope, whole.total
        self.length = max(whole.at(settings.tick), 1)
        """Of a tick, in steps."""
        self.cuts = self._cuts(whole)
        """The steps at which channels go, each at the end of a tick."""
        self.ticking: Ticking = Ticking.of(lab.model(task), lr=settings.tick_lr)
        self.penalty: Penalty | None = None
        if settings.strength:
            self.penalty = Penalty(kind="l1_scales", strength=settings.strength, names=self.ticking.scales)

    def _cuts(self, whole: Segment) -> list[int]:
        settings, length = self.settings, self.length
        last, gaps = whole.at(settings.end), settings.rounds - 1
        first = whole.at(settings.begin) + length if gaps else last
        cuts = [first + (last - first) * number // max(gaps, 1) for number in range(gaps)] + [last]
        if any(two - one <= length for one, two in pairwise(cuts)) or first < length:
            raise UsageError(
                f"{settings.rounds} ticks of {length} steps with tocks between them do not fit between"
                f" {settings.begin} and {settings.end}, steps {whole.at(settings.begin)} and {last}: fewer rounds,"
                " shorter ticks, or more steps"
            )
        if last >= whole.total:
            raise UsageError(
                f"the last cut is at {settings.end}, step {last} of {whole.total}, which leaves nothing to train at the"
                " final density: let it end earlier"
            )
        return cuts

    def run(self, begun: Result, density: float) -> tuple[tuple[Result, ...], str, Result]:
        """From the dense network before the first tick: all trainings on the way, the last mask, and the result."""
        from ticketry.lab.ticked import ticked_mask

        searched, mask, told = [begun], None, f"density {density:g}"
        for number, cut in enumerate(self.cuts, start=1):
            trained = searched[-1]
            tick = self._train(trained, trained, mask, cut - self.length, cut, f"{told} tick {number}", tick=True)
            share = float(f"{density ** (number / len(self.cuts)):.12g}")
            mask = ticked_mask(
                self.lab, tick, self.scope, share, within=mask, keep_at_least=self.settings.keep_at_least
            )
            final = number == len(self.cuts)
            after = self.total if final else self.cuts[number] - self.length
            searched.append(tick)
            before = searched if final else None
            label = f"{told} from step {cut}"
            searched.append(self._train(tick, trained, mask, cut, after, label, penalised=not final, before=before))
        assert mask is not None
        return tuple(searched[:-1]), mask, searched[-1]

    def _train(
        self,
        weights: Result,
        trained: Result,
        mask: str | None,
        first: int,
        last: int,
        label: str,
        *,
        tick: bool = False,
        penalised: bool = False,
        before: list[Result] | None = None,
    ) -> Result:
        """On with some weights, and (but in a tick, which has its own) the optimiser's state of the last tock.

        Args:
            before: of the last stretch, all trainings that led to it, for its budget.
        """
        from ticketry.lab.segment import Start

        segment = self.lab.segment(
            self.task,
            start=Start(state=weights.model, optimizer=None if tick else trained.training),
            mask=mask,
            first=first,
            last=last,
            order_seed=self.seeds.order,
            recipe=self.recipe,
            shrunk=mask is not None,
            tick=self.ticking if tick else None,
            penalty=self.penalty if penalised else None,
        )
        if before is not None:
            segment = stretched(self.lab, segment, before, self.settings.budget)
        return self.lab.train(segment, label=label, measure=before is not None)
