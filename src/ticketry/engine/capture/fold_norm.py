"""A norm's scale and shift move into the convolution or linear layer before it."""

from __future__ import annotations

import torch

from ticketry.engine.capture.editor import Editor, rewrite
from ticketry.engine.graph import Graph, Node


def fold_norms(graph: Graph) -> Graph:
    """The graph without `affine` nodes that directly follow a layer which nobody else reads."""
    return rewrite(graph, _fold)


def _fold(editor: Editor, one: Node) -> list[Node] | None:
    layer = editor.sole(one.inputs[0]) if one.op == "affine" else None
    if layer is None or layer.op not in ("conv2d", "linear") or layer.attrs["act"] is not None:
        return None
    if len(layer.inputs) > 1 or (layer.op == "linear" and len(editor.shape(one.output) or ()) != 2):
        return None  # a linear layer's channels are its last axis, a norm's its second
    weight = editor.tensors[layer.weights["weight"]]
    scale, shift = (editor.tensors[one.weights[role]].double() for role in ("scale", "shift"))
    bias = editor.tensors[layer.weights["bias"]].double() if "bias" in layer.weights else torch.zeros_like(shift)
    # Rounded once, from float64. A weight of exactly 0 stays 0.
    folded = (weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    name = layer.weights["weight"]
    prefix = name.removesuffix("weight")
    return [
        Node(
            layer.op,
            layer.inputs,
            one.output,
            {**layer.attrs, "act": one.attrs["act"]},
            {
                "weight": editor.replacement(name, folded),
                "bias": editor.replacement(
                    layer.weights.get("bias", f"{prefix}bias"), (bias * scale + shift).to(weight.dtype)
                ),
            },
        )
    ]
