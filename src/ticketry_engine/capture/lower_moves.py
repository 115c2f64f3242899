"""Rolls, pads, steps through an axis, repetitions, written as slices, concatenations, reshapes and zeros around values.

The engine moves elements by one table, whatever they are written as. What is torch's own meaning of such an operation
has to be recognised before: pads that belong to a convolution, heads of keys that are repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ticketry_engine.capture.editor import Editor, Found, NoMatchError, arguments, base, finished, need, rewrite
from ticketry_engine.capture.lower_shapes import reshaped
from ticketry_engine.ir import Graph, Node, aten, node

_MOST_COPIES = 64
"""Of a value in one that repeats it."""


def lower_moves(graph: Graph) -> Graph:
    """The graph without these operations, where they leave the batch where it is."""
    return rewrite(graph, _lower)


def _lower(editor: Editor, one: Node) -> list[Node] | str:
    if one.op == "softmax":
        return _softmax(editor, one)
    need(not one.native)
    rule = _RULES.get(base(one))
    if rule is None:
        raise NoMatchError
    return rule(editor, one, arguments(one))


def _moved(editor: Editor, one: Node, found: Found) -> tuple[str, tuple[int, ...]]:
    """The value that is moved and its sizes but the batch; what is made has the batch at the same place."""
    (x,) = editor.floats(one, found.get("self", found.get("input")))
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    need(len(shape) >= 2 and made and shape[0] == made[0])
    return x, tuple(int(size or 0) for size in shape[1:])


def _roll(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    x, sizes = _moved(editor, one, found)
    shifts, axes = found["shifts"], found["dims"]
    need(axes and len(shifts) == len(axes) and all(type(shift) is int for shift in shifts))
    nodes: list[Node] = []
    current = x
    for shift, given in zip(shifts, axes, strict=True):
        axis = int(given) % (len(sizes) + 1)
        need(axis)
        size = sizes[axis - 1]
        if not size or not shift % size:
            continue
        at = size - shift % size
        parts = [
            editor.make("slice", (current,), one.output, axis=axis, start=low, stop=high)
            for low, high in ((at, size), (0, at))
        ]
        joined = editor.make("concat", tuple(part.output for part in parts), one.output, axis=axis)
        nodes += [*parts, joined]
        current = joined.output
    return finished(nodes, x, one.output)


def _pad(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    x, sizes = _moved(editor, one, found)
    sides = found["pad"]
    need(found.get("mode", "constant") == "constant" and not found["value"])
    need(len(sides) <= 2 * len(sizes) and all(type(side) is int for side in sides))
    pairs = [(0, 0)] * (len(sizes) - len(sides) // 2) + list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    nodes: list[Node] = []
    current = x
    for axis, ((low, high), size) in enumerate(zip(pairs, sizes, strict=True), start=1):
        if low < 0 or high < 0:  # a pad of less than nothing cuts
            start, stop = max(0, -low), size - max(0, -high)
            nodes.append(editor.make("slice", (current,), one.output, axis=axis, start=start, stop=stop))
            current = nodes[-1].output
    before, after = ([max(0, pair[side]) for pair in pairs] for side in (0, 1))
    if any((*before, *after)):
        nodes.append(editor.make("pad", (current,), one.output, before=before, after=after))
    return finished(nodes, x, one.output)


def _steps(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    """x[:, start:stop:step]"""
    x, sizes = _moved(editor, one, found)
    axis, start, step = int(found["dim"]) % (len(sizes) + 1), found["start"] or 0, found["step"]
    need(axis and type(start) is int and type(step) is int and step > 1)
    size, places = sizes[axis - 1], int((editor.shape(one.output) or ())[axis] or 0)
    start = min(start, size) if start >= 0 else max(start + size, 0)
    nodes: list[Node] = []
    stop = start + places * step
    if stop > size:
        room = [0] * len(sizes)
        after = [stop - size if other == axis - 1 else 0 for other in range(len(sizes))]
        nodes.append(editor.make("pad", (x,), one.output, before=room, after=after))
    if start or stop < size:
        current = nodes[-1].output if nodes else x
        nodes.append(editor.make("slice", (current,), one.output, axis=axis, start=start, stop=stop))
    cut = [*(editor.shape(x) or ())[:axis], places, step, *sizes[axis:]]
    nodes.append(editor.make("reshape", (nodes[-1].output if nodes else x,), one.output, shape=cut))
    nodes.append(editor.make("slice", (nodes[-1].output,), one.output, axis=axis + 1, start=0, stop=1))
    return [*nodes, reshaped(editor, nodes[-1].output, one.output)]


def _expand(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    """Axes of one element become of several, and new axes are put behind the batch."""
    x, sizes = _moved(editor, one, found)
    made = tuple(int(size or 0) for size in (editor.shape(one.output) or ())[1:])
    need(len(made) == len(sizes))
    copies = 1
    nodes: list[Node] = []
    for axis, (size, wanted) in enumerate(zip(sizes, made, strict=True), start=1):
        if size != wanted:
            need(size == 1)
            copies *= wanted
            current = nodes[-1].output if nodes else x
            nodes.append(editor.make("concat", (current,) * wanted, one.output, axis=axis))
    need(copies <= _MOST_COPIES)
    return finished(nodes, x, one.output)


def _nearest(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    """Images whose pixels become squares of pixels."""
    x, sizes = _moved(editor, one, found)
    made = tuple(int(size or 0) for size in (editor.shape(one.output) or ())[1:])
    need(len(sizes) == 3 and all(size and not wanted % size for size, wanted in zip(sizes, made, strict=True)))
    need(len(one.inputs) == 1 and _repeats(editor, one, sizes[1:], made[1:]))
    nodes: list[Node] = []
    current, shape, batch = x, list(sizes), (editor.shape(x) or ())[0]
    for axis in (1, 2):
        times = made[axis] // sizes[axis]
        need(times <= _MOST_COPIES)
        if times == 1:
            continue
        cut = editor.make("reshape", (current,), one.output, shape=[batch, *shape[: axis + 1], 1, *shape[axis + 1 :]])
        several = editor.make("concat", (cut.output,) * times, one.output, axis=axis + 2)
        shape[axis] *= times
        joined = editor.make("reshape", (several.output,), one.output, shape=[batch, *shape])
        nodes += [cut, several, joined]
        current = joined.output
    return finished(nodes, x, one.output)


def _repeats(editor: Editor, one: Node, sizes: tuple[int, ...], made: tuple[int, ...]) -> bool:
    """Whether torch makes squares of all pixels: a scale that was given may take them from elsewhere, and so may the
    rounding of a quotient. Asked of the operation itself, by pixels that are numbers of rows, and of columns."""
    interpolate = aten.prepare(one, editor.tensors, "cpu")
    for axis, (size, wanted) in enumerate(zip(sizes, made, strict=True)):
        numbers = torch.arange(size, dtype=getattr(torch, editor.values[one.output].dtype))
        pixels = numbers.view(1, 1, *((-1, 1) if axis == 0 else (1, -1))).expand(1, 1, *sizes)
        found = interpolate(pixels.contiguous()).select(3 - axis, 0).flatten()
        if not bool(numbers.diff().all()) or not torch.equal(found, numbers.repeat_interleave(wanted // size)):
            return False
    return True


# -- branches side by side on an axis of their own, [N, K, C, H, W] (SKNet) --------------------------------------------

_MOST_BRANCHES = 8


def _branch(editor: Editor, x: str, axis: int, number: int) -> tuple[list[Node], str]:
    """One of the values that lie side by side on an axis, without the axis."""
    shape = editor.shape(x) or ()
    part = editor.make("slice", (x,), x, axis=axis, start=number, stop=number + 1)
    whole = editor.make("reshape", (part.output,), x, shape=[*shape[:axis], *shape[axis + 1 :]])
    return [part, whole], whole.output


def _stack(editor: Editor, one: Node, found: Found) -> list[Node]:
    names, shape = editor.floats(one, *found["tensors"]), editor.shape(one.output) or ()
    axis = int(found["dim"]) % len(shape)
    need(axis and all(editor.shape(name) == (*shape[:axis], *shape[axis + 1 :]) for name in names))
    wide = [*shape[:axis], 1, *shape[axis + 1 :]]
    parts = [editor.make("reshape", (name,), one.output, shape=wide) for name in names]
    return [*parts, node("concat", tuple(part.output for part in parts), one.output, axis=axis)]


def _sum(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Over an axis of a few branches."""
    x, sizes = _moved(editor, one, found)
    need(len(found["dim"] or ()) == 1 and found.get("dtype") is None and len(sizes) == 4)
    axis = int(found["dim"][0]) % (len(sizes) + 1)
    need(axis and 1 < sizes[axis - 1] <= _MOST_BRANCHES)
    nodes, total = _branch(editor, x, axis, 0)
    for number in range(1, sizes[axis - 1]):
        more, part = _branch(editor, x, axis, number)
        nodes += [*more, editor.make("add", (total, part), one.output)]
        total = nodes[-1].output
    return [*nodes, reshaped(editor, total, one.output)]


def _gate(editor: Editor, one: Node, found: Found) -> list[Node]:
    """[N, K, C, H, W] times [N, K, C, 1, 1], branch by branch."""
    x, other = editor.floats(one, found["self"], found["other"], axes=5)
    if editor.shape(x) != editor.shape(one.output):
        x, other = other, x
    shape = editor.shape(x) or ()
    need(shape == editor.shape(one.output) and editor.shape(other) == (*shape[:3], 1, 1))
    need(1 < int(shape[1] or 0) <= _MOST_BRANCHES)
    nodes: list[Node] = []
    made = []
    for number in range(int(shape[1] or 0)):
        (left, value), (right, factor) = (_branch(editor, name, 1, number) for name in (x, other))
        product = editor.make("mul", (value, factor), one.output)
        wide = editor.make("reshape", (product.output,), one.output, shape=[shape[0], 1, *shape[2:]])
        nodes += [*left, *right, product, wide]
        made.append(wide.output)
    return [*nodes, node("concat", tuple(made), one.output, axis=1)]


def _softmax(editor: Editor, one: Node) -> list[Node]:
    """Over an axis that is not the last one, of more axes than images have: with that axis brought to the end."""
    x, axis = one.inputs[0], int(one.attrs["axis"])
    shape = editor.shape(x) or ()
    need(len(shape) >= 5 and axis < len(shape) - 1)
    order = [*(other for other in range(len(shape)) if other != axis), axis]
    turned = editor.make("transpose", (x,), one.output, axes=order)
    soft = editor.make("softmax", (turned.output,), one.output, axis=len(shape) - 1)
    back = [order.index(other) for other in range(len(shape))]
    return [turned, soft, node("transpose", (soft.output,), one.output, axes=back)]


_RULES: Mapping[str, Callable[[Editor, Node, Found], list[Node] | str]] = {
    "roll": _roll,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "slice": _steps,
    "expand": _expand,
    "upsample_nearest2d": _nearest,
    "stack": _stack,
    "sum": _sum,
    "mul": _gate,
}
