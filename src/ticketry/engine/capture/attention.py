"""Attention that a model has written out: softmax(q k^T * scale) v."""

from __future__ import annotations

from ticketry.engine.capture.composites import scaled
from ticketry.engine.capture.editor import Editor, arguments, base, rewrite, value_of
from ticketry.engine.graph import Graph, Node, node

_PRODUCTS = ("matmul", "bmm")


def recognise_attention(graph: Graph) -> Graph:
    """The graph with one `attention` for each such formula without a mask."""
    return rewrite(graph, _attention)


def _product(editor: Editor, name: str | None) -> tuple[str, str] | None:
    maker = editor.makers.get(name or "")
    if maker is None or base(maker) not in _PRODUCTS:
        return None
    found = arguments(maker)
    one, other = value_of(found["self"]), value_of(found.get("other", found.get("mat2")))
    return None if one is None or other is None else (one, other)


def _attention(editor: Editor, one: Node) -> list[Node] | None:
    if base(one) not in _PRODUCTS:
        return None
    found = arguments(one)
    weights, v = value_of(found["self"]), value_of(found.get("other", found.get("mat2")))
    soft = editor.makers.get(weights or "")
    if v is None or soft is None or soft.op != "softmax" or soft.attrs["axis"] != 3:
        return None
    name, scale = soft.inputs[0], 1.0
    if (step := scaled(editor, editor.makers.get(name), "mul")) is not None:
        name, scale = step
    pair = _product(editor, name)
    if pair is None:
        return None
    q, turned = pair
    if (step := scaled(editor, editor.makers.get(q), "mul")) is not None:
        q, scale = step[0], scale * step[1]
    maker = editor.makers.get(turned)
    if maker is None or maker.op != "transpose" or not editor.floating(q, maker.inputs[0], v, one.output):
        return None
    shapes = [editor.shape(part) or () for part in (q, turned, v)]
    if any(len(shape) != 4 for shape in shapes) or not shapes[0][:2] == shapes[1][:2] == shapes[2][:2]:
        return None
    axes = list(maker.attrs["axes"])
    if axes == [0, 1, 3, 2]:
        return [node("attention", (q, maker.inputs[0], v), one.output, scale=scale)]
    keys = [axes[0], axes[1], axes[3], axes[2]]  # a transpose that also put the heads in place
    k = editor.make("transpose", maker.inputs, one.output, axes=keys)
    return [k, node("attention", (q, k.output, v), one.output, scale=scale)]
