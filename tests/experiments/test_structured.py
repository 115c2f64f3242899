"""Runs of searches for channels: rows, moments, controls, tickets, verification, the report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ticketry as tk
from stored_segments import stored_segments
from ticketry.core.structure import shrink_plan
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.search_result import Seeds
from ticketry.records.schema import as_json
from ticketry.report import write_report
from ticketry.search import method
from ticketry.tasks.task import Task

CONTROLS = ("random_reinit", "shuffled", "random_prune", "cyclic")


@pytest.fixture(scope="module")
def task() -> Task:
    return tk.task("digits")


def run_of(task: Task, name: str, **settings: object) -> SearchRequest:
    search = method(name)
    return SearchRequest(
        method=search,
        task=task,
        settings=search.Settings(**{"structure": "channels", "score": "l1", **settings}),
        recipe=task.recipe.changed(length="20it"),
        replicates=1,
        seeds=Seeds(),
        controls=CONTROLS,
    )


def test_a_run_with_controls(tmp_path: Path, task: Task) -> None:
    run = run_of(task, "early", density=(0.3,), every="3it", latest="9it", iterations=1)
    with tk.Lab(tmp_path) as lab:
        record = as_json(execute(lab, run))
        again = as_json(execute(lab, run))
        rows = {row["role"]: row for row in record["points"]}
        for role in ("ticket", *CONTROLS):
            (segment,) = stored_segments(lab, task, rows[role]["key"])
            assert segment.whole_channels, role
            mask = lab.store.get_mask(str(segment.mask))
            assert (mask.density, mask.kept) == (rows[role]["density"], rows[role]["kept"])
            shrink_plan(lab.model(task), mask, torch.randn(2, 1, 8, 8))
        same = {role: stored_segments(lab, task, rows[role]["key"])[0].mask for role in rows if role != "dense"}
    assert same["ticket"] == same["random_reinit"] == same["cyclic"]
    assert len({same["ticket"], same["shuffled"], same["random_prune"]}) == 3
    assert again["points"] == record["points"]
    moment = rows["ticket"]["moment"]
    assert set(moment) == {"step", "detected", "detector", "threshold", "looks", "seconds"}
    assert [step for step, _ in moment["looks"]] == list(range(3, moment["step"] + 1, 3))
    assert "moment" not in rows["shuffled"]
    page = write_report(record, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "fc1.bias" in page
    ticket = tk.Ticket.load(rows["ticket"]["ticket"])
    model = ticket.apply(task.build(), "trained")
    removed = ~ticket.mask["fc1.bias"]
    assert not model.fc1.bias[removed].any()
    assert ticket.info["segment"]["shrunk"]


def test_tickets_with_channels_are_verified_as_they_were_trained(tmp_path: Path, task: Task) -> None:
    run = run_of(task, "iterative", densities=(0.5,), rewind="3it")
    with tk.Lab(tmp_path) as lab:
        record = as_json(execute(lab, run))
        path = next(row["ticket"] for row in record["points"] if row["role"] == "ticket")
        found = tk.evidence.verify(lab, tk.Ticket.load(path), tk.evidence.VerifySettings(seeds=2, noise=False))
        shrunk = [segment for segment in stored_segments(lab, task, *lab.ledger.keys) if segment.whole_channels]
    assert found.verdict.outcome in ("wins", "matches", "loses", "undecided")
    assert len(shrunk) >= 2 * 4  # the ticket and three controls from two seeds


def test_names_of_runs_are_older_than_channels(task: Task) -> None:
    plain = run_of(task, "oneshot", structure="none", score="magnitude")
    told = plain.identity()["settings"]
    assert "structured" not in told
    assert "when" not in told
    assert plain.describe()["settings"]["structure"] == "none"
    assert run_of(task, "oneshot").identity()["settings"]["structured"] is True
    assert "when" in run_of(task, "oneshot", when="0").identity()["settings"]
