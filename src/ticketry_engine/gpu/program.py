"""Turn a graph into a list of functions on a device: sparse layers in the group kernel, everything else in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ticketry_engine.gpu import ops
from ticketry_engine.gpu.plan import LAYERS, LayerChoice, LayerFacts, find_inner_values, runs_on_inner_inputs
from ticketry_engine.gpu.tables import GroupTables, inner_strides, pack, round_up
from ticketry_engine.ir import Graph, Node, last_uses
from ticketry_engine.ir.native import activation, dtype_name
from ticketry_engine.ir.reference import Cast, check_output, prepare


@dataclass
class GpuValue:
    """A value of the graph, stored in torch's (outer) layout, in the group kernel's (inner) layout, or in both."""

    shape: torch.Size
    outer: Any = None
    inner: Tensor | None = None
    """The value as [N, C, H, W] or [tokens, C] in the inner layout, or None."""

    @classmethod
    def of(cls, made: Any) -> GpuValue:
        """Wrap a result of torch, which is in the outer layout; the result may also be a number or a list."""
        return cls(made.shape if isinstance(made, Tensor) else torch.Size(), outer=made)

    def get_outer(self) -> Any:
        """Return the value in the outer layout, for torch's operations; a conversion is stored for later calls."""
        if self.outer is None:
            self.outer = ops.turn(self.inner, False).reshape(self.shape)
        return self.outer

    def get_flat(self) -> Tensor:
        """Return the value in the outer layout, as an image or with all axes but the last flattened to [tokens, C]."""
        outer: Tensor = self.get_outer()
        return outer if len(self.shape) in (2, 4) else outer.flatten(0, -2)

    def get_inner(self) -> Tensor:
        """Return the value in the inner layout, for the group kernel; a conversion is stored for later calls."""
        if self.inner is None:
            self.inner = ops.turn(self.get_flat(), True)
        return self.inner

    @property
    def is_inner(self) -> bool:
        """Whether the value exists only in the inner layout."""
        return self.outer is None


Step: TypeAlias = Callable[..., GpuValue]

Clock: TypeAlias = "Callable[[Callable[[], GpuValue]], tuple[GpuValue, float]]"
"""Function that calls a function and returns the function's result and its seconds."""


class Weights:
    """Dense and packed weights on a device, shared by a model's programs for all input shapes."""

    def __init__(self, graph: Graph, facts: Mapping[str, LayerFacts], dtype: torch.dtype, device: torch.device) -> None:
        self.graph = graph
        self.facts = facts
        self.dtype = dtype
        self.device = device
        self.cast = Cast(graph, dtype_name(dtype))
        self._tables: dict[tuple[str, int], GroupTables] = {}
        self._dense: dict[tuple[str, str], Tensor] = {}

    def tables(self, node: Node, tile: int) -> GroupTables:
        """Return the packed weight of a layer, in tiles of `tile` rows."""
        key = (node.output, tile)
        if key not in self._tables:
            weight = self.graph.tensors[node.weights["weight"]]
            window = ("padding", "dilation", "groups") if node.op == "conv2d" else ()
            packed = pack(weight, tile=tile, dtype=self.dtype, **{name: node.attrs[name] for name in window})
            self._tables[key] = packed.to(self.device)
        return self._tables[key]

    def of(self, node: Node) -> dict[str, Tensor]:
        """Return a node's dense weights on the device, by their names in the graph."""
        how = "channels_last" if node.op == "conv2d" else ""
        return {name: self._dense_weight(name, how) for name in node.weights.values()}

    def two_four(self, node: Node) -> Tensor:
        """Return a linear layer's weight as torch's semi-structured (2:4) tensor."""
        key = (node.weights["weight"], "2:4")
        if key not in self._dense:
            dense = self.cast(self.graph.tensors[key[0]]).to(self.device)
            self._dense[key] = torch.sparse.to_sparse_semi_structured(dense)
        return self._dense[key]

    def _dense_weight(self, name: str, how: str) -> Tensor:
        tensor = self.graph.tensors[name]
        key = (name, how if tensor.dim() == 4 else "")
        if key not in self._dense:
            made = self.cast(tensor).to(self.device)
            self._dense[key] = made.contiguous(memory_format=torch.channels_last) if key[1] else made
        return self._dense[key]

    @property
    def bytes(self) -> int:
        """Bytes on the device of all weights that were used so far."""
        dense = sum(one.numel() * one.element_size() for (_, how), one in self._dense.items() if how != "2:4")
        return dense + sum(tables.bytes for tables in self._tables.values())


@dataclass
class GpuProgram:
    """A graph prepared to run with one kernel choice for each layer."""

    graph: Graph
    choices: Mapping[str, LayerChoice]
    weights: Weights
    _steps: list[tuple[Step, tuple[str, ...], str, tuple[str, ...]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._wanted = find_inner_values(self.graph, self.choices)
        nodes = self.graph.nodes
        done = last_uses([(node.inputs, (node.output,)) for node in nodes], self.graph.results)
        for node, free in zip(nodes, done, strict=True):
            self._steps.append((self._build_step(node), node.inputs, node.output, free))

    def __call__(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """Run the graph and return its results by name, in the dtypes of the graph.

        Args:
            inputs: the inputs in the graph's order.
        """
        return self._run(inputs, lambda name, run, reads: run(*reads))

    def timed(self, inputs: Sequence[Tensor], clock: Clock) -> dict[str, float]:
        """Return the seconds of each node, measured by `clock`, by the name of the node's output."""
        seconds: dict[str, float] = {}

        def measure(name: str, run: Step, reads: list[GpuValue]) -> GpuValue:
            made, seconds[name] = clock(lambda: run(*reads))
            return made

        self._run(inputs, measure)
        return seconds

    def _run(self, inputs: Sequence[Tensor], call: Callable[[str, Step, list[GpuValue]], GpuValue]) -> dict[str, Any]:
        cast = self.weights.cast
        held = {name: GpuValue.of(cast(x)) for name, x in zip(self.graph.inputs, inputs, strict=True)}
        for run, reads, made, done in self._steps:
            held[made] = call(made, run, [held[name] for name in reads])
            for name in done:
                del held[name]
        return {name: self._result(name, held[name].get_outer()) for name in self.graph.results}

    def _result(self, name: str, made: Any) -> Any:
        dtype = getattr(torch, self.graph.values[name].dtype, None)
        return made.to(dtype) if isinstance(made, Tensor) and isinstance(dtype, torch.dtype) else made

    # -- steps

    def _build_step(self, node: Node) -> Step:
        choice = self.choices.get(node.output)
        if choice is not None and choice.kernel == "group":
            return _build_group_step(node, choice, self.weights)
        if node.op == "layer_norm" and node.output in self._wanted:
            return _build_layer_norm_step(node, self.weights)
        outer = self._build_outer_function(node, two_four=choice is not None and choice.kernel == "2:4")
        if node.op not in LAYERS and runs_on_inner_inputs(self.graph, node):
            return _run_in_either_layout(node, outer, _build_inner_function(node, self.weights))
        return lambda *reads: GpuValue.of(outer(*[one.get_outer() for one in reads]))

    def _build_outer_function(self, node: Node, two_four: bool) -> Callable[..., Any]:
        cast, weights = self.weights.cast, self.weights.of(node)
        if two_four:
            weights[node.weights["weight"]] = self.weights.two_four(node)
        function = prepare(cast.node(node), weights, device=self.weights.device)
        return function if node.native else check_output(function, cast.value(self.graph.values[node.output]), node)


# -- sparse layers -----------------------------------------------------------------------------------------------------


def _build_group_step(node: Node, choice: LayerChoice, weights: Weights) -> Step:
    tables = weights.tables(node, choice.tile)
    bias = weights.of(node).get(node.weights.get("bias", ""))
    weight = weights.graph.tensors[node.weights["weight"]]
    packed = (tables.tiles, tables.rows, tables.places, len(weight))
    act = kernel_activation(node.attrs["act"])

    def read_inner(residual: GpuValue | None) -> Tensor | None:
        return None if residual is None else residual.get_inner()

    if node.op == "linear":

        def linear(x: GpuValue, residual: GpuValue | None = None) -> GpuValue:
            made = ops.group_linear(x.get_inner(), tables.weight, bias, read_inner(residual), *packed, *act)
            return GpuValue(torch.Size((*x.shape[:-1], len(weight))), inner=made)

        # A linear layer on the last axis of an image treats its pixels as tokens.
        return lambda *reads: _restore_shape(linear(*[_flatten_tokens(one) for one in reads]), reads[0])

    window = [list(weight.shape[2:]), *(list(node.attrs[name]) for name in ("stride", "padding", "dilation"))]

    def conv2d(x: GpuValue, residual: GpuValue | None = None) -> GpuValue:
        made = ops.group_conv2d(x.get_inner(), tables.weight, bias, read_inner(residual), *packed, *window, *act)
        return GpuValue(made.shape, inner=made)

    return conv2d


def _build_layer_norm_step(node: Node, weights: Weights) -> Step:
    held = weights.of(node)
    scale, shift = (held.get(node.weights.get(role, "")) for role in ("weight", "bias"))
    eps = node.attrs["eps"]
    return lambda x: GpuValue(x.shape, inner=ops.inner_layer_norm(x.get_flat(), scale, shift, eps))


def _flatten_tokens(x: GpuValue) -> GpuValue:
    if len(x.shape) != 4:
        return x
    return GpuValue.of(x.get_outer().flatten(0, 2))


def _restore_shape(made: GpuValue, x: GpuValue) -> GpuValue:
    if len(x.shape) != 4:
        return made
    return GpuValue.of(made.get_outer().reshape(*x.shape[:-1], made.shape[-1]))


def kernel_activation(act: str | dict[str, float] | None) -> tuple[str, float]:
    """Return an activation of the graph as (name, slope) for the kernels; the name is "" if there is no activation."""
    if isinstance(act, dict):
        return "leaky_relu", float(act["leaky_relu"])
    return act or "", 0.0


# -- operations in either layout ---------------------------------------------------------------------------------------


def _run_in_either_layout(node: Node, outer: Callable[..., Any], inner: Callable[..., Tensor]) -> Step:
    """Return a step that runs `inner` if the first input exists only in the inner layout, else `outer`."""

    def run(*reads: GpuValue) -> GpuValue:
        if not reads[0].is_inner:
            return GpuValue.of(outer(*[one.get_outer() for one in reads]))
        made = inner(*[one.get_inner() for one in reads])
        return GpuValue(made.shape if made.dim() == 4 or node.op == "global_avg_pool" else reads[0].shape, inner=made)

    return run


def to_memory_order(x: Tensor) -> Tensor:
    """View a tensor in the inner layout in the order of its memory: contiguous [C, H, W, P] or [C, P].

    P is the number of images or tokens, padded.
    """
    run = round_up(x.shape[0])
    shape = (*x.shape[1:], run)
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return x.as_strided(shape, tuple(reversed(steps)))


def from_memory_order(stored: Tensor, count: int) -> Tensor:
    """View the result of `to_memory_order` as a tensor in the inner layout, with `count` images or tokens."""
    shape = (count, *stored.shape[:-1])
    stored = stored.contiguous()
    return stored.as_strided(shape, inner_strides(shape))


def _build_inner_function(node: Node, weights: Weights) -> Callable[..., Tensor]:
    """Return the operation of a node on tensors in the inner layout.

    Most operations call torch's function on tensors in memory order, with its axes renumbered.
    """
    attrs = node.attrs
    if node.op in ("max_pool2d", "avg_pool2d"):
        mode = "max" if node.op == "max_pool2d" else "padded_mean" if attrs["count_include_pad"] else "mean"
        window = [list(attrs.get(name, (1, 1))) for name in ("kernel", "stride", "padding", "dilation")]
        return lambda x: ops.inner_pool2d(x, *window, attrs["ceil"], mode)
    if node.op == "global_avg_pool":
        return lambda x: from_memory_order(to_memory_order(x).mean((1, 2), attrs["keepdim"]), x.shape[0])
    if node.op == "concat":
        return lambda *parts: from_memory_order(torch.cat([to_memory_order(part) for part in parts]), parts[0].shape[0])
    if node.op == "slice":
        start, length = attrs["start"], attrs["stop"] - attrs["start"]
        return lambda x: from_memory_order(to_memory_order(x).narrow(0, start, length), x.shape[0])
    if node.op == "affine":
        scale, shift = (weights.of(node)[node.weights[role]].view(-1, 1, 1, 1) for role in ("scale", "shift"))
        act = activation(attrs["act"], fresh=True)

        def affine(x: Tensor) -> Tensor:
            made = torch.addcmul(shift, to_memory_order(x), scale)
            return from_memory_order(made if act is None else act(made), x.shape[0])

        return affine
    function = prepare(node, {})
    return lambda *parts: from_memory_order(function(*map(to_memory_order, parts)), parts[0].shape[0])
