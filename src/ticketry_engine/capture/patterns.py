"""Replaces formulas of several nodes by single nodes, and fuses nodes into neighbouring layers.

The formulas are those of activations, norms, rotary embeddings and attention. Pads, norms, residual sums and
activations are fused.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from math import isclose, pi, sqrt

import torch
from torch import Tensor
from torch.nn.functional import pad

from ticketry_engine.capture.editor import (
    Editor,
    NoMatchError,
    OpArguments,
    Rule,
    aten_name,
    bind_arguments,
    constant_number,
    finite_number,
    require_match,
    value_name,
    weight_name,
)
from ticketry_engine.capture.lower_moves import constant_argument, is_constant
from ticketry_engine.ir import FLOATS, Json, Node, native_node

# -- activations -------------------------------------------------------------------------------------------------------


def _match_scaled_value(editor: Editor, name: str, kind: str) -> tuple[str, float]:
    """Return (x, number) if the value `name` is x + number (`kind` "add") or x * number (`kind` "mul").

    Raise `NoMatchError` if it is neither.
    """
    return _match_scale(editor, editor.match_maker(name, kind, *(["div"] if kind == "mul" else [])), kind)


def _match_scale(editor: Editor, node: Node, kind: str) -> tuple[str, float]:
    """Return (x, number) if `node` computes x + number, for `kind` "add", or x * number or x / (1 / number), for "mul".

    Raise `NoMatchError` if it computes anything else.
    """
    require_match(not node.native and aten_name(node) in (kind, "div" if kind == "mul" else kind))
    found = bind_arguments(node)
    x, number = value_name(found["self"]), constant_number(found["other"], editor.tensors)
    if x is None and aten_name(node) != "div":  # a number first
        x, number = value_name(found["other"]), constant_number(found["self"], editor.tensors)
    if x is None or not number or found.get("alpha", 1) != 1:
        raise NoMatchError
    return x, (1 / number if aten_name(node) == "div" else number)


def _match_scaled_by(editor: Editor, name: str, number: float) -> str:
    """Return x if the value `name` is x * number, else raise `NoMatchError`."""
    x, found = _match_scaled_value(editor, name, "mul")
    require_match(isclose(found, number, rel_tol=1e-6))
    return x


def _match_division_by_six(editor: Editor, node: Node) -> str:
    """Return x if the node computes x / 6."""
    x, number = _match_scale(editor, node, "mul")
    require_match(isclose(number, 1 / 6, rel_tol=1e-6) and editor.share_float_dtype(x, node.output))
    return x


def _match_relu6_of_shifted(editor: Editor, name: str) -> str:
    """Return x if the value `name` is relu6(x + 3)."""
    x, number = _match_scaled_value(editor, editor.match_maker(name, "act", act="relu6").inputs[0], "add")
    require_match(number == 3)
    return x


def _recognise_hardsigmoid(editor: Editor, node: Node) -> list[Node]:
    """Replace relu6(x + 3) / 6 by a hardsigmoid."""
    x = _match_relu6_of_shifted(editor, _match_division_by_six(editor, node))
    return [native_node("act", (x,), node.output, act="hardsigmoid")]


def _recognise_gated_activation(editor: Editor, node: Node) -> list[Node]:
    """Replace x * sigmoid(x) by SiLU, and x * hardsigmoid(x) or (x * relu6(x + 3)) / 6 by hardswish."""
    if node.op == "mul":
        require_match(node.attrs["act"] is None)
        for x, gate in (node.inputs, node.inputs[::-1]):
            maker = editor.makers.get(gate)
            act = str(maker.attrs["act"]) if maker is not None and maker.op == "act" and maker.inputs == (x,) else ""
            if act in ("sigmoid", "hardsigmoid"):
                return [native_node("act", (x,), node.output, act="silu" if act == "sigmoid" else "hardswish")]
        raise NoMatchError
    product = editor.match_maker(_match_division_by_six(editor, node), "mul")
    require_match(product.native)
    for x, gate in (product.inputs, product.inputs[::-1]):
        with contextlib.suppress(NoMatchError):
            if _match_relu6_of_shifted(editor, gate) == x:
                return [native_node("act", (x,), node.output, act="hardswish")]
    raise NoMatchError


def _recognise_gelu(editor: Editor, node: Node) -> list[Node]:
    """Replace x / 2 * (1 + curve) by GELU, where curve is erf(x / sqrt 2) or tanh((x + 0.044715 x^3) sqrt(2 / pi))."""
    require_match(node.op == "mul" and node.attrs["act"] is None)
    for half, sum_ in (node.inputs, node.inputs[::-1]):
        with contextlib.suppress(NoMatchError):
            x, (curved, plus) = _match_scaled_by(editor, half, 0.5), _match_scaled_value(editor, sum_, "add")
            require_match(plus == 1 and editor.share_float_dtype(x, node.output))
            curve = editor.makers.get(curved)
            if curve is not None and aten_name(curve) == "erf":
                require_match(_match_scaled_by(editor, curve.inputs[0], sqrt(0.5)) == x)
                return [native_node("act", (x,), node.output, act="gelu")]
            tanh = editor.match_maker(curved, "act", act="tanh")
            require_match(_is_gelu_cubic(editor, tanh.inputs[0], x))
            return [native_node("act", (x,), node.output, act="gelu_tanh")]
    raise NoMatchError


def _is_gelu_cubic(editor: Editor, name: str, x: str) -> bool:
    """Return whether the value `name` is sqrt(2 / pi) (x + 0.044715 x^3); if not, `NoMatchError` may also be raised."""
    total = editor.match_maker(_match_scaled_by(editor, name, sqrt(2 / pi)), "add")
    require_match(total.native and x in total.inputs)
    cubic = _match_scaled_by(editor, total.inputs[1 - total.inputs.index(x)], 0.044715)
    found = bind_arguments(editor.match_maker(cubic, "pow"))
    return value_name(found["self"]) == x and found["exponent"] == 3


# -- attention: softmax(q k^T * scale) v -------------------------------------------------------------------------------

_PRODUCTS = ("matmul", "bmm")


def _split_off_factor(editor: Editor, name: str) -> tuple[str, float]:
    """Return (x, factor) if the value `name` is x * factor, else (name, 1)."""
    try:
        return _match_scaled_value(editor, name, "mul")
    except NoMatchError:
        return name, 1.0


def _recognise_unmasked_attention(editor: Editor, node: Node) -> list[Node]:
    """Replace softmax(q k^T * scale) v by an attention node."""
    weights, v = _matmul_inputs(editor, node)
    soft = editor.match_maker(weights, "softmax")
    require_match(soft.native and soft.attrs["axis"] == 3)
    name, scale = _split_off_factor(editor, soft.inputs[0])
    q, turned = _matmul_inputs(editor, editor.match_maker(name, *_PRODUCTS))
    q, factor = _split_off_factor(editor, q)
    maker = editor.match_maker(turned, "transpose")
    require_match(maker.native and editor.share_float_dtype(q, maker.inputs[0], v, node.output))
    shapes = [editor.shape(part) or () for part in (q, turned, v)]
    require_match(all(len(shape) == 4 for shape in shapes) and shapes[0][:2] == shapes[1][:2] == shapes[2][:2])
    axes = list(maker.attrs["axes"])
    if axes == [0, 1, 3, 2]:
        return [native_node("attention", (q, maker.inputs[0], v), node.output, scale=factor * scale)]
    keys = [axes[0], axes[1], axes[3], axes[2]]  # a transpose that also put the heads in place
    k = editor.make_node("transpose", maker.inputs, node.output, axes=keys)
    return [k, native_node("attention", (q, k.output, v), node.output, scale=factor * scale)]


_WITH_ACT = ("conv2d", "linear", "add", "mul", "affine")


def _fusable_layer(editor: Editor, name: str | None) -> Node:
    """Return the layer that computes `name`, if a residual or activation can be computed as part of it.

    Raise `NoMatchError` otherwise.
    """
    layer = None if name is None else editor.maker_if_read_once(name)
    if layer is None or layer.op not in ("conv2d", "linear"):
        raise NoMatchError
    require_match(layer.attrs["act"] is None and len(layer.inputs) == 1)
    return layer


def _fuse_residual(editor: Editor, node: Node) -> list[Node]:
    """Compute a sum as part of the layer that computes one of its inputs, if only the sum reads the layer's output."""
    require_match(node.op == "add" and editor.shape(node.inputs[0]) == editor.shape(node.inputs[1]))
    layers = []
    for name in node.inputs:
        with contextlib.suppress(NoMatchError):
            layers.append(_fusable_layer(editor, name))
    require_match(layers)
    order = list(editor.makers)  # the later one: the other can then be done before it
    layer = max(layers, key=lambda maker: order.index(maker.output)) if len(layers) > 1 else layers[0]
    other = node.inputs[1] if node.inputs[0] == layer.output else node.inputs[0]
    require_match(other != layer.output)
    return [replace(layer, inputs=(*layer.inputs, other), output=node.output, attrs={**layer.attrs, **node.attrs})]


def _fuse_activation(editor: Editor, node: Node) -> list[Node]:
    """Compute an activation as part of the preceding node, if only the activation reads the node's output."""
    before = editor.maker_if_read_once(node.inputs[0]) if node.op == "act" else None
    if before is None or before.op not in _WITH_ACT or before.attrs["act"] is not None:
        raise NoMatchError
    return [replace(before, output=node.output, attrs={**before.attrs, "act": node.attrs["act"]})]


def _fold_norm_into_layer(editor: Editor, node: Node) -> list[Node]:
    """Combine an `affine` node, which scales and shifts channels, with the weights of the preceding layer."""
    if aten_name(node) == "mul":
        return _fold_factor_into_linear(editor, node)
    require_match(node.op == "affine")
    scale, shift = (editor.tensors[node.weights[role]].double() for role in ("scale", "shift"))
    turned = editor.maker_if_read_once(node.inputs[0])
    if turned is None or turned.op != "transpose":
        layer = _fusable_layer(editor, node.inputs[0])
        # A linear layer's channels are its last axis, a norm's its second.
        require_match(layer.op == "conv2d" or len(editor.shape(node.output) or ()) == 2)
        return [_rescale_layer(editor, layer, node.output, scale, shift, node.attrs["act"])]
    # A linear layer's features, its last axis, have been brought to where a norm's channels are.
    layer, axes = _fusable_layer(editor, turned.inputs[0]), turned.attrs["axes"]
    require_match(layer.op == "linear" and axes[1] == len(axes) - 1)
    rows = editor.add_value(layer.output, editor.shape(layer.output) or (), "scaled")
    return [
        _rescale_layer(editor, layer, rows, scale, shift, node.attrs["act"]),
        Node("transpose", (rows,), node.output, turned.attrs, {}),
    ]


def _fold_factor_into_linear(editor: Editor, node: Node) -> list[Node]:
    """Multiply the weights of a linear layer by the factor, or factor per feature, that follows the layer."""
    found = bind_arguments(node)
    x, factor = (found["self"], found["other"]) if value_name(found["self"]) else (found["other"], found["self"])
    layer, weight = _fusable_layer(editor, value_name(x)), weight_name(factor)
    single = constant_number(factor, editor.tensors)
    if layer.op != "linear" or (weight is None and single is None):
        raise NoMatchError
    tensor = torch.tensor([single]) if weight is None else editor.tensors[weight]
    width = editor.tensors[layer.weights["weight"]].shape[0]
    require_match(editor.share_float_dtype(node.output) and editor.shape(node.output) == editor.shape(layer.output))
    require_match(tensor.numel() == 1 or (tensor.numel() == width == tensor.shape[-1]))
    require_match(tensor.is_floating_point())
    scale = tensor.double().flatten().expand(width)
    return [_rescale_layer(editor, layer, node.output, scale, torch.zeros_like(scale), None)]


def _rescale_layer(editor: Editor, layer: Node, output: str, scale: Tensor, shift: Tensor, act: Json) -> Node:
    """Return `layer` with its output channels multiplied by `scale` and shifted by `shift`, computed in float64."""
    name = layer.weights["weight"]
    weight = editor.tensors[name]
    folded = (weight * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    weights = {"weight": editor.replace_weight(name, folded)}
    if "bias" in layer.weights:
        bias = editor.tensors[layer.weights["bias"]].double() * scale + shift
        weights["bias"] = editor.replace_weight(layer.weights["bias"], bias.to(weight.dtype))
    elif bool(shift.any()):
        weights["bias"] = editor.add_weight(f"{name.removesuffix('weight')}bias", shift.to(weight.dtype))
    return Node(layer.op, layer.inputs, output, {**layer.attrs, "act": act}, weights)


def _fold_padding_into_conv(editor: Editor, node: Node) -> list[Node]:
    """Let a convolution do the zero padding that precedes it; if it is uneven, extend the kernel by zeros."""
    before = editor.maker_if_read_once(node.inputs[0]) if node.op == "conv2d" else None
    if before is None or aten_name(before) not in ("constant_pad_nd", "pad"):
        raise NoMatchError
    found = bind_arguments(before)
    x, sides, own = value_name(found["self"]), found["pad"], node.attrs["padding"]
    require_match(found.get("mode", "constant") == "constant" and (found["value"] or 0) == 0)
    if x is None or len(sides) != 4 or not all(type(side) is int and side >= 0 for side in sides):
        raise NoMatchError
    left, right, top, bottom = sides
    require_match(
        editor.share_float_dtype(x) and (list(node.attrs["dilation"]) == [1, 1] or (left == right and top == bottom))
    )
    require_match((left == right or not own[1]) and (top == bottom or not own[0]))
    width, height = max(left, right), max(top, bottom)
    weights = dict(node.weights)
    grown = (width - left, width - right, height - top, height - bottom)
    if any(grown):
        # With more padding than before, the zeros of the kernel read it.
        weights["weight"] = editor.add_weight(
            f"{weights['weight']}.padded", pad(editor.tensors[weights["weight"]], grown)
        )
    attrs = {**node.attrs, "padding": [own[0] + height, own[1] + width]}
    made = Node("conv2d", (x,), node.output, attrs, weights)
    require_match(editor.infer_shape(made) == editor.shape(node.output))  # more padding, but no more places
    return [made]


# -- x / sqrt(mean(x^2) + eps) * weight --------------------------------------------------------------------------------


def _recognise_rms_norm(editor: Editor, node: Node) -> list[Node]:
    """Replace x / sqrt(mean(x^2) + eps), and a following product with a weight, by an RMS norm."""
    require_match(not node.native and aten_name(node) in ("mul", "div"))
    found = bind_arguments(node)
    pair = [found["self"], found["other"]]
    if any(weight_name(arg) is not None for arg in pair):
        return _fuse_norm_weight(editor, node)
    for arg, other in (pair, pair[::-1]) if aten_name(node) == "mul" else (pair,):
        with contextlib.suppress(NoMatchError):
            (x,) = editor.float_inputs(node, arg)
            square, eps = _match_inverse_root(
                editor, value_name(other), "rsqrt" if aten_name(node) == "mul" else "sqrt"
            )
            require_match(square == x and editor.shape(x) == editor.shape(node.output))
            return [native_node("rms_norm", (x,), node.output, eps=eps)]
    raise NoMatchError


def _match_inverse_root(editor: Editor, name: str | None, root: str) -> tuple[str, float]:
    """Return (x, eps) if the value `name` is root(mean(x^2) + eps), with a mean over the last axis.

    `root` is "sqrt" or "rsqrt". Raise `NoMatchError` if the value is anything else.
    """
    found = editor.match_maker(name, root, "pow")
    require_match(aten_name(found) == root or _aten_arguments(found)["exponent"] == (-0.5 if root == "rsqrt" else 0.5))
    total = _aten_arguments(editor.match_maker(value_name(_aten_arguments(found)["self"]), "add"))
    eps = constant_number(total["other"], editor.tensors)
    mean = _aten_arguments(editor.match_maker(value_name(total["self"]), "mean"))
    square = editor.match_maker(value_name(mean["self"]), "pow", "square", "mul")
    if eps is None or eps < 0 or total["alpha"] != 1 or mean["dim"] is None or mean["keepdim"] is not True:
        raise NoMatchError
    require_match(mean["dtype"] is None)
    if square.native:
        require_match(len(set(square.inputs)) == 1)
        x: str | None = square.inputs[0]
    else:
        require_match(
            aten_name(square) != "mul" and (aten_name(square) == "square" or bind_arguments(square)["exponent"] == 2)
        )
        x = value_name(bind_arguments(square)["self"])
    shape = editor.shape(x or "") if x in editor.values else None
    if x is None or not shape or [axis % len(shape) for axis in mean["dim"]] != [len(shape) - 1]:
        raise NoMatchError
    return x, eps


def _aten_arguments(node: Node) -> OpArguments:
    """Return the arguments of a torch operation by name; raise `NoMatchError` for an operation of the engine."""
    require_match(not node.native)
    return bind_arguments(node)


def _fuse_norm_weight(editor: Editor, node: Node) -> list[Node]:
    """Let an RMS norm apply the weight by which `node` multiplies its output."""
    found = bind_arguments(node)
    x, other = found["self"], found["other"]
    if value_name(x) is None:
        x, other = other, x
    norm = editor.maker_if_read_once(value_name(x) or "")
    name = weight_name(other)
    if norm is None or norm.op != "rms_norm" or norm.weights or name is None or aten_name(node) != "mul":
        raise NoMatchError
    weight = editor.tensors[name]
    width = (editor.shape(norm.output) or (0,))[-1]
    require_match(weight.numel() == width and weight.shape[-1] == width)
    require_match(str(weight.dtype) == f"torch.{editor.values[norm.output].dtype}")
    vector = name if weight.dim() == 1 else editor.add_weight(f"{name}.vector", weight.flatten())
    return [replace(norm, output=node.output, weights={"weight": vector})]


# -- x * cos + cat(-upper half, lower half) * sin ----------------------------------------------------------------------


def _recognise_rotary(editor: Editor, node: Node) -> list[Node]:
    """Replace x * cos + cat(-upper half, lower half) * sin by a node for rotary position embedding."""
    require_match(node.op == "add" and node.attrs["act"] is None and len(node.inputs) == 2)
    for straight, crossed in (node.inputs, node.inputs[::-1]):
        with contextlib.suppress(NoMatchError):
            x, cos = _match_constant_product(editor, straight)
            turned, sin = _match_constant_product(editor, crossed)
            half, signs = _match_swapped_halves(editor, turned, x)
            return [_rotary_node(editor, x, cos, sin * signs, half, node.output)]
    raise NoMatchError


def _match_constant_product(editor: Editor, name: str) -> tuple[str, Tensor]:
    """Return (x, constant) if a torch operation computes the value `name` as x * constant."""
    found = _aten_arguments(editor.match_maker(name, "mul"))
    x, other = found["self"], found["other"]
    if is_constant(editor, x):
        x, other = other, x
    named = value_name(x)
    if named is None:
        raise NoMatchError
    return named, constant_argument(editor, other, named)


def _match_swapped_halves(editor: Editor, name: str, x: str) -> tuple[int, Tensor]:
    """Return `half` and the sign of each entry if the value `name` is ``cat(-x[..., half:], x[..., :half])``.

    Raise `NoMatchError` if it is anything else.
    """
    joined = editor.match_maker(name, "concat")
    shape = editor.shape(x) or ()
    require_match(joined.native and len(joined.inputs) == 2 and joined.attrs["axis"] == len(shape) - 1)
    half = int(shape[-1] or 0) // 2
    signs = []
    for part, begin in zip(joined.inputs, (half, 0), strict=True):
        name, sign = part, 1.0
        maker = editor.makers.get(part)
        if maker is not None and not maker.native and aten_name(maker) == "neg":
            name, sign = maker.inputs[0], -1.0
        cut = editor.match_maker(name, "slice")
        require_match(cut.native and cut.inputs == (x,) and cut.attrs["axis"] == len(shape) - 1)
        require_match((cut.attrs["start"], cut.attrs["stop"]) == (begin, begin + half) and 2 * half == shape[-1])
        signs += [sign] * half
    return half, torch.tensor(signs, dtype=getattr(torch, editor.values[x].dtype))


def _rotary_node(editor: Editor, x: str, cos: Tensor, sin: Tensor, half: int, output: str) -> Node:
    width = (editor.shape(x) or (0,))[-1]
    size = (*(max(pair) for pair in zip(cos.shape[:-1], sin.shape[:-1], strict=True)), int(width or 0))
    weights = {
        role: editor.add_constant(f"{output}.{role}", tensor.expand(size))
        for role, tensor in (("cos", cos), ("sin", sin))
    }
    return native_node("rotary", (x,), output, weights, half=half)


def _recognise_partial_rotary(editor: Editor, node: Node) -> list[Node]:
    """Replace cat(rotary(x[..., :n]), x[..., n:]) by a node for rotary position embedding that reads all of x."""
    require_match(node.op == "concat" and len(node.inputs) == 2)
    turned, rest = (editor.match_maker(name, op) for name, op in zip(node.inputs, ("rotary", "slice"), strict=True))
    cut = editor.match_maker(turned.inputs[0], "slice")
    require_match(cut.native and rest.native and cut.inputs == rest.inputs)
    shape, axis = editor.shape(cut.inputs[0]) or (), len(editor.shape(node.output) or ()) - 1
    require_match(all(made.attrs["axis"] == axis for made in (node, cut, rest)) and cut.attrs["start"] == 0)
    require_match(cut.attrs["stop"] == rest.attrs["start"] and rest.attrs["stop"] == shape[axis])
    cos, sin = (editor.tensors[turned.weights[role]] for role in ("cos", "sin"))
    more = (*cos.shape[:-1], int(shape[axis] or 0) - cos.shape[-1])
    ones = torch.cat([cos, cos.new_ones(more)], -1)
    zeros = torch.cat([sin, sin.new_zeros(more)], -1)
    return [_rotary_node(editor, cut.inputs[0], ones, zeros, int(finite_number(turned.attrs["half"])), node.output)]


# -- attention with fewer heads of keys and values than of queries -----------------------------------------------------


def _recognise_grouped_query_attention(editor: Editor, node: Node) -> list[Node]:
    """Let an attention node read keys and values before their heads are repeated to match the heads of the queries."""
    require_match(node.op == "attention")
    q, k, v = node.inputs
    fewer = [_match_repeated_heads(editor, name) for name in (k, v)]
    require_match(editor.shape(fewer[0]) and (editor.shape(fewer[0]) or ())[1] == (editor.shape(fewer[1]) or ())[1])
    return [replace(node, inputs=(q, *fewer))]


def _match_repeated_heads(editor: Editor, name: str) -> str:
    """Return the value [N, g, T, d] whose heads are repeated to give the value `name`."""
    joined = editor.match_maker(name, "reshape", "repeat_interleave")
    if not joined.native and aten_name(joined) == "repeat_interleave":
        found = bind_arguments(joined)
        x = value_name(found["self"])
        require_match(found.get("dim") == 1 and type(found.get("repeats")) is int and x is not None)
        return str(x)
    spread = editor.match_maker(joined.inputs[0], "expand")
    require_match(not spread.native)
    cut = editor.match_maker(value_name(bind_arguments(spread)["self"]), "reshape")
    x = cut.inputs[0]
    before, made = editor.shape(x) or (), editor.shape(spread.output) or ()
    require_match(len(before) == 4 and len(made) == 5 and (*made[:2], *made[3:]) == before)
    require_match((editor.shape(cut.output) or ()) == (*before[:2], 1, *before[2:]))
    return x


# -- formulas of L2 normalisation and attention with constants ---------------------------------------------------------


def recognise_l2_normalisation(editor: Editor, node: Node) -> list[Node]:
    """Replace L2 normalisation over the last axis by an equivalent RMS norm."""
    require_match(not node.native and aten_name(node) == "div")
    found = bind_arguments(node)
    x = value_name(found["self"])
    spread = editor.match_maker(value_name(found["other"]), "expand_as", "expand", "clamp_min")
    if aten_name(spread) != "clamp_min":
        spread = editor.match_maker(value_name(bind_arguments(spread)["self"]), "clamp_min")
    least = finite_number(bind_arguments(spread)["min"])
    norm = bind_arguments(editor.match_maker(value_name(bind_arguments(spread)["self"]), "linalg_vector_norm"))
    size = editor.value_sizes(x or "")
    require_match(size is not None and norm["ord"] == 2 and norm["keepdim"] and norm["dtype"] is None and least > 0)
    width = (size or (None,))[-1]
    axes = [int(axis) % len(size or ()) for axis in norm["dim"] or ()]
    require_match(
        editor.have_same_sizes(x or "", node.output)
        and editor.values[x or ""].dtype == editor.values[node.output].dtype
    )
    require_match(
        value_name(norm["self"]) == x and axes == [len(size or ()) - 1] and editor.values[x or ""].dtype in FLOATS
    )
    if not isinstance(width, int):
        raise NoMatchError
    dtype = getattr(torch, editor.values[x or ""].dtype)
    name = editor.add_constant(f"{node.output}.length", torch.full((width,), width**-0.5, dtype=dtype))
    args = [{"value": x}, [width], {"tensor": name}, least**2 / width]
    return [Node("aten.rms_norm.default", (str(x),), node.output, {"args": args, "kwargs": {}}, {name: name})]


def recognise_masked_attention(editor: Editor, node: Node) -> list[Node]:
    """Replace softmax(f(q k^T)) v by an attention node, if f multiplies by constants and adds constants."""
    weights, v = _matmul_inputs(editor, node)
    soft = editor.match_maker(weights, "softmax")
    rank = len(editor.shape(v) or ())
    require_match(soft.native and rank in (4, 5) and soft.attrs["axis"] == rank - 1)
    product, factor, bias = _match_attention_scores(editor, soft.inputs[0])
    q, turned = _matmul_inputs(editor, product)
    transposed = editor.match_maker(turned, "transpose")
    shapes = [editor.shape(name) or () for name in (q, turned, v)]
    require_match(transposed.native and len({shape[: rank - 2] for shape in shapes}) == 1)
    axes = list(transposed.attrs["axes"])
    nodes: list[Node] = []
    k = transposed.inputs[0]
    axes[-2:] = axes[:-3:-1]
    if axes != sorted(axes):  # a transpose that also put the heads in place
        nodes.append(editor.make_node("transpose", (k,), node.output, axes=axes))
        k = nodes[-1].output
    scale = 1.0
    if factor.numel() == 1:
        scale = float(factor)
    else:
        require_match(factor.shape[-2:] == (1, 1))
        held = {"constant": editor.add_constant(f"{node.output}.factor", factor)}
        nodes.append(editor.make_node("mul_constant", (q,), node.output, held))
        q = nodes[-1].output
    return [*nodes, attention_node(editor, (q, k, v), node.output, bias, scale)]


def attention_node(
    editor: Editor, inputs: tuple[str, str, str], output: str, bias: Tensor | None, scale: float | None
) -> Node:
    """Return a node that computes attention of `inputs` (q, k, v), within windows if these have five axes.

    `bias` is added to the scores; each of its axes has the size of that axis of the scores, or 1. Raise `NoMatchError`
    if it masks all keys of a query, or contains NaN or +inf.
    """
    *several, queries, _ = editor.shape(inputs[0]) or ()
    keys = (editor.shape(inputs[1]) or ())[-2]
    held = {}
    if bias is not None and bool(bias.any()):
        require_match(not bool((bias.isnan() | (bias == float("inf"))).any()))
        require_match(bool(bias.isfinite().any(-1).all()))  # torch's rows without a key are 0, a quotient's are NaN
        whole = bias.expand(*bias.shape[:-2], int(queries or 0), int(keys or 0))
        held["bias"] = editor.add_constant(f"{output}.bias", whole)
    if len(several) == 2:
        return native_node("attention", inputs, output, held, scale=scale)
    return native_node("window_attention", inputs, output, held, scale=scale)


def _matmul_inputs(editor: Editor, node: Node) -> tuple[str, str]:
    """Return the names of the two values whose matrix product the node computes."""
    require_match(aten_name(node) in _PRODUCTS)
    found = bind_arguments(node)
    left, right = value_name(found["self"]), value_name(found.get("other", found.get("mat2")))
    if left is None or right is None or not editor.share_float_dtype(left, right, node.output):
        raise NoMatchError
    return left, right


def _match_attention_scores(editor: Editor, name: str) -> tuple[Node, Tensor, Tensor | None]:
    """Return (node of the product q k^T, factor, constant) if the value `name` is product * factor + constant."""
    factor, bias = torch.ones(()), None
    while True:
        with contextlib.suppress(NoMatchError):
            return editor.match_maker(name, *_PRODUCTS), factor, bias
        maker = editor.match_maker(name, "add_constant", "mul_constant", "affine")
        if maker.op != "mul_constant":
            constant = _broadcastable_weight(editor, maker, "constant" if maker.op == "add_constant" else "shift")
            bias = constant * factor if bias is None else bias + constant * factor
        if maker.op != "add_constant":
            factor = factor * _broadcastable_weight(
                editor, maker, "constant" if maker.op == "mul_constant" else "scale"
            )
        name = maker.inputs[0]


def _broadcastable_weight(editor: Editor, node: Node, role: str) -> Tensor:
    """Return a weight of `node`, in a shape that broadcasts to one example of the node's output.

    `role` is the name of the weight in the node, such as "constant".
    """
    found = editor.tensors[node.weights[role]]
    if node.op != "affine":
        return found
    return found.reshape(-1, *(1 for _ in (editor.shape(node.output) or ())[2:]))


FORMULAS: tuple[Rule, ...] = (
    *(_recognise_hardsigmoid, _recognise_gated_activation, _recognise_gelu, _recognise_unmasked_attention),
    *(_recognise_rms_norm, _recognise_rotary, _recognise_partial_rotary, _recognise_grouped_query_attention),
    *(_fold_padding_into_conv, _fold_norm_into_layer),
)
"""Rules for formulas of torch nodes, for pads and for norms, in the order in which they are applied."""

FUSIONS: tuple[Rule, ...] = (_fuse_residual, _fuse_activation)
"""Rules that fuse nodes into preceding layers."""
