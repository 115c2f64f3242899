"""Costs by density."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from ticketry.core.costs.curve import Curve


def test_linear_between_its_points_and_never_falling():
    curve = Curve.through([(0.1, 2.0), (0.5, 6.0), (0.8, 7.0), (1.0, 5.0)])
    assert curve == Curve((0.0, 0.1, 0.5, 0.8, 1.0), (1.0, 2.0, 6.0, 6.0, 6.0))
    assert curve.at(0.3) == pytest.approx(4.0)
    assert curve.at(0) == 1.0
    assert curve.at(1) == 6.0
    assert Curve.through([(0.2, 1.0), (0.6, 3.0)]).costs == pytest.approx((0.0, 1.0, 3.0, 5.0))
    assert Curve.through([(0.5, 1.0), (1.0, 9.0)]).costs[0] == 0.0


def test_estimates_rise_with_density():
    generator = np.random.default_rng(0)
    for _ in range(20):
        points = zip(generator.random(6), generator.random(6), strict=True)
        curve = Curve.through((float(density), float(cost)) for density, cost in points)
        costs = [curve.at(density) for density in np.linspace(0, 1, 101)]
        assert all(one <= other + 1e-12 for one, other in itertools.pairwise(costs))


def test_hull_is_the_one_of_qhull():
    generator = np.random.default_rng(1)
    for _ in range(20):
        inner = np.sort(generator.random(8))
        densities = (0.0, *map(float, inner), 1.0)
        curve = Curve(densities, tuple(map(float, np.sort(generator.random(10)))))
        points = np.array([*zip(densities, curve.costs, strict=True), (0.0, 9.0), (1.0, 9.0)])
        lower = sorted(index for index in ConvexHull(points).vertices if index < 10)
        hull = curve.convex()
        assert hull.densities == tuple(densities[index] for index in lower)
        assert hull.costs == tuple(curve.costs[index] for index in lower)


@pytest.mark.parametrize(
    ("densities", "costs"),
    [
        ((0.0,), (1.0,)),
        ((0.0, 1.0), (1.0,)),
        ((0.1, 1.0), (1.0, 2.0)),
        ((0.0, 0.5, 0.5, 1.0), (1.0, 1.0, 2.0, 2.0)),
        ((0.0, 1.0), (2.0, 1.0)),
        ((0.0, 1.0), (-1.0, 1.0)),
        ((0.0, 1.0), (math.nan, 1.0)),
        ((0.0, 1.0), (0.0, math.inf)),
    ],
)
def test_what_is_no_curve(densities, costs):
    with pytest.raises(ValueError, match="curve"):
        Curve(densities, costs)
