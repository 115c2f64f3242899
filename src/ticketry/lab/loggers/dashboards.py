"""Define the interface and registry of loggers, and send reports to them by a thread, so that no training waits."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from ticketry.errors import TicketryError, UsageError
from ticketry.lab.training.segment import Result
from ticketry.registry import Registry
from ticketry_engine.support.seeds import mix


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
        return f"{mix(0, self.group, self.name) % 2**64:016x}"


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
        "trackio": "ticketry.lab.loggers.libraries:Trackio",
        "wandb": "ticketry.lab.loggers.libraries:Wandb",
        "mlflow": "ticketry.lab.loggers.libraries:MLflow",
        "tensorboard": "ticketry.lab.loggers.libraries:TensorBoard",
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
