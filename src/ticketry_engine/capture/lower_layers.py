"""Lowers layers from ATen operations to native nodes, and removes operations without effect in evaluation mode.

The layers are convolutions (also transposed), linear layers, norms, attention, pools, resizes, activations and sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ticketry_engine.capture.editor import (
    Editor,
    Found,
    Lowering,
    NoMatchError,
    arguments,
    base,
    finite_number,
    number_of,
    rename_last_output,
    require_match,
    rewrite,
    tensor_of,
    value_of,
)
from ticketry_engine.capture.same_rows import rows_of
from ticketry_engine.ir import DTYPES, Graph, Json, Node, aten, node
from ticketry_engine.ir.native import MOST_MOVED
from ticketry_engine.ir.native_shapes import ACTS, is_act
from ticketry_engine.support.seeds import generator


def weights_of(editor: Editor, found: Mapping[str, Json]) -> dict[str, str]:
    """Return the names of a layer's weight and bias, by role; raise `NoMatchError` if one is no weight of the model."""
    given = {role: tensor_of(found.get(role)) for role in ("weight", "bias") if found.get(role) is not None}
    named = {role: name for role, name in given.items() if name is not None}
    require_match(named.keys() == given.keys() and "weight" in named)
    require_match(len({editor.tensors[name].dtype for name in named.values()}) == 1)
    return named


def _lower_conv2d(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,), weights = editor.floats(one, found["input"], axes=4), weights_of(editor, found)
    weight = editor.tensors[weights["weight"]]
    require_match(weight.dim() == 4 and not found.get("transposed"))
    stride, dilation = pair(found["stride"]), pair(found["dilation"])
    padding = _resolve_padding(found["padding"], weight.shape[2:], dilation)
    setting = {"stride": stride, "padding": padding, "dilation": dilation, "groups": found["groups"]}
    return [node("conv2d", (x,), one.output, weights, **setting)]


def _resolve_padding(padding: Json, kernel: torch.Size, dilation: list[int]) -> list[int]:
    if padding == "valid":
        return [0, 0]
    if padding == "same":
        both = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        require_match(not any(total % 2 for total in both))
        return [total // 2 for total in both]
    return pair(padding)


def _lower_conv1d(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Lower a one-dimensional convolution to a two-dimensional convolution over images of height 1."""
    (x,), weights = editor.floats(one, found["input"], axes=3), weights_of(editor, found)
    weight = editor.tensors[weights["weight"]].unsqueeze(2)
    stride, dilation = pair(found["stride"])[1], pair(found["dilation"])[1]
    padding = _resolve_padding(found["padding"], torch.Size((1, weight.shape[3])), [1, dilation])[1]
    weights = {**weights, "weight": editor.tensor(f"{weights['weight']}.2d", weight)}
    setting = {"stride": [1, stride], "padding": [0, padding], "dilation": [1, dilation], "groups": found["groups"]}
    return as_image_operation(editor, one, x, "conv2d", weights, **setting)


def linear_input(found: Found) -> Json:
    """Return the input argument (not the weight) of a linear layer or matrix product."""
    return found.get("input", found.get("mat1", found.get("self")))


def linear_weights(editor: Editor, one: Node, found: Found) -> dict[str, str]:
    """Return the names of weight and bias of a linear layer that equals `one`; raise `NoMatchError` if none does."""
    if base(one) == "linear":
        named = weights_of(editor, found)
    else:
        named = {"weight": tensor_of(found.get("mat2", found.get("other"))) or ""}
        if base(one) == "addmm":  # bias + x weight
            named["bias"] = tensor_of(found["self"]) or ""
            require_match(found["beta"] == found["alpha"] == 1)
    require_match(
        all(name and editor.tensors[name].dim() == {"weight": 2, "bias": 1}[role] for role, name in named.items())
    )
    rows = editor.tensors[named["weight"]].shape[0 if base(one) == "linear" else 1]
    require_match("bias" not in named or editor.tensors[named["bias"]].shape == (rows,))
    if base(one) != "linear":
        weight = named["weight"]
        named["weight"] = editor.tensor(f"{weight}.T", editor.tensors[weight].t().contiguous())
    return named


def _lower_linear(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,) = editor.floats(one, linear_input(found))
    require_match(len(editor.shape(x) or ()) >= 2)
    return [node("linear", (x,), one.output, linear_weights(editor, one, found))]


def _lower_batch_norm(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Lower a batch norm in evaluation mode to a scale and a shift of each channel."""
    named = [tensor_of(found[role]) for role in ("weight", "bias", "running_mean", "running_var")]
    (x,) = editor.floats(one, found["input"])
    require_match(not found.get("training") and len(editor.shape(x) or ()) >= 2)
    weight, bias, mean, var = (None if name is None else editor.tensors[name].double() for name in named)
    if mean is None or var is None:
        raise NoMatchError
    scale = torch.rsqrt(var + finite_number(found["eps"]))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    dtype = getattr(torch, editor.values[x].dtype)
    prefix = str(named[2]).removesuffix("running_mean")
    weights = {
        role: editor.tensor(f"{prefix}{role}", made.to(dtype)) for role, made in (("scale", scale), ("shift", shift))
    }
    return [node("affine", (x,), one.output, weights)]


def _lower_layer_norm(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,), size = editor.floats(one, found["input"]), found["normalized_shape"]
    named = {role: tensor_of(found[role]) for role in ("weight", "bias")}
    require_match(len(size) == 1 and len(editor.shape(x) or ()) >= 2)
    require_match(all((name is None) == (found[role] is None) for role, name in named.items()))
    dtype = getattr(torch, editor.values[x].dtype)
    weights = {}
    if any(named.values()):
        neutral = {"weight": torch.ones(size, dtype=dtype), "bias": torch.zeros(size, dtype=dtype)}
        for role, name in named.items():
            weights[role] = editor.tensor(f"{one.output}.{role}", neutral[role]) if name is None else name
    require_match(all(editor.tensors[name].dtype == dtype for name in weights.values()))
    return [node("layer_norm", (x,), one.output, weights, eps=finite_number(found["eps"]))]


def _lower_softmax(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,) = editor.floats(one, found["self"])
    axis = int(found["dim"]) % len(editor.shape(x) or ())
    require_match(axis)
    return [node("softmax", (x,), one.output, axis=axis)]


def _lower_rms_norm(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,), size = editor.floats(one, found["input"]), found["normalized_shape"]
    name = tensor_of(found["weight"])
    dtype = getattr(torch, editor.values[x].dtype)
    require_match(len(size) == 1 and len(editor.shape(x) or ()) >= 2 and (name is None) == (found["weight"] is None))
    require_match(name is None or editor.tensors[name].dtype == dtype)
    eps = torch.finfo(dtype).eps if found["eps"] is None else finite_number(found["eps"])
    return [node("rms_norm", (x,), one.output, {} if name is None else {"weight": name}, eps=eps)]


def _lower_attention(editor: Editor, one: Node, found: Found) -> list[Node]:
    q, k, v = editor.floats(one, *(found[role] for role in ("query", "key", "value")), axes=4)
    require_match(not found["dropout_p"] and len({(editor.shape(name) or ())[:1] for name in (q, k, v)}) == 1)
    heads, groups = ((editor.shape(name) or ())[1] for name in (q, k))
    require_match(heads and groups and not heads % groups)  # queries that are broadcast are left to torch
    return [masked_attention(editor, (q, k, v), one.output, found["attn_mask"], found["scale"], found["is_causal"])]


def masked_attention(
    editor: Editor, inputs: tuple[str, str, str], output: str, mask: Json, scale: Json, causal: bool = False
) -> Node:
    """Return an attention node; raise `NoMatchError` if the mask differs between examples or hides all keys."""
    bias = None if mask is None else _attention_bias(editor, mask, inputs)
    if bias is not None and not causal:
        # A mask that hides what follows is no matter of numbers.
        hidden = torch.ones(bias.shape[1:], dtype=torch.bool).triu(1)
        if bool((bias == torch.zeros_like(bias[0]).masked_fill(hidden, float("-inf"))).all()):
            bias, causal = None, True
    weights = {}
    if bias is not None and bool(bias.any()):
        require_match(bool(bias.isfinite().any(-1).all()))  # torch's rows without a key are 0, a quotient's are NaN
        weights["bias"] = editor.constant(f"{output}.bias", bias)
    return node("attention", inputs, output, weights, scale=scale, causal=causal)


def _attention_bias(editor: Editor, mask: Json, inputs: Sequence[str]) -> torch.Tensor:
    """Return the attention bias [heads or 1, queries, keys] that is equivalent to `mask`."""
    heads, queries = (editor.shape(inputs[0]) or ())[1:3]
    keys = (editor.shape(inputs[1]) or ())[2]
    name = tensor_of(mask)
    known = editor.tensors[name] if name is not None else rows_of(editor.makers, editor.tensors, value_of(mask))
    if known is None or known.dim() > 4:
        raise NoMatchError
    known = known.reshape((1,) * (4 - known.dim()) + tuple(known.shape))
    require_match(known.shape[0] == 1 and known.shape[1] in (1, heads))
    dtype = getattr(torch, editor.values[inputs[0]].dtype)
    if known.dtype == torch.bool:
        known = torch.zeros(known.shape, dtype=dtype).masked_fill(~known, float("-inf"))
    require_match(known.dtype == dtype and not bool((known.isnan() | (known == float("inf"))).any()))
    require_match(known.shape[2] in (1, queries) and known.shape[3] in (1, keys))
    return known[0].expand(-1, int(queries or 0), int(keys or 0))


# -- activations, sums, products, and operations that do nothing in evaluation mode ------------------------------------


def act_of(name: str, found: Mapping[str, Any]) -> Json:
    """Return the activation that the ATen operation `name` with the arguments `found` computes, or None."""
    if name == "gelu":
        return "gelu_tanh" if found["approximate"] == "tanh" else "gelu"
    if name in ACTS:
        return name
    if name == "leaky_relu" and is_act(act := {"leaky_relu": found["negative_slope"]}):
        return act
    if name == "hardtanh":
        return _clamp_activation(found["min_val"], found["max_val"])
    if name == "clamp":
        return _clamp_activation(found["min"], found["max"])
    if name == "clamp_min":
        return _clamp_activation(found["min"], None)
    if name == "threshold":
        return "relu" if found["threshold"] == 0 and found["value"] == 0 else None
    return None


def _clamp_activation(least: Json, most: Json) -> str | None:
    if isinstance(least, (int, float)) and least == 0:
        return "relu" if most is None else "relu6" if most == 6 else None
    return None


def _lower_activation(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,), act = editor.floats(one, found["self"]), act_of(base(one), found)
    require_match(act)
    return [node("act", (x,), one.output, act=act)]


def _lower_pairwise(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Lower a sum or product of two values; the larger value becomes the first input of the node."""
    require_match(found.get("alpha", 1) == 1)
    require_match(
        all(rows_of(editor.makers, editor.tensors, value_of(found[role])) is None for role in ("self", "other"))
    )
    pair = editor.floats(one, found["self"], found["other"])
    made = editor.shape(one.output)
    if not made:
        raise NoMatchError
    if editor.shape(pair[0]) != made:
        pair.reverse()
    gate = (*made[:2], 1, 1) if len(made) == 4 else None
    require_match(editor.shape(pair[0]) == made and editor.shape(pair[1]) in (made, gate))
    return [node(base(one), tuple(pair), one.output)]


def _remove_identity(editor: Editor, one: Node, found: Found) -> str:
    """Return the name of the operation's argument; raise `NoMatchError` if the operation changes shape or data type."""
    x = value_of(found.get("self", found.get("input")))
    if x is None or found.get("train") is True or found.get("training") is True:
        raise NoMatchError
    require_match(editor.values[x].dtype == editor.values[one.output].dtype and editor.same_size(x, one.output))
    require_match(editor.values[x].dtype in DTYPES)  # a copy of a complex tensor computes its lazy conjugate
    return x


def _lower_arithmetic(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    """Remove x * 1, x / 1 and x + 0; lower other sums and products."""
    name = base(one)
    number = number_of(found["other"], editor.tensors)
    if number == (0 if name in ("add", "sub") else 1):
        return _remove_identity(editor, one, found)
    require_match(name in ("add", "mul"))
    if value_of(found["self"]) and value_of(found["other"]):
        return _lower_pairwise(editor, one, found)
    return _lower_channel_constant(editor, one, found)


def _lower_channel_constant(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Lower a sum or product with a weight that has one element per channel."""
    name = base(one)
    arg, other = (found["self"], found["other"]) if value_of(found["self"]) else (found["other"], found["self"])
    (x,), weight = editor.floats(one, arg), tensor_of(other)
    if weight is None or found.get("alpha", 1) != 1:
        raise NoMatchError
    shape, tensor = editor.shape(x) or (), editor.tensors[weight]
    channels = shape[1:2] + (1,) * (len(shape) - 2)
    require_match(
        len(shape) > 1 and tuple(tensor.shape) in (channels, (1, *channels)) and shape == editor.shape(one.output)
    )
    require_match(str(tensor.dtype) == f"torch.{editor.values[x].dtype}")
    vector = tensor.flatten()
    factor = vector if name == "mul" else torch.ones_like(vector)
    term = vector if name == "add" else torch.zeros_like(vector)
    weights = {role: editor.tensor(f"{weight}.{role}", made) for role, made in (("scale", factor), ("shift", term))}
    return [node("affine", (x,), one.output, weights)]


_NOTHING_TO_DO = (
    *("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy"),
    *("type_as", "lift_fresh_copy", "positive", "expand_as"),
)
"""Operations that have no effect in evaluation mode if they keep shape and data type."""


def getitem_of(editor: Editor, one: Node, maker: Node) -> list[Node]:
    """Lower `one`, which takes entry 0 of the results of `maker`; raise `NoMatchError` for any other entry."""
    rule = _FIRST_OF.get(base(maker))
    if rule is None or one.attrs["args"][1] != 0:
        raise NoMatchError
    return rule(editor, replace(maker, output=one.output), arguments(maker))


# -- resizes -----------------------------------------------------------------------------------------------------------

# A resize by an integer factor f is a convolution with f x f output channels per channel, over an image with repeated
# edges: each of the f positions inside a pixel has fixed weights for the neighbouring pixels. The channels are then
# interleaved, as for transposed convolutions.


_REACH = {"upsample_bilinear2d": 1, "upsample_bicubic2d": 2}
"""Resize operation -> number of neighbouring pixels on each side that contribute to an output pixel."""


def lower_resize(editor: Editor, one: Node) -> list[Node]:
    """Lower bilinear or bicubic upsampling by integer factors."""
    reach = 0 if one.native else _REACH.get(base(one), 0)
    require_match(reach and len(one.inputs) == 1)
    (x,) = editor.floats(one, {"value": one.inputs[0]}, axes=4)
    shape, made = (editor.shape(name) or () for name in (x, one.output))
    require_match(shape[:2] == made[:2] and all(shape[1:]))
    channels, *sizes = (int(size or 0) for size in shape[1:])
    places = [int(size or 0) for size in made[2:]]
    require_match(all(0 < size <= more and not more % size for size, more in zip(sizes, places, strict=True)))
    require_match(channels * prod(places) <= MOST_MOVED)
    resize, dtype = aten.prepare(one, editor.tensors, "cpu"), getattr(torch, editor.values[x].dtype)
    taps = [_resize_weights(resize, sizes, axis, places[axis] // sizes[axis], reach, dtype) for axis in range(2)]
    kernel = torch.einsum("ra,sb->rsab", *taps)
    nodes = _repeat_borders(editor, x, one.output, sizes, reach)

    def then(op: str, weights: dict[str, str] | None = None, **attrs: Json) -> None:
        nodes.append(editor.make(op, (nodes[-1].output,), one.output, weights, **attrs))

    weight = editor.constant(f"{one.output}.taps", kernel.flatten(0, 1).repeat(channels, 1, 1).unsqueeze(1))
    then("conv2d", {"weight": weight}, stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=channels)
    then("reshape", shape=[shape[0], channels, *kernel.shape[:2], *sizes])
    then("transpose", axes=[0, 1, 4, 2, 5, 3])
    return [*nodes, node("reshape", (nodes[-1].output,), one.output, shape=list(made))]


def _resize_weights(
    resize: Callable[[Tensor], Tensor], sizes: Sequence[int], axis: int, scale: int, reach: int, dtype: torch.dtype
) -> Tensor:
    """Return the factors [scale, 2 reach + 1] of an upsampling along `axis`, measured by calling `resize`.

    Each of the `scale` output pixels per input pixel is a weighted sum of the pixel and `reach` pixels on each side.
    Raise `NoMatchError` if the factors depend on the position in the image, or if the image is too small.
    """
    size = sizes[axis]
    require_match(size > 2 * reach)
    single = torch.zeros(1, size, dtype=dtype)
    single[0, size // 2] = 1.0
    signals = torch.cat([single, torch.rand(4, size, generator=generator(0, "resize")).to(dtype)])
    images = signals[:, None, :, None] if axis == 0 else signals[:, None, None, :]
    found = resize(images.expand(-1, 1, *sizes).contiguous()).select(3 - axis, 0).reshape(-1, size, scale)
    # Return [d, i]: the weight of pixel d for output position i inside a pixel; pixel i + d is d pixels later.
    taps: Tensor = found[0, size // 2 - reach : size // 2 + reach + 1].flip(0).t()
    around = (torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)).clamp(0, size - 1)
    require_match(torch.allclose(signals[:, around] @ taps.t(), found, rtol=0, atol=1e-5))
    return taps.contiguous()


def _repeat_borders(editor: Editor, x: str, like: str, sizes: Sequence[int], reach: int) -> list[Node]:
    """Return nodes that repeat an image's first and last rows and columns `reach` times."""
    nodes: list[Node] = []
    for axis, size in enumerate(sizes, start=2):
        ends = [editor.make("slice", (x,), like, axis=axis, start=at, stop=at + 1) for at in (0, size - 1)]
        low, high = ((end.output,) * reach for end in ends)
        nodes += [*ends, editor.make("concat", (*low, x, *high), like, axis=axis)]
        x = nodes[-1].output
    return nodes


# -- Poolings and means, over two axes or one --------------------------------------------------------------------------


def pair(value: Json) -> list[int]:
    """Return a setting such as a stride as two numbers; a single number applies to two axes."""
    sizes = value if isinstance(value, list) else [value]
    require_match(len(sizes) in (1, 2) and all(type(size) is int for size in sizes))
    return [sizes[0], sizes[-1]]


def window_of(sizes: Json, axes: int, beside: int) -> list[int]:
    """Return a pooling's kernel size, stride or padding as [height, width]; if `axes` is 1, the height is `beside`."""
    return pair(sizes) if axes == 2 else [beside, pair(sizes)[1]]


def lower_pool(editor: Editor, one: Node, found: Found, *, axes: int = 2) -> list[Node]:
    (x,) = editor.floats(one, found["self"], axes=2 + axes)
    kernel, padding = window_of(found["kernel_size"], axes, 1), window_of(found["padding"], axes, 0)
    window: dict[str, Json] = {
        "kernel": kernel,
        "stride": window_of(found["stride"] or found["kernel_size"], axes, 1),
        "padding": padding,
        "ceil": found["ceil_mode"],
    }
    if "dilation" in found:
        return _apply_over_axes(
            axes, editor, one, x, "max_pool2d", **window, dilation=window_of(found["dilation"], axes, 1)
        )
    require_match(found.get("divisor_override") is None)
    made, shape = editor.shape(one.output) or (), editor.shape(x) or ()
    covers = all(size >= int(side or 0) for size, side in zip(kernel[-axes:], shape[2:], strict=True))
    if set(made[2:]) == {1} and covers and padding == [0, 0]:
        return _apply_over_axes(axes, editor, one, x, "global_avg_pool", keepdim=True)
    return _apply_over_axes(axes, editor, one, x, "avg_pool2d", **window, count_include_pad=found["count_include_pad"])


def lower_adaptive_pool(editor: Editor, one: Node, found: Found, *, axes: int = 2) -> list[Node] | str:
    (x,) = editor.floats(one, found["self"], axes=2 + axes)
    before, after = editor.shape(x) or (), editor.shape(one.output) or ()
    if before == after:
        return x
    if set(after[2:]) == {1}:
        return _apply_over_axes(axes, editor, one, x, "global_avg_pool", keepdim=True)
    sizes = [(int(old or 0), int(new or 0)) for old, new in zip(before[2:], after[2:], strict=True)]
    require_match(all(new and not old % new for old, new in sizes))
    kernel = window_of([old // new for old, new in sizes], axes, 1)
    return _apply_over_axes(axes, editor, one, x, "avg_pool2d", kernel=kernel, stride=kernel)


def _apply_over_axes(axes: int, editor: Editor, one: Node, x: str, op: str, **attributes: Json) -> list[Node]:
    """Return nodes that apply the pooling `op` to `x`; if `axes` is 1, view the signals `x` as images of height 1."""
    if axes == 1:
        return as_image_operation(editor, one, x, op, **attributes)
    return [node(op, (x,), one.output, **attributes)]


def as_image_operation(
    editor: Editor, one: Node, x: str, op: str, weights: Mapping[str, str] | None = None, **attributes: Json
) -> list[Node]:
    """Return nodes that view signals `x` [N, C, L] as images [N, C, 1, L] and apply the operation `op` to them."""
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    picture = editor.make("reshape", (x,), one.output, shape=[*shape[:2], 1, shape[2]])
    result = editor.make(op, (picture.output,), one.output, weights, **attributes)
    return [picture, result, node("reshape", (result.output,), one.output, shape=list(made))]


def lower_mean(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Lower a mean over the pixels of images, over tokens, or over the length of signals."""
    (x,) = editor.floats(one, found["self"])
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    require_match(isinstance(found.get("dim"), list) and found.get("dtype") is None and all(shape[1:]))
    axes = sorted(axis % len(shape) for axis in found["dim"])
    if (len(shape), axes) == (4, [2, 3]):
        return [node("global_avg_pool", (x,), one.output, keepdim=found["keepdim"])]
    if (len(shape), axes, found["keepdim"]) == (3, [2], False):  # kept, it is mostly a part of a norm
        return as_image_operation(editor, one, x, "global_avg_pool", keepdim=True)
    require_match((len(shape), axes) in ((4, [1, 2]), (3, [1])))
    last = len(shape) - 1
    nodes = [editor.make("transpose", (x,), one.output, axes=[0, last, *axes])]
    if len(shape) == 3:
        nodes.append(editor.make("reshape", (nodes[-1].output,), one.output, shape=[shape[0], shape[2], 1, shape[1]]))
    pooled = editor.make("global_avg_pool", (nodes[-1].output,), one.output, keepdim=False)
    return [*nodes, pooled, node("reshape", (pooled.output,), one.output, shape=list(made))]


# -- group norms, sums over pixels, and products with one channel ------------------------------------------------------


def lower_image_statistics(editor: Editor, one: Node) -> list[Node] | str | None:
    """Lower a group norm, a sum over pixels, or a sum or product of images with images of one channel."""
    rule = None if one.native else _IMAGE_RULES.get(base(one))
    if rule is None:
        raise NoMatchError
    return rule(editor, one, arguments(one))


def _constant_like(editor: Editor, like: str, role: str, tensor: Tensor) -> str:
    """Add a constant with the data type of the value `like`; return its name, which is derived from `like`."""
    return editor.constant(f"{like}.{role}", tensor.to(getattr(torch, editor.values[like].dtype)))


_LEAST_EPS = 1e-20
"""Smallest eps of a group norm that is lowered: with less, the activation "inverse_root" could replace a variance."""


def _lower_group_norm(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Lower a group norm of images.

    Convolutions of images with one pixel compute the means of each group, and copy them to the group's channels.
    """
    (x,), groups = editor.floats(one, found["input"], axes=4), int(found["num_groups"])
    given = {role: tensor_of(found[role]) for role in ("weight", "bias") if found[role] is not None}
    gains, shifts = (editor.tensors.get(given.get(role) or "") for role in ("weight", "bias"))
    require_match(None not in given.values() and finite_number(found["eps"]) >= _LEAST_EPS)
    width = int((editor.shape(x) or ())[1] or 0) // groups
    group_of_channel = torch.eye(groups, dtype=torch.float64).repeat_interleave(width, 0)  # [channels, groups]
    gain_of_channel = group_of_channel if gains is None else group_of_channel * gains[:, None]
    means, opposites, scales = (
        _constant_like(editor, one.output, role, matrix[:, :, None, None])
        for role, matrix in (
            ("means", group_of_channel.t() / width),
            ("opposites", -group_of_channel),
            ("scales", gain_of_channel),
        )
    )
    eps = _constant_like(editor, one.output, "eps", torch.full((groups,), float(found["eps"])))
    nodes: list[Node] = []

    def then(op: str, *inputs: str, act: Json = None, **weights: str) -> str:
        attrs = {} if op == "global_avg_pool" else {"act": act}
        nodes.append(editor.make(op, inputs, one.output, weights, **attrs))
        return nodes[-1].output

    mean = then("conv2d", then("global_avg_pool", x), weight=means)
    centred = then("add", x, then("conv2d", mean, weight=opposites))
    squares = then("global_avg_pool", then("mul", centred, centred))
    inverse_deviation = then("conv2d", squares, weight=means, bias=eps, act="inverse_root")
    scaled = then("mul", centred, then("conv2d", inverse_deviation, weight=scales))
    if shifts is not None and bool(shifts.any()):
        then("add_constant", scaled, constant=_constant_like(editor, one.output, "shifts", shifts[:, None, None]))
    return [*nodes[:-1], replace(nodes[-1], output=one.output)]


def _lower_pixel_sum(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Lower a sum over the rows of images, over their columns, or over both, to a mean times a number of pixels."""
    (x,) = editor.floats(one, found["self"], axes=4)
    shape, axes = editor.shape(x) or (), {axis % 4 for axis in found["dim"] or ()}
    require_match(axes and axes <= {2, 3} and found.get("dtype") is None and all(shape[1:]))
    kernel = [int(shape[axis] or 0) if axis in axes else 1 for axis in (2, 3)]
    if tuple(kernel) == shape[2:]:
        mean = editor.make("global_avg_pool", (x,), one.output)
    else:
        mean = editor.make("avg_pool2d", (x,), one.output, kernel=kernel, stride=kernel)
    pixels = _constant_like(editor, one.output, "pixels", torch.full((1, 1, 1), float(prod(kernel))))
    total = editor.make("mul_constant", (mean.output,), one.output, {"constant": pixels})
    return [mean, total, node("reshape", (total.output,), one.output, shape=list(editor.shape(one.output) or ()))]


def _lower_product_with_channel(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Lower a sum or product of images with images of one channel, which a convolution copies to all channels."""
    require_match(found.get("alpha", 1) == 1)
    names, made = editor.floats(one, found["self"], found["other"], axes=4), editor.shape(one.output) or ()
    x, single = names if editor.shape(names[0]) == made else names[::-1]
    require_match(editor.shape(x) == made and editor.shape(single) == (made[0], 1, *made[2:]))
    ones = _constant_like(editor, one.output, "copies", torch.ones(int(made[1] or 0), 1, 1, 1))
    copies = editor.make("conv2d", (single,), one.output, {"weight": ones})
    return [copies, node(base(one), (x, copies.output), one.output)]


_IMAGE_RULES: Mapping[str, Lowering] = {
    "group_norm": _lower_group_norm,
    "sum": _lower_pixel_sum,
    **dict.fromkeys(("add", "mul"), _lower_product_with_channel),
}


# -- transposed convolutions -------------------------------------------------------------------------------------------

# Along one axis, input pixel i times weight t is added to output pixel s i + d t - p (s: stride, d: dilation, p:
# padding). Output pixels s m + r, which form phase r, receive only weights with d t - p = r + s j, from input pixels
# m - j. So each phase is a convolution with stride 1 that has a tap for each j. The phases of both axes are channels of
# one convolution, and are interleaved afterwards (Shi et al., "Real-time single image and video super-resolution using
# an efficient sub-pixel convolutional neural network", CVPR 2016, section 3). A phase without a weight for a tap has a
# zero there, as if a mask had pruned the weight.


_FOLDED = ("affine", "act")
"""Operations of following nodes that are folded into a transposed convolution."""


def lower_transposed(graph: Graph) -> Graph:
    """Return the graph with each transposed convolution, and a norm or activation after it, lowered to native nodes."""
    readers = {name: one.op for one in graph.nodes for name in one.inputs}
    return rewrite(graph, partial(_lower_transposed, readers, {}))


@dataclass(frozen=True)
class _Axis:
    """One axis of a transposed convolution; the phase of an output pixel is its position modulo the stride."""

    size: int
    """Input size in pixels."""
    kernel: int
    stride: int
    dilation: int
    padding: int
    made: int
    """Output size in pixels."""

    def place(self, weight: int) -> tuple[int, int]:
        """Return (phase of the output pixel, offset of the input pixel) for the kernel position `weight`."""
        behind, phase = divmod(self.dilation * weight - self.padding, self.stride)
        return phase, -behind

    @property
    def places(self) -> int:
        """Return the number of output pixels in each phase, rounded up."""
        return -(-self.made // self.stride)

    @property
    def room(self) -> int:
        """Return the padding, on each side, of the ordinary convolution that replaces the transposed one."""
        return max(0, -self._first, self.places - self.size + self._last)

    @property
    def taps(self) -> int:
        return self.room + self._last + 1

    @property
    def _first(self) -> int:
        """Return the offset of the first input pixel that the kernel multiplies."""
        return self.place(self.kernel - 1)[1]

    @property
    def _last(self) -> int:
        return self.place(0)[1]


@dataclass(frozen=True)
class _Transposed:
    """A transposed convolution, with the norm and activation that are folded into the convolution."""

    x: str
    name: str
    weight: Tensor
    """Shape [input channels, output channels / groups, kernel height, kernel width]."""
    bias: Tensor | None
    axes: tuple[_Axis, _Axis]
    groups: int
    act: Json = None

    def scaled(self, scale: Tensor, shift: Tensor) -> _Transposed:
        """Return the convolution with scaled and shifted output channels, computed in float64 and rounded once."""
        kind, (inputs, outputs, *_) = self.weight.dtype, self.weight.shape
        by_group = scale.view(self.groups, 1, outputs, 1, 1)
        weight = self.weight.double().view(self.groups, inputs // self.groups, *self.weight.shape[1:]) * by_group
        bias = shift if self.bias is None else self.bias.double() * scale + shift
        return replace(self, weight=weight.view_as(self.weight).to(kind), bias=bias.to(kind))

    def phases(self) -> Tensor:
        """Return the weight of an ordinary convolution that computes all phases, each as separate output channels."""
        inputs, outputs, *kernel = self.weight.shape
        down, across = self.axes
        made = self.weight.new_zeros(
            self.groups, down.stride, across.stride, outputs, inputs // self.groups, down.taps, across.taps
        )
        given = self.weight.view(self.groups, inputs // self.groups, outputs, *kernel).transpose(1, 2)
        for row in range(kernel[0]):
            for column in range(kernel[1]):
                (phase, step), (other_phase, other_step) = down.place(row), across.place(column)
                made[:, phase, other_phase, :, :, down.room + step, across.room + other_step] = given[..., row, column]
        return made.flatten(0, 3)

    def nodes(self, editor: Editor, output: str) -> list[Node]:
        """Return native nodes that compute the transposed convolution; the last node computes `output`."""
        down, across = self.axes
        strides, outputs = (down.stride, across.stride), self.weight.shape[1]
        batch, *sizes = editor.shape(self.x) or ()
        nodes: list[Node] = []

        def then(op: str, weights: Mapping[str, str] | None = None, **attrs: Json) -> list[int]:
            """Append a node that reads the previous node's output; return its output sizes without the batch."""
            nodes.append(editor.make(op, (nodes[-1].output if nodes else self.x,), output, weights, **attrs))
            return [int(size or 0) for size in (editor.shape(nodes[-1].output) or ())[1:]]

        if len(sizes) == 2:
            then("reshape", shape=[batch, sizes[0], 1, sizes[1]])
        weights = {"weight": editor.tensor(f"{self.name}.phases", self.phases())}
        if self.bias is not None:
            by_group = self.bias.view(self.groups, 1, outputs).expand(-1, strides[0] * strides[1], -1)
            weights["bias"] = editor.tensor(f"{self.name.removesuffix('weight')}bias.phases", by_group.flatten())
        padding = [down.room, across.room]
        setting: dict[str, Json] = {"stride": [1, 1], "padding": padding, "dilation": [1, 1], "groups": self.groups}
        _, height, width = then("conv2d", weights, act=self.act, **setting)
        if strides != (1, 1):
            then("reshape", shape=[batch, self.groups, *strides, outputs, height, width])
            then("transpose", axes=[0, 1, 4, 5, 2, 6, 3])
            then("reshape", shape=[batch, self.groups * outputs, height * strides[0], width * strides[1]])
        for number, axis in enumerate(self.axes, start=2):
            if axis.made != (editor.shape(nodes[-1].output) or ())[number]:
                then("slice", axis=number, start=0, stop=axis.made)
        if len(sizes) == 2:
            then("reshape", shape=list(editor.shape(output) or ()))
        return nodes


def _lower_transposed(
    readers: Mapping[str, str], known: dict[str, _Transposed], editor: Editor, one: Node
) -> list[Node] | str:
    """Lower a transposed convolution together with a following norm and activation.

    If the next node can be folded too, store the convolution in `known`, by output name, and raise `NoMatchError`.
    """
    found = _fold_following(known, editor, one) if one.native else _parse_transposed(editor, one)
    if found.act is None and editor.uses[one.output] == 1 and readers.get(one.output) in _FOLDED:
        known[one.output] = found
        raise NoMatchError  # the next node is folded first
    return rename_last_output(found.nodes(editor, one.output), found.x, one.output)


def _parse_transposed(editor: Editor, one: Node) -> _Transposed:
    name = base(one)
    require_match(name in ("conv_transpose1d", "conv_transpose2d", "convolution"))
    found = arguments(one)
    require_match(name != "convolution" or found["transposed"])
    (x,), weights = editor.floats(one, found["input"]), weights_of(editor, found)
    weight = editor.tensors[weights["weight"]]
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    require_match(weight.dim() == len(shape) == len(made) and len(shape) in (3, 4) and all(shape[1:]) and all(made[1:]))
    if weight.dim() == 3:
        weight = weight.unsqueeze(2)
    bias = editor.tensors[weights["bias"]] if "bias" in weights else None
    axes = _transposed_axes(found, weight, shape, made)
    return _Transposed(x, weights["weight"], weight, bias, axes, int(found["groups"]))


def _transposed_axes(
    found: Found, weight: Tensor, shape: tuple[int | None, ...], made: tuple[int | None, ...]
) -> tuple[_Axis, _Axis]:
    """Return the axes height and width of a transposed convolution; for a signal, the height is 1."""
    stride, dilation, padding = (pair(found[role]) for role in ("stride", "dilation", "padding"))

    def axis(number: int) -> _Axis:
        """Return the `_Axis` at the negative index `number`, such as -1 for the width."""
        size, places = int(shape[number] or 0), int(made[number] or 0)
        return _Axis(size, weight.shape[number], stride[number], dilation[number], padding[number], places)

    return (axis(-2) if len(shape) == 4 else _Axis(1, 1, 1, 1, 0, 1)), axis(-1)


def _fold_following(known: Mapping[str, _Transposed], editor: Editor, one: Node) -> _Transposed:
    """Return the transposed convolution before the norm or activation `one`, from `known`, with `one` folded in."""
    found = known.get(one.inputs[0]) if one.op in _FOLDED else None
    if found is None:
        raise NoMatchError
    if one.op == "affine":
        scale, shift = (editor.tensors[one.weights[role]].double() for role in ("scale", "shift"))
        found = found.scaled(scale, shift)
    return replace(found, act=one.attrs["act"])


_FIRST_OF: Mapping[str, Callable[[Editor, Node, Found], list[Node]]] = {
    "max_pool2d_with_indices": lower_pool,
    "_native_batch_norm_legit_no_training": _lower_batch_norm,
}

RULES: Mapping[str, Lowering] = {
    **dict.fromkeys(("conv2d", "convolution"), _lower_conv2d),
    "conv1d": _lower_conv1d,
    **dict.fromkeys(("linear", "matmul", "mm", "addmm"), _lower_linear),
    "batch_norm": _lower_batch_norm,
    "layer_norm": _lower_layer_norm,
    "rms_norm": _lower_rms_norm,
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), lower_pool),
    **dict.fromkeys(("max_pool1d", "avg_pool1d"), partial(lower_pool, axes=1)),
    "adaptive_avg_pool1d": partial(lower_adaptive_pool, axes=1),
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), lower_adaptive_pool),
    "mean": lower_mean,
    **dict.fromkeys(("softmax", "_softmax"), _lower_softmax),
    "scaled_dot_product_attention": _lower_attention,
    **dict.fromkeys((*ACTS, "leaky_relu", "hardtanh", "clamp", "clamp_min", "threshold"), _lower_activation),
    **dict.fromkeys(("add", "sub", "mul", "div"), _lower_arithmetic),
    **dict.fromkeys(_NOTHING_TO_DO, _remove_identity),
}
