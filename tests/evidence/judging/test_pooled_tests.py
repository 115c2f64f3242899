"""The tests for the levels of a search against the same tests written out, and their error rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slow_p_values import slow_pooled
from ticketry.evidence.comparison import compare, with_pooled_sd
from ticketry.evidence.significance import pool, pooled_p_values, replicates_needed
from ticketry.evidence.verdict import holm
from ticketry.records.network import Point

MARGIN = 0.5


def compared(levels: Any, index: int) -> Any:
    own = [float(value) for value in levels[index]]
    found = compare(own, [0.0] * len(own), margin=MARGIN, least_spread=0.3)
    return with_pooled_sd(found, pool(levels, MARGIN), None)


@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (3, 4), (7, 5), (14, 3)])
@pytest.mark.parametrize("scale", [0.05, 0.4, 3.0])
def test_p_values_and_intervals_are_those_written_out(shape: tuple[int, int], scale: float) -> None:
    random = np.random.default_rng([*shape, int(100 * scale)])
    levels = (random.normal(0, scale, shape) + np.linspace(0.3, -4, shape[0])[:, None]).tolist()
    for index in range(shape[0]):
        found = compared(levels, index)
        above, below, interval = slow_pooled(levels, index, -MARGIN, MARGIN)
        assert (found.p_noninferior, found.p_inferior) == pytest.approx((above, below))
        assert (found.p_superior, found.p_worse) == pytest.approx(slow_pooled(levels, index, 0.0, MARGIN)[:2])
        assert (found.low, found.high) == pytest.approx(interval)


def test_lost_levels_are_not_pooled_and_single_collapses_are() -> None:
    steady = [0.1, -0.1, 0.2, 0.0, -0.2]
    lost = [-9.0, -14.0, -4.0, -20.0, -11.0]
    collapsed = [0.1, -0.1, 0.0, 0.2, -8.0]
    assert pool([steady, lost], MARGIN) == pool([steady], MARGIN)
    with_collapse = pool([steady, collapsed], MARGIN)
    assert with_collapse.levels == 2
    assert with_collapse.sd == pytest.approx(((np.var(steady, ddof=1) + np.var(collapsed, ddof=1)) / 2) ** 0.5)
    assert pool([lost], MARGIN).levels == 0
    assert compared([lost, lost], 0).p_noninferior > 0.99


@pytest.mark.parametrize(("distance", "spread", "alpha"), [(0.5, 0.3, 0.05), (0.5, 0.4, 0.05 / 14), (0.3, 0.3, 0.01)])
def test_replicates_needed_reach_their_power(distance: float, spread: float, alpha: float) -> None:
    pooled = pool([[-spread, spread] * 50] * 5, MARGIN)
    needed = replicates_needed(distance, spread, alpha, pooled)
    assert needed is not None
    means = np.random.default_rng(1).normal(distance, spread, (4000, needed + 1))

    def power(n: int) -> float:
        shown = [pooled_p_values(float(mean), spread, n, pooled)[0] <= alpha for mean in means[:, :n].mean(axis=1)]
        return float(np.mean(shown))

    assert power(needed) >= 0.77
    assert needed == 3 or power(needed - 1) < 0.83


# -- error rates, in small: benchmarks/verdict_levels.py has them in full ----------------------------------------------


def rates(draw: Any, runs: int) -> tuple[float, float]:
    """How often some level of a search is called as good as dense, and the share of levels that are."""
    words = []
    for _ in range(runs):
        levels = draw()
        p_values = holm([compared(levels, index).p_noninferior for index in range(len(levels))])
        words.append([p <= 0.05 for p in p_values])
    return float(np.any(words, axis=1).mean()), float(np.mean(words))


def test_levels_without_a_difference_are_called_as_good_and_levels_at_the_margin_are_not() -> None:
    random = np.random.default_rng(7)

    def normal(mean: float) -> Any:
        shared = random.normal(size=(1, 5))
        return (mean + 0.3 * (0.5**0.5 * shared + 0.5**0.5 * random.normal(size=(14, 5)))).tolist()

    assert rates(lambda: normal(0.0), 60)[1] >= 0.25
    assert rates(lambda: normal(-MARGIN), 150)[0] <= 0.05

    def collapsing() -> Any:  # 5 % of replicates fall by 5 margins, and the mean is at the margin with them
        return (np.asarray(normal(-MARGIN + 0.125)) - 2.5 * (random.random((14, 5)) < 0.05)).tolist()

    assert rates(collapsing, 150)[0] <= 0.05


def point(level: int, role: str, replicate: int, value: float) -> Point:
    test = {"accuracy": value}
    return Point(level=level, role=role, replicate=replicate, density=0.8**level, validation=test, test=test, budget=9)
