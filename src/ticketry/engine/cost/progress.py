"""A progress bar with the time left, on terminals and in notebooks; nothing elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from typing_extensions import Self

_PATIENCE = 1.0
"""Seconds after which work that is not done yet is shown."""


class Progress:
    """Shows how many of the planned steps are done; a step that is not planned makes the plan longer."""

    def __init__(self, title: str, steps: int = 0) -> None:
        self._title, self.planned, self.done = title, steps, 0
        self._began = time.monotonic()
        self._bar: Bar | None = None

    def add(self, steps: int) -> None:
        """Plan further steps."""
        self.planned += steps

    def step(self, what: str) -> None:
        """Begin the next step, which ends the one before.

        Args:
            what: is done in it.
        """
        self.done += 1
        self.planned = max(self.planned, self.done)
        if self._bar is None and time.monotonic() - self._began > _PATIENCE:
            self._bar = _bar()
            if self._bar is not None:
                self._bar.start()
                self._bar.add_task("")
        if self._bar is not None:
            task = self._bar.task_ids[0]
            words = f"{self._title}: {what}"
            self._bar.update(task, description=words, completed=self.done - 1, total=self.planned)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar() -> Bar | None:
    """Return a bar on standard error, or in a notebook; None where neither can draw one."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not (console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)):
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console, transient=True, speed_estimate_period=60)
