"""bfloat16 kernel of weighted sums of shifted planes, two columns at a time.

    sum[row][image] += w[row, k] * x[k][image] + w[row, k + 1] * x[k + 1][image]        (vdpbf16ps)

A position holds 32 images. The values that two columns read are interleaved image by image and multiplied by the row's
pair of weights; the sums are float32, two vectors per vector of values. Interleaving takes two instructions per vector
and pair of columns, for all rows that share them. Results are rounded to bfloat16 once.

Tables are those of `planar.row_sums`, except that segments have an even number of unshared columns, weights are
bfloat16 pairs (for each pair of columns, each row's two), and each row has a single segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import Emitter
from ticketry_engine.kernels.planar.row_sums import FLAG_BITS, OfSegments
from ticketry_engine.kernels.planar.tiles import Shape
from ticketry_engine.kernels.training.columns import column

SEGMENTS, COLUMNS, WEIGHTS, CHUNKS, CHUNK_COUNT, SHAPES = range(6)
"""Arguments: tables, the number of chunks; then for each shape its places and their number."""

PAIR = 2
"""Columns multiplied together."""


@dataclass(frozen=True)
class PairSums(OfSegments):
    """Kernel of weighted sums in bfloat16.

    Args:
        rows: rows that share columns.
        shapes: shapes of the tiles; each gets its own code.
        residual: whether another value is added to y.
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
            _PairSumsBody(e, self, number).emit()


class _PairSumsBody:
    """Writer of the loops of one shape."""

    def __init__(self, e: Emitter, spec: PairSums, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.arena = e.arena()
        self.segments, self.columns, self.weights = e.table(SEGMENTS), e.table(COLUMNS), e.table(WEIGHTS)
        self.chunks, self.chunk_count = e.table(CHUNKS), e.arg(CHUNK_COUNT)
        self.places, self.count = e.table(SHAPES + 2 * number), e.arg(SHAPES + 2 * number + 1)

    def emit(self) -> None:
        """Loop over this thread's units of work: one chunk of rows over one tile each."""
        e, b, spec = self.e, self.e.b, self.spec
        low, high = e.share(b.mul(self.count, self.chunk_count))
        with e.loop(low, high) as unit:
            chunk = e.at(self.chunks, b.mul(b.urem(unit.index, self.chunk_count), e.i64(24)))
            place = e.at(self.places, b.mul(b.udiv(unit.index, self.chunk_count), e.i64(12)))
            x, y, residual = (e.at(self.arena, e.load_i32(place, 4 * word)) for word in range(3))
            start, count, weight = (e.load_i64(chunk, 8 * word) for word in range(3))
            stop = b.add(start, b.mul(count, e.i64(spec.segment_bytes)))
            with e.loop(start, stop, spec.segment_bytes, [weight]) as loop:
                segment, begin = e.at(self.segments, loop.index), loop.carried[0]
                end = b.add(begin, b.ashr(e.load_i32(segment), e.i64(FLAG_BITS)))
                loop.next = [end]
                sums = self._sums(e.at(x, e.load_i32(segment, 4)), begin, end)
                self._end(segment, y, residual, sums)

    def _sums(self, x: Any, begin: Any, end: Any) -> list[Any]:
        """Return two sums per row and vector of values, with images in the order of `bfloat.interleave_pairs`."""
        e, b, spec = self.e, self.e.b, self.spec
        vectors = len(self.shape.x)
        with e.loop(begin, end, PAIR, [e.splat(0.0)] * (2 * spec.rows * vectors)) as loop:
            at = e.at(self.weights, b.mul(loop.index, e.i64(bfloat.HALF * spec.rows)))
            weights = [bfloat.splat_pair(e, at, PAIR * bfloat.HALF * row) for row in range(spec.rows)]
            inputs = [
                e.at(x, column(e, self.columns, loop.index, further, spec.unit, wide=spec.wide))
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

    def _end(self, segment: Any, y: Any, residual: Any, sums: Sequence[Any]) -> None:
        vectors = len(self.shape.y)
        write_rows(
            self.e, self.spec, self.shape, (segment, y, residual), lambda row, t: sums[2 * (row * vectors + t) :][:2]
        )


def write_rows(
    e: Emitter, spec: OfSegments, shape: Shape, at: tuple[Any, Any, Any], sums: Callable[[int, int], Sequence[Any]]
) -> None:
    """Write the end of a segment: sums plus biases and residual, rounded to bfloat16.

    Args:
        at: pointers to the segment, to a tile of y, and to a tile of the residual.
        sums: function that returns both sums of a row and a vector.
    """
    b, (segment, y, residual) = e.b, at
    for row in range(spec.rows):
        bias = e.splat(e.load_f32(segment, spec.segment_bytes - 4 * (spec.rows - row)))
        out = e.at(y, e.load_i32(segment, 4 * (spec.head + row)))
        if spec.residual:
            beside = e.at(residual, e.load_i32(segment, 4 * (spec.head + spec.rows + row)))
        for t, place in enumerate(shape.y):
            values = [b.fadd(value, bias) for value in sums(row, t)]
            if spec.residual:
                there = bfloat.load_pairs(e, beside, shape.residual[t])
                values = [b.fadd(*pair) for pair in zip(values, bfloat.split_to_float32(e, there), strict=True)]
            bfloat.store_rounded(e, values, out, place)
