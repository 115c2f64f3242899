"""A mask that meets a budget of time: found by estimates, compiled, timed, and corrected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ticketry.core.costs.bases import ENGINE, Latencies
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.words import told
from ticketry.core.mask import Mask
from ticketry.engine.cost.meter import Meter
from ticketry.errors import LayerCollapseError, UsageError
from ticketry_engine.bench.timing import Interval

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
class Considered:
    """A granularity that was timed for a budget, at the mask nearest to it."""

    structure: str
    density: float
    seconds: float
    value: float
    """Logarithm of the retained importance, summed over the layers in proportion to their own; 0 for all of it."""
    why_not: str = ""
    """Why it has no mask; the numbers are NaN then."""

    def __str__(self) -> str:
        if self.why_not:
            return f"structure={self.structure!r} has no mask: {self.why_not}"
        return f"structure={self.structure!r} retains {100 * self.density:.3g} % at {told(self.seconds, 'seconds')}"


@dataclass(frozen=True)
class Met:
    """A `mask` and the latency that was measured with it, beside the budget and what the `costs` had estimated.

    Examples:
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        >>> met = tk.cost.meet(model, torch.randn(64, 256), 0.8, base="engine", keep_at_least=1, threads=1)
        >>> 0 < met.low <= met.share <= met.high
        True
        >>> round(met.missed_by, 6) == round(met.share / met.requested - 1, 6)
        True
        >>> met.latencies.base, met.latencies.met_unpruned
        ('engine', False)
    """

    mask: Mask
    latencies: Latencies
    """Seconds of the base, of the unpruned compiled model, and as requested."""
    share: float
    """Latency over that of the base: the median of a separate timing, after the mask was chosen, of models compiled
    anew and called in turns."""
    low: float
    """Lower end of the 95 % interval of the share."""
    high: float
    estimated: float | None = None
    """Estimated seconds; None where nothing had to be pruned."""
    rounds: int = 0
    """Masks that were timed."""
    first: float = 1.0
    """Estimated over measured latency of the first mask, before anything was corrected."""
    chosen: float = 0.0
    """Share by which the mask was chosen among those that were timed: it leans towards the request."""
    costs: CostModel | None = None
    """By which masks were chosen; None where nothing had to be pruned, or channels were chosen alone."""
    structure: str = ""
    """What is removed together: ``weights``, ``auto`` (weights or groups of rows, by layer), ``channels`` …"""
    considered: tuple[Considered, ...] = ()
    """All granularities that were timed, this one among them."""

    @property
    def requested(self) -> float:
        """Requested share of the base's latency."""
        return self.latencies.requested / self.latencies.now

    @property
    def seconds(self) -> float:
        """Latency: the share times that of the base."""
        return self.share * self.latencies.now

    @property
    def missed_by(self) -> float:
        """Relative distance of the latency from the request; below 0 where it is faster."""
        return self.share / self.requested - 1

    @property
    def pruned(self) -> bool:
        """Whether anything had to be pruned."""
        return not self.latencies.met_unpruned

    def __str__(self) -> str:
        if not self.pruned:
            return str(self.latencies)
        of = "the unpruned compiled model" if self.latencies.base == ENGINE else self.latencies.base
        estimated = f"; estimated {told(self.estimated, 'seconds')}" if self.estimated else ""
        structure = f"; {self.structure}" if self.structure else ""
        return (
            f"{self.latencies}; achieved {told(self.seconds, 'seconds')}, {100 * self.share:.1f} %"
            f" [{100 * self.low:.1f}, {100 * self.high:.1f}] of {of}, {100 * self.requested:.1f} % requested"
            f"{estimated}; {self.rounds} masks timed; density {self.mask.density:.4g}{structure}"
        )


def without_pruning(mask: Mask, latencies: Latencies) -> Met:
    """The result where the unpruned compiled model meets the budget.

    Args:
        mask: retains all candidates.
        latencies: as measured.
    """
    share = latencies.unpruned / latencies.now
    return Met(mask, latencies, share, share, share)


@dataclass(frozen=True)
class Tried:
    """One mask that was timed on the way to a budget; shares are of the unpruned compiled network's latency."""

    mask: Mask
    aim: float
    """Estimated share that the mask was chosen for."""
    estimated: float
    found: Interval


MaskAt = Callable[[float], tuple[Mask, float]]
"""Share of the unpruned latency to aim at -> a mask, and its estimated share."""


def approach(
    meter: Meter,
    asked: float,
    mask_at: MaskAt,
    *,
    floor: float,
    rounds: int = _ROUNDS,
    near: float = _NEAR,
    turns: int = 7,
    known: Sequence[Tried] = (),
) -> list[Tried]:
    """Time masks, each chosen for an aim that is corrected by the ones before, until one is near the requested share.

    Args:
        meter: of the network.
        asked: share of the unpruned compiled network's latency.
        mask_at: see `MaskAt`; it may raise an error for an aim that no mask meets.
        floor: least aim.
        rounds: masks that are timed at most, `known` ones among them.
        near: relative distance at which no further mask is timed.
        turns: in which each mask and the unpruned network are timed.
        known: masks that were timed before.

    Raises:
        UsageError, LayerCollapseError: what `mask_at` raises, if no mask was timed.
    """
    tried = list(known)
    while len(tried) < rounds and not any(abs(one.found.median / asked - 1) <= near for one in tried):
        aim = asked
        if tried:
            points = [(one.aim, one.found.median) for one in tried]
            aim = min(max(_next(points, asked), floor), 1.2)
            if any(abs(aim - one.aim) <= 1e-9 for one in tried):
                break
        try:
            mask, estimated = mask_at(aim)
        except (UsageError, LayerCollapseError):
            if not tried:
                raise
            break  # what a correction aims at is below what can be had
        tried.append(Tried(mask, aim, estimated, meter.share(meter.compiled(mask), turns)))
        _log.info("aimed at %.4g of the unpruned latency, measured %.4g", aim, tried[-1].found.median)
    return tried


def nearest(tried: Sequence[Tried], asked: float) -> Tried:
    """Return the mask whose measured share is nearest to the requested one."""
    return min(tried, key=lambda one: abs(one.found.median / asked - 1))


def met_by(meter: Meter, tried: Sequence[Tried], asked: float, latencies: Latencies) -> Met:
    """Time the nearest of the tried masks once more, compiled anew, and return the result.

    Args:
        meter: of the network.
        tried: masks of `approach`.
        asked: share of the unpruned compiled network's latency.
        latencies: the same budget beside its base.
    """
    best, to_base = nearest(tried, asked), latencies.unpruned / latencies.now
    achieved = meter.share_anew(best.mask, _LAST_ROUNDS)
    return Met(
        best.mask,
        latencies,
        share=to_base * achieved.median,
        low=to_base * achieved.low,
        high=to_base * achieved.high,
        estimated=best.estimated * latencies.unpruned,
        rounds=len(tried),
        first=tried[0].estimated / tried[0].found.median,
        chosen=to_base * best.found.median,
    )


def meet_by(meter: Meter, costs: CostModel, time: float | str, allocate: Callable[[float], Mask]) -> Met:
    """Return the mask whose measured latency is nearest to a budget, whose base is the unpruned compiled network.

    Args:
        meter: of the network.
        costs: of the same network in seconds, by which the first mask is chosen.
        time: share of the unpruned compiled network's latency, or an amount.
        allocate: budget in seconds -> a mask.

    Raises:
        UsageError: for a budget below the floor: it says what makes it.
    """
    if costs.unit != "seconds":
        raise UsageError(
            f"a latency budget needs costs in seconds, not in {costs.unit}: take those of tk.cost.model(model,"
            " example_inputs)"
        )
    asked, dense = costs.budget(time) / costs.dense, meter.dense_seconds
    tried = approach(meter, asked, by_costs(costs, allocate), floor=costs.floor / costs.dense)
    return replace(met_by(meter, tried, asked, Latencies(ENGINE, dense, dense, asked * dense)), costs=costs)


def by_costs(costs: CostModel, allocate: Callable[[float], Mask]) -> MaskAt:
    """Return masks by the estimates of costs: `allocate` is budget in seconds -> a mask."""

    def mask_at(aim: float) -> tuple[Mask, float]:
        mask = estimated_at(costs, aim * costs.dense, allocate)
        return mask, costs.estimate(mask).value / costs.dense

    return mask_at


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
