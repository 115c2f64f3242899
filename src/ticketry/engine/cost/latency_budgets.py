"""Masks that meet a budget here: each granularity is met by measurement, and the one that retains most is kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.costs.allocation import allocate_cost
from ticketry.core.costs.bases import EAGER, Latencies
from ticketry.core.costs.budgets import Request
from ticketry.core.costs.cost_model import CostModel, least_in_words
from ticketry.core.costs.granularity import CHANNELS, FINEST
from ticketry.core.costs.mixed import Choice, value_of, worth_within
from ticketry.core.costs.saliency import with_magnitudes
from ticketry.core.costs.words import told
from ticketry.core.layout import layouts, layouts_or_rows
from ticketry.core.mask import Mask
from ticketry.core.prune import budget_scores, structure_of_time
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, ScoreInputs
from ticketry.core.structure.channel_wise.choice import Choice as ChannelChoice
from ticketry.core.structure.channel_wise.path import ChannelOptions, ChannelPath
from ticketry.core.structure.channel_wise.ranking import ChannelOrder
from ticketry.core.structure.shrinking.removal_trial import tried_structure
from ticketry.core.structuring import AUTO, BY_MEASUREMENT, only_of
from ticketry.engine.cost import public
from ticketry.engine.cost.bases import latencies
from ticketry.engine.cost.concerns import concerns
from ticketry.engine.cost.measured import measured
from ticketry.engine.cost.meeting import (
    Considered,
    MaskAt,
    Met,
    Tried,
    approach,
    by_costs,
    estimated_at,
    met_by,
    nearest,
    without_pruning,
)
from ticketry.engine.cost.meter import QUICK, THOROUGH, Meter
from ticketry.engine.cost.progress import Progress
from ticketry.errors import BudgetWarning, CostError, LayerCollapseError, StructureError, UsageError
from ticketry_engine.support.entry_points import entry_point

_SHARES = (1e-9, 0.08, 0.3, 1.0)
"""Amounts of the masks by which costs are measured for one budget: what they leave open, its own timings correct."""

_ROUNDS, _LAST_ROUNDS, _TURNS = 3, 5, 3
"""Masks of each granularity that are timed, those of the best one, and turns of a timing."""

_NEAR, _MET = 0.04, 1.05
"""Distance from the budget at which a granularity is compared with others, and share of it up to which it is met."""


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
    """Meet a latency budget as ``prune(model, time=..., example_inputs=x)`` does, and return all measurements.

    If the unpruned model meets the budget as soon as it is compiled, nothing is pruned: `Met.pruned` is False.

    Args:
        time: share of the base's latency, 0 < time <= 1 or "30%", or an amount: "5ms".
        base: whose latency a share is of: ``eager``, ``torch.compile``, ``onnxruntime``, ``openvino``, or ``engine``
            (the model compiled by ticketry without pruning).
        cost: of the model on this machine, by `model`; None to measure it now.
        structure, score, scope, within, keep_at_least, batches, loss, seed: as of `prune`.
        threads: that a call uses; None for `torch.get_num_threads()`.

    Returns:
        The mask with its measured share of the base's latency, the 95 % interval and what was estimated.

    Raises:
        UsageError: for a budget below the floor: it says what makes it.
        LayerCollapseError: if a layer would be left empty.
        CostError: for costs of another model or another machine, which cannot be met here.
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
    by = structure_of_time(structure, score, cost, within)
    scores = budget_scores(score, model, chosen, within, ScoreInputs(batches, loss, seed), by, example_inputs)
    request = Request(model, example_inputs, chosen, "seconds", time, scores, by, within, keep_at_least, cost, base)
    return met(request, threads or torch.get_num_threads())


def mask_for(request: Request) -> Mask:
    """Return the mask of a budget: of seconds met by measurement, unless the costs are of another machine."""
    if request.unit == "seconds":
        if request.cost is not None and (other := public.elsewhere(request.cost)):
            return _estimated(request, request.cost, other)
        found = met(request, torch.get_num_threads())
        if not found.pruned:
            warnings.warn(f"nothing was pruned: {found.latencies}", BudgetWarning, stacklevel=4)
        return found.mask
    costs = request.cost or public.model(request.model, request.example_inputs, unit=request.unit, scope=request.scope)
    if request.channels is not None:
        return _channels_at_most(request, costs)
    request.check_floor(costs, request.amount)
    return _at_most(costs, costs.budget(request.amount), _allocation(request, costs, request.scores()))


def _estimated(request: Request, costs: CostModel, other: str) -> Mask:
    """Return the mask whose estimate is nearest to the budget."""
    request.check_base_elsewhere(other)
    if request.structure == CHANNELS:
        raise CostError(f"whole channels are chosen by timing the model, which cannot be done here: {other}")
    warnings.warn(f"the time is estimated and not measured: {other}", stacklevel=5)
    _warn_of_torch(costs)
    if costs.budget(request.amount) >= costs.dense:
        said = f"unpruned {told(costs.dense, 'seconds')}, requested {request.amount}"
        warnings.warn(f"nothing was pruned: {said}", BudgetWarning, stacklevel=5)
        return request.all_candidates()
    request.check_floor(costs, request.amount)
    allocate = _allocation(request, costs, request.scores())
    return estimated_at(costs, costs.budget(request.amount), allocate)


def _at_most(costs: CostModel, budget: float, allocate: Callable[[float], Mask]) -> Mask:
    """The mask for the largest budget whose exact cost is within this one: allocation goes by convex hulls."""
    aim = budget
    while True:
        mask = allocate(aim)
        cost = costs.estimate(mask).value
        if cost <= budget:
            return mask
        aim *= min(budget / cost, 0.999)


# -- by measurement ----------------------------------------------------------------------------------------------------


def met(request: Request, threads: int) -> Met:
    """Meet a request of seconds by measurement."""
    with Progress("latency budget", steps=3) as progress:
        progress.step("compiling the model without pruning")
        meter = Meter(request.model, request.example_inputs, threads, "fp32", request.scope, QUICK)
        if request.cost is not None:  # refuse them before weights are scored
            if other := public.elsewhere(request.cost):
                raise CostError(f"a latency budget cannot be met here: {other}")
            public.check_fits(request.cost, meter)
        progress.step(f"timing {request.base} beside it")
        meter.effort = THOROUGH
        known = latencies(meter, request.amount, request.base)
        meter.effort = QUICK
        if known.met_unpruned:
            return without_pruning(request.all_candidates(), known)
        request.check_retained(known.requested / known.unpruned)
        found = _Search(request, meter, known, progress).run()
    _warn(found)
    return found


@dataclass
class _Candidate:
    """A granularity of masks, and the masks of it that were timed."""

    structure: str
    mask_at: MaskAt
    floor: float
    tried: list[Tried]


class _Search:
    """Masks of each granularity for one budget, of which the one that retains most importance is chosen."""

    def __init__(self, request: Request, meter: Meter, known: Latencies, progress: Progress) -> None:
        self._request, self._meter, self._known, self._progress = request, meter, known, progress
        self._asked = known.requested / known.unpruned
        self._values: Mapping[str, Tensor] = {}
        self._costs: CostModel | None = None
        self._left_out: list[Considered] = []
        self._names = _FAMILIES.get(request.structure, (request.structure,))

    def run(self) -> Met:
        """Return the best mask, timed once more.

        Raises:
            UsageError: for a budget below the floor.
            LayerCollapseError: where a layer would be left empty.
        """
        by_costs_too = any(name != CHANNELS for name in self._names)
        looks = _LOOKS * len(self._granularities) if by_costs_too and self._request.cost is None else 0
        self._progress.add(looks + len(self._names) * _ROUNDS + 2)
        if self._request.cost is not None:
            self._request.check_floor(self._request.cost, self._asked)
        parameters = self._request.scope.parameters(self._request.model)
        self._values = with_magnitudes(self._request.scores(), parameters)
        if by_costs_too:
            self._costs = self._request.cost or self._measured()
            _warn_of_torch(self._costs)
        found = [one for name in self._names if (one := self._tried(name)) is not None]
        best = max(found, key=self._rank)
        if abs(nearest(best.tried, self._asked).found.median / self._asked - 1) > _NEAR / 2:
            best.tried = approach(
                self._meter,
                self._asked,
                best.mask_at,
                floor=best.floor,
                rounds=len(best.tried) + _LAST_ROUNDS - _ROUNDS,
                turns=_TURNS,
                known=best.tried,
            )
        self._progress.step("timing the chosen mask once more")
        result = met_by(self._meter, best.tried, self._asked, self._known)
        considered = (*(self._considered(one) for one in found), *self._left_out)
        return replace(result, costs=self._costs, structure=best.structure, considered=considered)

    @property
    def _granularities(self) -> tuple[str, ...]:
        if self._request.structure == BY_MEASUREMENT:
            return (FINEST, "rows:16")
        return public.granularities_of(self._request.structure)

    def _measured(self) -> CostModel:
        values = worth_within(self._values, self._request.within)
        masks = public.family(self._meter, self._request.scope, values, _SHARES)
        costs = measured(self._meter, self._granularities, masks, self._progress.step, checked=False)
        self._request.check_floor(costs, self._asked)
        return costs

    def _tried(self, name: str) -> _Candidate | None:
        """Time masks of a granularity; None, with the reason noted, if it has no mask and is one of several."""
        try:
            mask_at, floor = self._masks(name)
            progress = self._progress

            def told_at(aim: float) -> tuple[Mask, float]:
                progress.step(f"timing {name}")
                return mask_at(aim)

            alone = len(self._names) == 1
            rounds, near = (_LAST_ROUNDS, _NEAR / 2) if alone else (_ROUNDS, _NEAR)
            tried = approach(self._meter, self._asked, told_at, floor=floor, rounds=rounds, near=near, turns=_TURNS)
            self._check(tried)
        except (UsageError, LayerCollapseError, StructureError) as error:
            self._left_out.append(Considered(name, math.nan, math.nan, math.nan, str(error)))
            if len(self._left_out) == len(self._names):  # the first granularity's error says most
                raise
            return None
        return _Candidate(name, mask_at, floor, tried)

    def _check(self, tried: list[Tried]) -> None:
        """Raise `LayerCollapseError` where masks keep fewer weights of a layer than requested."""
        least = self._request.keep_at_least
        for row in nearest(tried, self._asked).mask.table() if least else ():
            if row.kept < min(least, row.total) and row.name in self._request.scope.shapes:
                raise LayerCollapseError(f"{row.name} would keep {row.kept} weights, fewer than keep_at_least={least}")

    def _masks(self, name: str) -> tuple[MaskAt, float]:
        """Return how masks of a granularity are made, and the least aim."""
        if name == CHANNELS:
            return _masks_of_channels(self._request, self._meter, self._values)
        assert self._costs is not None
        costs = self._costs
        request = replace(self._request, structure=AUTO if name == _MIX else name)
        costs.budget(self._asked)
        return by_costs(costs, _allocation(request, costs, self._values)), costs.floor / costs.dense

    def _rank(self, one: _Candidate) -> tuple[bool, float]:
        """Whether the budget is met, and what is retained; of those that miss it the nearest is best."""
        best = nearest(one.tried, self._asked)
        over = best.found.median / self._asked
        if over > _MET:
            return False, -over
        return True, value_of(self._values, best.mask)

    def _considered(self, one: _Candidate) -> Considered:
        best = nearest(one.tried, self._asked)
        total = sum(float(score.double().sum()) for score in self._values.values())
        value = value_of(self._values, best.mask) / max(total, 1e-300)
        return Considered(one.structure, best.mask.density, best.found.median * self._known.unpruned, value)


_MIX = "auto"
_FAMILIES = {BY_MEASUREMENT: (_MIX, FINEST, CHANNELS)}
_LOOKS = 2 * len(_SHARES)


def _masks_of_channels(request: Request, meter: Meter, values: Mapping[str, Tensor]) -> tuple[MaskAt, float]:
    """Masks of whole channels by what each layer takes unpruned, in proportion to the channels that it retains."""
    profile, dense = meter.dense_profile, meter.dense_seconds
    prices = {name: seconds / max(prod(meter.shape(name)), 1) for name, seconds in profile.layers.items()}
    path = _channel_path(request, values, prices)
    fixed = dense - path.costs[0]

    def mask_at(aim: float) -> tuple[Mask, float]:
        step = path.step_within(max(aim * dense - fixed, path.floor))
        return path.mask(step), (fixed + path.costs[step]) / dense

    return mask_at, (fixed + path.floor) / dense


def _channel_path(request: Request, values: Mapping[str, Tensor], prices: Mapping[str, float]) -> ChannelPath:
    """Return the order in which whole channels go, by the importance of their weights unless other scores are given."""
    options = request.channels or ChannelOptions(ChannelOrder("global", 1, 1))
    inputs = request.example_inputs
    known = options.known or partial(tried_structure, request.model, inputs, options.spare)
    choice = ChannelChoice(request.model, known(), request.scope)
    if request.within is not None:
        choice.check_within(request.within)
    scores = options.scores(choice) if options.scores else choice.sums(values)
    return ChannelPath(choice, scores, prices, options.order, request.within)


def _channels_at_most(request: Request, costs: CostModel) -> Mask:
    """Return the densest mask of whole channels whose cost in bytes is within the budget."""
    budget = costs.budget(request.amount)
    prices = {name: layer.dense / max(layer.weights, 1) for name, layer in costs.layers.items()}
    path = _channel_path(request, request.scores(), prices)
    low, high = 0, len(path)  # the cost of a mask falls from step to step

    def cost(step: int) -> float:
        mask = path.mask(step)
        return costs.estimate(Mask({name: mask[name] for name in costs.layers})).value

    if cost(high) > budget:
        path.step_within(-math.inf)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= budget else (middle + 1, high)
    return path.mask(low)


def _allocation(request: Request, costs: CostModel, values: Mapping[str, Tensor]) -> Callable[[float], Mask]:
    """Budget in the unit of the costs -> mask."""
    if request.in_blocks:
        only = only_of(request.structure)
        if only == FINEST:
            known = layouts_or_rows(request.model, request.scope)
        else:
            known = layouts(request.model, request.scope, request.example_inputs)
        choice = Choice(values, costs, known, only=only, least=request.keep_at_least, among=request.within)
        return lambda budget: choice.within(budget).mask
    curves = costs.curves()
    return lambda budget: allocate_cost(
        values,
        curves,
        costs.left_for(values, budget),
        within=request.within,
        keep_at_least=request.keep_at_least,
        in_words=partial(least_in_words, costs),
    )


def _warn_of_torch(costs: CostModel) -> None:
    """Warn of a network whose weights are mostly in layers that no mask makes faster."""
    if costs.in_torch > costs.dense / 2:
        warnings.warn(f"most of the time is of layers {costs.in_torch_in_words()}", stacklevel=6)


def _warn(found: Met) -> None:
    """Warn of stages with hardly any weights and of estimates that were far off, and name the alternative."""
    for said in concerns(found):
        warnings.warn(said, BudgetWarning, stacklevel=5)
