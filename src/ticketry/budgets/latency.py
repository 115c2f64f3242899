"""Find masks within a budget; for a latency, time masks of several granularities and choose the best one."""

from __future__ import annotations

import logging
import math
import time as clock
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ticketry.budgets import model_costs
from ticketry.budgets.allocation import allocate_cost
from ticketry.budgets.cost_model import CostModel, describe_required_budget
from ticketry.budgets.layer_choice import LayerChoice, mask_value, zero_outside
from ticketry.budgets.request import (
    Considered,
    Met,
    Request,
    default_structure_of_latency,
    quality_warnings,
    result_without_pruning,
    score_finder,
)
from ticketry.budgets.timing import QUICK, THOROUGH, Meter, measure_costs, time_base
from ticketry.budgets.units import (
    AUTO,
    BY_MEASUREMENT,
    CHANNELS,
    EAGER,
    ENGINE,
    FINEST,
    Latencies,
    format_cost,
    granularities_to_measure,
    parse_share_or_amount,
    retains_whole_blocks,
    single_granularity,
)
from ticketry.core.mask import Mask
from ticketry.core.output_change import add_small_magnitudes
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, ScoreInputs
from ticketry.core.structure.channel_choice import ChannelChoice, ChannelOptions, ChannelOrder, ChannelPath
from ticketry.core.structure.layout import layouts, layouts_or_rows_first
from ticketry.core.structure.removal_trial import tried_structure
from ticketry.errors import BudgetWarning, CostError, LayerCollapseError, StructureError, UsageError
from ticketry_engine import Compiled
from ticketry_engine.bench.timing import Interval
from ticketry_engine.support.entry_points import entry_point

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from typing_extensions import Self

_SHARE_OF_REQUEST = 0.4
"""Multiple of the requested share of the time at which costs are measured, by the dense times of retained weights.

Because sparse kernels are slower per weight, the measured latency of that mask is near the request. Costs are also
measured without pruning and with empty layers. Timings of the chosen masks correct the estimates."""

_COMPARED, _ROUNDS = 3, 5
"""Maximum number of masks that are timed to compare granularities, and in total in the best granularity."""

_TURNS, _REPORTED_ROUNDS = 5, 11
"""Number of rounds in the timing of each mask, and in the final timing, which is reported."""

_BASE_EFFORT = replace(THOROUGH, seconds=0.05, settling=0.1, warming=1.0)
"""Effort of each timing of the base. The base is timed at several moments."""

_NEAR_COMPARED, _NEAR, _MET = 0.04, 0.02, 1.05
"""Relative distance from the budget at which granularities are compared; the distance at which the search ends, as
documented; and the multiple of the budget up to which it counts as met."""

_FAR = 0.08
"""Relative distance of the final timing from the budget above which the mask is corrected once more. The earlier
timings were then wrong, as on a machine that other programs use."""

_ALLOCATIONS = 12
"""Maximum number of allocations until an estimate meets the request. Several are needed if cost curves are not convex,
because allocation uses their convex hulls."""

_log = logging.getLogger(__name__)

_CANDIDATES = {BY_MEASUREMENT: (AUTO, CHANNELS)}
"""Structure -> granularities that are tried; for any other structure only that structure is tried.

Single weights alone are not tried, because by the cost model ``auto`` retains at least as much."""


@entry_point()
def meet(
    model: nn.Module,
    example_inputs: Any,
    time: float | str,
    *,
    base: str = EAGER,
    cost: CostModel | None = None,
    score: str | Score | None = None,
    structure: str | None = None,
    scope: Scope | None = None,
    within: Mask | None = None,
    keep_at_least: int = 0,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Met:
    """Meet a latency budget like ``prune(model, time=..., example_inputs=x)``, and return all measurements.

    If the compiled unpruned model meets the budget, nothing is pruned: `Met.pruned` is False.

    Args:
        model: model to prune, on the CPU.
        example_inputs: inputs of a call.
        time: a share of the base's latency, 0 < time <= 1 or "30%"; or an amount such as "5ms".
        base: way to run the unpruned model, to whose latency a share refers: ``eager``, ``torch.compile``,
            ``onnxruntime``, ``openvino``, or ``engine`` (compiled by ticketry without pruning).
        cost: costs of the model on this machine, as `tk.cost.model` returns them; None to measure them now.
        structure, score, scope, within, keep_at_least, batches, loss, seed: see `prune`.
        threads: number of threads that a call uses; None for `torch.get_num_threads()`.

    Returns:
        The mask, its measured latency as a share of the base's with a 95 % interval, and the estimate.

    Raises:
        UsageError: if the budget is below the floor, the latency with all layers empty; the message lists the parts of
            the floor.
        LayerCollapseError: if a layer would be left empty.
        CostError: if `cost` is of another model or another machine.
        EngineError: if the base is not installed, or cannot run the model.

    Examples:
        >>> model, x = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)), torch.randn(64, 256)
        >>> met = tk.cost.meet(model, x, 0.8, base="engine", structure="weights", threads=1)
        >>> 0 < met.low <= met.share <= met.high
        True
        >>> tk.cost.meet(model, x, "1s", threads=1).pruned
        False
    """
    chosen = scope or scope_of(model)
    by = default_structure_of_latency(structure, score, cost, within)
    scores = score_finder(score, model, chosen, within, ScoreInputs(batches, loss, seed), by, example_inputs)
    request = Request(model, example_inputs, chosen, "seconds", time, scores, by, within, keep_at_least, cost, base)
    return meet_request(request, threads or torch.get_num_threads())


def mask_for_budget(request: Request) -> Mask:
    """Return the mask for a budget: measured if it is a latency on this machine, else by estimated costs."""
    if request.unit == "seconds":
        if request.cost is not None and (other := model_costs.describe_other_machine(request.cost)):
            return _mask_by_estimate(request, request.cost, other)
        found = meet_request(request, torch.get_num_threads())
        if not found.pruned:
            warnings.warn(f"nothing was pruned: {found.latencies}", BudgetWarning, stacklevel=4)
        return found.mask
    costs = request.cost or model_costs.model(
        request.model, request.example_inputs, unit=request.unit, scope=request.scope
    )
    if request.channels is not None:
        return _densest_channel_mask_within_bytes(request, costs)
    request.check_floor(costs, request.amount)
    budget = aim = costs.budget(request.amount)
    allocate = _mask_allocator(request, costs, request.scores())
    mask = allocate(aim)
    while (cost := costs.estimate(mask).value) > budget:  # allocation underestimates costs
        aim *= min(budget / cost, 0.999)
        mask = allocate(aim)
    return mask


def _mask_by_estimate(request: Request, costs: CostModel, other: str) -> Mask:
    """Return the mask whose cost, estimated by costs of the machine that `other` names, is nearest to the budget."""
    if parse_share_or_amount(request.amount, request.unit)[1] and request.base != ENGINE:
        raise UsageError(
            f"time={request.amount!r} is a share of the latency of {request.base}, which cannot be timed here: {other}."
            " Give base='engine' (a share of the compiled model without pruning) or an amount (time='5ms')"
        )
    if request.structure == CHANNELS:
        raise CostError(f"whole channels are chosen by timing the model, which cannot be done here: {other}")
    warnings.warn(f"the time is estimated and not measured: {other}", stacklevel=5)
    _warn_of_time_in_torch(costs)
    if costs.budget(request.amount) >= costs.dense:
        unpruned = f"unpruned {format_cost(costs.dense, 'seconds')}, requested {request.amount}"
        warnings.warn(f"nothing was pruned: {unpruned}", BudgetWarning, stacklevel=5)
        return request.mask_of_all_candidates()
    request.check_floor(costs, request.amount)
    allocate = _mask_allocator(request, costs, request.scores())
    return mask_nearest_budget(costs, costs.budget(request.amount), allocate)


# -- by measurement ----------------------------------------------------------------------------------------------------


def meet_request(request: Request, threads: int) -> Met:
    """Meet a latency budget by timing masks on this machine; return the result with all measurements."""
    with Progress("latency budget", steps=3) as progress:
        progress.step("compiling the model without pruning")
        meter = Meter(request.model, request.example_inputs, threads, "fp32", request.scope, QUICK)
        if request.cost is not None:  # refuse unsuitable costs before weights are scored
            if other := model_costs.describe_other_machine(request.cost):
                raise CostError(f"a latency budget cannot be met here: {other}")
            model_costs.check_costs_fit_model(request.cost, meter)
        progress.step(f"timing {request.base} beside it")
        known = _time_unpruned_base(request, meter)
        if 0.8 < known.requested / known.unpruned < 1.25:  # noise might decide
            for _ in range(2):
                known = _time_unpruned_base(request, meter)
        if known.met_unpruned:
            return result_without_pruning(request.mask_of_all_candidates(), known)
        request.check_not_all_retained(known.requested / known.unpruned)
        found = _BudgetSearch(request, meter, known, progress).run()
    for concern in quality_warnings(found):
        warnings.warn(concern, BudgetWarning, stacklevel=4)
    return found


def _time_unpruned_base(request: Request, meter: Meter) -> Latencies:
    """Time the unpruned model in the request's base again; return latencies with the median of all such timings."""
    effort, meter.effort = meter.effort, _BASE_EFFORT
    known = time_base(meter, request.amount, request.base)
    meter.effort = effort
    return known


@dataclass
class _Candidate:
    """A granularity (such as groups of 16 rows) that the search tries, with the timed masks of this granularity."""

    structure: str
    mask_at: MaskAt
    floor: float
    tried: list[TimedMask]


class _BudgetSearch:
    """Time masks of each granularity for one budget, and choose the granularity that retains the most importance."""

    def __init__(self, request: Request, meter: Meter, known: Latencies, progress: Progress) -> None:
        self._request, self._meter, self._known, self._progress = request, meter, known, progress
        self._asked = known.requested / known.unpruned
        self._values: Mapping[str, Tensor] = {}
        self._costs: CostModel | None = None
        self._failed: list[Considered] = []
        self._names = _CANDIDATES.get(request.structure, (request.structure,))

    def run(self) -> Met:
        """Choose the best mask, time it once more, and return the result."""
        needs_costs = any(name != CHANNELS for name in self._names)
        timings = 4 * len(self._granularities) if needs_costs and self._request.cost is None else 0
        self._progress.add(timings + len(self._names) * _COMPARED + 2)
        if self._request.cost is not None:
            self._request.check_floor(self._request.cost, self._asked)
        parameters = self._request.scope.parameters(self._request.model)
        self._values = add_small_magnitudes(self._request.scores(), parameters)
        if needs_costs:
            self._costs = self._request.cost or self._measure_costs()
            self._time_base_again()
            _warn_of_time_in_torch(self._costs)
        found = [one for name in self._names if (one := self._time_masks_of_granularity(name)) is not None]
        self._time_base_again()
        best = max(found, key=self._sort_key)
        if abs(nearest_timed_mask(best.tried, self._asked).found.median / self._asked - 1) > _NEAR:
            self._time_more_masks(best, best.tried, len(best.tried) + _ROUNDS - _COMPARED)
        self._progress.step("timing the chosen mask once more")
        result = retime_nearest_mask(self._meter, best.tried, self._asked, self._known)
        if abs(result.missed_by) > _FAR:
            first, rounds = result.first, result.rounds
            share = result.share * self._known.now / self._known.unpruned
            chosen = replace(nearest_timed_mask(best.tried, self._asked), found=Interval(share, share, share, 0.0))
            self._time_more_masks(best, [chosen], _COMPARED)
            result = retime_nearest_mask(self._meter, best.tried, self._asked, self._known)
            result = replace(result, first=first, rounds=rounds + result.rounds - 1)
        considered = (*(self._summarise(one) for one in found), *self._failed)
        return replace(result, costs=self._costs, structure=best.structure, considered=considered)

    def _time_more_masks(self, best: _Candidate, known: list[TimedMask], rounds: int) -> None:
        """Time more masks of the granularity of `best`, until one is near the budget or `rounds` masks are timed.

        `known` are masks that were timed before; they count as rounds.
        """
        best.tried = time_masks_near_budget(
            self._meter,
            self._asked,
            best.mask_at,
            floor=best.floor,
            rounds=rounds,
            near=_NEAR,
            turns=_TURNS,
            known=known,
        )

    def _time_base_again(self) -> None:
        """Time the base again, and update the requested latency if it is a share of the base's."""
        self._known = _time_unpruned_base(self._request, self._meter)
        self._asked = self._known.requested / self._known.unpruned

    @property
    def _granularities(self) -> tuple[str, ...]:
        if self._request.structure == BY_MEASUREMENT:
            return (FINEST, "rows:16")
        return granularities_to_measure(self._request.structure)

    def _measure_costs(self) -> CostModel:
        values = zero_outside(self._values, self._request.within)
        amounts = (1e-9, _SHARE_OF_REQUEST * self._asked, 1.0)
        masks = model_costs.make_mask_family(self._meter, self._request.scope, values, amounts)
        costs = measure_costs(self._meter, self._granularities, masks, self._progress.step, check=False)
        self._request.check_floor(costs, self._asked)
        return costs

    def _time_masks_of_granularity(self, name: str) -> _Candidate | None:
        """Time masks of the granularity `name` near the budget.

        If it has no such mask, note the reason and return None. If no granularity has one, raise the error.
        """
        try:
            mask_at, floor = self._mask_builder(name)

            def mask_with_progress(aim: float) -> tuple[Mask, float]:
                self._progress.step(f"timing {name}")
                return mask_at(aim)

            alone = len(self._names) == 1
            rounds, near = (_ROUNDS, _NEAR) if alone else (_COMPARED, _NEAR_COMPARED)
            tried = time_masks_near_budget(
                self._meter, self._asked, mask_with_progress, floor=floor, rounds=rounds, near=near, turns=_TURNS
            )
            self._check_layer_minimum(tried)
        except (UsageError, LayerCollapseError, StructureError) as error:
            self._failed.append(Considered(name, math.nan, math.nan, math.nan, str(error)))
            if len(self._failed) == len(self._names):
                raise
            return None
        return _Candidate(name, mask_at, floor, tried)

    def _check_layer_minimum(self, tried: list[TimedMask]) -> None:
        """Raise `LayerCollapseError` if the mask nearest to the budget leaves fewer weights than `keep_at_least`."""
        least = self._request.keep_at_least
        for row in nearest_timed_mask(tried, self._asked).mask.table() if least else ():
            if row.kept < min(least, row.total) and row.name in self._request.scope.shapes:
                raise LayerCollapseError(f"{row.name} would keep {row.kept} weights, fewer than keep_at_least={least}")

    def _mask_builder(self, name: str) -> tuple[MaskAt, float]:
        """Return (function that maps a wanted share of the latency to a mask of granularity `name`, smallest share)."""
        if name == CHANNELS:
            return _channel_mask_builder(self._request, self._meter, self._values)
        assert self._costs is not None
        costs = self._costs
        costs.budget(self._asked)
        allocate = _mask_allocator(replace(self._request, structure=name), costs, self._values)
        return masks_by_estimate(costs, allocate), costs.floor / costs.dense

    def _sort_key(self, one: _Candidate) -> tuple[bool, float]:
        """Return a sort key: masks within the budget rank highest, by retained importance; others rank by latency."""
        best = nearest_timed_mask(one.tried, self._asked)
        over = best.found.median / self._asked
        if over > _MET:
            return False, -over
        return True, mask_value(self._values, best.mask)

    def _summarise(self, one: _Candidate) -> Considered:
        best = nearest_timed_mask(one.tried, self._asked)
        total = sum(float(score.sum(dtype=torch.float64)) for score in self._values.values())
        value = mask_value(self._values, best.mask) / max(total, 1e-300)
        return Considered(one.structure, best.mask.density, best.found.median * self._known.unpruned, value)


# -- masks of a structure ----------------------------------------------------------------------------------------------


def _mask_allocator(request: Request, costs: CostModel, values: Mapping[str, Tensor]) -> Callable[[float], Mask]:
    """Return a function that maps a budget, in the unit of `costs`, to a mask."""
    if retains_whole_blocks(request.structure):
        only = single_granularity(request.structure)
        if only == FINEST:
            known = layouts_or_rows_first(request.model, request.scope)
        else:
            known = layouts(request.model, request.scope, request.example_inputs)
        choice = LayerChoice(values, costs, known, only=only, least=request.keep_at_least, among=request.within)
        return lambda budget: choice.choose_within(budget).mask
    curves = costs.curves()
    return lambda budget: allocate_cost(
        values,
        curves,
        costs.left_for(values, budget),
        within=request.within,
        keep_at_least=request.keep_at_least,
        in_words=partial(describe_required_budget, costs),
    )


def _channel_mask_builder(request: Request, meter: Meter, values: Mapping[str, Tensor]) -> tuple[MaskAt, float]:
    """Return (function that maps a wanted share of the latency to a mask of whole channels, smallest share).

    The time of a layer is assumed to be proportional to the number of its weights that remain.
    """
    profile, dense = meter.dense_profile, meter.dense_seconds
    prices = {name: seconds / max(prod(meter.shape(name)), 1) for name, seconds in profile.layers.items()}
    path = _channel_removal_order(request, values, prices)
    fixed = dense - path.costs[0]

    def mask_at(aim: float) -> tuple[Mask, float]:
        step = path.first_step_within(max(aim * dense - fixed, path.lowest_cost))
        return path.mask(step), (fixed + path.costs[step]) / dense

    return mask_at, (fixed + path.lowest_cost) / dense


def _channel_removal_order(request: Request, values: Mapping[str, Tensor], prices: Mapping[str, float]) -> ChannelPath:
    """Return the order in which whole channels are removed: by the requested scores, or else by sums of `values`.

    `prices` has the cost of one weight of each parameter.
    """
    options = request.channels or ChannelOptions(ChannelOrder("global", 1, 1))
    known = options.known or partial(tried_structure, request.model, request.example_inputs, options.spare)
    choice = ChannelChoice(request.model, known(), request.scope)
    if request.within is not None:
        choice.check_whole_channel_mask(request.within)
    scores = options.scores(choice) if options.scores else choice.sum_weight_scores(values)
    return ChannelPath(choice, scores, prices, options.order, request.within)


def _densest_channel_mask_within_bytes(request: Request, costs: CostModel) -> Mask:
    """Return the mask of whole channels that retains most within a budget of bytes."""
    budget = costs.budget(request.amount)
    prices = {name: layer.dense / max(layer.weights, 1) for name, layer in costs.layers.items()}
    path = _channel_removal_order(request, request.scores(), prices)

    def cost_of_step(step: int) -> float:
        mask = path.mask(step)
        return costs.estimate(Mask({name: mask[name] for name in costs.layers})).value

    if cost_of_step(len(path)) > budget:
        path.first_step_within(-math.inf)
    # Costs fall from step to step.
    return path.mask(bisect_left(range(len(path)), True, key=lambda step: cost_of_step(step) <= budget))


def _warn_of_time_in_torch(costs: CostModel) -> None:
    """Warn if more than half of the time is spent in layers that run in torch, which no mask makes faster."""
    if costs.in_torch > costs.dense / 2:
        warnings.warn(f"most of the time is of layers {costs.in_torch_in_words()}", stacklevel=6)


# -- the search for one granularity ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedMask:
    """A timed mask with its wanted, estimated and measured latency, as shares of the unpruned compiled latency."""

    mask: Mask
    aim: float
    """Share of the latency that was wanted when the mask was chosen."""
    estimated: float
    found: Interval
    compiled: Compiled | None = None


MaskAt = Callable[[float], tuple[Mask, float]]
"""Function that maps a share of the unpruned latency to (mask, its estimated share)."""


def time_masks_near_budget(
    meter: Meter,
    asked: float,
    mask_at: MaskAt,
    *,
    floor: float,
    rounds: int = _ROUNDS,
    near: float = 0.015,
    turns: int = 7,
    known: Sequence[TimedMask] = (),
) -> list[TimedMask]:
    """Time masks until one is near the requested latency; return all timed masks.

    The latency at which the next mask aims is corrected by the earlier timings.

    Args:
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
            aim = min(max(_next_share_to_aim_at(points, asked), floor), 1.2)
            if any(abs(aim - one.aim) <= 1e-9 for one in tried):
                break
        try:
            mask, estimated = mask_at(aim)
        except (UsageError, LayerCollapseError):
            if not tried:
                raise
            break  # the corrected aim is below the least possible cost
        compiled = meter.compiled(mask)
        tried.append(TimedMask(mask, aim, estimated, meter.time_share(compiled, turns), compiled))
        _log.info("aimed at %.4g of the unpruned latency, measured %.4g", aim, tried[-1].found.median)
    return tried


def _next_share_to_aim_at(points: list[tuple[float, float]], asked: float) -> float:
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


def nearest_timed_mask(tried: Sequence[TimedMask], asked: float) -> TimedMask:
    """Return the timed mask whose measured share of the latency is nearest to the requested share `asked`."""
    return min(tried, key=lambda one: abs(one.found.median / asked - 1))


def retime_nearest_mask(meter: Meter, tried: Sequence[TimedMask], asked: float, latencies: Latencies) -> Met:
    """Time the mask in `tried` that is nearest to `asked` once more, in new memory, and return the result."""
    best, to_base = nearest_timed_mask(tried, asked), latencies.unpruned / latencies.now
    assert best.compiled is not None
    achieved = meter.retime_share(best.compiled, _REPORTED_ROUNDS)
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

    `time` is a share of that network's latency or an amount such as "5ms"; `allocate` maps a budget in seconds to a
    mask.
    """
    if costs.unit != "seconds":
        raise UsageError(
            f"a latency budget needs costs in seconds, not in {costs.unit}: take those of tk.cost.model(model,"
            " example_inputs)"
        )
    asked, dense = costs.budget(time) / costs.dense, meter.dense_seconds
    tried = time_masks_near_budget(meter, asked, masks_by_estimate(costs, allocate), floor=costs.floor / costs.dense)
    return replace(
        retime_nearest_mask(meter, tried, asked, Latencies(ENGINE, dense, dense, asked * dense)), costs=costs
    )


def masks_by_estimate(costs: CostModel, allocate: Callable[[float], Mask]) -> MaskAt:
    """Return a function that maps a share of the latency to (mask whose estimate is nearest, its estimated share).

    `allocate` maps a budget in seconds to a mask.
    """

    def mask_at(aim: float) -> tuple[Mask, float]:
        mask = mask_nearest_budget(costs, aim * costs.dense, allocate)
        return mask, costs.estimate(mask).value / costs.dense

    return mask_at


def mask_nearest_budget(costs: CostModel, budget: float, allocate: Callable[[float], Mask]) -> Mask:
    """Return the mask whose estimated cost is nearest to `budget`.

    `allocate` maps a budget to a mask. The budgets that it gets are corrected in proportion to the last estimate, or by
    bisection if that does not halve the distance.
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


# -- progress ----------------------------------------------------------------------------------------------------------

_PATIENCE = 1.0
"""Seconds after which a progress bar is displayed."""


class Progress:
    """A progress bar with the remaining time, on terminals and in notebooks only.

    The bar becomes longer if there are more steps than announced.
    """

    def __init__(self, title: str, steps: int = 0) -> None:
        self._title, self.planned, self.done = title, steps, 0
        self._began = clock.monotonic()
        self._bar: Bar | None = None

    def add(self, steps: int) -> None:
        """Announce `steps` further steps, which lengthen the bar."""
        self.planned += steps

    def step(self, what: str) -> None:
        """Finish the current step and begin the next one, which is displayed as `what`."""
        self.done += 1
        self.planned = max(self.planned, self.done)
        if self._bar is None and clock.monotonic() - self._began > _PATIENCE:
            self._bar = _start_progress_bar()
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                description=f"{self._title}: {what}",
                completed=self.done - 1,
                total=self.planned,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _start_progress_bar() -> Bar | None:
    """Start a progress bar on standard error or in a notebook; return None if neither can display a bar."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not (console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)):
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=console, transient=True, speed_estimate_period=60)
    bar.start()
    bar.add_task("")
    return bar
