"""`tk.cost`: what a model costs on a machine, and masks that meet a budget there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.choices import describe_name_difference
from ticketry.core.budget import in_multiplications, uses
from ticketry.core.costs.bases import check_base
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.core.costs.words import Unit
from ticketry.core.layout import layouts_or_rows
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.structuring import AUTO, in_blocks
from ticketry.engine.cost.bases import base_seconds
from ticketry.engine.cost.estimated import Estimator, ProcessorEstimator, with_spread
from ticketry.engine.cost.families import DENSITIES, SHARES, Family, RandomMasks, ScoredMasks
from ticketry.engine.cost.machine_profile import KIND as PROFILE
from ticketry.engine.cost.machine_profile import MachineProfile, kind_of, of_this_machine
from ticketry.engine.cost.measured import Timer, costs_by, measured
from ticketry.engine.cost.meter import Meter
from ticketry.engine.cost.on_gpu import GpuEstimator, GpuProfile
from ticketry.engine.cost.profiles import profile, profile_names
from ticketry.errors import CostError, UsageError
from ticketry_engine.bench.machine import another_machine
from ticketry_engine.capture import capture
from ticketry_engine.ir import model_file
from ticketry_engine.ir.shape_claims import origins
from ticketry_engine.kernels.target import target as find_target
from ticketry_engine.support.entry_points import entry_point

THIS_MACHINE, CALIBRATED = "this machine", "calibrated"

_MORE = (0.006, 0.15, 0.3, 0.8)
"""Besides those that are timed, where nothing is: planning takes little."""

GRANULARITIES = ("weights", "rows:4", "rows:16")
"""What structure auto chooses among: what the engine's kernels are fast for."""


@entry_point()
def model(
    model: nn.Module,
    example_inputs: Any,
    target: str | Path | CostModel | MachineProfile | GpuProfile = THIS_MACHINE,
    *,
    unit: Unit = "seconds",
    granularities: Sequence[str] = (FINEST,),
    densities: Sequence[float] | None = None,
    scores: Mapping[str, Tensor] | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    scope: Scope | None = None,
    bases: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> CostModel:
    """What `model` costs under any mask, for the batch of the example inputs.

    In seconds of this machine it is measured: the model is compiled under masks of some densities, random ones or those
    that scores would choose, and each layer is timed in turns with the whole network without a mask. By a profile of a
    machine it is estimated, and nothing is timed. Bytes are those of the file that `Compiled.save` writes, and
    multiplications are counted; both are exact.

    Args:
        example_inputs: a tensor, a tuple of arguments, or a dict of arguments by name.
        target: "this machine"; a profile of a machine, its name ("zen4-avx2") or file, or "calibrated" for the one that
            `calibrate` kept of this machine; of a GPU, "h100-bf16", whose precision is its own; or costs of this model,
            or a file of them, measured on another machine.
        granularities: of seconds: ``weights``, ``rows:N`` for groups of N rows that keep the same columns.
        densities: at which they are measured, at least two; with scores, shares of the multiplications' time.
        scores: parameter name -> score of each weight, none below 0: of seconds, masks keep the best of them. Costs are
            then of such masks, and nearer to them than to random ones, which empty no channels.
        threads: that a call uses; None for `torch.get_num_threads()`.
        precision: "fp32" or "bf16".
        scope: weights that may be pruned; by default `ticketry.scope(model)`.
        bases: of seconds: also time these (``eager``, ``onnxruntime`` …) beside the network, for budgets that are
            shares of their latency.
        say: is told what is done now.

    Raises:
        UsageError: for bases where nothing is timed.
        CostError: for costs of another model, of other threads, precision or batch, or scores of other parameters than
            those in scope.
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
    aim = _aim(target, threads, precision)
    if bases and aim is not None:
        raise UsageError(f"the latency of {', '.join(bases)} is measured on this machine: leave target or bases out")
    if isinstance(aim, MachineProfile | GpuProfile):
        aim.check(threads, precision)
        kind = GpuEstimator if isinstance(aim, GpuProfile) else ProcessorEstimator
        estimator: Estimator = kind(model, example_inputs, aim, chosen)  # type: ignore[arg-type]
        amounts = tuple(densities) if densities else (*(SHARES if scores else DENSITIES), *_MORE)
        masks = family(estimator, chosen, scores, amounts)
        return with_spread(costs_by(estimator, granularities, masks, estimator.about(masks), say), aim.spread)
    meter = Meter(model, example_inputs, threads, precision, chosen)
    if aim is not None:
        return check_fits(aim, meter)
    costs = measured(meter, granularities, family(meter, chosen, scores, densities), say)
    if not bases:
        return costs
    say("timing the bases of budgets")
    return costs.scaled(1.0, bases={base: base_seconds(meter, check_base(base)) for base in bases})


def family(
    timer: Timer, scope: Scope, scores: Mapping[str, Tensor] | None, amounts: Sequence[float] | None = None
) -> Family:
    """Masks to time a network under: random ones, unless there are scores."""
    if scores is None:
        return RandomMasks(timer.model, scope.shapes, tuple(amounts or DENSITIES))
    if different := describe_name_difference(scores, scope):
        raise CostError(f"scores are not of the parameters in scope: {different}")
    seconds = timer.dense_profile.layers
    return ScoredMasks(scores, seconds, layouts_or_rows(timer.model, scope), tuple(amounts or SHARES))


def _aim(
    target: str | Path | CostModel | MachineProfile | GpuProfile, threads: int, precision: str
) -> CostModel | MachineProfile | GpuProfile | None:
    """A profile, or costs of the model; None to measure the model itself."""
    if isinstance(target, CostModel | MachineProfile | GpuProfile):
        return target
    if target == THIS_MACHINE:
        return None
    if target == CALIBRATED:
        return of_this_machine(find_target().name, threads, precision)
    if isinstance(target, str) and target in profile_names():
        return profile(target)
    kind = kind_of(Path(target))
    if kind is None:
        known = ", ".join(profile_names())
        raise CostError(
            f"{target} is neither {THIS_MACHINE!r}, {CALIBRATED!r}, nor a profile ({known}), nor a"
            " file of costs or of a profile"
        )
    return MachineProfile.load(target) if kind == PROFILE else CostModel.load(target)


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


def granularities_of(structure: str) -> tuple[str, ...]:
    """Those whose costs masks of a structure need."""
    if structure == AUTO:
        return GRANULARITIES
    return (structure,) if in_blocks(structure) else (FINEST,)


def elsewhere(costs: CostModel) -> str:
    """Return why costs are not of this machine; empty if they are."""
    other = another_machine(costs.about)
    return other and f"the costs are of another machine ({other})"


def check_fits(costs: CostModel, meter: Meter) -> CostModel:
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
    return in_multiplications(scope.sizes, uses(model, scope, example_inputs))


def _bytes(model: nn.Module, example_inputs: Any, scope: Scope) -> CostModel:
    """Of the file that `Compiled.save` writes: kept values, what tells their places, and all else as it is."""
    graph = capture(model, None, example_inputs)
    parameters = scope.parameters(model)
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    forms: dict[str, list[str]] = {name: [] for name in sizes}
    """The tensors that each is in the file: one for every norm that is folded into it."""
    for name, parameter in origins(graph, sizes).items():
        if _has_all(graph.tensors[name], parameters[parameter]):
            forms[parameter].append(name)
    if other := [name for name, found in forms.items() if not found]:
        raise CostError(f"{other[0]} is not in the model file as it is in the model: spare it in the scope")
    full = {name: torch.ones_like(graph.tensors[name]) for found in forms.values() for name in found}
    whole = len(model_file.dumps(replace(graph, tensors={**graph.tensors, **full}), {"precision": "fp32"})) + _SEAL
    total = model_file.weight_bytes(graph)
    layers = {}
    for name, found in forms.items():
        head = sum(model_file.head_bytes(one, total) for one in found)
        layers[name] = _packed(sizes[name], [full[one] for one in found], head)
    fixed = whole - sum(one.nbytes for one in full.values())
    return CostModel("bytes", layers, float(fixed), 0.0, {"of": "model.tk"})


def _has_all(form: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor of the file has each weight once, perhaps with zeros beside them."""
    return form.numel() == parameter.numel() or 0 < int(form.count_nonzero()) == int(parameter.count_nonzero())


_HALVES = 12
"""From a quarter down, at which the curve of packed weights bends."""


def _packed(weights: int, forms: list[Tensor], head: int) -> LayerCost:
    """Entries in the file's head, places and kept values of so many bytes, unless all values are less.

    Args:
        forms: the tensors that the weight is in the file; some have zeros beside it.
    """
    values = sum(form.element_size() for form in forms) * weights

    def packed(kept: int) -> float:
        return head + sum(model_file.place_bytes(kept, form.numel()) + form.element_size() * kept for form in forms)

    dense = float(min(packed(weights), sum(form.nbytes for form in forms)))
    ends = {form.numel() >> halvings for form in forms for halvings in range(2, _HALVES)} | {0}
    points = [
        (kept / weights, packed(kept) + _BENT)
        for kept in sorted(ends)
        if kept <= weights and packed(kept) + _BENT < dense
    ]
    full = 1 - (packed(weights) - dense) / values  # from a quarter on places take as much as with all weights kept
    if points and points[-1][0] < full < 1:
        points.append((full, dense))
    points = [*points, (1.0, dense)] if points else [(0.0, dense), (1.0, dense)]
    return LayerCost(weights, dense, {FINEST: Curve(*zip(*points, strict=True))})


_BENT = 2.0
"""Bytes by which places may take more than a line between two numbers of them, which are rounded up."""


_SEAL = 80
"""Bytes of the digest in a model file."""
