"""A graph as a list of functions on a device: sparse layers in the group kernel, everything else in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ticketry_engine.gpu import ops
from ticketry_engine.gpu.layout import inner_strides, padded
from ticketry_engine.gpu.plan import LAYERS, Choice, Facts, follows, wanted_inner
from ticketry_engine.gpu.tables import Tables, pack
from ticketry_engine.ir import Graph, Node, last_uses
from ticketry_engine.ir.native import dtype_name
from ticketry_engine.ir.reference import Cast, activation, checked, prepare


@dataclass
class Held:
    """A value, in one layout or in both."""

    shape: torch.Size
    outer: Any = None
    inner: Tensor | None = None
    """[N, C, H, W] or [tokens, C]."""

    @classmethod
    def of(cls, made: Any) -> Held:
        """What torch has made, in torch's own layout; it may be a number or a list."""
        return cls(made.shape if isinstance(made, Tensor) else torch.Size(), outer=made)

    def get_outer(self) -> Any:
        """As torch's operations take it."""
        if self.outer is None:
            self.outer = ops.turn(self.inner, False).reshape(self.shape)
        return self.outer

    def get_flat(self) -> Tensor:
        """Outer, as an image or as [tokens, C]."""
        outer: Tensor = self.get_outer()
        return outer if len(self.shape) in (2, 4) else outer.flatten(0, -2)

    def get_inner(self) -> Tensor:
        """As the group kernel takes it."""
        if self.inner is None:
            self.inner = ops.turn(self.get_flat(), True)
        return self.inner

    @property
    def is_inner(self) -> bool:
        """Whether there is nothing but the inner layout."""
        return self.outer is None


Step: TypeAlias = Callable[..., Held]

Clock: TypeAlias = "Callable[[Callable[[], Held]], tuple[Held, float]]"
"""Runs a function; its result, and seconds."""


class Weights:
    """Packed weights on a device, shared by the programs for all input shapes of a model."""

    def __init__(self, graph: Graph, facts: Mapping[str, Facts], dtype: torch.dtype, device: torch.device) -> None:
        self.graph = graph
        self.facts = facts
        self.dtype = dtype
        self.device = device
        self.cast = Cast(graph, dtype_name(dtype))
        self._tables: dict[tuple[str, int], Tables] = {}
        self._dense: dict[tuple[str, str], Tensor] = {}

    def tables(self, node: Node, tile: int) -> Tables:
        """Of a layer in tiles of so many rows."""
        key = (node.output, tile)
        if key not in self._tables:
            weight = self.graph.tensors[node.weights["weight"]]
            window = ("padding", "dilation", "groups") if node.op == "conv2d" else ()
            packed = pack(weight, tile=tile, dtype=self.dtype, **{name: node.attrs[name] for name in window})
            self._tables[key] = packed.to(self.device)
        return self._tables[key]

    def of(self, node: Node) -> dict[str, Tensor]:
        """Name in the graph -> tensor on the device, of a node's weights as they are."""
        how = "channels_last" if node.op == "conv2d" else ""
        return {name: self._held(name, how) for name in node.weights.values()}

    def two_four(self, node: Node) -> Tensor:
        """A linear layer's weight as torch's semi-structured tensor."""
        key = (node.weights["weight"], "2:4")
        if key not in self._dense:
            dense = self.cast(self.graph.tensors[key[0]]).to(self.device)
            self._dense[key] = torch.sparse.to_sparse_semi_structured(dense)
        return self._dense[key]

    def _held(self, name: str, how: str) -> Tensor:
        tensor = self.graph.tensors[name]
        key = (name, how if tensor.dim() == 4 else "")
        if key not in self._dense:
            made = self.cast(tensor).to(self.device)
            self._dense[key] = made.contiguous(memory_format=torch.channels_last) if key[1] else made
        return self._dense[key]

    @property
    def bytes(self) -> int:
        """On the device, of all layers that were used so far."""
        dense = sum(one.numel() * one.element_size() for (_, how), one in self._dense.items() if how != "2:4")
        return dense + sum(tables.bytes for tables in self._tables.values())


@dataclass
class Program:
    """A graph ready to be run with one choice for each layer."""

    graph: Graph
    choices: Mapping[str, Choice]
    weights: Weights
    _steps: list[tuple[Step, tuple[str, ...], str, tuple[str, ...]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._wanted = wanted_inner(self.graph, self.choices)
        nodes = self.graph.nodes
        done = last_uses([(node.inputs, (node.output,)) for node in nodes], self.graph.results)
        for node, free in zip(nodes, done, strict=True):
            self._steps.append((self._step(node), node.inputs, node.output, free))

    def __call__(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """Result -> what the graph returns by that name, of inputs in its order, in the types of the graph."""
        return self._run(inputs, lambda name, run, reads: run(*reads))

    def timed(self, inputs: Sequence[Tensor], clock: Clock) -> dict[str, float]:
        """Output of each node -> seconds, by a clock that runs a function."""
        seconds: dict[str, float] = {}

        def measure(name: str, run: Step, reads: list[Held]) -> Held:
            made, seconds[name] = clock(lambda: run(*reads))
            return made

        self._run(inputs, measure)
        return seconds

    def _run(self, inputs: Sequence[Tensor], call: Callable[[str, Step, list[Held]], Held]) -> dict[str, Any]:
        cast = self.weights.cast
        held = {name: Held.of(cast(x)) for name, x in zip(self.graph.inputs, inputs, strict=True)}
        for run, reads, made, done in self._steps:
            held[made] = call(made, run, [held[name] for name in reads])
            for name in done:
                del held[name]
        return {name: self._result(name, held[name].get_outer()) for name in self.graph.results}

    def _result(self, name: str, made: Any) -> Any:
        dtype = getattr(torch, self.graph.values[name].dtype, None)
        return made.to(dtype) if isinstance(made, Tensor) and isinstance(dtype, torch.dtype) else made

    # -- steps

    def _step(self, node: Node) -> Step:
        choice = self.choices.get(node.output)
        if choice is not None and choice.kernel == "group":
            return _group(node, choice, self.weights)
        if node.op == "layer_norm" and node.output in self._wanted:
            return _layer_norm(node, self.weights)
        outer = self._outer(node, two_four=choice is not None and choice.kernel == "2:4")
        if node.op not in LAYERS and follows(self.graph, node):
            return _either(node, outer, _inner(node, self.weights))
        return lambda *reads: Held.of(outer(*[one.get_outer() for one in reads]))

    def _outer(self, node: Node, two_four: bool) -> Callable[..., Any]:
        cast, weights = self.weights.cast, self.weights.of(node)
        if two_four:
            weights[node.weights["weight"]] = self.weights.two_four(node)
        function = prepare(cast.node(node), weights, device=self.weights.device)
        return function if node.native else checked(function, cast.value(self.graph.values[node.output]), node)


# -- sparse layers -----------------------------------------------------------------------------------------------------


def _group(node: Node, choice: Choice, weights: Weights) -> Step:
    tables = weights.tables(node, choice.tile)
    bias = weights.of(node).get(node.weights.get("bias", ""))
    weight = weights.graph.tensors[node.weights["weight"]]
    packed = (tables.tiles, tables.rows, tables.places, len(weight))
    act = named_act(node.attrs["act"])

    def lying(residual: Held | None) -> Tensor | None:
        return None if residual is None else residual.get_inner()

    if node.op == "linear":

        def linear(x: Held, residual: Held | None = None) -> Held:
            made = ops.group_linear(x.get_inner(), tables.weight, bias, lying(residual), *packed, *act)
            return Held(torch.Size((*x.shape[:-1], len(weight))), inner=made)

        # An image's last axis is no run of channels: its places are tokens.
        return lambda *reads: _as_shaped(linear(*[_as_tokens(one) for one in reads]), reads[0])

    window = [list(weight.shape[2:]), *(list(node.attrs[name]) for name in ("stride", "padding", "dilation"))]

    def conv2d(x: Held, residual: Held | None = None) -> Held:
        made = ops.group_conv2d(x.get_inner(), tables.weight, bias, lying(residual), *packed, *window, *act)
        return Held(made.shape, inner=made)

    return conv2d


def _layer_norm(node: Node, weights: Weights) -> Step:
    held = weights.of(node)
    scale, shift = (held.get(node.weights.get(role, "")) for role in ("weight", "bias"))
    eps = node.attrs["eps"]
    return lambda x: Held(x.shape, inner=ops.inner_layer_norm(x.get_flat(), scale, shift, eps))


def _as_tokens(x: Held) -> Held:
    if len(x.shape) != 4:
        return x
    return Held.of(x.get_outer().flatten(0, 2))


def _as_shaped(made: Held, x: Held) -> Held:
    if len(x.shape) != 4:
        return made
    return Held.of(made.get_outer().reshape(*x.shape[:-1], made.shape[-1]))


def named_act(act: str | dict[str, float] | None) -> tuple[str, float]:
    """An act of a graph as the kernels take it."""
    if isinstance(act, dict):
        return "leaky_relu", float(act["leaky_relu"])
    return act or "", 0.0


# -- operations in either layout ---------------------------------------------------------------------------------------


def _either(node: Node, outer: Callable[..., Any], inner: Callable[..., Tensor]) -> Step:
    """Run on what lies there: inner if the first input is inner alone."""

    def run(*reads: Held) -> Held:
        if not reads[0].is_inner:
            return Held.of(outer(*[one.get_outer() for one in reads]))
        made = inner(*[one.get_inner() for one in reads])
        return Held(made.shape if made.dim() == 4 or node.op == "global_avg_pool" else reads[0].shape, inner=made)

    return run


def physical(x: Tensor) -> Tensor:
    """An inner tensor as it lies: contiguous [C, H, W, P] or [C, P]."""
    run = padded(x.shape[0])
    shape = (*x.shape[1:], run)
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return x.as_strided(shape, tuple(reversed(steps)))


def logical(lying: Tensor, count: int) -> Tensor:
    """The inner tensor of so many images, or tokens, that lies as `physical` says."""
    shape = (count, *lying.shape[:-1])
    lying = lying.contiguous()
    return lying.as_strided(shape, inner_strides(shape))


def _inner(node: Node, weights: Weights) -> Callable[..., Tensor]:
    """The operation on inner tensors: torch's own on what lies in memory, with the axes where they are there."""
    attrs = node.attrs
    if node.op in ("max_pool2d", "avg_pool2d"):
        mode = "max" if node.op == "max_pool2d" else "padded_mean" if attrs["count_include_pad"] else "mean"
        window = [list(attrs.get(name, (1, 1))) for name in ("kernel", "stride", "padding", "dilation")]
        return lambda x: ops.inner_pool2d(x, *window, attrs["ceil"], mode)
    if node.op == "global_avg_pool":
        return lambda x: logical(physical(x).mean((1, 2), attrs["keepdim"]), x.shape[0])
    if node.op == "concat":
        return lambda *parts: logical(torch.cat([physical(part) for part in parts]), parts[0].shape[0])
    if node.op == "slice":
        start, length = attrs["start"], attrs["stop"] - attrs["start"]
        return lambda x: logical(physical(x).narrow(0, start, length), x.shape[0])
    if node.op == "affine":
        scale, shift = (weights.of(node)[node.weights[role]].view(-1, 1, 1, 1) for role in ("scale", "shift"))
        act = activation(attrs["act"], fresh=True)

        def affine(x: Tensor) -> Tensor:
            made = torch.addcmul(shift, physical(x), scale)
            return logical(made if act is None else act(made), x.shape[0])

        return affine
    function = prepare(node, {})
    return lambda *parts: logical(function(*map(physical, parts)), parts[0].shape[0])
