"""Defines the native operations: their attributes, weights, output shapes, and equivalent torch functions.

Each entry lists the inputs with their shapes, the attributes after the colon, the weights, and the result. Inputs in
parentheses and weights followed by "or none" are optional; N is the batch size.

conv2d           x [N, C, H, W] (, residual): stride, padding, dilation, groups, act;
                 weight [O, C / groups, kh, kw], bias [O] or none; act(conv(x) + bias + residual)
linear           x [N, ..., I] (, residual): act; weight [O, I], bias [O] or none; act(x weight^T + bias + residual)
add, mul         two values of the same shape, or [N, C, H, W] and [N, C, 1, 1]: act
add_constant, mul_constant
                 x [N, ...]: act; constant, with the axes of x except the batch, each axis of the size in x or 1
rotary           x [N, ..., d]: half; cos, sin, with axes like those of a constant, the last axis of size d;
                 x * cos + partner(x) * sin, where the partner of channel i is channel i + half if i < half, channel
                 i - half if half <= i < 2 half, and channel i otherwise
act              x: act
max_pool2d       x [N, C, H, W]: kernel, stride, padding, dilation, ceil
avg_pool2d       x [N, C, H, W]: kernel, stride, padding, ceil, count_include_pad
global_avg_pool  x [N, C, H, W] -> [N, C, 1, 1] (keepdim) or [N, C]
concat           values: axis >= 1
slice            x: axis >= 1, start, stop
flatten          x [N, ...] -> [N, product]
affine           x [N, C, ...]: act; scale [C], shift [C]; act(x * scale + shift)
batch_norm       x [N, C, ...] (, residual): eps, act; weight [C], bias [C];
                 act((x - mean) / sqrt(variance + eps) * weight + bias + residual), with mean and variance of the batch
                 as in training
layer_norm       x [..., C]: eps; weight [C] and bias [C], or neither of them
rms_norm         x [..., C]: eps; weight [C] or none; x / sqrt(mean(x^2) + eps) * weight
softmax          x: axis >= 1
attention        q [N, h, T, d], k [N, g, S, d], v [N, g, S, e]: scale (None: 1 / sqrt(d)), causal; bias [h or 1, T, S]
                 or none, which is added to the scores. Each head of k and v serves h / g consecutive heads of q
window_attention q [N, W, h, T, d], k [N, W, h, S, d], v [N, W, h, S, e]: scale; bias [W or 1, h or 1, T, S] or none;
                 attention in each of the W windows
scan             decay, added [N, ..., T, ...] (, start, without the axis T): axis, the index of T; start, like a
                 constant, if it is not an input; states [N, ..., T, ...], where state[0] = decay[0] * start + added[0]
                 and state[t] = decay[t] * state[t - 1] + added[t]
pad              x [N, ...]: before, after: number of zeros before and after the elements of each axis except the batch
transpose        x: axes, a permutation that keeps axis 0 in place
reshape          x: shape, whose first entry is size 0 of x (None for the batch)
channel_shuffle  x [N, C, H, W]: groups; views C as [groups, C / groups], swaps these two axes, and merges them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from reprlib import Repr
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import ticketry_engine.ir.native_shapes as shapes
from ticketry_engine.errors import GraphError
from ticketry_engine.ir.native_shapes import ACTS, Attrs, Shape

MOST_MOVED = 1 << 21
"""Maximum number of elements of one example of a value that a gather moves; tables for more need too much memory."""

_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorFacts:
    """The shape and dtype of an input or a weight."""

    shape: Shape
    dtype: str

    @classmethod
    def from_tensor(cls, tensor: Any) -> TensorFacts:
        """Return the shape and dtype of a torch tensor."""
        return cls(tuple(tensor.shape), dtype_name(tensor.dtype))


def dtype_name(dtype: Any) -> str:
    """Return the name of a torch dtype or memory format, without ``torch.``."""
    return str(dtype).removeprefix("torch.")


_SHORT = Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = 80

Function: TypeAlias = "Callable[..., Any]"
Infer: TypeAlias = Callable[[Attrs, "Sequence[Shape]", "Mapping[str, Shape]"], Shape]


@dataclass(frozen=True)
class Rule:
    """The definition of one of the engine's own operations: inputs, attributes, weights, shape and torch function."""

    inputs: tuple[int, int]
    """Minimum and maximum number of inputs."""
    infer: Infer
    compute: Callable[[Attrs, Mapping[str, Any], int], Function]
    """Function from (attributes, weights by role, number of inputs) to a torch function of the inputs."""
    checks: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    """Name of an attribute -> function that returns whether a value of the attribute is allowed."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    """Roles of weights that may be missing; `required` contains the roles of all other weights."""


def accepts_attributes(op: str, attrs: Attrs) -> bool:
    """Return whether the engine's operation `op` allows the values in `attrs` for its attributes."""
    return all(check(attrs[name]) for name, check in NATIVE[op].checks.items())


def infer_output(
    op: str, attrs: Attrs, inputs: Sequence[TensorFacts], weights: Mapping[str, TensorFacts]
) -> tuple[Shape, str]:
    """Return (shape, dtype) of an operation's output; raise `GraphError` for invalid inputs, weights or attributes."""
    if op not in NATIVE:
        raise GraphError(f"there is no native operation {op[:80]!r}")
    rule = NATIVE[op]
    if not rule.inputs[0] <= len(inputs) <= rule.inputs[1]:
        raise GraphError(f"it takes {rule.inputs[0]} to {rule.inputs[1]} inputs, got {len(inputs)}")
    if set(attrs) != set(rule.checks):
        raise GraphError(f"its attributes have to be {sorted(rule.checks)}, not {short_repr(sorted(map(str, attrs)))}")
    for name, check in rule.checks.items():
        if not check(attrs[name]):
            raise GraphError(f"{name} cannot be {short_repr(attrs[name])}")
    if not rule.required <= set(weights) <= rule.required | rule.optional:
        raise GraphError(f"its weights have to be {sorted(rule.required)}, not {short_repr(sorted(weights))}")
    kinds = {facts.dtype for facts in [*inputs, *weights.values()]}
    if len(kinds) != 1:
        raise GraphError(f"its inputs and weights are of several data types: {sorted(kinds)}")
    (dtype,) = kinds
    if dtype not in _FLOATS:
        raise GraphError(f"it takes floating point numbers, not {dtype}")
    batches = {facts.shape[0] for facts in inputs if facts.shape}
    if len(batches) != 1 or not all(facts.shape for facts in inputs):
        raise GraphError("its inputs have different batch sizes")
    made = rule.infer(attrs, [facts.shape for facts in inputs], {role: facts.shape for role, facts in weights.items()})
    return made, dtype


def short_repr(value: object) -> str:
    """Return a representation of a Python value for messages, limited in length and nesting depth."""
    return _SHORT.repr(value)


# -- meaning in torch: attributes, weights by role and number of inputs -> function of the inputs ----------------------

_Weights: TypeAlias = "Mapping[str, Tensor]"


def _with_residual_and_activation(compute: Function, attrs: Attrs, inputs: int) -> Function:
    """Return a function that calls `compute`, adds its second input if `inputs` is 2, and applies the activation.

    The activation is the attribute "act" in `attrs`.
    """
    act = make_activation_function(attrs["act"], may_overwrite=True)
    if inputs == 2:
        if act is None:
            return lambda x, residual: compute(x).add_(residual)
        return lambda x, residual: act(compute(x).add_(residual))
    if act is None:
        return compute
    return lambda x: act(compute(x))


def _make_conv2d(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias = weights["weight"], weights.get("bias")
    stride, padding, dilation = (tuple(attrs[name]) for name in ("stride", "padding", "dilation"))
    groups = attrs["groups"]
    return _with_residual_and_activation(
        lambda x: torch.conv2d(x, weight, bias, stride, padding, dilation, groups), attrs, inputs
    )


def _make_linear(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias = weights["weight"], weights.get("bias")
    return _with_residual_and_activation(lambda x: F.linear(x, weight, bias), attrs, inputs)


def _make_affine(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    scale, shift = weights["scale"], weights["shift"]
    act = make_activation_function(attrs["act"], may_overwrite=True)

    def apply_affine(x: Tensor) -> Tensor:
        channels = (-1,) + (1,) * (x.dim() - 2)
        made = torch.addcmul(shift.view(channels), x, scale.view(channels))
        return made if act is None else act(made)

    return apply_affine


def _make_batch_norm(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias, eps = weights["weight"], weights["bias"], attrs["eps"]
    return _with_residual_and_activation(
        lambda x: F.batch_norm(x, None, None, weight, bias, training=True, eps=eps), attrs, inputs
    )


def _make_layer_norm(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    weight, bias, eps = weights.get("weight"), weights.get("bias"), attrs["eps"]
    return lambda x: torch.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _make_rms_norm(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    weight, eps = weights.get("weight"), attrs["eps"]
    return lambda x: torch.rms_norm(x, x.shape[-1:], weight, eps)


def _make_operation_with_constant(operation: Function, attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    constant, act = weights["constant"], make_activation_function(attrs["act"], may_overwrite=True)
    if act is None:
        return lambda x: operation(x, constant)
    return lambda x: act(operation(x, constant))


def _make_rotary(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    cos, sin, half = weights["cos"], weights["sin"], attrs["half"]

    def apply_rotary(x: Tensor) -> Tensor:
        partner = torch.cat([x[..., half : 2 * half], x[..., :half], x[..., 2 * half :]], -1)
        return torch.addcmul(x * cos, partner, sin)

    return apply_rotary


def _make_attention(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    scale, causal, bias = attrs["scale"], attrs["causal"], weights.get("bias")

    def compute_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask, grouped = bias, k.shape[1] != q.shape[1]
        if bias is not None and causal:  # torch takes only one of them
            mask = bias.masked_fill(bias.new_ones(bias.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
        )

    return compute_attention


def _make_window_attention(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    scale, bias = attrs["scale"], weights.get("bias")
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, bias, scale=scale)


def _make_scan(attrs: Attrs, weights: _Weights, inputs: int) -> Function:
    axis, held = attrs["axis"], weights.get("start")

    def run_recurrence(decay: Tensor, added: Tensor, start: Tensor | None = held) -> Tensor:
        states: list[Tensor] = []
        state: Any = start
        for factor, more in zip(decay.unbind(axis), added.unbind(axis), strict=True):
            state = torch.addcmul(more, factor, state)
            states.append(state)
        return torch.stack(states, 1).movedim(1, axis)

    return run_recurrence


def _make_pad(attrs: Attrs, *_: Any) -> Function:
    room = [side for pair in zip(attrs["before"][::-1], attrs["after"][::-1], strict=True) for side in pair]
    return lambda x: F.pad(x, room)


def _make_channel_shuffle(attrs: Attrs, *_: Any) -> Function:
    groups = attrs["groups"]

    def shuffle_channels(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    return shuffle_channels


def _make_activation(attrs: Attrs, *_: Any) -> Function:
    function = make_activation_function(attrs["act"])
    assert function is not None
    return function


def _make_pairwise(operation: Function, attrs: Attrs, *_: Any) -> Function:
    act = make_activation_function(attrs["act"], may_overwrite=True)
    return operation if act is None else lambda one, other: act(operation(one, other))


def _pooling_arguments(attrs: Attrs) -> dict[str, Any]:
    """Return the window attributes of a pooling as keyword arguments of torch's pooling functions."""
    names = {"kernel_size": "kernel", "stride": "stride", "padding": "padding", "dilation": "dilation"}
    return {name: tuple(attrs[key]) for name, key in names.items() if key in attrs} | {"ceil_mode": attrs["ceil"]}


def _make_slice(attrs: Attrs, *_: Any) -> Function:
    axis, start, length = attrs["axis"], attrs["start"], attrs["stop"] - attrs["start"]
    return lambda x: x.narrow(axis, start, length)


def _make_reshape(attrs: Attrs, *_: Any) -> Function:
    rest = tuple(attrs["shape"])[1:]
    return lambda x: x.reshape(x.shape[0], *rest)


def make_activation_function(act: str | dict[str, float] | None, *, may_overwrite: bool = False) -> Function | None:
    """Return the torch function of an activation; None for the identity.

    If `may_overwrite`, the function may change its argument in place."""
    if act is None:
        return None
    if isinstance(act, dict):
        slope = act["leaky_relu"]
        return lambda x: F.leaky_relu(x, slope, inplace=may_overwrite)
    return ACTS[act][may_overwrite]


_ACT: Mapping[str, Callable[[Any], bool]] = {"act": shapes.is_activation}
_EPS: Mapping[str, Callable[[Any], bool]] = {"eps": lambda eps: shapes.is_number(eps) and eps >= 0}
_NO_ACT: Mapping[str, Any] = {"act": None}
_WINDOW: Mapping[str, Callable[[Any], bool]] = {
    "kernel": shapes.pair_checker(1),
    "stride": shapes.pair_checker(1),
    "padding": shapes.pair_checker(0),
    "ceil": shapes.is_boolean,
}
_STEPS: Mapping[str, Any] = {"stride": (1, 1), "padding": (0, 0)}
_BIAS = frozenset({"bias"})
_WEIGHT = frozenset({"weight"})

NATIVE: Mapping[str, Rule] = {
    "conv2d": Rule(
        (1, 2),
        shapes.conv2d_shape,
        _make_conv2d,
        {
            **_ACT,
            "stride": shapes.pair_checker(1),
            "padding": shapes.pair_checker(0),
            "dilation": shapes.pair_checker(1),
            "groups": lambda n: shapes.is_count(n, 1),
        },
        {**_NO_ACT, **_STEPS, "dilation": (1, 1), "groups": 1},
        _WEIGHT,
        _BIAS,
    ),
    "linear": Rule((1, 2), shapes.linear_shape, _make_linear, _ACT, _NO_ACT, _WEIGHT, _BIAS),
    "add": Rule((2, 2), shapes.pairwise_shape, partial(_make_pairwise, torch.add), _ACT, _NO_ACT),
    "mul": Rule((2, 2), shapes.pairwise_shape, partial(_make_pairwise, torch.mul), _ACT, _NO_ACT),
    "act": Rule(
        (1, 1),
        shapes.shape_of_input,
        _make_activation,
        {"act": lambda value: value is not None and shapes.is_activation(value)},
    ),
    "max_pool2d": Rule(
        (1, 1),
        shapes.pool_shape,
        lambda attrs, *_: partial(torch.max_pool2d, **_pooling_arguments(attrs)),
        {**_WINDOW, "dilation": shapes.pair_checker(1)},
        {**_STEPS, "dilation": (1, 1), "ceil": False},
    ),
    "avg_pool2d": Rule(
        (1, 1),
        shapes.pool_shape,
        lambda attrs, *_: partial(
            F.avg_pool2d, **_pooling_arguments(attrs), count_include_pad=attrs["count_include_pad"]
        ),
        {**_WINDOW, "count_include_pad": shapes.is_boolean},
        {**_STEPS, "ceil": False, "count_include_pad": True},
    ),
    "global_avg_pool": Rule(
        (1, 1),
        shapes.global_pool_shape,
        lambda attrs, *_: partial(torch.mean, dim=(2, 3), keepdim=attrs["keepdim"]),
        {"keepdim": shapes.is_boolean},
        {"keepdim": True},
    ),
    "concat": Rule(
        (1, 4096),
        shapes.concat_shape,
        lambda attrs, *_: lambda *parts: torch.cat(parts, attrs["axis"]),
        {"axis": shapes.is_axis},
        {"axis": 1},
    ),
    "slice": Rule(
        (1, 1),
        shapes.slice_shape,
        _make_slice,
        {"axis": shapes.is_axis, "start": shapes.is_size, "stop": shapes.is_size},
        {"axis": 1},
    ),
    "flatten": Rule((1, 1), shapes.flatten_shape, lambda *_: partial(torch.flatten, start_dim=1)),
    "affine": Rule((1, 1), shapes.affine_shape, _make_affine, _ACT, _NO_ACT, frozenset({"scale", "shift"})),
    "batch_norm": Rule(
        (1, 2),
        shapes.batch_norm_shape,
        _make_batch_norm,
        {**_ACT, **_EPS},
        {**_NO_ACT, "eps": 1e-5},
        frozenset({"weight", "bias"}),
    ),
    "layer_norm": Rule(
        (1, 1),
        shapes.layer_norm_shape,
        _make_layer_norm,
        _EPS,
        {"eps": 1e-5},
        optional=frozenset({"weight", "bias"}),
    ),
    "rms_norm": Rule((1, 1), shapes.rms_norm_shape, _make_rms_norm, _EPS, {"eps": 1e-6}, optional=_WEIGHT),
    "add_constant": Rule(
        (1, 1),
        shapes.constant_shape,
        partial(_make_operation_with_constant, torch.add),
        _ACT,
        _NO_ACT,
        frozenset({"constant"}),
    ),
    "mul_constant": Rule(
        (1, 1),
        shapes.constant_shape,
        partial(_make_operation_with_constant, torch.mul),
        _ACT,
        _NO_ACT,
        frozenset({"constant"}),
    ),
    "rotary": Rule(
        (1, 1),
        shapes.rotary_shape,
        _make_rotary,
        {"half": lambda n: shapes.is_count(n, 1)},
        required=frozenset({"cos", "sin"}),
    ),
    "softmax": Rule(
        (1, 1),
        shapes.softmax_shape,
        lambda attrs, *_: partial(torch.softmax, dim=attrs["axis"]),
        {"axis": shapes.is_axis},
    ),
    "attention": Rule(
        (3, 3),
        shapes.attention_shape,
        _make_attention,
        {"scale": lambda scale: scale is None or shapes.is_number(scale), "causal": shapes.is_boolean},
        {"scale": None, "causal": False},
        optional=_BIAS,
    ),
    "window_attention": Rule(
        (3, 3),
        shapes.window_attention_shape,
        _make_window_attention,
        {"scale": lambda scale: scale is None or shapes.is_number(scale)},
        {"scale": None},
        optional=_BIAS,
    ),
    "scan": Rule(
        (2, 3), shapes.scan_shape, _make_scan, {"axis": shapes.is_axis}, {"axis": 1}, optional=frozenset({"start"})
    ),
    "pad": Rule((1, 1), shapes.pad_shape, _make_pad, {"before": shapes.is_axes, "after": shapes.is_axes}),
    "transpose": Rule(
        (1, 1),
        shapes.transpose_shape,
        lambda attrs, *_: partial(torch.permute, dims=tuple(attrs["axes"])),
        {"axes": shapes.is_axes},
    ),
    "reshape": Rule((1, 1), shapes.reshape_shape, _make_reshape, {"shape": shapes.is_shape}),
    "channel_shuffle": Rule(
        (1, 1), shapes.shuffle_shape, _make_channel_shuffle, {"groups": lambda n: shapes.is_count(n, 1)}
    ),
}


# -- the parts of a graph: values, and nodes with one output each ------------------------------------------------------


Json: TypeAlias = Any
"""None, bool, int, float, str, or a list or string-keyed dict of these."""

MOST_NODES = 1 << 20
MOST_DIMENSIONS = 16
LONGEST_NAME = 512
LARGEST_SIZE = 1 << 40
"""Maximum number of elements of a tensor, or of one example of a value; it limits what an untrusted file can claim."""

FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
DTYPES = FLOATS | {"int64", "int32", "int16", "int8", "uint8", "bool"}
_FLOAT8 = {"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
UNFILED = frozenset(_FLOAT8 | {"complex32", "complex64", "complex128", "uint16", "uint32", "uint64"})
"""Dtypes that torch nodes may have in a graph captured in this process, but not in a file."""
OTHERS = frozenset({"number", "list"})
"""Kinds of results of torch nodes that are not tensors: single numbers such as sizes, and tuples or lists."""


@dataclass(frozen=True)
class Value:
    """The result of a node, or an input of the graph."""

    name: str
    shape: Shape | None
    """Sizes, where None at axis 0 is the batch size; None if the shape depends on the batch size in another way.

    An example of the latter is N * T. Only torch nodes use such values."""
    dtype: str = "float32"
    """Name of a torch dtype without ``torch.``, or "number" or "list"."""

    def numel(self, batch: int) -> int:
        """Return the number of elements for the batch size `batch`; 0 if the shape is unknown."""
        return 0 if self.shape is None else prod(batch if size is None else int(size) for size in self.shape)


@dataclass(frozen=True)
class Node:
    """One operation of a graph: either one of the engine's own operations (`Node.native`), or a torch operation."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Json] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    """Role ("weight", "bias", "scale", "shift") -> name in `Graph.tensors`; the role is the name in a torch node."""

    @property
    def native(self) -> bool:
        """Return whether the operation is one of the engine's own, which `ir.native` lists; all others are torch's."""
        return self.op in NATIVE


def native_node(
    op: str, inputs: tuple[str, ...], output: str, weights: Mapping[str, str] | None = None, **attrs: Json
) -> Node:
    """Return a node with one of the engine's own operations; attributes that are not given get defaults.

    `weights` are names of tensors by role, such as "weight". Raise `GraphError` for an unknown operation.
    """
    if op not in NATIVE:
        raise GraphError(f"there is no native operation {op!r}")
    whole = {**NATIVE[op].defaults, **attrs}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}
    return Node(op, tuple(inputs), output, lists, dict(weights or {}))
