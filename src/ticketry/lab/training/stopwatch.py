"""Seconds of training: what passes while the process is stopped, or the machine suspended, is none."""

from __future__ import annotations

import time

STANDSTILL = 30.0
"""Seconds of one step beyond which it is asked whether the processor worked at all."""
WORKING = 0.02
"""The least share of one processor that a training keeps busy; on a GPU it waits in a loop."""


class Stopwatch:
    """The seconds of steps by the clock, but for a standstill: that counts as the processor's time in it."""

    def __init__(self) -> None:
        self.then = self._worked = 0.0

    def start(self, now: float) -> None:
        """Count from this moment of ``time.monotonic``."""
        self.then, self._worked = now, time.process_time()

    def lap(self, now: float) -> float:
        """The seconds of training since the last lap, or the start."""
        passed, worked = now - self.then, time.process_time() - self._worked
        self.start(now)
        return worked if passed > STANDSTILL and worked < WORKING * passed else passed
