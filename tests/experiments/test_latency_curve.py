"""Time against density, with an engine whose time is known."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch import Tensor, nn

from ticketry.errors import EngineError, UsageError
from ticketry.experiments.bench import time_densities
from ticketry.records.schema import as_json
from ticketry_engine.bench.dense_engines import Call, Eager
from ticketry_engine.bench.timing import Case, Timing

DENSE, OVERHEAD = 0.012, 0.003


class Slow(Eager):
    name = "slow"

    def prepare(self, case: Case) -> Call:
        return waits(case, DENSE)


def waits(case: Case, seconds: float) -> Call:
    def call(x: Tensor) -> Tensor:
        time.sleep(seconds)
        return case.model(x).detach()

    return call


def sparse(case: Case) -> Call:
    """Takes as long as it has weights, and a little."""
    weight = next(case.model.parameters())
    return waits(case, OVERHEAD + DENSE * int(weight.count_nonzero()) / weight.numel())


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    return Case(nn.Linear(20, 10).eval(), (torch.randn(2, 20),))


def test_points_beside_the_ideal_line(case: Case) -> None:
    found = time_densities(case, [Slow()], sparse, densities=[0.1, 1.0, 0.5, 0.5], timing=Timing(rounds=3))
    assert [point.density for point in found.points] == [1.0, 0.5, 0.1]
    assert found.comparison.fastest is not None
    dense = found.comparison.fastest.seconds
    assert dense is not None
    for point in found.points:
        assert point.ideal == point.density * dense
        assert point.seconds >= OVERHEAD + DENSE * point.density
        assert point.low <= point.seconds <= point.high
        assert point.saved_low <= point.saved <= point.saved_high
    assert found.points[0].saved < 0 < found.points[1].saved < found.points[2].saved
    assert found.break_even == 0.5
    assert all(row.error == 0 for row in found.comparison.times), "each density has outputs of its own"
    assert json.loads(json.dumps(as_json(found)))["points"][2]["density"] == 0.1

    def slower(case: Case) -> Call:
        return waits(case, 2 * DENSE)

    assert time_densities(case, [Slow()], slower, densities=[0.5], timing=Timing(rounds=2)).break_even is None


def test_wrong_words(case: Case) -> None:
    with pytest.raises(UsageError, match="density"):
        time_densities(case, [Slow()], sparse, densities=[2.0])
    with pytest.raises(UsageError, match="pattern"):
        time_densities(case, [Slow()], sparse, pattern="dots")
    with pytest.raises(EngineError, match="no dense engine"):
        time_densities(case, [], sparse, densities=[0.5], timing=Timing(rounds=2))
