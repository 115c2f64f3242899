"""What the last lines say of a campaign."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from report.made_campaign import claim, record
from ticketry.cli.reproduce import summarise_campaign
from ticketry.experiments.reproduce.campaign import Outcome


def test_the_last_lines_name_what_was_not_measured_and_how_often_questions_err() -> None:
    why = "no memory is known of the ticket of a in replicate 4"
    stuck = [replace(claim(name, "undecided"), unknown=why) for name in ("x", "nobody-asked")]
    made = record(*stuck, claim("x-again", "confirmed", "x"))
    lines = summarise_campaign(Outcome(made, Path("a.html"), Path("a.md"), wanted=frozenset({"x", "x-again"})))
    said = [line for line in lines if line.startswith("unknown")]
    assert said == [f"unknown  x: {why}; no more replicates decide it"]
    assert any("tested k times (here up to 2) errs with at most k times alpha" in line for line in lines)
