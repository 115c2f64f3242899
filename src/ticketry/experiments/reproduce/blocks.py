"""Blocks of replicates of a campaign: find the finished and the missing blocks, and choose the order of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ticketry.errors import StoreError
from ticketry.evidence.comparison import InterimAnalyses
from ticketry.experiments.record_files import current_time, read_earlier_record
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.claims import Decision
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.stability import record_name
from ticketry.lab.store.files import path_exists
from ticketry.lab.store.paths import Paths
from ticketry.lab.training.precision import non_default_choices
from ticketry.records.campaign import BlockProvenance, CampaignRecord, FileVersion
from ticketry.records.evidence import StabilityRecord
from ticketry.records.network import DENSE
from ticketry.records.run import RunRecord


@dataclass(frozen=True)
class Block:
    """The replicates of a run between one interim analysis and the next, which are searched together."""

    run: str
    index: int
    first: int
    last: int
    """Number after the last replicate of the block."""

    def request(self, campaign: Campaign) -> SearchRequest:
        """Return the search request for the block's replicates, each with its own seeds."""
        one, chosen = (
            campaign.runs[self.run],
            non_default_choices(precision=campaign.precisions[self.run], **campaign.together),
        )
        count, seeds = self.last - self.first, one.seeds.replicate(self.first)
        return replace(one, replicates=count, seeds=seeds, arithmetic=chosen)

    def stored_request(self, campaign: Campaign, paths: Paths) -> SearchRequest:
        """Return the search request for the block's replicates, with its name in the store."""
        return self.request(campaign).with_stored_name(paths)


def blocks_of(run: str, plan: InterimAnalyses) -> list[Block]:
    """Return all blocks of a run, up to the limit of its plan."""
    ends = (0, *plan.at)
    return [Block(run, index, ends[index], ends[index + 1]) for index in range(len(plan.at))]


def finished_blocks(campaign: Campaign, run: str, paths: Paths) -> Iterator[tuple[Block, RunRecord]]:
    """Yield the finished blocks of a run in a store with their records; stop before the first missing block."""
    for block in blocks_of(run, campaign.plans[run]):
        file = paths.run(block.stored_request(campaign, paths).name) / "run.json"
        found = read_earlier_record(file, RunRecord)
        if found is None or found.ended or found.environment.get("precision") != campaign.precisions[run]:
            return
        if why := _find_defect(found, block, campaign.runs[run].task.metric.name):
            raise StoreError(f"{file} is not what the campaign's run {run} would write: {why}. Remove it: ticketry rm")
        yield block, found


def _find_defect(found: RunRecord, block: Block, metric: str) -> str:
    """Return the reason why a stored record of a block cannot be judged; the empty string if it can be judged."""
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
    """Return the next block of each run that undecided claims need, with their names; the most needed block first.

    A claim that more replicates cannot decide (`Decision.unknown`) needs no block.

    Args:
        decisions: decisions of all claims so far.
        done: number of finished blocks of each run.
    """
    waiting: dict[Block, list[str]] = {}
    for one in decisions:
        if not one.needs_replicates:
            continue
        runs = one.claim.runs
        plan = one.claim.plan
        behind = min(done.get(run, 0) for run in runs)
        for run in runs:
            if done.get(run, 0) == behind < len(plan.at):
                waiting.setdefault(blocks_of(run, plan)[behind], []).append(one.claim.name)
    ranked = sorted(waiting, key=lambda block: (-len(waiting[block]), block.index, block.run))
    return {block: tuple(waiting[block]) for block in ranked}


def order_by_decisions(
    waiting: Mapping[Block, tuple[str, ...]], seconds: Callable[[tuple[Block, ...]], float]
) -> dict[Block, tuple[str, ...]]:
    """Return the blocks in an order that decides many claims per second.

    A claim can be judged when all its blocks are done. Each step chooses the blocks of one claim: those that complete
    the most claims per second.

    Args:
        waiting: blocks, with the claims that need each block; see `next_blocks`.
        seconds: function that returns the seconds of several blocks, trained one after the other.
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
    """Holds the records of a campaign's finished blocks in a store, by run, and their stability analyses."""

    def __init__(self, campaign: Campaign, paths: Paths) -> None:
        self._campaign, self._paths = campaign, paths
        self.runs: dict[str, list[RunRecord]] = {name: [] for name in campaign.runs}
        self.stable: dict[str, list[StabilityRecord]] = {name: [] for name in campaign.stability}
        for name in campaign.runs:
            self._read_run(name)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of finished blocks of each run."""
        return {name: len(done) for name, done in self.runs.items()}

    def add(self, block: Block, record: RunRecord, analysed: StabilityRecord | None = None) -> None:
        """Add a finished block: its record, and its stability analysis."""
        self.runs[block.run].append(record)
        if analysed is not None:
            self.stable[block.run].append(analysed)

    def refresh(self) -> list[str]:
        """Add blocks that other processes have finished in the store; return the names of runs with new blocks."""
        grown = []
        for name, count in self.counts.items():
            blocks = blocks_of(name, self._campaign.plans[name])
            if count < len(blocks) and self._is_finished(blocks[count]):
                self._read_run(name)
                if len(self.runs[name]) > count:
                    grown.append(name)
        return grown

    def _is_finished(self, block: Block) -> bool:
        return path_exists(self._paths.run(block.stored_request(self._campaign, self._paths).name) / "run.json")

    def _read_run(self, run: str) -> None:
        pairs = list(self._read_blocks(run))
        self.runs[run] = [record for record, _ in pairs]
        if run in self.stable:
            self.stable[run] = [analysed for _, analysed in pairs if analysed is not None]

    def _read_blocks(self, run: str) -> Iterator[tuple[RunRecord, StabilityRecord | None]]:
        settings = self._campaign.stability.get(run)
        for block, found in finished_blocks(self._campaign, run, self._paths):
            analysed = None
            if settings is not None:
                name = record_name(block.stored_request(self._campaign, self._paths), settings)
                analysed = read_earlier_record(self._paths.evidence(name), StabilityRecord)
                if analysed is None or analysed.environment.get("precision") != self._campaign.precisions[run]:
                    return
            yield found, analysed


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


def file_versions(campaign: Campaign, earlier: CampaignRecord | None) -> tuple[FileVersion, ...]:
    """Return all digests that the campaign file has had, with the dates when they were first seen."""
    known = earlier.files if earlier else ()
    if known and known[-1].sha256 == campaign.sha256:
        return known
    return (*known, FileVersion(campaign.sha256, current_time()))
