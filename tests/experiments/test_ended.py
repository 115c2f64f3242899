"""A replicate that cannot go on: the others do, and what was found is kept, told and judged."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

import ticketry as tk
from ticketry.cli import main
from ticketry.errors import LayerCollapseError, TrainingError
from ticketry.evidence.level_verdicts import judge_levels
from ticketry.experiments.reproduce import blocks as planning
from ticketry.experiments.reproduce.blocks import finished_blocks
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds
from ticketry.lab.store.paths import Paths
from ticketry.records.run import RunRecord, read_run
from ticketry.search import Method, method
from ticketry.search.gating import gating
from ticketry.search.iterative import Settings

ITERATIVE = method("iterative")
OPTIONS: dict[str, Any] = {"densities": (0.5, 0.2), "rewind": "10%", "replicates": 2, "recipe": {"length": "10it"}}
QUICK: dict[str, Any] = {"controls": (), "recipe": {"length": "20it"}, "workers": 0}
TOLD = "replicate 1 cannot go on: fc1.weight is empty; spare it"


def broken(error: Exception, behind: int, *, only: int | None = 1) -> Method[Any]:
    """Iterative pruning that finds `behind` networks in one replicate, or all, and ends there with an error."""

    def search(lab: Lab, task: Any, recipe: Any, settings: Settings, seeds: Seeds) -> Iterator[Found]:
        for number, found in enumerate(ITERATIVE.search(lab, task, recipe, settings, seeds)):
            if number == behind and (only is None or seeds == Seeds().replicate(only)):
                raise error
            yield found

    return replace(ITERATIVE, search=search)


def stored(store: Path) -> RunRecord:
    (file,) = store.glob("runs/*/run.json")
    return read_run(json.loads(file.read_text()))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_others_go_on_and_all_is_kept(tmp_path: Path, workers: int) -> None:
    collapse = LayerCollapseError("fc1.weight is empty", "spare it")
    with pytest.raises(LayerCollapseError, match=rf"^{TOLD}$"):
        tk.run(broken(collapse, 2), controls=["random_prune"], store=tmp_path, workers=workers, **OPTIONS)
    record = stored(tmp_path)
    assert record.ended == TOLD
    tickets = {(one.replicate, one.level) for one in record.points if one.role == "ticket"}
    assert tickets == {(0, 1), (0, 2), (1, 1)}
    controls = {(one.replicate, one.level) for one in record.points if one.role == "random_prune"}
    assert controls == tickets
    # Only what every replicate has reached is judged, as if no more had been asked for.
    reached = [one for one in record.points if one.level <= 1]
    assert list(record.verdicts) == judge_levels(reached, record.task.metric, 400)
    assert main(["report", record.name, "--store", str(tmp_path)]) == 0
    page = (tmp_path / "runs" / record.name / "report.html").read_text()
    assert f"Less was found than was requested: {TOLD}" in page
    # The same search again trains nothing, and ends in the same way.
    before = {file: file.read_bytes() for file in tmp_path.glob("results/**/*.json")}
    with pytest.raises(LayerCollapseError, match=TOLD):
        tk.run(broken(collapse, 2), controls=["random_prune"], store=tmp_path, workers=workers, **OPTIONS)
    assert {file: file.read_bytes() for file in tmp_path.glob("results/**/*.json")} == before
    assert stored(tmp_path) == record
    # A replicate that can go on after all finds the rest.
    whole = tk.run("iterative", controls=["random_prune"], store=tmp_path, workers=workers, **OPTIONS)
    assert whole.record.ended == ""
    assert [one.level for one in whole.record.verdicts] == [1, 2]


def test_a_density_that_cannot_be_takes_no_other_ticket_away(tmp_path: Path) -> None:
    """Of SNIP at the initialisation of LeNet-300-100 one of the three empties a layer at 0.0009."""
    with pytest.raises(LayerCollapseError, match=r"^replicate 2 cannot go on: density 0\.0009 would leave no weight"):
        tk.run("oneshot", density=(0.5, 0.2, 0.0009), score="snip", when="0", replicates=3, store=tmp_path, **QUICK)
    record = stored(tmp_path)
    tickets = {(one.replicate, one.level) for one in record.points if one.role == "ticket"}
    assert tickets == {(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2)}
    assert [one.level for one in record.verdicts] == [1, 2]


def test_tickets_of_earlier_rounds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = gating.mask_of_open_gates, itertools.count()

    def empty_at_the_third(*args: Any, **named: Any) -> str:
        if next(calls) == 2:
            raise LayerCollapseError("no gate of 'fc1.weight' is on", "choose a larger init")
        return own(*args, **named)

    monkeypatch.setattr(gating, "mask_of_open_gates", empty_at_the_third)
    with pytest.raises(LayerCollapseError, match="no gate"):
        tk.run("continuous", rounds=4, rewind="10%", replicates=1, store=tmp_path, **QUICK)
    assert [one.level for one in stored(tmp_path).points if one.role == "ticket"] == [1, 2]


def test_a_replicate_without_any_network_counts_in_verdicts(tmp_path: Path) -> None:
    with pytest.raises(LayerCollapseError):
        tk.run(broken(LayerCollapseError("empty", "spare it"), 0), controls=[], store=tmp_path, workers=0, **OPTIONS)
    record = stored(tmp_path)
    assert {one.replicate for one in record.points} == {0}
    assert record.verdicts == ()
    assert record.verdict_error.startswith("no level has a ticket of each of the 2 replicates")


def test_all_that_cannot_go_on_are_named(tmp_path: Path) -> None:
    lost = broken(TrainingError("the loss is nan"), 1, only=None)
    with pytest.raises(TrainingError, match=r"^replicates 0, 1 and 2 cannot go on: the loss is nan$"):
        tk.run(lost, controls=[], store=tmp_path, workers=0, **{**OPTIONS, "replicates": 3})
    assert not list(tmp_path.glob("runs/*/run.json"))  # without a ticket there is nothing to tell


def test_one_replicate_alone_is_not_numbered(tmp_path: Path) -> None:
    lost = broken(TrainingError("the loss is nan"), 2, only=0)
    with pytest.raises(TrainingError, match=r"^the loss is nan$"):
        tk.run(lost, controls=[], store=tmp_path, workers=0, **{**OPTIONS, "replicates": 1})
    assert [one.level for one in stored(tmp_path).verdicts] == [1]


def test_other_errors_stop_at_once(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        tk.run(broken(ZeroDivisionError(), 2), controls=[], store=tmp_path, workers=0, **OPTIONS)
    assert not list(tmp_path.glob("runs/*/run.json"))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_tells_what_was_found_and_why_there_is_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    words = "search iterative --task digits --model lenet-300-100 --densities 0.1,0.0001 --recipe.length 20it"
    more = ["--json"] if as_json else ["--verify"]
    usual = ["--replicates", "2", "--controls", "none", "--workers", "0", "--store", str(tmp_path)]
    assert main([*words.split(), *usual, *more]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("ticketry: replicates 0 and 1 cannot go on: density 0.0001 would leave no")
    if as_json:
        found = json.loads(out)
        assert [one["level"] for one in found["tickets"]] == [1, 1]
        assert "replicates 0 and 1 cannot go on" in found["ended"]
    else:
        assert "tickets  " in out
        assert "verdict" not in out.splitlines()[-1]


def test_a_campaign_does_not_take_it_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LayerCollapseError):
        tk.run(broken(LayerCollapseError("empty"), 2), controls=[], store=tmp_path, workers=0, **OPTIONS)
    record = stored(tmp_path)
    request = SimpleNamespace(with_stored_name=lambda paths: record)
    block = SimpleNamespace(search_request=lambda campaign: request, first=0, last=record.replicates)
    campaign: Any = SimpleNamespace(
        plans={"run": None},
        precisions={"run": record.environment["precision"]},
        runs={"run": SimpleNamespace(task=record.task)},
    )
    monkeypatch.setattr(planning, "split_run_into_blocks", lambda run, plan: [block])
    assert list(finished_blocks(campaign, "run", Paths(tmp_path))) == []
    monkeypatch.setattr(planning, "read_earlier_record", lambda path, kind: structs.replace(record, ended=""))
    assert len(list(finished_blocks(campaign, "run", Paths(tmp_path)))) == 1


def test_an_error_of_whoever_hears_of_tickets_is_no_replicates(tmp_path: Path) -> None:
    """Such as that of a control, which is trained where tickets are told in a lab without workers."""

    def hear(replicate: int, found: Found) -> None:
        raise TrainingError("of a control")

    ended: list[Exception] = []
    asked: dict[str, Any] = {"recipe": tk.Recipe(length="4it"), "replicates": 2, "on_found": hear}
    with Lab(tmp_path / "store") as lab, pytest.raises(TrainingError, match=r"^of a control$"):
        ITERATIVE(lab, tk.task("digits"), on_ended=ended.append, **asked)
    assert ended == []
