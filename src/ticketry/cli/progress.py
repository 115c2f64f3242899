"""Show the progress of training on standard error: bars on a terminal, otherwise a line for each network."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import preliminary_record
from ticketry.lab.runners.runner import Activity, Event
from ticketry.records.network import Point
from ticketry.records.run import estimate_time_left
from ticketry.report import summary_table
from ticketry.report.wording import format_duration

if TYPE_CHECKING:
    from typing_extensions import Self


_REFRESHES_PER_SECOND = 4


class Progress:
    """Shows the progress of running trainings; `on_event` must be called with each event of the trainings."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._activity = Activity()
        self._rich: Live | None = None

    def on_event(self, event: Event) -> None:
        """Update the progress of a running training."""
        self._activity.on_event(event)
        if event.kind == "finished":
            self._on_training_finished(event)
        if event.kind == "stored":
            self.say(f"stored as it is: {event.label or 'a training'} at step {event.step} of {event.last}")

    def _on_training_finished(self, event: Event) -> None:
        if not self.has_terminal:
            self.say(f"[{self._activity.trained} trained, {self._activity.asked} asked for] {event.label}")

    @property
    def has_terminal(self) -> bool:
        """Whether standard error is a terminal, so that bars are drawn."""
        return self._rich is not None

    def say(self, line: str) -> None:
        """Print a permanent line, above the bars if there are bars."""
        if self._rich is None:
            # One write, so that lines of several threads do not mix.
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        else:
            self._rich.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._rich = Live(
                get_renderable=self._render_bars,
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

    def _render_bars(self) -> RenderableType:
        active, trained, asked = self._activity.active(), self._activity.trained, self._activity.asked
        head = f"{self._title}: {trained} networks trained, {asked - trained} from the store"
        return Group(Text(head, style="bold"), *([progress_bars(active)] if active else []))


def progress_bars(active: list[Event]) -> Table:
    """Return a table with a progress bar for each running training; `active` has the last event of every training."""
    table = Table.grid(padding=(0, 1))
    for event in active:
        steps = max(event.last - event.first, 1)
        done = event.step - event.first
        state = "waits for another process" if event.kind == "waiting" else f"step {event.step} of {event.last}"
        table.add_row(Text(event.label), ProgressBar(total=steps, completed=done, width=24), Text(state))
    return table


class SearchProgress(Progress):
    """Shows the progress of a search: `on_event` takes events of trainings, and `on_point` each trained network."""

    def __init__(self, run: SearchRequest) -> None:
        super().__init__(run.method.title)
        self._run = run
        self._points: list[Point] = []
        self._lock = threading.Lock()
        self._began = time.time()

    def on_point(self, point: Point) -> None:
        """Count a trained network; if standard error is no terminal, print a line about the network."""
        with self._lock:
            self._points.append(point)
            line = self._format_point(point)
        if not self.has_terminal:
            self.say(line)

    def _on_training_finished(self, event: Event) -> None:
        """Print nothing about a finished training, since `on_point` prints trained networks."""

    def _format_point(self, point: Point) -> str:
        metric = self._run.task.metric
        of = self._run.expected_network_count
        count = f"{len(self._points)}/{of}" if of else str(len(self._points))
        return (
            f"[{count}] replicate {point.replicate} level {point.level:>2} {point.role:<13}"
            f" weights remaining {100 * point.density:6.2f} %  {metric.name} {point.metric(metric.name):.4g}"
            f"{metric.unit and ' ' + metric.unit}  ({point.seconds or 0:.1f} s{self._format_time_left()})"
        )

    def _render_bars(self) -> RenderableType:
        with self._lock:
            points, head = list(self._points), self._render_title()
        active = self._activity.active()
        parts: list[RenderableType] = [head]
        if any(point.role == "dense" for point in points):
            parts.append(summary_table(preliminary_record(self._run, points), self._console.width))
        if active:
            parts.append(progress_bars(active))
        return Group(*parts)

    def _render_title(self) -> RenderableType:
        """Return the title of the run, with a progress bar if the total number of networks is known."""
        of, done = self._run.expected_network_count, len(self._points)
        title = Text(f"{self._run.method.title} on {self._run.task.name}", style="bold")
        if not of:
            return Text.assemble(title, f": {done} networks")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=of, completed=done, width=40), Text(f"{done} of {of} networks{self._format_time_left()}")
        )
        return Group(title, bar)

    def _format_time_left(self) -> str:
        state = self._activity
        trained_for = time.time() - (state.since or self._began)
        there, of = len(self._points), self._run.expected_network_count
        seconds = estimate_time_left(trained_for, state.trained, there, of, at_once=state.at_once)
        return f", about {format_duration(seconds)} left" if seconds else ""
