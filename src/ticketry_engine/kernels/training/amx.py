"""AMX kernels in bfloat16 for layers whose rows retain equal columns in groups of sixteen.

    TileSums        y [16 rows, 16 images]       +=  w [16 rows, 32 columns]  @  x [32 columns, 16 images]
    TileSpread      dx [16 inputs, 16 images]    +=  W^T [16 inputs, 16 outputs]  @  dy [16 outputs, 16 images]
    TileProducts    dW [16 columns, 16 rows]     +=  x [16 columns, 32 images]  @  dy [32 images, 16 rows]

A position holds 32 images. A right operand interleaves two of its rows image by image (`bfloat.interleave_pairs`), so
that one instruction multiplies pairs. Each kernel prepares the operands of the next product while it multiplies, and
alternates between two buffers, because loading a tile right after storing its data would stall.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import I32, EmittedKernel, Emitter, minimum
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.planar.conv import Matrix, SumTables, build_segment_table, split_evenly
from ticketry_engine.kernels.planar.geometry import FLOAT, Shape
from ticketry_engine.kernels.planar.row_sums import FIRST, FLAG_BITS, LAST, SegmentKernel
from ticketry_engine.kernels.training.products import (
    COLUMNS,
    PAIR,
    SUMS,
    WEIGHTS,
    loop_segments_by_chunk,
    loop_segments_by_unit,
    write_rows,
)
from ticketry_engine.kernels.window import Array

_CONFIGURATION, _SHAPES = 5, 6
"""Numbers of two arguments of `TileSums` and `TileProducts`, after those in `products`: tile configuration; then, per
shape, the tiles' offsets and their number."""

_WHOLE_TILE = (bfloat.TILE_ROWS, bfloat.TILE_ROW_BYTES)


@contextmanager
def _configured_tiles(e: Emitter, argument: int) -> Iterator[None]:
    """Emit code that configures AMX tile registers, and, at the end of the `with` block, code that releases them.

    The configuration is read from the table with the argument index `argument`.
    """
    bfloat.configure_tiles(e, e.table(argument))
    yield
    bfloat.release_tiles(e)


def _alternating_buffer(e: Emitter, buffers: Any, number: Any, size: int) -> Any:
    """Return the first of two buffers of `size` bytes if `number` is even, else the second."""
    return e.offset_pointer(buffers, e.b.mul(e.b.and_(number, e.i64(1)), e.i64(size)))


# -- forward: weighted sums of shifted planes --------------------------------------------------------------------------

# The values that two columns read are interleaved, which gives two vectors of sixteen images. Sixteen such pairs of
# columns form the right operands of two products; both have the rows' weights as left operand. The sums of all columns
# stay in tile registers.
#
# The tables are those of `PairSums`, with three differences. Columns are byte offsets (int32). The third word of a
# segment is the number of its first block of weights. A block holds the rows' weights for 32 columns, row by row; the
# last block of a segment is padded with zeros.

SUM_POSITIONS = 2
"""Number of positions per tile of planes in `TileSums`; the sums of a position take two tile registers."""

_SUMS_LEFT, _SUMS_RIGHT = 2 * SUM_POSITIONS, 2 * SUM_POSITIONS + 1
"""Numbers of the tile registers of the two operands, after those of the sums."""

SUM_CONFIGURATION = bfloat.build_configuration([_WHOLE_TILE] * (_SUMS_RIGHT + 1))


@dataclass(frozen=True)
class TileSums(SegmentKernel):
    """Kernel of a layer's forward pass in bfloat16 with AMX; if `residual`, another value is added to the result."""

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    residual: bool
    rows: int = bfloat.TILE_ROWS

    def write(self, e: Emitter) -> None:
        with _configured_tiles(e, _CONFIGURATION):
            for number in range(len(self.shapes)):
                _TileSumsBody(e, self, number).write_body()


class _TileSumsBody:
    """Emits the loops of a `TileSums` kernel for tiles of one shape."""

    def __init__(self, e: Emitter, spec: TileSums, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.columns, self.weights, self.first_argument = e.table(COLUMNS), e.table(WEIGHTS), _SHAPES + 2 * number
        self.block_bytes = 2 * len(self.shape.x) * bfloat.TILE_BYTES
        self.turned = _zeroed_scratch(e, 2 * self.block_bytes)
        self.sums = e.scratch(self.block_bytes // bfloat.TILE_ROW_BYTES)

    def write_body(self) -> None:
        with loop_segments_by_unit(self.e, self.spec.segment_bytes, self.first_argument) as (segment, tile, begin, end):
            x, y, residual = tile
            self._multiply(segment, x, begin, end)
            write_rows(self.e, self.spec, self.shape, (segment, y, residual), self._load_row_sums)

    def _multiply(self, segment: Any, x: Any, begin: Any, end: Any) -> None:
        """Emit the products of all columns of a segment, and store the sums in scratch memory."""
        e, b = self.e, self.e.b
        weights = e.offset_pointer(self.weights, b.mul(e.load_i32(segment, 8), e.i64(bfloat.TILE_BYTES)))
        tiles = range(2 * len(self.shape.x))
        for tile in tiles:
            bfloat.zero_tile(e, tile)
        blocks = b.sdiv(b.add(b.sub(end, begin), e.i64(bfloat.TILE_DEPTH - 1)), e.i64(bfloat.TILE_DEPTH))
        with e.loop(0, b.add(blocks, e.i64(1))) as block:
            first = b.add(begin, b.mul(block.index, e.i64(bfloat.TILE_DEPTH)))
            last = minimum(e, b.add(first, e.i64(bfloat.TILE_DEPTH)), end)
            self._interleave_pairs(x, first, last, _alternating_buffer(e, self.turned, block.index, self.block_bytes))
            before = b.sub(block.index, e.i64(1))
            with e.when(b.icmp_signed(">", block.index, e.i64(0))):
                bfloat.load_tile(e, _SUMS_LEFT, e.offset_pointer(weights, b.mul(before, e.i64(bfloat.TILE_BYTES))))
                there = _alternating_buffer(e, self.turned, before, self.block_bytes)
                for tile in tiles:
                    bfloat.load_tile(e, _SUMS_RIGHT, e.offset_pointer(there, tile * bfloat.TILE_BYTES))
                    bfloat.multiply_tiles(e, tile, _SUMS_LEFT, _SUMS_RIGHT)
        for tile in tiles:
            bfloat.store_tile(e, tile, e.offset_pointer(self.sums, tile * bfloat.TILE_BYTES))

    def _interleave_pairs(self, x: Any, first: Any, last: Any, goal: Any) -> None:
        """Emit a loop that interleaves the inputs of columns `first` to `last` in pairs, and writes them to `goal`."""
        # Old data after the last pair is multiplied by zero weights.
        e, b = self.e, self.e.b
        with e.loop(first, last, PAIR, [e.i64(0)]) as loop:
            at = e.offset_pointer(self.columns, b.mul(loop.index, e.i64(4)))
            inputs = [e.offset_pointer(x, e.load_i32(at, 4 * further)) for further in range(PAIR)]
            row = e.offset_pointer(goal, loop.carried[0])
            for t, vector in enumerate(self.shape.x):
                values = [bfloat.load_pairs(e, pointer, vector) for pointer in inputs]
                for pointer in inputs:  # too many streams for the hardware prefetcher
                    e.prefetch(pointer, vector + len(self.shape.x) * bfloat.TILE_ROW_BYTES)
                for part, pairs in enumerate(bfloat.interleave_pairs(e, *values)):
                    b.store(
                        pairs, e.offset_pointer(row, (2 * t + part) * bfloat.TILE_BYTES), align=bfloat.TILE_ROW_BYTES
                    )
            loop.next = [b.add(loop.carried[0], e.i64(bfloat.TILE_ROW_BYTES))]

    def _load_row_sums(self, row: int, t: int) -> Sequence[Any]:
        places = ((2 * t + part) * bfloat.TILE_BYTES + row * bfloat.TILE_ROW_BYTES for part in range(2))
        return [self.e.load(self.sums, place) for place in places]


def _zeroed_scratch(e: Emitter, size: int) -> Any:
    """Reserve `size` bytes on the stack, emit code that zeroes them, and return the pointer."""
    place, width = e.scratch(size // (FLOAT * e.target.lanes)), FLOAT * e.target.lanes
    with e.loop(0, size, width) as loop:
        e.store(e.splat(0.0), place, loop.index)
    return place


def build_sum_tables(matrix: Matrix, sets: Sequence[Array], chunks: int) -> SumTables:
    """Return the tables of `TileSums` for a layer.

    `sets` are groups of sixteen rows that retain the same columns, or none. The rows are divided into `chunks` parts
    for threads.
    """
    columns, weights, counts = [], [], []
    for rows in sets:
        kept = np.flatnonzero(matrix.weight[rows[0]])
        begins = matrix.columns[rows[0] // matrix.group_rows, kept]
        blocks = -(-len(kept) // bfloat.TILE_DEPTH)
        block = np.zeros((len(rows), blocks * bfloat.TILE_DEPTH), dtype=matrix.weight.dtype)
        block[:, : len(kept)] = matrix.weight[rows][:, kept]
        columns.append(np.append(begins, begins[len(begins) - len(begins) % PAIR :]))
        weights.append(block.reshape(len(rows), blocks, bfloat.TILE_DEPTH).swapaxes(0, 1))
        counts.append(len(columns[-1]))
    count, each = np.array(counts), np.array([len(block) for block in weights])
    head = [count << FLAG_BITS | FIRST | LAST, np.zeros_like(count), np.cumsum(each) - each]
    segments, before = build_segment_table(matrix, head, np.stack(list(sets))), np.cumsum(count) - count
    parts = split_evenly(count, chunks)
    starts = [(4 * segments.shape[1] * part.start, part.stop - part.start, before[part.start]) for part in parts]
    return _pack_sum_tables(segments, columns, np.concatenate(weights).reshape(-1), np.array(starts))


def _pack_sum_tables(segments: Array, columns: Sequence[Array], weights: Array, chunks: Array) -> SumTables:
    every = np.concatenate(columns)
    bounds = (int(every.min()), int(every.max())) if len(every) else (0, 0)
    return SumTables(segments, every.astype(np.int32), weights, chunks, 1, True, False, bounds)


# -- input gradient ----------------------------------------------------------------------------------------------------

#     dx[inputs of a block] += W[16 outputs, inputs of a block]^T @ dy[16 outputs, images]        for each block
#
# The rows of the transposed weights do not share columns. But for one group of sixteen outputs and one tap, an input
# retains either all sixteen weights or none. A block consists of at most sixteen such inputs of one group and one tap.
# The gradients of the sixteen outputs at a position are interleaved in pairs and multiplied by the block's weights. The
# result is added to float32 sums in memory, which are rounded once after all blocks. Three stages overlap:
#
#     block n: interleave     block n - 1: multiply     block n - 2: add to the sums
#
# Tables:
#     sets (int32): for each group of sixteen outputs, the byte offsets of their planes
#     blocks (int32): six words per block: byte offset of the block's group in `sets`; byte shift of its tap; number of
#         inputs; index of the first input in `inputs`; whether to interleave (1 if the group or the tap differs from
#         the previous block); which half of the buffer to use
#     weights (bfloat16): sixteen inputs x sixteen outputs per block, padded with zeros
#     inputs (int32): the input channels of all blocks

_SPREAD_TABLES = range(4)
"""Numbers of the four table arguments of `TileSpread`."""

_BLOCK_COUNT, _PLANE, _RESIDUAL_PLANE, _SPREAD_CONFIGURATION, _SPREAD_SHAPES = range(4, 9)
"""Numbers of the other arguments: number of blocks, bytes between two planes of the input gradient and of the added
value, tile configuration; then, per shape, the tiles' offsets and their number."""

_SET, _SHIFT, _COUNT, _FIRST, _FRESH, _HALF = range(6)
"""Numbers of the 4-byte words of a block in the table `blocks`."""

_BLOCK_BYTES = bfloat.TILE_ROWS * bfloat.TILE_ROWS * bfloat.HALF

_NEAR_SUMS = 32_000
"""Number of bytes of sums that stay in the L1 cache."""

_SPREAD_LEFT, _SPREAD_RIGHT = 4, 5
"""Numbers of the tile registers, after four for sums: one for a block's weights; one for pairs of outputs."""

SPREAD_CONFIGURATION = bfloat.build_configuration(
    [_WHOLE_TILE] * _SPREAD_LEFT
    + [(bfloat.TILE_ROWS, bfloat.TILE_ROW_BYTES // 2), (bfloat.TILE_ROWS // 2, bfloat.TILE_ROW_BYTES)]
)


def positions_per_spread_tile(inputs: int) -> int:
    """Return how many positions (1 or 2) a tile of `TileSpread` has, so that `inputs` sums fit in the L1 cache."""
    return max(1, min(2, _NEAR_SUMS // (2 * bfloat.TILE_ROW_BYTES * inputs)))


@dataclass(frozen=True)
class TileSpread(EmittedKernel):
    """AMX kernel of the gradient of a layer's input (`inputs` planes) in bfloat16; adds another value if `residual`."""

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    inputs: int
    residual: bool

    def write(self, e: Emitter) -> None:
        with _configured_tiles(e, _SPREAD_CONFIGURATION):
            for number in range(len(self.shapes)):
                _TileSpreadBody(e, self, number).write_body()


class _TileSpreadBody:
    """Emits the loops of a `TileSpread` kernel for tiles of one shape."""

    def __init__(self, e: Emitter, spec: TileSpread, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.arena = e.arena_pointer()
        self.sets, self.blocks, self.weights, self.inputs = (e.table(n) for n in _SPREAD_TABLES)
        self.places, self.count = e.table(_SPREAD_SHAPES + 2 * number), e.arg(_SPREAD_SHAPES + 2 * number + 1)
        self.tiles = range(2 * len(self.shape.x))
        self.width = bfloat.TILE_ROW_BYTES * len(self.tiles)
        self.sums = e.scratch(spec.inputs * len(self.tiles))
        self.pair_bytes, self.made_bytes = (
            len(self.tiles) * size for size in (bfloat.TILE_BYTES // 2, bfloat.TILE_BYTES)
        )
        self.pairs = e.scratch(2 * self.pair_bytes // bfloat.TILE_ROW_BYTES)
        self.made = e.scratch(2 * self.made_bytes // bfloat.TILE_ROW_BYTES)

    def write_body(self) -> None:
        """Emit the loop over the tiles of planes that this thread computes."""
        e, b, blocks = self.e, self.e.b, self.e.arg(_BLOCK_COUNT)
        with e.loop(*e.thread_share(self.count)) as unit:
            place = e.offset_pointer(self.places, b.mul(unit.index, e.i64(12)))
            x, y, residual = (e.offset_pointer(self.arena, e.load_i32(place, 4 * word)) for word in range(3))
            self._load_residual(residual)
            with e.loop(0, b.add(blocks, e.i64(2))) as loop:
                for behind, stage in enumerate((self._interleave, self._multiply, self._add_products)):
                    number = b.sub(loop.index, e.i64(behind))
                    there = b.and_(b.icmp_signed(">=", number, e.i64(0)), b.icmp_signed("<", number, blocks))
                    with e.when(there):
                        stage(number, x)
            self._store_rounded_tile(y)

    def _load_residual(self, residual: Any) -> None:
        e, b = self.e, self.e.b
        with e.loop(0, self.spec.inputs) as loop:
            here = e.offset_pointer(self.sums, b.mul(loop.index, e.i64(self.width)))
            plane = e.offset_pointer(residual, b.mul(loop.index, e.arg(_RESIDUAL_PLANE)))
            for t, at in enumerate(self.shape.residual):
                values = [e.splat(0.0)] * 2
                if self.spec.residual:
                    values = bfloat.split_to_float32(e, bfloat.load_pairs(e, plane, at))
                for part, value in enumerate(values):
                    e.store(value, here, (2 * t + part) * bfloat.TILE_ROW_BYTES, align=bfloat.TILE_ROW_BYTES)

    def _load_block_word(self, block: Any, word: int) -> Any:
        return self.e.load_i32(self.blocks, self.e.b.add(self.e.b.mul(block, self.e.i64(24)), self.e.i64(4 * word)))

    def _interleave(self, block: Any, x: Any) -> None:
        """Emit code that interleaves a block's output gradients in pairs, unless the previous block has the same."""
        e, b = self.e, self.e.b
        with e.when(b.icmp_signed("!=", self._load_block_word(block, _FRESH), e.i64(0))):
            one = e.offset_pointer(self.sets, self._load_block_word(block, _SET))
            shifted = e.offset_pointer(x, self._load_block_word(block, _SHIFT))
            goal = e.offset_pointer(self.pairs, b.mul(self._load_block_word(block, _HALF), e.i64(self.pair_bytes)))
            for pair in range(bfloat.TILE_ROWS // 2):
                outputs = [e.offset_pointer(shifted, e.load_i32(one, 4 * (2 * pair + further))) for further in range(2)]
                for t, at in enumerate(self.shape.x):
                    values = [bfloat.load_pairs(e, output, at) for output in outputs]
                    for output in outputs:
                        e.prefetch(output, at + len(self.shape.x) * bfloat.TILE_ROW_BYTES)
                    for part, pairs in enumerate(bfloat.interleave_pairs(e, *values)):
                        place = (2 * t + part) * bfloat.TILE_BYTES // 2 + pair * bfloat.TILE_ROW_BYTES
                        b.store(pairs, e.offset_pointer(goal, place), align=bfloat.TILE_ROW_BYTES)

    def _multiply(self, block: Any, _: Any) -> None:
        e, b = self.e, self.e.b
        weights = e.offset_pointer(self.weights, b.mul(block, e.i64(_BLOCK_BYTES)))
        bfloat.load_tile(e, _SPREAD_LEFT, weights, _BLOCK_BYTES // bfloat.TILE_ROWS)
        pairs = e.offset_pointer(self.pairs, b.mul(self._load_block_word(block, _HALF), e.i64(self.pair_bytes)))
        made = _alternating_buffer(e, self.made, block, self.made_bytes)
        for tile in self.tiles:
            bfloat.zero_tile(e, tile)
            bfloat.load_tile(e, _SPREAD_RIGHT, e.offset_pointer(pairs, tile * bfloat.TILE_BYTES // 2))
            bfloat.multiply_tiles(e, tile, _SPREAD_LEFT, _SPREAD_RIGHT)
        for tile in self.tiles:
            bfloat.store_tile(e, tile, e.offset_pointer(made, tile * bfloat.TILE_BYTES))

    def _add_products(self, block: Any, _: Any) -> None:
        e, b = self.e, self.e.b
        inputs = e.offset_pointer(self.inputs, b.mul(self._load_block_word(block, _FIRST), e.i64(4)))
        count, made = self._load_block_word(block, _COUNT), _alternating_buffer(e, self.made, block, self.made_bytes)
        with e.loop(0, count, 1, [made]) as loop:
            number = e.load_i32(inputs, b.mul(loop.index, e.i64(4)))
            here = e.offset_pointer(self.sums, b.mul(number, e.i64(self.width)))
            for tile in self.tiles:
                value = e.load(loop.carried[0], tile * bfloat.TILE_BYTES)
                sums = b.fadd(e.load(here, tile * bfloat.TILE_ROW_BYTES), value)
                e.store(sums, here, tile * bfloat.TILE_ROW_BYTES, align=bfloat.TILE_ROW_BYTES)
            loop.next = [e.offset_pointer(loop.carried[0], bfloat.TILE_ROW_BYTES)]

    def _store_rounded_tile(self, y: Any) -> None:
        e, b = self.e, self.e.b
        with e.loop(0, self.spec.inputs) as loop:
            here = e.offset_pointer(self.sums, b.mul(loop.index, e.i64(self.width)))
            plane = e.offset_pointer(y, b.mul(loop.index, e.arg(_PLANE)))
            for t, at in enumerate(self.shape.y):
                values = [e.load(here, (2 * t + part) * bfloat.TILE_ROW_BYTES) for part in range(2)]
                bfloat.store_rounded(e, values, plane, at)


@dataclass(frozen=True, eq=False)
class SpreadTables:
    """Tables of `TileSpread` for one phase of a strided window.

    A phase consists of the input pixels that the same taps (kernel positions) read.
    """

    sets: Array
    blocks: Array
    weights: Array
    """For each weight, 1 + its index in the dense tensor; 0 for padding."""
    inputs: Array
    reach: tuple[int, int]
    """Least and greatest byte, relative to the offset of a tile, at which the output's gradient is read."""


def build_spread_tables(places: Array, planes: Array, shifts: Array, sets: Sequence[Array]) -> SpreadTables:
    """Return the tables of `TileSpread` for one phase of a strided window.

    A phase consists of the input pixels that the same taps (kernel positions) read.

    Args:
        places: weights as in `MaskedLayer.places`, convolution groups x outputs x inputs of a group x taps.
        planes: byte offset of each output's plane.
        shifts: byte shift of each tap.
        sets: sets of sixteen outputs whose weights retain the same columns.
    """
    _, per, each, taps = places.shape
    blocks: list[tuple[int, ...]] = []
    inputs, weights = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=places.dtype)]
    first = half = 0
    for (number, rows), tap in itertools.product(enumerate(sets), range(taps)):
        mine = places[int(rows[0]) // per, rows % per, :, tap]
        kept = np.flatnonzero(mine[0])
        for begin in range(0, len(kept), bfloat.TILE_ROWS):
            some = kept[begin : begin + bfloat.TILE_ROWS]
            block = np.zeros((bfloat.TILE_ROWS, bfloat.TILE_ROWS), dtype=places.dtype)
            block[: len(some)] = mine[:, some].T
            half = half if begin else 1 - half
            blocks.append((4 * bfloat.TILE_ROWS * number, int(shifts[tap]), len(some), first, int(not begin), half))
            weights.append(block.reshape(-1))
            first += len(some)
        inputs.append((kept + int(rows[0]) // per * each).astype(np.int32))
    return SpreadTables(
        planes[np.stack(list(sets))].astype(np.int32),
        np.array(blocks, dtype=np.int32).reshape(-1, 6),
        np.concatenate(weights),
        np.concatenate(inputs),
        (int(planes.min() + shifts.min()), int(planes.max() + shifts.max())),
    )


# -- weight gradient ---------------------------------------------------------------------------------------------------

# At each position, the right operand holds the rows' output gradients, transposed into pairs of images. The left
# operand holds the values that sixteen columns read, copied side by side. The sums stay in a tile register for all
# positions of a tile of planes, and the transposed gradients serve all columns.
#
# The tables are those of `Products` for several rows, with three differences. Columns are byte offsets (int32), padded
# to a multiple of sixteen. Sums are one float32 per column and row, column by column. Two more arguments per shape are
# the byte offsets of each position in x and in dy, and the number of positions.

PRODUCT_POSITIONS = 16
"""Maximum number of positions per tile of planes in `TileProducts`."""

_STRIP = 4
"""Number of column groups, of sixteen columns, whose sums are in tile registers at the same time."""

_PRODUCTS_LEFT, _PRODUCTS_RIGHT = _STRIP, _STRIP + 1
"""Numbers of the tile registers of the two operands, after those of the sums."""

PRODUCT_CONFIGURATION = bfloat.build_configuration([_WHOLE_TILE] * (_PRODUCTS_RIGHT + 1))


@dataclass(frozen=True)
class TileProducts(EmittedKernel):
    """Kernel that computes the gradients of retained weights with AMX, for tiles of `shapes` different shapes."""

    finished: ClassVar[bool] = True

    shapes: int
    rows: ClassVar[int] = bfloat.TILE_ROWS
    head: ClassVar[int] = 3
    segment_bytes: ClassVar[int] = 4 * (3 + 2 * bfloat.TILE_ROWS)

    def write(self, e: Emitter) -> None:
        with _configured_tiles(e, _CONFIGURATION):
            for number in range(self.shapes):
                _TileProductsBody(e, self, number).write_body()


class _TileProductsBody:
    """Emits the loops of a `TileProducts` kernel for tiles of one shape."""

    def __init__(self, e: Emitter, spec: TileProducts, number: int) -> None:
        self.e, self.spec, self.first_argument = e, spec, _SHAPES + 4 * number
        self.columns, self.sums = e.table(COLUMNS), e.arena_pointer(e.arg(SUMS))
        self.reach, self.positions = e.table(self.first_argument + 2), e.arg(self.first_argument + 3)
        self.turned = e.scratch(PRODUCT_POSITIONS * bfloat.TILE_ROWS)
        self.copies = e.scratch(2 * _STRIP * bfloat.TILE_ROWS)

    def write_body(self) -> None:
        e, b = self.e, self.e.b
        segments = loop_segments_by_chunk(e, self.spec.segment_bytes, self.first_argument)
        with segments as (segment, (x, y), begin, end), e.when(b.icmp_signed("<", begin, end)):
            self._transpose_gradients(segment, y)
            self._write_strips(x, begin, end)

    def _transpose_gradients(self, segment: Any, y: Any) -> None:
        """Emit code that transposes the output gradients of sixteen rows into pairs of images, for all positions."""
        e, b = self.e, self.e.b
        rows = [e.offset_pointer(y, e.load_i32(segment, 4 * (self.spec.head + row))) for row in range(bfloat.TILE_ROWS)]
        words = ir.VectorType(I32, bfloat.TILE_ROWS)
        with e.loop(0, self.positions) as loop:
            there = e.load_i32(self.reach, b.add(b.mul(loop.index, e.i64(8)), e.i64(4)))
            vectors = [b.load(e.offset_pointer(row, there), typ=words, align=4) for row in rows]
            goal = e.offset_pointer(self.turned, b.mul(loop.index, e.i64(bfloat.TILE_BYTES)))
            for number, vector in enumerate(_transpose_words(e, vectors)):
                b.store(vector, e.offset_pointer(goal, number * bfloat.TILE_ROW_BYTES), align=bfloat.TILE_ROW_BYTES)

    def _write_strips(self, x: Any, begin: Any, end: Any) -> None:
        """Emit the products of ``16 * _STRIP`` columns at a time, and of half as many, repeatedly, for the rest."""
        e, b = self.e, self.e.b
        size = _STRIP
        while size:
            width = size * bfloat.TILE_ROWS
            whole = b.add(begin, b.mul(b.sdiv(b.sub(end, begin), e.i64(width)), e.i64(width)))
            with e.loop(begin, whole, width) as loop:
                self._write_strip(x, loop.index, size)
            begin, size = whole, size // 2

    def _write_strip(self, x: Any, first: Any, sets: int) -> None:
        e, b = self.e, self.e.b
        sums = e.offset_pointer(self.sums, b.mul(first, e.i64(bfloat.TILE_ROW_BYTES)))
        for number in range(sets):
            bfloat.load_tile(e, number, e.offset_pointer(sums, number * bfloat.TILE_BYTES))
        columns = e.offset_pointer(self.columns, b.mul(first, e.i64(4)))
        with e.loop(0, b.add(self.positions, e.i64(1))) as loop:
            with e.when(b.icmp_signed("<", loop.index, self.positions)):
                self._copy_columns(x, columns, loop.index, sets)
            with e.when(b.icmp_signed(">", loop.index, e.i64(0))):
                before = b.sub(loop.index, e.i64(1))
                bfloat.load_tile(
                    e, _PRODUCTS_RIGHT, e.offset_pointer(self.turned, b.mul(before, e.i64(bfloat.TILE_BYTES)))
                )
                copies = self._column_buffer(before)
                for number in range(sets):
                    bfloat.load_tile(e, _PRODUCTS_LEFT, e.offset_pointer(copies, number * bfloat.TILE_BYTES))
                    bfloat.multiply_tiles(e, number, _PRODUCTS_LEFT, _PRODUCTS_RIGHT)
        for number in range(sets):
            bfloat.store_tile(e, number, e.offset_pointer(sums, number * bfloat.TILE_BYTES))

    def _column_buffer(self, position: Any) -> Any:
        return _alternating_buffer(self.e, self.copies, position, _STRIP * bfloat.TILE_BYTES)

    def _copy_columns(self, x: Any, columns: Any, position: Any, sets: int) -> None:
        e, b = self.e, self.e.b
        here = e.offset_pointer(x, e.load_i32(self.reach, b.mul(position, e.i64(8))))
        goal = self._column_buffer(position)
        for number in range(sets * bfloat.TILE_ROWS):
            values = e.load(e.offset_pointer(here, e.load_i32(columns, 4 * number)))
            e.store(values, goal, number * bfloat.TILE_ROW_BYTES, align=bfloat.TILE_ROW_BYTES)


def _transpose_words(e: Emitter, vectors: Sequence[Any]) -> list[Any]:
    """Return the transpose of a square of 32-bit words, given as one vector per row."""
    found, size = list(vectors), len(vectors)
    step = size // 2
    while step:
        for low in (number for number in range(size) if not number & step):
            one, other = found[low], found[low + step]
            first = [lane + (size - step if lane & step else 0) for lane in range(size)]
            second = [lane + (size if lane & step else step) for lane in range(size)]
            for goal, order in ((low, first), (low + step, second)):
                mask = ir.Constant(ir.VectorType(I32, size), order)
                found[goal] = e.b.shuffle_vector(one, other, mask)
        step //= 2
    return found


def tile_position_bytes(shape: Shape) -> tuple[Array, int]:
    """Return the bytes of a tile's positions in x and in dy (int32 [positions, 2]), and the number of positions."""
    return np.ascontiguousarray(np.array([shape.x, shape.y], dtype=np.int32).T), len(shape.x)


def build_product_tables(matrix: Matrix, sets: Sequence[Array]) -> SumTables:
    """Return the tables of `TileProducts` for a layer; `sets` are groups of sixteen rows with equal columns.

    Groups of fewer than sixteen columns are padded by repeating the last column and the indices of its weights.
    """
    columns, places, counts = [], [], []
    for rows in sets:
        kept = np.flatnonzero(matrix.weight[rows[0]])
        filled = -(-len(kept) // bfloat.TILE_ROWS) * bfloat.TILE_ROWS
        kept = np.append(kept, np.repeat(kept[-1:], filled - len(kept)))
        columns.append(matrix.columns[rows[0] // matrix.group_rows, kept])
        places.append(matrix.weight[rows][:, kept].T.reshape(-1))
        counts.append(filled)
    count = np.array(counts)
    nothing = np.zeros_like(count)
    segments = build_segment_table(matrix, [count << FLAG_BITS, nothing, nothing], np.stack(list(sets)))
    return _pack_sum_tables(segments, columns, np.concatenate(places), np.zeros((0, 3), dtype=np.int64))
