"""What of a campaign is missing, what decides most claims first, and how long it takes, by steps measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ticketry.evidence.judging.interim_analyses import InterimAnalyses
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.record_files import earlier_record
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.deciding import Decision
from ticketry.experiments.reproduce.pace import Elsewhere, Pace, measured
from ticketry.experiments.reproduce.stored import stored_work
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.store import digest_of
from ticketry.lab.store.paths import Paths
from ticketry.lab.training.segment import Segment
from ticketry.records.run import RunRecord
from ticketry.search.common.structure import Restructuring
from ticketry.search.concrete import Settings as ConcreteSettings
from ticketry.search.concrete import mask_steps
from ticketry.search.gating.settings import GateSettings
from ticketry.search.iterative import Settings as IterativeSettings


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


@dataclass(frozen=True)
class Work:
    """Steps, and in how many trainings."""

    steps: int
    trainings: int

    def without(self, other: Work) -> Work:
        """What is left of it."""
        return Work(max(self.steps - other.steps, 0), max(self.trainings - other.trainings, 0))

    def at_most(self, other: Work) -> Work:
        """No more than another."""
        return Work(min(self.steps, other.steps), min(self.trainings, other.trainings))

    def times(self, count: int) -> Work:
        """As many times as much."""
        return Work(count * self.steps, count * self.trainings)

    def __add__(self, other: Work) -> Work:
        return Work(self.steps + other.steps, self.trainings + other.trainings)


_NONE = Work(0, 0)


class Clock:
    """How long blocks take: by steps measured before anything of the kind was trained, then by blocks that are done.

    Args:
        twins: of a block, the replicates whose dense network is to be trained in a second order, see `twins`.
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
        self._seen: dict[str, float] = {}
        """Of each run: seconds a step that is no dense network's, with all that trainings take beside their steps."""
        self._there: dict[Block, tuple[Work, Work]] = {}

    def took(self, block: Block, seconds: float, trained: Work, shared: Work) -> None:
        """Take note of a block that was carried out just now.

        Args:
            trained: what was not in the store.
            shared: what `shared` said before.
        """
        own, seconds = trained.without(shared), seconds - self._seconds(block, shared, dense=True)
        if own.trainings and own.steps and seconds > 0:
            self._seen[block.run] = seconds / own.steps

    def estimate(self, block: Block, counted: set[str] | None = None) -> float:
        """Seconds of what the store lacks. Networks that are in `counted` take none; others are added to that."""
        request, count = block.request(self._campaign), block.last - block.first
        known = set[str]() if counted is None else counted
        every = work_of(self._lab, request, self._campaign.stability.get(block.run))
        chain = chain_of(self._lab, request)
        chain_there, there = self._stored(block)
        left = every.without(chain).times(count).without(there)
        if (name := self._chain_name(block)) not in known:
            left += chain.times(count).without(chain_there)
            known.add(name)
        return self._seconds(block, left) + self._seconds(block, self.shared(block, known), dense=True)

    def _chain_name(self, block: Block) -> str:
        """Of the tickets without structure: other runs of these replicates train the same."""
        settings = _plain(block.request(self._campaign)).settings
        replicates = [one.key for one in self._whole(block)]
        return f"chain of {digest_of([replicates, repr(settings)])}"

    def _stored(self, block: Block) -> tuple[Work, Work]:
        """What the store had of a block when it was first looked at, for to look takes seconds: of what `chain_of`
        counts, and of the rest."""
        if not self._begun(block):
            return _NONE, _NONE
        if block not in self._there:
            request, count = block.request(self._campaign), block.last - block.first
            most, chain = chain_of(self._lab, request).times(count), _NONE
            with self._lab.training_in(self._campaign.kernels[block.run]):
                there = Work(*stored_work(self._lab, request))
                if most.trainings:
                    chain = Work(*stored_work(self._lab, _plain(request)))
            if not _structured(request):  # its own tickets are the chain
                there = there.without(chain)
            self._there[block] = chain.at_most(most), there
        return self._there[block]

    def _begun(self, block: Block) -> bool:
        """Whether some of its dense networks are there, without which nothing else is."""
        return len(self._left(block)) < block.last - block.first

    def _whole(self, block: Block) -> list[Segment]:
        """Its dense networks, in the first order."""
        request = self._campaign.runs[block.run]
        return [dense(self._lab, request, replicate) for replicate in range(block.first, block.last)]

    def _left(self, block: Block) -> list[Segment]:
        """Those that have still to be trained."""
        return [one for one in self._whole(block) if self._lab.store.trained(one.trajectory, one.last) is None]

    def shared(self, block: Block, counted: set[str] | None = None) -> Work:
        """A block's dense networks, in both orders, that have still to be trained."""
        whole, known = self._whole(block), set[str]() if counted is None else counted
        left = {one.key for one in self._left(block)}
        left |= {f"twin of {whole[replicate - block.first].key}" for replicate in self._twins(block)}
        left -= known
        known |= left
        return Work(len(left) * whole[0].total, len(left))

    def whole(self, blocks: Sequence[Block]) -> float:
        """Of several, one after the other: what they share is counted once."""
        counted = set[str]()
        return sum(self.estimate(block, counted) for block in blocks)

    def _seconds(self, block: Block, work: Work, *, dense: bool = False) -> float:
        if not work.trainings:
            return 0.0
        if not dense and (seen := self._seen.get(block.run)):
            return work.steps * seen  # of blocks side by side, as they were
        pace = self._measured(self._campaign.runs[block.run])
        side_by_side = min(max(self._lab.workers, 1), block.last - block.first)
        return (work.steps * pace.step + work.trainings * pace.training) / side_by_side

    def _measured(self, request: SearchRequest) -> Pace:
        """By the first steps of the first dense network."""
        whole = dense(self._lab, request)
        key = digest_of(whole.describe())
        if key not in self._pace:
            self._pace[key] = measured(self._lab, whole, self._elsewhere)
        return self._pace[key]


def work_of(lab: Lab, request: SearchRequest, stability: StabilitySettings | None = None) -> Work:
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
    if _structured(request):
        sparse += tickets - 1  # the next level goes on from the mask without structure
    steps, trainings = whole.total * rounds + sparse * own, rounds + sparse
    if isinstance(settings, ConcreteSettings):
        steps, trainings = steps + tickets * mask_steps(settings, whole), trainings + tickets
    return Work(steps, trainings)


def chain_of(lab: Lab, request: SearchRequest) -> Work:
    """What a replicate trains of tickets without structure, which runs that differ in structure alone share."""
    settings = request.settings
    if not isinstance(settings, IterativeSettings):
        return _NONE
    whole = dense(lab, request)
    tickets = request.method.levels(settings) if request.method.levels else 1
    trained = tickets - _structured(request)
    return Work(trained * (whole.total - whole.at(settings.rewind)) if _rewinds(settings) else 0, trained)


def _structured(request: SearchRequest) -> bool:
    """Whether each level has two tickets: one with a structure, and one without, that the next goes on from."""
    return isinstance(request.settings, IterativeSettings) and request.settings.structure != "none"


def _plain(request: SearchRequest) -> SearchRequest:
    """The same search without structure and controls."""
    settings = request.settings
    if isinstance(settings, IterativeSettings):
        without: dict[str, Any] = {one.name: one.default for one in fields(Restructuring)}
        settings = replace(settings, **without)
    return replace(request, settings=settings, controls=(), control_densities=())


def _rewinds(settings: object) -> bool:
    return hasattr(settings, "rewind") and getattr(settings, "retrain", "") in ("", "continue", "rewind_lr")


def dense(lab: Lab, request: SearchRequest, replicate: int = 0) -> Segment:
    """The dense training of a replicate, which every method begins with."""
    seeds = request.seeds.replicate(replicate)
    return lab.segment(request.task, start=seeds.initialisation, order_seed=seeds.order, recipe=request.recipe)
