"""Steps that claims would take by themselves, against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from a_claim import a_claim
from made_records import search_record
from ticketry.cli import main
from ticketry.evidence.comparison import InterimAnalyses
from ticketry.experiments.reproduce.campaign_file import Side
from ticketry.experiments.reproduce.claims import decide
from ticketry.experiments.reproduce.sharing import steps_alone
from ticketry.experiments.request import request_of
from ticketry.lab.store.files import read_sealed
from ticketry.records.campaign import read_campaign_record
from ticketry.records.run import RunRecord, read_run
from ticketry.search.iterative import Settings

CLAIM = a_claim(Side("one", "ticket", 2), Side("one", "dense", 0), InterimAnalyses((3,)))

RUNS = {
    name: request_of("iterative", "digits", Settings(levels=levels, rewind=rewind))
    for name, levels, rewind in (("one", 2, "0"), ("same", 2, "0"), ("longer", 3, "0"), ("other", 2, "3%"))
}


def run_of_two_levels() -> RunRecord:
    """Three replicates: the dense network has 100 steps, both tickets and two controls of the second 90 of their own,
    and one of them 10 of a fresh start."""
    record: dict[str, Any] = search_record(levels=2, replicates=1)
    record["replicates"], record["points"], record["verdicts"] = 3, [], []
    parts = {
        (0, "dense"): (100, 0, 0),
        (1, "ticket"): (100, 0, 90),
        (2, "ticket"): (100, 90, 90),
        (2, "shuffled"): (100, 90, 90),
        (2, "random_reinit"): (110, 90, 90),
    }
    for replicate in range(3):
        for (level, role), steps in parts.items():
            phases = {name: {"steps": n} for name, n in zip(("dense", "search", "sparse"), steps, strict=True)}
            values = {"accuracy": 90.0 + replicate}
            point = {"replicate": replicate, "level": level, "role": role, "density": 0.1**level, "cost": phases}
            point |= {"validation": values, "test": values, "steps": 90 if level else 100}
            record["points"].append(point)
    return read_run(record)


@pytest.mark.parametrize(
    ("changes", "a_replicate"),
    [
        ({}, 100 + 90 + 90),
        ({"b": Side("one", "shuffled", 2)}, 100 + 90 + 90 + 90),  # the control has its ticket's search
        ({"b": Side("other", "ticket", 1)}, 100 + 90 + 90 + 90),  # another run, the same dense network
        ({"b": Side("other", "ticket", 2)}, 100 + 2 * (90 + 90)),
        ({"b": Side("same", "ticket", 2)}, 100 + 90 + 90),  # another name of the same search
        ({"b": Side("longer", "ticket", 2)}, 100 + 90 + 90),  # which has the same first levels
        ({"b": Side("one", "ticket", 1)}, 100 + 90 + 90),  # the second level goes on from the first
        ({"b": Side("one", "random_reinit", 2)}, 100 + 90 + 90 + 90 + 10),
        ({"a": Side("one", "dense", 0), "b": Side("", "number", None, value=50.0)}, 100),
        ({"metric": "density"}, 100 + 90 + 90),
    ],
)
def test_both_sides_are_counted_once(changes: dict[str, Any], a_replicate: int) -> None:
    done = {name: [run_of_two_levels()] for name in RUNS}
    claim = replace(CLAIM, **changes)
    twice = [claim, replace(claim, name="again")]
    alone = 3 * (a_replicate + 100)  # with the dense network in a second order
    assert steps_alone(decide([claim], done, {}), done, RUNS) == alone
    assert steps_alone(decide(twice, done, {}), done, RUNS) == 2 * alone
    assert steps_alone(decide([claim], {}, {}), {}, RUNS) == 0


SIDES = {
    "one cut early, one in a shorter schedule": """
[scales.demo.runs.a]
method = "early"
settings = { density = 0.2, when = "0" }
[scales.demo.runs.b]
method = "oneshot"
settings = { density = 0.2, equal_cost = "steps" }
""",
    "a structure": """
[scales.demo.runs.a]
method = "iterative"
settings = { rewind = "4it", densities = [0.6, 0.2], structure = "regroup:4" }
[scales.demo.runs.b]
method = "iterative"
settings = { rewind = "4it", densities = [0.6, 0.2] }
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_a_campaign_of_one_claim_takes_what_the_claim_does_by_itself(sides: str, tmp_path: Path) -> None:
    (file := tmp_path / "one.toml").write_text(
        f"""
title = "One claim"
[scales.demo]
interim = [3]
[scales.demo.base]
task = "digits"
recipe = {{ length = "12it" }}
{sides}
[claims.better]
statement = "A is better."
a = {{ run = "a" }}
b = {{ run = "b" }}
density = 0.2
margin = 5
"""
    )
    assert main(["reproduce", str(file), "--store", str(tmp_path / "store"), "--workers", "0"]) == 0
    record = read_campaign_record(read_sealed(tmp_path / "store" / "campaigns" / "one-demo.json"))
    assert record.claims[0].n == 3
    assert record.steps_alone == record.steps_trained
