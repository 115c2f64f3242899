"""The kernel: products of output gradients with shifted planes, only where weights are kept.

The gradient of one weight is the sum, over all positions and images, of the gradient of its row's output with the
input that its column reads there (a sampled dense-dense product). For a tile of positions the output gradients of a
row stay in registers, and `TOGETHER` columns of the row at a time read the inputs of the tile:
``sum over t of dy[row][t] * x[column][t]``, each a vector. Those are folded into one vector, some lanes a column, and
added to what earlier tiles gave; the lanes of a column are added up at the end. So every sum has one order, whatever
the machine does at the same time.

Rows that keep the same columns are multiplied several at a time: for each position of the tile, the output gradients
of the rows and the inputs of the columns are loaded once, for the products of each with each.

The tables are those of `planes.row_sums` for the layer's forward pass, with columns filled up to whole sets of
`TOGETHER` in each segment, those of several rows not shared between segments, and vectors of sums in the place of
weights: for each set of columns one of each row. Chunks, of which the sums stay in the second cache, go over all tiles
one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar import lanes
from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.planar.row_sums import FLAG_BITS
from ticketry_engine.kernels.planar.tiles import Shape
from ticketry_engine.kernels.training.columns import column

SEGMENTS, COLUMNS, SUMS, CHUNKS, CHUNK_COUNT, SHAPES = range(6)
"""Arguments: tables, where the sums lie in the arena, the number of chunks; then each shape's places, their number."""

TOGETHER = 4
"""Columns whose sums are folded into one vector."""

SIDE_BY_SIDE = 8
"""Columns of a row whose sums are under way at a time, where there are registers: two multipliers that take four cycles
each are busy with eight."""


@dataclass(frozen=True)
class Products(Written):
    """Args:
    shapes: of the tiles: x, and the gradient of y.
    unit: bytes that columns are counted in.
    wide: whether columns take 32 bits (signed) instead of 16.
    rows: that share columns.
    half: whether values are bfloat16: those of two neighbouring images are multiplied, and both products added.
    """

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    unit: int
    wide: bool
    rows: int = 1
    half: bool = False

    @property
    def head(self) -> int:
        """Words of a segment before those of its rows, as `Sums` has them."""
        return 2 if self.rows == 1 else 3

    @property
    def segment_bytes(self) -> int:
        return 4 * (self.head + 2 * self.rows)

    def write(self, e: Emitter) -> None:
        for number in range(len(self.shapes)):
            _Body(e, self, number).emit()


class _Body:
    """The loops of one shape."""

    def __init__(self, e: Emitter, spec: Products, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.segments, self.columns, self.chunks = e.table(SEGMENTS), e.table(COLUMNS), e.table(CHUNKS)
        self.arena, self.sums = e.arena(), e.arena(e.arg(SUMS))
        self.places, self.count = e.table(SHAPES + 2 * number), e.arg(SHAPES + 2 * number + 1)

    def emit(self) -> None:
        e, b = self.e, self.e.b
        low, high = e.share(e.arg(CHUNK_COUNT))
        with e.loop(low, high) as number:
            chunk = e.at(self.chunks, b.mul(number.index, e.i64(24)))
            start, count, weight = (e.load_i64(chunk, 8 * word) for word in range(3))
            stop = b.add(start, b.mul(count, e.i64(self.spec.segment_bytes)))
            with e.loop(0, self.count) as tile:
                place = e.at(self.places, b.mul(tile.index, e.i64(12)))
                x, y = (e.at(self.arena, e.load_i32(place, 4 * word)) for word in range(2))
                with e.loop(start, stop, self.spec.segment_bytes, [weight]) as loop:
                    segment, begin = e.at(self.segments, loop.index), loop.carried[0]
                    end = b.add(begin, b.ashr(e.load_i32(segment), e.i64(FLAG_BITS)))
                    loop.next = [end]
                    head, inputs = self.spec.head, e.at(x, e.load_i32(segment, 4))
                    rows = [e.at(y, e.load_i32(segment, 4 * (head + row))) for row in range(self.spec.rows)]
                    if self.spec.rows == 1:
                        self._segment([self._load(rows[0], at) for at in self.shape.y], inputs, begin, end)
                    else:
                        self._several(rows, inputs, begin, end)

    def _several(self, rows: Sequence[Any], x: Any, begin: Any, end: Any) -> None:
        """Products of rows that share their columns."""
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
                e.store(b.fadd(e.load(here), folded(e, part)), here)

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
        """Columns of a row, so many side by side: each set of `TOGETHER` gives the same however many that are."""
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
                e.store(b.fadd(e.load(here), folded(e, some)), here)

    def _load(self, pointer: Any, byte: int) -> Any:
        return bfloat.load_pairs(self.e, pointer, byte) if self.spec.half else self.e.load(pointer, byte)

    def _multiply(self, gradient: Any, value: Any, part: Any) -> Any:
        """A product added to those before, of which there may be none."""
        e = self.e
        if self.spec.half:
            return bfloat.multiply_pairs(e, gradient, value, e.splat(0.0) if part is None else part)
        return e.b.fmul(gradient, value) if part is None else e.fma(gradient, value, part)

    def _column(self, index: Any, further: int) -> Any:
        return column(self.e, self.columns, index, further, self.spec.unit, wide=self.spec.wide)


@dataclass(frozen=True)
class Zero(Written):
    """Makes vectors in the arena zero. Arguments: where they begin, and how many."""

    def write(self, e: Emitter) -> None:
        place = e.arena(e.arg(0))
        with e.loop(*e.share(e.arg(1))) as vector:
            e.store(e.splat(0.0), place, e.b.mul(vector.index, e.i64(FLOAT * e.target.lanes)))


@dataclass(frozen=True)
class Totals(Written):
    """Adds up the lanes of each column in the arena: as many totals as lanes a turn, one after the other in a tensor.

    Arguments: where the sums begin; how many turns; the number of the external tensor; bytes from one thread's sums to
    those of the next.

    Args:
        several: threads that have sums of their own, which are added first.
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
                folded(e, sums),
                out,
                b.mul(turn.index, e.i64(width)),
            )


def folded(e: Emitter, vectors: Sequence[Any]) -> Any:
    """One vector with sums of neighbouring lanes: first those of the first of so many vectors (a power of two)."""
    while len(vectors) > 1:
        vectors = [_pairs(e, *pair) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _pairs(e: Emitter, one: Any, other: Any) -> Any:
    odd, even = (lanes.shuffle(e, one, other, range(start, 2 * e.target.lanes, 2)) for start in (1, 0))
    return e.b.fadd(even, odd)
