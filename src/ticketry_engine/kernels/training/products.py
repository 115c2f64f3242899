"""Kernel of the weight gradient, computed only where weights are retained.

    dW[row, column] = sum over positions and images t of dy[row][t] * x[column + t]        (sampled dense-dense product)

For a tile of positions, a row's output gradients stay in registers while `TOGETHER` columns at a time read the tile's
inputs. Their product vectors are added lane by lane into one vector (`fold_lanes`), some lanes per column, and added to
the sums of earlier tiles; the lanes of a column are added once, at the end. The order of each sum is thus fixed,
regardless of the number of threads.

Rows with equal columns are multiplied several at a time: each load of a gradient or an input serves several products.

Tables are those of `planar.row_sums` for the forward pass, with columns padded to whole sets of `TOGETHER` in each
segment (not shared between segments of several rows) and vectors of sums instead of weights: for each set of columns
one per row. The sums of a chunk stay in the L2 cache while it processes all tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar.geometry import FLOAT, Shape, shuffle
from ticketry_engine.kernels.training.pair_sums import column, segments_by_chunk

SEGMENTS, COLUMNS, SUMS, CHUNKS, CHUNK_COUNT, SHAPES = range(6)
"""Arguments: tables, byte of the sums in the arena, the number of chunks; then each shape's places and their number."""

TOGETHER = 4
"""Columns whose sums are folded into one vector."""

SIDE_BY_SIDE = 8
"""Columns of a row summed concurrently, with 32 registers: two multipliers with a latency of four cycles."""


@dataclass(frozen=True)
class Products(Written):
    """Kernel of the weight gradient.

    Args:
        shapes: shapes of the tiles of x and of the gradient of y.
        unit: unit of the column offsets, in bytes.
        wide: whether columns take 32 bits (signed) instead of 16.
        rows: rows that share columns.
        half: whether values are bfloat16, multiplied in pairs of neighbouring images.
    """

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    unit: int
    wide: bool
    rows: int = 1
    half: bool = False

    @property
    def head(self) -> int:
        """Words of a segment before those of its rows, as in `Sums`."""
        return 2 if self.rows == 1 else 3

    @property
    def segment_bytes(self) -> int:
        return 4 * (self.head + 2 * self.rows)

    def write(self, e: Emitter) -> None:
        for number in range(len(self.shapes)):
            _ProductsBody(e, self, number).emit()


class _ProductsBody:
    """Writer of the loops of one shape."""

    def __init__(self, e: Emitter, spec: Products, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.columns, self.sums, self.first_argument = e.table(COLUMNS), e.arena(e.arg(SUMS)), SHAPES + 2 * number

    def emit(self) -> None:
        e, head = self.e, self.spec.head
        with segments_by_chunk(e, self.spec.segment_bytes, self.first_argument) as (segment, (x, y), begin, end):
            inputs = e.at(x, e.load_i32(segment, 4))
            rows = [e.at(y, e.load_i32(segment, 4 * (head + row))) for row in range(self.spec.rows)]
            if self.spec.rows == 1:
                self._segment([self._load(rows[0], at) for at in self.shape.y], inputs, begin, end)
            else:
                self._several(rows, inputs, begin, end)

    def _several(self, rows: Sequence[Any], x: Any, begin: Any, end: Any) -> None:
        """Compute the products of rows that share their columns."""
        e, b, width = self.e, self.e.b, FLOAT * self.e.target.lanes
        with e.loop(begin, end, TOGETHER) as turn:
            place = e.at(self.sums, b.mul(turn.index, e.i64(len(rows) * width // TOGETHER)))
            inputs = [e.at(x, self._column(turn.index, further)) for further in range(TOGETHER)]
            parts = [[e.splat(0.0)] * TOGETHER for _ in rows]
            for at, there in zip(self.shape.x, self.shape.y, strict=True):
                gradients = [self._load(row, there) for row in rows]
                for number, pointer in enumerate(inputs):
                    value = self._load(pointer, at)
                    for gradient, part in zip(gradients, parts, strict=True):
                        part[number] = self._multiply(gradient, value, part[number])
            for number, part in enumerate(parts):
                here = e.at(place, number * width)
                e.store(b.fadd(e.load(here), fold_lanes(e, part)), here)

    def _segment(self, gradients: list[Any], x: Any, begin: Any, end: Any) -> None:
        e, b = self.e, self.e.b
        if e.target.registers < 32:
            self._columns(gradients, x, begin, end, TOGETHER)
            return
        several = b.and_(b.sub(end, begin), e.i64(-SIDE_BY_SIDE))
        middle = b.add(begin, several)
        self._columns(gradients, x, begin, middle, SIDE_BY_SIDE)
        self._columns(gradients, x, middle, end, TOGETHER)

    def _columns(self, gradients: list[Any], x: Any, begin: Any, end: Any, together: int) -> None:
        """Compute `together` columns of a row at a time; the result does not depend on that number."""
        e, b, width = self.e, self.e.b, FLOAT * self.e.target.lanes
        with e.loop(begin, end, together) as turn:
            place = e.at(self.sums, b.mul(turn.index, e.i64(width // TOGETHER)))
            inputs = [e.at(x, self._column(turn.index, further)) for further in range(together)]
            parts: list[Any] = [None] * together
            for gradient, at in zip(gradients, self.shape.x, strict=True):
                for number, pointer in enumerate(inputs):
                    parts[number] = self._multiply(gradient, self._load(pointer, at), parts[number])
            for number in range(together // TOGETHER):
                here = e.at(place, number * width)
                some = parts[number * TOGETHER : (number + 1) * TOGETHER]
                e.store(b.fadd(e.load(here), fold_lanes(e, some)), here)

    def _load(self, pointer: Any, byte: int) -> Any:
        return bfloat.load_pairs(self.e, pointer, byte) if self.spec.half else self.e.load(pointer, byte)

    def _multiply(self, gradient: Any, value: Any, part: Any) -> Any:
        """Return the product added to `part`, which may be None."""
        e = self.e
        if self.spec.half:
            return bfloat.multiply_pairs(e, gradient, value, e.splat(0.0) if part is None else part)
        return e.b.fmul(gradient, value) if part is None else e.fma(gradient, value, part)

    def _column(self, index: Any, further: int) -> Any:
        return column(self.e, self.columns, index, further, self.spec.unit, wide=self.spec.wide)


@dataclass(frozen=True)
class Zero(Written):
    """Kernel that zeroes vectors in the arena. Arguments: byte of the first, and their number."""

    def write(self, e: Emitter) -> None:
        place = e.arena(e.arg(0))
        with e.loop(*e.share(e.arg(1))) as vector:
            e.store(e.splat(0.0), place, e.b.mul(vector.index, e.i64(FLOAT * e.target.lanes)))


@dataclass(frozen=True)
class Totals(Written):
    """Kernel that adds the lanes of each column and writes the totals to an external tensor, a vector per iteration.

    Arguments: byte of the sums; number of iterations; number of the external tensor; bytes between two threads' sums.

    Args:
        several: number of threads with their own sums, which are added first.
    """

    several: int = 1

    def write(self, e: Emitter) -> None:
        b, width = e.b, FLOAT * e.target.lanes
        several = e.target.lanes // TOGETHER
        place, out = e.arena(e.arg(0)), e.external(e.arg(2))
        with e.loop(*e.share(e.arg(1))) as turn:
            here = e.at(place, b.mul(turn.index, e.i64(width * several)))
            sums = [e.load(here, width * number) for number in range(several)]
            for thread in range(1, self.several):
                more = e.at(here, b.mul(e.i64(thread), e.arg(3)))
                sums = [b.fadd(one, e.load(more, width * number)) for number, one in enumerate(sums)]
            e.store(
                fold_lanes(e, sums),
                out,
                b.mul(turn.index, e.i64(width)),
            )


def fold_lanes(e: Emitter, vectors: Sequence[Any]) -> Any:
    """Add neighbouring lanes of several vectors (a power of two) into one vector, in order."""
    while len(vectors) > 1:
        vectors = [_pairs(e, *pair) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _pairs(e: Emitter, one: Any, other: Any) -> Any:
    odd, even = (shuffle(e, one, other, range(start, 2 * e.target.lanes, 2)) for start in (1, 0))
    return e.b.fadd(even, odd)
