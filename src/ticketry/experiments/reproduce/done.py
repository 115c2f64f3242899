"""What is done of a campaign: the blocks of its runs that a store has, whoever put them there."""

from __future__ import annotations

from collections.abc import Iterator

from ticketry.experiments.record_files import earlier_record
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.planning import Block, blocks_done, blocks_of
from ticketry.experiments.stability import record_name
from ticketry.lab.store.files import is_there
from ticketry.lab.store.paths import Paths
from ticketry.records.evidence import StabilityRecord
from ticketry.records.run import RunRecord


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
