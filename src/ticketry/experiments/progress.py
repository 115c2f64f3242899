"""Report the progress of a search: to the loggers of a lab (`lab.loggers`), and in a file for `report --watch`."""

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
from ticketry.files import delete_tree_if_possible, write_atomically
from ticketry.lab.lab import Lab
from ticketry.lab.loggers.dashboards import Logged
from ticketry.lab.runners.runner import Activity, Event
from ticketry.lab.search_result import Found
from ticketry.lab.training.segment import Result
from ticketry.records.evidence import VerifyRecord
from ticketry.records.network import Point
from ticketry.records.progress import EVERY, FILE, ActiveSegment, Progress, ProgressPoint
from ticketry.records.run import RunRecord

if TYPE_CHECKING:
    from typing_extensions import Self


_FIELDS = ("replicate", "level", "role", "density", "kept", "budget", "search_steps", "cycles")
"""Fields of a network that dashboards can group, filter and sort by."""


class SearchLog:
    """Logs a search as a group of logged runs: for each network, each training behind a mask, and the whole search."""

    def __init__(self, lab: Lab, run: SearchRequest) -> None:
        self._dashboards, self._name = lab.dashboards, run.name
        described = run.describe()
        self._config = {"method": run.method.name, "settings": described["settings"], "seeds": described["seeds"]}
        self._of_all = {**self._config, **{name: described[name] for name in ("task", "recipe", "controls")}}
        self._of_all["replicates"] = run.replicates
        self._searched: set[tuple[int, str]] = set()

    @contextlib.contextmanager
    def log_run(self) -> Iterator[Logged]:
        """Open the logged run of the whole search, and close it at the end of the `with` block."""
        with self._dashboards.reporting(self._name, "search", self._of_all, by_label=False) as run:
            yield run

    def log_network(self, point: Point, result: Result) -> None:
        """Log a trained network; for a ticket, also log its folder as an artifact."""
        fields = {name: value for name in _FIELDS if (value := getattr(point, name)) is not None}
        self._dashboards.report_training(
            result,
            name=f"replicate {point.replicate} level {point.level:02d} {point.role}",
            kind=point.role,
            group=self._name,
            config={**self._config, **fields},
            values={"density": point.density, "level": point.level},
            artifacts=[(Path(point.ticket), "ticket")] if point.ticket else [],
        )

    def log_mask_trainings(self, replicate: int, found: Found) -> None:
        """Log the trainings that produced a ticket's mask, except the training of the dense network."""
        for number, result in enumerate(found.searched, start=1):
            key = (replicate, result.segment.key)
            if key in self._searched or result.segment.key == found.dense.segment.key:
                continue
            self._searched.add(key)
            self._dashboards.report_training(
                result,
                name=f"replicate {replicate} level {found.level:02d} mask {number:02d}",
                kind="mask",
                group=self._name,
                config={**self._config, "replicate": replicate, "level": found.level, "role": "mask"},
            )

    def log_record(self, run: Logged, record: RunRecord, folder: Path) -> None:
        """Log the means over replicates by role, with the level as step; then log the record and the run file."""
        metric = record.task.metric.name
        for level in sorted({point.level for point in record.points}):
            points = [point for point in record.points if point.level == level]
            values = {"density": fmean(point.density for point in points)}
            for role in dict.fromkeys(point.role for point in points):
                values[f"test/{metric}/{role}"] = fmean(one.metric(metric) for one in points if one.role == role)
            self._dashboards.report_metrics(run, values, level)
        self._dashboards.report_artifact(run, folder / "run.json", "verdicts")
        self._dashboards.report_artifact(run, folder / "run.toml", "config")


def log_verification(lab: Lab, run: Logged, record: VerifyRecord, file: Path) -> None:
    """Log the metric of each network of a verification for each seed (logged as step); then log the record."""
    metric = record.task.metric.name
    for seed in range(record.n):
        values = {f"test/{metric}/{one.role}": one.values[seed] for one in record.networks}
        lab.dashboards.report_metrics(run, values, seed)
    numbers: dict[str, Any] = {"p": record.p, "margin": record.margin, "wins": record.verdict == "wins"}
    lab.dashboards.report_metrics(run, numbers, record.n)
    lab.dashboards.report_artifact(run, file, "verdict")


class ProgressFile:
    """Writes a run's progress to a file of the store during a `with` block, and deletes the file at the end.

    A thread writes the file, so that training never waits for a disk. Write errors are ignored.
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

    def add(self, point: Point) -> None:
        """Add a trained network of the run."""
        value = point.metric(self._run.task.metric.name)
        with self._guard:
            self._points.append(ProgressPoint(point.replicate, point.level, point.role, point.density, value))

    def snapshot(self) -> Progress:
        """Return the current progress."""
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
            active=tuple(map(_active_segment, self._activity.active())),
        )

    def _write(self) -> None:
        while not self._ended.wait(EVERY):
            with contextlib.suppress(OSError):
                write_atomically(self._path, encode(self.snapshot()))

    def __enter__(self) -> Self:
        self._listening.enter_context(self._lab.listening(self._activity.on_event))
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listening.close()
        self._ended.set()
        self._thread.join()
        delete_tree_if_possible(self._path.parent)


def _active_segment(event: Event) -> ActiveSegment:
    return ActiveSegment(event.label, event.step - event.first, event.last - event.first, event.kind == "waiting")
