"""Verifications as records: what is written, what is not done twice, which ticket of a run is chosen."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import ticketry as tk
from cli.calling import call
from norms_task import NormsTask
from ticketry.cli.results import summarise_verification
from ticketry.errors import TicketError
from ticketry.evidence.settings import VerifySettings as Settings
from ticketry.experiments.record_files import find_run_folder
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.experiments.verify import execute_verify, sparsest_winner
from ticketry.lab.lab import Lab
from ticketry.lab.store.files import read_with_digest
from ticketry.records.metric import Metric
from ticketry.records.network import Point
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json
from ticketry.records.verdict import Task
from ticketry.search import method
from ticketry.tasks import catalogue

QUICK = Settings(controls=("shuffled",), seeds=2, noise=False, references=False)


@pytest.fixture(scope="module")
def run(lab: Lab) -> dict[str, Any]:
    task, chosen = catalogue.get("digits"), method("iterative")
    settings = chosen.Settings(densities=(0.5, 0.1))
    recipe = task.recipe.changed(length="10it")
    return as_json(execute(lab, SearchRequest(chosen, task, settings, recipe, replicates=2, controls=("shuffled",))))


def test_a_record_is_written_and_nothing_is_done_twice(lab: Lab, run: dict[str, Any]) -> None:
    ticket = next(row["ticket"] for row in run["points"] if row["level"] == 2 and row["role"] == "ticket")
    before = lab.ledger.segments_trained
    record = as_json(execute_verify(lab, ticket, QUICK, command="a command"))
    assert lab.ledger.segments_trained - before == record["cost"]["segments_trained"] == 2 * 3
    written = read_with_digest(lab.store.paths.evidence(record["name"]))
    assert written == record
    assert (record["run"], record["ticket"], record["command"]) == (run["run"], ticket, "a command")
    assert (record["density"], record["level"], record["n"], record["claim"]) == (0.1, 2, 2, "wins")
    again = as_json(execute_verify(lab, ticket, QUICK, command="another"))
    assert again == record
    other = as_json(execute_verify(lab, ticket, Settings(controls=("none",), seeds=2, noise=False, references=False)))
    assert other["name"] != record["name"]
    assert other["claim"] == "matches"
    assert other["cost"]["segments_trained"] == 0  # the ticket and the dense network are there
    later = as_json(execute_verify(lab, ticket, dataclasses.replace(QUICK, after=1)))
    assert (record["after"], later["after"]) == (0, 1)
    assert later["name"] != record["name"]  # both are told
    assert [one["values"][0] for one in later["networks"]] == [one["values"][1] for one in record["networks"]]


def test_a_ticket_from_elsewhere_has_no_run(lab: Lab, run: dict[str, Any], tmp_path: Path) -> None:
    ticket = next(row["ticket"] for row in run["points"] if row["role"] == "ticket")
    shutil.copytree(ticket, tmp_path / "mine")
    assert as_json(execute_verify(lab, tmp_path / "mine", QUICK))["run"] == ""


def test_the_sparsest_winner_is_chosen_by_validation_alone() -> None:
    def row(level: int, role: str, validation: float, replicate: int = 0) -> Point:
        found, unseen = {"accuracy": validation}, {"accuracy": 0.0}
        return Point(level=level, role=role, replicate=replicate, density=0.5**level, validation=found, test=unseen)

    task = Task("digits", "lenet-300-100", Metric("accuracy", "%", True), 20, 10)
    points = [
        row(0, "dense", 90.0),
        row(1, "ticket", 91.0),
        row(1, "shuffled", 89.0),
        row(2, "ticket", 89.6, replicate=1),
        row(2, "ticket", 89.4),
        row(2, "shuffled", 88.0),
        row(2, "cyclic", 99.0),  # has more steps
        row(3, "ticket", 90.0),
        row(3, "shuffled", 90.5),
        row(4, "ticket", 89.4),
        row(4, "shuffled", 80.0),
    ]
    record = RunRecord(format=1, name="run", method="iterative", task=task, points=tuple(points))
    chosen = sparsest_winner(record)  # level 3 loses to a control, level 4 by more than half a point to dense
    assert chosen is not None
    assert (chosen.level, chosen.replicate) == (2, 0)
    record = replace(record, points=tuple(one for one in points if one.level in (0, 3)))
    assert sparsest_winner(record) is None


def test_a_network_without_a_name_is_told_by_its_class(lab: Lab) -> None:
    """As `compile` and `bench` tell it."""
    task, chosen = NormsTask(), method("oneshot")
    assert "model" not in task.key()
    recipe = task.recipe.changed(length="4it")
    run = execute(lab, SearchRequest(chosen, task, chosen.Settings(density=(0.5,)), recipe, replicates=1))
    ticket = next(point.ticket for point in run.points if point.role == "ticket")
    record = execute_verify(lab, ticket, dataclasses.replace(QUICK, controls=("none",)), task=task)
    assert run.task.model == record.task.model == "Sequential"
    assert summarise_verification(record)[1].split(",")[0].strip() == "Sequential on norms"
    older = replace(record, task=replace(record.task, model=""))  # of a store that has none
    assert summarise_verification(older)[1].split(",")[0].strip() == "norms"


def test_a_run_is_meant_by_its_folder_or_its_name_and_a_word_that_is_neither_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Path(".ticketry")
    for name in ("iterative-digits-12345678", "oneshot-digits-87654321"):
        (store / "runs" / name).mkdir(parents=True)
        (store / "runs" / name / "run.json").write_text("{}")
    Path("there").mkdir()
    folder = store / "runs" / "iterative-digits-12345678"
    assert find_run_folder(folder, store) == find_run_folder(Path(folder.name), store) == folder
    assert find_run_folder(Path("there"), store) is find_run_folder(store / "runs" / "none", store) is None
    with pytest.raises(TicketError, match=r"no ticket nope here.* no run of that name in \.ticketry$"):
        find_run_folder(Path("nope"), store)
    near = r"name in \.ticketry; did you mean oneshot-digits-87654321\?"
    with pytest.raises(TicketError, match=near):
        tk.verify("oneshot-digits-87654320")
    for command in ("verify", "bench"):
        code, out, err = call(capsys, command, "oneshot-digits-87654320")
        assert (code, out) == (1, "")
        assert "did you mean oneshot-digits-87654321?" in " ".join(err.split())
