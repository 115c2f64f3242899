"""All loggers of a lab: what they are told waits in a queue, and one thread tells it, so that no training waits."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ticketry.errors import TicketryError, UsageError
from ticketry.lab.loggers.logger import LOGGERS, Logged, Logger
from ticketry.lab.training.segment import Result

NONE = "none"
"""The word for no logger."""
_TRAININGS = "trainings"
"""The group of what is trained outside a search or verification."""
_log = logging.getLogger(__name__)


_Call = Callable[[Logger], Any]


@dataclass
class _Listener:
    """One logger, and what became of it."""

    name: str
    logger: Logger
    finished_before: set[str] = field(default_factory=set)
    """Ids of runs that it had already."""
    failed: bool = False


class Dashboards:
    """Tells every logger what is trained. Without loggers it does nothing.

    Args:
        loggers: names of `LOGGERS`, module:object, or loggers; ``none`` stands for no logger.
        store: the store's folder.

    Raises:
        MissingExtraError: for a logger whose library is not installed.
        UsageError: for a name that is not known, or an object that is no logger.
    """

    def __init__(self, loggers: Sequence[str | Logger], store: Path) -> None:
        made = [_made(one, store) for one in dict.fromkeys(loggers) if one != NONE]
        self._loggers = [one for one in made if one is not None]
        self.group = _TRAININGS
        """Under which trainings are told by their labels; empty while they are told in another way, or not at all."""
        self._waiting: queue.SimpleQueue[tuple[Logged, _Call | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.RLock()
        self._told: dict[tuple[str, str], str] = {}
        """Group and name of each training that was told -> its key."""

    def __bool__(self) -> bool:
        return bool(self._loggers)

    # -- telling -----------------------------------------------------------------------------------------------------

    def training(
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
        """A training that is done: its loss by step, and its metrics at the end. Told once of a group.

        Args:
            group: by default the group that is set.
            config, values: what is told beside the segment's own description, and beside its metrics.
            artifacts: (file or folder, kind).
        """
        group = group or self.group
        if not self or not group or not (name := self._new(group, name, result.segment.key)):
            return
        run = Logged(group, name, kind, {**(config or {}), **_described(result)})
        last = {
            f"{split}/{metric}": value
            for split, found in result.metrics.items()
            for metric, value in found.items()
            if value is not None
        }
        last |= {"train_seconds": result.train_seconds, **(values or {})}
        with self._guard:  # runs of several threads one after another
            self._begin(run)
            for step, loss in result.record.get("loss", ()):
                self.metrics(run, {"train/loss": loss}, step)
            self.metrics(run, last, result.segment.last)
            for path, what in artifacts:
                self.artifact(run, path, what)
            self._finish(run)

    @contextlib.contextmanager
    def whole(self, name: str, kind: str, config: Mapping[str, Any], *, by_label: bool) -> Iterator[Logged]:
        """A search or verification, for the length of a block; what is trained in it is of its group.

        Args:
            by_label: whether trainings are told by their labels; else the block tells them with `training`.
        """
        run, before = Logged(name, name, kind, config), self.group
        self.group = name if by_label else ""
        self._begin(run)
        try:
            yield run
        except BaseException:
            self._finish(run, failed=True)
            raise
        else:
            self._finish(run)
        finally:
            self.group = before

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""
        numbers = {name: float(value) for name, value in values.items()}
        self._tell(run, lambda logger: logger.metrics(run, numbers, step))

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        """A file or folder, as it is when the logger comes to it."""
        self._tell(run, lambda logger: logger.artifact(run, path, kind))

    def where(self) -> list[str]:
        """How to look at what was logged, a line for each logger that has not failed."""
        return [told for one in self._loggers if (told := self._heard(one, lambda logger: logger.where()))]

    def close(self, seconds: float = 120.0) -> None:
        """Wait until all is told, but no longer than this."""
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            names = ", ".join(one.name for one in self._loggers if not one.failed)
            _log.warning("after %g s not everything was logged to %s; what is trained is stored", seconds, names)
        self._thread = None

    # -- inside ------------------------------------------------------------------------------------------------------

    def _new(self, group: str, name: str, key: str) -> str:
        """What to call a training: its name, with its key if another has the name; empty if it was told.

        Outside of a search always with its key: what earlier processes called by that name is not known.
        """
        known = f"{name} {key[:8]}"
        with self._guard:
            for one in (known,) if group == _TRAININGS and name != key[:8] else (name, known):
                if (group, one) not in self._told:
                    self._told[group, one] = key
                    return one
                if self._told[group, one] == key:
                    return ""
        return ""

    def _begin(self, run: Logged) -> None:
        self._tell(run, None)

    def _finish(self, run: Logged, *, failed: bool = False) -> None:
        self._tell(run, lambda logger: logger.finish(run, failed=failed))

    def _tell(self, run: Logged, call: _Call | None) -> None:
        """Put a call into the queue; None begins the run."""
        if not self:
            return
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="loggers", daemon=True)
                self._thread.start()
        self._waiting.put((run, call))

    def _work(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            for one in self._loggers:
                if not one.failed:
                    self._told_to(one, *waiting)

    def _told_to(self, one: _Listener, run: Logged, call: _Call | None) -> None:
        if call is None:
            begun = self._heard(one, lambda logger: logger.start(run))
            if begun is None and not one.failed:
                self._heard(one, _began_with_nothing)
            if not begun:
                one.finished_before.add(run.id)
        elif run.id not in one.finished_before:
            self._heard(one, call)

    @staticmethod
    def _heard(one: _Listener, call: _Call) -> Any:
        """What a logger answers; None of one that fails, which is told, or has failed before."""
        if one.failed:
            return None
        try:
            return call(one.logger)
        except (Exception, SystemExit) as error:  # another's library may do anything at all
            one.failed = True
            _log.warning(
                "nothing more is logged to %s, which failed (training goes on): %s: %s",
                *(one.name, type(error).__name__, error),
            )
            return None


def _began_with_nothing(logger: Logger) -> None:
    """Or whoever forgets to return something would see no more of a run, and not know why."""
    raise UsageError("start gave None: it returns True, or False for a run that is there already and finished")


def _made(logger: str | Logger, store: Path) -> _Listener | None:
    """A logger; None for one that fails while it is made, which is told and stops nothing."""
    if isinstance(logger, str):
        make = LOGGERS.get(logger)
        try:
            return _Listener(logger, make(store))
        except TicketryError:  # such as for a library that is not installed: it says what to do
            raise
        except (Exception, SystemExit) as error:
            _log.warning(
                "nothing is logged to %s, which cannot be made (training goes on): %s: %s",
                *(logger, type(error).__name__, error),
            )
            return None
    missing = [name for name in ("start", "metrics", "artifact", "finish", "where") if not hasattr(logger, name)]
    if missing:
        raise UsageError(f"{logger!r:.80} is no logger: it has no {missing[0]}")
    return _Listener(type(logger).__name__, logger)


def _described(result: Result) -> dict[str, Any]:
    """A training as JSON values, without digests of what it began with."""
    segment = result.segment
    told = {name: value for name, value in segment.describe().items() if name not in ("start", "variants")}
    return {**told, "variants": [one.name for one in segment.variants], "key": segment.key}
