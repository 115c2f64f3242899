"""Rules for operations that take parts of a tensor: slices, splits, rolls, indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ticketry.core.structure.axes import Axes
from ticketry.core.structure.labels import Ids
from ticketry.core.structure.rules import Call, Rule, outputs_of
from ticketry.core.structure.trace import Trace

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


def cut(t: Trace, call: Call) -> object:
    """`slice` and `narrow`."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    dimension = int(call.argument("dim")) % tensor.dim()
    ids, size = axes.labels[dimension], tensor.shape[dimension]
    start = call.argument("start") or 0
    step = call.argument("step") or 1
    result = call.run()
    length = result.shape[dimension]
    if step != 1:
        t.freeze(ids, "it is cut with a step")
        axes.labels[dimension] = None
    elif ids is not None and length < size:
        first = min(max(start + size if start < 0 else start, 0), size)
        axes.labels[dimension] = _piece(t, ids, first, length)
    t.book.set(result, axes)
    return result


def _piece(t: Trace, ids: Ids, start: int, length: int) -> Ids | None:
    """Labels of one part. One of several equal parts is one of the width: all must lose the same channels. Any other
    begins and ends at numbers, counted from either end."""
    found, stop = ids[start : start + length], start + length
    t.note_number(ids)
    if length and len(ids) % length == 0 and start % length == 0:
        t.note_number(found)
        pieces = ids.reshape(-1, length)
        for piece in pieces[1:]:
            t.labels.unite(pieces[0], piece, t.reason("it is one of several that must lose the same channels"))
        return _unless_single(t, pieces[0])
    ends = [place for place in (start, stop) if 0 < place < len(ids)]
    known = [[t.note_number(ids[:place]), t.note_number(ids[place:])] for place in ends]
    if all(any(either) for either in known):
        return _unless_single(t, found)
    t.freeze(ids, "it is cut into unequal parts")
    return None


def glu(t: Trace, call: Call) -> object:
    """The first half times the sigmoid of the second."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    dimension = int(call.argument("dim")) % tensor.dim()
    if axes.labels[dimension] is not None:
        axes.labels[dimension] = _parts(t, axes.labels[dimension], [tensor.shape[dimension] // 2] * 2)[0]
    result = call.run()
    t.book.set(result, axes)
    return result


def roll(t: Trace, call: Call) -> object:
    """Turned around in some dimensions by numbers of places."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    listed = call.argument("dims")
    dimensions = [int(d) % tensor.dim() for d in listed or range(tensor.dim())]
    t.freeze_axes(axes, dimensions, "it is rolled")
    for d in dimensions:
        axes.labels[d] = None
    result = call.run()
    t.book.set(result, axes)
    return result


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


def index_select(t: Trace, call: Call) -> object:
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    dimension = int(call.argument("dim")) % tensor.dim()
    t.freeze(axes.labels[dimension], "indices of it are picked")
    axes.labels[dimension] = None
    result = call.run()
    t.book.set(result, axes)
    return result


def index(t: Trace, call: Call) -> object:
    """`x[:, places]`: dimensions with a tensor of indices, or a mask of one or more, become those of that tensor."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    result = call.run()
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
    others = [d for d in range(tensor.dim()) if d not in indexed]
    made = result.dim() - len(others)
    together = not indexed or indexed == list(range(indexed[0], indexed[-1] + 1))
    before = sum(d < indexed[0] for d in others) if together and indexed else 0
    t.book.set(result, axes.take([*others[:before], *[-1] * made, *others[before:]]))
    return result


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


def triangle(t: Trace, call: Call) -> object:
    """What is above or below a diagonal of the last two dimensions becomes 0."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    t.freeze_axes(axes, range(max(tensor.dim() - 2, 0), tensor.dim()), "it is cut along a diagonal")
    result = call.run()
    t.book.set(result, axes)
    return result


def windows(t: Trace, call: Call) -> object:
    """`Tensor.unfold`: pieces of one dimension, in a new last one."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    dimension = int(call.argument("dimension")) % max(tensor.dim(), 1)
    t.freeze(axes.labels[dimension], "it is cut into windows")
    result = call.run()
    t.book.set(result, axes.take([-1 if d == dimension else d for d in range(tensor.dim())] + [-1]))
    return result


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
