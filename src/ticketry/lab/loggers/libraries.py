"""Define loggers for Trackio, Weights & Biases, MLflow and TensorBoard; each training is a run of the library.

The trainings of a search or verification form a group, or are nested in the run of the search.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import needs
from ticketry.files import join_inside
from ticketry.lab.loggers.dashboards import Logged, flatten_names

_MLFLOW_ID = "ticketry.id"
_MLFLOW_BATCH = 100
"""Number of parameters that MLflow accepts in one request; a request may have 10 times as many metrics."""
_MLFLOW_LONGEST = 500
"""Maximum characters of a parameter's value in MLflow."""
_TENSORBOARD_DONE = "finished"
"""Name of an empty file that marks the folder of a finished run."""


class _Runs:
    """Logs metrics and files to libraries whose run objects have the methods of Weights & Biases runs."""

    _runs: dict[str, Any]
    """The library's object of each run, by `Logged.id`."""

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        self._runs[run.id].log(dict(values), step=step)

    def _log_artifact(self, run: Logged, path: Path, artifact: Any) -> None:
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
        self._runs[run.id].log_artifact(artifact)


class Trackio(_Runs):
    """Logs to Trackio's project TRACKIO_PROJECT (or ticketry), in the Hugging Face Space TRACKIO_SPACE_ID if set."""

    def __init__(self, store: Path) -> None:
        needs("trackio", "trackio", "logging to trackio")
        self._project = os.environ.get("TRACKIO_PROJECT", "ticketry")
        self._runs: dict[str, Any] = {}
        self._existing: dict[str, Any] | None = None
        """Runs of earlier processes in the project on this machine, by name; None before the first `start`."""

    def start(self, run: Logged) -> bool:
        import trackio

        if self._existing is None:
            # Trackio may not print, because the standard output of a ticketry command is its result.
            for module_name, module in list(sys.modules.items()):
                if module_name.partition(".")[0] == "trackio":
                    vars(module)["print"] = lambda *_, **__: None
            self._existing = {}
            if not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")):
                with contextlib.suppress(ValueError):  # there is no such project yet
                    self._existing = {one.name: one for one in trackio.Api().runs(self._project)}
        name = run.group if run.whole else f"{run.group} {run.name}"
        if (known := self._existing.pop(name, None)) is not None:
            if not run.whole:
                return False  # a training is reported all at once
            known.delete()  # report the search again: it may not have ended
        self._runs[run.id] = trackio.init(
            project=self._project,
            name=name,
            group=run.group,
            config={"kind": run.kind, **flatten_names(run.config)},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return True

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        import trackio

        about = {"path": str(path), "run": run.name}
        self._log_artifact(run, path, trackio.Artifact(f"{kind}-{run.id}", type=kind, metadata=about))

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        self._runs.pop(run.id).finish()

    def where(self) -> str:
        return f"trackio show --project {self._project}"


class Wandb(_Runs):
    """Logs to the Weights & Biases project WANDB_PROJECT (by default ticketry), offline with WANDB_MODE=offline."""

    def __init__(self, store: Path) -> None:
        needs("wandb", "wandb", "logging to wandb")
        self._runs: dict[str, Any] = {}

    def start(self, run: Logged) -> bool:
        import wandb

        self._runs[run.id] = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ticketry"),
            group=run.group,
            name=run.name,
            job_type=run.kind,
            id=run.id,
            config=dict(run.config),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        return True

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        import wandb

        about = {"path": str(path), "run": run.name}
        self._log_artifact(run, path, wandb.Artifact(f"{run.id}-{kind}", type=kind, metadata=about))

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        self._runs.pop(run.id).finish(exit_code=int(failed))

    def where(self) -> str:
        if os.environ.get("WANDB_MODE") == "offline":
            return "wandb sync wandb/offline-run-*"
        return "https://wandb.ai, project " + os.environ.get("WANDB_PROJECT", "ticketry")


class MLflow:
    """Logs to the MLflow experiment MLFLOW_EXPERIMENT_NAME (by default ticketry) at MLFLOW_TRACKING_URI."""

    def __init__(self, store: Path) -> None:
        needs("mlflow", "mlflow", "logging to mlflow")
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, str] = {}
        """MLflow's id of each run, by `Logged.id`."""
        self._metrics: dict[str, list[Any]] = {}

    def start(self, run: Logged) -> bool:
        if self._client is None:
            self._connect()
        found = self._client.search_runs([self._experiment], f"tags.`{_MLFLOW_ID}` = '{run.id}'", max_results=1)
        if found:
            self._runs[run.id] = found[0].info.run_id
            if found[0].info.status == "FINISHED":
                return False
            self._client.update_run(self._runs[run.id], status="RUNNING")
        else:
            self._runs[run.id] = self._create_run(run)
        self._metrics[run.id] = []
        return True

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._metrics[run.id] += [Metric(name, value, now, step) for name, value in values.items()]

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(self._runs[run.id], str(path), kind)

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        own, metrics = self._runs[run.id], self._metrics.pop(run.id)
        for first in range(0, len(metrics), 10 * _MLFLOW_BATCH):
            self._client.log_batch(own, metrics=metrics[first : first + 10 * _MLFLOW_BATCH])
        self._client.set_terminated(own, "FAILED" if failed else "FINISHED")

    def where(self) -> str:
        return "mlflow ui" + (f" --backend-store-uri {uri}" if (uri := os.environ.get("MLFLOW_TRACKING_URI")) else "")

    def _connect(self) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ticketry")
        known = self._client.get_experiment_by_name(name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(name)

    def _create_run(self, run: Logged) -> str:
        """Create a run in MLflow inside the run of its search, log its settings, and return MLflow's id of the run."""
        from mlflow.entities import Param

        tags = {_MLFLOW_ID: run.id, "ticketry.group": run.group, "ticketry.kind": run.kind}
        if not run.whole and (parent := self._runs.get(run.parent)):
            tags["mlflow.parentRunId"] = parent
        created = self._client.create_run(self._experiment, run_name=run.name, tags=tags)
        parameters = [
            Param(name, str(value)[:_MLFLOW_LONGEST])
            for name, value in {"kind": run.kind, **flatten_names(run.config)}.items()
        ]
        for first in range(0, len(parameters), _MLFLOW_BATCH):
            self._client.log_batch(created.info.run_id, params=parameters[first : first + _MLFLOW_BATCH])
        return str(created.info.run_id)


class TensorBoard:
    """Writes TensorBoard event files to the folder ``tensorboard`` of the store; settings become hyper-parameters.

    TensorBoard cannot store files: for a file its path is logged, and for a JSON file also the content.
    """

    def __init__(self, store: Path) -> None:
        needs("tensorboard", "tensorboard", "logging to tensorboard")
        self._folder = store / "tensorboard"
        self._writers: dict[str, Any] = {}
        self._last: dict[str, dict[str, float]] = {}
        """The last value of each metric, by run and metric."""

    def start(self, run: Logged) -> bool:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = self._run_folder(run)
        if (folder / _TENSORBOARD_DONE).exists():
            return False
        for stale in folder.glob("events.out.tfevents.*"):  # of a run that was stopped
            stale.unlink()
        self._writers[run.id] = SummaryWriter(str(folder), max_queue=1000, flush_secs=30)
        self._last[run.id] = {}
        return True

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writers[run.id].add_scalar(name, value, step)
        self._last[run.id].update(values)

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        text = f"`{path}`"
        if path.suffix == ".json":
            text += f"\n\n```json\n{json.dumps(json.loads(path.read_text()), indent=1)}\n```"
        self._writers[run.id].add_text(kind, text)

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        from torch.utils.tensorboard.summary import hparams

        writer, values = self._writers.pop(run.id), self._last.pop(run.id)
        config = {"kind": run.kind, **flatten_names(run.config)}
        parameters = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in config.items()
        }
        summaries: Any = hparams  # torch declares no types here
        for summary in summaries(
            parameters, {name: value for name, value in values.items() if name.startswith("test/")}
        ):
            writer.file_writer.add_summary(summary)
        writer.close()
        if not failed:
            (self._run_folder(run) / _TENSORBOARD_DONE).touch()

    def where(self) -> str:
        return f"tensorboard --logdir {self._folder}"

    def _run_folder(self, run: Logged) -> Path:
        return join_inside(self._folder, _to_file_name(run.group), "whole" if run.whole else _to_file_name(run.name))


def _to_file_name(name: str) -> str:
    """Return a valid file name for a run or group with this name."""
    return re.sub(r"[^\w.=+-]+", "-", name)[:200].lstrip(".") or "-"
