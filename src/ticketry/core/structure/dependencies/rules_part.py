"""Rules for operations that take parts of a tensor: slices, splits, rolls, indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ticketry.core.structure.dependencies.axes import Axes, Ids
from ticketry.core.structure.dependencies.trace import Call, Rule, Trace, outputs_of, unary, unite_pieces

# -- parts of one dimension -------------------------------------------------------------------------------------------


def split(t: Trace, call: Call) -> object:
    """Several parts one after the other."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    dimension = int(call.argument("dim")) % tensor.dim()
    result = call.run()
    parts = outputs_of(result)
    labels = _parts(t, axes.labels[dimension], [part.shape[dimension] for part in parts])
    for part, ids in zip(parts, labels, strict=True):
        found = axes.copy()
        found.labels[dimension] = ids
        t.book.set(part, found)
    return result


def _parts(t: Trace, ids: Ids | None, sizes: Sequence[int]) -> list[Ids | None]:
    """Labels of consecutive parts. Those of one size have one width in the code, and must lose the same channels; parts
    of several sizes have several numbers, which must be attributes, or else stay."""
    if ids is None:
        return [None for _ in sizes]
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    known = [t.note_number(part) for part in parts]
    t.note_number(ids)
    if len(set(sizes)) > 1 and not all(known):
        t.freeze(ids, "it is cut into unequal parts")
        return [None for _ in sizes]
    first = dict(zip(reversed(sizes), reversed(parts), strict=True))
    for size, part in zip(sizes, parts, strict=True):
        t.labels.unite(first[size], part, t.reason("it is one of several that must lose the same channels"))
    return [_unless_single(t, part) for part in parts]


def _unless_single(t: Trace, ids: Ids) -> Ids | None:
    if len(ids) > 1:
        return ids
    t.freeze(ids, "it is cut into single channels")
    return None


@unary
def cut(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """`slice` and `narrow`."""
    dimension = int(call.argument("dim")) % len(shape)
    ids, size, length = axes.labels[dimension], shape[dimension], result.shape[dimension]
    start = call.argument("start") or 0
    if (call.argument("step") or 1) != 1:
        t.freeze(ids, "it is cut with a step")
        axes.labels[dimension] = None
    elif ids is not None and length < size:
        first = min(max(start + size if start < 0 else start, 0), size)
        axes.labels[dimension] = _piece(t, ids, first, length)
    return axes


def _piece(t: Trace, ids: Ids, start: int, length: int) -> Ids | None:
    """Labels of one part. One of several equal parts is one of the width: all must lose the same channels. Any other
    begins and ends at numbers, counted from either end."""
    found, stop = ids[start : start + length], start + length
    t.note_number(ids)
    if length and len(ids) % length == 0 and start % length == 0:
        t.note_number(found)
        pieces = ids.reshape(-1, length)
        unite_pieces(t, pieces)
        return _unless_single(t, pieces[0])
    ends = [place for place in (start, stop) if 0 < place < len(ids)]
    known = [[t.note_number(ids[:place]), t.note_number(ids[place:])] for place in ends]
    if all(any(either) for either in known):
        return _unless_single(t, found)
    t.freeze(ids, "it is cut into unequal parts")
    return None


@unary
def glu(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """The first half times the sigmoid of the second."""
    dimension = int(call.argument("dim")) % len(shape)
    if axes.labels[dimension] is not None:
        axes.labels[dimension] = _parts(t, axes.labels[dimension], [shape[dimension] // 2] * 2)[0]
    return axes


@unary
def roll(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Turned around in some dimensions by numbers of places."""
    dimensions = [int(d) % len(shape) for d in call.argument("dims") or range(len(shape))]
    t.freeze_axes(axes, dimensions, "it is rolled")
    for d in dimensions:
        axes.labels[d] = None
    return axes


# -- single indices ---------------------------------------------------------------------------------------------------


def select(t: Trace, call: Call) -> object:
    """One index, or all of them one by one (`unbind`): that dimension stays."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    dimension = int(call.argument("dim")) % tensor.dim()
    t.freeze(axes.labels[dimension], "single indices of it are picked")
    result = call.run()
    for part in outputs_of(result):
        t.book.set(part, axes.take([d for d in range(tensor.dim()) if d != dimension]))
    return result


@unary
def index_select(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    dimension = int(call.argument("dim")) % len(shape)
    t.freeze(axes.labels[dimension], "indices of it are picked")
    axes.labels[dimension] = None
    return axes


@unary
def index(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """`x[:, places]`: dimensions with a tensor of indices, or a mask of one or more, become those of that tensor."""
    indexed: list[int] = []
    dimension = 0
    for places in call.args[1]:
        width = places.dim() if places is not None and places.dtype in (torch.bool, torch.uint8) else 1
        indexed += range(dimension, dimension + width) if places is not None else []
        dimension += width
    for places in call.args[1]:
        if places is not None:
            t.freeze_axes(t.book.get(places), range(places.dim()), "it is an index")
    t.freeze_axes(axes, indexed, "indices of it are picked")
    others = [d for d in range(len(shape)) if d not in indexed]
    made = result.dim() - len(others)
    together = not indexed or indexed == list(range(indexed[0], indexed[-1] + 1))
    before = sum(d < indexed[0] for d in others) if together and indexed else 0
    return axes.take([*others[:before], *[-1] * made, *others[before:]])


def along(t: Trace, call: Call) -> object:
    """One dimension is sorted or accumulated; the channels of another go one by one."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    dimension = call.argument("dim")
    result = call.run()
    if dimension is None or not tensor.dim():
        t.freeze_axes(axes, range(tensor.dim()), f"{call.func} runs over it")
        axes = Axes.plain(tensor.dim())
    else:
        t.freeze(axes.labels[int(dimension) % tensor.dim()], f"{call.func} runs over it")
        axes.labels[int(dimension) % tensor.dim()] = None
    for output in outputs_of(result):
        found = axes.copy() if output.dim() == tensor.dim() else Axes.plain(output.dim())
        found.zero = [zero and output.is_floating_point() for zero in found.zero]
        t.book.set(output, found)
    return result


@unary
def triangle(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """What is above or below a diagonal of the last two dimensions becomes 0."""
    t.freeze_axes(axes, range(max(len(shape) - 2, 0), len(shape)), "it is cut along a diagonal")
    return axes


@unary
def windows(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """`Tensor.unfold`: pieces of one dimension, in a new last one."""
    dimension = int(call.argument("dimension")) % max(len(shape), 1)
    t.freeze(axes.labels[dimension], "it is cut into windows")
    return axes.take([-1 if d == dimension else d for d in range(len(shape))] + [-1])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes"), split),
    **dict.fromkeys(("select", "unbind"), select),
    **dict.fromkeys(("slice", "narrow"), cut),
    **dict.fromkeys(("sort", "argsort", "topk", "cumsum", "cumprod"), along),
    **dict.fromkeys(("tril", "triu"), triangle),
    "glu": glu,
    "roll": roll,
    "index": index,
    "index_select": index_select,
    "unfold": windows,
}
