"""Report trainings to dashboards: interface of loggers, thread that sends reports, and loggers of four libraries.

No training waits for a dashboard. In Trackio, Weights & Biases, MLflow and TensorBoard, each training is a run of the
library; the trainings of a search or verification form a group, or are nested in the run of the search.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from ticketry.errors import TicketryError, UsageError, needs
from ticketry.files import join_inside
from ticketry.lab.training.segment import Result
from ticketry.registry import Registry
from ticketry_engine.support.seeds import mix_seeds


@dataclass(frozen=True)
class Logged:
    """Describes a run on a dashboard; the run is a single training, a whole search, or a whole verification."""

    group: str
    """Name of the search or verification to which the run belongs."""
    name: str
    """Name of the run, unique in its group; the run of a whole search or verification has the name of the group."""
    kind: str
    """dense, ticket, the name of a control, mask (a training that only finds a mask), search or verification."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Settings, recipe, seeds, level, replicate and density, as JSON values."""

    @property
    def whole(self) -> bool:
        """Whether this run is a whole search or verification, not a training."""
        return self.name == self.group

    @property
    def parent(self) -> str:
        """Id of the run of the search or verification to which this run belongs."""
        return Logged(self.group, self.group, "").id

    @property
    def id(self) -> str:
        """Id of the run: 16 hexadecimal digits that are derived from group and name."""
        return f"{mix_seeds(0, self.group, self.name) % 2**64:016x}"


class Logger(Protocol):
    """Sends reports to a dashboard; a class or function in `LOGGERS` creates a logger from the store's folder.

    One thread makes all calls: for each run `start`, then `metrics` and `artifact` any number of times, then `finish`.
    The run of a search starts before the runs of its trainings and ends after them. If a method raises an
    error, a warning is logged and the logger is not called again; trainings continue.
    """

    def start(self, run: Logged) -> bool:
        """Start a run and return True; return False if the dashboard has the finished run, to get no more reports."""

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name; `step` increases, and is the iteration of a training or the level of a search."""

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        """Log a file or folder; `kind` says what it contains, such as a ticket."""

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        """End a run; `failed` says whether the run was stopped or raised an error."""

    def where(self) -> str:
        """Return the command or the address with which a user can view the logs."""


MakeLogger = Callable[[Path], Logger]
"""Creates a logger from the store's folder."""


def _check_logger_factory(name: str, found: Any) -> MakeLogger:
    if not callable(found):
        raise UsageError(f"it is a {type(found).__name__}, and a logger is a class, or a function that creates one")
    return cast(MakeLogger, found)


LOGGERS: Registry[MakeLogger] = Registry(
    "logger",
    "ticketry.loggers",
    {
        "trackio": "ticketry.lab.loggers:Trackio",
        "wandb": "ticketry.lab.loggers:Wandb",
        "mlflow": "ticketry.lab.loggers:MLflow",
        "tensorboard": "ticketry.lab.loggers:TensorBoard",
    },
    make=_check_logger_factory,
)


def flatten_names(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as a flat dict, with names such as ``recipe.lr``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten_names(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


NONE = "none"
"""Value of ``--log`` that means no logger."""
_TRAININGS = "trainings"
"""Name of the group of trainings that belong neither to a search nor to a verification."""
_log = logging.getLogger(__name__)


_Call = Callable[[Logger], Any]


@dataclass
class _Listener:
    """Holds a logger, the ids of runs that its dashboard already has, and whether the logger has failed."""

    name: str
    logger: Logger
    finished_before: set[str] = field(default_factory=set)
    """Ids of the runs that earlier processes have reported completely."""
    failed: bool = False


class Dashboards:
    """Reports trainings to the loggers of a lab.

    A logger is given as an object, as a name in `LOGGERS` (but not ``none``), or as a text module:object.
    """

    def __init__(self, loggers: Sequence[str | Logger], store: Path) -> None:
        created = [_create_listener(one, store) for one in dict.fromkeys(loggers) if one != NONE]
        self._loggers = [one for one in created if one is not None]
        self.group = _TRAININGS
        """Group in which the lab reports trainings under their labels; empty if the lab itself reports no trainings."""
        self._waiting: queue.SimpleQueue[tuple[Logged, _Call | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.RLock()
        self._reported: dict[tuple[str, str], str] = {}
        """Key of each reported training, by group and name."""

    def __bool__(self) -> bool:
        return bool(self._loggers)

    def report_training(
        self,
        result: Result,
        *,
        name: str,
        kind: str,
        group: str = "",
        config: Mapping[str, Any] | None = None,
        values: Mapping[str, float] | None = None,
        artifacts: Sequence[tuple[Path, str]] = (),
    ) -> None:
        """Report the losses and the final metrics of a finished training; do nothing if it was reported before.

        Args:
            name: name of the training; the key is added if another training of the group has this name.
            kind: what is trained, see `Logged.kind`.
            group: name of the group; by default the attribute `group`.
            artifacts: files or folders to report, each with its kind.
        """
        group = group or self.group
        if not self or not group or not (name := self._choose_unique_name(group, name, result.segment.key)):
            return
        segment = result.segment
        described = {name: value for name, value in segment.describe().items() if name not in ("start", "variants")}
        described |= {"variants": [one.name for one in segment.variants], "key": segment.key}
        run = Logged(group, name, kind, {**(config or {}), **described})
        last = {
            f"{split}/{metric}": value
            for split, found in result.metrics.items()
            for metric, value in found.items()
            if value is not None
        }
        last |= {"train_seconds": result.train_seconds, **(values or {})}
        with self._guard:  # one run at a time, if several threads report
            self._enqueue_call(run, None)
            for step, loss in result.record.get("loss", ()):
                self.report_metrics(run, {"train/loss": loss}, step)
            self.report_metrics(run, last, segment.last)
            for path, what in artifacts:
                self.report_artifact(run, path, what)
            self._finish_run(run)

    @contextlib.contextmanager
    def reporting(self, name: str, kind: str, config: Mapping[str, Any], *, by_label: bool) -> Iterator[Logged]:
        """Within a ``with`` block, report a search or verification as a run with this `name`, `kind` and `config`.

        If `by_label`, trainings that `report_training` reports in the block belong to the group `name` by default;
        otherwise each call must name the group.
        """
        run, before = Logged(name, name, kind, config), self.group
        self.group = name if by_label else ""
        self._enqueue_call(run, None)
        try:
            yield run
        except BaseException:
            self._finish_run(run, failed=True)
            raise
        else:
            self._finish_run(run)
        finally:
            self.group = before

    def report_metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        """Report the numbers `values`, by name, for a step of a run."""
        numbers = {name: float(value) for name, value in values.items()}
        self._enqueue_call(run, lambda logger: logger.metrics(run, numbers, step))

    def report_artifact(self, run: Logged, path: Path, kind: str) -> None:
        """Report a file or folder as part of a run; `kind` says what it contains, such as a ticket.

        The thread that sends reports reads the content later.
        """
        self._enqueue_call(run, lambda logger: logger.artifact(run, path, kind))

    def describe_locations(self) -> list[str]:
        """Return, for each logger that has not failed, a line of text that says how to view its logs."""
        return [line for one in self._loggers if (line := self._call_logger(one, lambda logger: logger.where()))]

    def close(self, seconds: float = 120.0) -> None:
        """Wait until all reports are sent, but at most `seconds`."""
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            names = ", ".join(one.name for one in self._loggers if not one.failed)
            _log.warning("after %g s not everything was logged to %s; what is trained is stored", seconds, names)
        self._thread = None

    def _choose_unique_name(self, group: str, name: str, key: str) -> str:
        """Return a name that is unique in its group; an empty text if the training was reported before.

        The name is `name`, with `key` added if another training of the group has it. Outside of a search `key` is
        always added.
        """
        known = f"{name} {key[:8]}"
        with self._guard:
            for one in (known,) if group == _TRAININGS and name != key[:8] else (name, known):
                if (group, one) not in self._reported:
                    self._reported[group, one] = key
                    return one
                if self._reported[group, one] == key:
                    return ""
        return ""

    def _finish_run(self, run: Logged, *, failed: bool = False) -> None:
        self._enqueue_call(run, lambda logger: logger.finish(run, failed=failed))

    def _enqueue_call(self, run: Logged, call: _Call | None) -> None:
        """Queue `call`, which the thread makes for every logger; if `call` is None, the thread starts the run."""
        if not self:
            return
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._deliver_queued, name="loggers", daemon=True)
                self._thread.start()
        self._waiting.put((run, call))

    def _deliver_queued(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            run, call = waiting
            for one in self._loggers:
                if call is None and not self._call_logger(one, functools.partial(_start_run, run)):
                    one.finished_before.add(run.id)
                elif call is not None and run.id not in one.finished_before:
                    self._call_logger(one, call)

    @staticmethod
    def _call_logger(listener: _Listener, call: _Call) -> Any:
        """Call the logger and return its answer; return None if the logger raises an error or has raised one before."""
        if listener.failed:
            return None
        try:
            return call(listener.logger)
        except (Exception, SystemExit) as error:  # a library may do anything
            listener.failed = True
            _log.warning(
                "nothing more is logged to %s, which failed (training goes on): %s: %s",
                *(listener.name, type(error).__name__, error),
            )
            return None


def _start_run(run: Logged, logger: Logger) -> bool:
    started: bool | None = logger.start(run)
    if started is None:
        raise UsageError("start gave None: it returns True, or False for a run that is there already and finished")
    return started


def _create_listener(logger: str | Logger, store: Path) -> _Listener | None:
    """Create a logger; if its library raises an error, log the error and return None."""
    if isinstance(logger, str):
        make = LOGGERS.get(logger)
        try:
            return _Listener(logger, make(store))
        except TicketryError:  # such as for a missing library: the message says what to do
            raise
        except (Exception, SystemExit) as error:
            _log.warning(
                "nothing is logged to %s, which cannot be made (training goes on): %s: %s",
                *(logger, type(error).__name__, error),
            )
            return None
    missing = [name for name in ("start", "metrics", "artifact", "finish", "where") if not hasattr(logger, name)]
    if missing:
        raise UsageError(f"{logger!r:.80} is not a logger: it has no {missing[0]}")
    return _Listener(type(logger).__name__, logger)


# -- loggers of libraries ----------------------------------------------------------------------------------------------


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
