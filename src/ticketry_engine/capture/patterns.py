"""Patterns of several nodes: formulas that a model has written out, as activations and attention, and what belongs to
the layer before or behind it: zero paddings, norms, residuals and activations."""

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
    arguments,
    base,
    need,
    number_of,
    rewrite,
    tensor_of,
    value_of,
)
from ticketry_engine.ir import Graph, Json, Node, node

# -- activations -------------------------------------------------------------------------------------------------------


def recognise_acts(graph: Graph) -> Graph:
    """The graph with one `act` for each formula of such an activation."""
    for rule in (_hardsigmoid, _gated, _gelu):
        graph = rewrite(graph, rule)
    return graph


def _scaled(editor: Editor, name: str, kind: str) -> tuple[str, float]:
    """(value, number) of a value to which a number was added ("add") or that was multiplied by one ("mul")."""
    return _scale_of(editor, editor.made_by(name, kind, *(["div"] if kind == "mul" else [])), kind)


def _scale_of(editor: Editor, one: Node, kind: str) -> tuple[str, float]:
    """The same of the node itself, which may be a division."""
    need(not one.native and base(one) in (kind, "div" if kind == "mul" else kind))
    found = arguments(one)
    x, number = value_of(found["self"]), number_of(found["other"], editor.tensors)
    if x is None and base(one) != "div":  # a number first
        x, number = value_of(found["other"]), number_of(found["self"], editor.tensors)
    if x is None or not number or found.get("alpha", 1) != 1:
        raise NoMatchError
    return x, (1 / number if base(one) == "div" else number)


def _scaled_by(editor: Editor, name: str, kind: str, number: float) -> str:
    """The value that has been scaled by just this number."""
    x, found = _scaled(editor, name, kind)
    need(isclose(found, number, rel_tol=1e-6))
    return x


def _sixth(editor: Editor, one: Node) -> str:
    """The value of which a torch node makes a sixth."""
    x, number = _scale_of(editor, one, "mul")
    need(isclose(number, 1 / 6, rel_tol=1e-6) and editor.floating(x, one.output))
    return x


def _clipped(editor: Editor, name: str) -> str:
    """x of relu6(x + 3)."""
    x, number = _scaled(editor, editor.made_by(name, "act", act="relu6").inputs[0], "add")
    need(number == 3)
    return x


def _hardsigmoid(editor: Editor, one: Node) -> list[Node]:
    """relu6(x + 3) / 6"""
    return [node("act", (_clipped(editor, _sixth(editor, one)),), one.output, act="hardsigmoid")]


def _gated(editor: Editor, one: Node) -> list[Node]:
    """x * sigmoid(x), x * hardsigmoid(x), (x * relu6(x + 3)) / 6"""
    if one.op == "mul":
        need(one.attrs["act"] is None)
        for x, gate in (one.inputs, one.inputs[::-1]):
            maker = editor.makers.get(gate)
            act = str(maker.attrs["act"]) if maker is not None and maker.op == "act" and maker.inputs == (x,) else ""
            if act in ("sigmoid", "hardsigmoid"):
                return [node("act", (x,), one.output, act="silu" if act == "sigmoid" else "hardswish")]
        raise NoMatchError
    product = editor.made_by(_sixth(editor, one), "mul")
    need(product.native)
    for x, gate in (product.inputs, product.inputs[::-1]):
        with contextlib.suppress(NoMatchError):
            if _clipped(editor, gate) == x:
                return [node("act", (x,), one.output, act="hardswish")]
    raise NoMatchError


def _gelu(editor: Editor, one: Node) -> list[Node]:
    """x / 2 * (1 + erf(x / sqrt 2)), or with tanh((x + 0.044715 x^3) sqrt(2 / pi))"""
    need(one.op == "mul" and one.attrs["act"] is None)
    for half, sum_ in (one.inputs, one.inputs[::-1]):
        with contextlib.suppress(NoMatchError):
            x, (curved, plus) = _scaled_by(editor, half, "mul", 0.5), _scaled(editor, sum_, "add")
            need(plus == 1 and editor.floating(x, one.output))
            curve = editor.makers.get(curved)
            if curve is not None and base(curve) == "erf":
                need(_scaled_by(editor, curve.inputs[0], "mul", sqrt(0.5)) == x)
                return [node("act", (x,), one.output, act="gelu")]
            tanh = editor.made_by(curved, "act", act="tanh")
            need(_is_cubic(editor, tanh.inputs[0], x))
            return [node("act", (x,), one.output, act="gelu_tanh")]
    raise NoMatchError


def _is_cubic(editor: Editor, name: str, x: str) -> bool:
    """Whether a value is sqrt(2 / pi) (x + 0.044715 x^3); `NoMatchError` if it is nothing of the kind."""
    total = editor.made_by(_scaled_by(editor, name, "mul", sqrt(2 / pi)), "add")
    need(total.native and x in total.inputs)
    cubic = _scaled_by(editor, total.inputs[1 - total.inputs.index(x)], "mul", 0.044715)
    found = arguments(editor.made_by(cubic, "pow"))
    return value_of(found["self"]) == x and found["exponent"] == 3


# -- attention: softmax(q k^T * scale) v -------------------------------------------------------------------------------

_PRODUCTS = ("matmul", "bmm")


def recognise_attention(graph: Graph) -> Graph:
    """The graph with one `attention` for each such formula without a mask."""
    return rewrite(graph, _attention)


def _product(one: Node) -> list[str]:
    """The two values that a torch node multiplies."""
    need(base(one) in _PRODUCTS)
    found = arguments(one)
    pair = value_of(found["self"]), value_of(found.get("other", found.get("mat2")))
    need(None not in pair)
    return [str(name) for name in pair]


def _unscaled(editor: Editor, name: str) -> tuple[str, float]:
    """The value that `name` is a multiple of, and the factor: itself and 1 where it is none."""
    try:
        return _scaled(editor, name, "mul")
    except NoMatchError:
        return name, 1.0


def _attention(editor: Editor, one: Node) -> list[Node]:
    weights, v = _product(one)
    soft = editor.made_by(weights, "softmax")
    need(soft.native and soft.attrs["axis"] == 3)
    name, scale = _unscaled(editor, soft.inputs[0])
    q, turned = _product(editor.made_by(name, *_PRODUCTS))
    q, factor = _unscaled(editor, q)
    maker = editor.made_by(turned, "transpose")
    need(maker.native and editor.floating(q, maker.inputs[0], v, one.output))
    shapes = [editor.shape(part) or () for part in (q, turned, v)]
    need(all(len(shape) == 4 for shape in shapes) and shapes[0][:2] == shapes[1][:2] == shapes[2][:2])
    axes = list(maker.attrs["axes"])
    if axes == [0, 1, 3, 2]:
        return [node("attention", (q, maker.inputs[0], v), one.output, scale=factor * scale)]
    keys = [axes[0], axes[1], axes[3], axes[2]]  # a transpose that also put the heads in place
    k = editor.make("transpose", maker.inputs, one.output, axes=keys)
    return [k, node("attention", (q, k.output, v), one.output, scale=factor * scale)]


_WITH_ACT = ("conv2d", "linear", "add", "mul", "affine")


def _open(editor: Editor, name: str | None) -> Node:
    """The layer that makes a value which nobody else reads, with neither residual nor activation yet."""
    layer = None if name is None else editor.sole(name)
    if layer is None or layer.op not in ("conv2d", "linear"):
        raise NoMatchError
    need(layer.attrs["act"] is None and len(layer.inputs) == 1)
    return layer


# -- residuals and activations -----------------------------------------------------------------------------------------


def fuse(graph: Graph) -> Graph:
    """The graph whose layers add residuals and apply activations themselves, where nobody reads what is in between."""
    return rewrite(rewrite(graph, _residual), _act)


def _residual(editor: Editor, one: Node) -> list[Node]:
    need(one.op == "add" and editor.shape(one.inputs[0]) == editor.shape(one.inputs[1]))
    layers = []
    for name in one.inputs:
        with contextlib.suppress(NoMatchError):
            layers.append(_open(editor, name))
    need(layers)
    order = list(editor.makers)  # the later one: the other can then be done before it
    layer = max(layers, key=lambda maker: order.index(maker.output)) if len(layers) > 1 else layers[0]
    other = one.inputs[1] if one.inputs[0] == layer.output else one.inputs[0]
    need(other != layer.output)
    return [replace(layer, inputs=(*layer.inputs, other), output=one.output, attrs={**layer.attrs, **one.attrs})]


def _act(editor: Editor, one: Node) -> list[Node]:
    before = editor.sole(one.inputs[0]) if one.op == "act" else None
    if before is None or before.op not in _WITH_ACT or before.attrs["act"] is not None:
        raise NoMatchError
    return [replace(before, output=one.output, attrs={**before.attrs, "act": one.attrs["act"]})]


# -- norms -------------------------------------------------------------------------------------------------------------


def fold_norms(graph: Graph) -> Graph:
    """The graph without `affine` nodes that directly follow a layer which nobody else reads."""
    return rewrite(graph, _fold_norm)


def _fold_norm(editor: Editor, one: Node) -> list[Node]:
    if base(one) == "mul":
        return _fold_scale(editor, one)
    need(one.op == "affine")
    scale, shift = (editor.tensors[one.weights[role]].double() for role in ("scale", "shift"))
    turned = editor.sole(one.inputs[0])
    if turned is None or turned.op != "transpose":
        layer = _open(editor, one.inputs[0])
        # A linear layer's channels are its last axis, a norm's its second.
        need(layer.op == "conv2d" or len(editor.shape(one.output) or ()) == 2)
        return [_rescaled(editor, layer, one.output, scale, shift, one.attrs["act"])]
    # A linear layer's features, its last axis, have been brought to where a norm's channels are.
    layer, axes = _open(editor, turned.inputs[0]), turned.attrs["axes"]
    need(layer.op == "linear" and axes[1] == len(axes) - 1)
    rows = editor.value(layer.output, editor.shape(layer.output) or (), "scaled")
    return [
        _rescaled(editor, layer, rows, scale, shift, one.attrs["act"]),
        Node("transpose", (rows,), one.output, turned.attrs, {}),
    ]


def _fold_scale(editor: Editor, one: Node) -> list[Node]:
    """A factor, or one for each feature, after a linear layer: layer scale, or the scale of queries."""
    found = arguments(one)
    x, factor = (found["self"], found["other"]) if value_of(found["self"]) else (found["other"], found["self"])
    layer, weight, single = _open(editor, value_of(x)), tensor_of(factor), number_of(factor, editor.tensors)
    if layer.op != "linear" or (weight is None and single is None):
        raise NoMatchError
    tensor = torch.tensor([single]) if weight is None else editor.tensors[weight]
    width = editor.tensors[layer.weights["weight"]].shape[0]
    need(editor.floating(one.output) and editor.shape(one.output) == editor.shape(layer.output))
    need(tensor.numel() == 1 or (tensor.numel() == width == tensor.shape[-1]))
    need(tensor.is_floating_point())
    scale = tensor.double().flatten().expand(width)
    return [_rescaled(editor, layer, one.output, scale, torch.zeros_like(scale), None)]


def _rescaled(editor: Editor, layer: Node, output: str, scale: Tensor, shift: Tensor, act: Json) -> Node:
    """The layer with what it makes scaled and shifted. Rounded once, from float64; a weight of exactly 0 stays 0."""
    name = layer.weights["weight"]
    weight = editor.tensors[name]
    folded = (weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    weights = {"weight": editor.replacement(name, folded)}
    if "bias" in layer.weights:
        bias = editor.tensors[layer.weights["bias"]].double() * scale + shift
        weights["bias"] = editor.replacement(layer.weights["bias"], bias.to(weight.dtype))
    elif bool(shift.any()):
        weights["bias"] = editor.tensor(f"{name.removesuffix('weight')}bias", shift.to(weight.dtype))
    return Node(layer.op, layer.inputs, output, {**layer.attrs, "act": act}, weights)


# -- paddings ----------------------------------------------------------------------------------------------------------


def fold_pads(graph: Graph) -> Graph:
    """The graph without zero paddings that only a convolution reads.

    Uneven ones, as before a stride of 2 in networks that come from TensorFlow, become even with a kernel that has a
    row or column of zeros more on the side where there is less padding.
    """
    return rewrite(graph, _fold_pad)


def _fold_pad(editor: Editor, one: Node) -> list[Node]:
    before = editor.sole(one.inputs[0]) if one.op == "conv2d" else None
    if before is None or base(before) not in ("constant_pad_nd", "pad"):
        raise NoMatchError
    found = arguments(before)
    x, sides, own = value_of(found["self"]), found["pad"], one.attrs["padding"]
    need(found.get("mode", "constant") == "constant" and (found["value"] or 0) == 0)
    if x is None or len(sides) != 4 or not all(type(side) is int and side >= 0 for side in sides):
        raise NoMatchError
    left, right, top, bottom = sides
    need(editor.floating(x) and (list(one.attrs["dilation"]) == [1, 1] or (left == right and top == bottom)))
    need((left == right or not own[1]) and (top == bottom or not own[0]))
    width, height = max(left, right), max(top, bottom)
    weights = dict(one.weights)
    grown = (width - left, width - right, height - top, height - bottom)
    if any(grown):
        # Where there is more padding than there was, the kernel's zeros see it.
        weights["weight"] = editor.tensor(f"{weights['weight']}.padded", pad(editor.tensors[weights["weight"]], grown))
    attrs = {**one.attrs, "padding": [own[0] + height, own[1] + width]}
    made = Node("conv2d", (x,), one.output, attrs, weights)
    need(editor.inferred(made) == editor.shape(one.output))  # more padding, but no more places
    return [made]
