"""The library does what the command line does: one run from Python, and all that its result tells."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from os import fspath
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.cli import main
from ticketry.errors import MissingExtraError, UsageError
from ticketry.experiments.run import Run
from ticketry.records.run import read_run
from ticketry.records.schema import as_json
from ticketry.report import verdict_line

SHORT = {"length": "20it"}
OPTIONS: dict[str, Any] = {"densities": (0.4, 0.1), "rewind": "10%", "workers": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("run") / "store"


@pytest.fixture(scope="module")
def run(store: Path) -> Run:
    return tk.run("iterative", task="digits", replicates=2, controls=["shuffled"], recipe=SHORT, store=store, **OPTIONS)


def test_it_is_what_the_command_line_writes(run: Run, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "search iterative --task digits --replicates 2 --controls shuffled --recipe.length 20it --workers 0 --json"
    assert main([*words.split(), "--densities", "0.4,0.1", "--rewind", "10%", "--store", str(store)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["now"]["segments_trained"] == 0
    assert printed["run"] == run.name
    assert printed["tickets"] == json.loads(json.dumps(run.as_json()["tickets"]))
    assert printed["cost"] == as_json(run.record.cost)
    assert printed["verdicts"] == as_json(run.record)["verdicts"]
    assert [one["level"] for one in printed["verdicts"]] == [1, 2]
    points = [point for point in run.record.points if point.role == "shuffled"]
    assert [
        (one["role"], one["replicate"], one["level"], one["value"], one["density"]) for one in printed["controls"]
    ] == [("shuffled", one.replicate, one.level, one.metric("accuracy"), one.density) for one in points]
    assert len(points) == 4


def test_its_tickets(run: Run) -> None:
    assert [(one.replicate, one.level) for one in run.tickets] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [one.density for one in run.tickets[:2]] == pytest.approx([0.4, 0.1], rel=1e-3)
    assert read_run(json.loads((run.path / "run.json").read_text())) == run.record
    assert ([one.level for one in run.verdicts], [one["level"] for one in run.costs]) == ([1, 2], [1, 2, 1, 2])
    asked = {"replicates": 2, "controls": "shuffled", "recipe": tk.task("digits").recipe.changed(**SHORT)}
    again = tk.run(tk.search.method("iterative"), tk.task("digits"), store=run.options.store, **asked, **OPTIONS)
    assert (again.record, again.now["segments_trained"]) == (run.record, 0), "the same in objects"
    for one in run.tickets:
        ticket = one.load()
        assert ticket.info["value"] == one.value
        assert ticket.info["dense_value"] == one.dense_value
        assert ticket.mask.density == one.density


def test_the_best_is_chosen_by_validation(run: Run) -> None:
    of_level = [one for one in run.tickets if one.level == 2]
    assert run.best(density=0.1).validation_value == max(one.validation_value for one in of_level)
    assert run.best().level in (1, 2)
    with pytest.raises(UsageError, match=r"no tickets of density 0\.25; there are 0\.3\d+|there are 0\.4"):
        run.best(density=0.25)


def test_its_report(run: Run, tmp_path: Path) -> None:
    assert run.report() == run.path / "report.html"
    page = run.report(tmp_path / "mine.html").read_text(encoding="utf-8")
    assert run.name in page


def test_a_pushed_ticket_comes_with_verdict_and_figure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    def upload(repo_id: str, save: Any, beside: dict[str, bytes], **options: Any) -> str:
        pushed.update(beside, **options)
        return f"https://hub/{repo_id}"

    monkeypatch.setattr("ticketry.core.ticket.hub.upload", upload)
    assert run.push("user/name", density=0.1, private=True) == "https://hub/user/name"
    card = pushed["README.md"].decode()
    assert verdict_line(run.record).replace("<", "&lt;") in card
    assert "![The metric by the share of weights kept](figure.png)" in card
    assert pushed["figure.png"].startswith(b"\x89PNG\r\n")
    assert f"| density | {run.best(0.1).density:.4g} " in card
    assert pushed["private"] is True


def test_a_frame_of_pandas_or_the_name_of_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pandas, which is not installed: pip install 'ticketry\[pandas\]'"):
        run.frame()
    made: list[Any] = []
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=made.append))
    run.frame()
    assert [row["role"] for row in made[0]].count("ticket") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denisty": 0.1}, r"run\('iterative', …\) takes no 'denisty': did you mean density"),
        ({"worker": 1}, "takes no 'worker': did you mean workers"),
        ({"levels": "many"}, "levels must be a whole number .*, got 'many'"),
        ({"energy": "guess"}, "energy 'guess' is not known: meter, estimate"),
        ({"rewind": "soon"}, "'soon' is not a point in training"),
        ({"controls": ["best"]}, "control 'best' is not known"),
        ({"task": tk.task("digits"), "model": "lenet-5"}, "in place of the network of a task by name"),
        ({"recipe": {"lenght": "2ep"}}, "recipe: unknown setting 'lenght'"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        tk.run("iterative", store=tmp_path / "store", **{"workers": 0, **options})
    assert not (tmp_path / "store" / "runs").exists()


def test_another_network_by_name(tmp_path: Path) -> None:
    common: dict[str, Any] = {"replicates": 1, "controls": (), "recipe": {"length": "2it"}, "workers": 0}
    found = tk.run("iterative", "digits", model="mlp-20", levels=1, store=tmp_path / "a", **common)
    as_before = tk.run("iterative", tk.task("digits", model="mlp-20"), levels=1, store=tmp_path / "b", **common)
    assert found.record.task.model == "mlp-20"
    assert found.record.name == as_before.record.name
    asked: dict[str, Any] = {"store": tmp_path / "a", "rewinds": "0", "masks": "none", "points": 0}
    stable = tk.stability("iterative", "digits", model="mlp-20", densities=0.1, **asked, **common)
    assert stable.record.task.model == "mlp-20"
    assert {(row.level, row.role) for row in stable.record.rows} == {(0, "dense"), (1, "ticket")}
    assert stable.report().parent == tmp_path / "a" / "evidence"
    assert "<td>ticket</td>" in stable._repr_html_()


def test_other_functions_tell_what_they_take() -> None:
    for call, told in (
        (lambda: tk.verify("a-ticket", margins=1), r"verify\(…\) takes no 'margins': did you mean margin"),
        (lambda: tk.stability(rewinding="0"), "takes no 'rewinding': did you mean rewind"),
        (lambda: tk.bench("a-ticket", batches=1), r"bench\(…\) takes no 'batches': did you mean batch"),
        (lambda: tk.restructure("a-ticket", "regroup", row=4), r"restructure\(…\) takes no 'row': did you mean rows"),
    ):
        with pytest.raises(UsageError, match=told):
            call()


def test_a_ticket_is_verified_timed_and_structured(run: Run, store: Path, tmp_path: Path) -> None:
    best = run.best(density=0.1)
    proof = tk.verify(best, seeds=2, noise=False, references=False, controls="shuffled", store=store, workers=0)
    assert (proof.n, proof.level, proof.run) == (2, 2, run.name)
    assert proof.ticket == str(best.path)
    made, other = (
        tk.restructure(one, "regroup", rows=4, null=False, output=tmp_path / name)
        for name, one in {"grouped": best, "in-memory": best.load()}.items()
    )
    assert tk.Ticket.load(made.path).mask == tk.Ticket.load(other.path).mask
    assert (tk.Ticket.load(made.path).mask.density, made.ticket) == (made.density, other.ticket)
    timed = tk.bench(best, batch=1, rounds=2, against="eager", store=store)
    assert (timed.run, timed.ticket) == (run.name, str(best.path))
    assert [one.batch for one in timed.comparisons] == [1]


@pytest.mark.parametrize("function", [tk.verify, tk.bench, lambda one: tk.restructure(one, "2:4")])
def test_a_ticket_without_a_folder_is_told_to_be_saved(function: Callable[[Any], object], run: Run) -> None:
    loaded = run.best(density=0.1).load()
    made = tk.Ticket(loaded.mask, loaded.start, loaded.info)
    with pytest.raises(UsageError, match=r"has no folder: ticket\.save\(folder\), and give its folder, or one of run"):
        function(made)
    with pytest.raises(UsageError, match=r"not by a Mask: give its folder, or one of run\.tickets"):
        function(loaded.mask)


def test_a_run_shows_itself_and_what_its_record_holds_is_no_markup(run: Run) -> None:
    shown = run._repr_html_()
    assert shown.count("<tr>") == 3
    assert run.verdicts[0].verdict in shown
    values = as_json(run.record)
    evil = '<img src=x onerror="alert(1)">'
    values["title"] = values["task"]["name"] = evil
    values["verdicts"][0]["reasons"] = [evil]
    changed = read_run(values)
    shown = Run(run.request, changed, run.options, run.now)._repr_html_() + changed.verdicts[0]._repr_html_()
    assert evil not in shown
    assert shown.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;") == 3
    assert set(re.findall(r"</?([a-z]+)", shown)) == {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}


def test_a_ticket_whose_weights_a_bundle_left_out_says_so(run: Run) -> None:
    ticket = replace(run.tickets[1], path=Path())
    with pytest.raises(UsageError, match="replicate 0 at level 2 has no folder: a bundle left its weights out"):
        ticket.load()
    with pytest.raises(UsageError, match="has no folder"):
        fspath(ticket)
