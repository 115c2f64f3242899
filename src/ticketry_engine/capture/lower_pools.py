"""Poolings and means, over two axes or one."""

from __future__ import annotations

from collections.abc import Mapping

from ticketry_engine.capture.editor import Editor, Found, need
from ticketry_engine.ir import Json, Node, node


def pair(value: Json) -> list[int]:
    """A setting of one or two axes for both."""
    sizes = value if isinstance(value, list) else [value]
    need(len(sizes) in (1, 2) and all(type(size) is int for size in sizes))
    return [sizes[0], sizes[-1]]


def window_of(sizes: Json, axes: int, beside: int) -> list[int]:
    """A setting of a window over height and width; over one axis it is `beside` along the other."""
    return pair(sizes) if axes == 2 else [beside, pair(sizes)[1]]


def pool(editor: Editor, one: Node, found: Found, *, axes: int = 2) -> list[Node]:
    (x,) = editor.floats(one, found["self"], axes=2 + axes)
    kernel, padding = window_of(found["kernel_size"], axes, 1), window_of(found["padding"], axes, 0)
    window: dict[str, Json] = {
        "kernel": kernel,
        "stride": window_of(found["stride"] or found["kernel_size"], axes, 1),
        "padding": padding,
        "ceil": found["ceil_mode"],
    }
    if "dilation" in found:
        return _over(axes, editor, one, x, "max_pool2d", **window, dilation=window_of(found["dilation"], axes, 1))
    need(found.get("divisor_override") is None)
    made, shape = editor.shape(one.output) or (), editor.shape(x) or ()
    covers = all(size >= int(side or 0) for size, side in zip(kernel[-axes:], shape[2:], strict=True))
    if set(made[2:]) == {1} and covers and padding == [0, 0]:
        return _over(axes, editor, one, x, "global_avg_pool", keepdim=True)
    return _over(axes, editor, one, x, "avg_pool2d", **window, count_include_pad=found["count_include_pad"])


def adaptive(editor: Editor, one: Node, found: Found, *, axes: int = 2) -> list[Node] | str:
    (x,) = editor.floats(one, found["self"], axes=2 + axes)
    before, after = editor.shape(x) or (), editor.shape(one.output) or ()
    if before == after:
        return x
    if set(after[2:]) == {1}:
        return _over(axes, editor, one, x, "global_avg_pool", keepdim=True)
    sizes = [(int(old or 0), int(new or 0)) for old, new in zip(before[2:], after[2:], strict=True)]
    need(all(new and not old % new for old, new in sizes))
    kernel = window_of([old // new for old, new in sizes], axes, 1)
    return _over(axes, editor, one, x, "avg_pool2d", kernel=kernel, stride=kernel)


def _over(axes: int, editor: Editor, one: Node, x: str, op: str, **attributes: Json) -> list[Node]:
    """An operation on pictures; over one axis it is one on pictures of height 1."""
    if axes == 1:
        return in_a_picture(editor, one, x, op, **attributes)
    return [node(op, (x,), one.output, **attributes)]


def in_a_picture(
    editor: Editor, one: Node, x: str, op: str, weights: Mapping[str, str] | None = None, **attributes: Json
) -> list[Node]:
    """An operation on [N, C, L] by one on [N, C, 1, L]."""
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    picture = editor.make("reshape", (x,), one.output, shape=[*shape[:2], 1, shape[2]])
    result = editor.make(op, (picture.output,), one.output, weights, **attributes)
    return [picture, result, node("reshape", (result.output,), one.output, shape=list(made))]


def mean(editor: Editor, one: Node, found: Found) -> list[Node]:
    """A mean over height and width, wherever the channels are, over tokens, or over the places of a signal."""
    (x,) = editor.floats(one, found["self"])
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    need(isinstance(found.get("dim"), list) and found.get("dtype") is None and all(shape[1:]))
    axes = sorted(axis % len(shape) for axis in found["dim"])
    if (len(shape), axes) == (4, [2, 3]):
        return [node("global_avg_pool", (x,), one.output, keepdim=found["keepdim"])]
    if (len(shape), axes, found["keepdim"]) == (3, [2], False):  # kept, it is mostly a part of a norm
        return in_a_picture(editor, one, x, "global_avg_pool", keepdim=True)
    need((len(shape), axes) in ((4, [1, 2]), (3, [1])))
    last = len(shape) - 1
    nodes = [editor.make("transpose", (x,), one.output, axes=[0, last, *axes])]
    if len(shape) == 3:
        nodes.append(editor.make("reshape", (nodes[-1].output,), one.output, shape=[shape[0], shape[2], 1, shape[1]]))
    pooled = editor.make("global_avg_pool", (nodes[-1].output,), one.output, keepdim=False)
    return [*nodes, pooled, node("reshape", (pooled.output,), one.output, shape=list(made))]
