"""How fast a task is trained on this machine now, by a few seconds of training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Segment

_WARM, _TIMED = 10, 40
"""Steps that are trained before those that are timed, and how many these are at first."""
_LONG_ENOUGH, _MOST_TIMED = 2.0, 1000
"""Seconds, and steps, after which no more are timed: a few milliseconds are no measure where others compute too."""

Elsewhere = Callable[[Path], AbstractContextManager[Lab]]
"""Opens a lab like the campaign's over another folder."""


@dataclass(frozen=True)
class Pace:
    """How fast a task is trained."""

    step: float
    """Seconds."""
    training: float
    """Seconds of a training beside its steps: evaluation, reading, writing."""


def measured(lab: Lab, whole: Segment, elsewhere: Elsewhere | None) -> Pace:
    """By the first steps of a training, which goes on from there.

    What the store has was trained some time ago, perhaps on another machine or beside other work: then the steps are
    trained once more, in a store that is thrown away.

    Args:
        elsewhere: None where workers are on other machines, whose steps cannot be timed here: what the store tells
            counts.
    """
    before = lab.ledger.segments_trained
    pace = _by_first_steps(lab, whole)
    if lab.ledger.segments_trained > before or elsewhere is None:
        return pace
    with tempfile.TemporaryDirectory(prefix="ticketry-pace-") as folder, elsewhere(Path(folder)) as other:
        return _by_first_steps(other, whole)


def _by_first_steps(lab: Lab, whole: Segment) -> Pace:
    at, training = min(_WARM, whole.last - 1), 0.0
    before = _timed(lab, whole, at)  # starts processes and reads the data, too
    seconds, steps = 0.0, 0
    while at < whole.last and seconds < _LONG_ENOUGH and steps < _MOST_TIMED:
        begun, trained = time.monotonic(), lab.ledger.segments_trained
        then = min(at + max(_TIMED, steps), whole.last)
        now = _timed(lab, whole, then)
        seconds, steps, at = seconds + now - before, steps + then - at, then
        if lab.ledger.segments_trained > trained:  # else it was in the store, and took nothing
            training = max(time.monotonic() - begun - (now - before), 0.0)
        before = now
    return Pace(max(seconds, 1e-4) / max(steps, 1), training)


def _timed(lab: Lab, whole: Segment, step: int) -> float:
    """Seconds of all training up to a step."""
    return lab.train(whole.until(step), label="to measure a step", measure=step > _WARM).train_seconds
