"""`ticketry speedup`: the table of a user's model and of a task, whatever the clock says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from cli.calling import call
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.experiments import bench as speedup
from ticketry.experiments.bench import SpeedupOptions, load_model, speedups, task_speedups
from ticketry_engine.bench import dense_engines

BUILD = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)), torch.randn(2, 3, 8, 8)

def alone():
    return build()[0]
"""

OPTIONS = SpeedupOptions(batch=(2,), rounds=1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.Flatten(), nn.Linear(512, 4)).eval()


@pytest.fixture(autouse=True)
def fewer_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager alone is timed: others are tested where they are prepared."""
    known = dense_engines.rivals
    monkeypatch.setattr(speedup, "rivals", lambda names: known(["eager"]))


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Budgets that are met at once: half of each layer's weights, or whole channels of half the multiplications."""
    asked: list[dict[str, Any]] = []

    def meet(model: Any, inputs: Any, time: Any, **options: Any) -> Any:
        asked.append({"time": time, **options})
        if options["structure"] == "channels":
            mask = tk.structure.channels(model, inputs, flops=0.5)
        else:
            mask = tk.prune(model, 0.5, distribution="uniform")
        return type("Met", (), {"mask": mask, "pruned": True})()

    monkeypatch.setattr(speedup, "meet", meet)
    return asked


def test_all_steps_are_timed_and_compared(met: list[dict[str, Any]]) -> None:
    model, options = network(), SpeedupOptions(batch=(3,), rounds=1, time="5ms", base="eager")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = list(speedups(model, torch.randn(2, 3, 12, 12), options))
    assert [one.batch for one in found] == [3]
    for one in found:
        rows = {row.name: row for row in one.rows}
        assert list(rows) == ["eager", *(speedup.UNPRUNED, speedup.CHANNELS_STEP, speedup.WEIGHTS_STEP)]
        assert all(row.seconds for row in one.rows)
        assert rows["eager"].speed == 1
        for row in one.rows:
            assert row.speed == pytest.approx(rows["eager"].seconds / row.seconds)
        assert rows["eager"].density is None
        assert rows[speedup.UNPRUNED].density == 1
        assert rows[speedup.WEIGHTS_STEP].density == pytest.approx(0.5, abs=0.01)
        assert 0 < rows[speedup.CHANNELS_STEP].density < 1
        assert one.machine["processor"]
    structures = [(one["structure"], one["time"], one["base"], one["threads"]) for one in met]
    assert structures == [("channels", "5ms", "eager", 1), ("auto", "5ms", "eager", 1)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_without_a_mask_says_why(met: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = speedup.meet

    def meet(*arguments: Any, **options: Any) -> Any:
        if options["structure"] == "channels":
            raise LayerCollapseError("no channels can go")
        return known(*arguments, **options)

    monkeypatch.setattr(speedup, "meet", meet)
    (found,) = speedups(network(), torch.randn(2, 3, 12, 12), OPTIONS)
    rows = {row.name: row for row in found.rows}
    assert rows[speedup.CHANNELS_STEP].seconds is None
    assert "no channels can go" in rows[speedup.CHANNELS_STEP].note
    assert rows[speedup.WEIGHTS_STEP].seconds is not None


def test_a_task_gives_accuracies(met: Any, tmp_path: Path) -> None:
    task = tk.task("digits", model="conv-2@0.25", options={"train": "200"})
    recipe = task.recipe.changed(length="6it")
    (found,) = task_speedups(task, OPTIONS, store=tmp_path, recipe=recipe)
    rows = {row.name: row for row in found.rows}
    with tk.Lab(tmp_path, workers=0) as lab:
        dense = lab.train(lab.segment(task, start=0, recipe=recipe))
        assert rows["eager"].value == rows[speedup.UNPRUNED].value == dense.metrics["test"]["accuracy"]
        model = lab.model(task, dense).eval()
        mask = tk.prune(model, 0.5, distribution="uniform")
        start = type(dense.segment.start)(state=dense.model)
        ticket = lab.train(lab.segment(task, start=start, mask=mask, recipe=recipe))
        assert rows[speedup.WEIGHTS_STEP].value == ticket.metrics["test"]["accuracy"]
    assert rows[speedup.CHANNELS_STEP].value is not None


def test_the_command_prints_the_table(met: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(BUILD)
    words = ("speedup", f"{file}:build", "--batch", "2", "--rounds", "1")
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert all(name in out for name in ("batch 2", "times as fast as eager", "1 compiled", "2 whole", "3 weights"))
    code, out, _ = call(capsys, *words, "--json")
    (table,) = json.loads(out)["tables"]
    assert code == 0
    assert [row["name"] for row in table["rows"]][-1] == speedup.WEIGHTS_STEP


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("mine.py", "the model must be a Python file and a function"),
        ("missing.py:build", "missing.py does not exist"),
        ("mine.py:nothing", "has no function 'nothing'"),
        ("mine.py:alone", r"must return the model and its example inputs, \(model, inputs\), got Sequential"),
    ],
)
def test_files_that_cannot_be_meant(named: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(BUILD)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        load_model(named)


@pytest.mark.parametrize(
    "words", [("speedup",), ("speedup", "a.py:build", "--task", "digits"), ("speedup", "a.py:b", "--batch", "0")]
)
def test_what_cannot_be_meant_is_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *words)[0] == 2
