"""What loggers are told, in which order, and that they stop nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

import ticketry as tk
from recorded_logger import Recorded
from ticketry.errors import MissingExtraError, UsageError
from ticketry.lab.loggers import Logged, flatten_names
from ticketry.tasks.task import Task


class Broken(Recorded):
    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        raise SystemExit("no network")


def test_a_training_of_a_lab(tmp_path: Path, points: Task) -> None:
    told = Recorded()
    with tk.Lab(tmp_path / "store", loggers=[told]) as lab:
        result = lab.train(lab.segment(points, start=0), label="dense")
        lab.train(lab.segment(points, start=0), label="dense")  # from the store: told already
        lab.train(lab.segment(points, start=1), label="dense")  # another of the same name
    first, other = told.runs.values()
    assert first["run"].name == f"dense {result.segment.key[:8]}"
    assert other["run"].name.startswith("dense ")
    assert (first["run"].group, first["run"].kind) == ("trainings", "dense")
    assert first["run"].config["recipe"]["lr"] == 1e-2
    *curve, (last, metrics) = first["metrics"]
    assert [(step, values["train/loss"]) for step, values in curve] == [tuple(one) for one in result.record["loss"]]
    assert last == 24
    assert metrics["test/accuracy"] == result.metrics["test"]["accuracy"]
    assert first["finished"]
    assert len(told.threads) == 1
    assert threading.get_ident() not in told.threads
    with tk.Lab(tmp_path / "without") as lab:
        assert lab.train(lab.segment(points, start=0)).model == result.model, "logging changes no bits"


def test_what_fails_is_told_once_and_stops_nothing(
    tmp_path: Path, points: Task, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = Broken(), Recorded()
    with caplog.at_level(logging.WARNING), tk.Lab(tmp_path / "store", loggers=[broken, whole]) as lab:
        for seed in range(3):
            assert lab.train(lab.segment(points, start=seed), label=f"seed {seed}").metrics
        lab.close()
        assert lab.dashboards.describe_locations() == ["in memory"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "nothing more is logged to Broken, which failed (training goes on): SystemExit: no network"
    assert len(broken.runs) == 1
    assert [one["finished"] for one in whole.runs.values()] == [True] * 3


class Nowhere(Recorded):
    def where(self) -> str:
        raise RuntimeError("no page yet")


class Forgetful(Recorded):
    def start(self, run: Logged) -> bool:
        super().start(run)
        return None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("logger", "why"),
    [
        (Nowhere, "RuntimeError: no page yet"),
        (Forgetful, "UsageError: start gave None: it returns True, or False for a run that is there already"),
    ],
)
def test_what_fails_before_and_after_the_numbers_is_told_too(
    logger: type[Recorded], why: str, tmp_path: Path, points: Task, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), tk.Lab(tmp_path / "store", loggers=[logger(), Recorded()]) as lab:
        assert lab.train(lab.segment(points, start=0), label="dense").metrics
        lab.dashboards.close()
        assert lab.dashboards.describe_locations() == lab.dashboards.describe_locations() == ["in memory"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"nothing more is logged to {logger.__name__}, which failed (training goes on): {why}")


def test_what_cannot_be_made_is_told_and_stops_nothing(
    tmp_path: Path, points: Task, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_broken_logger.py").write_text(
        "class Mine:\n    def __init__(self, store):\n        raise OSError('no')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    whole = Recorded()
    loggers = ["a_broken_logger:Mine", whole]
    with caplog.at_level(logging.WARNING), tk.Lab(tmp_path / "store", loggers=loggers) as lab:
        assert lab.train(lab.segment(points, start=0), label="dense").metrics
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "nothing is logged to a_broken_logger:Mine, which cannot be made (training goes on): OSError: no"
    )
    (run,) = whole.runs.values()
    assert run["finished"]


def test_what_a_logger_has_is_not_told_again(tmp_path: Path, points: Task) -> None:
    with tk.Lab(tmp_path / "store") as lab:
        segment = lab.segment(points, start=0)
    name = f"dense {segment.key[:8]}"
    told = Recorded(there=(name,))
    with tk.Lab(tmp_path / "store", loggers=[told]) as lab:
        lab.train(segment, label="dense")
        lab.train(lab.segment(points, start=1), label="dense")  # of that label, and not there
    known, other = told.runs.values()
    assert (known["run"].name, known["metrics"]) == (name, [])
    assert other["metrics"]


def test_a_whole_that_is_stopped_has_failed(tmp_path: Path, points: Task) -> None:
    told = Recorded()
    lab = tk.Lab(tmp_path / "store", loggers=[told])

    def stopped() -> None:
        with lab, lab.dashboards.reporting("search-1", "search", {}, by_label=True):
            lab.train(lab.segment(points, start=0), label="dense")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (told.runs["search-1"]["finished"], told.runs["search-1"]["failed"]) == (True, True)
    assert told.runs["dense"]["run"].group == "search-1"
    assert told.runs["dense"]["run"].parent == told.runs["search-1"]["run"].id


def test_none_and_what_is_not_a_logger(tmp_path: Path) -> None:
    assert not tk.Lab(tmp_path / "store", loggers=["none"]).dashboards
    with pytest.raises(UsageError, match="'nonsense' is not known: trackio, wandb, mlflow, tensorboard"):
        tk.Lab(tmp_path / "store", loggers=["nonsense"])
    with pytest.raises(UsageError, match="is not a logger: it has no start"):
        tk.Lab(tmp_path / "store", loggers=[object()])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow", "tensorboard"])
def test_a_library_that_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticketry_engine.errors.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf"logging to {name} needs .*: pip install 'ticketry\[{name}\]'"):
        tk.Lab(tmp_path / "store", loggers=[name])


def test_settings_by_their_full_names() -> None:
    assert flatten_names({"lr": 0.1, "recipe": {"schedule": {"kind": "step"}, "at": [1, 2]}}) == {
        "lr": 0.1,
        "recipe.schedule.kind": "step",
        "recipe.at": [1, 2],
    }
