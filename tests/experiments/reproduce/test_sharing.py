"""Steps that claims would take by themselves, against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from a_claim import a_claim
from made_records import search_record
from ticketry.evidence.judging.interim_analyses import InterimAnalyses
from ticketry.experiments.reproduce.deciding import decide
from ticketry.experiments.reproduce.hypothesis import Side
from ticketry.experiments.reproduce.sharing import steps_alone
from ticketry.records.run import RunRecord, read_run

CLAIM = a_claim(Side("one", "ticket", 2), Side("one", "dense", 0), InterimAnalyses((3,)))


def run_of_two_levels() -> RunRecord:
    """Three replicates: the dense network has 100 steps, both tickets and a control of the second 90 of their own."""
    record: dict[str, Any] = search_record(levels=2, replicates=1)
    record["replicates"], record["points"], record["verdicts"] = 3, [], []
    parts = {
        (0, "dense"): (100, 0, 0),
        (1, "ticket"): (100, 0, 90),
        (2, "ticket"): (100, 90, 90),
        (2, "shuffled"): (100, 90, 90),
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
    ],
)
def test_both_sides_are_counted_once(changes: dict[str, Any], a_replicate: int) -> None:
    done = {"one": [run_of_two_levels()], "other": [run_of_two_levels()]}
    claim = replace(CLAIM, **changes)
    twice = [claim, replace(claim, name="again")]
    alone = 3 * (a_replicate + 100)  # with the dense network in a second order
    assert steps_alone(decide([claim], done, {}), done) == alone
    assert steps_alone(decide(twice, done, {}), done) == 2 * alone
    assert steps_alone(decide([claim], {}, {}), {}) == 0
