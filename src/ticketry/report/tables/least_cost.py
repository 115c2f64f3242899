"""The least cost of a call at which tickets are still as good as the dense network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ticketry.records.network import TICKET
from ticketry.report.tables.cost_of_call import CostPoint, Measure, cost_points
from ticketry.report.tables.results import Results, summarise


@dataclass(frozen=True)
class LeastCost:
    """A share of the dense network's cost, or a ratio of two."""

    value: float
    interval: tuple[float, float] | None
    """Of 95 %: jackknife over replicates, Student's t on the logarithm; None for fewer than three, and of a bound, for
    where no level falls short replicates differ in nothing."""
    reached: bool
    """Whether a level falls short: otherwise the value is the cost of the cheapest, and the least may be lower."""
    at_least: bool = False
    """Of a ratio that is not reached, whether it may be higher: it is by a run that falls short at no level."""

    @property
    def words(self) -> str:
        """What goes before the value of a bound."""
        return "" if self.reached else "at least " if self.at_least else "at most "


@dataclass(frozen=True)
class _Curve:
    """Differences to the dense network, higher is better, by replicate and level, the dearest level first."""

    costs: Sequence[CostPoint]
    differences: Sequence[dict[int, float]]
    replicates: frozenset[int]

    def least(self, replicates: Sequence[int], margin: float) -> tuple[float, bool]:
        """The logarithm of the cost down to which the mean over some replicates is within the margin of dense, and
        whether it falls short further down: by lines between neighbouring levels over that logarithm."""
        above = (0.0, 0.0)  # the dense network
        for point, differences in zip(self.costs, self.differences, strict=True):
            cost = math.log(statistics.fmean(point.costs[one] for one in replicates))
            difference = statistics.fmean(differences[one] for one in replicates)
            if difference < -margin:
                share = (above[1] + margin) / (above[1] - difference)
                return above[0] + share * (cost - above[0]), True
            above = (cost, difference)
        return above[0], False


def least_cost(results: Results, measure: Measure, margin: float) -> LeastCost | None:
    """Down to which share of the cost the mean of the tickets is no more than a margin below the dense network's.

    The curve of mean differences goes from the dense network (cost 1, difference 0) through all levels; its first
    crossing of the margin counts, so that one lucky level below does not.

    Returns:
        None where no level tells its cost, or no replicate has all of them.
    """
    curve = _curve(results, measure)
    if curve is None:
        return None
    (value, reached), ends = _jackknife(sorted(curve.replicates), lambda some: curve.least(some, margin))
    if ends is None or not reached:
        return LeastCost(math.exp(value), None, reached)
    # at the cost of the dense network there is no doubt
    return LeastCost(math.exp(value), (ends[0], min(1.0, ends[1])), reached)


def least_cost_ratio(one: Results, other: Results, measure: Measure, margin: float) -> LeastCost | None:
    """The least cost of one run by that of another, over the replicates that both have.

    Where one of them falls short at no level the ratio is a bound; where none does it may be anything.

    Returns:
        None where one of them has none, both fall short at no level, or they are not from the same seeds by the same
        recipe.
    """
    first, second = _curve(one, measure), _curve(other, measure)
    if first is None or second is None or not one.pairs_with(other):
        return None
    shared = sorted(first.replicates & second.replicates)
    if not shared:
        return None

    def ratio(replicates: Sequence[int]) -> tuple[float, bool]:
        (above, fell), (below, also) = first.least(replicates, margin), second.least(replicates, margin)
        return above - below, fell and also

    fell, also = (curve.least(shared, margin)[1] for curve in (first, second))
    if not fell and not also:
        return None
    (value, reached), ends = _jackknife(shared, ratio)
    return LeastCost(math.exp(value), ends if reached else None, reached, at_least=fell and not reached)


def _curve(results: Results, measure: Measure) -> _Curve | None:
    points, dense = cost_points(results, TICKET, measure), results.dense
    if not points or dense is None:
        return None
    sign, whole = results.run.task.metric.sign, dense.values()
    values = [point.group.values() for point in points]
    shared = frozenset(whole).intersection(*values)
    if not shared:
        return None
    return _Curve(points, [{one: sign * (each[one] - whole[one]) for one in shared} for each in values], shared)


def _jackknife(
    replicates: Sequence[int], of: Callable[[Sequence[int]], tuple[float, bool]]
) -> tuple[tuple[float, bool], tuple[float, float] | None]:
    """A statistic of all replicates, and the interval of its exponential from what it is without each of them."""
    whole, n = of(replicates), len(replicates)
    if n < 3:
        return whole, None
    without = [of([one for one in replicates if one != left])[0] for left in replicates]
    ends = summarise(n * whole[0] - (n - 1) * each for each in without).interval
    half = (ends[1] - ends[0]) / 2 if ends is not None else 0.0
    return whole, (math.exp(whole[0] - half), math.exp(whole[0] + half))
