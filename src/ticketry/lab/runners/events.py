"""Define the events that report the progress of segments, and a summary of events for displays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Reports progress in training a segment, which has the key `key` and the steps from `first` to `last`.

    Kinds: started (submitted), waiting (for another process that trains the segment), progress, stored (the training
    was stopped, and its state is stored), lost (the worker is gone, and another worker resumes at the step), finished,
    cached (the result was in the store), aside (finished without a new result: a timing in another store, or weights
    that a bundle left out).
    """

    kind: str
    key: str
    first: int
    step: int
    """The step that the training has reached."""
    last: int
    label: str = ""
    """Name of the training for displays."""


OnEvent = Callable[[Event], None]


class Activity:
    """Summarises the events of a lab: counts, and the segments in training. Several threads may call it."""

    def __init__(self) -> None:
        self.trained = self.asked = 0
        """Numbers of trained and of requested segments; the results of all others were in the store."""
        self.since = 0.0
        """Time of the first progress in seconds since 1970; 0 before. Workers have been started by then."""
        self.at_once = 0
        """Largest number of segments in training at the same time."""
        self._active: dict[str, Event] = {}
        self._done: set[str] = set()  # a worker's last event may arrive after its result
        self._guard = threading.Lock()

    def on_event(self, event: Event) -> None:
        """Record an event."""
        with self._guard:
            if event.kind in ("finished", "cached"):
                self._active.pop(event.key, None)
                self._done.add(event.key)
                self.trained += event.kind == "finished"
                self.asked += 1
            elif event.kind in ("stored", "aside"):
                self._active.pop(event.key, None)
                if event.kind == "aside":
                    self._done.add(event.key)
            elif event.kind != "started" and event.key not in self._done:  # started: queued until a worker takes it
                self._active[event.key] = event
                if event.kind == "progress":
                    self.since = self.since or time.time()
                    self.at_once = max(self.at_once, sum(one.kind == "progress" for one in self._active.values()))

    def active(self) -> list[Event]:
        """Return the last event of each segment in training, sorted by label."""
        with self._guard:
            return sorted(self._active.values(), key=lambda event: event.label)
