"""How far a search is, told to whoever looks on: see `records.progress`, and `ticketry report --watch`."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from msgspec.json import encode

from ticketry.experiments.request import SearchRequest
from ticketry.files import write_atomically
from ticketry.folders import delete_tree_if_possible
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Event
from ticketry.lab.runners.underway import Underway
from ticketry.records.network import Point
from ticketry.records.progress import EVERY, FILE, ActiveSegment, Progress, ProgressPoint

if TYPE_CHECKING:
    from typing_extensions import Self


class Telling:
    """In a block, tells a run's progress in a file of the store, which is gone at the end.

    A thread writes, so that nothing that trains waits for a disk; a file that cannot be written is no reason to stop.
    """

    def __init__(self, lab: Lab, run: SearchRequest) -> None:
        self._lab, self._run = lab, run
        self._path = lab.store.paths.live_file(run.name, FILE)
        self._guard = threading.Lock()
        self._points: list[ProgressPoint] = []
        self._underway = Underway()
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
            trained=self._underway.trained,
            began=self._began,
            at=time.time(),
            since=self._underway.since,
            at_once=self._underway.at_once,
            points=points,
            active=tuple(map(_in_training, self._underway.active())),
        )

    def _write(self) -> None:
        while not self._ended.wait(EVERY):
            with contextlib.suppress(OSError):
                write_atomically(self._path, encode(self.told()))

    def __enter__(self) -> Self:
        self._listening.enter_context(self._lab.listening(self._underway.on_event))
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listening.close()
        self._ended.set()
        self._thread.join()
        delete_tree_if_possible(self._path.parent)


def _in_training(event: Event) -> ActiveSegment:
    return ActiveSegment(event.label, event.step - event.first, event.last - event.first, event.kind == "waiting")
