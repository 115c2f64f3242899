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
    Lowering,
    NoMatchError,
    OpArguments,
    aten_name,
    bind_arguments,
    constant_number,
    finite_number,
    require_match,
    rewrite_nodes,
    value_name,
    weight_name,
    with_last_output,
)
from ticketry_engine.capture.same_rows import expanded_row
from ticketry_engine.ir import DTYPES, Graph, Json, Node, aten, native_node
from ticketry_engine.ir.native import MOST_MOVED
from ticketry_engine.ir.native_shapes import ACTS, is_activation
from ticketry_engine.support.seeds import generator


def weight_and_bias_names(editor: Editor, found: Mapping[str, Json]) -> dict[str, str]:
    """Return the names of a layer's weight and bias, by role, from the arguments `found` of its torch operation.

    Raise `NoMatchError` if one of them is no weight of the model.
    """
    given = {role: weight_name(found.get(role)) for role in ("weight", "bias") if found.get(role) is not None}
    named = {role: name for role, name in given.items() if name is not None}
    require_match(named.keys() == given.keys() and "weight" in named)
    require_match(len({editor.tensors[name].dtype for name in named.values()}) == 1)
    return named


def _lower_conv2d(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    (x,), weights = editor.float_inputs(node, args["input"], axes=4), weight_and_bias_names(editor, args)
    weight = editor.tensors[weights["weight"]]
    require_match(weight.dim() == 4 and not args.get("transposed"))
    stride, dilation = to_pair(args["stride"]), to_pair(args["dilation"])
    padding = _resolve_padding(args["padding"], weight.shape[2:], dilation)
    setting = {"stride": stride, "padding": padding, "dilation": dilation, "groups": args["groups"]}
    return [native_node("conv2d", (x,), node.output, weights, **setting)]


def _resolve_padding(padding: Json, kernel: torch.Size, dilation: list[int]) -> list[int]:
    if padding == "valid":
        return [0, 0]
    if padding == "same":
        both = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        require_match(not any(total % 2 for total in both))
        return [total // 2 for total in both]
    return to_pair(padding)


def _lower_conv1d(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a one-dimensional convolution by a two-dimensional convolution of images of height 1."""
    (x,), weights = editor.float_inputs(node, args["input"], axes=3), weight_and_bias_names(editor, args)
    weight = editor.tensors[weights["weight"]].unsqueeze(2)
    stride, dilation = to_pair(args["stride"])[1], to_pair(args["dilation"])[1]
    padding = _resolve_padding(args["padding"], torch.Size((1, weight.shape[3])), [1, dilation])[1]
    weights = {**weights, "weight": editor.add_weight(f"{weights['weight']}.2d", weight)}
    setting = {"stride": [1, stride], "padding": [0, padding], "dilation": [1, dilation], "groups": args["groups"]}
    return as_image_operation(editor, node, x, "conv2d", weights, **setting)


def linear_input(args: OpArguments) -> Json:
    """Return the input argument (not the weight) of a linear layer or matrix product."""
    return args.get("input", args.get("mat1", args.get("self")))


def linear_weights(editor: Editor, node: Node, args: OpArguments) -> dict[str, str]:
    """Return the names of weight and bias of a linear layer that equals `node`; raise `NoMatchError` if none does."""
    if aten_name(node) == "linear":
        named = weight_and_bias_names(editor, args)
    else:
        named = {"weight": weight_name(args.get("mat2", args.get("other"))) or ""}
        if aten_name(node) == "addmm":  # bias + x weight
            named["bias"] = weight_name(args["self"]) or ""
            require_match(args["beta"] == args["alpha"] == 1)
    require_match(
        all(name and editor.tensors[name].dim() == {"weight": 2, "bias": 1}[role] for role, name in named.items())
    )
    rows = editor.tensors[named["weight"]].shape[0 if aten_name(node) == "linear" else 1]
    require_match("bias" not in named or editor.tensors[named["bias"]].shape == (rows,))
    if aten_name(node) != "linear":
        weight = named["weight"]
        named["weight"] = editor.add_weight(f"{weight}.T", editor.tensors[weight].t().contiguous())
    return named


def _lower_linear(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    (x,) = editor.float_inputs(node, linear_input(args))
    require_match(len(editor.shape(x) or ()) >= 2)
    return [native_node("linear", (x,), node.output, linear_weights(editor, node, args))]


def _lower_batch_norm(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a batch norm in evaluation mode by a scale and a shift of each channel."""
    named = [weight_name(args[role]) for role in ("weight", "bias", "running_mean", "running_var")]
    (x,) = editor.float_inputs(node, args["input"])
    require_match(not args.get("training") and len(editor.shape(x) or ()) >= 2)
    weight, bias, mean, var = (None if name is None else editor.tensors[name].double() for name in named)
    if mean is None or var is None:
        raise NoMatchError
    scale = torch.rsqrt(var + finite_number(args["eps"]))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    dtype = getattr(torch, editor.values[x].dtype)
    prefix = str(named[2]).removesuffix("running_mean")
    weights = {
        role: editor.add_weight(f"{prefix}{role}", made.to(dtype))
        for role, made in (("scale", scale), ("shift", shift))
    }
    return [native_node("affine", (x,), node.output, weights)]


def _lower_layer_norm(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    (x,), size = editor.float_inputs(node, args["input"]), args["normalized_shape"]
    named = {role: weight_name(args[role]) for role in ("weight", "bias")}
    require_match(len(size) == 1 and len(editor.shape(x) or ()) >= 2)
    require_match(all((name is None) == (args[role] is None) for role, name in named.items()))
    dtype = getattr(torch, editor.values[x].dtype)
    weights = {}
    if any(named.values()):
        neutral = {"weight": torch.ones(size, dtype=dtype), "bias": torch.zeros(size, dtype=dtype)}
        for role, name in named.items():
            weights[role] = editor.add_weight(f"{node.output}.{role}", neutral[role]) if name is None else name
    require_match(all(editor.tensors[name].dtype == dtype for name in weights.values()))
    return [native_node("layer_norm", (x,), node.output, weights, eps=finite_number(args["eps"]))]


def _lower_softmax(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    (x,) = editor.float_inputs(node, args["self"])
    axis = int(args["dim"]) % len(editor.shape(x) or ())
    require_match(axis)
    return [native_node("softmax", (x,), node.output, axis=axis)]


def _lower_rms_norm(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    (x,), size = editor.float_inputs(node, args["input"]), args["normalized_shape"]
    name = weight_name(args["weight"])
    dtype = getattr(torch, editor.values[x].dtype)
    require_match(len(size) == 1 and len(editor.shape(x) or ()) >= 2 and (name is None) == (args["weight"] is None))
    require_match(name is None or editor.tensors[name].dtype == dtype)
    eps = torch.finfo(dtype).eps if args["eps"] is None else finite_number(args["eps"])
    return [native_node("rms_norm", (x,), node.output, {} if name is None else {"weight": name}, eps=eps)]


def _lower_attention(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    q, k, v = editor.float_inputs(node, *(args[role] for role in ("query", "key", "value")), axes=4)
    require_match(not args["dropout_p"] and len({(editor.shape(name) or ())[:1] for name in (q, k, v)}) == 1)
    heads, groups = ((editor.shape(name) or ())[1] for name in (q, k))
    require_match(heads and groups and not heads % groups)  # queries that are broadcast are left to torch
    return [masked_attention(editor, (q, k, v), node.output, args["attn_mask"], args["scale"], args["is_causal"])]


def masked_attention(
    editor: Editor, inputs: tuple[str, str, str], output: str, mask: Json, scale: Json, causal: bool = False
) -> Node:
    """Return an attention node that reads `inputs` (q, k, v) and computes `output`.

    Raise `NoMatchError` if the mask differs between examples, or hides all keys from a query.
    """
    bias = None if mask is None else _attention_bias(editor, mask, inputs)
    if bias is not None and not causal:
        # A mask that hides what follows is no matter of numbers.
        hidden = torch.ones(bias.shape[1:], dtype=torch.bool).triu(1)
        if bool((bias == torch.zeros_like(bias[0]).masked_fill(hidden, float("-inf"))).all()):
            bias, causal = None, True
    weights = {}
    if bias is not None and bool(bias.any()):
        require_match(bool(bias.isfinite().any(-1).all()))  # torch's rows without a key are 0, a quotient's are NaN
        weights["bias"] = editor.add_constant(f"{output}.bias", bias)
    return native_node("attention", inputs, output, weights, scale=scale, causal=causal)


def _attention_bias(editor: Editor, mask: Json, inputs: Sequence[str]) -> torch.Tensor:
    """Return a tensor [heads or 1, queries, keys] that has the effect of `mask` when it is added to the scores."""
    heads, queries = (editor.shape(inputs[0]) or ())[1:3]
    keys = (editor.shape(inputs[1]) or ())[2]
    name = weight_name(mask)
    known = editor.tensors[name] if name is not None else expanded_row(editor.makers, editor.tensors, value_name(mask))
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


def activation_of_op(name: str, found: Mapping[str, Any]) -> Json:
    """Return the activation that the torch operation `name` with the arguments `found` computes, or None."""
    if name == "gelu":
        return "gelu_tanh" if found["approximate"] == "tanh" else "gelu"
    if name in ACTS:
        return name
    if name == "leaky_relu" and is_activation(act := {"leaky_relu": found["negative_slope"]}):
        return act
    if name == "hardtanh":
        return _activation_of_clamp(found["min_val"], found["max_val"])
    if name == "clamp":
        return _activation_of_clamp(found["min"], found["max"])
    if name == "clamp_min":
        return _activation_of_clamp(found["min"], None)
    if name == "threshold":
        return "relu" if found["threshold"] == 0 and found["value"] == 0 else None
    return None


def _activation_of_clamp(least: Json, most: Json) -> str | None:
    if isinstance(least, (int, float)) and least == 0:
        return "relu" if most is None else "relu6" if most == 6 else None
    return None


def _lower_activation(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    (x,), act = editor.float_inputs(node, args["self"]), activation_of_op(aten_name(node), args)
    require_match(act)
    return [native_node("act", (x,), node.output, act=act)]


def _lower_pairwise(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a sum or product of two values; the larger value becomes the first input of the new node."""
    require_match(args.get("alpha", 1) == 1)
    require_match(
        all(expanded_row(editor.makers, editor.tensors, value_name(args[role])) is None for role in ("self", "other"))
    )
    pair = editor.float_inputs(node, args["self"], args["other"])
    made = editor.shape(node.output)
    if not made:
        raise NoMatchError
    if editor.shape(pair[0]) != made:
        pair.reverse()
    gate = (*made[:2], 1, 1) if len(made) == 4 else None
    require_match(editor.shape(pair[0]) == made and editor.shape(pair[1]) in (made, gate))
    return [native_node(aten_name(node), tuple(pair), node.output)]


def _remove_identity(editor: Editor, node: Node, args: OpArguments) -> str:
    """Return the name of the operation's argument; raise `NoMatchError` if the operation changes shape or data type."""
    x = value_name(args.get("self", args.get("input")))
    if x is None or args.get("train") is True or args.get("training") is True:
        raise NoMatchError
    require_match(editor.values[x].dtype == editor.values[node.output].dtype and editor.have_same_sizes(x, node.output))
    require_match(editor.values[x].dtype in DTYPES)  # a copy of a complex tensor computes its lazy conjugate
    return x


def _lower_arithmetic(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    """Return the name of x for x * 1, x / 1 and x + 0; replace other sums and products by the engine's operations."""
    name = aten_name(node)
    number = constant_number(args["other"], editor.tensors)
    if number == (0 if name in ("add", "sub") else 1):
        return _remove_identity(editor, node, args)
    require_match(name in ("add", "mul"))
    if value_name(args["self"]) and value_name(args["other"]):
        return _lower_pairwise(editor, node, args)
    return _lower_channel_constant(editor, node, args)


def _lower_channel_constant(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Lower the sum or product of a value and a weight that has one element per channel."""
    name = aten_name(node)
    arg, other = (args["self"], args["other"]) if value_name(args["self"]) else (args["other"], args["self"])
    (x,), weight = editor.float_inputs(node, arg), weight_name(other)
    if weight is None or args.get("alpha", 1) != 1:
        raise NoMatchError
    shape, tensor = editor.shape(x) or (), editor.tensors[weight]
    channels = shape[1:2] + (1,) * (len(shape) - 2)
    require_match(
        len(shape) > 1 and tuple(tensor.shape) in (channels, (1, *channels)) and shape == editor.shape(node.output)
    )
    require_match(str(tensor.dtype) == f"torch.{editor.values[x].dtype}")
    vector = tensor.flatten()
    factor = vector if name == "mul" else torch.ones_like(vector)
    term = vector if name == "add" else torch.zeros_like(vector)
    weights = {role: editor.add_weight(f"{weight}.{role}", made) for role, made in (("scale", factor), ("shift", term))}
    return [native_node("affine", (x,), node.output, weights)]


_NOTHING_TO_DO = (
    *("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy"),
    *("type_as", "lift_fresh_copy", "positive", "expand_as"),
)
"""Operations that have no effect in evaluation mode if they keep shape and data type."""


def lower_first_result(editor: Editor, node: Node, maker: Node) -> list[Node]:
    """Replace `node`, which takes entry 0 of the results of `maker`, by the engine's operations.

    Raise `NoMatchError` for any other entry.
    """
    rule = _FIRST_OF.get(aten_name(maker))
    if rule is None or node.attrs["args"][1] != 0:
        raise NoMatchError
    return rule(editor, replace(maker, output=node.output), bind_arguments(maker))


# -- resizes -----------------------------------------------------------------------------------------------------------

# A resize by an integer factor f is a convolution with f x f output channels per channel, over an image with repeated
# edges: each of the f positions inside a pixel has fixed weights for the neighbouring pixels. The channels are then
# interleaved, as for transposed convolutions.


_REACH = {"upsample_bilinear2d": 1, "upsample_bicubic2d": 2}
"""Resize operation -> number of neighbouring pixels on each side that contribute to an output pixel."""


def lower_resize(editor: Editor, node: Node) -> list[Node]:
    """Replace bilinear or bicubic upsampling by integer factors by the engine's operations."""
    reach = 0 if node.native else _REACH.get(aten_name(node), 0)
    require_match(reach and len(node.inputs) == 1)
    (x,) = editor.float_inputs(node, {"value": node.inputs[0]}, axes=4)
    shape, made = (editor.shape(name) or () for name in (x, node.output))
    require_match(shape[:2] == made[:2] and all(shape[1:]))
    channels, *sizes = (int(size or 0) for size in shape[1:])
    places = [int(size or 0) for size in made[2:]]
    require_match(all(0 < size <= more and not more % size for size, more in zip(sizes, places, strict=True)))
    require_match(channels * prod(places) <= MOST_MOVED)
    resize, dtype = aten.bind_torch_node(node, editor.tensors, "cpu"), getattr(torch, editor.values[x].dtype)
    taps = [_resize_weights(resize, sizes, axis, places[axis] // sizes[axis], reach, dtype) for axis in range(2)]
    kernel = torch.einsum("ra,sb->rsab", *taps)
    nodes = _repeat_borders(editor, x, node.output, sizes, reach)

    def append_node(op: str, weights: dict[str, str] | None = None, **attrs: Json) -> None:
        nodes.append(editor.make_node(op, (nodes[-1].output,), node.output, weights, **attrs))

    weight = editor.add_constant(f"{node.output}.taps", kernel.flatten(0, 1).repeat(channels, 1, 1).unsqueeze(1))
    append_node("conv2d", {"weight": weight}, stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=channels)
    append_node("reshape", shape=[shape[0], channels, *kernel.shape[:2], *sizes])
    append_node("transpose", axes=[0, 1, 4, 2, 5, 3])
    return [*nodes, native_node("reshape", (nodes[-1].output,), node.output, shape=list(made))]


def _resize_weights(
    resize: Callable[[Tensor], Tensor], sizes: Sequence[int], axis: int, scale: int, reach: int, dtype: torch.dtype
) -> Tensor:
    """Return the factors [scale, 2 reach + 1] of an upsampling along `axis`, measured by calls of `resize`.

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
    """Return nodes that repeat the first and last rows and columns of the images `x`, `reach` times each.

    `sizes` are the sizes of `x`, and new values have the data type of `like`.
    """
    nodes: list[Node] = []
    for axis, size in enumerate(sizes, start=2):
        ends = [editor.make_node("slice", (x,), like, axis=axis, start=at, stop=at + 1) for at in (0, size - 1)]
        low, high = ((end.output,) * reach for end in ends)
        nodes += [*ends, editor.make_node("concat", (*low, x, *high), like, axis=axis)]
        x = nodes[-1].output
    return nodes


# -- Poolings and means, over two axes or one --------------------------------------------------------------------------


def to_pair(value: Json) -> list[int]:
    """Return a setting such as a stride as two numbers; a single number applies to two axes."""
    sizes = value if isinstance(value, list) else [value]
    require_match(len(sizes) in (1, 2) and all(type(size) is int for size in sizes))
    return [sizes[0], sizes[-1]]


def pooling_window(sizes: Json, axes: int, beside: int) -> list[int]:
    """Return a pooling's kernel size, stride or padding as [height, width].

    If `axes` is 1, `sizes` has only the width, and the height is `beside`.
    """
    return to_pair(sizes) if axes == 2 else [beside, to_pair(sizes)[1]]


def lower_pool(editor: Editor, node: Node, args: OpArguments, *, axes: int = 2) -> list[Node]:
    (x,) = editor.float_inputs(node, args["self"], axes=2 + axes)
    kernel, padding = pooling_window(args["kernel_size"], axes, 1), pooling_window(args["padding"], axes, 0)
    window: dict[str, Json] = {
        "kernel": kernel,
        "stride": pooling_window(args["stride"] or args["kernel_size"], axes, 1),
        "padding": padding,
        "ceil": args["ceil_mode"],
    }
    if "dilation" in args:
        return _apply_pooling(
            axes, editor, node, x, "max_pool2d", **window, dilation=pooling_window(args["dilation"], axes, 1)
        )
    require_match(args.get("divisor_override") is None)
    made, shape = editor.shape(node.output) or (), editor.shape(x) or ()
    covers = all(size >= int(side or 0) for size, side in zip(kernel[-axes:], shape[2:], strict=True))
    if set(made[2:]) == {1} and covers and padding == [0, 0]:
        return _apply_pooling(axes, editor, node, x, "global_avg_pool", keepdim=True)
    return _apply_pooling(axes, editor, node, x, "avg_pool2d", **window, count_include_pad=args["count_include_pad"])


def lower_adaptive_pool(editor: Editor, node: Node, args: OpArguments, *, axes: int = 2) -> list[Node] | str:
    (x,) = editor.float_inputs(node, args["self"], axes=2 + axes)
    before, after = editor.shape(x) or (), editor.shape(node.output) or ()
    if before == after:
        return x
    if set(after[2:]) == {1}:
        return _apply_pooling(axes, editor, node, x, "global_avg_pool", keepdim=True)
    sizes = [(int(old or 0), int(new or 0)) for old, new in zip(before[2:], after[2:], strict=True)]
    require_match(all(new and not old % new for old, new in sizes))
    kernel = pooling_window([old // new for old, new in sizes], axes, 1)
    return _apply_pooling(axes, editor, node, x, "avg_pool2d", kernel=kernel, stride=kernel)


def _apply_pooling(axes: int, editor: Editor, node: Node, x: str, op: str, **attributes: Json) -> list[Node]:
    """Return nodes that apply the pooling `op` to `x`; if `axes` is 1, view the signals `x` as images of height 1."""
    if axes == 1:
        return as_image_operation(editor, node, x, op, **attributes)
    return [native_node(op, (x,), node.output, **attributes)]


def as_image_operation(
    editor: Editor, node: Node, x: str, op: str, weights: Mapping[str, str] | None = None, **attributes: Json
) -> list[Node]:
    """Return nodes that view signals `x` [N, C, L] as images [N, C, 1, L] and apply the operation `op` to them."""
    shape, made = editor.shape(x) or (), editor.shape(node.output) or ()
    picture = editor.make_node("reshape", (x,), node.output, shape=[*shape[:2], 1, shape[2]])
    result = editor.make_node(op, (picture.output,), node.output, weights, **attributes)
    return [picture, result, native_node("reshape", (result.output,), node.output, shape=list(made))]


def lower_mean(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a mean over pixels of images, over tokens, or over the length of signals by the engine's operations."""
    (x,) = editor.float_inputs(node, args["self"])
    shape, made = editor.shape(x) or (), editor.shape(node.output) or ()
    require_match(isinstance(args.get("dim"), list) and args.get("dtype") is None and all(shape[1:]))
    axes = sorted(axis % len(shape) for axis in args["dim"])
    if (len(shape), axes) == (4, [2, 3]):
        return [native_node("global_avg_pool", (x,), node.output, keepdim=args["keepdim"])]
    if (len(shape), axes, args["keepdim"]) == (3, [2], False):  # kept, it is mostly a part of a norm
        return as_image_operation(editor, node, x, "global_avg_pool", keepdim=True)
    require_match((len(shape), axes) in ((4, [1, 2]), (3, [1])))
    last = len(shape) - 1
    nodes = [editor.make_node("transpose", (x,), node.output, axes=[0, last, *axes])]
    if len(shape) == 3:
        nodes.append(
            editor.make_node("reshape", (nodes[-1].output,), node.output, shape=[shape[0], shape[2], 1, shape[1]])
        )
    pooled = editor.make_node("global_avg_pool", (nodes[-1].output,), node.output, keepdim=False)
    return [*nodes, pooled, native_node("reshape", (pooled.output,), node.output, shape=list(made))]


# -- transposed convolutions -------------------------------------------------------------------------------------------

# Along one axis, input pixel i times weight t is added to output pixel s i + d t - p (s: stride, d: dilation, p:
# padding). Output pixels s m + r, which form phase r, receive only weights with d t - p = r + s j, from input pixels
# m - j. So each phase is a convolution with stride 1 that has a tap for each j. The phases of both axes are channels of
# one convolution, and are interleaved afterwards (Shi et al., "Real-time single image and video super-resolution using
# an efficient sub-pixel convolutional neural network", CVPR 2016, section 3). A phase without a weight for a tap has a
# zero there, as if a mask had pruned the weight.


_FOLDED = ("affine", "act")
"""Operations of following nodes that are folded into a transposed convolution."""


def lower_transposed_convolutions(graph: Graph) -> Graph:
    """Return the graph with the engine's operations in place of transposed convolutions.

    A norm or activation after a transposed convolution is also replaced.
    """
    readers = {name: one.op for one in graph.nodes for name in one.inputs}
    return rewrite_nodes(graph, partial(_lower_transposed_conv, readers, {}))


@dataclass(frozen=True)
class _TransposedAxis:
    """One axis of a transposed convolution, which is replaced by an ordinary convolution with more channels."""

    size: int
    """Input size in pixels."""
    kernel: int
    stride: int
    dilation: int
    padding: int
    made: int
    """Output size in pixels."""

    def phase_and_offset(self, weight: int) -> tuple[int, int]:
        """Return (output position modulo the stride, offset of the input pixel) for the kernel position `weight`."""
        behind, phase = divmod(self.dilation * weight - self.padding, self.stride)
        return phase, -behind

    @property
    def conv_padding(self) -> int:
        """Return the padding, on each side, of the ordinary convolution that replaces the transposed one."""
        return max(
            0,
            -self.phase_and_offset(self.kernel - 1)[1],
            -(-self.made // self.stride) - self.size + self._last_input_offset,
        )

    @property
    def conv_kernel(self) -> int:
        return self.conv_padding + self._last_input_offset + 1

    @property
    def _last_input_offset(self) -> int:
        return self.phase_and_offset(0)[1]


@dataclass(frozen=True)
class _TransposedConv:
    """A transposed convolution, combined with the norm and the activation that follow it."""

    x: str
    name: str
    weight: Tensor
    """Shape [input channels, output channels / groups, kernel height, kernel width]."""
    bias: Tensor | None
    axes: tuple[_TransposedAxis, _TransposedAxis]
    groups: int
    act: Json = None

    def with_scaled_channels(self, scale: Tensor, shift: Tensor) -> _TransposedConv:
        """Return the convolution with its output channels multiplied by `scale` and increased by `shift`.

        The new weights are computed in float64, and then rounded.
        """
        kind, (inputs, outputs, *_) = self.weight.dtype, self.weight.shape
        by_group = scale.view(self.groups, 1, outputs, 1, 1)
        weight = self.weight.double().view(self.groups, inputs // self.groups, *self.weight.shape[1:]) * by_group
        bias = shift if self.bias is None else self.bias.double() * scale + shift
        return replace(self, weight=weight.view_as(self.weight).to(kind), bias=bias.to(kind))

    def phase_weight(self) -> Tensor:
        """Return the weight of an ordinary convolution that computes the outputs of the transposed convolution.

        Output pixels with different positions modulo the stride are separate output channels.
        """
        inputs, outputs, *kernel = self.weight.shape
        down, across = self.axes
        made = self.weight.new_zeros(
            self.groups,
            down.stride,
            across.stride,
            outputs,
            inputs // self.groups,
            down.conv_kernel,
            across.conv_kernel,
        )
        given = self.weight.view(self.groups, inputs // self.groups, outputs, *kernel).transpose(1, 2)
        for row in range(kernel[0]):
            for column in range(kernel[1]):
                (phase, step), (other_phase, other_step) = down.phase_and_offset(row), across.phase_and_offset(column)
                made[:, phase, other_phase, :, :, down.conv_padding + step, across.conv_padding + other_step] = given[
                    ..., row, column
                ]
        return made.flatten(0, 3)

    def to_native_nodes(self, editor: Editor, output: str) -> list[Node]:
        """Return nodes of the engine that compute the transposed convolution; the last node computes `output`."""
        down, across = self.axes
        strides, outputs = (down.stride, across.stride), self.weight.shape[1]
        batch, *sizes = editor.shape(self.x) or ()
        nodes: list[Node] = []

        def append_node(op: str, weights: Mapping[str, str] | None = None, **attrs: Json) -> list[int]:
            """Append a node that reads the previous node's output; return its output sizes without the batch."""
            nodes.append(editor.make_node(op, (nodes[-1].output if nodes else self.x,), output, weights, **attrs))
            return [int(size or 0) for size in (editor.shape(nodes[-1].output) or ())[1:]]

        if len(sizes) == 2:
            append_node("reshape", shape=[batch, sizes[0], 1, sizes[1]])
        weights = {"weight": editor.add_weight(f"{self.name}.phases", self.phase_weight())}
        if self.bias is not None:
            by_group = self.bias.view(self.groups, 1, outputs).expand(-1, strides[0] * strides[1], -1)
            weights["bias"] = editor.add_weight(f"{self.name.removesuffix('weight')}bias.phases", by_group.flatten())
        padding = [down.conv_padding, across.conv_padding]
        setting: dict[str, Json] = {"stride": [1, 1], "padding": padding, "dilation": [1, 1], "groups": self.groups}
        _, height, width = append_node("conv2d", weights, act=self.act, **setting)
        if strides != (1, 1):
            append_node("reshape", shape=[batch, self.groups, *strides, outputs, height, width])
            append_node("transpose", axes=[0, 1, 4, 5, 2, 6, 3])
            append_node("reshape", shape=[batch, self.groups * outputs, height * strides[0], width * strides[1]])
        for number, axis in enumerate(self.axes, start=2):
            if axis.made != (editor.shape(nodes[-1].output) or ())[number]:
                append_node("slice", axis=number, start=0, stop=axis.made)
        if len(sizes) == 2:
            append_node("reshape", shape=list(editor.shape(output) or ()))
        return nodes


def _lower_transposed_conv(
    readers: Mapping[str, str], known: dict[str, _TransposedConv], editor: Editor, node: Node
) -> list[Node] | str:
    """Replace a transposed convolution, with the norm and activation that follow it, by the engine's operations.

    If the next node can be combined with it too, store the convolution in `known`, by output name, and raise
    `NoMatchError`. `readers` has the operation that reads each value, by value name.
    """
    found = _fold_norm_or_activation(known, editor, node) if node.native else _parse_transposed_conv(editor, node)
    if found.act is None and editor.uses[node.output] == 1 and readers.get(node.output) in _FOLDED:
        known[node.output] = found
        raise NoMatchError  # the next node is folded first
    return with_last_output(found.to_native_nodes(editor, node.output), found.x, node.output)


def _parse_transposed_conv(editor: Editor, node: Node) -> _TransposedConv:
    name = aten_name(node)
    require_match(name in ("conv_transpose1d", "conv_transpose2d", "convolution"))
    found = bind_arguments(node)
    require_match(name != "convolution" or found["transposed"])
    (x,), weights = editor.float_inputs(node, found["input"]), weight_and_bias_names(editor, found)
    weight = editor.tensors[weights["weight"]]
    shape, made = editor.shape(x) or (), editor.shape(node.output) or ()
    require_match(weight.dim() == len(shape) == len(made) and len(shape) in (3, 4) and all(shape[1:]) and all(made[1:]))
    if weight.dim() == 3:
        weight = weight.unsqueeze(2)
    bias = editor.tensors[weights["bias"]] if "bias" in weights else None
    axes = _transposed_axes(found, weight, shape, made)
    return _TransposedConv(x, weights["weight"], weight, bias, axes, int(found["groups"]))


def _transposed_axes(
    args: OpArguments, weight: Tensor, shape: tuple[int | None, ...], made: tuple[int | None, ...]
) -> tuple[_TransposedAxis, _TransposedAxis]:
    """Return the axes height and width of a transposed convolution; for a signal, the height is 1."""
    stride, dilation, padding = (to_pair(args[role]) for role in ("stride", "dilation", "padding"))

    def axis_at(number: int) -> _TransposedAxis:
        """Return the `_TransposedAxis` at the negative index `number`, such as -1 for the width."""
        size, places = int(shape[number] or 0), int(made[number] or 0)
        return _TransposedAxis(size, weight.shape[number], stride[number], dilation[number], padding[number], places)

    return (axis_at(-2) if len(shape) == 4 else _TransposedAxis(1, 1, 1, 1, 0, 1)), axis_at(-1)


def _fold_norm_or_activation(known: Mapping[str, _TransposedConv], editor: Editor, node: Node) -> _TransposedConv:
    """Return the transposed convolution that precedes the norm or activation `node`, combined with `node`.

    `known` has the transposed convolutions by output name.
    """
    found = known.get(node.inputs[0]) if node.op in _FOLDED else None
    if found is None:
        raise NoMatchError
    if node.op == "affine":
        scale, shift = (editor.tensors[node.weights[role]].double() for role in ("scale", "shift"))
        found = found.with_scaled_channels(scale, shift)
    return replace(found, act=node.attrs["act"])


_FIRST_OF: Mapping[str, Callable[[Editor, Node, OpArguments], list[Node]]] = {
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
