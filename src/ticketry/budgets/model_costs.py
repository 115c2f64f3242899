"""`tk.cost.model`, which returns the costs of a model: measured, estimated for a GPU, or counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from ticketry.budgets.cost_model import CostModel, Curve, LayerCost
from ticketry.budgets.layer_choice import multiplication_costs
from ticketry.budgets.timing import (
    DENSITIES,
    SHARES,
    MaskFamily,
    Meter,
    RandomMasks,
    ScoredMasks,
    Timer,
    base_seconds,
    build_costs,
    measure_costs,
)
from ticketry.budgets.units import FINEST, Unit, check_base
from ticketry.choices import describe_name_difference
from ticketry.core.mask import Mask
from ticketry.core.model_calls import count_multiplications
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.structure.layout import layouts_or_rows_first
from ticketry.errors import CostError, UsageError
from ticketry.files import exists
from ticketry_engine.bench.timing import describe_machine_difference
from ticketry_engine.costs import H100_BF16, CallSeconds, GpuRates, MaskedModel, StoredTensor, fixed_bytes_and_tensors
from ticketry_engine.support.entry_points import entry_point

THIS_MACHINE = "this machine"

_MORE_AMOUNTS = (0.006, 0.15, 0.3, 0.8)
"""Further densities of masks at which costs are estimated, because estimates are quicker than timings."""


@entry_point()
def model(
    model: nn.Module,
    example_inputs: Any,
    target: str | Path | CostModel | GpuProfile = THIS_MACHINE,
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
    """Return a cost model: what `model` costs under any mask, for the batch size of the example inputs.

    Seconds on this machine are measured: the model is compiled under masks of some densities, and each layer is timed
    in turns with the whole unpruned network. With a profile of a GPU, seconds are estimated and nothing is timed. Bytes
    (of the file that `Compiled.save` writes) and multiplications are counted exactly.

    Args:
        example_inputs: a tensor, a tuple of arguments, or a dict of arguments by name.
        model: model to measure, in eval mode on the CPU.
        target: "this machine"; a GPU profile or its name, such as "h100-bf16", which has a fixed precision; or costs of
            this model that were measured on another machine, or the file of these costs.
        unit: "seconds", "bytes" or "multiplications".
        granularities: for seconds: granularities of the masks, ``weights`` or ``rows:N`` (groups of N rows that retain
            the same columns).
        densities: densities of the masks under which seconds are measured, at least two; with `scores`, shares of the
            dense time instead.
        scores: parameter name -> score of each weight, none below 0. If given, seconds are measured under masks that
            retain the highest scores instead of random weights. Costs then hold for such masks, in which whole channels
            are empty.
        threads: number of threads that a call uses; None for `torch.get_num_threads()`.
        precision: "fp32" or "bf16".
        scope: weights that may be pruned; by default `ticketry.scope(model)`.
        bases: for seconds: names of other ways to run the model (``eager``, ``onnxruntime`` …) to time too, for budgets
            that are shares of their latency.
        say: called with the name of each step.

    Raises:
        UsageError: if `bases` are given but nothing is timed.
        CostError: if the costs of `target` are of another model, number of threads, precision or batch size, or
            `scores` are of other parameters than those in scope.
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
        return multiplication_costs(chosen.sizes, count_multiplications(model, chosen, example_inputs))
    if unit == "bytes":
        return _file_size_costs(model, example_inputs, chosen)
    source = _resolve_target(target)
    if bases and source is not None:
        raise UsageError(f"the latency of {', '.join(bases)} is measured on this machine: leave target or bases out")
    if isinstance(source, GpuProfile):
        source.check(precision)
        estimator = Estimator(model, example_inputs, source, chosen)
        amounts = tuple(densities) if densities else (*(SHARES if scores else DENSITIES), *_MORE_AMOUNTS)
        masks = make_mask_family(estimator, chosen, scores, amounts)
        about = {**source.facts(), "batch": estimator.network.batch, "masks": masks.about}
        return msgspec.structs.replace(build_costs(estimator, granularities, masks, about, say), spread=source.spread)
    meter = Meter(model, example_inputs, threads, precision, chosen)
    if source is not None:
        return check_costs_fit_model(source, meter)
    costs = measure_costs(meter, granularities, make_mask_family(meter, chosen, scores, densities), say)
    if not bases:
        return costs
    say("timing the bases of budgets")
    return costs.scaled(1.0, bases={base: base_seconds(meter, check_base(base)) for base in bases})


def load(path: str | Path) -> CostModel:
    """Return the costs in a file that `CostModel.save` wrote; raise `CostError` if `path` is missing or damaged.

    Examples:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> costs = tk.cost.model(model, torch.randn(8, 16), unit="multiplications")
        >>> tk.cost.load(costs.save(f"{tempfile.mkdtemp()}/costs.json")) == costs
        True
    """
    return CostModel.load(path)


def make_mask_family(
    timer: Timer, scope: Scope, scores: Mapping[str, Tensor] | None, amounts: Sequence[float] | None = None
) -> MaskFamily:
    """Return the masks under which to time a network: random masks, or with `scores` masks of the best weights."""
    if scores is None:
        return RandomMasks(timer.model, scope.shapes, tuple(amounts or DENSITIES))
    if different := describe_name_difference(scores, scope):
        raise CostError(f"scores are not of the parameters in scope: {different}")
    for name, shape in scope.shapes.items():
        if tuple(scores[name].shape) != tuple(shape):
            raise CostError(f"scores of {name!r} have the shape {tuple(scores[name].shape)}, and it has {tuple(shape)}")
    seconds = timer.dense_profile.layers
    return ScoredMasks(scores, seconds, layouts_or_rows_first(timer.model, scope), tuple(amounts or SHARES))


def _resolve_target(target: str | Path | CostModel | GpuProfile) -> CostModel | GpuProfile | None:
    """Return the GPU profile or the costs that `target` names; None if it names this machine."""
    if isinstance(target, CostModel | GpuProfile):
        return target
    if target == THIS_MACHINE:
        return None
    if isinstance(target, str) and target in GPUS:
        return GPUS[target]
    if not exists(Path(target)):
        raise CostError(
            f"{target} is neither {THIS_MACHINE!r}, nor a profile ({', '.join(GPUS)}), nor a file of costs: for another"
            " processor, measure there with tk.cost.model(model, example_inputs).save(path)"
        )
    return CostModel.load(target)


def describe_other_machine(costs: CostModel) -> str:
    """Return a message that says on which other machine `costs` were measured; empty if it was this machine."""
    other = describe_machine_difference(costs.about)
    return other and f"the costs are of another machine ({other})"


def check_costs_fit_model(costs: CostModel, meter: Meter) -> CostModel:
    """Return `costs`; raise `CostError` if model, threads, precision or batch size differ from the meter's."""
    for name in meter.names:
        if name not in costs.layers or costs.layers[name].weights != prod(meter.shape(name)):
            raise CostError(f"the costs are of another model: {name!r} has none, or another size")
    facts: Mapping[str, object] = {"threads": meter.threads, "precision": meter.precision, "batch": meter.batch}
    for fact, value in facts.items():
        if costs.about.get(fact, value) != value:
            raise CostError(
                f"the costs are of {fact} {costs.about[fact]}, and here it is {value}: measure them anew with"
                f" tk.cost.model(model, example_inputs), or use {costs.about[fact]}"
            )
    return costs


# -- bytes -------------------------------------------------------------------------------------------------------------

_HALVINGS = range(2, 12)
"""How often the density 1 is halved to reach the densities where the cost curve of packed weights has a bend."""

_ROUNDING_BYTES = 2.0
"""Number of bytes by which packed positions of weights may exceed a linear interpolation, because of rounding."""


def _file_size_costs(model: nn.Module, example_inputs: Any, scope: Scope) -> CostModel:
    """Return a cost model in bytes of the file that `Compiled.save` writes."""
    parameters = scope.parameters(model)
    fixed, stored = fixed_bytes_and_tensors(MaskedModel(model, example_inputs, parameters), parameters)
    if other := [name for name, tensors in stored.items() if not tensors]:
        raise CostError(f"{other[0]} is not in the model file as it is in the model: spare it in the scope")
    layers = {name: _layer_file_cost(parameters[name].numel(), tensors) for name, tensors in stored.items()}
    return CostModel("bytes", layers, fixed, 0.0, {"of": "model.tk"})


def _layer_file_cost(weights: int, tensors: list[StoredTensor]) -> LayerCost:
    """Return the cost in bytes of a layer in the file: packed weights, or all values if these take less.

    Args:
        weights: number of the layer's weights.
        tensors: tensors of the file that store the layer; some also store zeros.
    """

    def packed_bytes(kept: int) -> float:
        return sum(tensor.packed_bytes(kept) for tensor in tensors)

    values = sum(tensor.number_bytes for tensor in tensors) * weights
    dense = float(min(packed_bytes(weights), sum(tensor.dense_bytes for tensor in tensors)))
    edges = {tensor.numbers >> halvings for tensor in tensors for halvings in _HALVINGS} | {0}
    points = [
        (kept / weights, packed_bytes(kept) + _ROUNDING_BYTES)
        for kept in sorted(edges)
        if kept <= weights and packed_bytes(kept) + _ROUNDING_BYTES < dense
    ]
    full = 1 - (packed_bytes(weights) - dense) / values  # above a quarter, positions take as much as for all weights
    if points and points[-1][0] < full < 1:
        points.append((full, dense))
    points = [*points, (1.0, dense)] if points else [(0.0, dense), (1.0, dense)]
    return LayerCost(weights, dense, {FINEST: Curve(*zip(*points, strict=True))})


# -- profiles of GPUs, from which a network's costs are estimated without timing it ------------------------------------


@dataclass(frozen=True)
class GpuProfile:
    """Measured rates of a GPU in one precision, from which the time of a network's layers is estimated.

    Examples:
        >>> profile = tk.cost.profile("h100-bf16")
        >>> profile.gpu, profile.precision
        ('NVIDIA H100 80GB HBM3', 'bf16')
        >>> model = nn.Sequential(nn.Conv2d(64, 512, 3), nn.ReLU(), nn.Conv2d(512, 512, 3)).eval()
        >>> x = torch.randn(256, 64, 32, 32)
        >>> costs = tk.cost.model(model, x, target=profile, granularities=("weights", "rows:64"), densities=(0.1, 1))
        >>> costs.layers["2.weight"].curves["rows:64"].at(0.1) < 0.7 * costs.layers["2.weight"].dense
        True
    """

    gpu: str
    """Name of the GPU, as `torch.cuda.get_device_name` returns it."""
    precision: str
    rates: GpuRates
    """Rates of sparse kernels and of dense layers on this GPU."""
    spread: float
    """Half the width of the 95 % interval of an estimate, as a share of it; from networks not used in the fit."""

    def check(self, precision: str) -> None:
        """Raise `CostError` if `precision` is neither the profile's nor "fp32", the default of calls."""
        if precision not in ("fp32", self.precision):
            raise CostError(
                f"the profile of {self.gpu} is of {self.precision}, and {precision} is asked for: give"
                f" precision={self.precision!r}"
            )

    def facts(self) -> dict[str, object]:
        """Return the entries about this profile that a cost model stores in `about`."""
        return {
            "target": self.gpu,
            "processor": self.gpu,
            "precision": self.precision,
            "how": "estimated by a profile of the GPU",
        }

    def __str__(self) -> str:
        return (
            f"Profile of a GPU: {self.gpu}, {self.precision}; an estimate is within {100 * self.spread:.0f} % in 95 of"
            " 100 cases"
        )


GPUS: Mapping[str, GpuProfile] = {
    "h100-bf16": GpuProfile("NVIDIA H100 80GB HBM3", "bf16", H100_BF16, spread=0.2),
}
"""Name -> GPU profile that comes with the package."""


def profile(name: str) -> GpuProfile:
    """Return the GPU profile with this name; raise `UsageError` if it is unknown.

    Examples:
        >>> tk.cost.profile("h100-bf16").precision
        'bf16'
    """
    if name not in GPUS:
        raise UsageError(f"there is no profile {name!r}: there are {', '.join(GPUS)}")
    return GPUS[name]


class Estimator:
    """A `Timer` that computes a network's latency under masks from the profile of a GPU, without timing."""

    def __init__(self, model: nn.Module, example_inputs: Any, profile: GpuProfile, scope: Scope | None = None) -> None:
        """Capture a model for a batch of example inputs; raise `EngineError` if it cannot be captured."""
        self.model, self._shapes = model, (scope or scope_of(model)).shapes
        self.names = tuple(self._shapes)
        self.network = MaskedModel(model, example_inputs, self.names, for_kernels=False)
        self._rates = profile.rates

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the weight `name`, which must be in scope."""
        return self._shapes[name]

    @cached_property
    def dense_profile(self) -> CallSeconds:
        """Estimated latency of the unpruned network, divided into its layers and all other operations."""
        return self._rates.call_seconds(self.network, None)

    @property
    def dense_seconds(self) -> float:
        """Estimated latency of the unpruned network in seconds."""
        return self.dense_profile.total

    def profile(self, mask: Mask, layout: str | None) -> CallSeconds:
        """Return the estimated latency under a mask, divided into layers and all other operations.

        Raises:
            UnsupportedError: if `layout` is channels-last.
        """
        return self._rates.call_seconds(self.network, mask, layout)

    def seconds(self, mask: Mask) -> float:
        """Return the estimated latency under a mask in seconds."""
        return self.profile(mask, None).total
