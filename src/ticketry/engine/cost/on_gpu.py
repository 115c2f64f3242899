"""What a network takes on a GPU, by rates that were measured on one: planned for it, and not timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ticketry.core.scope import Scope
from ticketry.engine.cost.estimated import Estimator
from ticketry.engine.cost.families import Family
from ticketry.engine.cost.meter import Profile
from ticketry.errors import CostError
from ticketry_engine.gpu.plan import (
    RATES,
    LayerChoice,
    LayerWork,
    Rates,
    all_layout_changes_seconds,
    group_product_seconds,
    layer_facts,
    layer_works,
    plan,
    programs_seconds,
)
from ticketry_engine.ir import Graph, Node
from ticketry_engine.ir.shape_claims import origins, parameters_of
from ticketry_engine.plan.value_axes import UnsupportedError

_VIEWS = frozenset({"reshape", "transpose", "slice", "flatten"})
"""Operations that torch does by strides alone, mostly."""


@dataclass(frozen=True)
class GpuProfile:
    """What a GPU takes for a network's layers in a number format, with calls replayed from CUDA graphs.

    Which layers are sparse is planned by the same rates that `compile_gpu` plans by. How long they take is

        group kernel    layer + the larger of product + programs, and bytes
        dense           layer + product x what whole waves of tiles make of it + bytes, of its passes too

    with coefficients fitted to whole networks that were timed.

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
    """As `torch.cuda.get_device_name` has it."""
    precision: str
    dtype: torch.dtype
    """In which networks of that precision are compiled."""
    rates: Rates
    """By which kernels are chosen: `engine.gpu.cost`."""
    multiprocessors: int
    """That work at once."""
    group: Mapping[str, float]
    """Seconds of a "layer"; "product": of the time at the kernel's rate."""
    dense: Mapping[str, float]
    """Seconds of a "layer"; "product" and "bytes": of the times at their rates."""
    spread: float
    """Half of the 95 % interval of an estimate, by networks that were left out of the fit."""

    def check(self, threads: int, precision: str) -> None:
        """Raises `CostError` for another precision than this one's; "fp32", the default of calls, is none, nor are
        threads, which are a processor's."""
        if precision not in ("fp32", self.precision):
            raise CostError(f"the profile of {self.gpu} is of {self.precision}, and {precision} is asked for")

    def seconds(self, work: LayerWork, choice: LayerChoice) -> float:
        """What a layer takes.

        Args:
            work: of the layer, as its plan has it.
            choice: the kernel that the plan chose.
        """
        rates = self.rates
        if choice.kernel == "group":
            product = self.group["product"] * group_product_seconds(work, choice.tile, rates)
            moved = rates.bytes * (work.inputs + work.outputs * (1 + work.residual)) / rates.bandwidth
            return self.group["layer"] + max(product + programs_seconds(work, choice.tile, rates), moved)
        product = 2.0 * work.pixels * work.rows * work.columns / (rates.linear if work.linear else rates.conv)
        tiles = max(1, -(-work.pixels // _SIDE) * -(-work.rows // _SIDE))
        # The last wave leaves multiprocessors idle; libraries split a product's sum where most would be.
        uneven = min(_SPLIT, -(-tiles // self.multiprocessors) * self.multiprocessors / tiles)
        passes = 1 + 3 * work.residual + 2 * work.act
        numbers = work.inputs + work.outputs * passes + work.rows * work.columns
        moved = rates.bytes * numbers / rates.bandwidth
        return self.dense["layer"] + self.dense["product"] * uneven * product + self.dense["bytes"] * moved

    def __str__(self) -> str:
        return (
            f"Profile of a GPU: {self.gpu}, {self.precision}; an estimate is within {100 * self.spread:.0f} % in 95 of"
            " 100 cases"
        )


_SIDE = 128
"""Outputs of each side of a tile of a dense product."""

_SPLIT = 4.0

GPUS: Mapping[str, GpuProfile] = {
    # 21 timings of four networks and of 40 layers (docs/engine-gpu.md), torch 2.11, CUDA 13.0, Triton 3.6.
    "h100-bf16": GpuProfile(
        gpu="NVIDIA H100 80GB HBM3",
        precision="bf16",
        dtype=torch.bfloat16,
        rates=RATES[torch.bfloat16],
        multiprocessors=132,
        group={"layer": 5.5e-6, "product": 0.71},
        dense={"layer": 18.8e-6, "product": 0.58, "bytes": 0.68},
        spread=0.2,
    ),
}
"""Profiles of GPUs that come with the package."""


class GpuEstimator(Estimator):
    """By the profile of a GPU.

    Layers and changes of layout are those of the plan that `compile_gpu` would make; everything else is as long as its
    inputs and outputs take through the GPU's memory.
    """

    upsampling = False

    def __init__(self, model: nn.Module, example_inputs: Any, profile: GpuProfile, scope: Scope | None = None) -> None:
        """Raises EngineError if the model cannot be captured."""
        super().__init__(model, example_inputs, scope)
        self.gpu = profile

    def about(self, family: Family) -> dict[str, object]:
        """What a cost model says of where it comes from."""
        return {
            "target": self.gpu.gpu,
            "processor": self.gpu.gpu,
            "precision": self.gpu.precision,
            "batch": self.batch,
            "how": "estimated by a profile of the GPU",
            "masks": family.about,
        }

    def _estimated(self, graph: Graph, layout: str | None) -> Profile:
        if layout == "pixels":
            raise UnsupportedError("a GPU's plan chooses its layouts by itself")
        rates, facts = self.gpu.rates, layer_facts(graph)
        choices = plan(graph, self.batch, facts, self.gpu.dtype, torch.device("cpu"), rates=rates)
        works = layer_works(graph, self.batch, facts)
        others = {
            "inputs and outputs": self._converted(graph),
            "changes of layout": all_layout_changes_seconds(graph, self.batch, choices, rates),
        }
        spent = Profile(dict.fromkeys(self.names, 0.0), others, set())
        of = origins(graph, self._shapes)
        for node in graph.nodes:
            work = works.get(node.output)
            seconds = self._moved(graph, node) if work is None else self.gpu.seconds(work, choices[node.output])
            parameters = parameters_of(node, of)
            for name in parameters:
                spent.layers[name] += seconds / len(parameters)
            if not parameters:
                spent.others[node.op] = spent.others.get(node.op, 0.0) + seconds
        return spent

    def _moved(self, graph: Graph, node: Node) -> float:
        """Seconds of an operation in torch: of its bytes."""
        if node.op in _VIEWS:
            return 0.0
        numbers = sum(graph.values[name].numel(self.batch) for name in (*node.inputs, node.output))
        return self.gpu.rates.launch + self.gpu.rates.bytes * numbers / self.gpu.rates.bandwidth

    def _converted(self, graph: Graph) -> float:
        """Seconds to bring inputs and outputs from and to the model's own number format."""
        bytes_, launch = self.gpu.rates.bytes, self.gpu.rates.launch
        seconds = 0.0
        for name in (*graph.inputs, *graph.results):
            dtype = getattr(torch, graph.values[name].dtype, None)
            if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype != self.gpu.dtype:
                numbers = graph.values[name].numel(self.batch)
                seconds += launch + (bytes_ + dtype.itemsize) * numbers / self.gpu.rates.bandwidth
        return seconds
