"""Run a campaign: train blocks of replicates until all claims are decided, or the time budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path

import filelock

from ticketry.errors import TicketryError, UsageError
from ticketry.evidence.level_verdicts import metric_resolution
from ticketry.experiments.options import LabOptions, open_lab
from ticketry.experiments.record_files import describe_environment, normalise_record, read_earlier_record
from ticketry.experiments.reproduce.blocks import (
    Block,
    FinishedBlocks,
    TimeEstimator,
    Work,
    block_provenance,
    dense_segment,
    next_blocks,
    order_by_decisions,
    split_run_into_blocks,
    updated_file_versions,
)
from ticketry.experiments.reproduce.campaign_file import COSTS, DENSITY, STABILITY, Campaign, Hypothesis
from ticketry.experiments.reproduce.claims import Decision, decide_claims, method_table
from ticketry.experiments.search import execute
from ticketry.experiments.stability import execute_stability
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import OnEvent
from ticketry.lab.store.files import explain_os_errors, write_atomically, write_with_digest
from ticketry.lab.store.paths import Paths, display_address
from ticketry.lab.store.references import find_result_in_second_data_order, seed_of_second_data_order
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.precision import non_default_choices
from ticketry.records.campaign import CampaignRecord, CampaignRun, Claim, PlannedTime, SecondOrderRun
from ticketry.records.network import DENSE, Point
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json
from ticketry.report.campaigns import markdown
from ticketry.report.wording import format_duration
from ticketry.report.writing import write_campaign_page
from ticketry.search.common.method import REPLICATE_ENDING_ERRORS


class DataOrderRepeats:
    """Trains each dense network of a campaign a second time, in another data order, unless the store has it.

    Both trainings start from the same weights, so the difference of their results shows the effect of chance alone (an
    A/A comparison). The difference is reported beside every claim.
    """

    def __init__(self, lab: Lab, campaign: Campaign, known: Iterable[SecondOrderRun]) -> None:
        self._lab, self._campaign = lab, campaign
        self._of = {name: _dense_network_digest(campaign, name) for name in campaign.runs}
        self._found = {(one.of, one.replicate): one for one in known if one.of in self._of.values()}

    @property
    def rows(self) -> tuple[SecondOrderRun, ...]:
        """Rows of the campaign record: one for each dense network that was trained again in another data order."""
        return tuple(self._found[key] for key in sorted(self._found))

    def merge(self, others: Iterable[SecondOrderRun]) -> None:
        """Add trainings in the second data order that another process has found or trained."""
        for one in others:
            mine = self._found.get((one.of, one.replicate))
            if one.of in self._of.values() and (mine is None or (one.trained and not mine.trained)):
                self._found[one.of, one.replicate] = one

    def add_stored(self, run: str, blocks: Sequence[RunRecord]) -> None:
        """Add the trainings in the second data order that the store already has for the finished `blocks`."""
        metric = self._campaign.runs[run].task.metric.name
        for replicate, dense_one in enumerate(_dense_network_rows(blocks)):
            if (self._of[run], replicate) in self._found or not dense_one.key:
                continue
            if (second := find_result_in_second_data_order(self._lab.store, dense_one.key)) is not None:
                key, result = second
                self._found[self._of[run], replicate] = SecondOrderRun(
                    of=self._of[run],
                    replicate=replicate,
                    value=float(result["metrics"]["test"][metric]),
                    key=key,
                    steps=result["cost"].get("steps", dense_one.steps or 0),
                    seconds=result["cost"]["train_seconds"],
                    trained=False,
                )

    def missing(self, block: Block) -> list[int]:
        """Return the replicates up to the end of `block` without a second training of their dense network."""
        return [one for one in range(block.last) if (self._of[block.run], one) not in self._found]

    def train(self, block: Block) -> None:
        """Train dense networks in another data order, where missing, for `block` and earlier blocks of its run."""
        unknown, run = self.missing(block), self._campaign.runs[block.run]
        began, of, metric = time.monotonic(), self._of[block.run], run.task.metric.name
        firsts = [dense_segment(self._lab, run, replicate) for replicate in unknown]
        segments = [replace(one, order_seed=seed_of_second_data_order(one.order_seed)) for one in firsts]
        labels = [f"replicate {replicate} dense (second order)" for replicate in unknown]
        before = self._lab.ledger.segments_trained
        results = self._lab.train_many(segments, labels=labels)
        new = self._lab.ledger.segments_trained - before
        seconds = (time.monotonic() - began) / max(len(unknown), 1)
        for number, (replicate, result) in enumerate(zip(unknown, results, strict=True)):
            self._found[of, replicate] = SecondOrderRun(
                of=of,
                replicate=replicate,
                value=result.metrics["test"][metric],
                key=result.segment.key,
                steps=result.segment.steps,
                seconds=round(seconds, 3),
                trained=number < new,
            )

    def data_order_differences(self, decision: Decision, done: Mapping[str, Sequence[RunRecord]]) -> tuple[float, ...]:
        """Return, per replicate, the dense network's metric in the second data order minus the metric in the first.

        The result is empty if the claim is about another quantity than the metric.
        """
        claim = decision.claim
        if not is_about_task_metric(claim):
            return ()
        run = claim.runs[0]
        values = [one.metric(claim.metric) for one in _dense_network_rows(done[run])][: decision.n]
        others = [self._found.get((self._of[run], replicate)) for replicate in range(len(values))]
        return tuple(one.value - value for one, value in zip(others, values, strict=True) if one is not None)


def is_about_task_metric(claim: Hypothesis) -> bool:
    """Return whether a claim is about the task's metric, so that two data orders can be compared."""
    return claim.metric not in (*COSTS, *STABILITY, DENSITY)


def _dense_network_rows(blocks: Sequence[RunRecord]) -> list[Point]:
    """Return the record rows of the dense networks in `blocks`, in order of replicates."""
    return [
        next(one for one in record.points if (one.replicate, one.role) == (replicate, DENSE))
        for record in blocks
        for replicate in range(record.replicates)
    ]


def _dense_network_digest(campaign: Campaign, run: str) -> str:
    """Return a digest of everything that determines a run's dense networks: task, recipe, seeds and arithmetic."""
    request = campaign.runs[run]
    precision, together = campaign.precisions[run], non_default_choices(precision="fp32", **campaign.together)
    parts = [dict(request.task.key()), asdict(request.recipe), asdict(request.seeds), precision]
    return digest_of([*parts, together] if together else parts)


Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Result of `reproduce`, with the campaign record, its pages, and the reason why training stopped."""

    record: CampaignRecord
    page: Path
    text: Path
    stopped: str = ""
    """Reason why training stopped early; empty if all claims were decided or have all planned replicates."""
    wanted: frozenset[str] = frozenset()
    planned: tuple[PlannedBlock, ...] = ()
    """The next blocks to train, in order, if the campaign was only planned; otherwise empty."""

    @property
    def failed(self) -> dict[str, str]:
        """Error messages, by name of the run, of failed runs that requested claims depend on."""
        rested_on = {side.run for one in self.record.claims if one.name in self.wanted for side in (one.a, one.b)}
        return {run.name: run.failed for run in self.record.runs if run.failed and run.name in rested_on}


@dataclass(frozen=True)
class PlannedBlock:
    """A block of replicates to train next, and its estimated time."""

    run: str
    first: int
    last: int
    """Number after the last replicate of the block."""
    seconds: float
    """Estimated time in seconds; a training that several blocks share counts for the first of them."""
    claims: tuple[str, ...]


def reproduce(
    campaign: Campaign,
    options: LabOptions,
    *,
    only: Iterable[str] = (),
    budget: float = math.inf,
    dry: bool = False,
    command: str = "",
    say: Say = lambda _: None,
    on_event: OnEvent | None = None,
) -> Outcome:
    """Train a campaign's runs until its claims are confirmed or rejected; stored trainings are used again.

    A run is trained in blocks of replicates. A finished block in the store is used if it was trained with the run's
    precision, threads and devices; its kernels may differ. New blocks use the kernels of this machine.

    If a run fails (an empty layer, a loss that is not finite), other runs continue. Claims that depend on the failed
    run stay undecided, and the record has the reason.

    Args:
        options: where to train; precision and kernels are taken from the campaign instead.
        only: names of claims to decide; by default all. The record contains all claims anyway.
        budget: time limit in seconds; a block is not begun if it is estimated to end later.
        dry: whether to estimate the training times and then stop without training.
    """
    wanted, campaign = _choose_claims(campaign, tuple(only)), replace(campaign, together=options.lab_arguments)
    with open_lab(options, None, on_event) as lab:
        work = _CampaignState(lab, campaign, command, say)
        work.write()
        stopped = work.train_until_decided(wanted, time.monotonic() + budget, dry=dry)
        return Outcome(work.write(), *work.write_pages(), stopped, frozenset(wanted), work.planned)


def _choose_claims(campaign: Campaign, only: tuple[str, ...]) -> set[str]:
    known = [claim.name for claim in campaign.claims]
    chosen = {name for name in known for asked in only if name == asked or name.startswith(f"{asked} at ")}
    for asked in only:
        if not any(name == asked or name.startswith(f"{asked} at ") for name in known):
            raise UsageError(f"the campaign {campaign.name} has no claim {asked!r}: it has {', '.join(known)}")
    return chosen or set(known)


class _CampaignState:
    """Carries out a campaign: trains missing blocks, decides claims, and writes the record."""

    def __init__(self, lab: Lab, campaign: Campaign, command: str, say: Say) -> None:
        self._lab, self._campaign, self._command, self._say = lab, campaign, command, say
        self._paths = Paths(lab.store.paths.root)
        self._name = f"{campaign.name}-{campaign.scale}"
        self._file = self._paths.campaign(self._name)
        earlier = read_earlier_record(self._file, CampaignRecord)
        self._versions = updated_file_versions(campaign, earlier)
        self._planned = earlier.planned_times if earlier else {}
        self._unwritten: dict[str, PlannedTime] = {}
        self._done = FinishedBlocks(campaign, self._paths)
        self._twins = DataOrderRepeats(lab, campaign, earlier.twins if earlier else ())
        for name, done in self._done.runs.items():
            self._twins.add_stored(name, done)
        self._clock = TimeEstimator(lab, campaign, self._twins.missing)
        self._resolution: dict[str, float | None] = {}
        self._decided: list[Decision] = []
        self._failed: dict[str, str] = {}
        """Error message of each failed run, by run."""
        self.planned: tuple[PlannedBlock, ...] = ()

    # -- deciding ----------------------------------------------------------------------------------------------------

    def train_until_decided(self, wanted: set[str], end: float, *, dry: bool) -> str:
        """Train blocks until all claims are decided; return the reason for an earlier stop, or the empty string."""
        while True:
            decisions = [one for one in self.decisions() if one.claim.name in wanted]
            open_ones = [one for one in decisions if not self._failed.keys() & set(one.claim.runs)]
            waiting = next_blocks(open_ones, self._done.counts)
            if not waiting:
                return ""
            known = dict(self._failed)
            waiting = order_by_decisions(waiting, lambda blocks: sum(self._estimate_seconds(blocks)))
            planned = tuple(
                PlannedBlock(block.run, block.first, block.last, seconds, claims)
                for (block, claims), seconds in zip(waiting.items(), self._estimate_seconds(list(waiting)), strict=True)
            )
            runs = {run for one in open_ones if one.needs_replicates for run in one.claim.runs}
            rest = [
                one
                for run in runs
                for one in split_run_into_blocks(run, self._campaign.plans[run])[self._done.counts[run] :]
            ]
            most = sum(self._estimate_seconds(rest))
            if self._failed != known:
                continue
            left = sum(one.seconds for one in planned)
            decided = sum(one.found != "undecided" for one in decisions)
            self._say(
                f"{decided} of {len(decisions)} claims decided; the next analysis of the others takes about"
                f" {format_duration(left)}, and all that is planned at most {format_duration(most)}"
            )
            if dry:
                self.planned = planned
                return "only planned"
            room = end - time.monotonic()
            block = next((one for one in waiting if self._clock.estimate(one) <= room), None)
            if block is None:
                least = min(map(self._clock.estimate, waiting))
                return f"the budget is spent: the shortest of what comes next takes about {format_duration(least)}"
            try:
                self._train_block(block, waiting[block])
            except REPLICATE_ENDING_ERRORS as error:
                self._add_failure(block, error)

    def _add_failure(self, block: Block, error: TicketryError) -> None:
        self._failed[block.run] = str(error)
        self._say(f"{block.run} failed, and claims that depend on it stay undecided: {error}")

    def _estimate_seconds(self, blocks: Sequence[Block]) -> list[float]:
        """Return the estimated seconds of each block; a training that several blocks share counts for the first.

        The seconds are 0 if the block's run has failed before, or fails during this estimate.
        """
        counted, found = set[str](), []
        for block in blocks:
            seconds = 0.0
            if block.run not in self._failed:
                try:
                    seconds = self._clock.estimate(block, counted)
                except REPLICATE_ENDING_ERRORS as error:
                    self._add_failure(block, error)
            found.append(seconds)
        return found

    def decisions(self) -> list[Decision]:
        """Return the decision of every claim, judged by the finished blocks."""
        if self._decided:
            return self._decided
        for name, done in self._done.runs.items():
            if done and name not in self._resolution:  # sizes need the data, which other runs may not need yet
                task = self._campaign.runs[name].task
                self._resolution[name] = metric_resolution(task.metric.unit, self._lab.sizes(task)["test"])
        self._decided = decide_claims(self._campaign.claims, self._done.runs, self._resolution, self._done.stable)
        return self._decided

    def _train_block(self, block: Block, claims: tuple[str, ...]) -> None:
        planned, shared = self._clock.estimate(block), self._clock.dense_work(block)
        many = f"{len(claims)} claims" if len(claims) > 1 else claims[0]
        count = block.last - block.first
        more = f"{count} {'more ' if block.first else ''}replicate{'s' if count > 1 else ''}, {block.last} in all"
        self._say(f"{block.run}: {more}, about {format_duration(planned)}, for {many}")
        began, before = time.monotonic(), self._lab.ledger.copy()
        request, settings = block.search_request(self._campaign), self._campaign.stability.get(block.run)
        with self._campaign.with_arithmetic(self._lab, block.run):
            if settings is None:
                self._done.add(block, execute(self._lab, request, command=self._command))
            else:
                record, (searched,) = execute_stability(self._lab, request, settings, command=self._command)
                self._done.add(block, searched, record)
            self._twins.train(block)
        self._decided = []
        seconds, did = time.monotonic() - began, self._lab.ledger.since(before)
        if 4 * did.steps_trained > did.steps_asked:  # else much of the time went into reading the store
            self._clock.learn_pace(block, seconds, Work(did.steps_trained, did.segments_trained), shared)
        self._unwritten[block.run] = PlannedTime(planned, seconds)
        self.write()

    # -- the record --------------------------------------------------------------------------------------------------

    def write(self) -> CampaignRecord:
        """Write and return the campaign record with all blocks finished so far, also by other processes."""
        for name in self._done.refresh():
            self._twins.add_stored(name, self._done.runs[name])
            self._decided = []
        lock = filelock.FileLock(self._file.with_name(f".{self._file.name}.lock"))
        with explain_os_errors(self._file, "write"):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            locked = lock.acquire()
        with locked:  # other processes may write the same campaign: add their planned times and second trainings
            there = read_earlier_record(self._file, CampaignRecord)
            planned = dict(there.planned_times if there else self._planned)
            for run, times in self._unwritten.items():
                planned[run] = planned.get(run, PlannedTime()).add(times)
            self._planned, self._unwritten = planned, {}
            self._twins.merge(there.twins if there else ())
            record = normalise_record(self._build_record())
            write_with_digest(self._file, as_json(record))
        return record

    def _build_record(self) -> CampaignRecord:
        campaign, twins = self._campaign, self._twins.rows
        costs = [one.cost for name, done in self._done.runs.items() for one in self._done.stable.get(name, done)]
        runs = tuple(self._build_run_record(name) for name in campaign.runs)
        seconds = {run.name: run.seconds for run in runs}
        decisions = self.decisions()
        first, run = next(iter(campaign.runs.items()))
        with campaign.with_arithmetic(self._lab, first):
            environment = describe_environment(self._lab, self._lab.arithmetic(run.task))
        times = reduce(PlannedTime.add, self._planned.values(), PlannedTime())
        return CampaignRecord(
            name=self._name,
            title=campaign.title,
            paper=campaign.paper,
            scale=campaign.scale,
            files=self._versions,
            claims=tuple(
                self._build_claim_record(one, sum(seconds[run] for run in one.claim.runs)) for one in decisions
            ),
            runs=runs,
            table=tuple(method_table(campaign, self._done.runs)),
            twins=twins,
            metric=run.task.metric.name,
            planned_seconds=times.planned,
            planned_took=times.took,
            seconds=sum(seconds.values()) + sum(one.seconds for one in twins),
            segments_asked=sum(one.segments_asked or 0 for one in costs) + len(twins),
            segments_trained=sum(one.segments_trained or 0 for one in costs) + sum(one.trained for one in twins),
            steps_trained=sum(one.steps_trained or 0 for one in costs) + sum(one.trained * one.steps for one in twins),
            environment=environment,
            command=self._command,
            config=campaign.text,
            store=display_address(self._paths.root),
        )

    def _build_claim_record(self, decision: Decision, seconds: float) -> Claim:
        noise = self._twins.data_order_differences(decision, self._done.runs)
        lacking = decision.n - len(noise) if is_about_task_metric(decision.claim) else 0
        return decision.to_record(seconds, noise, lacking)

    def write_pages(self) -> tuple[Path, Path]:
        """Write the HTML page and the Markdown page; return their paths."""
        record = self.write()
        text = self._file.with_suffix(".md")
        write_atomically(text, markdown(record).encode())
        return write_campaign_page(record, self._file.with_suffix(".html")), text

    def _build_run_record(self, name: str) -> CampaignRun:
        request, done = self._campaign.runs[name], self._done.runs[name]
        times = self._planned.get(name)
        return CampaignRun(
            name=name,
            method=request.method.name,
            title=request.method.title,
            task=request.task.name,
            model=str(request.task.key().get("model", "")),
            settings=request.stored_settings,
            recipe=asdict(request.recipe),
            controls=request.controls,
            replicates=sum(one.replicates for one in done),
            runs=tuple(one.name for one in done),
            blocks=tuple(block_provenance(done)),
            planned_seconds=times and times.planned,
            planned_took=times and times.took,
            seconds=sum(one.cost.wall_seconds or 0.0 for one in self._done.stable.get(name, done)),  # with searches
            failed=self._failed.get(name, ""),
        )
