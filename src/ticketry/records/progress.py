"""What a search tells while it runs, for those who look on: a small file that is written anew every two seconds."""

from __future__ import annotations

from typing import Final

from ticketry.records.schema import Count, Density, NotNegative, Number, Part, Role

FORMAT: Final = 1
FILE: Final = "progress.json"
EVERY: Final = 2.0
"""Seconds from one writing to the next."""


class SeenPoint(Part, frozen=True):
    """A trained network."""

    replicate: Count
    level: Count
    role: Role
    density: Density
    value: Number
    """By the task's metric, on the test split."""


class InTraining(Part, frozen=True):
    """A segment that is being trained."""

    label: str
    done: Count
    """Steps."""
    of: Count
    waiting: bool = False
    """For another process that trains the same."""


class Progress(Part, frozen=True, kw_only=True):
    """A run that is carried out now."""

    format: int = FORMAT
    run: str
    title: str
    task: str
    metric: str
    unit: str
    higher_is_better: bool
    expected: Count = 0
    """Networks there will be; 0 where the method cannot tell."""
    trained: Count = 0
    """In this process; others were in the store."""
    began: NotNegative
    at: NotNegative
    """Seconds since 1970: of the beginning, and of this file."""
    points: tuple[SeenPoint, ...] = ()
    active: tuple[InTraining, ...] = ()

    @property
    def left(self) -> float | None:
        """Seconds; None if that cannot be told yet."""
        return time_left(self.at - self.began, self.trained, len(self.points), self.expected)


def time_left(seconds: float, trained: int, there: int, expected: int) -> float | None:
    """Seconds that a run will still take; None if that cannot be told yet.

    Args:
        seconds: it has taken so far.
        trained: networks that were trained in these; others were in the store.
        there: networks that it has.
        expected: networks there will be; 0 where that is not known.
    """
    if not expected or not trained:
        return None
    return seconds / trained * max(expected - there, 0)
