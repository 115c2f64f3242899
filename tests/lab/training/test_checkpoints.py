"""When states inside a segment are stored: what a kill costs is at most the interval, by a clock that is set here."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketry.lab.training import job as jobs
from ticketry.lab.training.job import Job, Watch


class Clocked(Job):
    """Job and loop of a training whose steps and states take the given seconds."""

    group = None
    segment = None  # type: ignore[assignment]

    def __init__(self, steps: list[float], storing: list[float]) -> None:
        self.now, self.step = 0.0, 0
        self.steps_trained, self.train_seconds, self.missing = 0, 0.0, [len(steps)]
        self._steps, self._storing = steps, itertools.cycle(storing)
        self.stored = [(0.0, 0.0)]
        """Of each state the moments at which it was taken, and was stored."""

    def monotonic(self) -> float:
        return self.now

    def build_loop(self) -> Any:
        return self

    def state(self) -> Any:
        return None

    def train_until(self, stop: int, tick: Any) -> None:
        for seconds in self._steps[:stop]:
            self.now += seconds
            self.step += 1
            tick()

    def store_partial(self, state: Any) -> None:
        taken = self.now
        self.now += next(self._storing)
        self.stored.append((taken, self.now))

    def store_result(self, loop: Any) -> None:
        self.stored.append((self.now, self.now))

    def _load_unmeasured_result(self) -> None:
        return None

    def drop_checkpoints(self) -> None:
        pass


def trained(steps: list[float], storing: list[float], interval: float) -> Clocked:
    clocked = Clocked(steps, storing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "time", SimpleNamespace(monotonic=clocked.monotonic, process_time=time.process_time))
        clocked.train(Watch(interval))
    return clocked


def losses(clocked: Clocked) -> list[float]:
    """The most that a kill costs: just before a state is stored, all since the one before was taken."""
    return [stored - before for (before, _), (_, stored) in itertools.pairwise(clocked.stored)]


@given(
    step=st.floats(0.001, 0.3),
    storing=st.floats(0, 0.15),
    slower=st.floats(0, 0.45),
    interval=st.sampled_from([1.0, 2.0, 60.0]),
)
def test_a_kill_costs_at_most_the_interval(step: float, storing: float, slower: float, interval: float) -> None:
    """Also where one state takes up to half as long again as the one before; of the first, nobody knows how long."""
    steps = [step] * int(5 * interval / step)
    clocked = trained(steps, [storing, storing * (1 + slower)], interval)
    first, *others = losses(clocked)
    assert first <= interval + storing + 1e-9
    assert all(loss <= interval + 1e-9 for loss in others)
    rest = max(step, interval - 2 * step - 3 * storing)  # there is a step between two states at least
    assert len(others) <= sum(steps) / rest + 2, "no more states than that takes"


def test_a_state_each_step_where_that_is_asked_for() -> None:
    assert len(trained([0.01] * 40, [0.02], 1e-9).stored) == 42


def test_where_states_take_longer_than_the_interval_training_goes_on() -> None:
    clocked = trained([0.01] * 1000, [5.0], 1.0)
    stored = len(clocked.stored) - 2
    assert 10 / stored >= 0.5 - 0.02, "half of the interval is trained between two of them"
