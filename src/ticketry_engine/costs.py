"""Determines what a model's layers cost under masks: times on this machine, estimated times on a GPU, and file sizes.

`MaskedModel` captures a model once, compiles it under many masks, and assigns the time of a call to the model's
parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ticketry_engine.capture import capture
from ticketry_engine.capture.program import Arguments
from ticketry_engine.compiled import Compiled
from ticketry_engine.example_inputs import batch_size_of
from ticketry_engine.gpu.plan import (
    RATES,
    LayerChoice,
    LayerWork,
    Rates,
    all_layout_changes_seconds,
    choose_kernels,
    gpu_programs_seconds,
    group_product_seconds,
    layer_facts,
    work_by_layer,
)
from ticketry_engine.ir import Graph, Node, model_file
from ticketry_engine.ir.graph import layer_name, parameters_of, tensor_origins
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.target import target
from ticketry_engine.plan.storage import UnsupportedError as UnsupportedError

PLANAR, CHANNELS_LAST = "planes", "pixels"
"""Memory layouts in which a whole network can be compiled."""


@dataclass
class CallSeconds:
    """The seconds of one call of a model, by layer and by kind of other operation."""

    layers: dict[str, float]
    """Parameter name -> seconds of the layers that use this parameter."""
    others: dict[str, float]
    """Name of an operation -> seconds of all such operations that use no parameter in `layers`."""
    torch: set[str]
    """Names of the parameters whose layers run in torch."""

    @property
    def total(self) -> float:
        """Return the seconds of the whole call."""
        return sum(self.layers.values()) + sum(self.others.values())


class MaskedModel:
    """A model that is captured once as a graph, and can then be compiled under many masks to compare their costs."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, parameters: Iterable[str], *, for_kernels: bool = True
    ) -> None:
        """Capture a model on the CPU.

        `example_inputs` is a tensor, a tuple of arguments, or a dict of arguments by name. `parameters` are the names
        of the parameters to which time is assigned. `for_kernels` means the same as in `capture`.
        """
        self.model, self.names = model, tuple(parameters)
        self._example_inputs, self._for_kernels = example_inputs, for_kernels
        self.graph = capture(model, None, example_inputs, for_kernels=for_kernels)
        call = Arguments.from_examples(example_inputs)
        self.args, self.kwargs = call.args, call.kwargs
        self.batch = batch_size_of(tuple(tree_flatten((self.args, self.kwargs))[0]))

    def masked_graph(self, keep: Mapping[str, Tensor] | None) -> Graph:
        """Return the graph with masked weights; capture the model again if the graph lacks a masked parameter."""
        if keep is None:
            return self.graph
        tensors = self.graph.tensors
        if all(name in tensors and tensors[name].shape == kept.shape for name, kept in keep.items()):
            # Folding a norm into a weight scales its rows, so that zeros stay where they are.
            masked = {name: tensors[name] * kept for name, kept in keep.items()}
            return replace(self.graph, tensors={**tensors, **masked})
        return capture(self.model, keep, self._example_inputs, for_kernels=self._for_kernels)

    def compile(
        self, keep: Mapping[str, Tensor] | None, *, threads: int, precision: str, layout: str | None = None
    ) -> Compiled:
        """Return the masked model compiled; if `layout` is None, use the layout that is estimated to be faster."""
        graph = self.masked_graph(keep)
        made = Compiled(graph, threads=threads, precision=precision, layout=layout, library=self._library)
        made.clock = time.thread_time  # profiles run on one thread
        return made

    @cached_property
    def _library(self) -> Library:
        return Library(target("host"))

    def call_with_examples(self, compiled: Callable[..., Any]) -> Callable[[], Any]:
        """Return a function that calls `compiled` with the example inputs."""
        return lambda: compiled(*self.args, **self.kwargs)

    def profile(self, compiled: Compiled, rounds: int, call_seconds: float) -> CallSeconds:
        """Return the seconds of each layer, as medians on one thread, scaled so that their sum is `call_seconds`.

        `call_seconds` is the measured time of a whole call; times measured layer by layer add up to more.
        """
        seconds = compiled.time_nodes(*self.args, rounds=rounds, **self.kwargs)
        factor = call_seconds / max(sum(seconds.values()), 1e-300)
        nodes = {node.output: node for node in compiled.graph.nodes}
        found = CallSeconds(dict.fromkeys(self.names, 0.0), {}, set())
        for output, spent in seconds.items():
            node = nodes.get(output)  # None for loads, stores and constants
            kind = output if node is None else f"{node.op} in torch" if output in compiled.reasons else node.op
            parameter = None if node is None else self._parameter_of(node)
            if parameter is None:
                found.others[kind] = found.others.get(kind, 0.0) + factor * spent
            else:
                found.layers[parameter] += factor * spent
                if output in compiled.reasons:
                    found.torch.add(parameter)
        native = [
            parameters_of(node, self.tensor_origins) for node in self.graph.nodes if node.output not in compiled.reasons
        ]
        found.torch |= set(self.names).difference(*native)
        return found

    def _parameter_of(self, node: Node) -> str | None:
        """Return the name of the parameter to which the time of `node` is assigned; None if there is none."""
        own = node.op in ("conv2d", "linear") and node.weights.get("weight")
        return self._parameters.get(layer_name(own) if own else node.output)

    @cached_property
    def tensor_origins(self) -> dict[str, str]:
        """Return, by name of a tensor of the graph, the name of the parameter from which the tensor was computed."""
        return tensor_origins(self.graph, self.names)

    @cached_property
    def _parameters(self) -> dict[str, str]:
        found = {layer_name(tensor): parameter for tensor, parameter in self.tensor_origins.items()}
        for node in self.graph.nodes:  # what runs in torch is named after its output
            for parameter in parameters_of(node, self.tensor_origins):
                found[node.output] = parameter
        return found


# -- bytes of a model file by parameter and number of retained weights -------------------------------------------------


_SEAL_BYTES = 80
"""Number of bytes of the digest in a model file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a model file that stores a parameter's weights, possibly with additional zeros."""

    numbers: int
    number_bytes: int
    head_bytes: int
    """Number of bytes of the tensor's entry in the header of the file."""

    @property
    def dense_bytes(self) -> int:
        """Return the bytes of the tensor if all elements are stored."""
        return self.numbers * self.number_bytes

    def packed_bytes(self, kept: int) -> float:
        """Return the bytes that the tensor takes in a file if only `kept` weights, with their positions, are stored."""
        return self.head_bytes + model_file.smallest_position_bytes(kept, self.numbers) + self.number_bytes * kept


def fixed_bytes_and_tensors(
    network: MaskedModel, parameters: Mapping[str, Tensor]
) -> tuple[float, dict[str, list[StoredTensor]]]:
    """Return (bytes of the model file that no mask changes, tensors of the file for each parameter by name).

    A parameter has several tensors if it was combined with several norms, and none if the file does not store its
    values.
    """
    graph = network.graph
    forms: dict[str, list[str]] = {name: [] for name in parameters}
    for name, parameter in network.tensor_origins.items():
        tensor, whole = graph.tensors[name], parameters[parameter]
        # It contains each weight once, and otherwise only zeros.
        if tensor.numel() == whole.numel() or 0 < int(tensor.count_nonzero()) == int(whole.count_nonzero()):
            forms[parameter].append(name)
    full = {name: torch.ones_like(graph.tensors[name]) for found in forms.values() for name in found}
    dense = replace(graph, tensors={**graph.tensors, **full})
    size = len(model_file.dumps(dense, {"precision": "fp32"})) + _SEAL_BYTES
    total = model_file.weight_bytes(graph)
    stored = {
        parameter: [
            StoredTensor(full[name].numel(), full[name].element_size(), model_file.most_header_bytes(name, total))
            for name in found
        ]
        for parameter, found in forms.items()
    }
    return float(size - sum(one.nbytes for one in full.values())), stored


# -- latency on a GPU, estimated from rates that were measured on such a GPU; no GPU is needed -------------------------

# The kernel of a layer is chosen with the same rates as in `gpu.compile_gpu`. The estimated time of a layer is
#
#     group kernel    layer + max(product + programs, bytes)
#     dense           layer + product x (whole waves of tiles / tiles) + bytes
#
# where "layer" is a constant, "product" the time of the multiplications, "programs" the time to start the kernel's
# programs, and "bytes" the time to read and write memory, for dense layers including separate passes for residual and
# activation. The coefficients were fitted to measured times of whole networks, whose calls were replayed from CUDA
# graphs.


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
    """Measured speeds of a GPU in one number format, from which times of layers are estimated."""

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
        """Return the estimated seconds of the layer `work` in the kernel that `choice` describes."""
        rates = self.kernels
        if choice.kernel == "group":
            product = self.group["product"] * group_product_seconds(work, choice.tile, rates)
            moved = rates.bytes * (work.inputs + work.outputs * (1 + work.residual)) / rates.bandwidth
            return self.group["layer"] + max(product + gpu_programs_seconds(work, choice.tile, rates), moved)
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
        """Return the estimated seconds of a call of the model with the mask `keep`; None: nothing is pruned.

        An operation other than a convolution or linear layer takes the time to read its inputs and write its output.
        Raise `UnsupportedError` if `layout` is `CHANNELS_LAST`, because layouts on a GPU are chosen automatically.
        """
        if layout == CHANNELS_LAST:
            raise UnsupportedError("a GPU's plan chooses its layouts by itself")
        graph, batch = network.masked_graph(keep), network.batch
        facts = layer_facts(graph)
        choices = choose_kernels(graph, batch, facts, self.dtype, torch.device("cpu"), rates=self.kernels)
        works = work_by_layer(graph, batch, facts)
        others = {
            "inputs and outputs": self._dtype_conversion_seconds(graph, batch),
            "changes of layout": all_layout_changes_seconds(graph, batch, choices, self.kernels),
        }
        spent = CallSeconds(dict.fromkeys(network.names, 0.0), others, set())
        of = tensor_origins(graph, network.names)
        for node in graph.nodes:
            if (work := works.get(node.output)) is not None:
                seconds = self.layer_seconds(work, choices[node.output])
            else:
                seconds = self._memory_bound_seconds(graph, node, batch)
            parameters = parameters_of(node, of)
            for name in parameters:
                spent.layers[name] += seconds / len(parameters)
            if not parameters:
                spent.others[node.op] = spent.others.get(node.op, 0.0) + seconds
        return spent

    def _memory_bound_seconds(self, graph: Graph, node: Node, batch: int) -> float:
        """Estimate the seconds of an operation in torch from the bytes that it reads and writes."""
        if node.op in _VIEWS:
            return 0.0
        numbers = sum(graph.values[name].numel(batch) for name in (*node.inputs, node.output))
        return self.kernels.launch + self.kernels.bytes * numbers / self.kernels.bandwidth

    def _dtype_conversion_seconds(self, graph: Graph, batch: int) -> float:
        """Estimate the seconds for converting the number formats of the network's inputs and outputs."""
        seconds = 0.0
        for name in (*graph.inputs, *graph.output_names):
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
