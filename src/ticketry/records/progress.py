"""Live progress of a search, in a small file that is rewritten every two seconds and read by progress displays."""

from __future__ import annotations

from typing import Final

from ticketry.records.schema import Count, Density, NotNegative, Number, Part, Role

FORMAT: Final = 1
FILE: Final = "progress.json"
EVERY: Final = 2.0
"""Seconds between two writes of the file."""


class ProgressPoint(Part, frozen=True):
    """A network that was trained in the run, with its test metric."""

    replicate: Count
    level: Count
    role: Role
    density: Density
    value: Number
    """The task's metric on the test split."""


class ActiveSegment(Part, frozen=True):
    """A training segment that is being executed."""

    label: str
    done: Count
    """Steps trained so far."""
    of: Count
    """Steps of the whole segment."""
    waiting: bool = False
    """Whether the run waits for another process that is training the same segment."""


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
    """Number of networks that the run will have; 0 if the method cannot predict this number."""
    trained: Count = 0
    """Number of networks that this process trained; all other networks were already in the store."""
    began: NotNegative
    """Start of the run, in seconds since 1970."""
    at: NotNegative
    """Time at which this file was written, in seconds since 1970."""
    since: NotNegative = 0.0
    """Time of the first training step, in seconds since 1970; 0 if there was none yet or the time is unknown."""
    at_once: Count = 0
    """Largest number of networks that were trained simultaneously so far."""
    points: tuple[ProgressPoint, ...] = ()
    active: tuple[ActiveSegment, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining time in seconds; None if it cannot be estimated yet."""
        return estimate_time_left(
            self.at - (self.since or self.began),
            self.trained,
            len(self.points),
            self.expected,
            at_once=self.at_once,
        )


def estimate_time_left(seconds: float, trained: int, finished: int, expected: int, *, at_once: int = 1) -> float | None:
    """Estimate the remaining time of a run in seconds; return None if this is not possible yet.

    Args:
        seconds: training time so far, without the time in which workers started.
        trained: number of networks trained in that time.
        finished: number of networks that the run has, including networks found in the store.
        expected: number of networks that the run will have; 0 if unknown.
        at_once: number of networks that are trained simultaneously. There is no estimate before this many networks are
            trained, because networks of one batch end at nearly the same time.
    """
    if not expected or trained < max(at_once, 1):
        return None
    return seconds / trained * max(expected - finished, 0)
