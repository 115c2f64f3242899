"""What every operation of a graph means, in plain torch, and an interpreter for whole graphs.

This is the reference that kernels are tested against, and what runs the places which the engine leaves to torch.
Arguments are looked up once, when a node is prepared; a call does nothing but torch's own work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ticketry.engine.call import Call, build
from ticketry.engine.graph import FLOATS, OTHERS, Graph, Node, Value
from ticketry.errors import EngineError, GraphError

Function: TypeAlias = "Callable[..., Any]"

_ACTS: Mapping[str, tuple[Function, Function]] = {
    # Out of place, and in place on a tensor that nobody else holds.
    "relu": (torch.relu, torch.relu_),
    "relu6": (F.relu6, lambda x: F.relu6(x, inplace=True)),
    "silu": (F.silu, lambda x: F.silu(x, inplace=True)),
    "gelu": (F.gelu, F.gelu),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"),) * 2,
    "hardswish": (F.hardswish, lambda x: F.hardswish(x, inplace=True)),
    "hardsigmoid": (F.hardsigmoid, lambda x: F.hardsigmoid(x, inplace=True)),
    "sigmoid": (torch.sigmoid, torch.sigmoid_),
    "tanh": (torch.tanh, torch.tanh_),
}


def activation(act: str | dict[str, float] | None, *, fresh: bool = False) -> Function | None:
    """The function of an act; in place where it can be if its argument is `fresh`. None for the identity."""
    if act is None:
        return None
    if isinstance(act, dict):
        slope = act["leaky_relu"]
        return lambda x: F.leaky_relu(x, slope, inplace=fresh)
    return _ACTS[act][fresh]


def prepare(node: Node, tensors: Mapping[str, Tensor], *, device: str | torch.device = "cpu") -> Function:
    """A function of the node's inputs, in order, that computes its output."""
    if not node.native:
        from ticketry.engine.aten import prepare as prepare_torch_node

        return prepare_torch_node(node, tensors, device)
    return _PREPARE[node.op](node.attrs, {role: tensors[name] for role, name in node.weights.items()}, len(node.inputs))


def torch_step(graph: Graph, node: Node) -> Function:
    """A function of the node's inputs that runs it in torch and checks that it makes what the graph says it does."""
    function = prepare(node, graph.tensors)
    return function if node.native else checked(function, graph.values[node.output], node)


def reference(node: Node, tensors: Mapping[str, Tensor], inputs: Sequence[Any]) -> Any:
    """What a node makes of its inputs."""
    with torch.no_grad():
        return prepare(node, tensors)(*inputs)


class Program:
    """A graph ready to be run by torch, one operation after the other.

    Args:
        graph: taken as it is: validate one that comes from elsewhere first.
        precision: "float64", "bfloat16", ...: weights, inputs and all that is computed in the graph's own floating
            point type are of this type instead; None leaves them.
    """

    def __init__(
        self, graph: Graph, *, precision: str | None = None, device: str | torch.device = "cpu", check: bool = True
    ) -> None:
        self.graph = graph
        self._call = Call(graph)
        self._cast = Cast(graph, precision)
        slots = {name: index for index, name in enumerate(graph.values)}
        tensors = {name: self._cast(tensor).to(device) for name, tensor in graph.tensors.items()}
        last = {name: step for step, node in enumerate(graph.nodes) for name in node.inputs}
        kept = set(graph.results)
        self._steps: list[tuple[Function, tuple[int, ...], int, tuple[int, ...]]] = []
        for step, node in enumerate(graph.nodes):
            function = prepare(self._cast.node(node), tensors, device=device)
            if check and not node.native:
                function = checked(function, self._cast.value(graph.values[node.output]), node)
            done = [name for name in dict.fromkeys(node.inputs) if last[name] == step and name not in kept]
            if node.output not in last and node.output not in kept:
                done.append(node.output)
            inputs = tuple(slots[name] for name in node.inputs)
            self._steps.append((function, inputs, slots[node.output], tuple(slots[name] for name in done)))
        self._inputs = tuple(slots[name] for name in graph.inputs)
        self._count = len(slots)
        self._slots = slots

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network as the model was called."""
        found = self.values(self._call.bind(args, kwargs))
        return build(self.graph.outputs, found)

    def values(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """Value -> tensor of every output of the graph, of inputs in the graph's order."""
        held: list[Any] = [None] * self._count
        with torch.no_grad():
            for slot, tensor in zip(self._inputs, inputs, strict=True):
                held[slot] = self._cast(tensor)
            for function, arguments, slot, done in self._steps:
                held[slot] = function(*[held[argument] for argument in arguments])
                for old in done:
                    held[old] = None
        return {name: held[self._slots[name]] for name in self.graph.results}


def run(graph: Graph, *args: Any, precision: str | None = None, **kwargs: Any) -> Any:
    """Call a graph once. For many calls make a `Program` and keep it."""
    return Program(graph, precision=precision)(*args, **kwargs)


class Cast:
    """Puts one floating point type in the place of the graph's own."""

    def __init__(self, graph: Graph, precision: str | None) -> None:
        if precision is not None and precision not in FLOATS:
            raise EngineError(f"there is no precision {precision!r}: choose one of {sorted(FLOATS)}")
        self.to = None if precision is None else getattr(torch, precision)
        counts: dict[torch.dtype, int] = {}
        for tensor in graph.tensors.values():
            if tensor.is_floating_point():
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        self.own = max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor if self.to is None or tensor.dtype != self.own else tensor.to(self.to)

    def value(self, value: Value) -> Value:
        if self.to is None or value.dtype != str(self.own).removeprefix("torch."):
            return value
        return Value(value.name, value.shape, str(self.to).removeprefix("torch."))

    def node(self, node: Node) -> Node:
        if self.to is None or node.native:
            return node
        return Node(node.op, node.inputs, node.output, self._swap(node.attrs), node.weights)

    def _swap(self, attrs: Any) -> Any:
        if isinstance(attrs, dict):
            if attrs == {"dtype": str(self.own).removeprefix("torch.")}:
                return {"dtype": str(self.to).removeprefix("torch.")}
            return {key: self._swap(part) for key, part in attrs.items()}
        return [self._swap(part) for part in attrs] if isinstance(attrs, list) else attrs


def checked(function: Function, value: Value, node: Node) -> Function:
    """The function, with what it makes compared to what the graph says of it: others rely on that."""
    if value.dtype in OTHERS:
        return function
    dtype = getattr(torch, value.dtype)
    shape = value.shape
    dynamic = bool(shape) and shape is not None and shape[0] is None

    def checked(*inputs: Any) -> Any:
        made = function(*inputs)
        fits = isinstance(made, Tensor) and made.dtype == dtype
        if fits and shape is not None:
            found = made.shape
            fits = len(found) == len(shape) and found[dynamic:] == shape[dynamic:]
        if not fits:
            was = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise GraphError(f"{node.op} -> {node.output}: it made {was}, not the {value.dtype} {shape} of the graph")
        return made

    return checked


# -- native operations: (attributes, weights by role, number of inputs) -> function of the inputs ----------------------

_Attrs: TypeAlias = "Mapping[str, Any]"
_Weights: TypeAlias = "Mapping[str, Tensor]"


def _finish(compute: Function, attrs: _Attrs, inputs: int) -> Function:
    """`compute`, then the residual, then the activation, both in place on what it has made."""
    act = activation(attrs["act"], fresh=True)
    if inputs == 2:
        if act is None:
            return lambda x, residual: compute(x).add_(residual)
        return lambda x, residual: act(compute(x).add_(residual))
    if act is None:
        return compute
    return lambda x: act(compute(x))


def _conv2d(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias = weights["weight"], weights.get("bias")
    stride, padding, dilation = (tuple(attrs[name]) for name in ("stride", "padding", "dilation"))
    groups = attrs["groups"]
    return _finish(lambda x: torch.conv2d(x, weight, bias, stride, padding, dilation, groups), attrs, inputs)


def _linear(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias = weights["weight"], weights.get("bias")
    return _finish(lambda x: F.linear(x, weight, bias), attrs, inputs)


def _pairwise(operation: Function) -> Callable[[_Attrs, _Weights, int], Function]:
    def prepare(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
        act = activation(attrs["act"], fresh=True)
        return operation if act is None else lambda one, other: act(operation(one, other))

    return prepare


def _act(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    function = activation(attrs["act"])
    assert function is not None
    return function


def _max_pool2d(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    kernel, stride, padding, dilation = (tuple(attrs[name]) for name in ("kernel", "stride", "padding", "dilation"))
    ceil = attrs["ceil"]
    return lambda x: torch.max_pool2d(x, kernel, stride, padding, dilation, ceil)


def _avg_pool2d(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    kernel, stride, padding = (tuple(attrs[name]) for name in ("kernel", "stride", "padding"))
    ceil, counted = attrs["ceil"], attrs["count_include_pad"]
    return lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted)


def _global_avg_pool(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    keepdim = attrs["keepdim"]
    return lambda x: x.mean((2, 3), keepdim)


def _concat(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    axis = attrs["axis"]
    return lambda *parts: torch.cat(parts, axis)


def _slice(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    axis, start, length = attrs["axis"], attrs["start"], attrs["stop"] - attrs["start"]
    return lambda x: x.narrow(axis, start, length)


def _flatten(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    return lambda x: torch.flatten(x, 1)


def _affine(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    scale, shift = weights["scale"], weights["shift"]
    act = activation(attrs["act"], fresh=True)

    def affine(x: Tensor) -> Tensor:
        channels = (-1,) + (1,) * (x.dim() - 2)
        made = torch.addcmul(shift.view(channels), x, scale.view(channels))
        return made if act is None else act(made)

    return affine


def _layer_norm(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias, eps = weights.get("weight"), weights.get("bias"), attrs["eps"]
    return lambda x: torch.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _softmax(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    axis = attrs["axis"]
    return lambda x: torch.softmax(x, axis)


def _attention(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    scale, causal = attrs["scale"], attrs["causal"]
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


def _transpose(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    axes = tuple(attrs["axes"])
    return lambda x: x.permute(axes)


def _reshape(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    rest = tuple(attrs["shape"])[1:]
    return lambda x: x.reshape(x.shape[0], *rest)


def _channel_shuffle(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    groups = attrs["groups"]

    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    return shuffle


_PREPARE: Mapping[str, Callable[[_Attrs, _Weights, int], Function]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "add": _pairwise(torch.add),
    "mul": _pairwise(torch.mul),
    "act": _act,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool": _global_avg_pool,
    "concat": _concat,
    "slice": _slice,
    "flatten": _flatten,
    "affine": _affine,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "attention": _attention,
    "transpose": _transpose,
    "reshape": _reshape,
    "channel_shuffle": _channel_shuffle,
}
