"""A convolution (or a linear layer, as one of a single pixel) with its gradients: operations and their tables.

The tables depend on the mask alone. Weights are gathered into them before each pass, by an index that is made with
them: a table of weights is packed as if each weight were its own place in the dense tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

import ticketry_engine.kernels.amx as amx
from ticketry_engine.kernels.bfloat import HALF
from ticketry_engine.kernels.planar import kernel_choice
from ticketry_engine.kernels.planar.conv import Matrix, Tables, check, shared, single
from ticketry_engine.kernels.planar.geometry import FLOAT, LINE
from ticketry_engine.kernels.planar.row_sums import FLAG_BITS, Sums, side_by_side
from ticketry_engine.kernels.planar.tiles import Tiles
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.training import tile_products, tile_sums, tiled
from ticketry_engine.kernels.training.columns import filled_up
from ticketry_engine.kernels.training.layer import Gathered, Layer, WeightGradient
from ticketry_engine.kernels.training.layout import IMAGES, Batch, Side, apart, parts, shares, tiles
from ticketry_engine.kernels.training.packing import scatter
from ticketry_engine.kernels.training.pair_sums import PAIR, PairSums
from ticketry_engine.kernels.training.products import TOGETHER, Products, Totals, Zero
from ticketry_engine.kernels.training.tile_products import Added
from ticketry_engine.kernels.window import Array, Pair, Window
from ticketry_engine.support.row_groups import row_groups

NEAR = 32_000
"""Bytes of inputs that the nearest cache keeps beside weights and outputs."""

FEWEST = 8
"""Weights of a segment, on the average of its rows, below which it ranges over more inputs than a cache keeps.

Each one reads and writes the sums of a tile. A step of ResNet-18 with 1, 2 and 5 % of its weights took 0.79, 0.89 and
0.92 of the time so (AVX-512); with 10 %, segments of half as many more inputs took 1.07."""

SECOND = 3 << 19
"""Bytes of sums that stay in the second cache beside planes."""

FLAT_NEAR, FLAT_VECTORS = 48_000, 4
"""`NEAR` and `VECTORS` for values of a single row of positions (tokens, examples): neighbours share no inputs there, so
small tiles let a row run over more inputs before the next one. Layers of 256 to 4,096 features with a tenth of their
weights took 0.6 to 0.9 of the time that 16 vectors took (AVX-512, forward and back; not measured with fewer lanes)."""

PRODUCTS, FEW_PRODUCTS = (4, 5, 6, 3, 2), (2,)
"""Rows that are multiplied together, with 32 registers and with 16, the best number first."""

LONG = 48
"""Vectors of a tile whose rows are multiplied together."""

SHARING = 4
"""Rows that share their columns, from which on they are summed together."""

UNITS = 4
"""Of an operation, for each thread: tiles, and parts of the rows where tiles are too few."""

VECTORS = 16
"""Of a tile, with 32 registers; 12 with 16."""

PAIR_VECTORS = {1: 8, 4: 3, 5: 2, 6: 2}
"""Of a tile in bfloat16, each with two sums, by rows that are summed together."""

FAR = 1 << 40
"""As of `NEAR`, in bfloat16: rows are not summed in parts, which would be rounded one by one."""


def halo_of_gradient(size: Pair, out: Pair, window: Window) -> int:
    """The halo that the gradient of an output needs, for the input's to be read from it."""
    needed = 0
    for axis in range(2):
        for tap, position in itertools.product(range(window.size[axis]), range(size[axis])):
            place, rest = divmod(_reached(window, axis, position, tap), window.stride[axis])
            if rest == 0:
                needed = max(needed, -place, place - out[axis] + 1)
    return needed


def forward(x: Batch, y: Batch, layer: Layer, target: Target, residual: Batch | None = None) -> list[Gathered]:
    """``y = conv(x)``, or with what a residual holds added to it. Pruned weights cost nothing."""
    window = layer.window
    shifts = np.array([x.geometry.shift(*window.shift(tap)) for tap in window.taps])
    columns = x.channel_bytes.reshape(layer.groups, -1, 1) + shifts
    sides = [Side(x, stride=window.stride), Side(y)] + ([] if residual is None else [Side(residual)])
    matrix = _matrix(layer.places, columns, y, residual)
    return [replace(_sums(matrix, sides, _size(y), target, layer.threads), alone=layer.alone)]


def input_gradient(dy: Batch, dx: Batch, layer: Layer, target: Target, residual: Batch | None = None) -> list[Gathered]:
    """The gradient by the input, phase by phase of the stride: pixels of x that the same taps reach from pixels of y.

    Args:
        residual: a gradient of x that is added: ``dx`` itself, where a stride leaves pixels out.
    """
    window, groups, found, untouched = layer.window, layer.groups, [], False
    places = layer.places.reshape(groups, -1, *layer.places.shape[1:])  # groups, O, I, taps
    sets = tiled.row_sets(layer.places.reshape(len(layer.kept), -1), groups, dy, target)
    height, width = _size(dx)
    across, down = range(min(window.stride[1], width)), range(min(window.stride[0], height))
    for phase in itertools.product(down, across):
        taps, shifts = [], []
        for number, tap in enumerate(window.taps):
            reached = [divmod(_reached(window, axis, phase[axis], tap[axis]), window.stride[axis]) for axis in range(2)]
            if all(rest == 0 for _, rest in reached):
                taps.append(number)
                shifts.append(dy.geometry.shift(reached[0][0], reached[1][0]))
        if not taps:
            untouched = True
            continue
        transposed = places[:, :, :, taps].transpose(0, 2, 1, 3)  # groups, I, O, taps of the phase
        columns = dy.channel_bytes.reshape(groups, -1, 1) + np.array(shifts, dtype=np.int64)
        size = -(-(height - phase[0]) // window.stride[0]), -(-(width - phase[1]) // window.stride[1])
        sides = [Side(dy), Side(dx, phase, window.stride)]
        sides += [] if residual is None else [Side(residual, phase, window.stride)]
        matrix = _matrix(transposed.reshape(groups * transposed.shape[1], *transposed.shape[2:]), columns, dx, residual)
        if sets and not tiled.row_sets(matrix.weight, groups, dy, target):
            found.append(tiled.spread(places[:, :, :, taps], np.array(shifts), sets, sides, size, target))
            continue
        found.append(_sums(matrix, sides, size, target, layer.threads))
    if untouched and residual is None:
        found.insert(0, _zeros(dx, target))
    elif untouched and residual != dx:
        raise ValueError("a stride that leaves pixels out adds to the gradient that is there, not to another one")
    return found


@dataclass(frozen=True, eq=False)
class ProductTables:
    """The tables of products of a layer's inputs with its output gradients, wherever these lie."""

    made: Tables
    sets: list[Array]
    """Of sixteen rows, for tiles."""
    rows: int
    """That are multiplied together."""
    most: int
    """Vectors of a tile."""
    chunks: Array
    by_block: bool
    """Whether sums stay in the second cache, so that blocks go one after the other."""
    several: int
    """Threads that have sums of their own."""


def product_tables(x: Batch, dy: Batch, layer: Layer, target: Target) -> ProductTables:
    """Those of a layer whose values are laid out like these."""
    window, lanes = layer.window, target.lanes
    shifts = np.array([x.geometry.shift(*window.shift(tap)) for tap in window.taps])
    columns = x.channel_bytes.reshape(layer.groups, -1, 1) + shifts
    sides, size = [Side(x, stride=window.stride), Side(dy)], _size(dy)
    matrix = _matrix(layer.places, columns, dy, None)
    sets = tiled.row_sets(matrix.weight, layer.groups, x, target)
    rows = most = 0
    if sets:
        made, width = tile_products.tables(matrix, sets), amx.ROW_BYTES
    else:
        groups = _alike(matrix, PRODUCTS if target.registers >= 32 else FEW_PRODUCTS)
        rows, most = (len(groups[0][0]), LONG) if groups else (1, _most(target, size))
        cut = tiles(sides, size, lanes, most)
        made = shared(matrix, groups, chunks=1) if groups else _tables(matrix, cut, _near(target, size))
        made = filled_up(made, rows, TOGETHER)
        width = rows * FLOAT * lanes // TOGETHER
    several = len(shares(x.blocks, layer.threads)) if apart(x.blocks, size, layer.threads) else 1
    chunks, near = _chunks(made, width, 1 if several > 1 else layer.threads)
    if not near:
        several = 1
        chunks, _ = _chunks(made, width, layer.threads)
    return ProductTables(made, sets, rows, most, chunks, near and len(parts(x.blocks, size)) == x.blocks, several)


def weight_gradient(
    x: Batch,
    dy: Batch,
    layer: Layer,
    target: Target,
    reserve: Callable[[int], int],
    tables: ProductTables | None = None,
) -> WeightGradient:
    """The gradient by the weights that are kept.

    Args:
        reserve: gives so many bytes of the arena, to be used meanwhile: the first one.
        tables: made already.
    """
    lanes, sides, size = target.lanes, [Side(x, stride=layer.window.stride), Side(dy)], _size(dy)
    tables = tables or product_tables(x, dy, layer, target)
    made, chunks, several, sets = tables.made, tables.chunks, tables.several, tables.sets
    together = lanes if sets else TOGETHER
    turns = -(-len(made.weights) // lanes)
    vectors = turns * lanes // together
    width = vectors * lanes * FLOAT
    scratch, ops = reserve(several * width), []
    owners = [owner for owner, share in enumerate(shares(x.blocks, several)) for _ in share]
    for part in parts(x.blocks, size) if tables.by_block else [range(x.blocks)]:
        sums = scratch + width * owners[part.start]
        if sets:
            ops.append(tiled.products(made, x, sides, size, target, chunks, sums, part))
            continue
        cut = tiles(sides, size, lanes, tables.most, part)
        _check(made, x, cut, target)
        args: list[int | Array] = [made.segments, made.columns, sums, chunks, len(chunks)]
        for t in cut:
            args += [t.places, len(t.places)]
        spec = Products(tuple(t.shape for t in cut), made.unit, made.wide, tables.rows, x.item == HALF)
        ops.append(Op(spec, tuple(args)))
    begin = [Op(Zero(), (scratch + width * owner, vectors)) for owner in range(several)]
    end = [
        Op((Added if sets else Totals)(several), (scratch, turns, 0, width)),
        scatter(made.weights - 1, layer.kept.size, alone=layer.alone),
    ]
    return WeightGradient(begin, ops, end, turns * lanes)


def _reached(window: Window, axis: int, position: int, tap: int) -> int:
    """Stride times the output that reads a position of the input by a tap."""
    return position + window.padding[axis] - tap * window.dilation[axis]


def _size(value: Batch) -> Pair:
    return value.geometry.height, value.geometry.width


def _flat(target: Target, size: Pair) -> bool:
    return size[0] == 1 and target.lanes == IMAGES


def _near(target: Target, size: Pair) -> int:
    """Bytes of inputs that a segment of single rows ranges over."""
    return FLAT_NEAR if _flat(target, size) else NEAR


def _most(target: Target, size: Pair) -> int:
    """Vectors of a tile of single rows."""
    if _flat(target, size):
        return FLAT_VECTORS
    return VECTORS if target.registers >= 32 else 12


def _matrix(places: Array, columns: Array, y: Batch, residual: Batch | None) -> Matrix:
    """Rows over columns. ``places``: rows x inputs x taps; ``columns``: groups x inputs x taps."""
    return Matrix(
        places.reshape(len(places), places.shape[1] * places.shape[2]),
        columns.reshape(len(columns), columns.shape[1] * columns.shape[2]),
        places.shape[2],
        y.channel_bytes,
        None if residual is None else residual.channel_bytes,
        np.zeros(len(places), dtype=np.float32),
    )


def _tables(matrix: Matrix, cut: Sequence[Tiles], near: int, chunks: int = 1) -> Tables:
    """Tables of single rows, by blocks of inputs whose part of a tile has so many bytes."""
    some = matrix.columns[0, : 8 * matrix.taps].reshape(-1, 1)
    lines = np.unique((some + np.array(cut[0].shape.x)) // LINE)
    block = max(1, near * min(8, matrix.columns.shape[1] // max(1, matrix.taps)) // (LINE * max(1, len(lines))))
    kept = int(np.count_nonzero(matrix.weight))
    if kept:
        block = max(block, -(-FEWEST * len(matrix.weight) * matrix.inputs // kept))
    return single(replace(matrix, taps=max(1, matrix.taps)), np.arange(len(matrix.weight)), block=block, chunks=chunks)


def _check(made: Tables, x: Batch, cut: Sequence[Tiles], target: Target) -> None:
    """That no tile reads outside the planes."""
    for t in cut:
        check(made, x.planes, t.places, (min(t.shape.x), max(t.shape.x) + target.lanes * FLOAT))


def _zeros(value: Batch, target: Target) -> Gathered:
    """A value made 0, with nothing to gather."""
    vectors = value.block_bytes // (FLOAT * target.lanes)
    ops = [
        Op(Zero(), (value.offset + part.start * value.block_bytes, len(part) * vectors))
        for part in parts(value.blocks, _size(value))
    ]
    return Gathered(ops, np.zeros(0, dtype=np.int64))


def _sums(matrix: Matrix, sides: Sequence[Side], size: Pair, target: Target, threads: int) -> Gathered:
    x, half = sides[0].value, sides[0].value.item == HALF
    sets = tiled.row_sets(matrix.weight, len(matrix.columns), x, target)
    groups = [] if sets else _groups(matrix, target)
    rows = len(groups[0][0]) if groups else 1
    if sets:
        most = tile_sums.POSITIONS
    elif half:
        most = PAIR_VECTORS[rows]
    else:
        most = kernel_choice.vectors(rows, target)[0] if groups else _most(target, size)
    chunks = 1
    if threads > 1 and not apart(x.blocks, size, threads):
        some = tiles(sides, size, target.lanes, most, parts(x.blocks, size)[0])
        chunks = -(-UNITS * threads // sum(len(t.places) for t in some))
    if sets:
        return tiled.sums(matrix, sets, sides, size, target, chunks)
    cut = tiles(sides, size, target.lanes, most)
    near = FAR if half else _near(target, size)
    made = shared(matrix, groups, chunks=chunks) if groups else _tables(matrix, cut, near, chunks)
    _check(made, x, cut, target)
    made = filled_up(made, rows, PAIR, once=True) if half else made
    index = made.weights.reshape(-1) - 1
    weights, masks, ops = np.zeros(len(index), np.uint16 if half else np.float32), np.zeros(1, dtype=np.uint16), []
    for part in parts(x.blocks, size):
        cut = tiles(sides, size, target.lanes, most, part)
        args: list[int | Array] = [made.segments, made.columns, weights, made.chunks, len(made.chunks)]
        for t in cut:
            args += [t.places, len(t.places)] if half else [t.places, len(t.places), masks]
        shapes, residual = tuple(t.shape for t in cut), matrix.residual is not None
        if half:
            ops.append(Op(PairSums(rows, shapes, residual, made.unit, made.wide), tuple(args)))
            continue
        # By the smallest tile, for all: the order of sums is part of the version of the kernels' numbers.
        several = side_by_side(rows, min(len(shape.x) for shape in shapes))
        spec = Sums(rows, shapes, (False,) * len(cut), residual, None, made.blocked, made.unit, made.wide, several)
        ops.append(Op(spec, tuple(args)))
    return Gathered(ops, index)


def _groups(matrix: Matrix, target: Target) -> list[list[Array]]:
    """Sets of rows that keep the same columns and are summed together, where that is faster than each by itself.

    All rows have to be in sets of one size, of four rows or more; with few registers a tile's inputs for all columns
    have to stay in the nearest cache. 3x3 convolutions with groups of 16 rows took 0.8 to 0.9 of the time with 64 and
    128 channels, and 1.0 to 1.2 with 256 and 512 (AVX2).
    """
    kept = matrix.weight != 0
    if SHARING * len({row.tobytes() for row in np.packbits(kept, axis=1)}) > len(kept):
        return []  # too many sets, as of nearly every mask of single weights: told much faster than which they are
    kinds = kernel_choice.kinds(kept, len(matrix.columns))
    rows = min(kinds)
    if len(kinds) > 1 or rows < SHARING:
        return []
    columns = max(int(np.count_nonzero(matrix.weight[group[0][0]])) for group in kinds[rows])
    tile = kernel_choice.vectors(rows, target)[0] * target.lanes * FLOAT
    if tile < IMAGES * FLOAT:  # not one position
        return []
    return kinds[rows] if target.registers >= 32 or columns * tile <= NEAR // 2 else []


def _alike(matrix: Matrix, sizes: Sequence[int]) -> list[list[Array]]:
    """Groups of rows that keep the same columns, in sets of the first of these sizes that divides all of them."""
    found = []
    per = len(matrix.weight) // len(matrix.columns)
    for group in range(len(matrix.columns)):
        for same in row_groups(matrix.weight[group * per : (group + 1) * per]):
            if not same.width:
                return []
            found.append(same.rows + group * per)
    size = next((size for size in sizes if not any(len(rows) % size for rows in found)), 0)
    return [list(rows.reshape(-1, size)) for rows in found] if size else []


def _chunks(made: Tables, width: int, threads: int) -> tuple[Array, bool]:
    """Runs of segments whose sums, of so many bytes each, stay in the second cache, as tables of chunks tell them.

    As many for each of the threads that share an operation. Also whether one run would be enough.
    """
    counts = made.segments[:, 0].astype(np.int64) >> FLAG_BITS
    before, total = np.cumsum(counts) - counts, int(counts.sum())
    runs = max(1, -(-total * width // SECOND))
    several = -(-runs // threads) * threads
    bounds = np.unique(np.searchsorted(before, [total * run // several for run in range(several)] + [total + 1]))
    found = [(low * made.segments.shape[1] * 4, high - low, before[low]) for low, high in itertools.pairwise(bounds)]
    return np.array(found, dtype=np.int64), runs == 1
