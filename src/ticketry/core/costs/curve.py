"""What a layer costs against the share of its weights that is kept: a piecewise linear function."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

from msgspec import Struct


class Curve(Struct, frozen=True):
    """Cost of a layer at some densities, linear between them.

    Raises:
        ValueError: unless densities rise from 0 to 1, and costs are numbers of at least 0 that never fall.
    """

    densities: tuple[float, ...]
    """Shares of the layer's weights that are kept, rising from 0 to 1."""
    costs: tuple[float, ...]
    """In the unit of the cost model, of all calls of the layer."""

    def __post_init__(self) -> None:
        if len(self.densities) != len(self.costs) or len(self.costs) < 2:
            raise ValueError("a curve has as many costs as densities, at least two")
        if (self.densities[0], self.densities[-1]) != (0.0, 1.0):
            raise ValueError("a curve reaches from density 0 to density 1")
        if not all(one < other for one, other in pairwise(self.densities)):
            raise ValueError("the densities of a curve rise")
        if not all(0 <= one <= other < float("inf") for one, other in pairwise(self.costs)):
            raise ValueError("the costs of a curve are numbers of at least 0 and never fall")

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]]) -> Curve:
        """The curve through measured (density, cost).

        Where a denser layer is measured as cheaper, both have their mean (isotonic regression: Ayer et al. 1955). What
        is missing at density 0 is the line through the first two points, what is missing at 1 that of the last.

            >>> Curve.through([(0.1, 2.0), (0.5, 6.0), (1.0, 5.0)]).costs
            (1.125, 2.0, 5.5, 5.5)
        """
        known = sorted(dict(points).items())
        if len(known) < 2:
            raise ValueError("a curve needs two points")
        if known[-1][0] < 1:
            known.append((1.0, max(_extended(known[-2], known[-1], 1.0), known[-1][1])))
        costs = _rising([cost for _, cost in known])
        if known[0][0] > 0:
            first = _extended((known[0][0], costs[0]), (known[1][0], costs[1]), 0.0)
            known.insert(0, (0.0, first))
            costs.insert(0, min(max(first, 0.0), costs[0]))
        return cls(tuple(float(density) for density, _ in known), tuple(costs))

    def at(self, density: float) -> float:
        """Cost at a density."""
        index = min(max(bisect_right(self.densities, density), 1), len(self.densities) - 1)
        points = list(zip(self.densities, self.costs, strict=True))
        return _extended(points[index - 1], points[index], density)

    def convex(self) -> Curve:
        """The largest convex function that is nowhere above this one: its lower convex hull."""
        hull: list[tuple[float, float]] = []
        for point in zip(self.densities, self.costs, strict=True):
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        return Curve(tuple(density for density, _ in hull), tuple(cost for _, cost in hull))

    def times(self, factor: float) -> Curve:
        """The curve of a layer that costs `factor` times as much."""
        return Curve(self.densities, tuple(factor * cost for cost in self.costs))


def _rising(costs: list[float]) -> list[float]:
    """The rising costs with the least squared distance to these: neighbours that fall are pooled."""
    pools: list[tuple[float, int]] = []
    for cost in costs:
        pools.append((cost, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, few), (other, more) = pools[-2:]
            pools[-2:] = [((few * one + more * other) / (few + more), few + more)]
    return [cost for cost, count in pools for _ in range(count)]


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _extended(one: tuple[float, float], other: tuple[float, float], density: float) -> float:
    return one[1] + (density - one[0]) * _slope(one, other)
