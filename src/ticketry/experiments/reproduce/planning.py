"""What of a campaign is missing, what decides most claims first, and how long it takes, by steps measured here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ticketry.evidence.judging.interim_analyses import InterimAnalyses
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.record_files import earlier_record
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.deciding import Decision
from ticketry.experiments.reproduce.stored import stored_work
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.store import digest_of
from ticketry.lab.store.paths import Paths
from ticketry.lab.training.segment import Segment
from ticketry.records.run import RunRecord
from ticketry.search.concrete import Settings as ConcreteSettings
from ticketry.search.concrete import mask_steps
from ticketry.search.gating.settings import GateSettings
from ticketry.search.iterative import Settings as IterativeSettings

_WARM, _TIMED = 10, 40
"""Steps that are trained before those that are timed, and how many these are at first."""
_LONG_ENOUGH, _MOST_TIMED = 2.0, 1000
"""Seconds, and steps, after which no more are timed: a few milliseconds are no measure where others compute too."""


@dataclass(frozen=True)
class Block:
    """Replicates of a run that are searched together: from one planned analysis to the next."""

    run: str
    index: int
    first: int
    last: int
    """Of the replicates; the last is not among them."""

    def request(self, campaign: Campaign) -> SearchRequest:
        """What to search for: replicates with seeds of their own."""
        one = campaign.runs[self.run]
        return replace(one, replicates=self.last - self.first, seeds=one.seeds.replicate(self.first))


def blocks_of(run: str, plan: InterimAnalyses) -> list[Block]:
    """All blocks of a run, up to the limit."""
    ends = (0, *plan.at)
    return [Block(run, index, ends[index], ends[index + 1]) for index in range(len(plan.at))]


def blocks_done(campaign: Campaign, run: str, paths: Paths) -> Iterator[tuple[Block, RunRecord]]:
    """Those of a run that a store has in the campaign's precision, from the first up to one that is missing."""
    for block in blocks_of(run, campaign.plans[run]):
        found = earlier_record(paths.run(block.request(campaign).name) / "run.json", RunRecord)
        if found is None or found.environment.get("precision") != campaign.precision:
            return
        yield block, found


def missing(decisions: Sequence[Decision], done: Mapping[str, int]) -> dict[Block, tuple[str, ...]]:
    """The next blocks that undecided claims wait for, with the claims: what most of them need comes first.

    Args:
        done: blocks of each run that are done.
    """
    waiting: dict[Block, list[str]] = {}
    for one in decisions:
        if one.found != "undecided":
            continue
        runs = one.claim.runs
        plan = one.claim.plan
        behind = min(done.get(run, 0) for run in runs)
        for run in runs:
            if done.get(run, 0) == behind < len(plan.at):
                waiting.setdefault(blocks_of(run, plan)[behind], []).append(one.claim.name)
    ranked = sorted(waiting, key=lambda block: (-len(waiting[block]), block.index, block.run))
    return {block: tuple(waiting[block]) for block in ranked}


@dataclass
class _Pace:
    """How fast a task is trained here."""

    step: float
    """Seconds."""
    training: float
    """Seconds of a training beside its steps: evaluation, reading, writing."""


class Clock:
    """How long blocks take: by steps measured before anything of the kind was trained, then by blocks that are done.

    Args:
        twins: of a block, the replicates whose dense network is to be trained in a second order, see `twins`.
    """

    def __init__(self, lab: Lab, campaign: Campaign, twins: Callable[[Block], Sequence[int]]) -> None:
        self._lab, self._campaign, self._twins = lab, campaign, twins
        self._pace: dict[str, _Pace] = {}
        self._seen: dict[str, list[float]] = {}
        """Of each run: seconds a replicate, but for dense networks."""
        self._there: dict[Block, tuple[int, int]] = {}

    def took(self, block: Block, seconds: float, shared: float) -> None:
        """Take note of a block that was trained just now; `shared` is what `shared` said before."""
        self._seen.setdefault(block.run, []).append(max(seconds - shared, 0.0) / (block.last - block.first))

    def estimate(self, block: Block, counted: set[str] | None = None) -> float:
        """Seconds of what the store lacks. Dense networks that are in `counted` take none; others are added to that."""
        request, count = block.request(self._campaign), block.last - block.first
        steps, trainings = work_of(self._lab, request, self._campaign.stability.get(block.run))
        steps_left, trainings_left = count * steps, count * trainings
        if self._begun(block):
            there = self._stored(block, request)
            steps_left, trainings_left = max(steps_left - there[0], 0), max(trainings_left - there[1], 0)
        if seen := self._seen.get(block.run):
            own = seen[-1] * steps_left / max(steps, 1)
        else:
            own = self._seconds(block, steps_left, trainings_left)
        return own + self.shared(block, counted)

    def _stored(self, block: Block, request: SearchRequest) -> tuple[int, int]:
        """What the store had of a block when it was first looked at: to look takes seconds."""
        if block not in self._there:
            with self._lab.training_in(self._campaign.kernels[block.run]):
                self._there[block] = stored_work(self._lab, request)
        return self._there[block]

    def _begun(self, block: Block) -> bool:
        """Whether some of its dense networks are there, without which nothing else is."""
        return len(self._left(block)) < block.last - block.first

    def _left(self, block: Block) -> list[Segment]:
        """Its dense networks that have still to be trained, in the first order."""
        request = self._campaign.runs[block.run]
        whole = [dense(self._lab, request, replicate) for replicate in range(block.first, block.last)]
        return [one for one in whole if self._lab.store.trained(one.trajectory, one.last) is None]

    def shared(self, block: Block, counted: set[str] | None = None) -> float:
        """Seconds of a block's dense networks, in both orders, that have still to be trained."""
        request, known = self._campaign.runs[block.run], set[str]() if counted is None else counted
        whole = [dense(self._lab, request, replicate) for replicate in range(block.first, block.last)]
        left = {one.key for one in self._left(block)}
        left |= {f"twin of {whole[replicate - block.first].key}" for replicate in self._twins(block)}
        left -= known
        known |= left
        return self._seconds(block, len(left) * whole[0].total, len(left))

    def whole(self, blocks: Sequence[Block]) -> float:
        """Of several, one after the other: what they share is counted once."""
        counted = set[str]()
        return sum(self.estimate(block, counted) for block in blocks)

    def _seconds(self, block: Block, steps: int, trainings: int) -> float:
        pace = self._measured(self._campaign.runs[block.run])
        side_by_side = min(max(self._lab.workers, 1), block.last - block.first)
        return (steps * pace.step + trainings * pace.training) / side_by_side

    def _measured(self, request: SearchRequest) -> _Pace:
        """By the first steps of the first dense network, which goes on from there."""
        whole = dense(self._lab, request)
        key = digest_of(whole.describe())
        if key not in self._pace:
            at, pace = min(_WARM, whole.last - 1), _Pace(0.0, 0.0)
            before = self._timed(whole, at)  # starts processes and reads the data, too
            seconds, steps = 0.0, 0
            while at < whole.last and seconds < _LONG_ENOUGH and steps < _MOST_TIMED:
                begun, trained = time.monotonic(), self._lab.ledger.segments_trained
                then = min(at + max(_TIMED, steps), whole.last)
                now = self._timed(whole, then)
                seconds, steps, at = seconds + now - before, steps + then - at, then
                if self._lab.ledger.segments_trained > trained:  # else it was in the store, and took nothing
                    pace.training = max(time.monotonic() - begun - (now - before), 0.0)
                before = now
            pace.step = max(seconds, 1e-4) / max(steps, 1)
            self._pace[key] = pace
        return self._pace[key]

    def _timed(self, whole: Segment, step: int) -> float:
        """Seconds of all training up to a step."""
        return self._lab.train(whole.until(step), label="to measure a step", measure=step > _WARM).train_seconds


def work_of(lab: Lab, request: SearchRequest, stability: StabilitySettings | None = None) -> tuple[int, int]:
    """About how many steps one replicate trains beside the dense network, and in how many trainings: tickets and
    controls, rounds with gates, and what is trained once more in a second order of the data.
    """
    whole = dense(lab, request)
    settings = request.settings
    tickets = request.method.levels(settings) if request.method.levels else 1
    rounds = settings.rounds * len(settings.members) if isinstance(settings, GateSettings) else 0
    own = whole.total - whole.at(getattr(settings, "rewind", "0")) if _rewinds(settings) else whole.total
    sparse = tickets + request.controls_of(tickets)
    if stability is not None:
        # Of other masks both orders are its own, unless they are controls anyway.
        others = sum(2 - (role in request.controls) for role in stability.roles if role)
        sparse += (len(stability.at) or tickets) * (1 + others) + stability.dense
    if isinstance(settings, IterativeSettings) and settings.structure != "none":
        sparse += tickets - 1  # the next level goes on from the mask without structure
    steps, trainings = whole.total * rounds + sparse * own, rounds + sparse
    if isinstance(settings, ConcreteSettings):
        steps, trainings = steps + tickets * mask_steps(settings, whole), trainings + tickets
    return steps, trainings


def _rewinds(settings: object) -> bool:
    return hasattr(settings, "rewind") and getattr(settings, "retrain", "") in ("", "continue", "rewind_lr")


def dense(lab: Lab, request: SearchRequest, replicate: int = 0) -> Segment:
    """The dense training of a replicate, which every method begins with."""
    seeds = request.seeds.replicate(replicate)
    return lab.segment(request.task, start=seeds.initialisation, order_seed=seeds.order, recipe=request.recipe)
