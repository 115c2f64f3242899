"""What of a campaign is missing, and what comes first: that by which most claims an hour can be decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ticketry.errors import StoreError
from ticketry.evidence.judging.interim_analyses import InterimAnalyses
from ticketry.experiments.record_files import earlier_record, now
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.claims import Decision
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.stability import record_name
from ticketry.lab.store.files import is_there
from ticketry.lab.store.paths import Paths
from ticketry.lab.training.precision import unusual
from ticketry.records.campaign import BlockProvenance, CampaignRecord, FileVersion
from ticketry.records.evidence import StabilityRecord
from ticketry.records.network import DENSE
from ticketry.records.run import RunRecord


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
        one, chosen = campaign.runs[self.run], unusual(precision=campaign.precisions[self.run], **campaign.together)
        count, seeds = self.last - self.first, one.seeds.replicate(self.first)
        return replace(one, replicates=count, seeds=seeds, arithmetic=chosen)

    def stored(self, campaign: Campaign, paths: Paths) -> SearchRequest:
        """The same with the name that a store has it by."""
        return self.request(campaign).as_stored(paths)


def blocks_of(run: str, plan: InterimAnalyses) -> list[Block]:
    """All blocks of a run, up to the limit."""
    ends = (0, *plan.at)
    return [Block(run, index, ends[index], ends[index + 1]) for index in range(len(plan.at))]


def blocks_done(campaign: Campaign, run: str, paths: Paths) -> Iterator[tuple[Block, RunRecord]]:
    """Those of a run that a store has in its arithmetic, from the first up to one that is missing."""
    for block in blocks_of(run, campaign.plans[run]):
        file = paths.run(block.stored(campaign, paths).name) / "run.json"
        found = earlier_record(file, RunRecord)
        if found is None or found.ended or found.environment.get("precision") != campaign.precisions[run]:
            return
        if why := _lacking(found, block, campaign.runs[run].task.metric.name):
            raise StoreError(f"{file} is not what the campaign's run {run} would write: {why}. Remove it: ticketry rm")
        yield block, found


def _lacking(found: RunRecord, block: Block, metric: str) -> str:
    """What a block's record lacks to be judged by, as a stranger's may; of tickets and controls a claim says so."""
    count = block.last - block.first
    if found.replicates != count:
        return f"it is of {found.replicates} replicates, not {count}"
    if found.task.metric.name != metric:
        return f"its metric is {found.task.metric.name}, not {metric}"
    dense = {point.replicate for point in found.points if point.role == DENSE}
    if without := set(range(count)) - dense:
        return f"replicate {min(without)} has no dense network"
    used = found.environment.get("kernels_used", [])
    if not isinstance(used, list) or not all(isinstance(one, str) for one in used):
        return f"kernels_used is {used!r:.60}"
    return ""


def missing(decisions: Sequence[Decision], done: Mapping[str, int]) -> dict[Block, tuple[str, ...]]:
    """The next blocks that undecided claims wait for, with the claims: what most of them need comes first. A claim that
    no further replicate can decide (`Decision.unknown`) waits for none.

    Args:
        done: blocks of each run that are done.
    """
    waiting: dict[Block, list[str]] = {}
    for one in decisions:
        if not one.waits:
            continue
        runs = one.claim.runs
        plan = one.claim.plan
        behind = min(done.get(run, 0) for run in runs)
        for run in runs:
            if done.get(run, 0) == behind < len(plan.at):
                waiting.setdefault(blocks_of(run, plan)[behind], []).append(one.claim.name)
    ranked = sorted(waiting, key=lambda block: (-len(waiting[block]), block.index, block.run))
    return {block: tuple(waiting[block]) for block in ranked}


def in_turn(
    waiting: Mapping[Block, tuple[str, ...]], seconds: Callable[[tuple[Block, ...]], float]
) -> dict[Block, tuple[str, ...]]:
    """The same blocks, in the order in which the most claims a second can be looked at again, turn by turn.

    A claim can be when all that it waits for is done: a turn is of the blocks of one claim, and counts all claims that
    wait for nothing else.

    Args:
        waiting: blocks, and the claims that wait for each; see `missing`.
        seconds: what blocks take one after the other.
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


class Done:
    """Finished blocks of each run, and what was analysed of those that are told to be."""

    def __init__(self, campaign: Campaign, paths: Paths) -> None:
        self._campaign, self._paths = campaign, paths
        self.runs: dict[str, list[RunRecord]] = {name: [] for name in campaign.runs}
        self.stable: dict[str, list[StabilityRecord]] = {name: [] for name in campaign.stability}
        for name in campaign.runs:
            self._read(name)

    @property
    def counts(self) -> dict[str, int]:
        """Blocks of each run."""
        return {name: len(done) for name, done in self.runs.items()}

    def add(self, block: Block, record: RunRecord, analysed: StabilityRecord | None = None) -> None:
        """A block that was searched just now."""
        self.runs[block.run].append(record)
        if analysed is not None:
            self.stable[block.run].append(analysed)

    def look(self) -> list[str]:
        """Take what other processes have finished since, in the same store; the runs that have more blocks."""
        grown = []
        for name, count in self.counts.items():
            blocks = blocks_of(name, self._campaign.plans[name])
            if count < len(blocks) and self._file(blocks[count]):
                self._read(name)
                if len(self.runs[name]) > count:
                    grown.append(name)
        return grown

    def _file(self, block: Block) -> bool:
        return is_there(self._paths.run(block.stored(self._campaign, self._paths).name) / "run.json")

    def _read(self, run: str) -> None:
        pairs = list(self._blocks(run))
        self.runs[run] = [record for record, _ in pairs]
        if run in self.stable:
            self.stable[run] = [analysed for _, analysed in pairs if analysed is not None]

    def _blocks(self, run: str) -> Iterator[tuple[RunRecord, StabilityRecord | None]]:
        settings = self._campaign.stability.get(run)
        for block, found in blocks_done(self._campaign, run, self._paths):
            analysed = None
            if settings is not None:
                name = record_name(block.stored(self._campaign, self._paths), settings)
                analysed = earlier_record(self._paths.evidence(name), StabilityRecord)
                if analysed is None or analysed.environment.get("precision") != self._campaign.precisions[run]:
                    return
            yield found, analysed


def trained_on(done: Iterable[RunRecord]) -> Iterator[BlockProvenance]:
    """How each block of replicates was trained."""
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


def versions(campaign: Campaign, earlier: CampaignRecord | None) -> tuple[FileVersion, ...]:
    """The file's digests, each with when it was first seen: a change after the first runs does not go unnoticed."""
    known = earlier.files if earlier else ()
    if known and known[-1].sha256 == campaign.sha256:
        return known
    return (*known, FileVersion(campaign.sha256, now()))
