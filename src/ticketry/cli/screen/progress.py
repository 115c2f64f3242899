"""What a command shows on standard error while it trains: bars on a terminal, a line a network elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ticketry.lab.runners.events import Activity, Event

if TYPE_CHECKING:
    from typing_extensions import Self

_REFRESHES_PER_SECOND = 4


class Progress:
    """Give its `on_event` to the lab; `say` prints a line above the bars."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._activity = Activity()
        self._rich: Live | None = None

    def on_event(self, event: Event) -> None:
        """Take note of a segment's progress."""
        self._activity.on_event(event)
        if event.kind == "finished":
            self._on_finished(event)
        if event.kind == "stored":
            self.say(f"stored as it is: {event.label or 'a training'} at step {event.step} of {event.last}")

    def _on_finished(self, event: Event) -> None:
        if not self.drawn:
            self.say(f"[{self._activity.trained} trained, {self._activity.asked} asked for] {event.label}")

    @property
    def drawn(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._rich is not None

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._rich is None:
            # One write, so that lines of several threads stay lines.
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        else:
            self._rich.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:  # on which rich draws nothing
            self._rich = Live(
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

    def _picture(self) -> RenderableType:
        active, trained, asked = self._activity.active(), self._activity.trained, self._activity.asked
        head = f"{self._title}: {trained} networks trained, {asked - trained} from the store"
        return Group(Text(head, style="bold"), *([bars(active)] if active else []))


def bars(active: list[Event]) -> Table:
    """A progress bar for each segment in training."""
    table = Table.grid(padding=(0, 1))
    for event in active:
        steps = max(event.last - event.first, 1)
        done = event.step - event.first
        state = "waits for another process" if event.kind == "waiting" else f"step {event.step} of {event.last}"
        table.add_row(Text(event.label), ProgressBar(total=steps, completed=done, width=24), Text(state))
    return table
