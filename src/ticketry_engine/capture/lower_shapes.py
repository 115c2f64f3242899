"""Reshapes, transposes, slices and concatenations that leave the batch where it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from ticketry_engine.capture.editor import (
    Editor,
    Found,
    Lowering,
    NoMatchError,
    Shape,
    arguments,
    base,
    need,
    rewrite,
    value_of,
)
from ticketry_engine.capture.lower_layers import getitem_of
from ticketry_engine.ir import Graph, Json, Node, node


def _input(editor: Editor, one: Node, found: Found) -> str:
    """The first argument, if it and the output have known shapes with the same first size."""
    (x,) = editor.floats(one, found.get("self"))
    before, after = editor.shape(x), editor.shape(one.output)
    need(before and after and before[0] == after[0])
    return x


def _unchanged(editor: Editor, one: Node, found: Found) -> str | None:
    """The first argument, if the output is known to have its sizes."""
    x = value_of(found.get("self"))
    return x if x is not None and editor.same_size(x, one.output) else None


def reshaped(editor: Editor, x: str, output: str) -> Node:
    """The node that gives the elements of `x` the shape of `output`."""
    before, after = editor.shape(x) or (), editor.shape(output) or ()
    if len(after) == 2 and len(before) > 2:
        return node("flatten", (x,), output)
    return node("reshape", (x,), output, shape=list(after))


def _reshape(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    if (raw := _unchanged(editor, one, found)) is not None:
        return raw
    x = _input(editor, one, found)
    before, after = editor.shape(x) or (), editor.shape(one.output) or ()
    if before == after:
        return x
    need(prod(map(_one, before)) == prod(map(_one, after)))
    return [reshaped(editor, x, one.output)]


def _one(size: int | None) -> int:
    return 1 if size is None else size


def _permute(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    x = _input(editor, one, found)
    axes = order(base(one), found, len(editor.shape(x) or ()))
    need(axes[0] == 0)
    return x if axes == sorted(axes) else [node("transpose", (x,), one.output, axes=axes)]


_TWO_AXES = ("dim0", "dim1", "axis0", "axis1")


def order(name: str, found: Found, rank: int) -> list[int]:
    """The order of axes that a transposing operation gives."""
    axes = list(range(rank))
    if name == "permute":
        return [int(axis) % rank for axis in found["dims"]]
    if name in ("transpose", "swapaxes", "swapdims", "mT", "t"):
        pair: list[int] = [-2, -1]  # mT
        if name != "mT":
            pair = [0, 1] if name == "t" else [int(found[role]) for role in found if role in _TWO_AXES]
        a, b = (axis % rank for axis in pair)
        axes[a], axes[b] = axes[b], axes[a]
        return axes
    need(name in ("movedim", "moveaxis"))
    source, target = (
        [found[role]] if isinstance(found[role], int) else list(found[role]) for role in ("source", "destination")
    )
    moved = {int(to) % rank: int(axis) % rank for axis, to in zip(source, target, strict=True)}
    rest = iter(axis for axis in axes if axis not in moved.values())
    return [moved[place] if place in moved else next(rest) for place in axes]


def _cut(editor: Editor, x: str, output: str, axis: int, start: int, stop: int) -> list[Node] | str:
    if (start, stop) == (0, (editor.shape(x) or ())[axis]):
        return x
    return [node("slice", (x,), output, axis=axis, start=start, stop=stop)]


def _slice(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    need(found.get("step", 1) == 1)
    if (raw := _unchanged(editor, one, found)) is not None:
        return raw
    x = _input(editor, one, found)
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    axis, start = int(found["dim"]) % len(shape), found["start"] or 0
    need(axis and isinstance(start, int))
    size = _one(shape[axis])
    start = min(start, size) if start >= 0 else max(start + size, 0)
    return _cut(editor, x, one.output, axis, start, start + _one(made[axis]))


def _narrow(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    x = _input(editor, one, found)
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    axis, start = int(found["dim"]) % len(shape), found["start"]
    need(axis and isinstance(start, int))
    start += _one(shape[axis]) if start < 0 else 0
    return _cut(editor, x, one.output, axis, start, start + _one(made[axis]))


def _select(editor: Editor, x: str, output: str, axis: int, index: int) -> list[Node]:
    size = _one((editor.shape(x) or ())[axis])
    index %= size
    if size == 1:
        return [reshaped(editor, x, output)]
    part = editor.make("slice", (x,), output, axis=axis, start=index, stop=index + 1)
    return [part, reshaped(editor, part.output, output)]


def _select_int(editor: Editor, one: Node, found: Found) -> list[Node]:
    x = _input(editor, one, found)
    axis = int(found["dim"]) % len(editor.shape(x) or ())
    need(axis and isinstance(found["index"], int))
    return _select(editor, x, one.output, axis, found["index"])


def _getitem(editor: Editor, one: Node, _: Found) -> list[Node] | str:
    """An entry of what chunk, split or unbind made."""
    maker = editor.makers.get(one.inputs[0]) if one.inputs else None
    index = one.attrs["args"][1]
    if maker is None or not isinstance(index, int):
        raise NoMatchError
    if base(maker) not in _PARTS:
        return getitem_of(editor, one, maker)
    found = arguments(maker)
    (x,) = editor.floats(one, found.get("self"))
    shape = editor.shape(x) or ()
    axis = int(found["dim"]) % len(shape)
    need(axis)
    if base(maker) == "unbind":
        return _select(editor, x, one.output, axis, index)
    widths = _PARTS[base(maker)](found, _one(shape[axis]))
    start = sum(widths[: index % len(widths)])
    return _cut(editor, x, one.output, axis, start, start + widths[index])


def _equal(size: int, width: int) -> list[int]:
    return [min(width, size - start) for start in range(0, size, width)]


def _split(found: dict[str, Json], size: int) -> list[int]:
    return _equal(size, found["split_size"]) if isinstance(found["split_size"], int) else list(found["split_size"])


_PARTS: Mapping[str, Callable[[dict[str, Json], int], list[int]]] = {
    "chunk": lambda found, size: _equal(size, -(-size // int(found["chunks"]))),
    "split": _split,
    "split_with_sizes": lambda found, size: list(found["split_sizes"]),
    "unbind": lambda found, size: [1] * size,
}
"""Operation that makes a list -> sizes of its entries along the axis that is cut, of its arguments and the size."""


def _cat(editor: Editor, one: Node, found: Found) -> list[Node]:
    names, shape = editor.floats(one, *found["tensors"]), editor.shape(one.output)
    if not shape:
        raise NoMatchError
    axis = int(found["dim"]) % len(shape)
    need(axis and all(_fits(editor.shape(name), shape, axis) for name in names))
    return [node("concat", tuple(names), one.output, axis=axis)]


def _fits(part: Shape | None, shape: Shape, axis: int) -> bool:
    return part is not None and len(part) == len(shape) and part[:axis] == shape[:axis]


def _shuffle(editor: Editor, one: Node, found: Found) -> list[Node]:
    x = _input(editor, one, found)
    need(len(editor.shape(x) or ()) == 4)
    return [node("channel_shuffle", (x,), one.output, groups=found["groups"])]


_RESHAPES = "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_copy view_as reshape_as"

RULES: Mapping[str, Lowering] = {
    **dict.fromkeys(_RESHAPES.split(), _reshape),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT"), _permute),
    "expand": _unchanged,
    "slice": _slice,
    "narrow": _narrow,
    "select": _select_int,
    "getitem": _getitem,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "channel_shuffle": _shuffle,
}


# -- shapes between native nodes ---------------------------------------------------------------------------------------

_VIEWS = ("reshape", "flatten")


def tidy_shapes(graph: Graph) -> Graph:
    """The graph with as few reshapes and transposes as say the same."""
    return rewrite(rewrite(graph, _written_shuffle), _tidy)


def _written_shuffle(editor: Editor, one: Node) -> list[Node]:
    """[N, C, H, W] -> [N, g, C / g, H, W] -> [N, C / g, g, H, W] -> [N, C, H, W]"""
    made = editor.shape(one.output) or ()
    need(one.op == "reshape" and len(made) == 4)
    turned = editor.made_by(one.inputs[0], "transpose")
    need(turned.native and list(turned.attrs["axes"]) == [0, 2, 1, 3, 4])
    cut = editor.made_by(turned.inputs[0], "reshape")
    need(cut.native)
    parts = editor.shape(cut.output) or ()
    need(editor.shape(cut.inputs[0]) == made and parts[3:] == made[2:])
    return [node("channel_shuffle", cut.inputs, one.output, groups=parts[1])]


def _tidy(editor: Editor, one: Node) -> list[Node] | str | None:
    need(one.op in (*_VIEWS, "transpose"))
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
    need(source != one.inputs[0])
    return [reshaped(editor, source, one.output)]
