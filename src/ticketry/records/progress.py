"""Live progress of a search: a small file, rewritten every two seconds, that progress displays read."""

from __future__ import annotations

from typing import Final

from ticketry.records.schema import Count, Density, NotNegative, Number, Part, Role

FORMAT: Final = 1
FILE: Final = "progress.json"
EVERY: Final = 2.0
"""Seconds between two writes."""


class ProgressPoint(Part, frozen=True):
    """A trained network and its test metric."""

    replicate: Count
    level: Count
    role: Role
    density: Density
    value: Number
    """The task's metric on the test split."""


class ActiveSegment(Part, frozen=True):
    """A training segment in progress."""

    label: str
    done: Count
    """Steps trained so far."""
    of: Count
    """Steps of the whole segment."""
    waiting: bool = False
    """Whether it waits for another process that is training the same segment."""


class Progress(Part, frozen=True, kw_only=True):
    """Progress of a run that is being executed."""

    format: int = FORMAT
    run: str
    title: str
    task: str
    metric: str
    unit: str
    higher_is_better: bool
    expected: Count = 0
    """Number of networks the run will have; 0 if the method cannot predict it."""
    trained: Count = 0
    """Number of networks trained by this process; the others were in the store."""
    began: NotNegative
    """Start of the run, in seconds since 1970."""
    at: NotNegative
    """Time of this file, in seconds since 1970."""
    since: NotNegative = 0.0
    """Time of the first training step in seconds since 1970; 0 if not reached or unknown."""
    at_once: Count = 0
    """Largest number of networks trained simultaneously so far."""
    points: tuple[ProgressPoint, ...] = ()
    active: tuple[ActiveSegment, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining seconds; None if not yet known."""
        return estimate_time_left(
            self.at - (self.since or self.began),
            self.trained,
            len(self.points),
            self.expected,
            at_once=self.at_once,
        )


def estimate_time_left(seconds: float, trained: int, finished: int, expected: int, *, at_once: int = 1) -> float | None:
    """Estimate the remaining seconds of a run; None if that is not yet possible.

    Args:
        seconds: training time so far, without the start of workers, which happens once.
        trained: number of networks trained in that time.
        finished: number of networks the run has, including those found in the store.
        expected: number of networks the run will have; 0 if unknown.
        at_once: number of networks trained simultaneously. The estimate starts when as many are trained, because
            the first one ends only shortly before the others.
    """
    if not expected or trained < max(at_once, 1):
        return None
    return seconds / trained * max(expected - finished, 0)
