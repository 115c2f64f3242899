"""The adapters against the real libraries, without a network: what was logged is read back by the library itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.lab.loggers import LOGGERS, Logged, Logger
from ticketry.tasks.task import Task

WHOLE = Logged("search-1", "search-1", "search", {"method": "iterative", "settings": {"rate": 0.2}})
TRAINING = Logged("search-1", "replicate 0 level 01 ticket", "ticket", {"level": 1, "recipe": {"lr": 0.1}})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A ticket's folder and a record."""
    folder, record = tmp_path / "ticket", tmp_path / "run.json"
    folder.mkdir()
    (folder / "ticket.json").write_text('{"level": 1}')
    (folder / "mask.safetensors").write_bytes(bytes(100))
    record.write_text(json.dumps({"verdicts": ["wins"]}))
    return folder, record


def tell(logger: Logger, files: tuple[Path, Path]) -> None:
    """A search with one training, as the lab tells it."""
    assert logger.start(WHOLE)
    assert logger.start(TRAINING)
    for step in (1, 2, 3):
        logger.metrics(TRAINING, {"train/loss": 1 / step}, step)
    logger.metrics(TRAINING, {"test/accuracy": 0.75, "density": 0.5}, 3)
    logger.artifact(TRAINING, files[0], "ticket")
    logger.finish(TRAINING)
    logger.metrics(WHOLE, {"density": 0.5, "test/accuracy/ticket": 0.75}, 1)
    logger.artifact(WHOLE, files[1], "verdicts")
    logger.finish(WHOLE)


def made(name: str, store: Path) -> Logger:
    return LOGGERS.get(name)(store)


def events(folder: Path) -> Any:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard(tmp_path: Path, files: tuple[Path, Path]) -> None:
    pytest.importorskip("tensorboard", reason="the library tensorboard is not installed")
    logger = made("tensorboard", tmp_path)
    tell(logger, files)
    group = tmp_path / "tensorboard" / "search-1"
    own, whole = events(group / "replicate-0-level-01-ticket"), events(group / "whole")
    assert [(one.step, one.value) for one in own.Scalars("train/loss")] == [(1, 1), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [(one.step, one.value) for one in own.Scalars("test/accuracy")] == [(3, 0.75)]
    assert [(one.step, one.value) for one in whole.Scalars("test/accuracy/ticket")] == [(1, 0.75)]
    assert b"wins" in whole.Tensors("verdicts/text_summary")[0].tensor_proto.string_val[0]
    assert str(files[0]).encode() in own.Tensors("ticket/text_summary")[0].tensor_proto.string_val[0]
    told = own.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"recipe.lr" in told
    assert logger.where() == f"tensorboard --logdir {tmp_path / 'tensorboard'}"
    again = made("tensorboard", tmp_path)
    assert not again.start(TRAINING)


def test_tensorboard_begins_anew_what_was_stopped(tmp_path: Path, files: tuple[Path, Path]) -> None:
    pytest.importorskip("tensorboard", reason="the library tensorboard is not installed")
    first = made("tensorboard", tmp_path)
    first.start(WHOLE)
    first.metrics(WHOLE, {"density": 0.9}, 1)
    first.finish(WHOLE, failed=True)
    tell(made("tensorboard", tmp_path), files)
    whole = events(tmp_path / "tensorboard" / "search-1" / "whole")
    assert [one.value for one in whole.Scalars("density")] == [0.5]


def test_labels_are_no_paths(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the library tensorboard is not installed")
    logger = made("tensorboard", tmp_path / "store")
    for name in ("../../out", "a/b", "..", "x" * 500, "é\n"):
        run = Logged("trainings", name, "dense")
        logger.start(run)
        logger.finish(run)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(list((tmp_path / "store" / "tensorboard" / "trainings").iterdir())) == 5


def test_mlflow(tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the library mlflow is not installed")
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.chdir(tmp_path)
    tell(made("mlflow", tmp_path), files)
    client = mlflow.MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("ticketry").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {WHOLE.name, TRAINING.name}
    own, whole = runs[TRAINING.name], runs[WHOLE.name]
    assert own.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert own.data.params == {"kind": "ticket", "level": "1", "recipe.lr": "0.1"}
    losses = client.get_metric_history(own.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in losses] == [(1, 1), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert whole.data.metrics == {"density": 0.5, "test/accuracy/ticket": 0.75}
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    assert {one.path for one in client.list_artifacts(own.info.run_id, "ticket/ticket")} or {
        one.path for one in client.list_artifacts(own.info.run_id, "ticket")
    } == {"ticket/mask.safetensors", "ticket/ticket.json"}
    assert [one.path for one in client.list_artifacts(whole.info.run_id, "verdicts")] == ["verdicts/run.json"]
    again = made("mlflow", tmp_path)
    assert not again.start(TRAINING)
    assert len(client.search_runs([experiment])) == 2


def test_wandb(tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the library wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    tell(made("wandb", tmp_path), files)
    told = {}
    for file in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"):
        while not (found := wandb_records(file))["ended"]:  # another process of wandb's writes it
            time.sleep(0.1)
        told[found["run"].display_name] = found
    own, whole = told[TRAINING.name], told[WHOLE.name]
    assert (own["run"].run_group, own["run"].job_type, own["run"].run_id) == ("search-1", "ticket", TRAINING.id)
    assert whole["run"].job_type == "search"
    assert own["config"]["recipe"] == {"lr": 0.1}
    assert [row["train/loss"] for row in own["history"]] == [1, 0.5, pytest.approx(1 / 3)]
    assert own["history"][-1]["test/accuracy"] == 0.75
    assert own["artifacts"] == [("ticket", {"ticket.json", "mask.safetensors"})]
    assert whole["artifacts"] == [("verdicts", {"run.json"})]


def wandb_records(file: Path) -> dict[str, Any]:
    """What an offline run's file holds."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"history": [], "artifacts": [], "config": {}, "ended": False}
    for data in leveldb_log(file.read_bytes()[7:], begun=7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found["history"].append(row)
        elif kind == "exit":
            found["ended"] = True
        elif kind == "artifact":
            made = record.artifact
            found["artifacts"].append((made.type, {entry.path for entry in made.manifest.contents}))
    return found


def leveldb_log(data: bytes, begun: int, block: int = 32768) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, of which `begun` bytes of the first block are a header."""
    place, parts = 0, b""
    while place + 7 <= len(data):
        if (left := block - (place + begun) % block) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_trackio(tmp_path: Path, files: tuple[Path, Path]) -> None:
    pytest.importorskip("trackio", reason="the library trackio is not installed")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"""
import json, sys
from pathlib import Path
import {__name__.rpartition(".")[2]} as told
from ticketry.lab.loggers import Trackio
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
folder = Path({str(tmp_path)!r})
told.tell(Trackio(folder), (folder / "ticket", folder / "run.json"))
runs = {{run.name: run for run in Api().runs("ticketry")}}
found = {{name: [run.config, SQLiteStorage.get_logs("ticketry", name)] for name, run in runs.items()}}
artifacts = {{name: SQLiteStorage.get_run_artifacts("ticketry", name, run.id) for name, run in runs.items()}}
again = [Trackio(folder).start(told.TRAINING)]
print(json.dumps([found, artifacts, again], default=str))
"""
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, artifacts, again = json.loads(done.stdout)  # trackio itself prints nothing there
    name = f"{TRAINING.group} {TRAINING.name}"
    assert set(found) == {"search-1", name}
    config, rows = found[name]
    assert (config["kind"], config["recipe.lr"], config["_Group"]) == ("ticket", 0.1, "search-1")
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [1, 0.5, pytest.approx(1 / 3)]
    assert [(row["step"], row["test/accuracy"]) for row in rows if "test/accuracy" in row] == [(3, 0.75)]
    assert [row["test/accuracy/ticket"] for row in found["search-1"][1]] == [0.75]
    assert "ticket" in str(artifacts[name])
    assert "verdicts" in str(artifacts["search-1"])
    assert again == [False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow", "tensorboard"])
def test_the_same_bits(name: str, tmp_path: Path, points: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"the library {name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    models = []
    for loggers in ([name], []):
        with tk.Lab(tmp_path / f"store-{len(loggers)}", loggers=loggers) as lab:
            models.append(lab.train(lab.segment(points, start=0), label="dense").model)
            lab.close()
            assert len(lab.dashboards.describe_locations()) == len(loggers)  # it has not failed
    assert models[0] == models[1]
