"""Trace operations that move or select elements: views, permutations, concatenation, slices, indices.

Each function runs an operation and sets the labels of its outputs, see `trace`. A dimension is frozen if none of its
channels can be removed.
"""

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
    rule_on_first_tensor,
    unite_all_labels,
    unite_labels_of_pieces,
)

# -- other shapes -----------------------------------------------------------------------------------------------------


@rule_on_first_tensor
def trace_view(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace a reshape: find the channels of the merged and split dimensions."""
    found = Axes.unlabelled(result.dim())
    for before, after in _match_reshaped_dimensions(shape, tuple(result.shape)):
        _trace_reshaped_dimensions(t, shape, axes, before, result, found, after)
    for ids in (*axes.labels, *found.labels):
        t.record_width_use(ids)
    return found


def _match_reshaped_dimensions(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Match the dimensions of a tensor before and after a reshape; dimensions of size 1 are left out.

    Each match is a pair of lists of consecutive dimensions with equally many elements. The lists are as short as
    possible.
    """
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


def _trace_reshaped_dimensions(
    t: Trace, shape: tuple[int, ...], axes: Axes, before: list[int], result: Tensor, found: Axes, after: list[int]
) -> None:
    labelled = [d for d in before if axes.labels[d] is not None]
    labelled.sort(key=lambda d: t.labels.are_created_by_run(_require_labels(axes, d)))
    for extra in labelled[1:]:
        t.freeze(axes.labels[extra], "it is merged with another channel's dimension")
    if not labelled:
        return
    source = labelled[0]
    ids, zero = _require_labels(axes, source), axes.zero[source]
    grid = np.moveaxis(
        np.broadcast_to(ids, (*(shape[d] for d in before if d != source), len(ids))), -1, before.index(source)
    )
    grid = t.labels.find_roots(grid.reshape([result.shape[d] for d in after]))

    def rows_along(position: int) -> Ids:
        """Return `grid` as a matrix whose columns are the indices of one dimension."""
        return np.moveaxis(grid, position, -1).reshape(-1, grid.shape[position])

    # The dimension along which labels differ, if it is only one.
    position = next((d for d in range(grid.ndim) if (rows_along(d) == rows_along(d)[0]).all()), None)
    if position is None:
        # The dimension is split into several, such as groups or heads. One of these can be narrower; along the others,
        # all indices must lose the same channels.
        site = t.running_module_name, shape, tuple(result.shape)
        if any(t.labels.reason_not_removable(root) is None for root in np.unique(grid).tolist()):
            t.cuts[site] = grid.reshape(-1), len(after)
        position = len(after) - 1 - min(t.choices.get(site, 0), len(after) - 1)
        unite_labels_of_pieces(t, rows_along(position))
    found.labels[after[position]] = rows_along(position)[0]
    found.zero[after[position]] = zero


def _require_labels(axes: Axes, dimension: int) -> Ids:
    ids = axes.labels[dimension]
    assert ids is not None
    return ids


@rule_on_first_tensor
def trace_permute(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    count = len(shape)
    order = list(range(count))
    if call.name == "permute":
        order = [int(d) % count for d in call.argument("dims")]
    elif call.name == "t":
        order = order[::-1]
    elif count:
        one, other = int(call.argument("dim0")) % count, int(call.argument("dim1")) % count
        order[one], order[other] = other, one
    return axes.reorder(order)


@rule_on_first_tensor
def trace_squeeze(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `squeeze`, which removes dimensions of size 1."""
    dim, count = call.argument("dim"), len(shape)
    listed = list(range(count)) if dim is None else [d % count for d in ([dim] if isinstance(dim, int) else dim)]
    return axes.reorder([d for d in range(count) if not (d in listed and shape[d] == 1)])


@rule_on_first_tensor
def trace_unsqueeze(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    order = list(range(result.dim() - 1))
    order.insert(int(call.argument("dim")) % result.dim(), -1)
    return axes.reorder(order)


@rule_on_first_tensor
def trace_expand(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `expand`: expanded dimensions get new labels, because their size may equal the number of any channels."""
    added = result.dim() - len(shape)
    found = axes.reorder([-1] * added + list(range(len(shape))))
    for d, size in enumerate(result.shape):
        if size > 1 and (d < added or shape[d - added] == 1):
            found.labels[d], found.zero[d] = t.labels.create(size), False
        t.record_width_use(found.labels[d])
    return found


@rule_on_first_tensor
def trace_repeat(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `repeat`, which concatenates copies of a tensor: a channel is removed from all copies together."""
    found = axes.reorder([-1] * (result.dim() - len(shape)) + list(range(len(shape))))
    for dimension, times in enumerate(call.argument("repeats")):
        ids = found.labels[dimension]
        found.labels[dimension] = None if ids is None else np.tile(ids, times)
    return found


@rule_on_first_tensor
def trace_flip(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    for dimension in call.argument("dims"):
        ids = axes.labels[dimension]
        axes.labels[dimension] = None if ids is None else ids[::-1].copy()
    return axes


# -- joining ----------------------------------------------------------------------------------------------------------


def trace_cat(t: Trace, call: Call) -> Any:
    parts = [(tensor, t.book.get(tensor)) for tensor in call.args[0] if tensor.numel()]
    result = call.run()
    dimension = int(call.argument("dim")) % result.dim()
    found = Axes.unlabelled(result.dim())
    for d in range(result.dim()):
        found.zero[d] = all(axes.zero[d] for _, axes in parts)
        if d != dimension:
            found.labels[d] = unite_all_labels(t, [axes.labels[d] for _, axes in parts])
    pieces = [axes.labels[dimension] for _, axes in parts]
    if any(ids is not None for ids in pieces):
        filled = [
            _labels_or_fixed(ids, tensor.shape[dimension]) for ids, (tensor, _) in zip(pieces, parts, strict=True)
        ]
        found.labels[dimension] = np.concatenate(filled)
        labelled = [axes.zero[dimension] for _, axes in parts if axes.labels[dimension] is not None]
        found.zero[dimension] = all(labelled)
    t.book.set(result, found)
    return result


def _labels_or_fixed(ids: Ids | None, size: int) -> Ids:
    return np.full(size, FIXED, dtype=np.int64) if ids is None else ids


def trace_stack(t: Trace, call: Call) -> Any:
    parts = [t.book.get(tensor) for tensor in call.args[0]]
    result = call.run()
    found = Axes.unlabelled(result.dim() - 1)
    for d in range(result.dim() - 1):
        found.labels[d] = unite_all_labels(t, [axes.labels[d] for axes in parts])
        found.zero[d] = all(axes.zero[d] for axes in parts)
    order = list(range(result.dim() - 1))
    order.insert(int(call.argument("dim")) % result.dim(), -1)
    t.book.set(result, found.reorder(order))
    return result


# -- padding and shuffling ---------------------------------------------------------------------------------------------


@rule_on_first_tensor
def trace_pad(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace padding with a constant: the added indices cannot be removed."""
    widths = list(call.argument("pad"))
    for index in range(len(widths) // 2):
        dimension = len(shape) - 1 - index
        ids = axes.labels[dimension]
        if min(widths[2 * index : 2 * index + 2]) < 0:
            t.freeze(ids, "it is cropped")
            axes.labels[dimension] = None
        elif ids is not None:
            fixed = [_labels_or_fixed(None, width) for width in widths[2 * index : 2 * index + 2]]
            axes.labels[dimension] = np.concatenate([fixed[0], ids, fixed[1]])
    if call.argument("value"):
        axes.zero = [False] * len(shape)
    return axes


@rule_on_first_tensor
def trace_pixel_shuffle(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `pixel_shuffle`, which merges every factor^2 channels (dimension -3), or its inverse `pixel_unshuffle`."""
    ids, found = axes.labels[-3], Axes.unlabelled(result.dim())
    if ids is None:
        t.freeze_axes(axes, range(len(shape)), f"{call.func} cannot be followed")
        return found
    if call.name == "pixel_shuffle":
        square = shape[-3] // result.shape[-3]
        blocks = ids.reshape(-1, square)
        t.labels.unite(np.repeat(blocks[:, 0], square), ids, t.add_location("its block of channels stays"))
        found.labels[-3] = blocks[:, 0] if result.shape[-3] > 1 else None
        if result.shape[-3] == 1:
            t.freeze(ids, "all its channels become one")
    else:
        found.labels[-3] = np.repeat(ids, result.shape[-3] // shape[-3])
    found.zero[-3] = axes.zero[-3]
    t.freeze_axes(axes, [-1, -2, *range(len(shape) - 3)], "pixels of it are shuffled")
    return found


@rule_on_first_tensor
def trace_channel_shuffle(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `channel_shuffle`: channels (dimension 1) are viewed as [groups, channels of a group] and transposed.

    All groups must lose the same channels.
    """
    ids, groups = axes.labels[1], int(call.argument("groups"))
    if ids is not None:
        rows = ids.reshape(groups, -1)
        unite_labels_of_pieces(t, rows)
        t.record_width_use(ids)
        axes.labels[1] = rows.T.reshape(-1)
    return axes


@rule_on_first_tensor
def trace_im2col(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `im2col`, which turns [batch, channels, height, width] into [batch, channels * window size, positions]."""
    t.freeze_axes(axes, [-1, -2, *range(len(shape) - 3)], "windows of it are taken")
    found = Axes.unlabelled(result.dim())
    ids = axes.labels[-3]
    if ids is not None:
        found.labels[-2], found.zero[-2] = np.repeat(ids, result.shape[-2] // len(ids)), axes.zero[-3]
    return found


@rule_on_first_tensor
def trace_col2im(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `col2im`, which adds up overlapping windows into an image: a channel loses its whole window."""
    t.freeze_axes(axes, [-1, *range(len(shape) - 2)], "windows of it are taken")
    found = Axes.unlabelled(result.dim())
    ids = axes.labels[-2]
    if ids is not None:
        blocks = ids.reshape(result.shape[-3], -1)
        t.labels.unite(np.repeat(blocks[:, 0], blocks.shape[1]), ids, t.add_location("its window stays"))
        found.labels[-3], found.zero[-3] = blocks[:, 0], axes.zero[-2]
        if len(blocks) == 1:
            t.freeze(ids, "all its channels become one")
            found.labels[-3] = None
    return found


@rule_on_first_tensor
def trace_pack_padded(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *outputs: Tensor) -> Axes:
    """Trace `pack_padded_sequence`, which returns the elements of all sequences and the number of elements per step."""
    t.freeze_axes(axes, [0, 1], "it is a batch of sequences")
    return axes.reorder([-1, *range(2, len(shape))])


@rule_on_first_tensor
def trace_pad_packed(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *outputs: Tensor) -> Axes:
    """Trace `pad_packed_sequence`: removed channels are 0 afterwards only if the padding value is 0 too."""
    padded = axes.reorder([-1, -1, *range(1, len(shape))])
    padded.zero = [zero and not call.argument("padding_value") for zero in padded.zero]
    return padded


# -- parts of one dimension -------------------------------------------------------------------------------------------


@rule_on_first_tensor
def trace_split(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *parts: Tensor) -> list[Axes]:
    """Trace the split of a dimension into consecutive parts, such as `split` or `chunk`."""
    dimension = int(call.argument("dim")) % len(shape)
    labels = _split_labels(t, axes.labels[dimension], [part.shape[dimension] for part in parts])
    found = [axes.copy() for _ in parts]
    for own, ids in zip(found, labels, strict=True):
        own.labels[dimension] = ids
    return found


def _split_labels(t: Trace, ids: Ids | None, sizes: Sequence[int]) -> list[Ids | None]:
    """Return the labels (numbers that identify channels) of consecutive parts of a dimension, of the given `sizes`.

    Parts of equal size share one width in the code, so they must lose the same channels. If sizes differ, channels can
    be removed only if all widths are attributes of the module.
    """
    if ids is None:
        return [None for _ in sizes]
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    known = [t.record_width_use(part) for part in parts]
    t.record_width_use(ids)
    if len(set(sizes)) > 1 and not all(known):
        t.freeze(ids, "it is cut into unequal parts")
        return [None for _ in sizes]
    first = dict(zip(reversed(sizes), reversed(parts), strict=True))
    for size, part in zip(sizes, parts, strict=True):
        t.labels.unite(first[size], part, t.add_location("it is one of several that must lose the same channels"))
    return [_freeze_single_channel(t, part) for part in parts]


def _freeze_single_channel(t: Trace, ids: Ids) -> Ids | None:
    if len(ids) > 1:
        return ids
    t.freeze(ids, "it is cut into single channels")
    return None


@rule_on_first_tensor
def trace_slice(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `slice` or `narrow`, which select consecutive indices of a dimension."""
    dimension = int(call.argument("dim")) % len(shape)
    ids, size, length = axes.labels[dimension], shape[dimension], result.shape[dimension]
    start = call.argument("start") or 0
    if (call.argument("step") or 1) != 1:
        t.freeze(ids, "it is cut with a step")
        axes.labels[dimension] = None
    elif ids is not None and length < size:
        first = min(max(start + size if start < 0 else start, 0), size)
        axes.labels[dimension] = _slice_labels(t, ids, first, length)
    return axes


def _slice_labels(t: Trace, ids: Ids, start: int, length: int) -> Ids | None:
    """Return the labels, which identify channels, of a part of a dimension; None if the channels must stay.

    If the part is one of several equal parts, all parts must lose the same channels. Otherwise the part's ends, counted
    from the start or the end of the dimension, must be attributes of the module; if they are not, no channel of the
    dimension can be removed.
    """
    found, stop = ids[start : start + length], start + length
    t.record_width_use(ids)
    if length and len(ids) % length == 0 and start % length == 0:
        t.record_width_use(found)
        pieces = ids.reshape(-1, length)
        unite_labels_of_pieces(t, pieces)
        return _freeze_single_channel(t, pieces[0])
    ends = [place for place in (start, stop) if 0 < place < len(ids)]
    known = [[t.record_width_use(ids[:place]), t.record_width_use(ids[place:])] for place in ends]
    if all(any(either) for either in known):
        return _freeze_single_channel(t, found)
    t.freeze(ids, "it is cut into unequal parts")
    return None


@rule_on_first_tensor
def trace_glu(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `glu`, which multiplies the first half of a dimension by the sigmoid of the second half.

    Both halves must lose the same channels.
    """
    dimension = int(call.argument("dim")) % len(shape)
    if axes.labels[dimension] is not None:
        axes.labels[dimension] = _split_labels(t, axes.labels[dimension], [shape[dimension] // 2] * 2)[0]
    return axes


@rule_on_first_tensor
def trace_roll(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `roll`, a cyclic shift: channels of the shifted dimensions cannot be removed."""
    dimensions = [int(d) % len(shape) for d in call.argument("dims") or range(len(shape))]
    t.freeze_axes(axes, dimensions, "it is rolled")
    for d in dimensions:
        axes.labels[d] = None
    return axes


# -- single indices ---------------------------------------------------------------------------------------------------


@rule_on_first_tensor
def trace_select(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *parts: Tensor) -> list[Axes]:
    """Trace `select` or `unbind`, which pick indices of a dimension: channels of this dimension cannot be removed."""
    dimension = int(call.argument("dim")) % len(shape)
    t.freeze(axes.labels[dimension], "single indices of it are picked")
    return [axes.reorder([d for d in range(len(shape)) if d != dimension]) for _ in parts]


@rule_on_first_tensor
def trace_index_select(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    dimension = int(call.argument("dim")) % len(shape)
    t.freeze(axes.labels[dimension], "indices of it are picked")
    axes.labels[dimension] = None
    return axes


@rule_on_first_tensor
def trace_index(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace indexing by tensors, such as `x[:, places]`: channels of the indexed dimensions cannot be removed.

    In the result, the dimensions of the index tensors replace the indexed dimensions.
    """
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
    return axes.reorder([*others[:before], *[-1] * made, *others[before:]])


@rule_on_first_tensor
def trace_along_dimension(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *outputs: Tensor) -> list[Axes]:
    """Trace sorting or accumulation along a dimension: channels of this dimension cannot be removed."""
    dimension = call.argument("dim")
    if dimension is None or not shape:
        t.freeze_axes(axes, range(len(shape)), f"{call.func} runs over it")
        axes = Axes.unlabelled(len(shape))
    else:
        t.freeze(axes.labels[int(dimension) % len(shape)], f"{call.func} runs over it")
        axes.labels[int(dimension) % len(shape)] = None
    found = [axes.copy() if output.dim() == len(shape) else Axes.unlabelled(output.dim()) for output in outputs]
    for own, output in zip(found, outputs, strict=True):
        own.zero = [zero and output.is_floating_point() for zero in own.zero]
    return found


@rule_on_first_tensor
def trace_triangle(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `tril` or `triu`, which zero one side of a diagonal: the last two dimensions cannot lose channels."""
    t.freeze_axes(axes, range(max(len(shape) - 2, 0), len(shape)), "it is cut along a diagonal")
    return axes


@rule_on_first_tensor
def trace_unfold(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `Tensor.unfold`, which replaces a dimension by windows of it: its channels cannot be removed."""
    dimension = int(call.argument("dimension")) % max(len(shape), 1)
    t.freeze(axes.labels[dimension], "it is cut into windows")
    return axes.reorder([-1 if d == dimension else d for d in range(len(shape))] + [-1])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), trace_view),
    **dict.fromkeys(("permute", "t", "transpose"), trace_permute),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), trace_pixel_shuffle),
    "squeeze": trace_squeeze,
    "unsqueeze": trace_unsqueeze,
    "expand": trace_expand,
    "repeat": trace_repeat,
    "flip": trace_flip,
    "cat": trace_cat,
    "stack": trace_stack,
    "constant_pad_nd": trace_pad,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), trace_channel_shuffle),
    "im2col": trace_im2col,
    "col2im": trace_col2im,
    "_pack_padded_sequence": trace_pack_padded,
    "_pad_packed_sequence": trace_pad_packed,
    **dict.fromkeys(("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes"), trace_split),
    **dict.fromkeys(("select", "unbind"), trace_select),
    **dict.fromkeys(("slice", "narrow"), trace_slice),
    **dict.fromkeys(("sort", "argsort", "topk", "cumsum", "cumprod"), trace_along_dimension),
    **dict.fromkeys(("tril", "triu"), trace_triangle),
    "glu": trace_glu,
    "roll": trace_roll,
    "index": trace_index,
    "index_select": trace_index_select,
    "unfold": trace_unfold,
}
