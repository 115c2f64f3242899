"""A norm's scale and shift move into the convolution or linear layer before it."""

from __future__ import annotations

import torch
from torch import Tensor

from ticketry.engine.capture.editor import Editor, arguments, base, rewrite, tensor_of, value_of
from ticketry.engine.graph import Graph, Json, Node


def fold_norms(graph: Graph) -> Graph:
    """The graph without `affine` nodes that directly follow a layer which nobody else reads."""
    return rewrite(graph, _fold)


def _fold(editor: Editor, one: Node) -> list[Node] | None:
    if base(one) == "mul":
        return _fold_scale(editor, one)
    if one.op != "affine":
        return None
    turned = editor.sole(one.inputs[0])
    if turned is not None and turned.op == "transpose":
        return _fold_through(editor, one, turned)
    layer = _open(editor, one.inputs[0])
    if layer is None or (layer.op == "linear" and len(editor.shape(one.output) or ()) != 2):
        return None  # a linear layer's channels are its last axis, a norm's its second
    scale, shift = (editor.tensors[one.weights[role]].double() for role in ("scale", "shift"))
    return [_scaled(editor, layer, one.output, scale, shift, one.attrs["act"])]


def _fold_through(editor: Editor, one: Node, turned: Node) -> list[Node] | None:
    """A linear layer's features, its last axis, have been brought to where a norm's channels are."""
    layer = _open(editor, turned.inputs[0])
    axes = turned.attrs["axes"]
    if layer is None or layer.op != "linear" or axes[1] != len(axes) - 1:
        return None
    scale, shift = (editor.tensors[one.weights[role]].double() for role in ("scale", "shift"))
    rows = editor.value(layer.output, editor.shape(layer.output) or (), "scaled")
    return [
        _scaled(editor, layer, rows, scale, shift, one.attrs["act"]),
        Node("transpose", (rows,), one.output, turned.attrs, {}),
    ]


def _fold_scale(editor: Editor, one: Node) -> list[Node] | None:
    """A factor for each feature after a linear layer, as the layer scale of ConvNeXt."""
    found = arguments(one)
    pair = (found["self"], found["other"])
    x, factor = pair if value_of(pair[0]) else pair[::-1]
    name, weight = value_of(x), tensor_of(factor)
    layer = _open(editor, name) if name is not None else None
    if layer is None or layer.op != "linear" or weight is None or not editor.floating(one.output):
        return None
    tensor = editor.tensors[weight]
    width = editor.tensors[layer.weights["weight"]].shape[0]
    if tensor.numel() not in (1, width) or (tensor.numel() > 1 and tensor.shape[-1] != width):
        return None
    if editor.shape(one.output) != editor.shape(layer.output) or not tensor.is_floating_point():
        return None
    scale = tensor.double().flatten().expand(width)
    return [_scaled(editor, layer, one.output, scale, torch.zeros_like(scale), None)]


def _open(editor: Editor, name: str) -> Node | None:
    """The layer that makes a value which nobody else reads, if it has neither residual nor activation yet."""
    layer = editor.sole(name)
    if layer is None or layer.op not in ("conv2d", "linear") or layer.attrs["act"] is not None:
        return None
    return layer if len(layer.inputs) == 1 else None


def _scaled(editor: Editor, layer: Node, output: str, scale: Tensor, shift: Tensor, act: Json) -> Node:
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
