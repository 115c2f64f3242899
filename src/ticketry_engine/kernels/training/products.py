"""Kernels of the weight gradient, only where weights are retained (`Products`), and of bfloat16 sums (`PairSums`).

    dW[row, column] = sum over positions and images t of dy[row][t] * x[column + t]        (sampled dense-dense product)

For a tile of positions, the output gradients of a row stay in registers while the tile's inputs are read for `TOGETHER`
columns at a time. The product vectors of these columns are added lane by lane into one vector of sums
(`add_neighbouring_lanes`), in which each column has some lanes; this vector is added to the sums of earlier tiles. The
lanes of a column are added once, at the end. Thus the order of each sum does not depend on the number of threads.

Rows with equal columns are multiplied several at a time, so that each load of a gradient or an input serves several
products.

The tables are those of `planar.row_sums` for the forward pass, with two differences. The columns of each segment are
padded to a multiple of `TOGETHER` and not shared between segments of several rows. Instead of weights there are vectors
of sums: for each `TOGETHER` columns, one vector per row. The sums of a chunk of rows stay in the L2 cache while the
chunk processes all tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import I16, I32, I64, EmittedKernel, Emitter
from ticketry_engine.kernels.planar.conv import SumTables
from ticketry_engine.kernels.planar.geometry import FLOAT, Shape, shuffle
from ticketry_engine.kernels.planar.row_sums import FLAG_BITS, SegmentKernel

SEGMENTS, COLUMNS, WEIGHTS, CHUNKS, CHUNK_COUNT, SHAPES = range(6)
"""Numbers of the arguments of `PairSums`: tables, number of chunks; per shape, the tiles' offsets and their number."""

SUMS = WEIGHTS
"""Number of the argument of `Products` that replaces the weights: the arena offset, in bytes, of the sums."""

TOGETHER = 4
"""Number of columns whose sums are folded into one vector."""

SIDE_BY_SIDE = 8
"""Number of columns of a row that are summed concurrently with 32 registers, to keep both multipliers busy."""


@dataclass(frozen=True)
class Products(EmittedKernel):
    """Kernel that computes the gradients of retained weights with vector instructions.

    Args:
        shapes: shapes of the tiles of x and of the gradient of y.
        unit: unit of the column offsets, in bytes.
        wide: whether columns take 32 bits (signed) instead of 16.
        rows: number of rows that share their columns and are multiplied together.
        half: whether values are bfloat16, multiplied in pairs of neighbouring images.
    """

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    unit: int
    wide: bool
    rows: int = 1
    half: bool = False

    @property
    def header_words(self) -> int:
        """Number of 4-byte words in the header of a segment, before the words that describe its rows."""
        return 2 if self.rows == 1 else 3

    @property
    def segment_bytes(self) -> int:
        return 4 * (self.header_words + 2 * self.rows)

    def write(self, e: Emitter) -> None:
        for number in range(len(self.shapes)):
            _ProductsBody(e, self, number).write_body()


class _ProductsBody:
    """Emits the loops of a `Products` kernel for tiles of one shape."""

    def __init__(self, e: Emitter, spec: Products, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.columns, self.sums, self.first_argument = (
            e.table(COLUMNS),
            e.arena_pointer(e.arg(SUMS)),
            SHAPES + 2 * number,
        )

    def write_body(self) -> None:
        e, head = self.e, self.spec.header_words
        with loop_segments_by_chunk(e, self.spec.segment_bytes, self.first_argument) as (segment, (x, y), begin, end):
            inputs = e.offset_pointer(x, e.load_i32(segment, 4))
            rows = [e.offset_pointer(y, e.load_i32(segment, 4 * (head + row))) for row in range(self.spec.rows)]
            if self.spec.rows == 1:
                self._write_segment([self._load(rows[0], at) for at in self.shape.y], inputs, begin, end)
            else:
                self._write_shared_rows(rows, inputs, begin, end)

    def _write_shared_rows(self, rows: Sequence[Any], x: Any, begin: Any, end: Any) -> None:
        """Emit the products of several rows that share their columns."""
        e, b, width = self.e, self.e.b, FLOAT * self.e.target.lanes
        with e.loop(begin, end, TOGETHER) as turn:
            place = e.offset_pointer(self.sums, b.mul(turn.index, e.i64(len(rows) * width // TOGETHER)))
            inputs = [e.offset_pointer(x, self._load_column(turn.index, further)) for further in range(TOGETHER)]
            parts = [[e.splat(0.0)] * TOGETHER for _ in rows]
            for at, there in zip(self.shape.x, self.shape.y, strict=True):
                gradients = [self._load(row, there) for row in rows]
                for number, pointer in enumerate(inputs):
                    value = self._load(pointer, at)
                    for gradient, part in zip(gradients, parts, strict=True):
                        part[number] = self._multiply(gradient, value, part[number])
            for number, part in enumerate(parts):
                here = e.offset_pointer(place, number * width)
                e.store(b.fadd(e.load(here), add_neighbouring_lanes(e, part)), here)

    def _write_segment(self, gradients: list[Any], x: Any, begin: Any, end: Any) -> None:
        e, b = self.e, self.e.b
        if e.target.registers < 32:
            self._write_columns(gradients, x, begin, end, TOGETHER)
            return
        several = b.and_(b.sub(end, begin), e.i64(-SIDE_BY_SIDE))
        middle = b.add(begin, several)
        self._write_columns(gradients, x, begin, middle, SIDE_BY_SIDE)
        self._write_columns(gradients, x, middle, end, TOGETHER)

    def _write_columns(self, gradients: list[Any], x: Any, begin: Any, end: Any, together: int) -> None:
        """Emit the products of one row, `together` columns at a time; the results are the same for any `together`."""
        e, b, width = self.e, self.e.b, FLOAT * self.e.target.lanes
        with e.loop(begin, end, together) as turn:
            place = e.offset_pointer(self.sums, b.mul(turn.index, e.i64(width // TOGETHER)))
            inputs = [e.offset_pointer(x, self._load_column(turn.index, further)) for further in range(together)]
            parts: list[Any] = [None] * together
            for gradient, at in zip(gradients, self.shape.x, strict=True):
                for number, pointer in enumerate(inputs):
                    parts[number] = self._multiply(gradient, self._load(pointer, at), parts[number])
            for number in range(together // TOGETHER):
                here = e.offset_pointer(place, number * width)
                some = parts[number * TOGETHER : (number + 1) * TOGETHER]
                e.store(b.fadd(e.load(here), add_neighbouring_lanes(e, some)), here)

    def _load(self, pointer: Any, byte: int) -> Any:
        return bfloat.load_pairs(self.e, pointer, byte) if self.spec.half else self.e.load(pointer, byte)

    def _multiply(self, gradient: Any, value: Any, part: Any) -> Any:
        """Return ``part + gradient * value``; if `part` is None, return the product alone."""
        e = self.e
        if self.spec.half:
            return bfloat.multiply_pairs(e, gradient, value, e.splat(0.0) if part is None else part)
        return e.b.fmul(gradient, value) if part is None else e.fma(gradient, value, part)

    def _load_column(self, index: Any, further: int) -> Any:
        return load_column(self.e, self.columns, index, further, self.spec.unit, wide=self.spec.wide)


@dataclass(frozen=True)
class Zero(EmittedKernel):
    """Kernel that zeroes consecutive vectors in the arena.

    Arguments: arena offset of the first vector in bytes, and the number of vectors.
    """

    def write(self, e: Emitter) -> None:
        place = e.arena_pointer(e.arg(0))
        with e.loop(*e.thread_share(e.arg(1))) as vector:
            e.store(e.splat(0.0), place, e.b.mul(vector.index, e.i64(FLOAT * e.target.lanes)))


@dataclass(frozen=True)
class Totals(EmittedKernel):
    """Kernel that adds the lanes of each column's sum and writes the totals to a tensor, one vector per iteration.

    Arguments: arena offset of the sums in bytes; number of iterations; number of the tensor among those given to the
    program; bytes between the sums of two threads.

    Args:
        several: number of threads that have separate sums; the kernel first adds the sums of all threads.
        together: number of columns that share a vector of sums.
    """

    several: int
    together: int

    def write(self, e: Emitter) -> None:
        b, width, vectors = e.b, FLOAT * e.target.lanes, e.target.lanes // self.together
        place, out = e.arena_pointer(e.arg(0)), e.tensor_pointer(e.arg(2))
        with e.loop(*e.thread_share(e.arg(1))) as turn:
            here = e.offset_pointer(place, b.mul(turn.index, e.i64(width * vectors)))
            sums = [e.load(here, width * number) for number in range(vectors)]
            for thread in range(1, self.several):
                more = e.offset_pointer(here, b.mul(e.i64(thread), e.arg(3)))
                sums = [b.fadd(one, e.load(more, width * number)) for number, one in enumerate(sums)]
            e.store(add_neighbouring_lanes(e, sums), out, b.mul(turn.index, e.i64(width)))


def add_neighbouring_lanes(e: Emitter, vectors: Sequence[Any]) -> Any:
    """Add neighbouring lanes of several vectors, and return a vector of the sums in the order of the vectors.

    The number of vectors is a power of two.
    """
    while len(vectors) > 1:
        vectors = [_add_neighbours(e, *pair) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _add_neighbours(e: Emitter, one: Any, other: Any) -> Any:
    odd, even = (shuffle(e, one, other, range(start, 2 * e.target.lanes, 2)) for start in (1, 0))
    return e.b.fadd(even, odd)


# -- weighted sums in bfloat16, two columns at a time ------------------------------------------------------------------

#     sum[row][image] += w[row, k] * x[k][image] + w[row, k + 1] * x[k + 1][image]        (vdpbf16ps)
#
# A position holds 32 images. The values that two columns read are interleaved image by image and multiplied by the
# row's pair of weights; the sums are float32, two vectors per vector of values. Interleaving takes two instructions per
# vector and pair of columns, for all rows that share them. Results are rounded to bfloat16 once.
#
# Tables are those of `planar.row_sums`, except that segments have an even number of unshared columns, weights are
# bfloat16 pairs (for each pair of columns, each row's two), and each row has a single segment.

PAIR = 2
"""Number of columns that are multiplied by one instruction."""


@contextmanager
def _loop_segments(e: Emitter, chunk: Any, segment_bytes: int) -> Iterator[tuple[Any, Any, Any]]:
    """Emit a loop over a chunk's segments (parts of weight rows); yield each segment, its first column, and its end."""
    b, segments = e.b, e.table(SEGMENTS)
    start, count, first = (e.load_i64(chunk, 8 * word) for word in range(3))
    stop = b.add(start, b.mul(count, e.i64(segment_bytes)))
    with e.loop(start, stop, segment_bytes, [first]) as loop:
        segment, begin = e.offset_pointer(segments, loop.index), loop.carried[0]
        end = b.add(begin, b.ashr(e.load_i32(segment), e.i64(FLAG_BITS)))
        loop.next = [end]
        yield segment, begin, end


def _tile_pointers(e: Emitter, places: Any, number: Any, values: int) -> tuple[Any, ...]:
    """Return the first `values` of three pointers: to tile `number` of x, of y and of the residual."""
    place = e.offset_pointer(places, e.b.mul(number, e.i64(12)))
    return tuple(e.offset_pointer(e.arena_pointer(), e.load_i32(place, 4 * word)) for word in range(values))


@contextmanager
def loop_segments_by_unit(
    e: Emitter, segment_bytes: int, argument: int
) -> Iterator[tuple[Any, tuple[Any, ...], Any, Any]]:
    """Emit a loop over the segments of this thread's units of work; a unit is one chunk of rows on one tile.

    Yield the segment (part of a weight row); pointers to the tile of x, of y and of the residual; the segment's first
    column; and the column after its last. The kernel arguments with index `argument` and `argument` + 1 are the tiles'
    offsets and the number of tiles.
    """
    b, chunks, chunk_count = e.b, e.table(CHUNKS), e.arg(CHUNK_COUNT)
    places, count = e.table(argument), e.arg(argument + 1)
    with e.loop(*e.thread_share(b.mul(count, chunk_count))) as unit:
        chunk = e.offset_pointer(chunks, b.mul(b.urem(unit.index, chunk_count), e.i64(24)))
        tile = _tile_pointers(e, places, b.udiv(unit.index, chunk_count), 3)
        with _loop_segments(e, chunk, segment_bytes) as (segment, begin, end):
            yield segment, tile, begin, end


@contextmanager
def loop_segments_by_chunk(
    e: Emitter, segment_bytes: int, argument: int
) -> Iterator[tuple[Any, tuple[Any, ...], Any, Any]]:
    """Emit three nested loops: over this thread's chunks of rows, over all tiles, and over the chunk's segments.

    A chunk's sums stay in the cache until all tiles are done. Yield what `loop_segments_by_unit` yields, but without a
    pointer to the residual.
    """
    b, chunks = e.b, e.table(CHUNKS)
    places, count = e.table(argument), e.arg(argument + 1)
    with e.loop(*e.thread_share(e.arg(CHUNK_COUNT))) as number:
        chunk = e.offset_pointer(chunks, b.mul(number.index, e.i64(24)))
        with e.loop(0, count) as turn:
            tile = _tile_pointers(e, places, turn.index, 2)
            with _loop_segments(e, chunk, segment_bytes) as (segment, begin, end):
                yield segment, tile, begin, end


@dataclass(frozen=True)
class PairSums(SegmentKernel):
    """Kernel of a layer's forward pass in bfloat16: weighted sums of input planes.

    Args:
        rows: number of rows that share their columns and are summed together.
        shapes: shapes of the tiles; each shape gets separate code.
        residual: whether a residual value is added to y.
        unit: unit of the column offsets, in bytes.
        wide: whether columns take 32 bits (signed) instead of 16.
    """

    finished: ClassVar[bool] = True

    rows: int
    shapes: tuple[Shape, ...]
    residual: bool
    unit: int
    wide: bool

    def write(self, e: Emitter) -> None:
        for number in range(len(self.shapes)):
            _PairSumsBody(e, self, number).write_body()


class _PairSumsBody:
    """Emits the loops of a `PairSums` kernel for tiles of one shape."""

    def __init__(self, e: Emitter, spec: PairSums, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.columns, self.weights, self.first_argument = e.table(COLUMNS), e.table(WEIGHTS), SHAPES + 2 * number

    def write_body(self) -> None:
        with loop_segments_by_unit(self.e, self.spec.segment_bytes, self.first_argument) as (segment, tile, begin, end):
            x, y, residual = tile
            sums = self._compute_sums(self.e.offset_pointer(x, self.e.load_i32(segment, 4)), begin, end)
            self._write_segment_end(segment, y, residual, sums)

    def _compute_sums(self, x: Any, begin: Any, end: Any) -> list[Any]:
        """Emit a segment's sums; return two vectors per row and tile vector, in the order of `interleave_pairs`."""
        e, b, spec = self.e, self.e.b, self.spec
        vectors = len(self.shape.x)
        with e.loop(begin, end, PAIR, [e.splat(0.0)] * (2 * spec.rows * vectors)) as loop:
            at = e.offset_pointer(self.weights, b.mul(loop.index, e.i64(bfloat.HALF * spec.rows)))
            weights = [bfloat.splat_pair(e, at, PAIR * bfloat.HALF * row) for row in range(spec.rows)]
            inputs = [
                e.offset_pointer(x, load_column(e, self.columns, loop.index, further, spec.unit, wide=spec.wide))
                for further in range(PAIR)
            ]
            sums = list(loop.carried)
            for t, vector in enumerate(self.shape.x):
                values = [bfloat.load_pairs(e, pointer, vector) for pointer in inputs]
                for part, pairs in enumerate(bfloat.interleave_pairs(e, *values)):
                    for row, weight in enumerate(weights):
                        number = 2 * (row * vectors + t) + part
                        sums[number] = bfloat.multiply_pairs(e, weight, pairs, sums[number])
            loop.next = sums
        return loop.results

    def _write_segment_end(self, segment: Any, y: Any, residual: Any, sums: Sequence[Any]) -> None:
        vectors = len(self.shape.y)
        write_rows(
            self.e, self.spec, self.shape, (segment, y, residual), lambda row, t: sums[2 * (row * vectors + t) :][:2]
        )


def write_rows(
    e: Emitter, spec: SegmentKernel, shape: Shape, at: tuple[Any, Any, Any], sums: Callable[[int, int], Sequence[Any]]
) -> None:
    """Emit the end of a segment (part of rows): add bias and residual to the sums, round to bfloat16, and store.

    Args:
        at: pointers to the segment, to a tile of y, and to a tile of the residual.
        sums: function that returns the two vectors of sums for (row, vector).
    """
    b, (segment, y, residual) = e.b, at
    for row in range(spec.rows):
        bias = e.splat(e.load_f32(segment, spec.segment_bytes - 4 * (spec.rows - row)))
        out = e.offset_pointer(y, e.load_i32(segment, 4 * (spec.header_words + row)))
        if spec.residual:
            beside = e.offset_pointer(residual, e.load_i32(segment, 4 * (spec.header_words + spec.rows + row)))
        for t, place in enumerate(shape.y):
            values = [b.fadd(value, bias) for value in sums(row, t)]
            if spec.residual:
                there = bfloat.load_pairs(e, beside, shape.residual[t])
                values = [b.fadd(*pair) for pair in zip(values, bfloat.split_to_float32(e, there), strict=True)]
            bfloat.store_rounded(e, values, out, place)


# -- columns -----------------------------------------------------------------------------------------------------------

#     segment with 5 columns, sets of 4:   c0 c1 c2 c3 | c4 c4 c4 c4       (the last column repeated)
#
# Whole sets need no remainder loop.


def load_column(e: Emitter, table: Any, index: Any, further: int, unit: int, *, wide: bool) -> Any:
    """Load the offset of column ``index + further`` from `table` and return it in bytes.

    Stored offsets have a unit of `unit` bytes, and 32 bits (signed) if `wide`, else 16.
    """
    kind, widen, size = (I32, e.b.sext, 4) if wide else (I16, e.b.zext, 2)
    at = e.offset_pointer(table, e.b.add(e.b.mul(index, e.i64(size)), e.i64(further * size)))
    return e.b.mul(widen(e.b.load(at, typ=kind, align=size), I64), e.i64(unit))


def pad_segments(made: SumTables, rows: int, together: int, *, once: bool = False) -> SumTables:
    """Pad the columns of each segment (part of rows) to a multiple of `together` by repeating its last column.

    If segments have several rows, columns that several segments share are copied for each segment. Weights are put in
    the order in which kernels read them: for each `together` columns, one row after the other. If `once`, repeated
    columns get zero weights, so that each weight counts once; else copies of the last column's weights.
    """
    counts = made.segments[:, 0].astype(np.int64) >> FLAG_BITS
    filled = -(-counts // together) * together
    first, start = np.cumsum(counts) - counts, np.cumsum(filled) - filled
    number, counted = np.arange(int(filled.sum())) - np.repeat(start, filled), np.repeat(counts, filled)
    behind = np.minimum(number, counted - 1)
    segments, chunks = made.segments.copy(), made.chunks.copy()
    segments[:, 0] = filled << FLAG_BITS
    chunks[:, 2] = start[chunks[:, 0] // (4 * segments.shape[1])]
    columns = made.columns[np.repeat(first if rows == 1 else made.segments[:, 2], filled) + behind]
    weights = made.weights[np.repeat(first, filled) + behind]
    if once:
        weights[number >= counted] = 0
    if rows > 1:
        weights = weights.reshape(-1, together, rows).swapaxes(1, 2).reshape(-1)
    return replace(made, segments=segments, chunks=chunks, columns=columns, weights=weights)
