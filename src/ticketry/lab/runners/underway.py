"""Which segments are being trained, by what runners tell: for those who show it."""

from __future__ import annotations

import threading
import time

from ticketry.lab.runners.runner import Event


class Underway:
    """Takes the events of a lab, from any thread."""

    def __init__(self) -> None:
        self.trained = self.asked = 0
        """Segments that were trained, and those that were asked for, of which the store had the others."""
        self.since = 0.0
        """When the first training made its first step, in seconds since 1970: workers had started by then; 0 before."""
        self.at_once = 0
        """Segments that were being trained together, at the most."""
        self._active: dict[str, Event] = {}
        self._done: set[str] = set()  # a worker's last words may come after its result
        self._guard = threading.Lock()

    def on_event(self, event: Event) -> None:
        """Take note of a segment's progress."""
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
            elif event.kind != "started" and event.key not in self._done:  # queued until a worker has taken it
                self._active[event.key] = event
                if event.kind == "progress":
                    self.since = self.since or time.time()
                    self.at_once = max(self.at_once, sum(one.kind == "progress" for one in self._active.values()))

    def active(self) -> list[Event]:
        """What was told last of each segment that is being trained, in the order of their labels."""
        with self._guard:
            return sorted(self._active.values(), key=lambda event: event.label)
