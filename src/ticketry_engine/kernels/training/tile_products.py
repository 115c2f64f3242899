"""AMX kernel of the bfloat16 weight gradient, for sixteen rows with equal columns.

    sums [16 columns, 16 rows]  +=  x [16 columns, 32 images]  @  dy [32 images, 16 rows]        at each position

At each position, the right operand holds the rows' output gradients, transposed into pairs of images. The left operand
holds the values that sixteen columns read, copied side by side. The sums stay in a tile register for all positions of a
tile of planes, and the transposed gradients serve all columns.

The tables are those of `Products` for several rows, with three differences. Columns are byte offsets (int32), padded to
a multiple of sixteen. Sums are one float32 per column and row, column by column. An additional table holds the byte
offsets of each position in x and in dy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import I32, EmittedKernel, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.planar.conv import Matrix, SumTables, build_segment_table
from ticketry_engine.kernels.planar.geometry import FLOAT, Shape
from ticketry_engine.kernels.planar.row_sums import FLAG_BITS
from ticketry_engine.kernels.training.products import loop_segments_by_chunk
from ticketry_engine.kernels.window import Array

SEGMENTS, COLUMNS, SUMS, CHUNKS, CHUNK_COUNT, CONFIGURATION, SHAPES = range(7)
"""Numbers of the kernel's arguments.

These are tables, arena offset of the sums in bytes, number of chunks, tile configuration; then, per shape, the tiles'
offsets and their number, the positions' byte offsets and their number.
"""

POSITIONS = 16
"""Maximum number of positions per tile of planes."""

STRIP = 4
"""Number of column groups, of sixteen columns, whose sums are in tile registers at the same time."""

LEFT, RIGHT = STRIP, STRIP + 1
"""Numbers of the tile registers of the two operands, after those of the sums."""

TILES = bfloat.build_configuration([(bfloat.TILE_ROWS, bfloat.TILE_ROW_BYTES)] * (RIGHT + 1))


@dataclass(frozen=True)
class TileProducts(EmittedKernel):
    """Kernel that computes the gradients of retained weights on AMX tiles.

    Args:
        shapes: number of different shapes of tiles of planes.
    """

    finished: ClassVar[bool] = True

    shapes: int
    rows: ClassVar[int] = bfloat.TILE_ROWS
    head: ClassVar[int] = 3

    @property
    def segment_bytes(self) -> int:
        return 4 * (self.head + 2 * self.rows)

    def write(self, e: Emitter) -> None:
        bfloat.configure_tiles(e, e.table(CONFIGURATION))
        for number in range(self.shapes):
            _TileProductsBody(e, self, number).emit()
        bfloat.release_tiles(e)


class _TileProductsBody:
    """Emits the loops of a `TileProducts` kernel for one tile shape."""

    def __init__(self, e: Emitter, spec: TileProducts, number: int) -> None:
        self.e, self.spec = e, spec
        self.columns, self.sums, self.first_argument = (
            e.table(COLUMNS),
            e.arena_pointer(e.arg(SUMS)),
            SHAPES + 4 * number,
        )
        self.reach, self.positions = e.table(self.first_argument + 2), e.arg(self.first_argument + 3)
        self.turned = e.scratch(POSITIONS * bfloat.TILE_ROWS)
        self.copies = e.scratch(2 * STRIP * bfloat.TILE_ROWS)

    def emit(self) -> None:
        e, b = self.e, self.e.b
        segments = loop_segments_by_chunk(e, self.spec.segment_bytes, self.first_argument)
        with segments as (segment, (x, y), begin, end), e.when(b.icmp_signed("<", begin, end)):
            self._transpose_gradients(segment, y)
            self._write_strips(x, begin, end)

    def _transpose_gradients(self, segment: Any, y: Any) -> None:
        """Emit the transposition of the sixteen rows' gradients into pairs of images, for all positions."""
        e, b = self.e, self.e.b
        rows = [e.at(y, e.load_i32(segment, 4 * (self.spec.head + row))) for row in range(bfloat.TILE_ROWS)]
        words = ir.VectorType(I32, bfloat.TILE_ROWS)
        with e.loop(0, self.positions) as loop:
            there = e.load_i32(self.reach, b.add(b.mul(loop.index, e.i64(8)), e.i64(4)))
            vectors = [b.load(e.at(row, there), typ=words, align=4) for row in rows]
            goal = e.at(self.turned, b.mul(loop.index, e.i64(bfloat.TILE_BYTES)))
            for number, vector in enumerate(transpose_words(e, vectors)):
                b.store(vector, e.at(goal, number * bfloat.TILE_ROW_BYTES), align=bfloat.TILE_ROW_BYTES)

    def _write_strips(self, x: Any, begin: Any, end: Any) -> None:
        """Emit the products of all columns, ``16 * STRIP`` at a time; for the rest, halve this number repeatedly."""
        e, b = self.e, self.e.b
        size = STRIP
        while size:
            width = size * bfloat.TILE_ROWS
            whole = b.add(begin, b.mul(b.sdiv(b.sub(end, begin), e.i64(width)), e.i64(width)))
            with e.loop(begin, whole, width) as loop:
                self._write_strip(x, loop.index, size)
            begin, size = whole, size // 2

    def _write_strip(self, x: Any, first: Any, sets: int) -> None:
        e, b = self.e, self.e.b
        sums = e.at(self.sums, b.mul(first, e.i64(bfloat.TILE_ROW_BYTES)))
        for number in range(sets):
            bfloat.load_tile(e, number, e.at(sums, number * bfloat.TILE_BYTES))
        columns = e.at(self.columns, b.mul(first, e.i64(4)))
        with e.loop(0, b.add(self.positions, e.i64(1))) as loop:
            with e.when(b.icmp_signed("<", loop.index, self.positions)):
                self._copy_columns(x, columns, loop.index, sets)
            with e.when(b.icmp_signed(">", loop.index, e.i64(0))):
                before = b.sub(loop.index, e.i64(1))
                bfloat.load_tile(e, RIGHT, e.at(self.turned, b.mul(before, e.i64(bfloat.TILE_BYTES))))
                copies = self._column_buffer(before)
                for number in range(sets):
                    bfloat.load_tile(e, LEFT, e.at(copies, number * bfloat.TILE_BYTES))
                    bfloat.multiply_tiles(e, number, LEFT, RIGHT)
        for number in range(sets):
            bfloat.store_tile(e, number, e.at(sums, number * bfloat.TILE_BYTES))

    def _column_buffer(self, position: Any) -> Any:
        """Return the buffer for the columns copied at `position`.

        Two buffers alternate, because loading a tile from memory that was just stored would stall.
        """
        e, b = self.e, self.e.b
        return e.at(self.copies, b.mul(b.and_(position, e.i64(1)), e.i64(STRIP * bfloat.TILE_BYTES)))

    def _copy_columns(self, x: Any, columns: Any, position: Any, sets: int) -> None:
        e, b = self.e, self.e.b
        here = e.at(x, e.load_i32(self.reach, b.mul(position, e.i64(8))))
        goal = self._column_buffer(position)
        for number in range(sets * bfloat.TILE_ROWS):
            values = e.load(e.at(here, e.load_i32(columns, 4 * number)))
            e.store(values, goal, number * bfloat.TILE_ROW_BYTES, align=bfloat.TILE_ROW_BYTES)


def transpose_words(e: Emitter, vectors: Sequence[Any]) -> list[Any]:
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


def build_offset_table(shape: Shape) -> Array:
    """Return the byte offset of each position of a tile in x and in dy: int32 [positions, 2]."""
    return np.ascontiguousarray(np.array([shape.x, shape.y], dtype=np.int32).T)


def build_tables(matrix: Matrix, sets: Sequence[Array]) -> SumTables:
    """Return the kernel's tables for a layer; `sets` are groups of sixteen rows with equal columns.

    Partial groups of sixteen columns are padded by repeating the last column and the indices of its weights.
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
    every = np.concatenate(columns)
    bounds = (int(every.min()), int(every.max())) if len(every) else (0, 0)
    chunks = np.zeros((0, 3), dtype=np.int64)
    return SumTables(segments, every.astype(np.int32), np.concatenate(places), chunks, 1, True, False, bounds)


@dataclass(frozen=True)
class Added(EmittedKernel):
    """Kernel that adds the sums of several threads and writes them to an external tensor.

    Arguments: arena offset of the sums in bytes; number of vectors; number of the external tensor; bytes between the
    sums of two threads.
    """

    several: int = 1

    def write(self, e: Emitter) -> None:
        b, width = e.b, FLOAT * e.target.lanes
        place, out = e.arena_pointer(e.arg(0)), e.tensor_pointer(e.arg(2))
        with e.loop(*e.thread_share(e.arg(1))) as turn:
            at = b.mul(turn.index, e.i64(width))
            value = e.load(e.at(place, at))
            for thread in range(1, self.several):
                value = b.fadd(value, e.load(e.at(place, b.add(at, b.mul(e.i64(thread), e.arg(3))))))
            e.store(value, out, at)
