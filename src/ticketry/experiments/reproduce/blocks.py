"""Find the finished and missing blocks of replicates of a campaign, and estimate how long missing blocks take."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

from ticketry.errors import NotStoredError, StoreError
from ticketry.evidence.comparison import InterimAnalyses
from ticketry.evidence.control import explain_undefined_control
from ticketry.evidence.controls import train_any_control
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.record_files import current_time, read_earlier_record
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.claims import Decision
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.stability import stability_record_name
from ticketry.lab.lab import Lab
from ticketry.lab.runners.choice import IN_PROCESS, PROCESSES
from ticketry.lab.runners.runner import Event
from ticketry.lab.search_result import Found, Seeds
from ticketry.lab.store.files import path_exists
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.references import seed_of_second_data_order
from ticketry.lab.store.store import open_store
from ticketry.lab.training.precision import non_default_choices
from ticketry.lab.training.segment import Segment
from ticketry.records.campaign import BlockProvenance, CampaignRecord, FileVersion
from ticketry.records.evidence import StabilityRecord
from ticketry.records.network import DENSE
from ticketry.records.run import RunRecord
from ticketry.search import Training


@dataclass(frozen=True)
class Block:
    """Replicates of a run that are trained together; after each block, the claims are analysed again."""

    run: str
    index: int
    first: int
    last: int
    """Number after the last replicate of the block."""

    def search_request(self, campaign: Campaign) -> SearchRequest:
        """Return the search request for the block's replicates, each with its own seeds."""
        one = campaign.runs[self.run]
        chosen = non_default_choices(precision=campaign.precisions[self.run], **campaign.together)
        seeds = one.seeds.replicate(self.first)
        return replace(one, replicates=self.last - self.first, seeds=seeds, arithmetic=chosen)


def split_run_into_blocks(run: str, plan: InterimAnalyses) -> list[Block]:
    """Return all blocks (replicates trained together) of a run, up to the largest number of replicates in `plan`."""
    ends = (0, *plan.at)
    return [Block(run, index, ends[index], ends[index + 1]) for index in range(len(plan.at))]


def finished_blocks(campaign: Campaign, run: str, paths: Paths) -> Iterator[tuple[Block, RunRecord]]:
    """Yield each finished block of a run with its record; stop before the first block that the store lacks."""
    for block in split_run_into_blocks(run, campaign.plans[run]):
        file = paths.run(block.search_request(campaign).with_stored_name(paths).name) / "run.json"
        found = read_earlier_record(file, RunRecord)
        if found is None or found.ended or found.environment.get("precision") != campaign.precisions[run]:
            return
        if why := _explain_unusable_record(found, block, campaign.runs[run].task.metric.name):
            raise StoreError(f"{file} is not what the campaign's run {run} would write: {why}. Remove it: ticketry rm")
        yield block, found


def _explain_unusable_record(found: RunRecord, block: Block, metric: str) -> str:
    """Return why the stored record of a block cannot be used for claims; the empty string if it can be used."""
    count = block.last - block.first
    if found.replicates != count:
        return f"replicates must be {count}, got {found.replicates}"
    if found.task.metric.name != metric:
        return f"metric must be {metric}, got {found.task.metric.name}"
    dense = {point.replicate for point in found.points if point.role == DENSE}
    if without := set(range(count)) - dense:
        return f"replicate {min(without)} has no dense network"
    used = found.environment.get("kernels_used", [])
    if not isinstance(used, list) or not all(isinstance(one, str) for one in used):
        return f"kernels_used is {used!r:.60}"
    return ""


def next_blocks(decisions: Sequence[Decision], done: Mapping[str, int]) -> dict[Block, tuple[str, ...]]:
    """Return each run's next block, with the undecided claims that need it; blocks that most claims need are first."""
    waiting: dict[Block, list[str]] = {}
    for one in decisions:
        if not one.needs_replicates:
            continue
        runs = one.claim.runs
        plan = one.claim.plan
        behind = min(done.get(run, 0) for run in runs)
        for run in runs:
            if done.get(run, 0) == behind < len(plan.at):
                waiting.setdefault(split_run_into_blocks(run, plan)[behind], []).append(one.claim.name)
    ranked = sorted(waiting, key=lambda block: (-len(waiting[block]), block.index, block.run))
    return {block: tuple(waiting[block]) for block in ranked}


def order_by_decisions(
    waiting: Mapping[Block, tuple[str, ...]], seconds: Callable[[tuple[Block, ...]], float]
) -> dict[Block, tuple[str, ...]]:
    """Return the blocks of `waiting` in an order that decides many claims early.

    A claim can be judged when all its blocks are done. Each step appends the missing blocks of one claim. It chooses
    the claim whose blocks complete the most claims per second.

    Args:
        waiting: for each block, the names of the claims that need it.
        seconds: function that returns the seconds of training several blocks one after the other.
    """
    needed: dict[str, tuple[Block, ...]] = {}
    for block, claims in waiting.items():
        for claim in claims:
            needed[claim] = (*needed.get(claim, ()), block)
    order: dict[Block, tuple[str, ...]] = {}
    take = cache(seconds)
    while needed:
        turns = {
            blocks: sum(other <= set(blocks) for other in map(set, needed.values()))
            for blocks in dict.fromkeys(needed.values())
        }
        best = max(turns, key=lambda blocks: turns[blocks] / max(take(blocks), 1e-3))
        order |= {block: waiting[block] for block in best}
        left = {claim: tuple(block for block in blocks if block not in order) for claim, blocks in needed.items()}
        needed = {claim: blocks for claim, blocks in left.items() if blocks}
    return order


class FinishedBlocks:
    """Holds, by run, the records and stability analyses of a campaign's finished blocks."""

    def __init__(self, campaign: Campaign, paths: Paths) -> None:
        self._campaign, self._paths = campaign, paths
        self.runs: dict[str, list[RunRecord]] = {name: [] for name in campaign.runs}
        self.stable: dict[str, list[StabilityRecord]] = {name: [] for name in campaign.stability}
        for name in campaign.runs:
            self._read_finished_blocks(name)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of finished blocks of each run."""
        return {name: len(done) for name, done in self.runs.items()}

    def add(self, block: Block, record: RunRecord, analysed: StabilityRecord | None = None) -> None:
        """Add the record of a finished block, and its stability analysis if it has one."""
        self.runs[block.run].append(record)
        if analysed is not None:
            self.stable[block.run].append(analysed)

    def refresh(self) -> list[str]:
        """Add the blocks that other processes have finished meanwhile; return the names of runs with new blocks."""
        grown = []
        for name, count in self.counts.items():
            blocks = split_run_into_blocks(name, self._campaign.plans[name])
            if count == len(blocks):
                continue
            request = blocks[count].search_request(self._campaign).with_stored_name(self._paths)
            if path_exists(self._paths.run(request.name) / "run.json"):
                self._read_finished_blocks(name)
                if len(self.runs[name]) > count:
                    grown.append(name)
        return grown

    def _read_finished_blocks(self, run: str) -> None:
        settings, records, analyses = self._campaign.stability.get(run), list[RunRecord](), list[StabilityRecord]()
        for block, found in finished_blocks(self._campaign, run, self._paths):
            if settings is not None:
                name = stability_record_name(
                    block.search_request(self._campaign).with_stored_name(self._paths), settings
                )
                analysed = read_earlier_record(self._paths.evidence(name), StabilityRecord)
                if analysed is None or analysed.environment.get("precision") != self._campaign.precisions[run]:
                    break
                analyses.append(analysed)
            records.append(found)
        self.runs[run] = records
        if run in self.stable:
            self.stable[run] = analyses


def block_provenance(done: Iterable[RunRecord]) -> Iterator[BlockProvenance]:
    """Yield, for each finished block, the precision, kernels, processor and date of its training."""
    first = 0
    for one in done:
        yield BlockProvenance(
            first=first,
            last=first + one.replicates,
            precision=str(one.environment.get("precision", "")),
            kernels=tuple(one.environment.get("kernels_used", ())),
            processor=str(one.environment.get("processor", "")),
            date=str(one.environment.get("date", "")),
        )
        first += one.replicates


def updated_file_versions(campaign: Campaign, earlier: CampaignRecord | None) -> tuple[FileVersion, ...]:
    """Return all versions of the campaign file: the SHA-256 of each, and the date when it was first used."""
    known = earlier.files if earlier else ()
    if known and known[-1].sha256 == campaign.sha256:
        return known
    return (*known, FileVersion(campaign.sha256, current_time()))


@dataclass(frozen=True)
class Work:
    """An amount of training: the number of trainings, and their steps in total."""

    steps: int = 0
    trainings: int = 0

    def subtract(self, other: Work) -> Work:
        """Return the work minus the steps and trainings of `other`; negative numbers become 0."""
        return Work(max(self.steps - other.steps, 0), max(self.trainings - other.trainings, 0))

    def multiply_by(self, count: int) -> Work:
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
        """Return the seconds that `work` takes at this pace."""
        return work.steps * self.step + work.trainings * self.training


class TimeEstimator:
    """Estimates the seconds that blocks take to train.

    A run is assumed to continue at the pace of its last finished block. Before its first block, a step is assumed to
    take as long as a step of its dense networks, which is rough for sparse kernels and gates. Dense networks that
    several runs share count once; other shared trainings count for each run.

    Args:
        twins: returns the replicates, up to the end of a block, whose dense network was not yet trained a second time
        in another data order.
    """

    def __init__(self, lab: Lab, campaign: Campaign, twins: Callable[[Block], Sequence[int]]) -> None:
        self._lab, self._campaign, self._twins = lab, campaign, twins
        self._pace: dict[str, Pace] = {}
        """Pace of the first steps of dense networks, by key of the first."""
        self._seen: dict[str, Pace] = {}
        """Pace of the last finished block of each run."""
        self._there: dict[Block, Work] = {}

    def learn_pace(self, block: Block, seconds: float, trained: Work, shared: Work) -> None:
        """Compute a run's pace (time per step) from a finished block, for later estimates.

        Args:
            seconds: seconds that training the block took.
            trained: work of the trainings that were not in the store.
            shared: work of the dense networks, which `dense_work` returned before the block began.
        """
        own, seconds = trained.subtract(shared), seconds - self._estimate_work(block, shared, dense=True)
        if own.trainings and own.steps and seconds > 0:
            self._seen[block.run] = Pace(seconds / own.steps)

    def estimate(self, block: Block, counted: set[str] | None = None) -> float:
        """Return the estimated seconds of the block's trainings that the store lacks.

        Args:
            counted: keys of dense networks that are counted already; the keys of this block's networks are added.
        """
        known = set[str]() if counted is None else counted
        every = planned_work(self._lab, block.search_request(self._campaign), self._campaign.stability.get(block.run))
        left = every.multiply_by(block.last - block.first).subtract(self._stored_work(block))
        return self._estimate_work(block, left) + self._estimate_work(block, self.dense_work(block, known), dense=True)

    def _stored_work(self, block: Block) -> Work:
        """Return the work of a block's stored trainings, without dense networks; later calls return the same result."""
        whole = self._dense_segments(block.run, range(block.first, block.last))
        if len(self._missing_segments(whole)) == len(whole):
            return Work()  # without dense networks there is nothing else
        if block not in self._there:
            with self._campaign.with_arithmetic(self._lab, block.run):
                self._there[block] = stored_work(self._lab, block.search_request(self._campaign))
        return self._there[block]

    def _dense_segments(self, run: str, replicates: Sequence[int]) -> list[Segment]:
        """Return the segments (trainings up to a step) of a run's dense networks, in the first data order."""
        with self._campaign.with_arithmetic(self._lab, run):
            return [dense_segment(self._lab, self._campaign.runs[run], replicate) for replicate in replicates]

    def _missing_segments(self, segments: Sequence[Segment]) -> list[Segment]:
        return [one for one in segments if self._lab.store.load_valid_result(one.trajectory, one.last) is None]

    def dense_work(self, block: Block, counted: set[str] | None = None) -> Work:
        """Return the work of the block's dense trainings that the store lacks, including second data orders.

        Args:
            counted: keys of dense networks that are counted already; the keys of this block's networks are added.
        """
        known = set[str]() if counted is None else counted
        whole = self._dense_segments(block.run, range(block.first, block.last))
        twins = [
            replace(one, order_seed=seed_of_second_data_order(one.order_seed))
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
        return self._measure_dense_pace(block.run).seconds(work) / self._count_parallel_trainings(
            block.last - block.first
        )

    def _count_parallel_trainings(self, replicates: int) -> int:
        return min(max(self._lab.workers, 1), replicates)

    def _measure_dense_pace(self, run: str) -> Pace:
        """Return the time per step of a run's dense networks; the first call measures it."""
        whole = self._dense_segments(run, range(self._count_parallel_trainings(self._campaign.plans[run].at[0])))
        if (key := whole[0].key) not in self._pace:
            self._pace[key] = measure_pace(self._lab, whole)
        return self._pace[key]


_WARM_STEPS, _REMOTE_STEPS, _MOST_STEPS = 3, 100, 1000
"""Number of steps before the timing; of timed steps on other machines; and largest number of timed steps."""
_LONG_ENOUGH = 1.0
"""Seconds of timed steps after which the timing ends."""
_FORWARD = 1 / 3
"""Fraction of a step's time in the forward pass."""


def measure_pace(lab: Lab, whole: Sequence[Segment]) -> Pace:
    """Time the first steps of dense trainings that run at the same time, and return their pace.

    Local workers train in a
    temporary store, and the number of steps is doubled until their training takes a second. Workers on other machines
    train the first steps in the lab's store, and the search later continues from this result.
    """
    if lab.on not in (PROCESSES, IN_PROCESS):
        first = [one.shortened_to(min(_REMOTE_STEPS, one.last)) for one in whole]
        done = lab.train_many(first, labels=["to measure a step"] * len(first), measure=False)
        return Pace(fmean(one.train_seconds / one.segment.last for one in done))
    with tempfile.TemporaryDirectory(prefix="ticketry-pace-") as folder:
        store = open_store(Path(folder))

        def time_training_to(step: int) -> tuple[float, float]:
            done = lab.train_aside([one.shortened_to(step) for one in whole], store.address, measure=False)
            return fmean(one.train_seconds for one in done), fmean(one.other_seconds for one in done)

        last = whole[0].last
        at = min(_WARM_STEPS, last - 1)
        (took, beside), count = time_training_to(at), max(at, 1)  # also starts processes and reads the data
        while at < min(last, _MOST_STEPS) and (at <= _WARM_STEPS or took < _LONG_ENOUGH):
            then = min(at + max(4, at), last)
            (took, beside), count, at = time_training_to(then), then - at, then
    sizes = lab.sizes(whole[0].task)
    batches = whole[0].per_epoch * (sizes["validation"] + sizes["test"]) / max(sizes["train"], 1)
    step = took / count
    return Pace(step, beside + _FORWARD * step * batches)


def planned_work(lab: Lab, request: SearchRequest, stability: StabilitySettings | None = None) -> Work:
    """Return the planned work of one replicate of a search, without its dense network."""
    whole = dense_segment(lab, request)
    planned, tickets = request.plan or [Training(level=1)], request.tickets or [Training(level=1)]
    found = Work(sum(one.steps(whole) for one in planned), len(planned))
    for ticket in tickets:
        found += Work(ticket.control_steps(whole), 1).multiply_by(request.count_controls(ticket))
    if stability is not None:
        # Other masks are trained in both orders, unless one of them is a control anyway.
        others = sum(2 - (role in request.controls) for role in stability.analysed_roles if role)
        again = Work(tickets[-1].control_steps(whole), 1)
        found += again.multiply_by((len(stability.at) or len(tickets)) * (1 + others) + stability.dense)
    return found


def dense_segment(lab: Lab, request: SearchRequest, replicate: int = 0) -> Segment:
    """Return the segment (a training up to a step) of a replicate's dense network."""
    seeds = request.seeds.replicate(replicate)
    return lab.segment(request.task, start=seeds.initialisation, order_seed=seeds.order, recipe=request.recipe)


def stored_work(lab: Lab, request: SearchRequest) -> Work:
    """Return the work of a search's stored trainings, without its dense networks.

    To find these trainings, run the search without training; each replicate stops at its first missing training.
    A stored result counts even if its weights are not in the store.
    """
    there: dict[str, int] = {}

    def note_stored_training(event: Event) -> None:
        if event.kind == "cached":
            there[event.key] = event.last - event.first

    for number in range(request.replicates):
        seeds = request.seeds.replicate(number)

        def replay_controls(_: int, found: Found, seeds: Seeds = seeds) -> None:
            if found.mask is None:
                return
            for control in request.controls_for(found.level, lab.store.get_mask(found.mask).density):
                if not explain_undefined_control(control, found):
                    with contextlib.suppress(NotStoredError):
                        train_any_control(lab, request.task, control, found, seeds, label=control)

        with lab.training_nothing(), lab.listening(note_stored_training), contextlib.suppress(NotStoredError):
            request.method(
                *(lab, request.task, request.settings),
                recipe=request.recipe,
                replicates=1,
                seeds=seeds,
                on_found=replay_controls,
            )
    own = {dense_segment(lab, request, number).trajectory for number in range(request.replicates)}
    steps = [count for key, count in there.items() if key.partition("@")[0] not in own]
    return Work(sum(steps), len(steps))
