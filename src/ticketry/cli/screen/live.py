"""What a search shows while it runs, on standard error: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ticketry.cli.screen.progress import Progress, bars
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import preliminary_record
from ticketry.lab.runners.events import Event
from ticketry.records.network import Point
from ticketry.records.progress import estimate_time_left
from ticketry.report import summary_table


class Live(Progress):
    """Shows a run. Give its `on_event` to the lab and its `on_point` to the run."""

    def __init__(self, run: SearchRequest) -> None:
        super().__init__(run.method.title)
        self._run = run
        self._points: list[Point] = []
        self._lock = threading.Lock()
        self._began = time.time()

    def on_point(self, point: Point) -> None:
        """Take note of a trained network."""
        with self._lock:
            self._points.append(point)
            line = self._line(point)
        if not self.drawn:
            self.say(line)

    def _on_finished(self, event: Event) -> None:
        """Nothing is said of single segments: points are."""

    # -- plain lines -------------------------------------------------------------------------------------------------

    def _line(self, point: Point) -> str:
        metric = self._run.task.metric
        of = self._run.expected
        count = f"{len(self._points)}/{of}" if of else str(len(self._points))
        return (
            f"[{count}] replicate {point.replicate} level {point.level:>2} {point.role:<13}"
            f" weights remaining {100 * point.density:6.2f} %  {metric.name} {point.metric(metric.name):.4g}"
            f"{metric.unit and ' ' + metric.unit}  ({point.seconds or 0:.1f} s{self._eta()})"
        )

    # -- live table --------------------------------------------------------------------------------------------------

    def _picture(self) -> RenderableType:
        with self._lock:
            points, head = list(self._points), self._head()
        active = self._activity.active()
        parts: list[RenderableType] = [head]
        if any(point.role == "dense" for point in points):
            parts.append(summary_table(preliminary_record(self._run, points), self._console.width))
        if active:
            parts.append(bars(active))
        return Group(*parts)

    def _head(self) -> RenderableType:
        """The whole run: what it is, and a bar where it is known how many networks there will be."""
        of, done = self._run.expected, len(self._points)
        title = Text(f"{self._run.method.title} on {self._run.task.name}", style="bold")
        if not of:
            return Text.assemble(title, f": {done} networks")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=of, completed=done, width=40), Text(f"{done} of {of} networks{self._eta()}"))
        return Group(title, bar)

    # -- how much is left --------------------------------------------------------------------------------------------

    def _eta(self) -> str:
        told = self._activity
        trained_for = time.time() - (told.since or self._began)
        there, of = len(self._points), self._run.expected
        seconds = estimate_time_left(trained_for, told.trained, there, of, at_once=told.at_once)
        return f", about {_duration(seconds)} left" if seconds else ""


def _duration(seconds: float) -> str:
    parts = list(_units(round(seconds)))
    return " ".join(parts[:2])


def _units(seconds: int) -> Iterator[str]:
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or (unit == "s" and size == 1):
            yield f"{count} {unit}"
