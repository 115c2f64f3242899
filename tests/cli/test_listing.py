"""What there is in a store, where its runs are of tasks of several kinds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ticketry as tk
from cli.calling import call
from made_records import search_record
from ticketry.cli.listing import first_paragraph
from ticketry.evidence.control import (
    LONGER_CONTROLS,
    PROCEDURE_RIVALS,
    RIVALS,
    SMALL_DENSE,
    STATIC_MASKS,
    check_controls,
    check_rivals,
)
from ticketry.experiments.run import Run
from ticketry.lab.store.files import write_with_digest
from ticketry.records.network import MATCHED_DENSE


def searched(store: Path, task: str | tk.Task, **more: object) -> Run:
    """One ticket, hardly trained."""
    quick = {"levels": 1, "replicates": 1, "controls": (), "recipe": {"length": "4it", "batch": 4}, "workers": 0}
    return tk.run("iterative", task, store=store, **quick, **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Of accuracy, of a language model's metrics, of regression: in one store."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "text.txt").write_text("the ticket wins the lottery and the mask loses nothing " * 60)
    rows = [f"{one},{two},{one + 2 * two}" for one in range(12) for two in range(10)]
    (folder / "table.csv").write_text("\n".join(["one,two,three", *rows]))
    text = tk.task(f"text:{folder / 'text.txt'}", model="lstm@0.05", options={"time": "5"})
    table = tk.task(f"table:{folder / 'table.csv'}", options={"target": "three"})
    return [searched(folder / "store", task) for task in ("digits", text, table)]


def test_tickets_of_several_tasks_have_columns_by_name(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "list", "tickets", "--store", str(runs[0].record.store))
    assert (code, err) == (0, "")
    head, *lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    measured = [point.test for run in runs for point in run.record.points if point.role == "ticket"]
    assert head[:2] == ["ticket", "weights left"]
    assert set(head[2:]) == {name for values in measured for name in values}
    assert len({tuple(values) for values in measured}) == 3, "no two of these tasks have the same metrics"
    told = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert set(told) == {str(run.tickets[0].path) for run in runs}
    for run, values in zip(runs, measured, strict=True):
        line = told[str(run.tickets[0].path)]
        assert line["weights left"] == f"{100 * run.tickets[0].density:.2f} %"
        for name in head[2:]:
            if name in values:
                assert float(line[name]) == pytest.approx(values[name], abs=5e-5, rel=0)
            else:
                assert line[name] == "–"


def test_small_errors_are_not_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = search_record(levels=1, replicates=1, controls=(), metric=("mse", "", False))
    for point in record["points"]:
        point["test"] = {"mse": 8.33712345678e-08}
    file = tmp_path / "runs" / record["run"] / "run.json"
    file.parent.mkdir(parents=True)
    write_with_digest(file, record)
    (tmp_path / "store.json").write_text("{}")
    words = ["list", "tickets", "--store", str(tmp_path)]
    assert json.loads(call(capsys, *words, "--json")[1])[0]["mse"] == 8.33712345678e-08
    assert call(capsys, *words)[1].split()[-1] == "8.33712e-08"


def test_help_and_lists_do_not_import_torch(runs: list[Run]) -> None:
    """They are read from records: loading torch would take ten times as long."""
    code = """
import sys
from ticketry.cli import main
for words in ("--help", "search --help", "verify", "list tasks", "list methods"):
    main(words.split())
print("tickets")
main(["list", "tickets", "--store", sys.argv[1]])
assert "torch" not in sys.modules
"""
    out = subprocess.check_output([sys.executable, "-c", code, str(runs[0].record.store)], text=True)
    assert len(out.partition("\ntickets\n")[2].splitlines()) == 1 + len(runs)


def test_the_same_search_from_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it cost stands; its tickets are named by where they are seen from, and not at all where they are gone."""
    words = "search oneshot --task digits --replicates 1 --controls none --recipe.length 4it --workers 0 --store"
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, *words.split(), "one store")
    assert code == 0
    assert "next     ticketry list tickets --store 'one store'" in out
    (file,) = tmp_path.glob("one store/runs/*/run.json")
    before = json.loads(file.read_text())
    (inner := tmp_path / "inner").mkdir()
    monkeypatch.chdir(inner)
    assert call(capsys, *words.split(), "../one store")[0] == 0
    after = json.loads(file.read_text())
    assert before["cost"]["segments_trained"] == 2
    assert [after[name] for name in ("cost", "date", "command") if name in after] == [
        before[name] for name in ("cost", "date", "command") if name in before
    ]
    tickets = [*words.split()[-1:], "../one store", "--json"]
    (row,) = json.loads(call(capsys, "list", "tickets", *tickets)[1])
    assert Path(row["path"], "ticket.json").is_file()
    shutil.rmtree(row["path"])
    (row,) = json.loads(call(capsys, "list", "tickets", *tickets)[1])
    assert row["path"] is None
    assert call(capsys, "list", "tickets", *tickets[:-1])[1].splitlines()[1].startswith("–")
    code, _, err = call(capsys, "verify", file.parent.name, "--density", "0.1", *tickets[:-1])
    assert code == 1
    assert "was left out of a bundle, or removed; `ticketry search --config" in err


def test_what_has_no_docstring_does_not_borrow_one() -> None:
    class Base:
        """Trains in the calling process."""

    class Own(Base):
        """Trains on my cluster,
        three jobs at a time.

        More.
        """

    class Silent(Base):
        pass

    assert [first_paragraph(found) for found in (Own, Silent)] == ["Trains on my cluster, three jobs at a time", ""]


def test_controls_are_all_that_an_option_can_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Of searches, tickets and procedures: dense networks of equal cost were in no list."""
    code, out, _ = call(capsys, "list", "controls", "--json")
    names = [row["name"] for row in json.loads(out)]
    assert code == 0
    assert len(names) == len(set(names))
    assert {*names} >= {*RIVALS, *PROCEDURE_RIVALS, *LONGER_CONTROLS, *MATCHED_DENSE}
    for name in names:
        known = (*RIVALS, *PROCEDURE_RIVALS)
        check_controls((name,)) if name not in (SMALL_DENSE, *STATIC_MASKS) else check_rivals((name,), known)
