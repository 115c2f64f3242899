"""What a search and a verification tell the loggers of a lab, see `lab.loggers`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any

from msgspec.json import encode

from ticketry.experiments.request import SearchRequest
from ticketry.files import write_atomically
from ticketry.folders import delete_tree_if_possible
from ticketry.lab.lab import Lab
from ticketry.lab.loggers.logger import Logged
from ticketry.lab.runners.events import Activity, Event
from ticketry.lab.search_result import Found
from ticketry.lab.training.segment import Result
from ticketry.records.evidence import VerifyRecord
from ticketry.records.network import Point
from ticketry.records.progress import EVERY, FILE, ActiveSegment, Progress, ProgressPoint
from ticketry.records.run import RunRecord

if TYPE_CHECKING:
    from typing_extensions import Self


_TOLD = ("replicate", "level", "role", "density", "kept", "budget", "search_steps", "cycles")
"""Of a network: by these dashboards group, filter and sort."""


class LoggedSearch:
    """A search as a group: a run for each network, each training that a mask comes from, and the whole."""

    def __init__(self, lab: Lab, run: SearchRequest) -> None:
        self._dashboards, self._name = lab.dashboards, run.name
        described = run.describe()
        self._config = {"method": run.method.name, "settings": described["settings"], "seeds": described["seeds"]}
        self._of_all = {**self._config, **{name: described[name] for name in ("task", "recipe", "controls")}}
        self._of_all["replicates"] = run.replicates
        self._searched: set[tuple[int, str]] = set()

    @contextlib.contextmanager
    def whole(self) -> Iterator[Logged]:
        """The search, for the length of a block."""
        with self._dashboards.whole(self._name, "search", self._of_all, by_label=False) as run:
            yield run

    def network(self, point: Point, result: Result) -> None:
        """A trained network; a ticket with its folder."""
        told = {name: value for name in _TOLD if (value := getattr(point, name)) is not None}
        self._dashboards.training(
            result,
            name=f"replicate {point.replicate} level {point.level:02d} {point.role}",
            kind=point.role,
            group=self._name,
            config={**self._config, **told},
            values={"density": point.density, "level": point.level},
            artifacts=[(Path(point.ticket), "ticket")] if point.ticket else [],
        )

    def searched(self, replicate: int, found: Found) -> None:
        """The trainings that a ticket's mask comes from, where these are no networks of the record."""
        for number, result in enumerate(found.searched, start=1):
            key = (replicate, result.segment.key)
            if key in self._searched or result.segment.key == found.dense.segment.key:
                continue  # told already
            self._searched.add(key)
            self._dashboards.training(
                result,
                name=f"replicate {replicate} level {found.level:02d} mask {number:02d}",
                kind="mask",
                group=self._name,
                config={**self._config, "replicate": replicate, "level": found.level, "role": "mask"},
            )

    def record(self, run: Logged, record: RunRecord, folder: Path) -> None:
        """The levels, each a step: means over replicates of every role; the record with verdicts, and the run file."""
        metric = record.task.metric.name
        for level in sorted({point.level for point in record.points}):
            points = [point for point in record.points if point.level == level]
            values = {"density": fmean(point.density for point in points)}
            for role in dict.fromkeys(point.role for point in points):
                values[f"test/{metric}/{role}"] = fmean(one.metric(metric) for one in points if one.role == role)
            self._dashboards.metrics(run, values, level)
        self._dashboards.artifact(run, folder / "run.json", "verdicts")
        self._dashboards.artifact(run, folder / "run.toml", "config")


def log_verification(lab: Lab, run: Logged, record: VerifyRecord, file: Path) -> None:
    """What a verification found: the metric of every network by seed, each seed a step; its record with the verdict."""
    metric = record.task.metric.name
    for seed in range(record.n):
        values = {f"test/{metric}/{one.role}": one.values[seed] for one in record.networks}
        lab.dashboards.metrics(run, values, seed)
    numbers: dict[str, Any] = {"p": record.p, "margin": record.margin, "wins": record.verdict == "wins"}
    lab.dashboards.metrics(run, numbers, record.n)
    lab.dashboards.artifact(run, file, "verdict")


class Telling:
    """In a block, tells a run's progress in a file of the store, which is gone at the end.

    A thread writes, so that nothing that trains waits for a disk; a file that cannot be written is no reason to stop.
    """

    def __init__(self, lab: Lab, run: SearchRequest) -> None:
        self._lab, self._run = lab, run
        self._path = lab.store.paths.live_file(run.name, FILE)
        self._guard = threading.Lock()
        self._points: list[ProgressPoint] = []
        self._activity = Activity()
        self._began = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name="telling", daemon=True)
        self._listening = contextlib.ExitStack()

    def on_point(self, point: Point) -> None:
        """A network of the run."""
        value = point.metric(self._run.task.metric.name)
        with self._guard:
            self._points.append(ProgressPoint(point.replicate, point.level, point.role, point.density, value))

    def told(self) -> Progress:
        """As it is now."""
        metric = self._run.task.metric
        with self._guard:
            points = tuple(self._points)
        return Progress(
            run=self._run.name,
            title=self._run.method.title,
            task=self._run.task.name,
            metric=metric.words,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            expected=self._run.expected,
            trained=self._activity.trained,
            began=self._began,
            at=time.time(),
            since=self._activity.since,
            at_once=self._activity.at_once,
            points=points,
            active=tuple(map(_in_training, self._activity.active())),
        )

    def _write(self) -> None:
        while not self._ended.wait(EVERY):
            with contextlib.suppress(OSError):
                write_atomically(self._path, encode(self.told()))

    def __enter__(self) -> Self:
        self._listening.enter_context(self._lab.listening(self._activity.on_event))
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listening.close()
        self._ended.set()
        self._thread.join()
        delete_tree_if_possible(self._path.parent)


def _in_training(event: Event) -> ActiveSegment:
    return ActiveSegment(event.label, event.step - event.first, event.last - event.first, event.kind == "waiting")
