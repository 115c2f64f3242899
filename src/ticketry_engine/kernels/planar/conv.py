"""Plan a convolution on planes: choose a kernel, and pack the weights into tables.

    y[row] = act(bias[row] + residual[row] + sum over columns of weight[row, column] * x_shifted[column])

A linear layer is a 1x1 convolution. A row is an output channel. A column is an input channel at one tap of the window,
stored as the byte of the channel's plane plus the tap's shift. `choose_fastest_plan` chooses among the kernels of
`row_sums`, `taps` and `dots`. This module packs the tables of `row_sums`, without a Python loop over weights.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ticketry_engine.kernels.activations import Activation, parse_activation
from ticketry_engine.kernels.planar import dots, taps
from ticketry_engine.kernels.planar.geometry import (
    FLOAT,
    LINE,
    Geometry,
    Planes,
    Tiles,
    cut_tiles,
    mask_type,
    split_extent,
)
from ticketry_engine.kernels.planar.row_sums import FIRST, FLAG_BITS, LAST, RowSums, count_partial_sums
from ticketry_engine.kernels.planar.taps import MaskedTiles
from ticketry_engine.kernels.planar.unfold import Unfolding, plan_unfolding
from ticketry_engine.kernels.program import MARGIN, BlockSpec, Op
from ticketry_engine.kernels.target import FEW, Target
from ticketry_engine.kernels.window import Array, Convolution, Window


def conv(x: Planes, y: Planes, layer: Convolution, residual: Planes | None, spec: BlockSpec) -> list[Op]:
    """Return the operations that compute ``y = act(conv(x) + bias + residual)``; pruned weights take no time.

    The residual has the same number of channels as y, and may be y itself. Without scratch memory
    (`BlockSpec.reserve`), x is read in place even where copying it would be faster. Raise `ValueError` if shapes do not
    match, or if x cannot be read in place and there is no scratch memory.
    """
    window, groups = layer.window, layer.groups
    _check_shapes(x, y, layer, residual)
    weight = _zero_padding_taps(np.ascontiguousarray(layer.weight, dtype=np.float32), x.geometry, y.geometry, window)
    beside, unfold = None if residual is None else residual.geometry, spec.reserve is not None
    plan = choose_fastest_plan(x.geometry, y.geometry, beside, weight, window, groups, spec.target, unfold=unfold)
    ops: list[Op] = []
    if plan.unfolding is None:
        shifts = [x.geometry.shift_bytes(*window.tap_offset(tap)) for tap in window.taps]
        columns, value = x.offsets[:, None] + np.array(shifts), x
    else:
        assert spec.reserve is not None
        scratch = spec.reserve(plan.unfolding.bytes)
        ops += plan.unfolding.build_ops(x, scratch) if plan.unfolding.copies else []
        columns, value = plan.unfolding.column_offsets(scratch), plan.unfolding.to_planes(scratch)
    matrix = Matrix(
        weight.reshape(len(weight), -1),
        columns.reshape(groups, -1),
        len(window.taps),
        y.offsets,
        None if residual is None else residual.offsets,
        np.ascontiguousarray(layer.biases),
    )
    if plan.tap_tiles is not None:
        return [_build_taps_op(plan.tap_tiles, matrix, layer, y.geometry.images, spec.target)]
    if plan.dot_rows is not None:
        return _build_dots_ops(plan.dot_rows, matrix, (x.geometry, y.geometry, beside), layer, spec)
    act = parse_activation(layer.act)
    return [*ops, *(_build_sums_op(kind, matrix, value, act, spec.target) for kind in plan.kinds)]


def _build_taps_op(tiles: Sequence[MaskedTiles], matrix: Matrix, layer: Convolution, images: int, target: Target) -> Op:
    """Return the operation that computes the layer with the kernel `taps`, for rows that read few inputs."""
    row, column = np.nonzero(matrix.weight)
    begins = matrix.columns[row // matrix.group_rows, column]
    entries = (row, begins, column % matrix.taps, matrix.weight[row, column])
    rows = (matrix.y, matrix.residual, matrix.bias)
    return taps.build_op(tiles, entries, rows, layer.window, images, parse_activation(layer.act), target)


def _build_dots_ops(
    kinds: dict[int, list[list[Array]]],
    matrix: Matrix,
    geometries: tuple[Geometry, Geometry, Geometry | None],
    layer: Convolution,
    spec: BlockSpec,
) -> list[Op]:
    """Return the operations that compute the layer with the kernel `dots` (inner products), for one pixel and image."""
    assert spec.reserve is not None
    x, y, residual = (0 if g is None else g.pixel_position(0, 0) * g.position_bytes for g in geometries)
    at = replace(
        matrix,
        columns=matrix.columns + x,
        y=matrix.y + y,
        residual=None if matrix.residual is None else matrix.residual + residual,
    )
    scratch = spec.reserve(dots.scratch_bytes(at.columns.size))
    return dots.build_ops(
        (at.weight, at.columns), kinds, (at.y, at.residual, at.bias), scratch, parse_activation(layer.act), spec.target
    )


def scratch_bytes(x: Planes, y: Planes, layer: Convolution, spec: BlockSpec) -> int:
    """Return the bytes of scratch memory that `conv` needs for copies of x; 0 if it reads x in place."""
    plan = _fastest_plan(x, y, layer, spec.target)
    return 0 if plan.unfolding is None else plan.unfolding.bytes


def estimate_cost(x: Planes, y: Planes, layer: Convolution, spec: BlockSpec) -> float:
    """Estimate the nanoseconds that `conv` takes for one block of images on one thread.

    The estimate only serves to compare alternatives for the same layer.
    """
    return _fastest_plan(x, y, layer, spec.target).nanoseconds


def _fastest_plan(x: Planes, y: Planes, layer: Convolution, target: Target) -> ConvPlan:
    weight = _zero_padding_taps(layer.weight, x.geometry, y.geometry, layer.window)
    return choose_fastest_plan(x.geometry, y.geometry, None, weight, layer.window, layer.groups, target)


def _zero_padding_taps(weight: Array, x: Geometry, y: Geometry, window: Window) -> Array:
    """Return the weights as [O, I / groups, taps], with zeros at kernel positions (taps) that only read padding."""
    weight = weight.reshape(*weight.shape[:2], -1)
    inside = np.array([window.reads_any_pixel(x, y, tap) for tap in window.taps])
    return weight if inside.all() else weight * inside.astype(np.float32)


def _build_sums_op(kind: RowKind, matrix: Matrix, x: Planes, act: Activation, target: Target) -> Op:
    """Return the operation that computes the rows in `kind` as weighted sums of input planes (kernel `RowSums`).

    `x` is the layer's input, or the shifted copies of the input that `Unfolding` describes.
    """
    if kind.rows > 1:
        made = pack_shared_rows(matrix, kind.groups, chunks=kind.chunks)
    else:
        rows = np.sort(np.concatenate([rows for group in kind.groups for rows in group]))
        made = pack_single_rows(matrix, rows, block=kind.block, chunks=kind.chunks)
    check_reads(made, x, kind.tiles, target)
    shapes, masked = tuple(t.shape for t in kind.tiles), tuple(t.masks is not None for t in kind.tiles)
    residual = matrix.residual is not None
    spec = RowSums(kind.rows, shapes, masked, residual, act, made.blocked, made.unit, made.wide)
    args: list[int | Array] = [made.segments, made.columns, made.weights, made.chunks, len(made.chunks)]
    for t in kind.tiles:
        masks = np.zeros(1) if t.masks is None else t.masks
        args += [t.places, len(t.places), masks.astype(mask_type(target))]
    return Op(spec, tuple(args))


def _check_shapes(x: Planes, y: Planes, layer: Convolution, residual: Planes | None) -> None:
    window, groups, (outputs, inputs) = layer.window, layer.groups, layer.weight.shape[:2]
    if x.channels != inputs * groups or y.channels != outputs or outputs % groups:
        raise ValueError(f"weights {layer.weight.shape} in {groups} groups for {x.channels} -> {y.channels} channels")
    if residual is not None and residual.channels != outputs:
        raise ValueError(f"a residual of {residual.channels} channels for {outputs}")
    if x.geometry.images != y.geometry.images:
        raise ValueError(f"{x.geometry.images} images, then {y.geometry.images}")
    for axis, extent in zip(window.axes(x.geometry), (y.geometry.height, y.geometry.width), strict=True):
        if axis.outputs != extent:
            raise ValueError(f"{window} over {axis.extent} gives {axis.outputs} rows or columns, not {extent}")


@dataclass(frozen=True, eq=False)
class Matrix:
    """A layer as a matrix whose rows are output channels and whose columns are input channels at taps."""

    weight: Array
    """float32 [rows, columns of a conv group]; the taps of an input channel are neighbouring columns."""
    columns: Array
    """int64 [conv groups, columns]: arena byte where the column's plane begins plus the shift of its tap."""
    taps: int
    """Number of taps of the window."""
    y: Array
    """int64 [rows]: arena byte where each plane of y begins."""
    residual: Array | None
    """int64 [rows]: arena byte where each plane of the residual begins."""
    bias: Array
    """float32 [rows]."""

    @property
    def inputs(self) -> int:
        """Number of input channels per convolution group."""
        return int(self.weight.shape[1]) // self.taps

    @property
    def group_rows(self) -> int:
        return len(self.weight) // len(self.columns)


@dataclass(frozen=True, eq=False)
class SumTables:
    """The tables that a `RowSums` kernel reads, and the fields of the kernel that depend on the tables."""

    segments: Array
    columns: Array
    weights: Array
    chunks: Array
    unit: int
    wide: bool
    blocked: bool
    reach: tuple[int, int]
    """Least and greatest arena byte at which a column begins."""


def pack_single_rows(matrix: Matrix, rows: Array, *, block: int, chunks: int) -> SumTables:
    """Return the tables for rows that are computed one by one, each with its own columns.

    `rows` are the numbers of the rows, ascending. Each row is divided into parts (segments) of `block` input channels.
    `chunks` is the number of parts into which the rows are divided for threads.
    """
    blocks = max(1, -(-matrix.inputs // block))
    kept = matrix.weight[rows] != 0
    edges = np.minimum(np.arange(blocks + 1) * block, matrix.inputs) * matrix.taps
    counts = np.stack([kept[:, low:high].sum(axis=1) for low, high in itertools.pairwise(edges)], axis=1)
    flags = _flag_first_and_last_blocks(counts)
    groups = rows // matrix.group_rows
    parts: list[tuple[Array, ...]] = []  # rows, first words and base bytes of segments; columns and weights
    starts: list[tuple[int, int]] = []
    bounds: list[int] = []
    for part in split_evenly(counts.sum(axis=1), chunks, groups if blocks > 1 else None):
        starts.append((sum(len(one[0]) for one in parts), sum(len(one[-1]) for one in parts)))
        for number in np.flatnonzero((flags[part] | counts[part]).any(axis=0)):
            used = part.start + np.flatnonzero(flags[part, number] | counts[part, number])
            row, column = np.nonzero(kept[used, edges[number] : edges[number + 1]])
            index, column = rows[used][row], column + edges[number]
            single = len(matrix.columns) == 1
            begins = matrix.columns[0, column] if single else matrix.columns[groups[used][row], column]
            bounds += [int(begins.min()), int(begins.max())] if len(begins) else []
            base = _least_column_starts(begins, counts[used, number])
            head = counts[used, number] << FLAG_BITS | flags[used, number]
            parts.append((rows[used], head, base, begins - base[row], matrix.weight[index, column]))
    order, heads, bases, columns, weights = (np.concatenate(some) for some in zip(*parts, strict=True))
    segments = build_segment_table(matrix, [heads, bases], order.reshape(-1, 1))
    ends = [start for start, _ in starts[1:]] + [len(order)]
    found = [(start, end - start, weight) for (start, weight), end in zip(starts, ends, strict=True)]
    reach = min(bounds, default=0), max(bounds, default=0)
    return _build_sum_tables(segments, columns, weights, found, blocks > 1, reach)


def pack_shared_rows(matrix: Matrix, groups: Sequence[Sequence[Array]], *, chunks: int) -> SumTables:
    """Return the tables for rows that share their columns.

    `groups` has, for each group of rows with equal columns, the sets of rows that the kernel computes together. All
    sets have the same size. `chunks` is the number of parts into which the rows are divided for threads.
    """
    sets = [rows for group in groups for rows in group]
    kept = [np.flatnonzero(matrix.weight[group[0][0]]) for group in groups]
    absolute = [
        matrix.columns[group[0][0] // matrix.group_rows, columns] for group, columns in zip(groups, kept, strict=True)
    ]
    counts = np.array([len(columns) for columns in kept])
    bases = np.array([begins.min() for begins in absolute])
    first = np.cumsum(counts) - counts
    of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    weights = [matrix.weight[rows][:, kept[group]].T for rows, group in zip(sets, of, strict=True)]
    head = counts[of] << FLAG_BITS | FIRST | LAST
    segments = build_segment_table(matrix, [head, bases[of], first[of]], np.stack(sets))
    done = np.cumsum(counts[of]) - counts[of]
    starts = [(part.start, part.stop - part.start, done[part.start]) for part in split_evenly(counts[of], chunks)]
    columns = np.concatenate([begins - base for begins, base in zip(absolute, bases, strict=True)])
    reach = min(int(begins.min()) for begins in absolute), max(int(begins.max()) for begins in absolute)
    return _build_sum_tables(segments, columns, np.concatenate(weights), starts, False, reach)


class ReadBounds(Protocol):
    """Interface of a kernel's tables that know the range of bytes at which their columns begin."""

    @property
    def weights(self) -> Array: ...

    @property
    def reach(self) -> tuple[int, int]:
        """Least and greatest arena byte at which a column begins."""


def check_reads(tables: ReadBounds, x: Planes, tiles: Sequence[Tiles], target: Target) -> None:
    """Raise `ValueError` if a kernel's tile reads before the first or after the last plane of x."""
    if not tables.weights.size:
        return
    first, end = int(x.offsets.min()), int(x.offsets.max()) + x.geometry.bytes
    for t in tiles:
        low = tables.reach[0] + int(t.places[:, 0].min()) + min(t.shape.x)
        high = tables.reach[1] + int(t.places[:, 0].max()) + max(t.shape.x) + target.lanes * FLOAT
        if low < first or high > end:
            raise ValueError(f"columns at bytes {low} … {high} lie outside the planes at {first} … {end}")


def _least_column_starts(begins: Array, counts: Array) -> Array:
    """Return, for each segment (part of a row), the least byte at which a column begins; 0 if it has no columns.

    `begins` are the bytes of the columns, segment by segment; `counts` are the numbers of columns of the segments.
    """
    bases = np.zeros(len(counts), dtype=np.int64)
    some = counts > 0
    if some.any():
        bases[some] = np.minimum.reduceat(begins, (np.cumsum(counts) - counts)[some])
    return bases


def build_segment_table(matrix: Matrix, head: Sequence[Array], rows: Array) -> Array:
    """Return the table of segments (parts of weight rows), as the kernels read it.

    `head` has, for each word at the start of a segment's entry, an array with a number for each segment. `rows`
    [segments, rows per segment] are row numbers.
    """
    each = rows.shape[1]
    words = np.empty((len(rows), len(head) + (2 if matrix.residual is None else 3) * each), dtype=np.int32)
    for number, word in enumerate(head):
        words[:, number] = word
    at = len(head)
    words[:, at : at + each] = matrix.y[rows]
    if matrix.residual is not None:
        words[:, at + each : at + 2 * each] = matrix.residual[rows]
    words[:, -each:] = matrix.bias[rows].view(np.int32)
    return words


def _flag_first_and_last_blocks(counts: Array) -> Array:
    """Return flags [rows, blocks]: FIRST for each row's first block with weights, and LAST for the last such block.

    A row without weights has both flags on block 0. `counts` [rows, blocks] are the numbers of retained weights of each
    row in each block of input channels.
    """
    some = counts > 0
    flags = np.zeros(counts.shape, dtype=np.int64)
    index = np.arange(len(counts))
    flags[index, some.argmax(axis=1)] |= FIRST
    last = np.where(some.any(axis=1), counts.shape[1] - 1 - some[:, ::-1].argmax(axis=1), 0)
    flags[index, last] |= LAST
    return flags


def split_evenly(work: Array, parts: int, groups: Array | None = None) -> Iterator[slice]:
    """Yield about `parts` slices of consecutive items, with about equal work; `work` has the work of each item.

    `groups` has a group number for each item; a slice never contains items of two groups.
    """
    done = np.cumsum(work + 1)
    cuts = np.searchsorted(done, done[-1] * np.arange(1, parts) / parts)
    if groups is not None:
        cuts = np.concatenate([cuts, 1 + np.flatnonzero(np.diff(groups))])
    bounds = np.unique(np.concatenate([[0], cuts, [len(work)]]))
    for low, high in itertools.pairwise(bounds):
        yield slice(int(low), int(high))


def _build_sum_tables(
    segments: Array,
    columns: Array,
    weights: Array,
    chunks: Sequence[tuple[int, int, int]],
    blocked: bool,
    reach: tuple[int, int],
) -> SumTables:
    """Build `SumTables`; store column offsets in the largest unit and smallest type that hold them exactly.

    A segment is a part of a row of weights. `columns` are bytes relative to the least byte of a segment's columns.
    `chunks`, the parts that are divided among threads, are (first segment, number of segments, first weight). `blocked`
    is whether rows may have several segments. `reach` holds the least and greatest byte of a column.
    """
    made = np.array(chunks, dtype=np.int64)
    made[:, 0] *= segments.shape[1] * 4
    common = int(np.gcd.reduce(columns)) if len(columns) else 0
    unit = max(1, common & -common)
    units = columns // unit
    wide = bool(len(columns)) and int(units.max()) >= 1 << 16
    return SumTables(segments, units.astype(np.int32 if wide else np.uint16), weights, made, unit, wide, blocked, reach)


# -- Choose the kernel of a convolution by estimated time --------------------------------------------------------------

#     row_sums   weighted sums of planes (or of copies of planes); rows with equal columns are summed together
#     taps       rows with few inputs, such as depthwise convolutions
#     dots       inner products, for one position and one image
#
#     time = sum over tiles of (columns * cycles per column + segments * cycles per segment) + copies + cache misses
#
# Cycles assume a core with two loads and two multiply-adds per cycle; the constants were fitted to measurements (see
# benchmarks/kernels.py). The estimates only serve to compare ways to do the same work.


_LAST = 16 << 20
"""Bytes of values that stay in the L3 cache, besides other data."""

_VISITS = ((2 << 20, 140), (1 << 20, 80), (1 << 18, 50))
"""(bytes, cycles): if a layer's values exceed the bytes, each step to the planes of other rows costs the cycles.

The first entry that applies counts. Fitted to layers of 64 to 240 planes of 28 x 28 to 112 x 112 pixels."""

_ALONE = 1.3
"""Correction factor of the estimate if rows with equal columns are computed one by one."""

_BYTES_A_CYCLE = 8.0
"""Memory bandwidth in bytes per cycle."""

_UNITS = 12
"""Least number of pairs (tile, chunk of rows) into which an operation is divided, so that threads can share it."""

_CYCLES_PER_NS = 4.0

_WIDEST_STRIDE = 2
"""Largest horizontal stride of the `taps` kernel, which reads whole vectors and drops the positions in between."""


@dataclass(frozen=True, eq=False)
class RowKind:
    """Rows of a layer that one `RowSums` kernel computes, with their tiles of pixels and blocks of input channels."""

    rows: int
    """Number of rows that are summed together."""
    groups: list[list[Array]]
    """For each group of rows with equal columns, its sets of `rows` rows that are summed together."""
    tiles: list[Tiles]
    block: int
    """Number of input channels in a segment (part) of a row."""
    cycles: float

    @property
    def chunks(self) -> int:
        """Number of parts into which the rows are divided for threads."""
        return -(-_UNITS // sum(len(t.places) for t in self.tiles))


@dataclass(frozen=True, eq=False)
class ConvPlan:
    """A possible choice of kernels and copies for a layer, with the estimated time."""

    unfolding: Unfolding | None
    kinds: list[RowKind]
    cycles: float
    tap_tiles: list[taps.MaskedTiles] | None = None
    """Tiles of the `taps` kernel, if that kernel computes the layer."""
    dot_rows: dict[int, list[list[Array]]] | None = None
    """All rows, as returned by `find_equal_rows`, if the `dots` kernels compute the layer."""

    @property
    def nanoseconds(self) -> float:
        return self.cycles / _CYCLES_PER_NS

    @property
    def tile_visits(self) -> int:
        """Number of (tile, set of rows) combinations; kernels write a different part of y for each."""
        return sum(
            len(tiles.places) * sum(len(group) for group in kind.groups) for kind in self.kinds for tiles in kind.tiles
        )


def choose_fastest_plan(
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    weight: Array,
    window: Window,
    groups: int,
    target: Target,
    unfold: bool = True,
) -> ConvPlan:
    """Return the plan for a layer with the least estimated time.

    `weight` is [O, I / groups, taps]. If `unfold`, x may be copied to scratch memory. Raise `ValueError` if x has to be
    copied although `unfold` is false, or if it has to be copied and the images of one pixel take several vectors.
    """
    kept = weight != 0
    digest = hashlib.blake2b(np.packbits(kept).tobytes(), digest_size=16).digest()
    cached = _cached_plans(digest, kept.shape, x, y, residual, window, groups, target, unfold)
    if not cached:
        cached.append(_choose_plan_of_pattern(kept, x, y, residual, window, groups, target, unfold))
    return cached[0]


@functools.lru_cache(maxsize=256)
def _cached_plans(*key: object) -> list[ConvPlan]:
    """Return the list that holds the plan for `key`; it is empty until the caller adds the plan.

    Plans are cached because masks of a model that are compared have many layers in common.
    """
    return []


def _choose_plan_of_pattern(
    kept: Array,
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    window: Window,
    groups: int,
    target: Target,
    unfold: bool,
) -> ConvPlan:
    """Return the fastest plan for a layer; `kept` [O, I / groups, taps] is True for retained weights."""
    outputs, inputs, size = kept.shape
    rows = find_equal_rows(kept.reshape(outputs, -1), groups)
    plans = []
    filled = y.images >= target.lanes
    if unfold and dots.can_use_dots(x, y, target):
        plans.append(
            ConvPlan(
                None,
                [],
                dots.estimate_cycles(groups * inputs * size, rows, kept.reshape(outputs, -1), target),
                dot_rows=rows,
            )
        )
    if (
        not filled
        and window.stride[1] <= _WIDEST_STRIDE
        and (target.has_masked_memory_access or taps.largest_read_distance(x, window) <= MARGIN)
    ):
        tiles = taps.make_tiles(x, y, residual, window, target)
        spent = taps.estimate_cycles(tiles, kept, x.bytes, inputs * groups, window.stride[1], target)
        plans.append(ConvPlan(None, [], spent, tiles))
    if window.reads_within_halo(x, y) and (filled or (window.stride == (1, 1) and x.row == y.row)):
        shifts = np.array([x.shift_bytes(*window.tap_offset(tap)) for tap in window.taps])
        columns = np.arange(inputs)[:, None] * x.bytes + shifts
        for one, more in (
            [(rows, 1.0)] if filled or list(rows) == [1] else [(rows, 1.0), (_split_into_single_rows(rows), _ALONE)]
        ):
            some = _build_row_kinds(one, kept, columns, x, y, residual, window, target)
            plans.append(ConvPlan(None, some, more * sum(kind.cycles for kind in some)))
    elif y.images > target.lanes:
        raise ValueError(f"{window} reads beyond the halo of {x}")
    elif not unfold and not plans:
        raise ValueError(f"{window} over {x} needs scratch memory for vectors of {target.lanes} lanes")
    if not plans or (unfold and not filled and window != Window()):
        used = kept.reshape(groups, outputs // groups, inputs, size).any(axis=1).reshape(-1, size)
        unfolding = plan_unfolding(x, y, window, used, target)
        some = _build_row_kinds(
            rows, kept, unfolding.column_offsets(0)[:inputs], unfolding.geometry, y, residual, Window(), target
        )
        plans.append(ConvPlan(unfolding, some, sum(kind.cycles for kind in some) + unfolding.cycles))
    moved = x.bytes * inputs * groups + y.bytes * outputs * (1 if residual is None else 2)
    visit = 0 if filled else next((cycles for size, cycles in _VISITS if moved > size), 0)
    plans = [replace(plan, cycles=plan.cycles + visit * plan.tile_visits) for plan in plans]
    plan = min(plans, key=lambda plan: plan.cycles)
    return replace(plan, cycles=max(plan.cycles, moved / _BYTES_A_CYCLE)) if moved > _LAST else plan


def find_equal_rows(kept: Array, groups: int) -> dict[int, list[list[Array]]]:
    """Divide the rows into sets that are computed together, and return the sets by their number of rows.

    All rows of a set retain equal columns. Each entry of the result has a list for each group of rows with equal
    columns: the group's sets of that size.

    `kept` is bool [rows, columns].
    """
    per, numbers = len(kept) // groups, np.arange(len(kept))
    packed = np.packbits(kept, axis=1)
    equal: dict[tuple[int, bytes], list[int]] = {}
    for row, columns in enumerate(map(bytes, packed)):
        equal.setdefault((row // per, columns), []).append(row)
    found: dict[int, list[list[Array]]] = {}
    for (_, columns), rows in equal.items():
        parts = _row_set_sizes(len(rows)) if any(columns) else [1] * len(rows)
        if len(parts) == 1:
            found.setdefault(len(rows), []).append([numbers[rows]])
            continue
        sets = np.split(numbers[rows], np.cumsum(parts[:-1]))
        for size in set(parts):
            found.setdefault(size, []).append([some for some in sets if len(some) == size])
    return found


def _split_into_single_rows(kinds: dict[int, list[list[Array]]]) -> dict[int, list[list[Array]]]:
    """Return the rows of `kinds` in the form of `find_equal_rows`, with each row in a separate set."""
    return {1: [[row for rows in sets for row in rows.reshape(-1, 1)] for some in kinds.values() for sets in some]}


def _row_set_sizes(rows: int) -> list[int]:
    """Return the sizes, at most 6 and equal if possible, of the sets into which `rows` similar rows are divided."""
    for size in (6, 4, 5):
        if rows % size == 0:
            return [size] * (rows // size)
    return [size for _, size in split_extent(rows, 6)]


def tile_vectors(rows: int, target: Target) -> tuple[int, ...]:
    """Return the numbers of vectors per tile to try, for which sums, inputs and a weight fit in the registers.

    For single rows, smaller tiles are also tried. More input channels of a small tile fit in the L1 cache, so that rows
    are divided into fewer parts.
    """
    if target.registers >= 32:
        return {1: (16, 8), 2: (8,), 3: (8,)}.get(rows, (4,))
    return {1: (12, 8, 4), 2: (5,), 3: (4,)}.get(rows, (2,))


def _build_row_kinds(
    rows: dict[int, list[list[Array]]],
    kept: Array,
    columns: Array,
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    window: Window,
    target: Target,
) -> list[RowKind]:
    """Return the `RowKind` of each size of row sets, with its fastest tiles.

    `rows` is what `find_equal_rows` returns; `kept` is bool [O, I / groups, taps]; `columns` [I / groups, taps] are the
    bytes of each column's input. `x` and `window` belong to the input, or to its copies if the kernel reads copies.
    """
    found = []
    near = target.near_of_few if kept.mean() < FEW else target.near
    counts = np.count_nonzero(kept, axis=(1, 2)).tolist()
    for size, groups in rows.items():
        possible = []
        for most in tile_vectors(size, target):
            tiles = cut_tiles(
                x, y, residual, stride=window.stride, lanes=target.lanes, most=most, taps=max(window.size)
            )
            block = _inputs_per_block(columns, tiles, near) if size == 1 else len(columns)
            kind = RowKind(size, groups, tiles, block, 0.0)
            possible.append(replace(kind, cycles=_estimate_cycles(kind, counts, columns, target)))
        found.append(min(possible, key=lambda kind: kind.cycles))
    return found


def _inputs_per_block(columns: Array, tiles: Sequence[Tiles], near: int) -> int:
    """Return the number of input channels for which a tile reads about `near` bytes, counted in whole cache lines."""
    some = columns[:8]
    if not some.size:
        return 1
    lines = np.unique((some.reshape(-1, 1) + np.array(tiles[0].shape.x)) // LINE)
    return max(1, near * len(some) // (LINE * len(lines)))


def _estimate_cycles(kind: RowKind, counts: Sequence[int], columns: Array, target: Target) -> float:
    """Estimate the cycles that the rows in `kind` take over all tiles, from the numbers of columns and segments.

    Args:
        counts: number of retained weights of each row.
        columns: [I / groups, taps], the byte of each column.
    """
    entries = sum(counts[group[0][0]] * len(group) for group in kind.groups)
    blocks = max(1, -(-len(columns) // kind.block))
    segments = sum(len(group) for group in kind.groups)
    segments = min(segments * blocks, max(segments, entries))
    total = 0.0
    for tiles in kind.tiles:
        vectors = len(tiles.shape.x)
        begins = columns[:8].reshape(-1, 1) + np.array(tiles.shape.x) + int(tiles.places[0, 0])
        across = float((begins % LINE + target.lanes * FLOAT > LINE).mean()) if begins.size else 0.0
        sets = count_partial_sums(kind.rows, vectors)
        several = kind.rows == 1 and sets > 1  # a load reads several weights or offsets
        loads = (vectors * (1 + across) + (0.4 if several else kind.rows + 1)) / 2
        sums = max(kind.rows * vectors / 2, 4 / sets)
        each = max(loads, sums) + (0.8 if sets == 1 else 0.4)
        begin = 20 + kind.rows * vectors * (2.0 if blocks > 1 else 1.0) + (4 * sets if several else 0)
        total += len(tiles.places) * (entries * each + segments * begin)
    return total
