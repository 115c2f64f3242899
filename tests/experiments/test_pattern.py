"""Runs of searches in a pattern: rows, controls in the pattern, tickets, verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from stored_segments import stored_segments
from ticketry.core.structure.pattern import Pattern
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.search_result import Seeds
from ticketry.records.schema import as_json
from ticketry.report import write_report
from ticketry.search import method
from ticketry.tasks.task import Task

CONTROLS = ("random_reinit", "shuffled", "random_prune")


@pytest.fixture(scope="module")
def task() -> Task:
    return tk.task("digits")


def run_of(task: Task, name: str, **settings: Any) -> SearchRequest:
    search = method(name)
    recipe = task.recipe.changed(length="20it")
    chosen = search.Settings(**settings)
    return SearchRequest(
        method=search, task=task, settings=chosen, recipe=recipe, replicates=1, seeds=Seeds(), controls=CONTROLS
    )


def masks_of(lab: tk.Lab, record: dict[str, Any]) -> dict[str, tk.Mask]:
    """By role."""
    found = {}
    for row in record["points"]:
        if row["role"] != "dense":
            (segment,) = stored_segments(lab, tk.task("digits"), row["key"])
            found[row["role"]] = lab.store.get_mask(str(segment.mask))
    return found


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("iterative", {"densities": (0.3,), "rewind": "3it"}),
        pytest.param(
            *("gradual", {"density": (0.3,), "begin": "5it", "end": "10it", "frequency": "5it"}),
            marks=pytest.mark.slow,
        ),
        pytest.param(*("continuous", {"rounds": 1, "rewind": "3it", "gate_lr": 10.0}), marks=pytest.mark.slow),
    ],
)
def test_controls_have_the_pattern(tmp_path: Path, task: Task, name: str, settings: dict[str, Any]) -> None:
    """Single weights in random places would win or lose for that alone."""
    run = run_of(task, name, structure="rows:4", **settings)
    with tk.Lab(tmp_path) as lab:
        record = as_json(execute(lab, run))
        masks = masks_of(lab, record)
        assert as_json(execute(lab, run))["points"] == record["points"]
    rows = {row["role"]: row for row in record["points"]}
    for role, mask in masks.items():
        for weight, kept in mask.items():
            Pattern.parse("4x1").blocks(tuple(kept.shape)).whole(kept, weight)  # raises for half ones
        assert (mask.density, mask.kept) == (rows[role]["density"], rows[role]["kept"])
    assert masks["random_reinit"] == masks["ticket"]
    assert [row.kept for row in masks["shuffled"].table()] == [row.kept for row in masks["ticket"].table()]
    assert masks["shuffled"] != masks["ticket"]
    assert masks["random_prune"].density == pytest.approx(masks["ticket"].density, abs=0.001)
    assert masks["random_prune"].overlap(masks["ticket"]) < masks["ticket"].density + 0.15
    page = write_report(record, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "rows:4" in page
    ticket = tk.Ticket.load(rows["ticket"]["ticket"])
    assert ticket.info["settings"]["structure"] == "rows:4"
    assert ticket.mask == masks["ticket"]


def test_tickets_of_a_pattern_are_verified_against_their_like(tmp_path: Path, task: Task) -> None:
    with tk.Lab(tmp_path) as lab:
        record = as_json(
            execute(lab, run_of(task, "iterative", densities=(0.5,), rewind="3it", structure="search:2:4"))
        )
        path = next(row["ticket"] for row in record["points"] if row["role"] == "ticket")
        before = set(lab.ledger.keys)
        found = tk.evidence.verify(lab, tk.Ticket.load(path), tk.evidence.VerifySettings(seeds=2, noise=False))
        assert found.verdict.outcome in ("wins", "matches", "loses", "undecided")
        digests = {segment.mask for segment in stored_segments(lab, task, *set(lab.ledger.keys) - before)}
        masks = [lab.store.get_mask(digest) for digest in digests - {None}]
    assert len(masks) >= 5  # the ticket's, and two controls from two seeds
    for mask in masks:
        for kept in mask.values():
            inputs = torch.nn.functional.pad(kept.int(), (0, -kept.shape[1] % 4)).unflatten(1, (-1, 4))
            assert inputs.sum(2).max() <= 2
