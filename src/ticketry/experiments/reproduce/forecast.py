"""How long blocks of a campaign take here: by steps measured before anything was trained, then by blocks."""

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
from ticketry.core.structure.channel_wise.choose import channels
from ticketry.errors import LayerCollapseError, NotStoredError
from ticketry.evidence.control_steps import obstacle
from ticketry.evidence.controls import trained_control
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.reproduce.blocks import Block
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import NoTraining
from ticketry.lab.search_result import Found
from ticketry.lab.store.second_orders import second_order
from ticketry.lab.store.store import Store, digest_of
from ticketry.lab.training.job import Work as Timed
from ticketry.lab.training.job import last_resumable
from ticketry.lab.training.precision import DENSE
from ticketry.lab.training.segment import Segment
from ticketry.search import Training
from ticketry.search.common.method import Replicate
from ticketry.search.common.scope import is_structured
from ticketry.search.gating.gating import Gating
from ticketry_engine.support.seeds import generator


@dataclass(frozen=True)
class _Seen:
    """Of a run's block that was carried out."""

    step: float
    """Seconds a step that is no dense network's, with all that trainings take beside their steps."""
    processor: float | None
    """Seconds of processors' time a second."""


class Clock:
    """How long blocks take.

    Args:
        twins: up to a block's last replicate, those whose dense network is to be trained in a second order, see
            `twins`.
        elsewhere: opens a lab over another folder, to measure steps in; None where workers are on other machines.
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
        self._seen: dict[str, _Seen] = {}
        self._there: dict[Block, tuple[Work, Work, dict[tuple[str, int], Work]]] = {}

    def took(self, block: Block, seconds: float, trained: Work, shared: Work, processor: float | None = None) -> None:
        """Take note of a block that was carried out just now.

        Args:
            trained: what was not in the store.
            shared: what `shared` said before.
            processor: seconds of processors' time a second.
        """
        own, seconds = trained.without(shared), seconds - self._seconds(block, shared, dense=True)
        if own.trainings and own.steps and seconds > 0:
            self._seen[block.run] = _Seen(seconds / own.steps, processor)

    def processor(self, block: Block, seconds: float) -> float | None:
        """Seconds of processors' time that a block takes which takes `seconds` by the clock, if that is known. What
        else the machine does is in the clock's, and not in these.
        """
        if seen := self._seen.get(block.run):
            return None if seen.processor is None else seconds * seen.processor
        share = self._measured(block.run).processor if seconds else 0.0
        return None if share is None else seconds * self._side_by_side(block.last - block.first) * share

    def estimate(self, block: Block, counted: set[str] | None = None) -> float:
        """Seconds of what the store lacks. Networks that are in `counted` take none; others are added to that."""
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
        """Of the tickets without structure: other runs of these replicates train the same."""
        settings = plain(block.request(self._campaign)).settings
        replicates = [one.key for one in self._whole(block)]
        return f"chain of {digest_of([replicates, repr(settings)])}"

    def _stored(self, block: Block) -> tuple[Work, Work, dict[tuple[str, int], Work]]:
        """What the store had of a block when it was first looked at, for to look takes seconds: of what `chain_of`
        counts, of the rest, and what has to be made again to go on from it."""
        if not self._begun(block):
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

    def _begun(self, block: Block) -> bool:
        """Whether some of its dense networks are there, without which nothing else is."""
        return len(self._left(self._whole(block))) < block.last - block.first

    def _whole(self, block: Block) -> list[Segment]:
        """Its dense networks, in the first order."""
        return self._dense(block.run, range(block.first, block.last))

    def _dense(self, run: str, replicates: Sequence[int]) -> list[Segment]:
        with self._campaign.training(self._lab, run):
            return [dense(self._lab, self._campaign.runs[run], replicate) for replicate in replicates]

    def _left(self, segments: Sequence[Segment]) -> list[Segment]:
        """Those that have still to be trained."""
        return [one for one in segments if self._lab.store.trained(one.trajectory, one.last) is None]

    def shared(self, block: Block, counted: set[str] | None = None) -> Work:
        """A block's dense networks, in both orders, that have still to be trained; of the second one those of earlier
        replicates too, which a bundle may lack."""
        whole, known = self._whole(block), set[str]() if counted is None else counted
        twins = [
            replace(one, order_seed=second_order(one.order_seed)) for one in self._dense(block.run, self._twins(block))
        ]
        left = {one.key for one in self._left([*whole, *twins])} - known
        known |= left
        return Work(len(left) * whole[0].total, len(left))

    def _seconds(self, block: Block, work: Work, *, dense: bool = False) -> float:
        if not work.trainings:
            return 0.0
        if not dense and (seen := self._seen.get(block.run)):
            return work.steps * seen.step  # of blocks side by side, as they were
        return self._measured(block.run).seconds(work) / self._side_by_side(block.last - block.first)

    def _side_by_side(self, replicates: int) -> int:
        """How many networks are trained at once."""
        return min(max(self._lab.workers, 1), replicates)

    def _measured(self, run: str) -> Pace:
        """By the first steps of the first dense networks; where masks train in sparse kernels, or without the channels
        that are gone, of masks as dense as the run's are in the mean too."""
        request, kernels = self._campaign.runs[run], self._campaign.kernels[run]
        (whole,) = self._dense(run, [0])
        smaller = is_structured(request.settings)
        density = mean_density(request, whole) if smaller or kernels != "dense" else None
        gates = first_gates(self._lab, request)
        key = digest_of([whole.describe(), kernels, gates and gates.describe(), density, smaller])
        if key not in self._pace:
            self._pace[key] = measured(
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
    """Return the gates of the search's first training with gates; None if it trains none."""
    first = next((one.gates for one in request.plan if one.gates), None)
    return first(_replicate(lab, request, 0)) if first else None


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


@dataclass(frozen=True)
class Work:
    """Steps, and in how many trainings."""

    steps: int
    trainings: int
    masked: int = 0
    """Of the steps, those of networks that hold a mask, which sparse kernels may make faster."""
    gated: int = 0
    """Of the steps, those of networks with gates, which train in torch."""
    unmeasured: int = 0
    """Of the trainings, those that another goes on from at once, so that no metrics are measured after them."""

    def without(self, other: Work) -> Work:
        """What is left of it."""
        return self._with(other, lambda mine, theirs: max(mine - theirs, 0))

    def at_most(self, other: Work) -> Work:
        """No more than another."""
        return self._with(other, min)

    def times(self, count: int) -> Work:
        """As many times as much."""
        return self._with(self, lambda mine, _: count * mine)

    def __add__(self, other: Work) -> Work:
        return self._with(other, operator.add)

    def _with(self, other: Work, made: Callable[[int, int], int]) -> Work:
        return Work(*map(made, astuple(self), astuple(other)))


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
        # Of other masks both orders are its own, unless they are controls anyway.
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
    """Of all replicates of a search."""

    there: Work
    """Tickets, their controls and trainings of gates that need no training."""
    again: dict[tuple[str, int], Work]
    """Trainings (trajectory and step) whose weights what is missing goes on from, and which a bundle left out or nobody
    asked for when they were trained."""


def stored_work(lab: Lab, request: SearchRequest) -> Stored:
    """The search is carried out on what is there, up to the first network that would have to be trained; its masks are
    made, and kept, on the way. Dense networks are not counted as there, nor gates of which no ticket is there yet.
    """
    there, gated, again = list[Segment](), dict[str, Segment](), dict[tuple[str, int], Work]()
    for number in range(request.replicates):
        alone = replace(request, replicates=1, seeds=request.seeds.replicate(number))
        found, nothing = _of_replicate(lab, alone)
        there += [one for one in found if one.variant(Gating) is None]
        gated |= {one.key: one for one in found if one.variant(Gating)}  # tickets have them in common
        for one in nothing.wanted:
            _make_again(lab.store, *one, again)
        for segment, keep in nothing.asked:
            again |= _kept_afterwards(lab.store, segment, keep)
    masked, soft = (sum(segment.steps for segment in some) for some in (there, gated.values()))
    return Stored(Work(masked + soft, len(there) + len(gated), masked, soft), again)


def _make_again(store: Store, trajectory: str, step: int, found: dict[tuple[str, int], Work]) -> None:
    """Add a training whose weights are to be made again, with whatever it starts from itself."""
    result = store.trained(trajectory, step)
    if result is None or (trajectory, step) in found:
        return
    segment = result["segment"]
    steps = step - int(segment["first"])
    masked = any("mask" in variant for variant in segment.get("variants", ()))
    found[trajectory, step] = Work(steps, 1, steps if masked else 0)
    start = (segment.get("start") or {}).get("state")
    if start and store.left_out(start) and (told := store.memo("left-out", start)) and told["trajectory"]:
        _make_again(store, told["trajectory"], told["step"], found)


def _kept_afterwards(store: Store, segment: Segment, keep: tuple[int, ...]) -> dict[tuple[str, int], Work]:
    """Of a training that is done, what is trained once more because states on its way were not kept."""
    missing = [step for step in keep if store.trained(segment.trajectory, step) is None]
    if not missing or store.trained(segment.trajectory, segment.last) is None:
        return {}
    before = last_resumable(store, segment.trajectory, min(missing))
    steps = max(missing) - (before["step"] if before else segment.first)
    return {(segment.trajectory, max(missing)): Work(steps, 1, unmeasured=1)}


def _of_replicate(lab: Lab, request: SearchRequest) -> tuple[list[Segment], NoTraining]:
    """The segments that are there of tickets, controls and gates, and what would come next."""
    there: list[Segment] = []

    def found_one(_: int, found: Found) -> None:
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
            on_found=found_one,
        )
    return there, nothing
