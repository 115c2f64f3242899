"""What a search shows while it runs, on standard error: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ticketry.lab.runner import Event
from ticketry.report import summary_table
from ticketry.run import Run, preliminary_record

_REFRESHES_PER_SECOND = 4


class Live:
    """Shows a run. Give its `on_event` to the lab and its `on_point` to the run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._console = Console(stderr=True)
        self._lock = threading.Lock()
        self._points: list[dict[str, Any]] = []
        self._active: dict[str, Event] = {}
        self._done: set[str] = set()  # a worker's last words may come after its result
        self._began = time.monotonic()
        self._trained = 0
        self._rich: RichLive | None = None

    def on_event(self, event: Event) -> None:
        """Take note of a segment's progress."""
        with self._lock:
            if event.kind in ("finished", "cached"):
                self._active.pop(event.key, None)
                self._done.add(event.key)
                self._trained += event.kind == "finished"
            elif event.kind != "started" and event.key not in self._done:  # queued until a worker has taken it
                self._active[event.key] = event

    def on_point(self, point: dict[str, Any]) -> None:
        """Take note of a trained network."""
        with self._lock:
            self._points.append(point)
            line = self._line(point)
        if self._rich is None:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Live:
        if self._console.is_terminal:
            self._rich = RichLive(
                get_renderable=self._picture,
                console=self._console,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
            )
            self._rich.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich:
            self._rich.__exit__(kind, error, trace)

    # -- plain lines -------------------------------------------------------------------------------------------------

    def _line(self, point: dict[str, Any]) -> str:
        metric = self._run.task.metric
        of = self._expected()
        count = f"{len(self._points)}/{of}" if of else str(len(self._points))
        return (
            f"[{count}] replicate {point['replicate']} level {point['level']:>2} {point['role']:<13}"
            f" weights remaining {100 * point['density']:6.2f} %  {metric.name} {point['test'][metric.name]:.4g}"
            f"{metric.unit and ' ' + metric.unit}  ({point['seconds']:.1f} s{self._eta()})"
        )

    # -- live table --------------------------------------------------------------------------------------------------

    def _picture(self) -> RenderableType:
        with self._lock:
            points, active = list(self._points), list(self._active.values())
            head = self._head()
        parts: list[RenderableType] = [head]
        if any(point["role"] == "dense" for point in points):
            parts.append(summary_table(preliminary_record(self._run, points)))
        if active:
            parts.append(bars(active))
        return Group(*parts)

    def _head(self) -> Text:
        of = self._expected()
        count = f"{len(self._points)} of {of} networks" if of else f"{len(self._points)} networks"
        return Text(f"{self._run.method.title} on {self._run.task.name}: {count}{self._eta()}", style="bold")

    # -- how much is left --------------------------------------------------------------------------------------------

    def _expected(self) -> int:
        """How many networks there will be, if the method can tell; else 0."""
        if self._run.method.levels is None:
            return 0
        levels = self._run.method.levels(self._run.settings)
        return self._run.replicates * (1 + levels * (1 + len(self._run.controls)))

    def _eta(self) -> str:
        done, of = len(self._points), self._expected()
        if not of or not self._trained or done >= of:
            return ""
        seconds = (time.monotonic() - self._began) / self._trained * (of - done)
        return f", about {_duration(seconds)} left"


def bars(active: list[Event]) -> Table:
    """A progress bar for each segment in training."""
    table = Table.grid(padding=(0, 1))
    for event in sorted(active, key=lambda event: event.label):
        steps = max(event.last - event.first, 1)
        done = event.step - event.first
        state = "waits for another process" if event.kind == "waiting" else f"step {event.step} of {event.last}"
        table.add_row(Text(event.label), ProgressBar(total=steps, completed=done, width=24), Text(state))
    return table


def _duration(seconds: float) -> str:
    parts = list(_units(round(seconds)))
    return " ".join(parts[:2])


def _units(seconds: int) -> Iterator[str]:
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or (unit == "s" and size == 1):
            yield f"{count} {unit}"
