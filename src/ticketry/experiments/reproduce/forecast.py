"""Estimate how long blocks of a campaign take, from their plan, finished blocks, and a short timing of steps."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from ticketry.errors import NotStoredError
from ticketry.evidence.control import explain_undefined_control
from ticketry.evidence.controls import train_any_control
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.reproduce.blocks import Block
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.runners.choice import IN_PROCESS, PROCESSES
from ticketry.lab.runners.runner import Event
from ticketry.lab.search_result import Found
from ticketry.lab.store.references import second_order_seed
from ticketry.lab.store.store import open_store
from ticketry.lab.training.segment import Segment
from ticketry.search import Training


@dataclass(frozen=True)
class Work:
    """Amount of training: steps and number of trainings."""

    steps: int = 0
    trainings: int = 0

    def minus(self, other: Work) -> Work:
        """Return the steps and trainings that remain after subtracting `other`, at least 0."""
        return Work(max(self.steps - other.steps, 0), max(self.trainings - other.trainings, 0))

    def times(self, count: int) -> Work:
        """Return the steps and trainings multiplied by `count`."""
        return Work(count * self.steps, count * self.trainings)

    def __add__(self, other: Work) -> Work:
        return Work(self.steps + other.steps, self.trainings + other.trainings)


@dataclass(frozen=True)
class Pace:
    """Speed of training while all workers are busy."""

    step: float
    """Seconds per step."""
    training: float = 0.0
    """Seconds of a training that are not steps: evaluation, reading, writing."""

    def seconds(self, work: Work) -> float:
        """Return the seconds that `work` takes if it is done in sequence."""
        return work.steps * self.step + work.trainings * self.training


class TimeEstimator:
    """Estimates the seconds of blocks.

    A run with a finished block is assumed to continue at the pace of this block. Before its first block is finished, a
    step is assumed to take as long as a step of its dense networks; this is rough for runs in sparse kernels or with
    gates. Dense networks that several runs share count once; other shared trainings count for each run.

    Args:
        lab: where to train.
        campaign: the campaign.
        twins: function that returns the replicates up to the end of a block that lack a dense network in the second
            data order.
    """

    def __init__(self, lab: Lab, campaign: Campaign, twins: Callable[[Block], Sequence[int]]) -> None:
        self._lab, self._campaign, self._twins = lab, campaign, twins
        self._pace: dict[str, Pace] = {}
        """Pace of the first steps of dense networks, by key of the first."""
        self._seen: dict[str, Pace] = {}
        """Pace of the last finished block of each run."""
        self._there: dict[Block, Work] = {}

    def add(self, block: Block, seconds: float, trained: Work, shared: Work) -> None:
        """Learn a run's pace from a finished block.

        Args:
            block: the block.
            seconds: elapsed seconds.
            trained: work of the trainings that were not in the store.
            shared: result of `dense_work` before the block began.
        """
        own, seconds = trained.minus(shared), seconds - self._estimate_work(block, shared, dense=True)
        if own.trainings and own.steps and seconds > 0:
            self._seen[block.run] = Pace(seconds / own.steps)

    def estimate(self, block: Block, counted: set[str] | None = None) -> float:
        """Return the estimated seconds of the block's trainings that the store lacks.

        Args:
            block: the block.
            counted: keys of dense networks that other blocks have counted; the keys of this block are added to it.
        """
        known = set[str]() if counted is None else counted
        every = planned_work(self._lab, block.request(self._campaign), self._campaign.stability.get(block.run))
        left = every.times(block.last - block.first).minus(self._stored_work(block))
        return self._estimate_work(block, left) + self._estimate_work(block, self.dense_work(block, known), dense=True)

    def _stored_work(self, block: Block) -> Work:
        """Return the work of a block that is in the store, apart from dense networks; computed at the first call."""
        whole = self._dense_of_block(block)
        if len(self._missing_segments(whole)) == len(whole):
            return Work()  # without dense networks there is nothing else
        if block not in self._there:
            with self._campaign.with_arithmetic(self._lab, block.run):
                self._there[block] = stored_work(self._lab, block.request(self._campaign))
        return self._there[block]

    def _dense_of_block(self, block: Block) -> list[Segment]:
        """Return the training segments of a block's dense networks, in the first data order."""
        return self._dense_segments(block.run, range(block.first, block.last))

    def _dense_segments(self, run: str, replicates: Sequence[int]) -> list[Segment]:
        with self._campaign.with_arithmetic(self._lab, run):
            return [dense_segment(self._lab, self._campaign.runs[run], replicate) for replicate in replicates]

    def _missing_segments(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return the segments that the store lacks."""
        return [one for one in segments if self._lab.store.load_valid_result(one.trajectory, one.last) is None]

    def dense_work(self, block: Block, counted: set[str] | None = None) -> Work:
        """Return the work of the block's dense networks, in both data orders, that the store lacks.

        In the second data order, replicates of earlier blocks count too, since a bundle may lack them.
        """
        whole, known = self._dense_of_block(block), set[str]() if counted is None else counted
        twins = [
            replace(one, order_seed=second_order_seed(one.order_seed))
            for one in self._dense_segments(block.run, self._twins(block))
        ]
        left = {one.key for one in self._missing_segments([*whole, *twins])} - known
        known |= left
        return Work(len(left) * whole[0].total, len(left))

    def _estimate_work(self, block: Block, work: Work, *, dense: bool = False) -> float:
        if not work.trainings:
            return 0.0
        if not dense and (seen := self._seen.get(block.run)):
            return seen.seconds(work)  # as many side by side as then
        return self._dense_pace(block.run).seconds(work) / self._side_by_side(block.last - block.first)

    def _side_by_side(self, replicates: int) -> int:
        """Return how many of `replicates` networks the lab trains at the same time."""
        return min(max(self._lab.workers, 1), replicates)

    def _dense_pace(self, run: str) -> Pace:
        """Return the pace of a run's dense networks; at the first call, time their first steps."""
        whole = self._dense_segments(run, range(self._side_by_side(self._campaign.plans[run].at[0])))
        if (key := whole[0].key) not in self._pace:
            self._pace[key] = measure_pace(self._lab, whole)
        return self._pace[key]


_WARM, _FIRST, _MOST = 3, 100, 1000
"""Number of steps before the timing; of timed steps on other machines; and largest number of timed steps."""
_LONG_ENOUGH = 1.0
"""Seconds of timed steps after which the timing ends."""
_FORWARD = 1 / 3
"""Fraction of a step's time in the forward pass."""


def measure_pace(lab: Lab, whole: Sequence[Segment]) -> Pace:
    """Time the first steps of dense trainings that run at the same time, and return their pace.

    Times in the store are not used, since they may come from another machine or another load. Local workers train in a
    temporary store, and double the steps until a second is timed. Workers on other machines cannot reach a temporary
    store: they train the first steps in the lab's store, and the search continues from there.
    """
    if lab.on not in (PROCESSES, IN_PROCESS):
        first = [one.until(min(_FIRST, one.last)) for one in whole]
        done = lab.train_many(first, labels=["to measure a step"] * len(first), measure=False)
        return Pace(fmean(one.train_seconds / one.segment.last for one in done))
    with tempfile.TemporaryDirectory(prefix="ticketry-pace-") as folder:
        store = open_store(Path(folder))

        def train(step: int) -> tuple[float, float]:
            done = lab.train_aside([one.until(step) for one in whole], store.address, measure=False)
            return fmean(one.train_seconds for one in done), fmean(one.other_seconds for one in done)

        last = whole[0].last
        at = min(_WARM, last - 1)
        (took, beside), count = train(at), max(at, 1)  # also starts processes and reads the data
        while at < min(last, _MOST) and (at <= _WARM or took < _LONG_ENOUGH):
            then = min(at + max(4, at), last)
            (took, beside), count, at = train(then), then - at, then
    sizes = lab.sizes(whole[0].task)
    batches = whole[0].per_epoch * (sizes["validation"] + sizes["test"]) / max(sizes["train"], 1)
    step = took / count
    return Pace(step, beside + _FORWARD * step * batches)


def planned_work(lab: Lab, request: SearchRequest, stability: StabilitySettings | None = None) -> Work:
    """Return the planned work of one replicate, apart from its dense network.

    The work consists of the search, its controls, and the networks of a stability analysis.
    """
    whole = dense_segment(lab, request)
    planned, tickets = request.plan or [Training(level=1)], request.tickets or [Training(level=1)]
    found = Work(sum(one.steps(whole) for one in planned), len(planned))
    for ticket in tickets:
        found += Work(ticket.control_steps(whole), 1).times(request.count_controls(ticket))
    if stability is not None:
        # Other masks are trained in both orders, unless one of them is a control anyway.
        others = sum(2 - (role in request.controls) for role in stability.roles if role)
        again = Work(tickets[-1].control_steps(whole), 1)
        found += again.times((len(stability.at) or len(tickets)) * (1 + others) + stability.dense)
    return found


def dense_segment(lab: Lab, request: SearchRequest, replicate: int = 0) -> Segment:
    """Return the training segment of a replicate's dense network."""
    seeds = request.seeds.replicate(replicate)
    return lab.segment(request.task, start=seeds.initialisation, order_seed=seeds.order, recipe=request.recipe)


def stored_work(lab: Lab, request: SearchRequest) -> Work:
    """Return the work of a search that is in the store: run the search until a training is missing.

    On the way, masks are computed and stored. Dense networks do not count. Stored results count also without weights,
    which a bundle omits.
    """
    there: dict[str, int] = {}

    def add(event: Event) -> None:
        if event.kind == "cached":
            there[event.key] = event.last - event.first

    for number in range(request.replicates):
        alone = replace(request, replicates=1, seeds=request.seeds.replicate(number))
        with lab.training_nothing(), lab.listening(add), contextlib.suppress(NotStoredError):
            _replay_search(lab, alone)
    own = {dense_segment(lab, request, number).trajectory for number in range(request.replicates)}
    steps = [count for key, count in there.items() if key.partition("@")[0] not in own]
    return Work(sum(steps), len(steps))


def _replay_search(lab: Lab, request: SearchRequest) -> None:
    """Run a search of one replicate and its controls, as far as stored trainings suffice."""

    def add(_: int, found: Found) -> None:
        if found.mask is None:
            return
        for control in request.controls_for(found.level, lab.store.get_mask(found.mask).density):
            if not explain_undefined_control(control, found):
                with contextlib.suppress(NotStoredError):
                    train_any_control(lab, request.task, control, found, request.seeds, label=control)

    request.method(
        lab, request.task, request.settings, recipe=request.recipe, replicates=1, seeds=request.seeds, on_found=add
    )
