"""What a run costs whose masks come from trainings of their own: in its record, its tickets and its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call
from ticketry.cli.results import _pruned_gate_lines
from ticketry.errors import UsageError
from ticketry.evidence.connectivity import stability
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.search_result import Seeds
from ticketry.lab.store.files import read_with_digest
from ticketry.records.run import read_run
from ticketry.records.schema import as_json
from ticketry.search.gating import search as rounds

TOTAL, REWIND = 20, 2
METHOD = tk.search.continuous
TASK = tk.task("digits")
RECIPE = TASK.recipe.changed(length=f"{TOTAL}it")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two members of two rounds, and a control."""
    settings = METHOD.Settings(rounds=2, init=(0.1, -0.1), rewind=f"{REWIND}it", gate_lr=10.0)
    run = SearchRequest(METHOD, TASK, settings, RECIPE, replicates=1, controls=("shuffled",))
    with tk.Lab(tmp_path_factory.mktemp("store")) as lab:
        return as_json(execute(lab, run))


def test_the_search_is_its_rounds_and_tickets(made: dict[str, Any]) -> None:
    ticket = TOTAL - REWIND
    cost = made["cost"]
    assert cost["dense_steps"] == TOTAL
    assert cost["search_steps_per_replicate"] == 2 * 2 * TOTAL + 4 * ticket
    assert cost["control_steps"] == 4 * ticket
    assert cost["steps_trained"] == TOTAL + 4 * TOTAL + 4 * ticket + 4 * ticket
    assert cost["train_seconds"] > sum(point["seconds"] for point in made["points"])


def test_every_ticket_tells_what_it_took_to_find_it(made: dict[str, Any]) -> None:
    tickets = [point for point in made["points"] if point["role"] == "ticket"]
    assert [(p["level"], p["init"], p["search_steps"], p["budget"]) for p in tickets] == [
        (1, 0.1, TOTAL, TOTAL),
        (2, 0.1, 2 * TOTAL, TOTAL),
        (3, -0.1, TOTAL, TOTAL),
        (4, -0.1, 2 * TOTAL, TOTAL),
    ]
    saved = tk.Ticket.load(tickets[3]["ticket"])
    assert saved.info["search_steps"] == 2 * TOTAL + TOTAL - REWIND
    assert saved.info["rewind_step"] == REWIND


def test_every_round_is_told(made: dict[str, Any]) -> None:
    tickets = {point["level"]: point for point in made["points"] if point["role"] == "ticket"}
    rows = made["rounds"]
    told = [(row["level"], row["round"], row["init"]) for row in rows]
    assert told == [(1, 1, 0.1), (2, 2, 0.1), (3, 1, -0.1), (4, 2, -0.1)]
    for row in rows:
        ticket = tickets[row["level"]]
        assert row["used"]
        assert row["steps"] == TOTAL
        assert row["density"] == ticket["density"]
        assert row["path"][-1] == [TOTAL, row["density"]]
        assert [step for step, _ in row["path"]] == list(range(1, TOTAL + 1))
        assert len(row["histogram"]) == 20
        assert sum(row["histogram"]) == made["task"]["prunable"]
        assert sum(row["histogram"][10:]) == pytest.approx(ticket["kept"], abs=row["ties"])


def test_a_control_that_cannot_have_its_tickets_steps_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rounds", "2", "--retrain", "none", "--gate-lr", "10", "--controls", "shuffled,cyclic"]
    short = ["--recipe.length", "6it", "--rewind", "1it", "--replicates", "1", "--workers", "0"]
    code, out, _ = call(capsys, "search", "continuous", "--task", "digits", *words, *short, "--store", str(tmp_path))
    assert code == 0
    why = "trained like a ticket, 0 steps after 6, it never reaches a ticket's 12"
    assert f"left out shuffled at level 2: {why}" in out
    record = read_run(read_with_digest(next(tmp_path.glob("runs/*/run.json"))))
    rows = {(point.level, point.role): point.budget for point in record.points}
    assert rows.pop((2, "cyclic"))
    found = {row: steps for row, steps in rows.items() if row[1] != "cyclic"}
    assert found == {(0, "dense"): 6, (1, "ticket"): 6, (1, "shuffled"): 6, (2, "ticket"): 12}
    assert [(one.level, one.role, one.why) for one in record.left_out] == [(2, "shuffled", why)]


def test_stability_needs_the_same_early_weights(tmp_path: Path) -> None:
    settings = METHOD.Settings(rounds=1, rewind=f"{REWIND}it", gate_lr=10.0)
    with tk.Lab(tmp_path) as lab:
        found = METHOD(lab, TASK, settings, recipe=RECIPE)[0][1]
        with pytest.raises(UsageError, match="search with rewind 0"):
            stability(lab, TASK, RECIPE, found, Seeds())


def test_a_density_that_no_gates_leave_is_cut_to_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls are trained beside the requested density alone, and the terminal says which ticket was cut."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounds, "_MOST_TRIES", 1)
    monkeypatch.setattr(rounds, "TOLERANCE", 1e-6)
    options: dict[str, Any] = {"replicates": 1, "controls": ("shuffled",), "recipe": {"length": "20it"}, "workers": 0}
    run = tk.run("continuous", density=0.2, rounds=2, rewind="0", gate_lr=10.0, **options)
    tickets = {point.level: point for point in run.record.points if point.role == "ticket"}
    assert sorted(tickets) == [1, 2]
    assert tickets[2].density == pytest.approx(0.2, abs=1e-4)
    assert [point.level for point in run.record.points if point.role == "shuffled"] == [2]
    assert [(one.level, one.cut_to) for one in run.record.rounds if one.used] == [(1, None), (2, 0.2)]
    assert len(run.record.points) == run.request.expected_network_count
    (line,) = _pruned_gate_lines(run.record)
    assert line.startswith("replicate 0 level 2: no s0 leaves 20 %; the nearest leaves ")
