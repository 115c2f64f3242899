"""The native operations: their attributes, weights, and output shapes.

conv2d           x [N, C, H, W] (, residual): stride, padding, dilation, groups, act;
                 weight [O, C / groups, kh, kw], bias [O]; act(conv(x) + bias + residual)
linear           x [N, ..., I] (, residual): act; weight [O, I], bias [O]; act(x weight^T + bias + residual)
add, mul         two values of one shape, or [N, C, H, W] and [N, C, 1, 1]: act
add_constant, mul_constant
                 x [N, ...]: act; constant, with x's axes but the batch, each of x's size or 1
rotary           x [N, ..., d]: half; cos, sin, as a constant but with all d; x * cos + partner(x) * sin, where the
                 partner of channel i is i + half for i < half, i - half below 2 half, and itself behind
act              x: act
max_pool2d       x [N, C, H, W]: kernel, stride, padding, dilation, ceil
avg_pool2d       x [N, C, H, W]: kernel, stride, padding, ceil, count_include_pad
global_avg_pool  x [N, C, H, W] -> [N, C, 1, 1] (keepdim) or [N, C]
concat           values: axis >= 1
slice            x: axis >= 1, start, stop
flatten          x [N, ...] -> [N, product]
affine           x [N, C, ...]: act; scale [C], shift [C]; act(x * scale + shift)
batch_norm       x [N, C, ...] (, residual): eps, act; weight [C], bias [C]; with mean and variance of the batch, as in
                 training: act((x - mean) / sqrt(variance + eps) * weight + bias + residual)
layer_norm       x [..., C]: eps; weight [C], bias [C], both or neither left out
rms_norm         x [..., C]: eps; weight [C] or none; x / sqrt(mean(x^2) + eps) * weight
softmax          x: axis >= 1
attention        q [N, h, T, d], k [N, g, S, d], v [N, g, S, e]: scale (None: 1 / sqrt(d)), causal; bias [h or 1, T, S],
                 added to the scores, or none. Each of the g heads of k and v serves h / g neighbouring heads of q
window_attention the same in windows: q [N, W, h, T, d], k [N, W, h, S, d], v [N, W, h, S, e]: scale;
                 bias [W or 1, h or 1, T, S], or none
scan             decay, added [N, ..., T, ...] (, start, without T): axis, that of T; start, as a constant, if it is
                 no input; all states [N, ..., T, ...], each decay * the one before + added, the first behind start
pad              x [N, ...]: before, after: how many zeros before and behind those of each axis but the batch
transpose        x: axes, a permutation that leaves axis 0
reshape          x: shape, whose first entry is x's first size (None for the batch)
channel_shuffle  x [N, C, H, W]: groups; [N, g, C / g, ...] -> [N, C / g, g, ...]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import Repr
from typing import Any, TypeAlias

import ticketry_engine.ir.native_shapes as kinds
import ticketry_engine.ir.native_shapes as shapes
from ticketry_engine.errors import GraphError
from ticketry_engine.ir.native_shapes import Attrs, Shape

MOST_MOVED = 1 << 21
"""Most elements of one example of a value that a gather moves; tables of larger ones would take too much memory."""

_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorFacts:
    """Shape and dtype of an input or a weight."""

    shape: Shape
    dtype: str

    @classmethod
    def of(cls, tensor: Any) -> TensorFacts:
        """Return the facts of a torch tensor."""
        return cls(tuple(tensor.shape), dtype_name(tensor.dtype))


def dtype_name(dtype: Any) -> str:
    """Return the name of a torch dtype or memory format, without ``torch.``."""
    return str(dtype).removeprefix("torch.")


_SHORT = Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = 80

Infer: TypeAlias = Callable[[Attrs, "Sequence[Shape]", "Mapping[str, Shape]"], Shape]


@dataclass(frozen=True)
class Rule:
    """The inputs, attributes, weights and shape rule of a native operation."""

    inputs: tuple[int, int]
    """Least and greatest number of inputs."""
    infer: Infer
    checks: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    """Attribute -> function that returns whether a value is allowed."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    """Roles of optional weights; `required` has those of the others."""


def takes(op: str, attrs: Attrs) -> bool:
    """Return whether these attributes are allowed; all names have to be those of the operation."""
    return all(check(attrs[name]) for name, check in NATIVE[op].checks.items())


def infer(
    op: str, attrs: Attrs, inputs: Sequence[TensorFacts], weights: Mapping[str, TensorFacts]
) -> tuple[Shape, str]:
    """Return the shape and dtype of an operation's output; raise GraphError for invalid inputs or attributes."""
    if op not in NATIVE:
        raise GraphError(f"there is no native operation {op[:80]!r}")
    rule = NATIVE[op]
    if not rule.inputs[0] <= len(inputs) <= rule.inputs[1]:
        raise GraphError(f"it takes {rule.inputs[0]} to {rule.inputs[1]} inputs, got {len(inputs)}")
    if set(attrs) != set(rule.checks):
        raise GraphError(f"its attributes have to be {sorted(rule.checks)}, not {short(sorted(map(str, attrs)))}")
    for name, check in rule.checks.items():
        if not check(attrs[name]):
            raise GraphError(f"{name} cannot be {short(attrs[name])}")
    if not rule.required <= set(weights) <= rule.required | rule.optional:
        raise GraphError(f"its weights have to be {sorted(rule.required)}, not {short(sorted(weights))}")
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


def short(value: object) -> str:
    """Return a short representation of a value for messages, limited in length and depth."""
    return _SHORT.repr(value)


# -- the table ---------------------------------------------------------------------------------------------------------

_ACT: Mapping[str, Callable[[Any], bool]] = {"act": kinds.is_act}
_EPS: Mapping[str, Callable[[Any], bool]] = {"eps": lambda eps: kinds.is_number(eps) and eps >= 0}
_NO_ACT: Mapping[str, Any] = {"act": None}
_WINDOW: Mapping[str, Callable[[Any], bool]] = {
    "kernel": kinds.is_pair(1),
    "stride": kinds.is_pair(1),
    "padding": kinds.is_pair(0),
    "ceil": kinds.is_boolean,
}
_STEPS: Mapping[str, Any] = {"stride": (1, 1), "padding": (0, 0)}
_BIAS = frozenset({"bias"})
_WEIGHT = frozenset({"weight"})

NATIVE: Mapping[str, Rule] = {
    "conv2d": Rule(
        (1, 2),
        shapes.conv2d,
        {
            **_ACT,
            "stride": kinds.is_pair(1),
            "padding": kinds.is_pair(0),
            "dilation": kinds.is_pair(1),
            "groups": lambda n: kinds.is_count(n, 1),
        },
        {**_NO_ACT, **_STEPS, "dilation": (1, 1), "groups": 1},
        _WEIGHT,
        _BIAS,
    ),
    "linear": Rule((1, 2), shapes.linear, _ACT, _NO_ACT, _WEIGHT, _BIAS),
    "add": Rule((2, 2), shapes.pairwise, _ACT, _NO_ACT),
    "mul": Rule((2, 2), shapes.pairwise, _ACT, _NO_ACT),
    "act": Rule((1, 1), shapes.same, {"act": lambda value: value is not None and kinds.is_act(value)}),
    "max_pool2d": Rule(
        (1, 1), shapes.pool, {**_WINDOW, "dilation": kinds.is_pair(1)}, {**_STEPS, "dilation": (1, 1), "ceil": False}
    ),
    "avg_pool2d": Rule(
        (1, 1),
        shapes.pool,
        {**_WINDOW, "count_include_pad": kinds.is_boolean},
        {**_STEPS, "ceil": False, "count_include_pad": True},
    ),
    "global_avg_pool": Rule((1, 1), shapes.global_pool, {"keepdim": kinds.is_boolean}, {"keepdim": True}),
    "concat": Rule((1, 4096), shapes.concat, {"axis": kinds.is_axis}, {"axis": 1}),
    "slice": Rule(
        (1, 1), shapes.slice, {"axis": kinds.is_axis, "start": kinds.is_size, "stop": kinds.is_size}, {"axis": 1}
    ),
    "flatten": Rule((1, 1), shapes.flatten),
    "affine": Rule((1, 1), shapes.affine, _ACT, _NO_ACT, frozenset({"scale", "shift"})),
    "batch_norm": Rule(
        (1, 2), shapes.batch_norm, {**_ACT, **_EPS}, {**_NO_ACT, "eps": 1e-5}, frozenset({"weight", "bias"})
    ),
    "layer_norm": Rule(
        (1, 1),
        shapes.layer_norm,
        _EPS,
        {"eps": 1e-5},
        optional=frozenset({"weight", "bias"}),
    ),
    "rms_norm": Rule((1, 1), shapes.rms_norm, _EPS, {"eps": 1e-6}, optional=_WEIGHT),
    "add_constant": Rule((1, 1), shapes.constant, _ACT, _NO_ACT, frozenset({"constant"})),
    "mul_constant": Rule((1, 1), shapes.constant, _ACT, _NO_ACT, frozenset({"constant"})),
    "rotary": Rule((1, 1), shapes.rotary, {"half": lambda n: kinds.is_count(n, 1)}, required=frozenset({"cos", "sin"})),
    "softmax": Rule((1, 1), shapes.softmax, {"axis": kinds.is_axis}),
    "attention": Rule(
        (3, 3),
        shapes.attention,
        {"scale": lambda scale: scale is None or kinds.is_number(scale), "causal": kinds.is_boolean},
        {"scale": None, "causal": False},
        optional=_BIAS,
    ),
    "window_attention": Rule(
        (3, 3),
        shapes.window_attention,
        {"scale": lambda scale: scale is None or kinds.is_number(scale)},
        {"scale": None},
        optional=_BIAS,
    ),
    "scan": Rule((2, 3), shapes.scan, {"axis": kinds.is_axis}, {"axis": 1}, optional=frozenset({"start"})),
    "pad": Rule((1, 1), shapes.pad, {"before": kinds.is_room, "after": kinds.is_room}),
    "transpose": Rule((1, 1), shapes.transpose, {"axes": kinds.is_axes}),
    "reshape": Rule((1, 1), shapes.reshape, {"shape": kinds.is_shape}),
    "channel_shuffle": Rule((1, 1), shapes.shuffle, {"groups": lambda n: kinds.is_count(n, 1)}),
}
