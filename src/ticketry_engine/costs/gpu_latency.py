"""Estimates a model's latency on a GPU, from rates that were measured on such a GPU; no GPU is needed.

The kernel of a layer is chosen with the same rates as in `gpu.compile_gpu`. The estimated time of a layer is

    group kernel    layer + max(product + programs, bytes)
    dense           layer + product x (whole waves of tiles / tiles) + bytes

where "layer" is a constant, "product" the time of the multiplications, "programs" the time to start the kernel's
programs, and "bytes" the time to read and write memory, for dense layers including separate passes for residual and
activation. The coefficients were fitted to measured times of whole networks, whose calls were replayed from CUDA
graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ticketry_engine.costs.masked_model import CHANNELS_LAST, CallSeconds, MaskedModel
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
"""Operations that torch mostly performs by changing strides, without a copy."""

_TILE_SIDE = 128
"""Number of rows, and of columns, of a tile of a dense matrix product."""

_MOST_SPLIT = 4.0
"""Maximum factor by which idle multiprocessors slow down a small matrix product.

Libraries split the sums of such a product, so that more multiprocessors work.
"""


@dataclass(frozen=True)
class GpuRates:
    """Rates and fitted constants of a GPU in one number format."""

    dtype: torch.dtype
    """Number format of weights and values in compiled networks."""
    kernels: Rates
    """Rates that the planner uses to choose kernels."""
    multiprocessors: int
    group: Mapping[str, float]
    """Constants of group kernels: "layer", in seconds, and "product", a factor of the multiplication time."""
    dense: Mapping[str, float]
    """Constants of dense layers: "layer", in seconds; "product" and "bytes", factors of multiplication and memory time.
    """

    def layer_seconds(self, work: LayerWork, choice: LayerChoice) -> float:
        """Return the estimated seconds of the layer `work` in the kernel of `choice`."""
        rates = self.kernels
        if choice.kernel == "group":
            product = self.group["product"] * group_product_seconds(work, choice.tile, rates)
            moved = rates.bytes * (work.inputs + work.outputs * (1 + work.residual)) / rates.bandwidth
            return self.group["layer"] + max(product + programs_seconds(work, choice.tile, rates), moved)
        product = 2.0 * work.pixels * work.rows * work.columns / (rates.linear if work.linear else rates.conv)
        tiles = max(1, -(-work.pixels // _TILE_SIDE) * -(-work.rows // _TILE_SIDE))
        uneven = min(_MOST_SPLIT, -(-tiles // self.multiprocessors) * self.multiprocessors / tiles)
        passes = 1 + 3 * work.residual + 2 * work.act
        numbers = work.inputs + work.outputs * passes + work.rows * work.columns
        moved = rates.bytes * numbers / rates.bandwidth
        return self.dense["layer"] + self.dense["product"] * uneven * product + self.dense["bytes"] * moved

    def call_seconds(
        self, network: MaskedModel, keep: Mapping[str, Tensor] | None, layout: str | None = None
    ) -> CallSeconds:
        """Return the estimated seconds of a call of the model under a mask.

        An operation other than a convolution or linear layer takes the time to read its inputs and write its output.

        Args:
            network: the captured model.
            keep: mask by parameter name; None: nothing is pruned.
            layout: None or `PLANAR`, which have no effect on a GPU.

        Raises:
            UnsupportedError: if `layout` is `CHANNELS_LAST`, because the planner for GPUs chooses layouts itself.
        """
        if layout == CHANNELS_LAST:
            raise UnsupportedError("a GPU's plan chooses its layouts by itself")
        graph, batch = network.masked_graph(keep), network.batch
        facts = layer_facts(graph)
        choices = plan(graph, batch, facts, self.dtype, torch.device("cpu"), rates=self.kernels)
        works = layer_works(graph, batch, facts)
        others = {
            "inputs and outputs": self._conversion_seconds(graph, batch),
            "changes of layout": all_layout_changes_seconds(graph, batch, choices, self.kernels),
        }
        spent = CallSeconds(dict.fromkeys(network.names, 0.0), others, set())
        of = origins(graph, network.names)
        for node in graph.nodes:
            if (work := works.get(node.output)) is not None:
                seconds = self.layer_seconds(work, choices[node.output])
            else:
                seconds = self._move_seconds(graph, node, batch)
            parameters = parameters_of(node, of)
            for name in parameters:
                spent.layers[name] += seconds / len(parameters)
            if not parameters:
                spent.others[node.op] = spent.others.get(node.op, 0.0) + seconds
        return spent

    def _move_seconds(self, graph: Graph, node: Node, batch: int) -> float:
        """Return the estimated seconds of an operation in torch, from the bytes that the operation reads and writes."""
        if node.op in _VIEWS:
            return 0.0
        numbers = sum(graph.values[name].numel(batch) for name in (*node.inputs, node.output))
        return self.kernels.launch + self.kernels.bytes * numbers / self.kernels.bandwidth

    def _conversion_seconds(self, graph: Graph, batch: int) -> float:
        """Return the estimated seconds to convert the number formats of inputs and outputs of the network."""
        seconds = 0.0
        for name in (*graph.inputs, *graph.results):
            dtype = getattr(torch, graph.values[name].dtype, None)
            if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype != self.dtype:
                numbers = graph.values[name].numel(batch)
                bytes_ = (self.kernels.bytes + dtype.itemsize) * numbers
                seconds += self.kernels.launch + bytes_ / self.kernels.bandwidth
        return seconds


H100_BF16 = GpuRates(
    dtype=torch.bfloat16,
    kernels=RATES[torch.bfloat16],
    multiprocessors=132,
    group={"layer": 5.5e-6, "product": 0.71},
    dense={"layer": 18.8e-6, "product": 0.58, "bytes": 0.68},
)
"""Rates of an H100 with bfloat16, fitted to 21 timings of four networks and to timings of 40 layers.

The timings are in docs/engine-gpu.md (torch 2.11, CUDA 13.0, Triton 3.6).
"""
