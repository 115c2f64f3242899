"""Forecast how long blocks of a campaign take: from their plan, finished blocks, and a quick timing of steps."""

from __future__ import annotations

import contextlib
import operator
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry.core.structure.channel_masks import channels
from ticketry.errors import LayerCollapseError, NotStoredError
from ticketry.evidence.control import obstacle
from ticketry.evidence.controls import trained_control
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.reproduce.blocks import Block
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import NoTraining
from ticketry.lab.search_result import Found
from ticketry.lab.store.second_order import second_order
from ticketry.lab.store.store import Store, digest_of
from ticketry.lab.training.job import Work as Timed
from ticketry.lab.training.job import last_resumable
from ticketry.lab.training.precision import DENSE
from ticketry.lab.training.segment import Segment
from ticketry.search import Training
from ticketry.search.common.method import Replicate
from ticketry.search.common.shape import shape_of
from ticketry.search.gating.gating import Gating
from ticketry_engine.support.seeds import generator


@dataclass(frozen=True)
class _Measurement:
    """Timing of a finished block."""

    step: float
    """Seconds for each step with a mask or gates, including evaluation, reading and writing."""
    processor: float | None
    """Processor seconds per second."""


class Clock:
    """Estimates the time of blocks.

    Args:
        lab: where to train.
        campaign: the campaign.
        twins: returns the replicates up to a block's last that need a dense network in the second order.
        elsewhere: opens a lab over another folder, to time steps in; None if workers are on other machines.
    """

    def __init__(
        self,
        lab: Lab,
        campaign: Campaign,
        twins: Callable[[Block], Sequence[int]],
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._lab, self._campaign, self._twins, self._elsewhere = lab, campaign, twins, elsewhere
        self._pace: dict[str, Pace] = {}
        self._seen: dict[str, _Measurement] = {}
        self._there: dict[Block, tuple[Work, Work, dict[tuple[str, int], Work]]] = {}

    def add(self, block: Block, seconds: float, trained: Work, shared: Work, processor: float | None = None) -> None:
        """Add the timing of a finished block.

        Args:
            block: the block.
            seconds: elapsed time.
            trained: trainings that were not in the store.
            shared: the result of `shared` before it began.
            processor: processor seconds per second.
        """
        own, seconds = trained.without(shared), seconds - self._seconds(block, shared, dense=True)
        if own.trainings and own.steps and seconds > 0:
            self._seen[block.run] = _Measurement(seconds / own.steps, processor)

    def processor(self, block: Block, seconds: float) -> float | None:
        """Return the estimated processor seconds of a block, which do not depend on other load; None if unknown."""
        if seen := self._seen.get(block.run):
            return None if seen.processor is None else seconds * seen.processor
        share = self._measured(block.run).processor if seconds else 0.0
        return None if share is None else seconds * self._side_by_side(block.last - block.first) * share

    def estimate(self, block: Block, counted: set[str] | None = None) -> float:
        """Return the estimated seconds of a block for what the store lacks.

        Args:
            block: the block.
            counted: names of trainings that count elsewhere; those of this block are added.
        """
        request, count = block.request(self._campaign), block.last - block.first
        known = set[str]() if counted is None else counted
        every = work_of(self._lab, request, self._campaign.stability.get(block.run))
        chain = chain_of(self._lab, request)
        chain_there, there, again = self._stored(block)
        left = every.without(chain).times(count).without(there)
        if (name := self._chain_name(block)) not in known:
            left += chain.times(count).without(chain_there)
            known.add(name)
        for (trajectory, step), work in again.items():
            if (name := f"{trajectory}@{step} again") not in known and left.trainings:
                left += work
                known.add(name)
        return self._seconds(block, left) + self._seconds(block, self.shared(block, known), dense=True)

    def _chain_name(self, block: Block) -> str:
        """Return a name for the tickets without structure, which other runs of these replicates share."""
        settings = plain(block.request(self._campaign)).settings
        replicates = [one.key for one in self._whole(block)]
        return f"chain of {digest_of([replicates, repr(settings)])}"

    def _stored(self, block: Block) -> tuple[Work, Work, dict[tuple[str, int], Work]]:
        """Return what the store had of a block at the first call, since reading it takes seconds.

        Returns:
            Work of `chain_of` in the store, other work in the store, and trainings to repeat for omitted weights.
        """
        if not self._has_dense(block):
            return NOTHING, NOTHING, {}
        if block not in self._there:
            request, count = block.request(self._campaign), block.last - block.first
            most, chain = chain_of(self._lab, request).times(count), NOTHING
            with self._campaign.training(self._lab, block.run):
                found = stored_work(self._lab, request)
                there, again = found.there, found.again
                if most.trainings:
                    found = stored_work(self._lab, plain(request))
                    chain, again = found.there, again | found.again
            if not structured(request):  # its own tickets are the chain
                there = there.without(chain)
            self._there[block] = chain.at_most(most), there, again
        return self._there[block]

    def _has_dense(self, block: Block) -> bool:
        """Return whether the store has some dense networks of a block, without which it has nothing else."""
        return len(self._untrained(self._whole(block))) < block.last - block.first

    def _whole(self, block: Block) -> list[Segment]:
        """Return a block's dense networks in the first data order."""
        return self._dense(block.run, range(block.first, block.last))

    def _dense(self, run: str, replicates: Sequence[int]) -> list[Segment]:
        with self._campaign.training(self._lab, run):
            return [dense(self._lab, self._campaign.runs[run], replicate) for replicate in replicates]

    def _untrained(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return the segments that the store lacks."""
        return [one for one in segments if self._lab.store.trained(one.trajectory, one.last) is None]

    def shared(self, block: Block, counted: set[str] | None = None) -> Work:
        """Return the work of a block's missing dense networks, in both data orders.

        In the second order those of earlier replicates count too, since a bundle may lack them.
        """
        whole, known = self._whole(block), set[str]() if counted is None else counted
        twins = [
            replace(one, order_seed=second_order(one.order_seed)) for one in self._dense(block.run, self._twins(block))
        ]
        left = {one.key for one in self._untrained([*whole, *twins])} - known
        known |= left
        return Work(len(left) * whole[0].total, len(left))

    def _seconds(self, block: Block, work: Work, *, dense: bool = False) -> float:
        if not work.trainings:
            return 0.0
        if not dense and (seen := self._seen.get(block.run)):
            return work.steps * seen.step  # as many side by side as then
        return self._measured(block.run).seconds(work) / self._side_by_side(block.last - block.first)

    def _side_by_side(self, replicates: int) -> int:
        """Return the number of networks that are trained at once."""
        return min(max(self._lab.workers, 1), replicates)

    def _measured(self, run: str) -> Pace:
        """Return the speed of a run from the first steps of its dense networks.

        If masks make training faster (sparse kernels, or removed channels), steps with a mask of mean density are timed
        too.
        """
        request, kernels = self._campaign.runs[run], self._campaign.kernels[run]
        (whole,) = self._dense(run, [0])
        smaller = shape_of(request.settings).channels
        density = mean_density(request, whole) if smaller or kernels != "dense" else None
        gates = first_gates(self._lab, request)
        key = digest_of([whole.describe(), kernels, gates and gates.describe(), density, smaller])
        if key not in self._pace:
            self._pace[key] = measure_pace(
                self._lab,
                request,
                kernels,
                self._campaign.precisions[run],
                density,
                self._elsewhere,
                gates=gates,
                side_by_side=self._side_by_side(self._campaign.plans[run].at[0]),
            )
        return self._pace[key]


_WARM, _FEWEST, _MOST = 3, 4, 1000
"""Steps before the timing, and the fewest and most timed steps."""
_LONG_ENOUGH, _TOO_LONG = 1.0, 3.0
"""Seconds of steps after which the timing ends, and elapsed seconds after which it ends in any case."""
_LONG_EVALUATION = 2.0
"""Seconds; a longer evaluation is estimated instead of timed."""
_FORWARD = 1 / 3
"""Fraction of a step's time in the forward pass."""

Elsewhere = Callable[[Path], AbstractContextManager[Lab]]
"""Opens a lab with the campaign's options over another folder."""
_Train = Callable[[Sequence[Segment], bool], list[Timed]]
"""Trains segments side by side, evaluates them if the flag is set, and returns the time of each."""


@dataclass(frozen=True)
class Pace:
    """Speed of training a task, with one network for each worker at once."""

    step: float
    """Seconds per step."""
    training: float
    """Seconds of a training beside its steps: evaluation, reading, writing, compiling sparse kernels."""
    masked_step: float | None = None
    """Seconds per step with a mask, in sparse kernels or as a smaller network; None if the same as without."""
    gated_step: float | None = None
    """Seconds per step with gates; None if the same as without."""
    processor: float | None = None
    """Processor seconds per second of training; None if unknown."""
    evaluation: float = 0.0
    """Seconds of evaluation in `training`."""

    def seconds(self, work: Work) -> float:
        """Return the seconds of some work, one training after the other."""
        masked, gated = (self.step if one is None else one for one in (self.masked_step, self.gated_step))
        plain = work.steps - work.masked - work.gated
        beside = work.trainings * self.training - min(work.unmeasured, work.trainings) * self.evaluation
        return plain * self.step + work.masked * masked + work.gated * gated + beside


def measure_pace(
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
    """Time the first steps of dense trainings, and of trainings with a random mask and with gates.

    Stored times may come from another machine or another load, so steps are trained again by the lab's workers.

    Args:
        lab: whose workers train.
        request: the search.
        kernels: kernels of the campaign's run.
        precision: precision of the campaign's run.
        density: density of the mask; None to time no mask.
        elsewhere: opens a lab over another folder; None if workers are on other machines: then the lab trains the first
            steps of the dense network only.
        gates: gates to time, see `first_gates`.
        side_by_side: number of networks trained at once.
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
            done = lab.train_aside(segments, other.store.address, measure=measure)
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
    """Return a function that trains in the lab's store; stored parts count with their recorded time."""
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
    """Return the same trainings with a random mask, or without random channels if tickets are smaller networks.

    Empty if a mask does not make training faster, or would leave a layer empty.
    """
    shrunk = shape_of(request.settings).channels
    try:
        mask = _channel_mask(lab, request, density) if shrunk else _random_mask(lab, request, density)
    except LayerCollapseError:
        return []
    seed, order = request.seeds.initialisation, whole[0].order_seed
    first = lab.segment(request.task, start=seed, order_seed=order, recipe=request.recipe, mask=mask, shrunk=shrunk)
    if not shrunk and first.arithmetic.kernels == DENSE:
        return []
    return [replace(first, start=one.start, order_seed=one.order_seed) for one in whole]


def first_gates(lab: Lab, request: SearchRequest) -> Gating | None:
    """Return the gates of the search's first training with gates; None if it trains none."""
    first = next((one.gates for one in request.plan if one.gates), None)
    return first(_replicate(lab, request, 0)) if first else None


def _replicate(lab: Lab, request: SearchRequest, number: int) -> Replicate:
    return Replicate(lab, request.task, request.recipe, request.seeds.replicate(number))


def _random_mask(lab: Lab, request: SearchRequest, density: float) -> Mask:
    drawn, shapes = generator("pace"), Mask.ones(scope(lab.model(request.task))).shapes
    return Mask({name: torch.rand(shape, generator=drawn) < density for name, shape in shapes.items()})


def _channel_mask(lab: Lab, request: SearchRequest, density: float) -> Mask:
    model = lab.model(request.task)
    return channels(model, lambda: lab.structure(request.task), density, distribution="uniform")


def _timed(lab: Lab, whole: Sequence[Segment], train: _Train) -> tuple[float, float, float]:
    """Return seconds per step, seconds of a training beside its steps, and the part of evaluation in these.

    Pieces of the trainings are timed, each twice as long as the last. The fixed time of a piece (compiling kernels)
    cancels in the difference of two pieces.
    """

    def piece(step: int, measure: bool = False) -> tuple[float, float]:
        done = train([one.until(step) for one in whole], measure)
        return fmean(one.train_seconds for one in done), fmean(one.other_seconds for one in done)

    last = whole[0].last
    at, beside = min(_WARM, last - 1), 0.0
    piece(at)  # also starts processes and reads the data
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
    """Return the number of batches of an evaluation, with the batch size of training."""
    sizes = lab.sizes(whole.task)
    return whole.per_epoch * (sizes["validation"] + sizes["test"]) / max(sizes["train"], 1)


def _enough(pieces: Sequence[tuple[int, float]]) -> bool:
    """Return whether the pieces are long enough to estimate the time of a step."""
    whole = sum(took for _, took in pieces)
    once = min((took for _, took in pieces), default=0.0)
    long = whole - len(pieces) * once >= _LONG_ENOUGH or whole >= _TOO_LONG
    return long or sum(count for count, _ in pieces) >= _MOST


def _by_pieces(pieces: list[tuple[int, float]]) -> tuple[float, float]:
    """Return seconds per step, and the fixed seconds of a piece."""
    (few, short), (many, long) = pieces[0], pieces[-1]
    each = max(long, 1e-4) / max(many, 1)
    if many <= few:
        return each, 0.0
    # Steps take at least a third, since other load would distort the difference.
    step = min(max((long - short) / (many - few), each / 3), each)
    return step, max(long - many * step, 0.0)


@dataclass(frozen=True)
class Work:
    """Amount of training."""

    steps: int
    trainings: int
    masked: int = 0
    """Steps of networks with a mask, which sparse kernels may make faster."""
    gated: int = 0
    """Steps of networks with gates, which train in torch."""
    unmeasured: int = 0
    """Trainings that another one continues at once, so that they are not evaluated."""

    def without(self, other: Work) -> Work:
        """Return the difference, at least 0."""
        return self._combine(other, lambda mine, theirs: max(mine - theirs, 0))

    def at_most(self, other: Work) -> Work:
        """Return the minimum of both."""
        return self._combine(other, min)

    def times(self, count: int) -> Work:
        """Return a multiple."""
        return self._combine(self, lambda mine, _: count * mine)

    def __add__(self, other: Work) -> Work:
        return self._combine(other, operator.add)

    def _combine(self, other: Work, function: Callable[[int, int], int]) -> Work:
        return Work(*map(function, astuple(self), astuple(other)))


NOTHING = Work(0, 0)


def work_of(lab: Lab, request: SearchRequest, stability: StabilitySettings | None = None) -> Work:
    """Return what one replicate trains beside the dense network.

    That is all trainings of the search, controls, and networks trained once more in a second order of the data.
    """
    whole = dense(lab, request)
    planned, tickets = request.plan or [Training(level=1)], request.tickets or [Training(level=1)]
    found = sum((_work(one, whole) for one in planned), NOTHING)
    for ticket in tickets:
        steps = ticket.control_steps(whole)
        found += Work(steps, 1, masked=steps).times(request.count_controls(ticket))
    if stability is not None:
        # Other masks are trained in both orders, unless one of them is a control anyway.
        others = sum(2 - (role in request.controls) for role in stability.roles if role)
        steps = tickets[-1].control_steps(whole)
        found += Work(steps, 1, masked=steps).times((len(stability.at) or len(tickets)) * (1 + others))
        if stability.dense:
            found += Work(steps, 1)
    return found


def _work(training: Training, whole: Segment) -> Work:
    steps, pieces = training.steps(whole), len(training.pieces(whole))
    gated = steps if training.gates else 0
    return Work(steps, pieces, training.masked_steps(whole), gated, unmeasured=pieces - 1)


def chain_of(lab: Lab, request: SearchRequest) -> Work:
    """Return what a replicate trains of a plain search, which runs that differ in structure alone share."""
    whole = dense(lab, request)
    return sum((_work(one, whole) for one in request.plan if one.shared), NOTHING)


def mean_density(request: SearchRequest, whole: Segment) -> float | None:
    """Return the mean density of networks with a mask, over the steps of a replicate; None if no density is known.

    Args:
        whole: the dense training.
    """
    pieces: list[tuple[int, float]] = []
    for training in request.plan:
        own = [(steps, density) for steps, density in training.pieces(whole) if density is not None and density < 1]
        pieces += own
        if own and training.level:
            pieces += [(training.control_steps(whole), own[-1][1])] * request.count_controls(training)
    total = sum(steps for steps, _ in pieces)
    return sum(steps * density for steps, density in pieces) / total if total else None


def structured(request: SearchRequest) -> bool:
    """Return whether tickets are trained beside the plain search that their masks come from."""
    return any(one.shared for one in request.plan) and not any(one.shared for one in request.tickets)


def plain(request: SearchRequest) -> SearchRequest:
    """Return the same search without structure and controls."""
    settings = next((one.shared for one in request.plan if one.shared), request.settings)
    return replace(request, settings=settings, controls=(), control_densities=())


def dense(lab: Lab, request: SearchRequest, replicate: int = 0) -> Segment:
    """Return the dense training of a replicate, which every method begins with."""
    seeds = request.seeds.replicate(replicate)
    return lab.segment(request.task, start=seeds.initialisation, order_seed=seeds.order, recipe=request.recipe)


@dataclass(frozen=True)
class Stored:
    """Work of all replicates of a search that is in a store."""

    there: Work
    """Stored tickets, controls and trainings of gates."""
    again: dict[tuple[str, int], Work]
    """Trainings to repeat, by trajectory and step: their weights are needed, but were not stored."""


def stored_work(lab: Lab, request: SearchRequest) -> Stored:
    """Return what a store has of a search, by running it up to the first network that must be trained.

    Its masks are computed and stored on the way. Dense networks do not count, nor gates without a ticket.
    """
    there, gated, again = list[Segment](), dict[str, Segment](), dict[tuple[str, int], Work]()
    for number in range(request.replicates):
        alone = replace(request, replicates=1, seeds=request.seeds.replicate(number))
        found, nothing = _find_stored(lab, alone)
        there += [one for one in found if one.variant(Gating) is None]
        gated |= {one.key: one for one in found if one.variant(Gating)}  # tickets share them
        for one in nothing.wanted:
            _add_repeated(lab.store, *one, again)
        for segment, keep in nothing.asked:
            again |= _missing_states(lab.store, segment, keep)
    masked, soft = (sum(segment.steps for segment in some) for some in (there, gated.values()))
    return Stored(Work(masked + soft, len(there) + len(gated), masked, soft), again)


def _add_repeated(store: Store, trajectory: str, step: int, found: dict[tuple[str, int], Work]) -> None:
    """Add a training to repeat for its weights, and those that it starts from."""
    result = store.trained(trajectory, step)
    if result is None or (trajectory, step) in found:
        return
    segment = result["segment"]
    steps = step - int(segment["first"])
    masked = any("mask" in variant for variant in segment.get("variants", ()))
    found[trajectory, step] = Work(steps, 1, steps if masked else 0)
    start = (segment.get("start") or {}).get("state")
    if start and store.left_out(start) and (origin := store.memo("left-out", start)) and origin["trajectory"]:
        _add_repeated(store, origin["trajectory"], origin["step"], found)


def _missing_states(store: Store, segment: Segment, keep: tuple[int, ...]) -> dict[tuple[str, int], Work]:
    """Return the work to repeat of a finished training whose intermediate states were not stored."""
    missing = [step for step in keep if store.trained(segment.trajectory, step) is None]
    if not missing or store.trained(segment.trajectory, segment.last) is None:
        return {}
    before = last_resumable(store, segment.trajectory, min(missing))
    steps = max(missing) - (before["step"] if before else segment.first)
    return {(segment.trajectory, max(missing)): Work(steps, 1, unmeasured=1)}


def _find_stored(lab: Lab, request: SearchRequest) -> tuple[list[Segment], NoTraining]:
    """Return the stored segments of tickets, controls and gates of a replicate, and the first missing ones."""
    there: list[Segment] = []

    def add(_: int, found: Found) -> None:
        if found.mask is None:
            return
        there.append(found.result.segment)
        there.extend(result.segment for result in found.searched if result.segment.variant(Gating))
        for control in request.controls_beside(found.level, lab.store.get_mask(found.mask).density):
            if obstacle(control, found):
                continue
            try:
                made = trained_control(
                    lab, request.task, found.result.segment.recipe, control, found, request.seeds, label=control
                )
            except NotStoredError:
                continue
            there.extend(result.segment for result in made.trainings)

    with lab.training_nothing() as nothing, contextlib.suppress(NotStoredError):
        request.method(
            lab,
            request.task,
            request.settings,
            recipe=request.recipe,
            replicates=1,
            seeds=request.seeds,
            on_found=add,
        )
    return there, nothing
