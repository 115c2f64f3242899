"""Computes output shapes of native operations, and checks their attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ticketry_engine.errors import GraphError

Size: TypeAlias = "int | None"
Shape: TypeAlias = "tuple[Size, ...]"
Attrs: TypeAlias = "Mapping[str, Any]"


def require(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)


def image_sizes(shape: Shape) -> tuple[Size, int, int, int]:
    require(len(shape) == 4, f"it takes [N, C, H, W], not {shape}")
    batch, channels, height, width = shape
    return batch, int(channels or 0), int(height or 0), int(width or 0)


def check_bias(weights: Mapping[str, Shape], size: Size, *roles: str) -> None:
    for role in roles:
        if role in weights:
            require(weights[role] == (size,), f"its {role} has the shape {weights[role]}, not {(size,)}")


def check_residual(inputs: Sequence[Shape], made: Shape) -> Shape:
    if len(inputs) == 2:
        require(inputs[1] == made, f"the residual has the shape {inputs[1]}, not {made}")
    return made


def window_count(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool = False) -> int:
    """Return the number of positions of a sliding window along an axis; below 1 if the window does not fit."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    places = (room + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (places - 1) * stride >= size + padding:
        places -= 1  # the last window has to start inside of the input or its left padding
    return places


def _positive_window_count(
    size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool = False
) -> int:
    found = window_count(size, kernel, stride, padding, dilation, ceil=ceil)
    require(found >= 1, "the window is larger than the padded input")
    return found


def _check_weight(weight: Shape, axes: int) -> None:
    require(len(weight) == axes, f"its weight has the shape {weight}")
    require(all(weight), f"its weight of the shape {weight} has no elements")


def conv2d_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    batch, channels, height, width = image_sizes(inputs[0])
    weight, groups = weights["weight"], attrs["groups"]
    _check_weight(weight, 4)
    out, per_group, kh, kw = (int(size or 0) for size in weight)
    require(channels == per_group * groups, f"{channels} channels do not fit its weight {weight} in {groups} groups")
    require(out % groups == 0, f"{out} output channels are no multiple of {groups} groups")
    check_bias(weights, out, "bias")
    kernels = zip((height, width), (kh, kw), attrs["stride"], attrs["padding"], attrs["dilation"], strict=True)
    return check_residual(inputs, (batch, out, *(_positive_window_count(*one) for one in kernels)))


def linear_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    weight = weights["weight"]
    _check_weight(weight, 2)
    require(len(inputs[0]) >= 2 and inputs[0][-1] == weight[1], f"{inputs[0]} does not fit its weight {weight}")
    check_bias(weights, weight[0], "bias")
    return check_residual(inputs, (*inputs[0][:-1], weight[0]))


def pairwise_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    one, other = inputs
    gate = len(one) == 4 and other == (*one[:2], 1, 1)
    require(one == other or gate, f"{one} and {other} are not of one shape, nor [N, C, H, W] and [N, C, 1, 1]")
    return one


def shape_of_input(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    return inputs[0]


def pool_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    batch, channels, height, width = image_sizes(inputs[0])
    dilation = attrs.get("dilation", (1, 1))
    made = []
    for axis, size in enumerate((height, width)):
        kernel, padding = attrs["kernel"][axis], attrs["padding"][axis]
        require(size > 0, "there is nothing to pool")
        require(2 * padding <= kernel, "the padding is larger than half of the window")
        made.append(
            _positive_window_count(size, kernel, attrs["stride"][axis], padding, dilation[axis], ceil=attrs["ceil"])
        )
    return (batch, channels, *made)


def global_pool_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    batch, channels, height, width = image_sizes(inputs[0])
    require(height * width > 0, "there is nothing to pool")
    return (batch, channels, 1, 1) if attrs["keepdim"] else (batch, channels)


def concat_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    axis = attrs["axis"]
    require(axis < len(inputs[0]), f"there is no axis {axis}")
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}
    require(len(rest) == 1 and len({len(shape) for shape in inputs}) == 1, f"the shapes {inputs} differ elsewhere")
    return (*inputs[0][:axis], sum(int(shape[axis] or 0) for shape in inputs), *inputs[0][axis + 1 :])


def slice_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    axis, start, stop = attrs["axis"], attrs["start"], attrs["stop"]
    require(axis < len(inputs[0]), f"there is no axis {axis}")
    require(start <= stop <= int(inputs[0][axis] or 0), f"{start}:{stop} is not in {inputs[0]}")
    return (*inputs[0][:axis], stop - start, *inputs[0][axis + 1 :])


def elements_per_example(shape: Sequence[Size]) -> int:
    return prod(int(size or 0) for size in shape[1:])


def flatten_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    require(len(inputs[0]) >= 2, f"there is nothing to flatten in {inputs[0]}")
    return (inputs[0][0], elements_per_example(inputs[0]))


def affine_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    require(len(inputs[0]) >= 2, f"{inputs[0]} has no channels")
    check_bias(weights, inputs[0][1], "scale", "shift")
    return inputs[0]


def batch_norm_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    require(len(inputs[0]) >= 2, f"{inputs[0]} has no channels")
    check_bias(weights, inputs[0][1], "weight", "bias")
    return check_residual(inputs, inputs[0])


def constant_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    (x,) = inputs
    for role, given in weights.items():
        fits = len(given) == len(x) - 1 and all(size in (1, own) for size, own in zip(given, x[1:], strict=True))
        require(fits, f"its {role} has the shape {given}, which is not spread over {x[1:]}")
    return x


def rotary_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    made = constant_shape(attrs, inputs, weights)
    require(
        len(made) >= 2 and 2 * attrs["half"] <= int(made[-1] or 0), f"two halves of {attrs['half']} are not in {made}"
    )
    require(weights["cos"] == weights["sin"] and weights["cos"][-1] == made[-1], "cos and sin differ, or are too short")
    return made


def rms_norm_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    require(len(inputs[0]) >= 2 and bool(inputs[0][-1]), f"{inputs[0]} has no last axis to normalise")
    check_bias(weights, inputs[0][-1], "weight")
    return inputs[0]


def layer_norm_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    require(len(inputs[0]) >= 2 and bool(inputs[0][-1]), f"{inputs[0]} has no last axis to normalise")
    require(len(weights) != 1, "it takes both a weight and a bias, or neither")
    check_bias(weights, inputs[0][-1], "weight", "bias")
    return inputs[0]


def softmax_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    require(attrs["axis"] < len(inputs[0]), f"there is no axis {attrs['axis']}")
    return inputs[0]


def attention_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    q, k, v = inputs
    require(len(q) == len(k) == len(v) == 4, "it takes [N, h, T, d]")
    fits = k[1] == v[1] and q[3] == k[3] and k[2] == v[2] and bool(q[3]) and bool(k[2])
    heads, groups = int(q[1] or 0), int(k[1] or 0)
    require(fits and groups > 0 and heads % groups == 0, f"the shapes {q}, {k}, {v} do not go together")
    bias = weights.get("bias")
    require(bias is None or bias in ((heads, q[2], k[2]), (1, q[2], k[2])), f"its bias has the shape {bias}")
    return (*q[:3], v[3])


def window_attention_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    q, k, v = inputs
    require(len(q) == len(k) == len(v) == 5, "it takes [N, W, h, T, d]")
    fits = q[1:3] == k[1:3] == v[1:3] and k[3] == v[3] and q[4] == k[4] and bool(q[4]) and bool(k[3])
    require(fits, f"the shapes {q}, {k}, {v} do not go together")
    bias = weights.get("bias")
    spread = bias is None or (len(bias) == 4 and bias[0] in (1, q[1]) and bias[1] in (1, q[2]))
    require(spread and (bias is None or bias[2:] == (q[3], k[3])), f"its bias has the shape {bias}")
    return (*q[:4], v[4])


_MOST_STEPS = 1 << 16
"""Maximum number of steps of a recurrence; in torch, each step is a call."""


def scan_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    decay, added, *start = inputs
    axis = attrs["axis"]
    require(axis < len(decay) and decay == added, f"{decay} and {added} are not steps along the axis {axis}")
    require(len(start) + len(weights) == 1, "it takes one start, an input or a weight")
    state = (*decay[:axis], *decay[axis + 1 :])
    if start:
        require(start[0] == state, f"its start has the shape {start[0]}, its states {state}")
    else:
        constant_shape(attrs, [state], {"start": weights["start"]})
    require(0 < int(decay[axis] or 0) <= _MOST_STEPS, f"it takes 1 to {_MOST_STEPS} steps, not {decay[axis]}")
    return added


def pad_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    batch, *sizes = inputs[0]
    before, after = attrs["before"], attrs["after"]
    require(len(before) == len(after) == len(sizes), f"it pads {len(before)} and {len(after)} axes of {inputs[0]}")
    return (batch, *(low + int(size or 0) + high for low, size, high in zip(before, sizes, after, strict=True)))


def transpose_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    axes = attrs["axes"]
    require(sorted(axes) == list(range(len(inputs[0]))) and axes[0] == 0, f"{axes} is no order of {inputs[0]}'s axes")
    return tuple(inputs[0][axis] for axis in axes)


def reshape_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    shape = tuple(attrs["shape"])
    fits = shape[0] == inputs[0][0] and elements_per_example(shape) == elements_per_example(inputs[0])
    require(fits, f"{inputs[0]} cannot become {shape}")
    return shape


def shuffle_shape(attrs: Attrs, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
    require(
        image_sizes(inputs[0])[1] % attrs["groups"] == 0, f"{inputs[0]} has no {attrs['groups']} groups of channels"
    )
    return inputs[0]


# -- Checks for attribute values of native operations ------------------------------------------------------------------


ACTS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu, torch.relu_),
    "relu6": (F.relu6, lambda x: F.relu6(x, inplace=True)),
    "silu": (F.silu, lambda x: F.silu(x, inplace=True)),
    "gelu": (F.gelu, F.gelu),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"),) * 2,
    "hardswish": (F.hardswish, lambda x: F.hardswish(x, inplace=True)),
    "hardsigmoid": (F.hardsigmoid, lambda x: F.hardsigmoid(x, inplace=True)),
    "sigmoid": (torch.sigmoid, torch.sigmoid_),
    "tanh": (torch.tanh, torch.tanh_),
    "inverse_root": (lambda x: x.clamp_min(1e-30).rsqrt(), lambda x: x.clamp_min_(1e-30).rsqrt_()),
}
"""Name of an activation -> (its torch function, the same function that may change its argument in place).

The attribute ``act`` of a node is one of these names, None, or {"leaky_relu": slope}. Capture replaces an ATen
operation of the same name, with the tensor as its only argument, by this activation."""

_LARGEST_ATTR = 1 << 16
"""Maximum stride, padding, dilation, kernel size or number of groups; it limits what an untrusted file can claim."""
_LARGEST_NUMBER = 3.4028234663852886e38
"""The largest finite float32; kernels compute in float32."""


def is_count(value: Any, least: int = 0) -> bool:
    """Return whether `value` is an integer from `least` to the largest number that is allowed for strides."""
    return type(value) is int and least <= value <= _LARGEST_ATTR


def pair_checker(least: int) -> Callable[[Any], bool]:
    """Return a function that checks whether its argument is a list of two integers of at least `least`."""
    return lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(is_count(n, least) for n in value)


def is_size(value: Any) -> bool:
    """Return whether a value may be the size of an axis, or an index along an axis."""
    return type(value) is int and 0 <= value < 1 << 40


def is_axis(value: Any) -> bool:
    """Return whether a value may be the index of an axis other than the batch axis."""
    return type(value) is int and 1 <= value < 16


def is_boolean(value: Any) -> bool:
    return type(value) is bool


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number that float32 can represent."""
    if type(value) is int:
        return -(1 << 63) <= value < 1 << 63  # the range of torch's integers
    return type(value) is float and abs(value) <= _LARGEST_NUMBER  # also False for NaN


def is_activation(value: Any) -> bool:
    """Return whether a value is allowed for the attribute ``act``; None stands for the identity."""
    if isinstance(value, dict):
        return set(value) == {"leaky_relu"} and is_number(value["leaky_relu"])
    return value is None or (isinstance(value, str) and value in ACTS)


def is_axes(value: Any) -> bool:
    """Return whether a value is a list of 1 to 16 integers >= 0, such as axes or numbers of padding zeros."""
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 16 and all(is_count(one) for one in value)


def is_shape(value: Any) -> bool:
    """Return whether a value is a shape; the first size may be None, which stands for the batch size."""
    sane = isinstance(value, (list, tuple)) and 0 < len(value) <= 16
    return sane and (value[0] is None or is_size(value[0])) and all(is_size(one) for one in value[1:])
