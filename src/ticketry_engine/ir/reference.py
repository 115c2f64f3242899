"""The meaning of every operation, in plain torch.

Kernels are tested against this reference, and it runs the nodes that the engine leaves to torch. Arguments are looked
up once, when a node is prepared, so that a call does no extra work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ticketry_engine.errors import EngineError, GraphError
from ticketry_engine.ir.aten import exchanged
from ticketry_engine.ir.aten import prepare as prepare_torch_node
from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.native import dtype_name
from ticketry_engine.ir.nodes import FLOATS, OTHERS, Node, Value

Function: TypeAlias = "Callable[..., Any]"

_ACTS: Mapping[str, tuple[Function, Function]] = {
    # Out of place, and in place on a tensor without other references.
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
        return prepare_torch_node(node, tensors, device)
    if node.op in _WITHOUT_WEIGHTS:
        made: Function = _WITHOUT_WEIGHTS[node.op](node.attrs)
        return made
    weights = {role: tensors[name] for role, name in node.weights.items()}
    return _WITH_WEIGHTS[node.op](node.attrs, weights, len(node.inputs))


def torch_step(graph: Graph, node: Node) -> Function:
    """A function of the node's inputs that runs it in torch and checks that it makes what the graph says it does."""
    function = prepare(node, graph.tensors)
    return function if node.native else checked(function, graph.values[node.output], node)


class Cast:
    """Replaces the graph's floating point type by another one."""

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
        if self.to is None or value.dtype != dtype_name(self.own):
            return value
        return replace(value, dtype=dtype_name(self.to))

    def node(self, node: Node) -> Node:
        if self.to is None or node.native:
            return node
        own, to = ({"dtype": dtype_name(dtype)} for dtype in (self.own, self.to))
        attrs = exchanged(node.attrs, lambda kind, content: to if {kind: content} == own else {kind: content})
        return replace(node, attrs=attrs)


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


# -- native operations: of their attributes, and their weights by role, functions of the inputs ------------------------

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


def _affine(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    scale, shift = weights["scale"], weights["shift"]
    act = activation(attrs["act"], fresh=True)

    def affine(x: Tensor) -> Tensor:
        channels = (-1,) + (1,) * (x.dim() - 2)
        made = torch.addcmul(shift.view(channels), x, scale.view(channels))
        return made if act is None else act(made)

    return affine


def _batch_norm(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias, eps = weights["weight"], weights["bias"], attrs["eps"]
    return _finish(lambda x: F.batch_norm(x, None, None, weight, bias, training=True, eps=eps), attrs, inputs)


def _layer_norm(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias, eps = weights.get("weight"), weights.get("bias"), attrs["eps"]
    return lambda x: torch.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _rms_norm(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    weight, eps = weights.get("weight"), attrs["eps"]
    return lambda x: torch.rms_norm(x, x.shape[-1:], weight, eps)


def _with_constant(operation: Function, attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    constant, act = weights["constant"], activation(attrs["act"], fresh=True)
    if act is None:
        return lambda x: operation(x, constant)
    return lambda x: act(operation(x, constant))


def _rotary(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    cos, sin, half = weights["cos"], weights["sin"], attrs["half"]

    def rotary(x: Tensor) -> Tensor:
        partner = torch.cat([x[..., half : 2 * half], x[..., :half], x[..., 2 * half :]], -1)
        return torch.addcmul(x * cos, partner, sin)

    return rotary


def _attention(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    scale, causal, bias = attrs["scale"], attrs["causal"], weights.get("bias")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask, grouped = bias, k.shape[1] != q.shape[1]
        if bias is not None and causal:  # torch takes only one of them
            mask = bias.masked_fill(bias.new_ones(bias.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
        )

    return attention


def _window_attention(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    scale, bias = attrs["scale"], weights.get("bias")
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, bias, scale=scale)


def _scan(attrs: _Attrs, weights: _Weights, inputs: int) -> Function:
    axis, held = attrs["axis"], weights.get("start")

    def scan(decay: Tensor, added: Tensor, start: Tensor | None = held) -> Tensor:
        states: list[Tensor] = []
        state: Any = start
        for factor, more in zip(decay.unbind(axis), added.unbind(axis), strict=True):
            state = torch.addcmul(more, factor, state)
            states.append(state)
        return torch.stack(states, 1).movedim(1, axis)

    return scan


def _pad(attrs: _Attrs) -> Function:
    room = [side for pair in zip(attrs["before"][::-1], attrs["after"][::-1], strict=True) for side in pair]
    return lambda x: F.pad(x, room)


def _channel_shuffle(attrs: _Attrs) -> Function:
    groups = attrs["groups"]

    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    return shuffle


def _acted(operation: Function, attrs: _Attrs) -> Function:
    act = activation(attrs["act"], fresh=True)
    return operation if act is None else lambda one, other: act(operation(one, other))


def _window(attrs: _Attrs) -> dict[str, Any]:
    """The window of a pooling as torch's functions name it."""
    names = {"kernel_size": "kernel", "stride": "stride", "padding": "padding", "dilation": "dilation"}
    return {name: tuple(attrs[key]) for name, key in names.items() if key in attrs} | {"ceil_mode": attrs["ceil"]}


def _cut(attrs: _Attrs) -> Function:
    axis, start, length = attrs["axis"], attrs["start"], attrs["stop"] - attrs["start"]
    return lambda x: x.narrow(axis, start, length)


def _reshape(attrs: _Attrs) -> Function:
    rest = tuple(attrs["shape"])[1:]
    return lambda x: x.reshape(x.shape[0], *rest)


_WITH_WEIGHTS: Mapping[str, Callable[[_Attrs, _Weights, int], Function]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "affine": _affine,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "add_constant": partial(_with_constant, torch.add),
    "mul_constant": partial(_with_constant, torch.mul),
    "rotary": _rotary,
    "attention": _attention,
    "window_attention": _window_attention,
    "scan": _scan,
}
_WITHOUT_WEIGHTS: Mapping[str, Callable[[_Attrs], Any]] = {
    "add": partial(_acted, torch.add),
    "mul": partial(_acted, torch.mul),
    "act": lambda attrs: activation(attrs["act"]),
    "max_pool2d": lambda attrs: partial(torch.max_pool2d, **_window(attrs)),
    "avg_pool2d": lambda attrs: partial(F.avg_pool2d, **_window(attrs), count_include_pad=attrs["count_include_pad"]),
    "global_avg_pool": lambda attrs: partial(torch.mean, dim=(2, 3), keepdim=attrs["keepdim"]),
    "concat": lambda attrs: lambda *parts: torch.cat(parts, attrs["axis"]),
    "slice": _cut,
    "flatten": lambda attrs: partial(torch.flatten, start_dim=1),
    "softmax": lambda attrs: partial(torch.softmax, dim=attrs["axis"]),
    "transpose": lambda attrs: partial(torch.permute, dims=tuple(attrs["axes"])),
    "reshape": _reshape,
    "pad": _pad,
    "channel_shuffle": _channel_shuffle,
}
