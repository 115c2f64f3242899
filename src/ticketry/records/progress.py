"""What a search tells while it runs, for those who look on: a small file that is written anew every two seconds."""

from __future__ import annotations

from typing import Final

from ticketry.records.schema import Count, Density, NotNegative, Number, Part, Role

FORMAT: Final = 1
FILE: Final = "progress.json"
EVERY: Final = 2.0
"""Seconds from one writing to the next."""


class ProgressPoint(Part, frozen=True):
    """A trained network."""

    replicate: Count
    level: Count
    role: Role
    density: Density
    value: Number
    """By the task's metric, on the test split."""


class ActiveSegment(Part, frozen=True):
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
    since: NotNegative = 0.0
    """Of the first step of training, which workers have to be started for; 0 before, and where it is not told."""
    at_once: Count = 0
    """Networks that were being trained together, at the most."""
    points: tuple[ProgressPoint, ...] = ()
    active: tuple[ActiveSegment, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """Seconds; None if that cannot be told yet."""
        return estimate_time_left(
            self.at - (self.since or self.began),
            self.trained,
            len(self.points),
            self.expected,
            at_once=self.at_once,
        )


def estimate_time_left(seconds: float, trained: int, there: int, expected: int, *, at_once: int = 1) -> float | None:
    """Seconds that a run will still take; None if that cannot be told yet.

    Args:
        seconds: it has trained so far: starting workers takes as long as many short trainings, and once only.
        trained: networks that were trained in these; others were in the store.
        there: networks that it has.
        expected: networks there will be; 0 where that is not known.
        at_once: networks trained together: when the first is done, the others nearly are, and do not count yet.
    """
    if not expected or trained < max(at_once, 1):
        return None
    return seconds / trained * max(expected - there, 0)
