"""Records of campaigns, written by hand."""

from __future__ import annotations

from typing import Literal

from ticketry.records.campaign import CampaignRecord, Claim, FileVersion, Side

Found = Literal["confirmed", "refuted", "undecided"]


def claim(name: str, found: Found, again: str = "") -> Claim:
    side = Side(run="a", role="ticket", values=())
    return Claim(
        name=name, statement="It is.", a=side, b=side, metric="accuracy", above=0.0, margin=0.5, confidence=0.95,
        family="all", found=found, n=0, limit=5, again=again,
    )  # fmt: skip


def record(*claims: Claim) -> CampaignRecord:
    return CampaignRecord(
        name="small-demo",
        title="Small",
        scale="demo",
        files=(FileVersion("0" * 64, "2026-11-01"),),
        claims=claims,
        runs=(),
    )
