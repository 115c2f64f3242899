"""Where a campaign's results come from: how its blocks were trained, and since when its file has been as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ticketry.experiments.record_files import now
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.records.campaign import BlockProvenance, CampaignRecord, FileVersion
from ticketry.records.run import RunRecord


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
