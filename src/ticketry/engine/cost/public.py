"""`tk.cost`: what a model costs on a machine, and masks that meet a budget there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ticketry.core.budget import uses
from ticketry.core.costs.allocation import allocate_cost
from ticketry.core.costs.budgets import Request
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.core.costs.mixed import Choice
from ticketry.core.costs.saliency import output_energy
from ticketry.core.costs.words import Unit
from ticketry.core.layout import layouts
from ticketry.core.mask import Mask
from ticketry.core.prune import scores_in
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, ScoreInputs, get
from ticketry.engine.bench.machine import machine
from ticketry.engine.capture import capture
from ticketry.engine.cost.measured import DENSITIES, measured
from ticketry.engine.cost.meeting import Met, estimated_at, meet_by
from ticketry.engine.cost.meter import Meter
from ticketry.engine.graph import model_file
from ticketry.errors import CostError, UsageError

THIS_MACHINE = "this machine"

GRANULARITIES = ("weights", "rows:4", "rows:16")
"""What structure auto chooses among: what the engine's kernels are fast for."""


def model(
    model: nn.Module,
    example_inputs: Any,
    target: str | Path | CostModel = THIS_MACHINE,
    *,
    unit: Unit = "seconds",
    granularities: Sequence[str] = (FINEST,),
    densities: Sequence[float] = DENSITIES,
    threads: int | None = None,
    precision: str = "fp32",
    scope: Scope | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> CostModel:
    """What `model` costs under any mask, for the batch of the example inputs.

    In seconds of this machine it is measured: the model is compiled under random masks of some densities, each layer
    timed in turns with the whole network without a mask. Bytes are those of the file that `Compiled.save` writes, and
    multiplications are counted; both are exact.

    Args:
        example_inputs: a tensor, a tuple of arguments, or a dict of arguments by name.
        target: "this machine"; or costs of this model, or a file of them, measured on another one.
        granularities: of seconds: ``weights``, ``rows:N`` for groups of N rows that keep the same columns.
        densities: at which they are measured, at least two.
        threads: that a call uses; None for `torch.get_num_threads()`.
        precision: "fp32" or "bf16".
        scope: weights that may be pruned; by default `ticketry.scope(model)`.
        say: is told what is done now.

    Raises:
        CostError: for costs of another model, of other threads, precision or batch.
        EngineError: if the model cannot be captured, or is not on the CPU.

    Examples:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> costs = tk.cost.model(model, torch.randn(8, 16), unit="multiplications")
        >>> costs.dense
        4096.0
        >>> costs.estimate(tk.prune(model, 0.25)).value
        1024.0
    """
    chosen = scope or scope_of(model)
    threads = threads or torch.get_num_threads()
    if unit == "multiplications":
        return _multiplications(model, example_inputs, chosen)
    if unit == "bytes":
        return _bytes(model, example_inputs, chosen)
    meter = Meter(model, example_inputs, threads, precision, chosen)
    if isinstance(target, CostModel) or target != THIS_MACHINE:
        given = target if isinstance(target, CostModel) else CostModel.load(target)
        return _fits(given, meter)
    return measured(meter, granularities, densities, say)


def load(path: str | Path) -> CostModel:
    """Costs in a file that `CostModel.save` wrote.

    Args:
        path: of the file.

    Raises:
        CostError: if there is none, or it is damaged.

    Examples:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> costs = tk.cost.model(model, torch.randn(8, 16), unit="multiplications")
        >>> tk.cost.load(costs.save(f"{tempfile.mkdtemp()}/costs.json")) == costs
        True
    """
    return CostModel.load(path)


def meet(
    model: nn.Module,
    example_inputs: Any,
    time: float | str,
    *,
    cost: CostModel | None = None,
    score: str | Score = "magnitude",
    structure: str = "none",
    scope: Scope | None = None,
    within: Mask | None = None,
    keep_at_least: int = 0,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Met:
    """What ``prune(model, time=..., example_inputs=x)`` does, with all that was measured on the way.

    Args:
        time: share of the dense network's time in the engine, 0 < time <= 1 or "30%", or an amount: "5ms".
        cost: of the model on this machine, by `model`; None to measure it now.
        structure: ``auto`` to choose for each layer among single weights and groups of rows, by `output_energy` where
            the score is magnitude.
        score, scope, within, batches, loss, seed: as of `prune`; keep_at_least: as of `allocate_cost`.
        threads: that a call uses; None for `torch.get_num_threads()`.

    Returns:
        The mask with the measured share of the dense time, its 95 % interval and what was estimated.

    Raises:
        UsageError: for a budget below the floor: it says what makes it.
        LayerCollapseError: if a layer would be left empty.
        CostError: for costs of another model or another machine, which cannot be met here.

    Examples:
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        >>> met = tk.cost.meet(model, torch.randn(64, 256), 0.8, keep_at_least=1, threads=1)
        >>> 0 < met.low <= met.share <= met.high
        True
    """
    chosen = scope or scope_of(model)
    function = get(score)
    scores = None
    if structure != "auto" or function is not get("magnitude"):
        scores = lambda: scores_in(function, model, chosen, None, ScoreInputs(batches, loss, seed))  # noqa: E731
    request = Request(model, example_inputs, chosen, "seconds", time, scores, structure, within, keep_at_least, cost)
    return _met(request, threads or torch.get_num_threads())


def mask_for(request: Request) -> Mask:
    """The mask that `core.prune` asks for: of seconds met by measurement, unless the costs are another machine's."""
    if request.unit == "seconds":
        if request.cost is not None and (other := _elsewhere(request.cost)):
            warnings.warn(f"the time is estimated and not measured: {other}", stacklevel=3)
            return estimated_at(request.cost, request.cost.budget(request.amount), _allocation(request, request.cost))
        return _met(request, torch.get_num_threads()).mask
    costs = request.cost or model(request.model, request.example_inputs, unit=request.unit, scope=request.scope)
    if request.structure == "auto":
        raise UsageError(f"what goes together makes no difference in {request.unit}: structure auto is for a time")
    return _at_most(costs, costs.budget(request.amount), _allocation(request, costs))


def _at_most(costs: CostModel, budget: float, allocate: Callable[[float], Mask]) -> Mask:
    """The mask for the largest budget whose exact cost is within this one: allocation goes by convex hulls."""
    aim = budget
    while True:
        mask = allocate(aim)
        cost = costs.estimate(mask).value
        if cost <= budget:
            return mask
        aim *= min(budget / cost, 0.999)


def _met(request: Request, threads: int) -> Met:
    meter = Meter(request.model, request.example_inputs, threads, "fp32", request.scope)
    costs = request.cost
    if costs is None:
        costs = measured(meter, GRANULARITIES if request.structure == "auto" else (FINEST,))
    elif other := _elsewhere(costs):
        raise CostError(f"a time cannot be met here: {other}")
    return meet_by(meter, _fits(costs, meter), request.amount, _allocation(request, costs))


def _allocation(request: Request, costs: CostModel) -> Callable[[float], Mask]:
    """Budget in the unit of the costs -> mask."""
    if request.structure == "auto":
        values = (
            output_energy(request.model, request.scope, request.example_inputs)
            if request.scores is None
            else request.scores()
        )
        choice = Choice(values, costs, layouts(request.model, request.scope))
        return lambda budget: choice.within(budget).mask
    assert request.scores is not None
    scores = request.scores()
    curves = costs.curves()
    return lambda budget: allocate_cost(
        scores,
        curves,
        costs.left_for(scores, budget),
        within=request.within,
        keep_at_least=request.keep_at_least,
    )


def _elsewhere(costs: CostModel) -> str:
    """What tells that costs are not of this machine; empty if they are."""
    here, there = machine()["processor"], costs.about.get("processor")
    return "" if here == there else f"the costs are of another machine ({there}; this one is {here})"


def _fits(costs: CostModel, meter: Meter) -> CostModel:
    """The costs, if they are of the meter's model. Raises `CostError` if not."""
    sizes = {name: prod(meter.shape(name)) for name in meter.names}
    for name, size in sizes.items():
        if name not in costs.layers or costs.layers[name].weights != size:
            raise CostError(f"the costs are of another model: {name!r} has none, or another size")
    facts: Mapping[str, object] = {"threads": meter.threads, "precision": meter.precision, "batch": meter.batch}
    for fact, value in facts.items():
        if costs.about.get(fact, value) != value:
            raise CostError(
                f"the costs are of {fact} {costs.about[fact]}, and here it is {value}: measure them anew with"
                f" tk.cost.model(model, example_inputs), or use {costs.about[fact]}"
            )
    return costs


def _multiplications(model: nn.Module, example_inputs: Any, scope: Scope) -> CostModel:
    parameters = scope.parameters(model)
    layers = {
        name: _linear(parameters[name].numel(), 0.0, float(price * parameters[name].numel()))
        for name, price in uses(model, scope, example_inputs).items()
    }
    return CostModel("multiplications", layers, 0.0, 0.0, {"of": "the layers in scope"})


def _bytes(model: nn.Module, example_inputs: Any, scope: Scope) -> CostModel:
    """Of the file that `Compiled.save` writes: kept values and a bit for each weight, and all else as it is."""
    graph = capture(model, None, example_inputs)
    sizes = {name: parameter.numel() for name, parameter in scope.parameters(model).items()}
    if other := [name for name in sizes if name not in graph.tensors or graph.tensors[name].numel() != sizes[name]]:
        raise CostError(f"{other[0]} is not in the model file as it is in the model: spare it in the scope")
    empty = {name: torch.zeros_like(graph.tensors[name]) for name in sizes}
    whole, least = (
        len(model_file.dumps(replace(graph, tensors={**graph.tensors, **changed}), {"precision": "fp32"})) + _SEAL
        for changed in ({}, empty)
    )
    fixed = whole - sum(_FLOAT * size for size in sizes.values())
    entry = (least - fixed - sum((size + 7) // 8 for size in sizes.values())) / max(1, len(sizes))
    layers = {name: _packed(size, (size + 7) // 8 + entry) for name, size in sizes.items()}
    return CostModel("bytes", layers, float(fixed), 0.0, {"of": "model.tk"})


def _packed(weights: int, bits: float) -> LayerCost:
    """Bits and entries in the file's head, then the kept values, unless all of them are less."""
    dense = float(_FLOAT * weights)
    full = (dense - bits) / dense if dense > bits else 0.0
    points = ((0.0, min(bits, dense)), (full, dense), (1.0, dense)) if full > 0 else ((0.0, dense), (1.0, dense))
    return LayerCost(weights, dense, {FINEST: Curve(*zip(*points, strict=True))})


_SEAL = 80
"""Bytes of the digest in a model file."""

_FLOAT = 4


def _linear(weights: int, low: float, high: float) -> LayerCost:
    return LayerCost(weights, high, {FINEST: Curve((0.0, 1.0), (low, high))})
