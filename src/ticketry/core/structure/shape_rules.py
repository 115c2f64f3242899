"""Tracing rules for operations that move elements or take parts: views, permutations, joining, slices, indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ticketry.core.structure.trace import (
    FIXED,
    Axes,
    Call,
    Ids,
    Rule,
    Trace,
    merge,
    outputs_of,
    set_axes,
    unary,
    unite_pieces,
    unknown,
)

# -- other shapes -----------------------------------------------------------------------------------------------------


@unary
def view(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Dimensions are merged and split; runs of dimensions with equal numbers of elements belong together."""
    found = Axes.plain(result.dim())
    for before, after in _runs(shape, tuple(result.shape)):
        _view_run(t, shape, axes, before, result, found, after)
    for ids in (*axes.labels, *found.labels):
        t.note_number(ids)
    return found


def _runs(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return the smallest runs of dimensions before and after with equal products, without those of size 1."""
    one = [d for d, size in enumerate(before) if size != 1]
    other = [d for d, size in enumerate(after) if size != 1]
    runs: list[tuple[list[int], list[int]]] = []
    while one and other:
        left, right = [one.pop(0)], [other.pop(0)]
        sizes = [before[left[0]], after[right[0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                left.append(one.pop(0))
                sizes[0] *= before[left[-1]]
            else:
                right.append(other.pop(0))
                sizes[1] *= after[right[-1]]
        runs.append((left, right))
    return runs


def _view_run(
    t: Trace, shape: tuple[int, ...], axes: Axes, before: list[int], result: Tensor, found: Axes, after: list[int]
) -> None:
    labelled = [d for d in before if axes.labels[d] is not None]
    labelled.sort(key=lambda d: t.labels.loose(_require_labels(axes, d)))
    for extra in labelled[1:]:
        t.freeze(axes.labels[extra], "it is merged with another channel's dimension")
    if not labelled:
        return
    source = labelled[0]
    ids, zero = _require_labels(axes, source), axes.zero[source]
    grid = np.moveaxis(
        np.broadcast_to(ids, (*(shape[d] for d in before if d != source), len(ids))), -1, before.index(source)
    )
    grid = t.labels.find(grid.reshape([result.shape[d] for d in after]))
    position = _owner(grid)
    if position is None:
        # Split into several dimensions, such as groups or heads: one of them can be narrower, and everything along the
        # others must lose the same.
        site = t.running, shape, tuple(result.shape)
        if not t.labels.frozen(grid.reshape(-1)).all():
            t.cuts[site] = grid.reshape(-1), len(after)
        position = len(after) - 1 - min(t.choices.get(site, 0), len(after) - 1)
        rows = np.moveaxis(grid, position, -1).reshape(-1, grid.shape[position])
        unite_pieces(t, rows)
    found.labels[after[position]] = np.moveaxis(grid, position, -1).reshape(-1, grid.shape[position])[0]
    found.zero[after[position]] = zero


def _require_labels(axes: Axes, dimension: int) -> Ids:
    ids = axes.labels[dimension]
    assert ids is not None
    return ids


def _owner(grid: Ids) -> int | None:
    """Return the only dimension along which labels differ, or None."""
    for position in range(grid.ndim):
        moved = np.moveaxis(grid, position, -1).reshape(-1, grid.shape[position])
        if (moved == moved[0]).all():
            return position
    return None


@unary
def permute(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    count = len(shape)
    order = list(range(count))
    if call.name == "permute":
        order = [int(d) % count for d in call.argument("dims")]
    elif call.name == "t":
        order = order[::-1]
    elif count:
        one, other = int(call.argument("dim0")) % count, int(call.argument("dim1")) % count
        order[one], order[other] = other, one
    return axes.take(order)


@unary
def squeeze(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Dimensions of size 1 are removed."""
    dim, count = call.argument("dim"), len(shape)
    listed = list(range(count)) if dim is None else [d % count for d in ([dim] if isinstance(dim, int) else dim)]
    return axes.take([d for d in range(count) if not (d in listed and shape[d] == 1)])


@unary
def unsqueeze(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    order = list(range(result.dim() - 1))
    order.insert(int(call.argument("dim")) % result.dim(), -1)
    return axes.take(order)


@unary
def expand(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Repeated elements may match the number of any channels: `norm.expand_as(x)`."""
    added = result.dim() - len(shape)
    found = axes.take([-1] * added + list(range(len(shape))))
    for d, size in enumerate(result.shape):
        if size > 1 and (d < added or shape[d - added] == 1):
            found.labels[d], found.zero[d] = t.labels.new(size), False
        t.note_number(found.labels[d])
    return found


@unary
def repeat(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Concatenated copies."""
    found = axes.take([-1] * (result.dim() - len(shape)) + list(range(len(shape))))
    for dimension, times in enumerate(call.argument("repeats")):
        ids = found.labels[dimension]
        found.labels[dimension] = None if ids is None else np.tile(ids, times)
    return found


@unary
def flip(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    for dimension in call.argument("dims"):
        ids = axes.labels[dimension]
        axes.labels[dimension] = None if ids is None else ids[::-1].copy()
    return axes


# -- joining ----------------------------------------------------------------------------------------------------------


def cat(t: Trace, call: Call) -> Any:
    parts = [(tensor, t.book.get(tensor)) for tensor in call.args[0] if tensor.numel()]
    result = call.run()
    dimension = int(call.argument("dim")) % result.dim()
    found = Axes.plain(result.dim())
    for d in range(result.dim()):
        found.zero[d] = all(axes.zero[d] for _, axes in parts)
        if d != dimension:
            found.labels[d] = merge(t, [axes.labels[d] for _, axes in parts])
    pieces = [axes.labels[dimension] for _, axes in parts]
    if any(ids is not None for ids in pieces):
        filled = [_or_fixed(ids, tensor.shape[dimension]) for ids, (tensor, _) in zip(pieces, parts, strict=True)]
        found.labels[dimension] = np.concatenate(filled)
        labelled = [axes.zero[dimension] for _, axes in parts if axes.labels[dimension] is not None]
        found.zero[dimension] = all(labelled)
    t.book.set(result, found)
    return result


def _or_fixed(ids: Ids | None, size: int) -> Ids:
    return np.full(size, FIXED, dtype=np.int64) if ids is None else ids


def stack(t: Trace, call: Call) -> Any:
    parts = [t.book.get(tensor) for tensor in call.args[0]]
    result = call.run()
    found = Axes.plain(result.dim() - 1)
    for d in range(result.dim() - 1):
        found.labels[d] = merge(t, [axes.labels[d] for axes in parts])
        found.zero[d] = all(axes.zero[d] for axes in parts)
    order = list(range(result.dim() - 1))
    order.insert(int(call.argument("dim")) % result.dim(), -1)
    t.book.set(result, found.take(order))
    return result


# -- padding and shuffling ---------------------------------------------------------------------------------------------


@unary
def pad(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Padding with a constant; added indices of a channel's dimension stay."""
    widths = list(call.argument("pad"))
    for index in range(len(widths) // 2):
        dimension = len(shape) - 1 - index
        ids = axes.labels[dimension]
        if min(widths[2 * index : 2 * index + 2]) < 0:
            t.freeze(ids, "it is cropped")
            axes.labels[dimension] = None
        elif ids is not None:
            fixed = [_or_fixed(None, width) for width in widths[2 * index : 2 * index + 2]]
            axes.labels[dimension] = np.concatenate([fixed[0], ids, fixed[1]])
    if call.argument("value"):
        axes.zero = [False] * len(shape)
    return axes


def pixel_shuffle(t: Trace, call: Call) -> Any:
    """factor^2 channels (dimension -3) become one; `pixel_unshuffle` is the inverse."""
    tensor = call.tensors[0]
    ids = t.book.get(tensor).labels[-3]
    if ids is None:
        return unknown(t, call)
    zero = t.book.get(tensor).zero[-3]
    result = call.run()
    found = Axes.plain(result.dim())
    if call.name == "pixel_shuffle":
        square = tensor.shape[-3] // result.shape[-3]
        blocks = ids.reshape(-1, square)
        t.labels.unite(np.repeat(blocks[:, 0], square), ids, t.reason("its block of channels stays"))
        found.labels[-3] = blocks[:, 0] if result.shape[-3] > 1 else None
        if result.shape[-3] == 1:
            t.freeze(ids, "all its channels become one")
    else:
        found.labels[-3] = np.repeat(ids, result.shape[-3] // tensor.shape[-3])
    found.zero[-3] = zero
    t.freeze_axes(t.book.get(tensor), [-1, -2, *range(tensor.dim() - 3)], "pixels of it are shuffled")
    t.book.set(result, found)
    return result


@unary
def channel_shuffle(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Dimension 1 is split into groups; the first channels of all groups come first, then the second ones."""
    ids, groups = axes.labels[1], int(call.argument("groups"))
    if ids is not None:
        rows = ids.reshape(groups, -1)
        unite_pieces(t, rows)
        t.note_number(ids)
        axes.labels[1] = rows.T.reshape(-1)
    return axes


@unary
def columns(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """`im2col`: [batch, channels, height, width] -> windows [batch, channels x pixels of a window, places]."""
    t.freeze_axes(axes, [-1, -2, *range(len(shape) - 3)], "windows of it are taken")
    found = Axes.plain(result.dim())
    ids = axes.labels[-3]
    if ids is not None:
        found.labels[-2], found.zero[-2] = np.repeat(ids, result.shape[-2] // len(ids)), axes.zero[-3]
    return found


@unary
def uncolumns(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """`col2im`: windows are added up."""
    t.freeze_axes(axes, [-1, *range(len(shape) - 2)], "windows of it are taken")
    found = Axes.plain(result.dim())
    ids = axes.labels[-2]
    if ids is not None:
        blocks = ids.reshape(result.shape[-3], -1)
        t.labels.unite(np.repeat(blocks[:, 0], blocks.shape[1]), ids, t.reason("its window stays"))
        found.labels[-3], found.zero[-3] = blocks[:, 0], axes.zero[-2]
        if len(blocks) == 1:
            t.freeze(ids, "all its channels become one")
            found.labels[-3] = None
    return found


def pack(t: Trace, call: Call) -> tuple[Tensor, Tensor]:
    """`pack_padded_sequence`: the sequences that are not over, step by step, and their number."""
    axes = t.book.get(call.tensors[0])
    t.freeze_axes(axes, [0, 1], "it is a batch of sequences")
    data, sizes = call.run()
    set_axes(t, [data, sizes], axes.take([-1, *range(2, len(axes.labels))]))
    return data, sizes


def pad_packed(t: Trace, call: Call) -> tuple[Tensor, Tensor]:
    """`pad_packed_sequence`; the padding may differ from 0."""
    axes = t.book.get(call.tensors[0])
    data, lengths = call.run()
    padded = axes.take([-1, -1, *range(1, len(axes.labels))])
    padded.zero = [zero and not call.argument("padding_value") for zero in padded.zero]
    set_axes(t, [data, lengths], padded)
    return data, lengths


_MOVES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), view),
    **dict.fromkeys(("permute", "t", "transpose"), permute),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), pixel_shuffle),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "repeat": repeat,
    "flip": flip,
    "cat": cat,
    "stack": stack,
    "constant_pad_nd": pad,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    "im2col": columns,
    "col2im": uncolumns,
    "_pack_padded_sequence": pack,
    "_pad_packed_sequence": pad_packed,
}


# -- parts of one dimension -------------------------------------------------------------------------------------------


def split(t: Trace, call: Call) -> object:
    """Consecutive parts."""
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
    """Return the labels of consecutive parts.

    Parts of one size have one width in the code and must lose the same channels. Parts of several sizes stay unless
    their widths are attributes of the module.
    """
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
    """Return the labels of one part.

    If it is one of several equal parts, all must lose the same channels. Any other part begins and ends at numbers,
    counted from either end, which must be attributes.
    """
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
    """Cyclic shifts."""
    dimensions = [int(d) % len(shape) for d in call.argument("dims") or range(len(shape))]
    t.freeze_axes(axes, dimensions, "it is rolled")
    for d in dimensions:
        axes.labels[d] = None
    return axes


# -- single indices ---------------------------------------------------------------------------------------------------


def select(t: Trace, call: Call) -> object:
    """One index, or each index (`unbind`) of a dimension, which stays."""
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
    """`x[:, places]`: dimensions indexed by a tensor, or by a mask of several, become those of the index."""
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
    """Sorting or accumulation along one dimension, which stays."""
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
    """One side of a diagonal of the last two dimensions becomes 0."""
    t.freeze_axes(axes, range(max(len(shape) - 2, 0), len(shape)), "it is cut along a diagonal")
    return axes


@unary
def windows(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """`Tensor.unfold`: windows of one dimension, in a new last one."""
    dimension = int(call.argument("dimension")) % max(len(shape), 1)
    t.freeze(axes.labels[dimension], "it is cut into windows")
    return axes.take([-1 if d == dimension else d for d in range(len(shape))] + [-1])


_PARTS: dict[str, Rule] = {
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


RULES: dict[str, Rule] = {**_MOVES, **_PARTS}
