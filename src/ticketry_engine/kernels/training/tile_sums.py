"""AMX kernel of weighted sums of shifted planes in bfloat16, for sixteen rows with equal columns.

    sums [16 rows, 16 images]  +=  w [16 rows, 32 columns]  @  x [32 columns, 16 images]        twice per position

A position holds 32 images. The values that two columns read are interleaved image by image (`bfloat.interleave_pairs`),
which gives two vectors of sixteen images. Sixteen such pairs of columns form the right operands of two products; both
have the rows' weights as left operand. The sums of all columns stay in tile registers. While 32 columns are multiplied,
the next 32 are interleaved, because loading a tile right after storing its data would stall.

The tables are those of `PairSums`, with three differences. Columns are byte offsets (int32). The third word of a
segment is the number of its first block of weights. A block holds the rows' weights for 32 columns, row by row; the
last block of a segment is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import Emitter, minimum
from ticketry_engine.kernels.planar.conv import Matrix, SumTables, build_segment_table, split_evenly
from ticketry_engine.kernels.planar.geometry import FLOAT, Shape
from ticketry_engine.kernels.planar.row_sums import FIRST, FLAG_BITS, LAST, SegmentKernel
from ticketry_engine.kernels.training.products import PAIR, loop_segments_by_unit, write_rows
from ticketry_engine.kernels.window import Array

SEGMENTS, COLUMNS, WEIGHTS, CHUNKS, CHUNK_COUNT, CONFIGURATION, SHAPES = range(7)
"""Numbers of the kernel's arguments.

These are tables, number of chunks, tile configuration; then, per shape, the tiles' offsets and their number.
"""

POSITIONS = 2
"""Number of positions per tile of planes; the sums of a position take two tile registers."""

LEFT, RIGHT = 2 * POSITIONS, 2 * POSITIONS + 1
"""Numbers of the tile registers of the two operands, after those of the sums."""

TILES = bfloat.build_configuration([(bfloat.TILE_ROWS, bfloat.TILE_ROW_BYTES)] * (RIGHT + 1))


@dataclass(frozen=True)
class TileSums(SegmentKernel):
    """AMX kernel of weighted sums in bfloat16.

    Args:
        shapes: shapes of the tiles of planes; each shape gets separate code.
        residual: whether a residual value is added to y.
    """

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    residual: bool
    rows: int = bfloat.TILE_ROWS

    def write(self, e: Emitter) -> None:
        bfloat.configure_tiles(e, e.table(CONFIGURATION))
        for number in range(len(self.shapes)):
            _TileSumsBody(e, self, number).emit()
        bfloat.release_tiles(e)


class _TileSumsBody:
    """Emits the loops of a `TileSums` kernel for one tile shape."""

    def __init__(self, e: Emitter, spec: TileSums, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.columns, self.weights, self.first_argument = e.table(COLUMNS), e.table(WEIGHTS), SHAPES + 2 * number
        self.block_bytes = 2 * len(self.shape.x) * bfloat.TILE_BYTES
        self.turned = _zeroed_scratch(e, 2 * self.block_bytes)
        self.sums = e.scratch(self.block_bytes // bfloat.TILE_ROW_BYTES)

    def emit(self) -> None:
        with loop_segments_by_unit(self.e, self.spec.segment_bytes, self.first_argument) as (segment, tile, begin, end):
            x, y, residual = tile
            self._multiply(segment, x, begin, end)
            write_rows(self.e, self.spec, self.shape, (segment, y, residual), self._load_row_sums)

    def _multiply(self, segment: Any, x: Any, begin: Any, end: Any) -> None:
        """Emit the products of all columns of a segment, and store the sums in scratch memory."""
        e, b = self.e, self.e.b
        weights = e.at(self.weights, b.mul(e.load_i32(segment, 8), e.i64(bfloat.TILE_BYTES)))
        tiles = range(2 * len(self.shape.x))
        for tile in tiles:
            bfloat.zero_tile(e, tile)
        blocks = b.sdiv(b.add(b.sub(end, begin), e.i64(bfloat.TILE_DEPTH - 1)), e.i64(bfloat.TILE_DEPTH))
        with e.loop(0, b.add(blocks, e.i64(1))) as block:
            first = b.add(begin, b.mul(block.index, e.i64(bfloat.TILE_DEPTH)))
            last = minimum(e, b.add(first, e.i64(bfloat.TILE_DEPTH)), end)
            self._interleave_pairs(x, first, last, self._block_buffer(block.index))
            before = b.sub(block.index, e.i64(1))
            with e.when(b.icmp_signed(">", block.index, e.i64(0))):
                bfloat.load_tile(e, LEFT, e.at(weights, b.mul(before, e.i64(bfloat.TILE_BYTES))))
                there = self._block_buffer(before)
                for tile in tiles:
                    bfloat.load_tile(e, RIGHT, e.at(there, tile * bfloat.TILE_BYTES))
                    bfloat.multiply_tiles(e, tile, LEFT, RIGHT)
        for tile in tiles:
            bfloat.store_tile(e, tile, e.at(self.sums, tile * bfloat.TILE_BYTES))

    def _block_buffer(self, block: Any) -> Any:
        """Return the buffer for the interleaved columns of a block; even and odd blocks use different buffers."""
        e, b = self.e, self.e.b
        return e.at(self.turned, b.mul(b.and_(block, e.i64(1)), e.i64(self.block_bytes)))

    def _interleave_pairs(self, x: Any, first: Any, last: Any, goal: Any) -> None:
        """Emit a loop that interleaves what columns `first` to `last` read, in pairs, into the buffer `goal`.

        Old data after the last pair is multiplied by zero weights.
        """
        e, b = self.e, self.e.b
        with e.loop(first, last, PAIR, [e.i64(0)]) as loop:
            at = e.at(self.columns, b.mul(loop.index, e.i64(4)))
            inputs = [e.at(x, e.load_i32(at, 4 * further)) for further in range(PAIR)]
            row = e.at(goal, loop.carried[0])
            for t, vector in enumerate(self.shape.x):
                values = [bfloat.load_pairs(e, pointer, vector) for pointer in inputs]
                for pointer in inputs:  # too many streams for the hardware prefetcher
                    e.prefetch(pointer, vector + len(self.shape.x) * bfloat.TILE_ROW_BYTES)
                for part, pairs in enumerate(bfloat.interleave_pairs(e, *values)):
                    b.store(pairs, e.at(row, (2 * t + part) * bfloat.TILE_BYTES), align=bfloat.TILE_ROW_BYTES)
            loop.next = [b.add(loop.carried[0], e.i64(bfloat.TILE_ROW_BYTES))]

    def _load_row_sums(self, row: int, t: int) -> Sequence[Any]:
        e = self.e
        return [
            e.load(self.sums, (2 * t + part) * bfloat.TILE_BYTES + row * bfloat.TILE_ROW_BYTES) for part in range(2)
        ]


def _zeroed_scratch(e: Emitter, size: int) -> Any:
    """Reserve `size` bytes on the stack, emit code that zeroes them, and return the pointer."""
    place, width = e.scratch(size // (FLOAT * e.target.lanes)), FLOAT * e.target.lanes
    with e.loop(0, size, width) as loop:
        e.store(e.splat(0.0), place, loop.index)
    return place


def build_tables(matrix: Matrix, sets: Sequence[Array], chunks: int) -> SumTables:
    """Return the tables of the AMX kernel for the weighted sums of a layer.

    Args:
        sets: groups of sixteen rows with equal (possibly no) columns.
        chunks: number of parts of the rows that threads may process in parallel.
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
    every = np.concatenate(columns)
    reach = (int(every.min()), int(every.max())) if len(every) else (0, 0)
    packed = np.concatenate(weights).reshape(-1)
    return SumTables(segments, every.astype(np.int32), packed, np.array(starts), 1, True, False, reach)
