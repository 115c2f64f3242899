"""Costs of a task's network: by a command, and by a search that was told of none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from cli.calling import call
from ticketry.budgets.cost_model import CostModel
from ticketry.errors import TrustError, UsageError
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.verify import read_search
from ticketry.lab.task_costs import CostOptions, measure_costs

COMMON: dict[str, Any] = {"replicates": 1, "controls": (), "recipe": {"length": "4it"}, "workers": 0}


def task() -> tk.Task:
    return tk.task("digits", model="conv-2@0.25")


@pytest.mark.slow
def test_a_search_measures_what_it_is_not_told(tmp_path: Path) -> None:
    run = tk.run("oneshot", task(), time=0.8, base="engine", store=tmp_path, **COMMON)
    file = Path(run.record.settings["profile"])
    assert file.parent == tmp_path / "costs"
    costs = CostModel.load(file)
    assert (costs.unit, costs.about["batch"], costs.about["threads"]) == ("seconds", 16, 1)
    assert costs.estimate(run.tickets[0].load().mask).value <= 0.8 * costs.dense
    before = file.read_bytes()
    again = tk.run("oneshot", task(), time=0.8, base="engine", store=tmp_path, **COMMON)
    assert (again.name, again.now["segments_trained"], file.read_bytes()) == (run.name, 0, before)
    run = tk.run("oneshot", task(), time=0.8, base="engine", structure="rows:4", store=tmp_path, **COMMON)
    costs = CostModel.load(run.record.settings["profile"])
    assert {name for layer in costs.layers.values() for name in layer.curves} == {"rows:4"}


def test_bytes_are_counted_and_kept_to(tmp_path: Path) -> None:
    run = tk.run("oneshot", task(), bytes=0.3, store=tmp_path / "store", **COMMON)
    counted = CostModel.load(run.record.settings["profile"])
    model, ticket, inputs = task().build(), run.tickets[0].load(), torch.zeros(16, 1, 8, 8)
    ticket.apply(model, "trained")
    file = tmp_path / "ticket.tk"
    tk.compile(model, ticket.mask, inputs).save(file)
    assert 0.29 * counted.dense < file.stat().st_size <= 0.3 * counted.dense


def test_costs_are_found_in_a_store_that_was_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the run file, without trust, and by the search behind a ticket; others than the store's own stay refused."""
    run = tk.run("oneshot", task(), bytes=0.3, store=tmp_path / "first", **COMMON)
    ticket = run.tickets[0].load()
    (tmp_path / "first").rename(tmp_path / "second")
    store = tmp_path / "second"
    config = store / "runs" / run.name / "run.toml"
    words = ["search", "--config", str(config), "--store", str(store), "--workers", "0", "--json"]
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert (json.loads(out)["run"], json.loads(out)["now"]["segments_trained"]) == (run.name, 0)
    profile = read_search(ticket, store=store).settings.profile
    assert Path(profile) == next((store / "costs").iterdir())
    with pytest.raises(TrustError, match="setting profile"):
        read_search(ticket, store=tmp_path / "third")
    next((store / "costs").iterdir()).unlink()
    code, _, err = call(capsys, *words)
    assert code != 0
    assert "setting profile" in err


def test_amounts_are_those_of_what_is_measured(tmp_path: Path) -> None:
    run = tk.run("oneshot", task(), bytes=("60kB", "40000B", 0.3), store=tmp_path, **COMMON)
    costs = CostModel.load(run.record.settings["profile"])
    found = [costs.estimate(one.load().mask).value for one in run.tickets]
    assert [0.99 * each < got <= each for each, got in zip((60e3, 40e3, 0.3 * costs.dense), found, strict=True)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bytes": "5MB"}, "5MB is more than the 9.* kB that the dense network takes"),
        ({"bytes": "2kB"}, "below the floor"),
        ({"bytes": "20ms"}, "an amount such as"),
        ({"bytes": ("20kB", "20000B")}, "each share once"),
    ],
)
def test_amounts_that_cannot_be_are_told_before_anything_is_trained(
    given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        tk.run("iterative", task(), store=tmp_path / "store", **given)
    assert not (tmp_path / "store" / "results").exists()


@pytest.mark.parametrize("name", [name for name in tk.search.methods() if name != "decorators"])
def test_every_method_for_budgets_takes_amounts(name: str) -> None:
    settings = decode_settings({"bytes": "20kB"}, tk.search.method(name).Settings, what=name)[0]
    assert settings.budget.needs_measurement
    with pytest.raises(UsageError, match="needs the costs of this network"):
        _ = settings.budget.cache_key


@pytest.mark.parametrize("given", [{"batch": 0}, {"structure": "regroup"}, {"unit": "bytes", "structure": "auto"}])
def test_what_cannot_be_meant_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CostOptions(**given)


def test_a_search_by_hand_is_told_of_the_file(tmp_path: Path) -> None:
    settings = tk.search.oneshot.Settings(time=(0.5,))
    with tk.Lab(tmp_path) as lab, pytest.raises(UsageError, match="time needs the costs of this network"):
        tk.search.oneshot(lab, task(), settings)


def test_the_command_writes_what_python_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "costs.json"
    words = ("cost", "--task", "digits", "--model", "conv-2@0.25", "--unit", "bytes", "-o", str(file))
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert out.splitlines()[-1] == f"file     {file}"
    expected = measure_costs(task(), CostOptions(unit="bytes"))
    assert CostModel.load(file) == expected
    code, out, _ = call(capsys, *words, "--json")
    told = json.loads(out)
    assert (told["dense"], told["digest"], told["file"]) == (expected.dense, expected.digest, str(file))


def test_of_another_machine_nothing_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "costs.json"
    words = ("cost", "--task", "digits", "--model", "conv-2@0.25", "--target", "h100-bf16", "-o", str(file))
    assert call(capsys, *words)[0] == 0
    about = CostModel.load(file).about
    assert (about["precision"], about["how"]) == ("bf16", "estimated by a profile of the GPU")


def test_more_examples_than_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "cost", "--task", "digits", "--batch", "99999", "-o", str(tmp_path / "costs.json"))
    assert code == 1
    assert "a call needs 99999 examples, and digits has 1197 to train on" in err
    assert not list(tmp_path.iterdir())
