"""Sums with a residual and activations become the end of the layer before them."""

from __future__ import annotations

from dataclasses import replace

from ticketry.engine.capture.editor import Editor, rewrite
from ticketry.engine.graph import Graph, Node

_LAYERS = ("conv2d", "linear")
_WITH_ACT = ("conv2d", "linear", "add", "mul", "affine")


def fuse(graph: Graph) -> Graph:
    """The graph whose layers add residuals and apply activations themselves, where nobody reads what is in between."""
    return rewrite(rewrite(graph, _residual), _act)


def _residual(editor: Editor, one: Node) -> list[Node] | None:
    if one.op != "add" or editor.shape(one.inputs[0]) != editor.shape(one.inputs[1]):
        return None
    layers = [maker for name in one.inputs if (maker := _open(editor, name)) is not None]
    if not layers:
        return None
    layer = layers[-1]
    if len(layers) > 1:  # the later one: the other can then be done before it
        order = list(editor.makers)
        layer = max(layers, key=lambda maker: order.index(maker.output))
    other = one.inputs[1] if one.inputs[0] == layer.output else one.inputs[0]
    if other == layer.output:
        return None
    return [replace(layer, inputs=(*layer.inputs, other), output=one.output, attrs={**layer.attrs, **one.attrs})]


def _open(editor: Editor, name: str) -> Node | None:
    """The layer that makes a value which nobody else reads, if it has neither residual nor activation yet."""
    maker = editor.sole(name)
    if maker is None or maker.op not in _LAYERS or len(maker.inputs) > 1 or maker.attrs["act"] is not None:
        return None
    return maker


def _act(editor: Editor, one: Node) -> list[Node] | None:
    before = editor.sole(one.inputs[0]) if one.op == "act" else None
    if before is None or before.op not in _WITH_ACT or before.attrs["act"] is not None:
        return None
    return [replace(before, output=one.output, attrs={**before.attrs, "act": one.attrs["act"]})]
