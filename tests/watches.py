"""Watches that stop a training at a step, or kill one of its ranks."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass, field

from ticketry.lab.training.job import Watch


def children() -> list[int]:
    """Process numbers of ranks in their order."""
    return sorted(process.pid or 0 for process in multiprocessing.active_children())


@dataclass
class StopAt(Watch):
    """Requests a stop once a step is reached."""

    at: int = 0
    seen: int = -1
    checkpoint_seconds: float = 0.001

    def report_progress(self, segment, step):
        self.seen = step

    def is_stop_requested(self):
        return self.seen >= self.at


@dataclass
class KillAt(Watch):
    """Kills a rank at each of some steps, once."""

    ranks: dict[int, int] = field(default_factory=dict)
    checkpoint_seconds: float = 0.001

    def report_progress(self, segment, step):
        for at in [at for at in self.ranks if at <= step]:
            os.kill(children()[self.ranks.pop(at)], signal.SIGKILL)
