"""Zeros that a model puts around its images before a convolution become the convolution's own padding."""

from __future__ import annotations

from torch.nn.functional import pad

from ticketry.engine.capture.editor import Editor, arguments, base, rewrite, value_of
from ticketry.engine.graph import Graph, Node
from ticketry.engine.infer import Facts, infer


def fold_pads(graph: Graph) -> Graph:
    """The graph without zero paddings that only a convolution reads.

    Uneven ones, as before a stride of 2 in networks that come from TensorFlow, become even with a kernel that has a
    row or column of zeros more on the side where there is less padding.
    """
    return rewrite(graph, _fold)


def _fold(editor: Editor, one: Node) -> list[Node] | None:
    before = editor.sole(one.inputs[0]) if one.op == "conv2d" else None
    if before is None or base(before) not in ("constant_pad_nd", "pad"):
        return None
    found = arguments(before)
    x, sides = value_of(found["self"]), found["pad"]
    if x is None or found.get("mode", "constant") != "constant" or (found["value"] or 0) != 0:
        return None
    if len(sides) != 4 or not all(type(side) is int and side >= 0 for side in sides) or not editor.floating(x):
        return None
    left, right, top, bottom = sides
    if list(one.attrs["dilation"]) != [1, 1] and (left != right or top != bottom):
        return None
    own = one.attrs["padding"]
    if (left != right and own[1]) or (top != bottom and own[0]):
        return None
    width, height = max(left, right), max(top, bottom)
    weights = dict(one.weights)
    grown = (width - left, width - right, height - top, height - bottom)
    if any(grown):
        # Where there is more padding than there was, the kernel's zeros see it.
        weights["weight"] = editor.tensor(f"{weights['weight']}.padded", pad(editor.tensors[weights["weight"]], grown))
    made = {**one.attrs, "padding": [own[0] + height, own[1] + width]}
    changed = Node(one.op, (x,), one.output, made, weights)
    return [changed] if _fits(editor, changed) else None


def _fits(editor: Editor, one: Node) -> bool:
    """Whether the convolution makes what it made before: more padding must not make room for one more place."""
    facts = [Facts(editor.shape(name) or (), editor.values[name].dtype) for name in one.inputs]
    weights = {role: Facts(tuple(editor.tensors[name].shape), facts[0].dtype) for role, name in one.weights.items()}
    return infer(one.op, one.attrs, facts, weights)[0] == editor.shape(one.output)
