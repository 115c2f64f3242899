"""The native operations: their attributes, their weights, and the shape of what they make.

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
layer_norm       x [..., C]: eps; weight [C], bias [C], both or neither left out
rms_norm         x [..., C]: eps; weight [C] or none; x / sqrt(mean(x^2) + eps) * weight
softmax          x: axis >= 1
attention        q [N, h, T, d], k [N, g, S, d], v [N, g, S, e]: scale (None: 1 / sqrt(d)), causal; bias [h or 1, T, S],
                 added to the scores, or none. Each of the g heads of k and v serves h / g neighbouring heads of q
window_attention the same in windows: q [N, W, h, T, d], k [N, W, h, S, d], v [N, W, h, S, e]: scale;
                 bias [W or 1, h or 1, T, S], or none
pad              x [N, ...]: before, after: how many zeros before and behind those of each axis but the batch
transpose        x: axes, a permutation that leaves axis 0
reshape          x: shape, whose first entry is x's first size (None for the batch)
channel_shuffle  x [N, C, H, W]: groups; [N, g, C / g, ...] -> [N, C / g, g, ...]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from reprlib import Repr
from typing import Any, TypeAlias

import ticketry.engine.graph.attribute_kinds as kinds
from ticketry.errors import GraphError

Size: TypeAlias = "int | None"
Shape: TypeAlias = "tuple[Size, ...]"
Attrs: TypeAlias = "Mapping[str, Any]"

_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Facts:
    """Shape and data type of an input or a weight."""

    shape: Shape
    dtype: str

    @classmethod
    def of(cls, tensor: Any) -> Facts:
        """Those of a tensor of torch's."""
        return cls(tuple(tensor.shape), dtype_name(tensor.dtype))


def dtype_name(dtype: Any) -> str:
    """The name of a data type or memory format of torch's, without its ``torch.``."""
    return str(dtype).removeprefix("torch.")


_SHORT = Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = 80

Infer: TypeAlias = Callable[[Attrs, "Sequence[Shape]", "Mapping[str, Shape]"], Shape]


@dataclass(frozen=True)
class Rule:
    """What a native operation takes."""

    inputs: tuple[int, int]
    """Fewest and most inputs."""
    infer: Infer
    checks: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    """Attribute -> whether it can be."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    """Roles of weights."""


def takes(op: str, attrs: Attrs) -> bool:
    """Whether a native operation can have these attributes, all of which it knows."""
    return all(check(attrs[name]) for name, check in NATIVE[op].checks.items())


def infer(op: str, attrs: Attrs, inputs: Sequence[Facts], weights: Mapping[str, Facts]) -> tuple[Shape, str]:
    """Shape and data type of what a native operation makes; `GraphError` if it cannot be meant so."""
    if op not in NATIVE:
        raise GraphError(f"there is no native operation {op[:80]!r}")
    rule = NATIVE[op]
    if not rule.inputs[0] <= len(inputs) <= rule.inputs[1]:
        raise GraphError(f"{len(inputs)} inputs are not what it takes")
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
    _need(len(batches) == 1 and all(facts.shape for facts in inputs), "its inputs have not one number of examples")
    shapes = [facts.shape for facts in inputs]
    made = rule.infer(attrs, shapes, {role: facts.shape for role, facts in weights.items()})
    return made, dtype


def short(value: object) -> str:
    """A value as a message shows it, whatever its size and depth."""
    return _SHORT.repr(value)


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise GraphError(otherwise)


# -- shapes ------------------------------------------------------------------------------------------------------------


def _images(shape: Shape) -> tuple[Size, int, int, int]:
    _need(len(shape) == 4, f"it takes [N, C, H, W], not {shape}")
    batch, channels, height, width = shape
    return batch, int(channels or 0), int(height or 0), int(width or 0)


def _bias(weights: Mapping[str, Shape], size: Size, *roles: str) -> None:
    for role in roles:
        if role in weights:
            _need(weights[role] == (size,), f"its {role} has the shape {weights[role]}, not {(size,)}")


def _residual(inputs: Sequence[Shape], made: Shape) -> Shape:
    if len(inputs) == 2:
        _need(inputs[1] == made, f"the residual has the shape {inputs[1]}, not {made}")
    return made


def windows(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool = False) -> int:
    """Number of places of a window along an axis, as torch counts them; fewer than 1 if it is larger than the input."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    places = (room + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (places - 1) * stride >= size + padding:
        places -= 1  # the last window has to start inside of the input or its left padding
    return places


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool = False) -> int:
    found = windows(size, kernel, stride, padding, dilation, ceil=ceil)
    _need(found >= 1, "the window is larger than the padded input")
    return found


def _conv2d(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    batch, channels, height, width = _images(inputs[0])
    weight, groups = weights["weight"], attrs["groups"]
    _need(len(weight) == 4 and all(weight), f"its weight has the shape {weight}")
    out, per_group, kh, kw = (int(size or 0) for size in weight)
    _need(channels == per_group * groups, f"{channels} channels do not fit its weight {weight} in {groups} groups")
    _need(out % groups == 0, f"{out} output channels are no multiple of {groups} groups")
    _bias(weights, out, "bias")
    kernels = zip((height, width), (kh, kw), attrs["stride"], attrs["padding"], attrs["dilation"], strict=True)
    return _residual(inputs, (batch, out, *(_windows(*one) for one in kernels)))


def _linear(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    weight = weights["weight"]
    _need(len(weight) == 2 and all(weight), f"its weight has the shape {weight}")
    _need(len(inputs[0]) >= 2 and inputs[0][-1] == weight[1], f"{inputs[0]} does not fit its weight {weight}")
    _bias(weights, weight[0], "bias")
    return _residual(inputs, (*inputs[0][:-1], weight[0]))


def _pairwise(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    one, other = inputs
    gate = len(one) == 4 and other == (*one[:2], 1, 1)
    _need(one == other or gate, f"{one} and {other} are not of one shape, nor [N, C, H, W] and [N, C, 1, 1]")
    return one


def _same(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    return inputs[0]


def _pool(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    batch, channels, height, width = _images(inputs[0])
    dilation = attrs.get("dilation", (1, 1))
    made = []
    for axis, size in enumerate((height, width)):
        kernel, padding = attrs["kernel"][axis], attrs["padding"][axis]
        _need(size > 0, "there is nothing to pool")
        _need(2 * padding <= kernel, "the padding is larger than half of the window")
        made.append(_windows(size, kernel, attrs["stride"][axis], padding, dilation[axis], ceil=attrs["ceil"]))
    return (batch, channels, *made)


def _global_pool(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    batch, channels, height, width = _images(inputs[0])
    _need(height * width > 0, "there is nothing to pool")
    return (batch, channels, 1, 1) if attrs["keepdim"] else (batch, channels)


def _concat(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    axis = attrs["axis"]
    _need(axis < len(inputs[0]), f"there is no axis {axis}")
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}
    _need(len(rest) == 1 and len({len(shape) for shape in inputs}) == 1, f"the shapes {inputs} differ elsewhere")
    return (*inputs[0][:axis], sum(int(shape[axis] or 0) for shape in inputs), *inputs[0][axis + 1 :])


def _slice(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    axis, start, stop = attrs["axis"], attrs["start"], attrs["stop"]
    _need(axis < len(inputs[0]), f"there is no axis {axis}")
    _need(start <= stop <= int(inputs[0][axis] or 0), f"{start}:{stop} is not in {inputs[0]}")
    return (*inputs[0][:axis], stop - start, *inputs[0][axis + 1 :])


def _per_example(shape: Sequence[Size]) -> int:
    return prod(int(size or 0) for size in shape[1:])


def _flatten(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    _need(len(inputs[0]) >= 2, f"there is nothing to flatten in {inputs[0]}")
    return (inputs[0][0], _per_example(inputs[0]))


def _affine(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    _need(len(inputs[0]) >= 2, f"{inputs[0]} has no channels")
    _bias(weights, inputs[0][1], "scale", "shift")
    return inputs[0]


def _constant(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    (x,) = inputs
    for role, given in weights.items():
        fits = len(given) == len(x) - 1 and all(size in (1, own) for size, own in zip(given, x[1:], strict=True))
        _need(fits, f"its {role} has the shape {given}, which is not spread over {x[1:]}")
    return x


def _rotary(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    made = _constant(attrs, inputs, weights)
    _need(
        len(made) >= 2 and 2 * attrs["half"] <= int(made[-1] or 0), f"two halves of {attrs['half']} are not in {made}"
    )
    _need(weights["cos"] == weights["sin"] and weights["cos"][-1] == made[-1], "cos and sin differ, or are too short")
    return made


def _rms_norm(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    _need(len(inputs[0]) >= 2 and bool(inputs[0][-1]), f"{inputs[0]} has no last axis to normalise")
    _bias(weights, inputs[0][-1], "weight")
    return inputs[0]


def _layer_norm(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    _need(len(inputs[0]) >= 2 and bool(inputs[0][-1]), f"{inputs[0]} has no last axis to normalise")
    _need(len(weights) != 1, "it takes both a weight and a bias, or neither")
    _bias(weights, inputs[0][-1], "weight", "bias")
    return inputs[0]


def _softmax(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    _need(attrs["axis"] < len(inputs[0]), f"there is no axis {attrs['axis']}")
    return inputs[0]


def _attention(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    q, k, v = inputs
    _need(len(q) == len(k) == len(v) == 4, "it takes [N, h, T, d]")
    fits = k[1] == v[1] and q[3] == k[3] and k[2] == v[2] and bool(q[3]) and bool(k[2])
    heads, groups = int(q[1] or 0), int(k[1] or 0)
    _need(fits and groups > 0 and heads % groups == 0, f"the shapes {q}, {k}, {v} do not go together")
    bias = weights.get("bias")
    _need(bias is None or bias in ((heads, q[2], k[2]), (1, q[2], k[2])), f"its bias has the shape {bias}")
    return (*q[:3], v[3])


def _window_attention(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    q, k, v = inputs
    _need(len(q) == len(k) == len(v) == 5, "it takes [N, W, h, T, d]")
    fits = q[1:3] == k[1:3] == v[1:3] and k[3] == v[3] and q[4] == k[4] and bool(q[4]) and bool(k[3])
    _need(fits, f"the shapes {q}, {k}, {v} do not go together")
    bias = weights.get("bias")
    spread = bias is None or (len(bias) == 4 and bias[0] in (1, q[1]) and bias[1] in (1, q[2]))
    _need(spread and (bias is None or bias[2:] == (q[3], k[3])), f"its bias has the shape {bias}")
    return (*q[:4], v[4])


def _pad(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    batch, *sizes = inputs[0]
    before, after = attrs["before"], attrs["after"]
    _need(len(before) == len(after) == len(sizes), f"it pads {len(before)} and {len(after)} axes of {inputs[0]}")
    return (batch, *(low + int(size or 0) + high for low, size, high in zip(before, sizes, after, strict=True)))


def _transpose(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    axes = attrs["axes"]
    _need(sorted(axes) == list(range(len(inputs[0]))) and axes[0] == 0, f"{axes} is no order of {inputs[0]}'s axes")
    return tuple(inputs[0][axis] for axis in axes)


def _reshape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    shape = tuple(attrs["shape"])
    fits = shape[0] == inputs[0][0] and _per_example(shape) == _per_example(inputs[0])
    _need(fits, f"{inputs[0]} cannot become {shape}")
    return shape


def _shuffle(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    _need(_images(inputs[0])[1] % attrs["groups"] == 0, f"{inputs[0]} has no {attrs['groups']} groups of channels")
    return inputs[0]


# -- the table ---------------------------------------------------------------------------------------------------------

_ACT: Mapping[str, Callable[[Any], bool]] = {"act": kinds.is_act}
_EPS: Mapping[str, Callable[[Any], bool]] = {"eps": lambda eps: kinds.number(eps) and eps >= 0}
_NO_ACT: Mapping[str, Any] = {"act": None}
_WINDOW: Mapping[str, Callable[[Any], bool]] = {
    "kernel": kinds.pair(1),
    "stride": kinds.pair(1),
    "padding": kinds.pair(0),
    "ceil": kinds.boolean,
}
_STEPS: Mapping[str, Any] = {"stride": (1, 1), "padding": (0, 0)}
_BIAS = frozenset({"bias"})
_WEIGHT = frozenset({"weight"})

NATIVE: Mapping[str, Rule] = {
    "conv2d": Rule(
        (1, 2),
        _conv2d,
        {
            **_ACT,
            "stride": kinds.pair(1),
            "padding": kinds.pair(0),
            "dilation": kinds.pair(1),
            "groups": lambda n: kinds.count(n, 1),
        },
        {**_NO_ACT, **_STEPS, "dilation": (1, 1), "groups": 1},
        _WEIGHT,
        _BIAS,
    ),
    "linear": Rule((1, 2), _linear, _ACT, _NO_ACT, _WEIGHT, _BIAS),
    "add": Rule((2, 2), _pairwise, _ACT, _NO_ACT),
    "mul": Rule((2, 2), _pairwise, _ACT, _NO_ACT),
    "act": Rule((1, 1), _same, {"act": lambda value: value is not None and kinds.is_act(value)}),
    "max_pool2d": Rule(
        (1, 1), _pool, {**_WINDOW, "dilation": kinds.pair(1)}, {**_STEPS, "dilation": (1, 1), "ceil": False}
    ),
    "avg_pool2d": Rule(
        (1, 1),
        _pool,
        {**_WINDOW, "count_include_pad": kinds.boolean},
        {**_STEPS, "ceil": False, "count_include_pad": True},
    ),
    "global_avg_pool": Rule((1, 1), _global_pool, {"keepdim": kinds.boolean}, {"keepdim": True}),
    "concat": Rule((1, 4096), _concat, {"axis": kinds.axis}, {"axis": 1}),
    "slice": Rule((1, 1), _slice, {"axis": kinds.axis, "start": kinds.size, "stop": kinds.size}, {"axis": 1}),
    "flatten": Rule((1, 1), _flatten),
    "affine": Rule((1, 1), _affine, _ACT, _NO_ACT, frozenset({"scale", "shift"})),
    "layer_norm": Rule(
        (1, 1),
        _layer_norm,
        _EPS,
        {"eps": 1e-5},
        optional=frozenset({"weight", "bias"}),
    ),
    "rms_norm": Rule((1, 1), _rms_norm, _EPS, {"eps": 1e-6}, optional=_WEIGHT),
    "add_constant": Rule((1, 1), _constant, _ACT, _NO_ACT, frozenset({"constant"})),
    "mul_constant": Rule((1, 1), _constant, _ACT, _NO_ACT, frozenset({"constant"})),
    "rotary": Rule((1, 1), _rotary, {"half": lambda n: kinds.count(n, 1)}, required=frozenset({"cos", "sin"})),
    "softmax": Rule((1, 1), _softmax, {"axis": kinds.axis}),
    "attention": Rule(
        (3, 3),
        _attention,
        {"scale": lambda scale: scale is None or kinds.number(scale), "causal": kinds.boolean},
        {"scale": None, "causal": False},
        optional=_BIAS,
    ),
    "window_attention": Rule(
        (3, 3),
        _window_attention,
        {"scale": lambda scale: scale is None or kinds.number(scale)},
        {"scale": None},
        optional=_BIAS,
    ),
    "pad": Rule((1, 1), _pad, {"before": kinds.is_room, "after": kinds.is_room}),
    "transpose": Rule((1, 1), _transpose, {"axes": kinds.is_axes}),
    "reshape": Rule((1, 1), _reshape, {"shape": kinds.is_shape}),
    "channel_shuffle": Rule((1, 1), _shuffle, {"groups": lambda n: kinds.count(n, 1)}),
}
