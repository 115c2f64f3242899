"""A mask that meets a budget of time: found by estimates, compiled, timed, and corrected."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from ticketry.core.costs.cost_model import CostModel, Estimate
from ticketry.core.costs.words import told
from ticketry.core.mask import Mask
from ticketry.engine.cost.meter import Meter
from ticketry.errors import LayerCollapseError, UsageError

_log = logging.getLogger(__name__)

_ROUNDS = 5
"""Masks that are timed at most."""

_NEAR = 0.015
"""Share of the budget that the measured time may be away from it: half a per cent less than what is promised."""

_LAST_ROUNDS = 11
"""Of the timing that is reported."""

_STEPS = 12
"""Allocations until the estimate is what was asked for: curves need not be convex, and allocation takes their hulls."""


@dataclass(frozen=True)
class Met:
    """A `mask` and what it was measured to take, between `low` and `high`, beside what the `costs` had said.

    Examples:
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        >>> met = tk.cost.meet(model, torch.randn(64, 256), 0.8, keep_at_least=1, threads=1)
        >>> 0 < met.low <= met.share <= met.high
        True
        >>> round(met.missed_by, 6) == round(met.share / 0.8 - 1, 6)
        True
    """

    mask: Mask
    share: float
    """Time over that of the dense network's in the same engine, in turns: the median.

    Of a timing of its own, after the mask was chosen, both compiled anew.
    """
    low: float
    """Of the 95 % interval of the share."""
    high: float
    seconds: float
    """The share times the dense network's seconds."""
    asked: float
    """Share that was asked for."""
    estimated: Estimate
    """What the costs say of the same mask."""
    rounds: int
    """Masks that were timed."""
    first: float
    """Estimated over measured time of the first of them, before anything was corrected."""
    chosen: float
    """The share by which the mask was chosen among those that were timed: it leans towards what was asked for."""
    costs: CostModel

    @property
    def missed_by(self) -> float:
        """Share of the budget by which the measured time is away from it: below 0 where it is faster."""
        return self.share / self.asked - 1

    def __str__(self) -> str:
        return (
            f"{100 * self.share:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of the dense time,"
            f" {told(self.seconds, 'seconds')}, of {100 * self.asked:.1f} % asked for; estimated"
            f" {told(self.estimated.value, 'seconds')}; {self.rounds} masks timed; density {self.mask.density:.4g}"
        )


def meet_by(meter: Meter, costs: CostModel, time: float | str, allocate: Callable[[float], Mask]) -> Met:
    """The mask that comes nearest to a budget of time, as measured.

    Args:
        costs: of the same network in seconds, by which the first mask is chosen.
        time: share of the dense network's time, or seconds.
        allocate: budget in seconds -> a mask.

    Raises:
        UsageError: for a budget below the floor: it says what makes it.
    """
    if costs.unit != "seconds":
        raise UsageError(f"a budget of time needs costs in seconds, not in {costs.unit}")
    asked = costs.budget(time) / costs.dense
    best: Met | None = None
    aim, first, points = asked, 1.0, list[tuple[float, float]]()
    for number in range(1, _ROUNDS + 1):
        try:
            mask = estimated_at(costs, aim * costs.dense, allocate)
        except (UsageError, LayerCollapseError):
            if best is None:
                raise
            break  # what a correction aims at is below what can be had
        found = meter.share(meter.compiled(mask), rounds=7)
        seconds = found.median * meter.dense_seconds
        estimate = costs.estimate(mask)
        if best is None:
            first = estimate.value / costs.dense / found.median
        met = Met(
            mask, found.median, found.low, found.high, seconds, asked, estimate, number, first, found.median, costs
        )
        _log.info("%s", met)
        if best is None or abs(met.missed_by) < abs(best.missed_by):
            best = met
        if abs(met.missed_by) <= _NEAR:
            break
        points.append((aim, found.median))
        aim = min(max(_next(points, asked), costs.floor / costs.dense), 1.2)
    assert best is not None
    achieved = meter.share_anew(best.mask, _LAST_ROUNDS)
    return replace(
        best,
        share=achieved.median,
        low=achieved.low,
        high=achieved.high,
        seconds=achieved.median * meter.dense_seconds,
        rounds=number,
    )


def estimated_at(costs: CostModel, budget: float, allocate: Callable[[float], Mask]) -> Mask:
    """The mask whose estimate is nearest to a budget.

    What is aimed at is corrected in proportion; where that does not halve the distance, by halves of where it must lie.
    """
    aim, best, away = budget, None, float("inf")
    low, high = costs.floor, float("inf")
    for _ in range(_STEPS):
        try:
            mask = allocate(aim)
        except (UsageError, LayerCollapseError):
            if best is None:
                raise
            low, before = aim, 0.0  # nothing can be had for so little
        else:
            ratio, before = costs.estimate(mask).value / budget, away
            if abs(ratio - 1) < away:
                best, away = mask, abs(ratio - 1)
            if away < _NEAR / 3 or (mask.density >= 1 and ratio <= 1):
                break
            low, high = (aim, high) if ratio <= 1 else (low, aim)
        if low >= high:
            break
        slow = away > before / 2
        aim = (low + min(high, 2 * aim)) / 2 if slow or not low < aim / ratio < high else aim / ratio
    assert best is not None
    return best


def _next(points: list[tuple[float, float]], asked: float) -> float:
    """What to aim at, of what was aimed at and measured: by the two nearest on either side, else in proportion."""
    below = [point for point in points if point[1] <= asked]
    above = [point for point in points if point[1] > asked]
    if below and above:
        (aim, one), (other_aim, other) = max(below, key=lambda p: p[1]), min(above, key=lambda p: p[1])
        return aim + (other_aim - aim) * (asked - one) / (other - one)
    aim, one = min(points, key=lambda point: abs(point[1] - asked))
    return aim * asked / one
