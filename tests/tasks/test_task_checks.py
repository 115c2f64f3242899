"""Errors name the method of a task that gave an unusable value."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.errors import TaskError
from ticketry.tasks import task_checks


class Line(tk.Task):
    """A regression of ten steps."""

    name = "line"
    metric = tk.Metric("rmse", unit="", higher_is_better=False)
    recipe = tk.Recipe(length="1ep", batch=20, optimizer="adam", lr=1e-2)

    def key(self) -> dict[str, object]:
        return {"name": type(self).__name__}

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))

    def load(self, data: Path | None = None) -> Any:
        x = torch.linspace(-1, 1, 300)[:, None]
        return tk.Splits(*(tk.Split(part, part.abs()) for part in x.split([200, 50, 50])))

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Any:
        return nn.functional.mse_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Any:
        return {"squared": (outputs - targets).square().sum()}

    def summary(self, sums: Any, count: int) -> Any:
        return {"rmse": (sums["squared"] / count) ** 0.5}


Trained = Callable[..., dict[str, float]]


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """Train `Line` with changed methods, each a function of its own result; return the test metrics."""
    stores = itertools.count()
    return lambda **methods: _trained(tmp_path / str(next(stores)), methods)


def _trained(store: Path, methods: dict[str, Any]) -> dict[str, float]:

    def other(name: str) -> Any:
        return lambda self, *args, **named: methods[name](getattr(Line, name)(self, *args, **named))

    task = type("Other", (Line,), {name: other(name) for name in methods})()
    with tk.Lab(store) as lab:
        return lab.train(lab.segment(task, start=0)).metrics["test"]


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 1}

    def set_extra_state(self, state: object) -> None:
        pass


class GivesTwo(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def as_arrays(splits: tk.Splits) -> tk.Splits:
    arrays = [tk.Split(*(value.numpy() for value in (one.inputs, one.targets))) for one in vars(splits).values()]
    return tk.Splits(*arrays)


def unequal(splits: tk.Splits) -> tk.Splits:
    train = splits.train
    return tk.Splits(tk.Split(train.inputs, train.targets[1:]), splits.validation, splits.test)


def without_test(splits: tk.Splits) -> tk.Splits:
    return tk.Splits(splits.train, splits.validation, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "gives", "told"),
    [
        ("build", lambda _: None, r"build\(\) of the task 'line' gave None: return a torch.nn.Module"),
        ("build", lambda _: nn.ReLU(), r"build\(\) of the task 'line' gave a ReLU without a parameter"),
        ("prepare", lambda _: None, r"prepare\(\) of the task 'line' gave None: return a tensor"),
        ("loss", lambda _: None, "a loss of the task 'line' is None"),
        ("measure", lambda sums: {"squared": 1.0}, "gave 1.0 as 'squared'"),
        ("build", lambda _: nn.LazyLinear(1), r"whose weight has no shape yet: call a lazy module once"),
        ("build", lambda _: WithExtraState(1, 1), r"whose state dict has a dict as '_extra_state'"),
        ("build", lambda _: GivesTwo(1, 1), r"the model of the task 'line' gave a tuple"),
        (
            "build",
            lambda _: nn.Linear(2, 1),
            r"the model .* failed with a tensor of shape \[20, 1\] \(float32\): Runtime",
        ),
        ("load", lambda splits: as_arrays(splits), r"gave a ndarray as the inputs of its train split: give a torch"),
        ("loss", lambda loss: loss.nothing, r"loss\(\) of the task 'line' failed with .*\[20, 1\] .*Attribute"),
        ("measure", lambda sums: sums["none"], r"measure\(\) of the task 'line' failed with .*KeyError"),
        ("load", lambda _: 3, r"load\(\) of the task 'line' gave 3: return ticketry.Splits"),
        ("load", without_test, "gave None as its test split"),
        ("load", unequal, "gave 200 inputs and 199 targets in its train split"),
        (
            "loss",
            lambda loss: loss * torch.ones(20, 1),
            r"is a tensor of shape \[20, 1\]: .*take the mean over the batch",
        ),
        ("loss", lambda loss: float(loss.detach()), "a loss of the task 'line' is 0[.]"),
        ("loss", lambda loss: loss.detach(), "a loss of the task 'line' has no gradient"),
        (
            "measure",
            lambda sums: sums["squared"],
            r"measure\(\) of the task 'line' gave a tensor of shape \[\]: return a d",
        ),
        (
            "measure",
            lambda sums: {"squared": torch.ones(50)},
            r"tensor of shape \[50\] as 'squared': sum it over the batch",
        ),
        ("summary", lambda _: 0.5, r"the metrics of the task 'line' \(.*\) are 0.5: return a dict"),
        ("summary", lambda _: {"mse": 1.0, "mae": 2.0}, "lack 'rmse', .*; there are: 'mse', 'mae'"),
        ("summary", lambda _: {"rmse": "low"}, "have 'low' as 'rmse': make it a number"),
        ("summary", lambda _: {"rmse": float("nan")}, "rmse of the task 'line' is nan on its validation split"),
    ],
)
def test_unusable_values_are_named_with_their_method(trained: Trained, method: str, gives: Any, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        trained(**{method: gives})


def test_numbers_of_any_kind_are_metrics(trained: Trained) -> None:
    as_they_are = trained()["rmse"]
    for kind in (
        torch.tensor,
        lambda value: torch.tensor([value], dtype=torch.float64),
        lambda value: torch.tensor(value).numpy()[()],
    ):
        found = trained(summary=lambda metrics, kind=kind: {name: kind(value) for name, value in metrics.items()})
        assert type(found["rmse"]) is float
        assert found["rmse"] == pytest.approx(as_they_are, abs=1e-6)


INF, NAN = float("inf"), float("nan")


def test_further_metrics_that_are_not_finite_are_null(trained: Trained) -> None:
    with pytest.raises(TaskError, match=r"rmse of the task 'line' is 1e\+31 on its validation split"):
        trained(summary=lambda _: {"rmse": 1e31})
    assert trained(summary=lambda _: {"rmse": -1e30}) == {"rmse": -1e30}
    found = trained(summary=lambda metrics: {**metrics, "perplexity": INF, "spread": NAN, "bias": -INF, "mae": 2.0})
    assert found == {**trained(), "perplexity": None, "spread": None, "bias": None, "mae": 2.0}


class Overflowing(Line):
    def summary(self, sums: Any, count: int) -> Any:
        return {**super().summary(sums, count), "perplexity": INF}


@pytest.mark.parametrize("older", [False, True])
def test_a_search_whose_further_metrics_are_not_finite(
    tmp_path: Path, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are JSON; older stores have results with Infinity, which is not JSON."""

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    def go() -> Any:
        return tk.run("iterative", Overflowing(), levels=1, replicates=1, controls=(), workers=0, store=tmp_path)

    if older:
        with monkeypatch.context() as before:
            before.setattr("ticketry.lab.training.loop.replace_non_finite", dict)
            with tk.Lab(tmp_path) as lab:
                lab.train(lab.segment(Overflowing(), start=0))
    run = go()
    assert [point.test["perplexity"] for point in run.record.points] == [None, None]
    assert run.tickets[0].load().info["metrics"]["test"]["perplexity"] is None
    files = [run.path / "run.json"] if older else list(tmp_path.rglob("*.json"))
    for file in files:
        json.loads(file.read_text(), parse_constant=refused)
    assert go().now["segments_trained"] == 0


def test_a_loss_of_shape_one_is_a_loss(trained: Trained) -> None:
    assert trained(loss=lambda loss: loss[None]) == trained()


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(TaskError, match="the task 'line' has no examples in its test split"):
        task_checks.check_sizes(Line(), {"train": 3, "validation": 2, "test": 0})


def test_a_last_batch_of_one_example_under_batch_norm(trained: Trained) -> None:
    def odd(splits: tk.Splits) -> tk.Splits:
        train = tk.Split(splits.train.inputs[:181], splits.train.targets[:181])
        return tk.Splits(train, splits.validation, splits.test)

    normed = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(TaskError, match=r"shape \[1, 1\] .*a single example: where the last batch of an epoch has one"):
        trained(load=odd, build=lambda _: normed)
