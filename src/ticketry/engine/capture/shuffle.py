"""Reshapes and transposes: a channel shuffle, two in a row, and those that do nothing."""

from __future__ import annotations

from ticketry.engine.capture.editor import Editor, rewrite
from ticketry.engine.graph import Graph, Node, node

_VIEWS = ("reshape", "flatten")


def tidy_shapes(graph: Graph) -> Graph:
    """The graph with as few reshapes and transposes as say the same."""
    return rewrite(rewrite(graph, _shuffle), _tidy)


def _shuffle(editor: Editor, one: Node) -> list[Node] | None:
    """[N, C, H, W] -> [N, g, C / g, H, W] -> [N, C / g, g, H, W] -> [N, C, H, W]"""
    made = editor.shape(one.output)
    if one.op != "reshape" or made is None or len(made) != 4:
        return None
    turned = editor.makers.get(one.inputs[0])
    if turned is None or turned.op != "transpose" or list(turned.attrs["axes"]) != [0, 2, 1, 3, 4]:
        return None
    cut = editor.makers.get(turned.inputs[0])
    if cut is None or cut.op != "reshape" or editor.shape(cut.inputs[0]) != made:
        return None
    parts = editor.shape(cut.output) or ()
    if parts[3:] != made[2:]:
        return None
    return [node("channel_shuffle", cut.inputs, one.output, groups=parts[1])]


def _tidy(editor: Editor, one: Node) -> list[Node] | str | None:
    if one.op not in (*_VIEWS, "transpose"):
        return None
    before = editor.makers.get(one.inputs[0])
    if one.op == "transpose":
        axes = list(one.attrs["axes"])
        if before is not None and before.op == "transpose":
            axes = [before.attrs["axes"][axis] for axis in axes]
            if axes == sorted(axes):
                return before.inputs[0]
            return [node("transpose", before.inputs, one.output, axes=axes)]
        return one.inputs[0] if axes == sorted(axes) else None
    source = before.inputs[0] if before is not None and before.op in _VIEWS else one.inputs[0]
    made = editor.shape(one.output) or ()
    if editor.shape(source) == made:
        return source
    if source == one.inputs[0]:
        return None
    flat = len(made) == 2 and len(editor.shape(source) or ()) > 2
    return [
        node("flatten", (source,), one.output) if flat else node("reshape", (source,), one.output, shape=list(made))
    ]
