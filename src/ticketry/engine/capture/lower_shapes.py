"""Reshapes, transposes, slices and concatenations that leave the batch where it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from ticketry.engine.capture.editor import Editor, Rule, Shape, arguments, base, value_of
from ticketry.engine.capture.lower_layers import getitem_of
from ticketry.engine.graph import Json, Node, node


def same_value(editor: Editor, x: str, made: str) -> bool:
    """Whether a view gives just what it was given."""
    return editor.size(x) is not None and editor.size(x) == editor.size(made)


def _input(editor: Editor, one: Node, role: str = "self") -> str | None:
    """The first argument, if it and the output have known shapes with the same first size."""
    x = value_of(arguments(one).get(role))
    if x is None or not editor.floating(x, one.output):
        return None
    before, after = editor.shape(x), editor.shape(one.output)
    return x if before and after and before[0] == after[0] else None


def reshaped(editor: Editor, x: str, output: str) -> Node:
    """The node that gives the elements of `x` the shape of `output`."""
    before, after = editor.shape(x) or (), editor.shape(output) or ()
    if len(after) == 2 and len(before) > 2:
        return node("flatten", (x,), output)
    return node("reshape", (x,), output, shape=list(after))


def _reshape(editor: Editor, one: Node) -> list[Node] | str | None:
    raw = value_of(arguments(one).get("self"))
    if raw is not None and same_value(editor, raw, one.output):
        return raw
    x = _input(editor, one)
    if x is None:
        return None
    before, after = editor.shape(x) or (), editor.shape(one.output) or ()
    if before == after:
        return x
    if prod(map(_one, before)) != prod(map(_one, after)):
        return None
    return [reshaped(editor, x, one.output)]


def _one(size: int | None) -> int:
    return 1 if size is None else size


def _expand(editor: Editor, one: Node) -> str | None:
    x = value_of(arguments(one)["self"])
    return x if x is not None and same_value(editor, x, one.output) else None


def _permute(editor: Editor, one: Node) -> list[Node] | str | None:
    x = _input(editor, one)
    if x is None:
        return None
    axes = order(one, len(editor.shape(x) or ()))
    if axes is None or axes[0] != 0:
        return None
    if axes == sorted(axes):
        return x
    return [node("transpose", (x,), one.output, axes=axes)]


_TWO_AXES = ("dim0", "dim1", "axis0", "axis1")


def order(one: Node, rank: int) -> list[int] | None:
    """The order of axes that a transposing operation gives, or None where it is none of these."""
    found, name = arguments(one), base(one)
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
    if name in ("movedim", "moveaxis"):
        source, target = (
            [found[role]] if isinstance(found[role], int) else list(found[role]) for role in ("source", "destination")
        )
        moved = {int(to) % rank: int(axis) % rank for axis, to in zip(source, target, strict=True)}
        rest = iter(axis for axis in axes if axis not in moved.values())
        return [moved[place] if place in moved else next(rest) for place in axes]
    return None


def _cut(editor: Editor, x: str, output: str, axis: int, start: int, stop: int) -> list[Node] | str:
    if (start, stop) == (0, (editor.shape(x) or ())[axis]):
        return x
    return [node("slice", (x,), output, axis=axis, start=start, stop=stop)]


def _slice(editor: Editor, one: Node) -> list[Node] | str | None:
    found = arguments(one)
    raw = value_of(found["self"])
    if raw is not None and same_value(editor, raw, one.output) and found.get("step", 1) == 1:
        return raw
    x = _input(editor, one)
    if x is None or found.get("step", 1) != 1:
        return None
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    axis = int(found["dim"]) % len(shape)
    start = found["start"] or 0
    if axis == 0 or not isinstance(start, int):
        return None
    size = _one(shape[axis])
    start = min(start, size) if start >= 0 else max(start + size, 0)
    return _cut(editor, x, one.output, axis, start, start + _one(made[axis]))


def _select(editor: Editor, x: str, output: str, axis: int, index: int) -> list[Node]:
    size = _one((editor.shape(x) or ())[axis])
    index %= size
    if size == 1:
        return [reshaped(editor, x, output)]
    part = editor.make("slice", (x,), output, axis=axis, start=index, stop=index + 1)
    return [part, reshaped(editor, part.output, output)]


def _select_int(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    x = _input(editor, one)
    if x is None or not isinstance(found["index"], int):
        return None
    axis = int(found["dim"]) % len(editor.shape(x) or ())
    return None if axis == 0 else _select(editor, x, one.output, axis, found["index"])


def _getitem(editor: Editor, one: Node) -> list[Node] | str | None:
    """An entry of what chunk, split or unbind made."""
    maker = editor.makers.get(one.inputs[0]) if one.inputs else None
    index = one.attrs["args"][1]
    if maker is None or not isinstance(index, int):
        return None
    if base(maker) not in _PARTS:
        return getitem_of(editor, one, maker)
    x = value_of(arguments(maker).get("self"))
    if x is None or not editor.floating(x, one.output):
        return None
    return _PARTS[base(maker)](editor, one, maker, x, index)


def _part(sizes: Callable[[dict[str, Json], int], list[int]]) -> Callable[..., list[Node] | str | None]:
    def part(editor: Editor, one: Node, maker: Node, x: str, index: int) -> list[Node] | str | None:
        found, shape = arguments(maker), editor.shape(x) or ()
        axis = int(found["dim"]) % len(shape)
        if axis == 0:
            return None
        widths = sizes(found, _one(shape[axis]))
        start = sum(widths[: index % len(widths)])
        return _cut(editor, x, one.output, axis, start, start + widths[index])

    return part


def _equal(size: int, width: int) -> list[int]:
    return [min(width, size - start) for start in range(0, size, width)]


def _unbound(editor: Editor, one: Node, maker: Node, x: str, index: int) -> list[Node] | None:
    axis = int(arguments(maker)["dim"]) % len(editor.shape(x) or ())
    return None if axis == 0 else _select(editor, x, one.output, axis, index)


_PARTS: Mapping[str, Callable[..., list[Node] | str | None]] = {
    "chunk": _part(lambda found, size: _equal(size, -(-size // int(found["chunks"])))),
    "split": _part(
        lambda found, size: (
            _equal(size, found["split_size"]) if isinstance(found.get("split_size"), int) else list(found["split_size"])
        )
    ),
    "split_with_sizes": _part(lambda found, size: list(found["split_sizes"])),
    "unbind": _unbound,
}


def _cat(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    parts = [value_of(part) for part in found["tensors"]]
    shape = editor.shape(one.output)
    names = [part for part in parts if part is not None]
    if len(names) != len(parts) or not shape or not editor.floating(*names, one.output):
        return None
    axis = int(found["dim"]) % len(shape)
    fits = all(_fits(editor.shape(name), shape, axis) for name in names)
    return [node("concat", tuple(names), one.output, axis=axis)] if axis and fits else None


def _fits(part: Shape | None, shape: Shape, axis: int) -> bool:
    return part is not None and len(part) == len(shape) and part[:axis] == shape[:axis]


def _shuffle(editor: Editor, one: Node) -> list[Node] | None:
    x = _input(editor, one)
    if x is None or len(editor.shape(x) or ()) != 4:
        return None
    return [node("channel_shuffle", (x,), one.output, groups=arguments(one)["groups"])]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "view",
            "reshape",
            "_unsafe_view",
            "flatten",
            "unflatten",
            "squeeze",
            "unsqueeze",
            "view_copy",
            "view_as",
            "reshape_as",
        ),
        _reshape,
    ),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT"), _permute),
    "expand": _expand,
    "slice": _slice,
    "select": _select_int,
    "getitem": _getitem,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "channel_shuffle": _shuffle,
}
