"""What is told of a lab's events: since when it trains, and how much at once."""

from __future__ import annotations

import pytest

from ticketry.lab.runners import runner
from ticketry.lab.runners.runner import Activity, Event


def test_training_begins_with_the_first_step_and_not_with_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100, 200))
    monkeypatch.setattr(runner.time, "time", lambda: float(next(clock)))
    told = Activity()

    def tell(kind: str, key: str, step: int = 0) -> tuple[float, int]:
        told.on_event(Event(kind, key, 0, step, 10))
        return told.since, told.at_once

    assert tell("cached", "stored") == (0.0, 0)
    assert tell("started", "a") == tell("started", "b") == tell("waiting", "c") == (0.0, 0)
    assert tell("progress", "a", 1) == (100.0, 1)
    assert tell("progress", "b", 1) == (100.0, 2)
    assert tell("finished", "a", 10) == (100.0, 2)
    assert tell("progress", "d", 1) == (100.0, 2), "in the place of the one that is done"
