"""A convolution (or linear layer) and its gradients: their operations and tables.

    y = W * x       dx = W^T * dy       dW[o, i, tap] = sum over positions and images of dy[o] * x[i, shifted by tap]

Only retained weights appear in any table. Tables depend only on the mask. Before each pass, the weights are copied into
the tables by an index array. To build this array, a "weight" tensor is packed whose entries are 1 + their own index in
the dense tensor, and 0 for pruned weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ticketry_engine.kernels.bfloat import HALF, TILE_ROW_BYTES, TILE_ROWS
from ticketry_engine.kernels.planar.conv import (
    Matrix,
    SumTables,
    check_reads,
    find_equal_rows,
    pack_shared_rows,
    pack_single_rows,
    tile_vectors,
)
from ticketry_engine.kernels.planar.geometry import FLOAT, LINE, Tiles
from ticketry_engine.kernels.planar.row_sums import FLAG_BITS, RowSums, count_partial_sums
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.training import amx
from ticketry_engine.kernels.training.layer import (
    IMAGES,
    Batch,
    GatheredOps,
    MaskedLayer,
    TileSide,
    WeightGradient,
    build_scatter_op,
    build_tiles,
    operation_blocks,
    split_blocks_by_thread,
    threads_take_blocks,
)
from ticketry_engine.kernels.training.products import PAIR, TOGETHER, PairSums, Products, Totals, Zero, pad_segments
from ticketry_engine.kernels.window import Array, Pair, Window
from ticketry_engine.support.row_groups import row_groups_by_convolution_group

NEAR = 32_000
"""Number of bytes of inputs that stay in the L1 cache beside weights and outputs."""

FEWEST = 8
"""Minimum average number of weights of a row in a segment; to reach it, a segment's inputs may exceed the L1 cache.

Each segment reads and writes the sums of a tile. Measured on ResNet-18 with 1 to 10 % of its weights.
"""

SECOND = 3 << 19
"""Number of bytes of sums that stay in the L2 cache beside planes."""

FLAT_NEAR, FLAT_VECTORS = 48_000, 4
"""`NEAR` and `VECTORS` for values with a single row of positions (tokens, examples) on targets with sixteen lanes.

Neighbouring positions share no inputs there, so with small tiles a segment can cover more inputs. Measured on layers of
256 to 4,096 features with a tenth of their weights.
"""

PRODUCTS, FEW_PRODUCTS = (4, 5, 6, 3, 2), (2,)
"""Numbers of rows that may be multiplied together, preferred first: for 32 registers, and for 16 registers."""

LONG = 48
"""Number of vectors per tile for rows that are multiplied together."""

SHARING = 4
"""Minimum number of rows with equal columns that are summed together."""

UNITS = 4
"""Desired number of units of work per operation and thread; if there are fewer tiles, rows are also divided."""

VECTORS = 16
"""Number of vectors per tile on targets with 32 registers; targets with 16 registers use 12."""

PAIR_VECTORS = {1: 8, 4: 3, 5: 2, 6: 2}
"""Number of vectors per tile in bfloat16, by the number of rows summed together; each vector has two sums per row."""

FAR = 1 << 40
"""Replaces `NEAR` for bfloat16, so that rows are not summed in several segments: each would round once more."""


def halo_of_gradient(size: Pair, out: Pair, window: Window) -> int:
    """Return the halo in pixels that an output's gradient needs for the computation of the input's gradient."""
    needed = 0
    for axis in range(2):
        for tap, position in itertools.product(range(window.size[axis]), range(size[axis])):
            place, rest = divmod(_output_times_stride(window, axis, position, tap), window.stride[axis])
            if rest == 0:
                needed = max(needed, -place, place - out[axis] + 1)
    return needed


def build_forward(
    x: Batch, y: Batch, layer: MaskedLayer, target: Target, residual: Batch | None = None
) -> list[GatheredOps]:
    """Return the operations of ``y = conv(x)``, plus `residual` if given; pruned weights take no time."""
    window = layer.window
    shifts = np.array([x.geometry.shift_bytes(*window.tap_offset(tap)) for tap in window.taps])
    columns = x.channel_bytes.reshape(layer.groups, -1, 1) + shifts
    sides = [TileSide(x, stride=window.stride), TileSide(y)] + ([] if residual is None else [TileSide(residual)])
    matrix = _build_matrix(layer.places, columns, y, residual)
    return [replace(_build_weighted_sums(matrix, sides, _plane_size(y), target, layer.threads), alone=layer.alone)]


def build_input_gradient(
    dy: Batch, dx: Batch, layer: MaskedLayer, target: Target, residual: Batch | None = None
) -> list[GatheredOps]:
    """Return the operations that compute the gradient of the input.

    There are separate operations for each phase of the stride: the input pixels that the same taps (kernel positions)
    read.

    Args:
        residual: a gradient of x that is added to the result; must be `dx` itself if the stride skips pixels.
    """
    window, groups, found, untouched = layer.window, layer.groups, [], False
    places = layer.places.reshape(groups, -1, *layer.places.shape[1:])  # groups, O, I, taps
    sets = find_tile_row_sets(layer.places.reshape(len(layer.kept), -1), groups, dy, target)
    height, width = _plane_size(dx)
    across, down = range(min(window.stride[1], width)), range(min(window.stride[0], height))
    for phase in itertools.product(down, across):
        taps, shifts = [], []
        for number, tap in enumerate(window.taps):
            reached = [
                divmod(_output_times_stride(window, axis, phase[axis], tap[axis]), window.stride[axis])
                for axis in range(2)
            ]
            if all(rest == 0 for _, rest in reached):
                taps.append(number)
                shifts.append(dy.geometry.shift_bytes(reached[0][0], reached[1][0]))
        if not taps:
            untouched = True
            continue
        transposed = places[:, :, :, taps].transpose(0, 2, 1, 3)  # groups, I, O, taps of the phase
        columns = dy.channel_bytes.reshape(groups, -1, 1) + np.array(shifts, dtype=np.int64)
        size = -(-(height - phase[0]) // window.stride[0]), -(-(width - phase[1]) // window.stride[1])
        sides = [TileSide(dy), TileSide(dx, phase, window.stride)]
        sides += [] if residual is None else [TileSide(residual, phase, window.stride)]
        matrix = _build_matrix(
            transposed.reshape(groups * transposed.shape[1], *transposed.shape[2:]), columns, dx, residual
        )
        if sets and not find_tile_row_sets(matrix.weight, groups, dy, target):
            found.append(_build_tile_spread(places[:, :, :, taps], np.array(shifts), sets, sides, size, target))
            continue
        found.append(_build_weighted_sums(matrix, sides, size, target, layer.threads))
    if untouched and residual is None:
        found.insert(0, _build_zero_fill(dx, target))
    elif untouched and residual != dx:
        raise ValueError("a stride that leaves pixels out adds to the gradient that is there, not to another one")
    return found


@dataclass(frozen=True, eq=False)
class ProductTables:
    """Tables for computing a layer's weight gradient; they do not depend on where in memory values are stored."""

    made: SumTables
    sets: list[Array]
    """Groups of sixteen rows with equal columns, for AMX tiles; empty if AMX is not used."""
    rows: int
    """Number of rows that are multiplied together."""
    most: int
    """Maximum number of vectors per tile."""
    chunks: Array
    by_block: bool
    """Whether the sums fit into the L2 cache; blocks of images are then processed one after the other."""
    several: int
    """Number of threads that have separate sums; 1 if all threads share the sums."""


def build_product_tables(x: Batch, dy: Batch, layer: MaskedLayer, target: Target) -> ProductTables:
    """Return the tables for the weight gradient; of `x` and `dy`, only sizes and strides matter."""
    window, lanes = layer.window, target.lanes
    shifts = np.array([x.geometry.shift_bytes(*window.tap_offset(tap)) for tap in window.taps])
    columns = x.channel_bytes.reshape(layer.groups, -1, 1) + shifts
    sides, size = [TileSide(x, stride=window.stride), TileSide(dy)], _plane_size(dy)
    matrix = _build_matrix(layer.places, columns, dy, None)
    sets = find_tile_row_sets(matrix.weight, layer.groups, x, target)
    rows, most = 0, amx.PRODUCT_POSITIONS
    if sets:
        made, width = amx.build_product_tables(matrix, sets), TILE_ROW_BYTES
    else:
        groups = _find_equal_column_sets(matrix, PRODUCTS if target.registers >= 32 else FEW_PRODUCTS)
        rows, most = (len(groups[0][0]), LONG) if groups else (1, _tile_vectors(target, size))
        cut = build_tiles(sides, size, lanes, most)
        made = (
            pack_shared_rows(matrix, groups, chunks=1)
            if groups
            else _build_tables(matrix, cut, _segment_input_bytes(target, size))
        )
        made = pad_segments(made, rows, TOGETHER)
        width = rows * FLOAT * lanes // TOGETHER
    several = (
        len(split_blocks_by_thread(x.blocks, layer.threads))
        if threads_take_blocks(x.blocks, size, layer.threads)
        else 1
    )
    chunks, near = split_segments_into_chunks(made, width, 1 if several > 1 else layer.threads)
    if not near:
        several = 1
        chunks, _ = split_segments_into_chunks(made, width, layer.threads)
    return ProductTables(
        made, sets, rows, most, chunks, near and len(operation_blocks(x.blocks, size)) == x.blocks, several
    )


def build_weight_gradient(
    x: Batch,
    dy: Batch,
    layer: MaskedLayer,
    target: Target,
    reserve: Callable[[int], int],
    tables: ProductTables | None = None,
) -> WeightGradient:
    """Return the operations that compute the gradients of the retained weights.

    Args:
        reserve: function that reserves a number of temporary bytes in the arena and returns their offset.
        tables: result of `build_product_tables`, if it exists already.
    """
    lanes, sides, size = target.lanes, [TileSide(x, stride=layer.window.stride), TileSide(dy)], _plane_size(dy)
    tables = tables or build_product_tables(x, dy, layer, target)
    made, chunks, several, sets = tables.made, tables.chunks, tables.several, tables.sets
    together = lanes if sets else TOGETHER
    turns = -(-len(made.weights) // lanes)
    vectors = turns * lanes // together
    width = vectors * lanes * FLOAT
    scratch, ops = reserve(several * width), []
    owners = [owner for owner, share in enumerate(split_blocks_by_thread(x.blocks, several)) for _ in share]
    for part in operation_blocks(x.blocks, size) if tables.by_block else [range(x.blocks)]:
        sums = scratch + width * owners[part.start]
        cut = build_tiles(sides, size, lanes, tables.most, part)
        check_reads(made, x.planes, cut, target)
        args: list[int | Array] = [made.segments, made.columns, sums, chunks, len(chunks)]
        args += [amx.PRODUCT_CONFIGURATION] if sets else []
        for t in cut:
            args += [t.places, len(t.places), *(amx.tile_position_bytes(t.shape) if sets else ())]
        shapes = tuple(t.shape for t in cut)
        products = Products(shapes, made.unit, made.wide, tables.rows, x.item == HALF)
        ops.append(Op(amx.TileProducts(len(cut)) if sets else products, tuple(args)))
    begin = [Op(Zero(), (scratch + width * owner, vectors)) for owner in range(several)]
    end = [
        Op(Totals(several, together), (scratch, turns, 0, width)),
        build_scatter_op(made.weights - 1, layer.kept.size, alone=layer.alone),
    ]
    return WeightGradient(begin, ops, end, turns * lanes)


def _output_times_stride(window: Window, axis: int, position: int, tap: int) -> int:
    """Return ``stride * output`` for the output, along `axis`, that reads input number `position` through `tap`."""
    return position + window.padding[axis] - tap * window.dilation[axis]


def _plane_size(value: Batch) -> Pair:
    return value.geometry.height, value.geometry.width


def _has_single_row(target: Target, size: Pair) -> bool:
    return size[0] == 1 and target.lanes == IMAGES


def _segment_input_bytes(target: Target, size: Pair) -> int:
    """Return how many bytes of inputs a segment (part) of a single row may read."""
    return FLAT_NEAR if _has_single_row(target, size) else NEAR


def _tile_vectors(target: Target, size: Pair) -> int:
    """Return the maximum number of vectors per tile for rows that are computed one by one."""
    if _has_single_row(target, size):
        return FLAT_VECTORS
    return VECTORS if target.registers >= 32 else 12


def _build_matrix(places: Array, columns: Array, y: Batch, residual: Batch | None) -> Matrix:
    """Return the matrix by which a product multiplies planes, as tables of weights and column offsets.

    Args:
        places: weights as in `MaskedLayer.places`, rows x inputs x taps.
        columns: byte offset that each column reads, groups x inputs x taps.
    """
    return Matrix(
        places.reshape(len(places), places.shape[1] * places.shape[2]),
        columns.reshape(len(columns), columns.shape[1] * columns.shape[2]),
        places.shape[2],
        y.channel_bytes,
        None if residual is None else residual.channel_bytes,
        np.zeros(len(places), dtype=np.float32),
    )


def _build_tables(matrix: Matrix, cut: Sequence[Tiles], near: int, chunks: int = 1) -> SumTables:
    """Return tables for rows that are computed one by one.

    Rows are divided into segments, which read about `near` bytes of inputs per tile.
    """
    some = matrix.columns[0, : 8 * matrix.taps].reshape(-1, 1)
    lines = np.unique((some + np.array(cut[0].shape.x)) // LINE)
    block = max(1, near * min(8, matrix.columns.shape[1] // max(1, matrix.taps)) // (LINE * max(1, len(lines))))
    kept = int(np.count_nonzero(matrix.weight))
    if kept:
        block = max(block, -(-FEWEST * len(matrix.weight) * matrix.inputs // kept))
    return pack_single_rows(
        replace(matrix, taps=max(1, matrix.taps)), np.arange(len(matrix.weight)), block=block, chunks=chunks
    )


def _build_zero_fill(value: Batch, target: Target) -> GatheredOps:
    """Return the operations that set a value to zero, as `GatheredOps` with an empty table."""
    vectors = value.block_bytes // (FLOAT * target.lanes)
    ops = [
        Op(Zero(), (value.offset + part.start * value.block_bytes, len(part) * vectors))
        for part in operation_blocks(value.blocks, _plane_size(value))
    ]
    return GatheredOps(ops, np.zeros(0, dtype=np.int64))


def _build_weighted_sums(
    matrix: Matrix, sides: Sequence[TileSide], size: Pair, target: Target, threads: int
) -> GatheredOps:
    x, half = sides[0].value, sides[0].value.item == HALF
    sets = find_tile_row_sets(matrix.weight, len(matrix.columns), x, target)
    groups = [] if sets else _find_row_sets(matrix, target)
    rows = len(groups[0][0]) if groups else 1
    if sets:
        most = amx.SUM_POSITIONS
    elif half:
        most = PAIR_VECTORS[rows]
    else:
        most = tile_vectors(rows, target)[0] if groups else _tile_vectors(target, size)
    chunks = 1
    if threads > 1 and not threads_take_blocks(x.blocks, size, threads):
        some = build_tiles(sides, size, target.lanes, most, operation_blocks(x.blocks, size)[0])
        chunks = -(-UNITS * threads // sum(len(t.places) for t in some))
    cut = build_tiles(sides, size, target.lanes, most)
    if sets:
        made = amx.build_sum_tables(matrix, sets, chunks)
    elif groups:
        made = pack_shared_rows(matrix, groups, chunks=chunks)
    else:
        made = _build_tables(matrix, cut, FAR if half else _segment_input_bytes(target, size), chunks)
    check_reads(made, x.planes, cut, target)
    made = pad_segments(made, rows, PAIR, once=True) if half and not sets else made
    index = made.weights.reshape(-1) - 1
    weights, masks, ops = np.zeros(len(index), np.uint16 if half else np.float32), np.zeros(1, dtype=np.uint16), []
    for part in operation_blocks(x.blocks, size):
        cut = build_tiles(sides, size, target.lanes, most, part)
        args: list[int | Array] = [made.segments, made.columns, weights, made.chunks, len(made.chunks)]
        args += [amx.SUM_CONFIGURATION] if sets else []
        for t in cut:
            args += [t.places, len(t.places)] if half else [t.places, len(t.places), masks]
        shapes, residual = tuple(t.shape for t in cut), matrix.residual is not None
        if sets:
            ops.append(Op(amx.TileSums(shapes, residual), tuple(args)))
            continue
        if half:
            ops.append(Op(PairSums(rows, shapes, residual, made.unit, made.wide), tuple(args)))
            continue
        # The smallest tile decides: the order of sums is part of the version of the kernels' numbers.
        several = count_partial_sums(rows, min(len(shape.x) for shape in shapes))
        spec = RowSums(rows, shapes, (False,) * len(cut), residual, None, made.blocked, made.unit, made.wide, several)
        ops.append(Op(spec, tuple(args)))
    return GatheredOps(ops, index)


def _find_row_sets(matrix: Matrix, target: Target) -> list[list[Array]]:
    """Return sets of rows to compute together, which retain the same columns.

    The result is empty if computing rows one by one is faster.

    All sets have the same number of rows. With few registers, all inputs of a tile must also stay in the L1 cache.
    """
    kept = matrix.weight != 0
    if SHARING * len({row.tobytes() for row in np.packbits(kept, axis=1)}) > len(kept):
        return []  # too many sets, as in unstructured masks: this count is much faster than finding the sets
    kinds = find_equal_rows(kept, len(matrix.columns))
    rows = min(kinds)
    if len(kinds) > 1 or rows < SHARING:
        return []
    columns = max(int(np.count_nonzero(matrix.weight[group[0][0]])) for group in kinds[rows])
    tile = tile_vectors(rows, target)[0] * target.lanes * FLOAT
    if tile < IMAGES * FLOAT:  # less than one position
        return []
    return kinds[rows] if target.registers >= 32 or columns * tile <= NEAR // 2 else []


def _find_equal_column_sets(matrix: Matrix, sizes: Sequence[int]) -> list[list[Array]]:
    """Divide rows with equal columns into sets, whose size is the first of `sizes` that leaves no rest."""
    same = row_groups_by_convolution_group(matrix.weight, len(matrix.columns))
    if not all(group.width for group in same):
        return []
    found = [group.rows for group in same]
    size = next((size for size in sizes if not any(len(rows) % size for rows in found)), 0)
    return [list(rows.reshape(-1, size)) for rows in found] if size else []


def split_segments_into_chunks(made: SumTables, width: int, threads: int) -> tuple[Array, bool]:
    """Divide segments (parts of rows) into chunks whose sums fit in the L2 cache.

    Return the chunks, and whether all segments would fit in one chunk.

    The number of chunks is a multiple of `threads`; `width` is the number of bytes of sums per column.
    """
    counts = made.segments[:, 0].astype(np.int64) >> FLAG_BITS
    before, total = np.cumsum(counts) - counts, int(counts.sum())
    runs = max(1, -(-total * width // SECOND))
    several = -(-runs // threads) * threads
    bounds = np.unique(np.searchsorted(before, [total * run // several for run in range(several)] + [total + 1]))
    found = [(low * made.segments.shape[1] * 4, high - low, before[low]) for low, high in itertools.pairwise(bounds)]
    return np.array(found, dtype=np.int64), runs == 1


# -- layers in bfloat16 on AMX tiles: whether a layer's mask allows them, and their operations -------------------------


def find_tile_row_sets(weight: Array, groups: int, value: Batch, target: Target) -> list[Array]:
    """Return sets of sixteen rows for AMX tiles; empty if tiles cannot be used.

    All rows of a set retain the same columns, or none.

    Tiles require AMX, a multiplied `value` in bfloat16, and a `weight` [rows, columns] whose rows form such sets in
    each of the convolution's `groups`.
    """
    if not target.tiles or value.item != HALF or len(weight) % (groups * TILE_ROWS):
        return []
    kept = np.packbits(weight != 0, axis=1)
    if TILE_ROWS * len({row.tobytes() for row in kept}) > len(kept):
        return []
    found = [same.rows for same in row_groups_by_convolution_group(weight, groups)]
    if any(len(rows) % TILE_ROWS for rows in found):
        return []
    return [part for rows in found for part in rows.reshape(-1, TILE_ROWS)]


def _build_tile_spread(
    places: Array, shifts: Array, sets: Sequence[Array], sides: Sequence[TileSide], size: Pair, target: Target
) -> GatheredOps:
    """Return the operations that compute the input gradient on AMX tiles, for one phase of the stride.

    A phase consists of the input pixels that the same taps (kernel positions) read.

    Args:
        places: weights as in `MaskedLayer.places`, convolution groups x outputs x inputs x taps of the phase.
        shifts: the distance in bytes at which each of these taps reads.
    """
    dy, dx = (side.value for side in sides[:2])
    made = amx.build_spread_tables(places, dy.channel_bytes, shifts, sets)
    index, ops = made.weights - 1, []
    weights = np.zeros(max(1, len(index)), dtype=np.uint16)
    beside = sides[2].value.geometry.bytes if len(sides) > 2 else 0
    for part in operation_blocks(dy.blocks, size):
        cut = build_tiles(sides, size, target.lanes, amx.positions_per_spread_tile(dx.channels), part)
        check_reads(made, dy.planes, cut, target)
        args: list[int | Array] = [made.sets, made.blocks, weights, made.inputs]
        args += [len(made.blocks), dx.geometry.bytes, beside, amx.SPREAD_CONFIGURATION]
        for t in cut:
            args += [t.places, len(t.places)]
        ops.append(Op(amx.TileSpread(tuple(t.shape for t in cut), dx.channels, len(sides) > 2), tuple(args)))
    return GatheredOps(ops, index)
