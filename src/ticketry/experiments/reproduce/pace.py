"""How fast a task is trained on this machine now, by a few seconds of training in a store that is thrown away."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry.core.structure.channel_wise.choose import channels
from ticketry.errors import LayerCollapseError
from ticketry.experiments.reproduce.work import Work, dense
from ticketry.experiments.request import SearchRequest
from ticketry.lab.aside import trained_aside
from ticketry.lab.lab import Lab
from ticketry.lab.training.job import Work as Timed
from ticketry.lab.training.precision import DENSE
from ticketry.lab.training.segment import Segment
from ticketry.search.common.method import Replicate
from ticketry.search.common.scope import is_structured, prunable
from ticketry.search.concrete import Settings as ConcreteSettings
from ticketry.search.concrete import gates_of as gates_of_concrete
from ticketry.search.gating.gating import Gating
from ticketry.search.gating.rounds import Rounds
from ticketry.search.gating.settings import GateSettings
from ticketry.search.l0 import Settings as L0Settings
from ticketry.search.l0 import gates_of as gates_of_l0
from ticketry_engine.support.seeds import generator

_WARM, _FEWEST, _MOST = 3, 4, 1000
"""Steps that are trained before those that are timed; of these the fewest and the most."""
_LONG_ENOUGH, _TOO_LONG = 1.0, 3.0
"""Seconds of steps after which no more are timed, for a few milliseconds are no measure where others compute too; and
seconds after which none are, whatever they were."""
_LONG_EVALUATION = 2.0
"""Seconds: one that likely takes longer is not timed."""
_FORWARD = 1 / 3
"""What the forward pass takes of a step."""

Elsewhere = Callable[[Path], AbstractContextManager[Lab]]
"""Opens a lab like the campaign's over another folder."""
_Train = Callable[[Sequence[Segment], bool], list[Timed]]
"""Trains segments side by side, and measures metrics if it is said; tells what each has taken."""


@dataclass(frozen=True)
class Pace:
    """How fast a task is trained, while as many are trained side by side as there are workers."""

    step: float
    """Seconds."""
    training: float
    """Seconds of a training beside its steps: evaluation, reading, writing, getting sparse kernels ready."""
    masked_step: float | None = None
    """Seconds of a step of a network under a mask, where that trains in sparse kernels or as a smaller network; None if
    as without a mask."""
    gated_step: float | None = None
    """Seconds of a step of a network with gates; None if as without."""
    processor: float | None = None
    """Seconds of processors' time a second of a training; None if it is not known."""
    evaluation: float = 0.0
    """Of `training`, what metrics take."""

    def seconds(self, work: Work) -> float:
        """Of all of it, one training after the other."""
        masked, gated = (self.step if one is None else one for one in (self.masked_step, self.gated_step))
        plain = work.steps - work.masked - work.gated
        beside = work.trainings * self.training - min(work.unmeasured, work.trainings) * self.evaluation
        return plain * self.step + work.masked * masked + work.gated * gated + beside


def measured(
    lab: Lab,
    request: SearchRequest,
    kernels: str,
    precision: str,
    density: float | None,
    elsewhere: Elsewhere | None,
    *,
    gates: Gating | None = None,
    side_by_side: int = 1,
) -> Pace:
    """By the first steps of dense trainings, and of those under a mask where sparse kernels compute with that, or where
    whole channels are gone: which method chooses them is not asked, though what it leaves of layers that cost most is
    what a step takes.

    What a store tells was trained some time ago, perhaps on another machine or beside other work: so steps are always
    trained anew, by the lab's own workers.

    Args:
        kernels, precision: that the campaign's run is trained in.
        density: of the mask; None where it is not known.
        elsewhere: None where workers are on other machines, that see no folder of this one: then the lab itself trains
            the first steps of the dense network.
        gates: of the networks that are trained with some, see `first_gates`.
        side_by_side: how many are trained at once, as they share what the machine has.
    """
    if elsewhere is None:
        with lab.training_in(kernels, precision):
            step, training, evaluation = _timed(lab, [dense(lab, request)], _in_store(lab))
            return Pace(step, training, evaluation=evaluation)
    with (
        tempfile.TemporaryDirectory(prefix="ticketry-pace-") as folder,
        elsewhere(Path(folder)) as other,
        other.training_in(kernels, precision),
    ):
        took: list[Timed] = []

        def train(segments: Sequence[Segment], measure: bool) -> list[Timed]:
            done = trained_aside(lab, segments, other.store.address, measure=measure)
            took.extend(done)
            return done

        whole = [dense(other, request, replicate) for replicate in range(side_by_side)]
        step, *beside = _timed(other, whole, train)
        trainings, masked_step, gated_step = [beside], None, None
        if density is not None and (masked := _masked(other, request, whole, density)):
            masked_step, *beside = _timed(other, masked, train)
            trainings.append(beside)
        if gates is not None:
            soft = [_replicate(other, request, number).begun(variants=[gates]) for number in range(side_by_side)]
            gated_step, *beside = _timed(other, soft, train)
            trainings.append(beside)
        training, evaluation = max(trainings)
        return Pace(step, training, masked_step, gated_step, _processor(took), evaluation)


def _processor(took: Sequence[Timed]) -> float | None:
    seconds = sum(one.train_seconds + one.other_seconds for one in took)
    return sum(one.processor_seconds for one in took) / seconds if seconds else None


def _in_store(lab: Lab) -> _Train:
    """Training in the lab's own store: what that has takes what it took."""
    known: dict[str, float] = {}

    def train(segments: Sequence[Segment], measure: bool) -> list[Timed]:
        begun = time.monotonic()
        results = lab.train_many(segments, labels=["to measure a step"] * len(segments), measure=measure)
        wall, found = time.monotonic() - begun, []
        for segment, result in zip(segments, results, strict=True):
            seconds = result.train_seconds - known.get(segment.trajectory, 0.0)
            known[segment.trajectory] = result.train_seconds
            found.append(Timed(train_seconds=seconds, other_seconds=max(wall - seconds, 0.0)))
        return found

    return train


def _masked(lab: Lab, request: SearchRequest, whole: Sequence[Segment], density: float) -> list[Segment]:
    """The same trainings under a random mask; none if that is not trained in sparse kernels. Where tickets are trained
    as smaller networks, without the channels that a uniform mask removes; none if a layer would be left empty."""
    shrunk = is_structured(request.settings)
    try:
        mask = _channels(lab, request, density) if shrunk else _drawn(lab, request, density)
    except LayerCollapseError:
        return []
    seed, order = request.seeds.initialisation, whole[0].order_seed
    first = lab.segment(request.task, start=seed, order_seed=order, recipe=request.recipe, mask=mask, shrunk=shrunk)
    if not shrunk and first.arithmetic.kernels == DENSE:
        return []
    return [replace(first, start=one.start, order_seed=one.order_seed) for one in whole]


def first_gates(lab: Lab, request: SearchRequest) -> Gating | None:
    """Those that the search's first training with gates has; None where no method of the library's own trains any."""
    replicate, settings = _replicate(lab, request, 0), request.settings
    if isinstance(settings, GateSettings):
        return Rounds(replicate, settings).first_gates
    if isinstance(settings, ConcreteSettings):
        return gates_of_concrete(replicate, prunable(replicate, settings), settings, settings.targets[0])
    if isinstance(settings, L0Settings):
        return gates_of_l0(replicate, prunable(replicate, settings), settings)
    return None


def _replicate(lab: Lab, request: SearchRequest, number: int) -> Replicate:
    return Replicate(lab, request.task, request.recipe, request.seeds.replicate(number))


def _drawn(lab: Lab, request: SearchRequest, density: float) -> Mask:
    drawn, shapes = generator("pace"), Mask.ones(scope(lab.model(request.task))).shapes
    return Mask({name: torch.rand(shape, generator=drawn) < density for name, shape in shapes.items()})


def _channels(lab: Lab, request: SearchRequest, density: float) -> Mask:
    model = lab.model(request.task)
    return channels(model, lambda: lab.structure(request.task), density, distribution="uniform")


def _timed(lab: Lab, whole: Sequence[Segment], train: _Train) -> tuple[float, float, float]:
    """Seconds of a step, of a training beside its steps, and what of that metrics take.

    Pieces of the trainings are timed, each twice as long as the one before. What every piece takes once (kernels that
    are got ready) is the same in all of them: so the difference of two tells what steps take.
    """

    def piece(step: int, measure: bool = False) -> tuple[float, float]:
        done = train([one.until(step) for one in whole], measure)
        return fmean(one.train_seconds for one in done), fmean(one.other_seconds for one in done)

    last = whole[0].last
    at, beside = min(_WARM, last - 1), 0.0
    piece(at)  # starts processes and reads the data, too
    pieces: list[tuple[int, float]] = []
    while at < last and not _enough(pieces):
        then = min(at + max(_FEWEST, sum(count for count, _ in pieces)), last)
        took, beside = piece(then)
        pieces.append((then - at, took))
        at = then
    step, once = _by_pieces(pieces)
    evaluation = _FORWARD * step * _evaluated(lab, whole[0])
    if evaluation < _LONG_EVALUATION:
        evaluation = max(piece(at, measure=True)[1] - beside, 0.0)
    return step, once + beside + evaluation, evaluation


def _evaluated(lab: Lab, whole: Segment) -> float:
    """Batches that metrics take, as large as those of training. Of a text each has many tokens: its examples."""
    sizes = lab.sizes(whole.task)
    return whole.per_epoch * (sizes["validation"] + sizes["test"]) / max(sizes["train"], 1)


def _enough(pieces: Sequence[tuple[int, float]]) -> bool:
    """Whether pieces, of which each takes some time beside its steps, tell what steps take."""
    whole = sum(took for _, took in pieces)
    once = min((took for _, took in pieces), default=0.0)
    long = whole - len(pieces) * once >= _LONG_ENOUGH or whole >= _TOO_LONG
    return long or sum(count for count, _ in pieces) >= _MOST


def _by_pieces(pieces: list[tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a step, and of what each piece takes once."""
    (few, short), (many, long) = pieces[0], pieces[-1]
    each = max(long, 1e-4) / max(many, 1)
    if many <= few:
        return each, 0.0
    # At least a third of it is steps: times of others' work would make more of them, or less than none.
    step = min(max((long - short) / (many - few), each / 3), each)
    return step, max(long - many * step, 0.0)
