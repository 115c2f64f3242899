"""Find a mask near a requested latency: estimate from costs, compile, time and correct; then report the result."""

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
"""Relative distance from the budget at which a mask is accepted; half a per cent smaller than the documented one."""

_REPORTED_ROUNDS = 11
"""Number of rounds of the timing that is reported."""

_ALLOCATIONS = 12
"""Maximum number of allocations until an estimate meets the request; several are needed where cost curves are not
convex, because allocation uses their convex hulls."""


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Considered:
    """Result for one granularity that was tried for a budget: its mask nearest to the budget."""

    structure: str
    density: float
    seconds: float
    value: float
    """Logarithm of the retained importance, averaged over layers in proportion to their own; 0 for all of it."""
    why_not: str = ""
    """Why this granularity has no mask; empty if it has one. The numbers are NaN then."""

    def __str__(self) -> str:
        if self.why_not:
            return f"structure={self.structure!r} has no mask: {self.why_not}"
        retained, seconds = f"{100 * self.density:.3g} %", format_cost(self.seconds, "seconds")
        return f"structure={self.structure!r} retains {retained} at {seconds}"


@dataclass(frozen=True)
class Met:
    """Result of a latency budget: a mask, its measured latency, the budget, and the estimate.

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
    """Seconds of the base engine, of the unpruned compiled model, and of the budget."""
    share: float
    """Latency of the mask over that of the base engine: the median of a separate timing after the mask was chosen, of
    models compiled anew and called in turns."""
    low: float
    """Lower end of the 95 % interval of the share."""
    high: float
    estimated: float | None = None
    """Estimated seconds; None if nothing had to be pruned."""
    rounds: int = 0
    """Number of masks that were timed."""
    first: float = 1.0
    """Estimated over measured latency of the first mask that was timed, before any correction."""
    chosen: float = 0.0
    """Share that was measured when the mask was chosen. It is biased towards the request; use `share`."""
    costs: CostModel | None = None
    """Costs by which masks were chosen; None if nothing had to be pruned, or if only channels were tried."""
    structure: str = ""
    """Granularity of the mask: ``weights``, ``auto`` (weights or groups of rows, by layer), ``channels`` …"""
    considered: tuple[Considered, ...] = ()
    """All granularities that were timed, including this one."""

    @property
    def requested(self) -> float:
        """Requested latency as a share of the base engine's latency."""
        return self.latencies.requested / self.latencies.now

    @property
    def seconds(self) -> float:
        """Latency of the mask in seconds: the share times the base engine's latency."""
        return self.share * self.latencies.now

    @property
    def missed_by(self) -> float:
        """Relative distance of the latency from the request; negative if the mask is faster than requested."""
        return self.share / self.requested - 1

    @property
    def pruned(self) -> bool:
        """Whether anything had to be pruned."""
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
        mask: that retains all candidates.
        latencies: as measured.
    """
    share = latencies.unpruned / latencies.now
    return Met(mask, latencies, share, share, share)


# -- the search for one granularity ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedMask:
    """A mask that was timed while a budget was approached; shares are of the unpruned compiled network's latency."""

    mask: Mask
    aim: float
    """Estimated share for which the mask was chosen."""
    estimated: float
    found: Interval


MaskAt = Callable[[float], tuple[Mask, float]]
"""Share of the unpruned latency to aim at -> a mask and its estimated share."""


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
    """Time masks until one is near the requested share of the latency; each aim is corrected by the masks before.

    Args:
        meter: of the network.
        asked: share of the unpruned compiled network's latency.
        mask_at: see `MaskAt`; it may raise an error for an aim that no mask meets.
        floor: minimum aim.
        rounds: maximum number of masks that are timed, `known` ones included.
        near: relative distance at which no further mask is timed.
        turns: how often each mask and the unpruned network are timed alternately.
        known: masks that were timed before.

    Raises:
        UsageError, LayerCollapseError: what `mask_at` raises, if no mask was timed.
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
    """Return the next aim from (aim, measured) points: interpolated between the nearest two, else in proportion."""
    below = [point for point in points if point[1] <= asked]
    above = [point for point in points if point[1] > asked]
    if below and above:
        (aim, one), (other_aim, other) = max(below, key=lambda p: p[1]), min(above, key=lambda p: p[1])
        return aim + (other_aim - aim) * (asked - one) / (other - one)
    aim, one = min(points, key=lambda point: abs(point[1] - asked))
    return aim * asked / one


def nearest(tried: Sequence[TimedMask], asked: float) -> TimedMask:
    """Return the timed mask whose measured share is nearest to the requested one."""
    return min(tried, key=lambda one: abs(one.found.median / asked - 1))


def report_nearest(meter: Meter, tried: Sequence[TimedMask], asked: float, latencies: Latencies) -> Met:
    """Time the nearest mask once more, compiled anew, and return the result.

    Args:
        meter: of the network.
        tried: masks of `approach`.
        asked: share of the unpruned compiled network's latency.
        latencies: of the same budget, with its base.
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
    """Return the mask whose measured latency is nearest to a budget of the unpruned compiled network's latency.

    Args:
        meter: of the network.
        costs: of the same network in seconds, by which the first mask is chosen.
        time: share of the unpruned compiled network's latency, or an amount.
        allocate: budget in seconds -> a mask.

    Raises:
        UsageError: for a budget below the floor; the message lists what the floor consists of.
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
    """Return a function from an aim to the mask whose estimated share is nearest to the aim.

    Args:
        costs: of the network.
        allocate: budget in seconds -> a mask.
    """

    def mask_at(aim: float) -> tuple[Mask, float]:
        mask = mask_nearest_budget(costs, aim * costs.dense, allocate)
        return mask, costs.estimate(mask).value / costs.dense

    return mask_at


def mask_nearest_budget(costs: CostModel, budget: float, allocate: Callable[[float], Mask]) -> Mask:
    """Return the mask whose estimate is nearest to a budget.

    The aim is corrected in proportion to the last estimate, or by bisection if that does not halve the distance.
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
"""Density of a stage of layers below which retraining rarely recovers the accuracy."""

_LARGE_ERROR = 0.2
"""Relative error of the first estimate from which a warning is given."""


def quality_warnings(found: Met) -> Iterator[str]:
    """Yield warnings about a mask: stages with hardly any weights, and estimates that were far off.

    Args:
        found: the result of a budget.
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
    """Return the stage of a parameter: its name up to the first numbered part, or else its layer.

    >>> stage_of("blocks.2.1.conv_pw.weight"), stage_of("layer1.0.conv1.weight"), stage_of("conv_head.weight")
    ('blocks.2', 'layer1', 'conv_head')
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if part[-1:].isdecimal():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1]) or name


def stage_densities(layers: Iterable[tuple[str, int, int]]) -> dict[str, float]:
    """Return the density of each stage.

    Args:
        layers: parameter name, weights retained, and number of its weights.
    """
    kept: dict[str, int] = {}
    total: dict[str, int] = {}
    for name, retained, size in layers:
        stage = stage_of(name)
        kept[stage] = kept.get(stage, 0) + retained
        total[stage] = total.get(stage, 0) + size
    return {stage: kept[stage] / total[stage] for stage in total if total[stage]}
