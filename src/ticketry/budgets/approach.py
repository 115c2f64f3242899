"""Find a mask near a requested latency: estimate by costs, compile, time and correct, until it is near."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ticketry.budgets.cost_model import CostModel
from ticketry.budgets.granularity import CHANNELS
from ticketry.budgets.timing import Meter
from ticketry.budgets.units import ENGINE, Latencies, format_cost
from ticketry.core.mask import Mask
from ticketry.errors import LayerCollapseError, UsageError
from ticketry_engine.bench.timing import Interval

_log = logging.getLogger(__name__)

_ROUNDS = 5
"""Maximum number of masks that are timed."""

_NEAR = 0.015
"""Relative distance from the budget at which a mask is accepted; the documentation promises 0.02."""

_REPORTED_ROUNDS = 11
"""Number of rounds of the final timing, which is reported."""

_ALLOCATIONS = 12
"""Maximum number of allocations until an estimate meets the request. Several are needed if cost curves are not convex,
because allocation uses their convex hulls."""


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Considered:
    """Result for one granularity that was tried: the density, latency and value of its mask nearest to the budget."""

    structure: str
    density: float
    seconds: float
    value: float
    """Mean over layers of the logarithm of the retained share of importance, weighted by each layer's importance; 0 if
    all is retained."""
    why_not: str = ""
    """Why this granularity has no mask; all numbers are then NaN. Empty if it has a mask."""

    def __str__(self) -> str:
        if self.why_not:
            return f"structure={self.structure!r} has no mask: {self.why_not}"
        retained, seconds = f"{100 * self.density:.3g} %", format_cost(self.seconds, "seconds")
        return f"structure={self.structure!r} retains {retained} at {seconds}"


@dataclass(frozen=True)
class Met:
    """Result of a latency budget: the mask, its measured latency, the budget, and the estimate.

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
    """Latencies in seconds of the base, of the unpruned compiled model, and requested."""
    share: float
    """Latency with the mask as a share of the base's latency: the median of a separate timing after the mask was
    chosen, for which both models were compiled anew and called in turns."""
    low: float
    """Lower end of the 95 % interval of `share`."""
    high: float
    estimated: float | None = None
    """Estimated latency of the mask in seconds; None if nothing had to be pruned."""
    rounds: int = 0
    """Number of masks that were timed."""
    first: float = 1.0
    """Estimated latency divided by measured latency of the first timed mask, before any correction."""
    chosen: float = 0.0
    """Share that was measured when the mask was chosen. It is biased towards the request: use `share` instead."""
    costs: CostModel | None = None
    """Costs by which masks were chosen; None if nothing had to be pruned or only channels were tried."""
    structure: str = ""
    """Granularity of the mask: ``weights``, ``auto`` (weights or groups of rows, chosen for each layer), ``channels``
    …"""
    considered: tuple[Considered, ...] = ()
    """Results for all granularities that were tried, including the chosen one."""

    @property
    def requested(self) -> float:
        """Requested latency as a share of the base's latency."""
        return self.latencies.requested / self.latencies.now

    @property
    def seconds(self) -> float:
        """Latency with the mask in seconds: `share` times the base's latency."""
        return self.share * self.latencies.now

    @property
    def missed_by(self) -> float:
        """Relative distance of the measured latency from the requested one; negative if the mask is faster."""
        return self.share / self.requested - 1

    @property
    def pruned(self) -> bool:
        """Whether weights had to be pruned to meet the budget."""
        return not self.latencies.met_unpruned

    def __str__(self) -> str:
        if not self.pruned:
            return str(self.latencies)
        of = "the unpruned compiled model" if self.latencies.base == ENGINE else self.latencies.base
        estimated = f"; estimated {format_cost(self.estimated, 'seconds')}" if self.estimated else ""
        structure = f"; {self.structure}" if self.structure else ""
        return (
            f"{self.latencies}; achieved {format_cost(self.seconds, 'seconds')}, {100 * self.share:.1f} %"
            f" [{100 * self.low:.1f}, {100 * self.high:.1f}] of {of}, {100 * self.requested:.1f} % requested"
            f"{estimated}; {self.rounds} masks timed; density {self.mask.density:.4g}{structure}"
        )


def result_without_pruning(mask: Mask, latencies: Latencies) -> Met:
    """Return the result for a budget that the unpruned compiled model meets.

    Args:
        mask: mask that retains all candidates.
        latencies: the measured latencies and the requested one.
    """
    share = latencies.unpruned / latencies.now
    return Met(mask, latencies, share, share, share)


# -- the search for one granularity ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedMask:
    """A timed mask with its aimed, estimated and measured latency, as shares of the unpruned compiled network's."""

    mask: Mask
    aim: float
    """Share of the latency that was aimed at when the mask was chosen."""
    estimated: float
    found: Interval


MaskAt = Callable[[float], tuple[Mask, float]]
"""Function that maps a share of the unpruned latency to (mask, its estimated share)."""


def approach(
    meter: Meter,
    asked: float,
    mask_at: MaskAt,
    *,
    floor: float,
    rounds: int = _ROUNDS,
    near: float = _NEAR,
    turns: int = 7,
    known: Sequence[TimedMask] = (),
) -> list[TimedMask]:
    """Time masks until one is near the requested latency, correcting the aim by earlier timings; return all of them.

    Args:
        meter: meter that times the network.
        asked: requested share of the unpruned compiled network's latency.
        mask_at: see `MaskAt`; may raise an error for a share that no mask meets.
        floor: smallest share to aim at.
        rounds: maximum number of timed masks, including those in `known`.
        near: relative distance from the request at which no further mask is timed.
        turns: number of times that each mask and the unpruned network are timed alternately.
        known: masks that were timed before.

    Raises:
        UsageError, LayerCollapseError: the error of `mask_at`, if no mask could be timed.
    """
    tried = list(known)
    while len(tried) < rounds and not any(abs(one.found.median / asked - 1) <= near for one in tried):
        aim = asked
        if tried:
            points = [(one.aim, one.found.median) for one in tried]
            aim = min(max(_next_aim(points, asked), floor), 1.2)
            if any(abs(aim - one.aim) <= 1e-9 for one in tried):
                break
        try:
            mask, estimated = mask_at(aim)
        except (UsageError, LayerCollapseError):
            if not tried:
                raise
            break  # the corrected aim is below the least possible cost
        tried.append(TimedMask(mask, aim, estimated, meter.share(meter.compiled(mask), turns)))
        _log.info("aimed at %.4g of the unpruned latency, measured %.4g", aim, tried[-1].found.median)
    return tried


def _next_aim(points: list[tuple[float, float]], asked: float) -> float:
    """Return the next share to aim at, from (aim, measured) `points`.

    Interpolate between the nearest points below and above `asked`. If all are on one side, scale the nearest aim in
    proportion.
    """
    below = [point for point in points if point[1] <= asked]
    above = [point for point in points if point[1] > asked]
    if below and above:
        (aim, one), (other_aim, other) = max(below, key=lambda p: p[1]), min(above, key=lambda p: p[1])
        return aim + (other_aim - aim) * (asked - one) / (other - one)
    aim, one = min(points, key=lambda point: abs(point[1] - asked))
    return aim * asked / one


def nearest(tried: Sequence[TimedMask], asked: float) -> TimedMask:
    """Return the timed mask whose measured share of the latency is nearest to the requested share `asked`."""
    return min(tried, key=lambda one: abs(one.found.median / asked - 1))


def report_nearest(meter: Meter, tried: Sequence[TimedMask], asked: float, latencies: Latencies) -> Met:
    """Compile the nearest mask anew, time it once more, and return the result.

    Args:
        meter: meter that times the network.
        tried: the masks that `approach` timed.
        asked: share of the unpruned compiled network's latency.
        latencies: latencies of the same budget: base, unpruned and requested.
    """
    best, to_base = nearest(tried, asked), latencies.unpruned / latencies.now
    achieved = meter.share_anew(best.mask, _REPORTED_ROUNDS)
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


def meet_share(meter: Meter, costs: CostModel, time: float | str, allocate: Callable[[float], Mask]) -> Met:
    """Meet a latency budget relative to the unpruned compiled network; return the result with the nearest mask.

    Args:
        meter: meter that times the network.
        costs: costs of the same network in seconds, by which the first mask is chosen.
        time: a share of the unpruned compiled network's latency, or an amount such as "5ms".
        allocate: function that maps a budget in seconds to a mask.

    Raises:
        UsageError: if the budget is below the latency with all layers empty; the message lists the parts of that floor.
    """
    if costs.unit != "seconds":
        raise UsageError(
            f"a latency budget needs costs in seconds, not in {costs.unit}: take those of tk.cost.model(model,"
            " example_inputs)"
        )
    asked, dense = costs.budget(time) / costs.dense, meter.dense_seconds
    tried = approach(meter, asked, masks_by_estimate(costs, allocate), floor=costs.floor / costs.dense)
    return replace(report_nearest(meter, tried, asked, Latencies(ENGINE, dense, dense, asked * dense)), costs=costs)


def masks_by_estimate(costs: CostModel, allocate: Callable[[float], Mask]) -> MaskAt:
    """Return a function that maps a share of the latency to (mask whose estimate is nearest, its estimated share).

    Args:
        costs: costs of the network in seconds.
        allocate: function that maps a budget in seconds to a mask.
    """

    def mask_at(aim: float) -> tuple[Mask, float]:
        mask = mask_nearest_budget(costs, aim * costs.dense, allocate)
        return mask, costs.estimate(mask).value / costs.dense

    return mask_at


def mask_nearest_budget(costs: CostModel, budget: float, allocate: Callable[[float], Mask]) -> Mask:
    """Return the mask whose estimated cost is nearest to `budget`.

    The budget that `allocate` gets is corrected in proportion to the last estimate, or by bisection if that does not
    halve the distance.
    """
    aim, best, away = budget, None, float("inf")
    low, high = costs.floor, float("inf")
    for _ in range(_ALLOCATIONS):
        try:
            mask = allocate(aim)
        except (UsageError, LayerCollapseError):
            if best is None:
                raise
            low, before = aim, 0.0  # too low for any mask
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


# -- warnings about a result -------------------------------------------------------------------------------------------

_LEAST_STAGE_DENSITY = 0.05
"""Density of a stage (layers with a common prefix) below which retraining rarely recovers the accuracy."""

_LARGE_ERROR = 0.2
"""Relative error of the first estimate above which a warning is given."""


def quality_warnings(found: Met) -> Iterator[str]:
    """Yield warnings about a result: stages of layers with hardly any weights, and estimates that were far off.

    Args:
        found: result of a latency budget.
    """
    densities = stage_densities((row.name, row.kept, row.total) for row in found.mask.table())
    low = {stage: density for stage, density in densities.items() if density < _LEAST_STAGE_DENSITY}
    others = [one for one in found.considered if one.structure != found.structure and not one.why_not]
    denser = max(others, key=lambda one: one.density, default=None)
    if denser is not None and denser.density > found.mask.density:
        instead = f"{denser} for this budget; or request more time"
    else:
        instead = "request more time, or try structure='channels', which keeps dense kernels"
        if found.structure == CHANNELS or denser is not None:
            instead = "request more time, or start from a smaller network"
    other = f" Instead: {denser}" if denser is not None and denser.density > found.mask.density else ""
    if denser is None:
        other = " Leave structure out to have all granularities timed"
    if low:
        worst = min(low, key=lambda stage: low[stage])
        more = f" and {len(low) - 1} more stages are below {100 * _LEAST_STAGE_DENSITY:g} %" if len(low) > 1 else ""
        yield (
            f"{worst} retains {100 * low[worst]:.2g} % of its weights{more}: retraining seldom recovers the accuracy."
            f" Instead: {instead}"
        )
    if abs(found.first - 1) > _LARGE_ERROR:
        yield (
            f"the first mask was estimated at {100 * found.first:.0f} % of its measured latency; the budget is met by"
            f" measurement, but how it is spread over the layers is uncertain.{other}"
        )


def stage_of(name: str) -> str:
    """Return the stage of a parameter: its name up to the first part that ends with a digit, else its layer's name.

    >>> stage_of("blocks.2.1.conv_pw.weight"), stage_of("layer1.0.conv1.weight"), stage_of("conv_head.weight")
    ('blocks.2', 'layer1', 'conv_head')
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if part[-1:].isdecimal():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1]) or name


def stage_densities(layers: Iterable[tuple[str, int, int]]) -> dict[str, float]:
    """Return the density of each stage of layers, see `stage_of`.

    Args:
        layers: for each parameter, (name, number of retained weights, number of weights).
    """
    kept: dict[str, int] = {}
    total: dict[str, int] = {}
    for name, retained, size in layers:
        stage = stage_of(name)
        kept[stage] = kept.get(stage, 0) + retained
        total[stage] = total.get(stage, 0) + size
    return {stage: kept[stage] / total[stage] for stage in total if total[stage]}
