"""The kernel: weighted sums of shifted planes.

For a set of rows that keep the same columns, and a tile of positions, ``sum[row][t] += weight[row] * x[column][t]``
stays in registers over all columns. A column is the address of a plane plus a shift, so a table of columns is all that
tells convolutions, groups, concatenated inputs and linear layers from one another.

Tables (all little words of 4 bytes):
    segments: columns of the segment, flags (`FIRST`, `LAST`), then for each row where its plane of y begins, where that
        of the residual does, its bias
    entries, one for each column of each segment in turn: where the column begins, then each row's weight
    chunks (words of 8 bytes): the first byte of its segments, their number, the first byte of its entries
    places of tiles, masks of tiles: see `tiles`

A row may be summed in several segments, so that inputs of one segment stay in the nearest cache: sums go on from what
is in y, unless the segment is the row's `FIRST`; activation and masks come with its `LAST`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ticketry.engine.cpu.activations import Activation, activate
from ticketry.engine.cpu.emit import I1, I8, I16, Emitter
from ticketry.engine.cpu.planes.tiles import Shape
from ticketry.engine.cpu.target import Target

FIRST, LAST = 1, 2
"""Flags of a segment: it begins its rows' sums; it ends them."""

SEGMENTS, ENTRIES, CHUNKS, CHUNK_COUNT, BLOCK, SHAPES = range(6)
"""Arguments: tables, the number of chunks, tiles a block; then for each shape its places, their number, its masks."""


@dataclass(frozen=True)
class Sums:
    """Args:
    rows: rows that share columns.
    shapes: of the tiles, each with its own code.
    masked: for each shape whether its tiles have masks.
    residual: whether y begins with another value.
    blocked: whether rows have several segments.
    tiles_inside: walk through a block's tiles for each segment, instead of through all segments for each tile.
    sets: sums of each row and vector held side by side, where tiles alone are too few to keep the adders busy.
    """

    rows: int
    shapes: tuple[Shape, ...]
    masked: tuple[bool, ...]
    residual: bool
    act: Activation
    blocked: bool
    tiles_inside: bool
    sets: int = 1

    @property
    def entry_bytes(self) -> int:
        return 4 * (1 + self.rows)

    @property
    def segment_bytes(self) -> int:
        return 4 * (2 + (3 if self.residual else 2) * self.rows)

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        for number in range(len(self.shapes)):
            _Body(e, self, number).emit()
        return e.text()


class _Body:
    """The loops of one shape."""

    def __init__(self, e: Emitter, spec: Sums, number: int) -> None:
        self.e, self.spec = e, spec
        self.shape, self.masked = spec.shapes[number], spec.masked[number]
        self.vectors = len(self.shape.x)
        self.arena = e.arena()
        self.segments, self.entries = e.table(SEGMENTS), e.table(ENTRIES)
        self.chunks, self.chunk_count, self.block = e.table(CHUNKS), e.arg(CHUNK_COUNT), e.arg(BLOCK)
        at = SHAPES + 3 * number
        self.places, self.count, self.masks = e.table(at), e.arg(at + 1), e.table(at + 2)

    def emit(self) -> None:
        e, b = self.e, self.e.b
        blocks = b.udiv(b.add(self.count, b.sub(self.block, e.i64(1))), self.block)
        low, high = e.share(b.mul(blocks, self.chunk_count))
        with e.loop(low, high) as unit:
            chunk = e.at(self.chunks, b.mul(b.urem(unit.index, self.chunk_count), e.i64(24)))
            first = b.mul(b.udiv(unit.index, self.chunk_count), self.block)
            last = b.add(first, self.block)
            last = b.select(b.icmp_signed("<", last, self.count), last, self.count)
            if self.spec.tiles_inside:
                self._segments(chunk, first, last)
            else:
                with e.loop(first, last) as tile:
                    self._segments(chunk, tile.index, None)

    def _segments(self, chunk: Any, first: Any, last: Any) -> None:
        """All segments of a chunk, each over one tile, or over the tiles from first to last."""
        e, b, spec = self.e, self.e.b, self.spec
        start, count, entry = (e.load_i64(chunk, 8 * word) for word in range(3))
        stop = b.add(start, b.mul(count, e.i64(spec.segment_bytes)))
        place = None if spec.tiles_inside else self._place(first)
        with e.loop(start, stop, spec.segment_bytes, [entry]) as loop:
            segment = e.at(self.segments, loop.index)
            begin = loop.carried[0]
            end = b.add(begin, b.mul(e.load_i32(segment), e.i64(spec.entry_bytes)))
            if place is not None:
                self._sum(segment, place, begin, end)
            else:
                with e.loop(first, last) as tile:
                    self._sum(segment, self._place(tile.index), begin, end)
            loop.next = [end]

    def _place(self, tile: Any) -> tuple[Any, Any, Any, Any]:
        """Pointers to the tile in plane 0 of x, y and the residual, and to its masks."""
        e, b = self.e, self.e.b
        place = e.at(self.places, b.mul(tile, e.i64(12)))
        x, y, residual = (e.at(self.arena, e.load_i32(place, 4 * word)) for word in range(3))
        return x, y, residual, e.at(self.masks, b.mul(tile, e.i64(self.vectors * self._mask_bytes)))

    @property
    def _mask_bytes(self) -> int:
        return mask_bytes(self.e.target)

    def _sum(self, segment: Any, place: tuple[Any, Any, Any, Any], begin: Any, end: Any) -> None:
        e = self.e
        x, y, residual, masks = place
        outputs = [e.at(y, e.load_i32(segment, 8 + 4 * row)) for row in range(self.spec.rows)]
        sums = self._begin(segment, outputs, residual)
        sums = self._columns(x, begin, end, sums)
        self._end(segment, outputs, masks, sums)

    def _begin(self, segment: Any, outputs: list[Any], residual: Any) -> list[Any]:
        """Row by row the vectors that sums begin with."""
        if not self.spec.blocked:
            return self._fresh(segment, residual)
        e, b = self.e, self.e.b
        with b.if_else(self._flag(segment, FIRST)) as (then, otherwise):
            with then:
                fresh, fresh_end = self._fresh(segment, residual), b.block
            with otherwise:
                going = [e.load(output, at) for output in outputs for at in self.shape.y]
                going_end = b.block
        sums = []
        for one, other in zip(fresh, going, strict=True):
            phi = b.phi(e.vector)
            phi.add_incoming(one, fresh_end)
            phi.add_incoming(other, going_end)
            sums.append(phi)
        return sums

    def _fresh(self, segment: Any, residual: Any) -> list[Any]:
        e, b, rows = self.e, self.e.b, self.spec.rows
        sums = []
        for row in range(rows):
            bias = e.splat(e.load_f32(segment, self.spec.segment_bytes - 4 * (rows - row)))
            if not self.spec.residual:
                sums += [bias] * self.vectors
                continue
            plane = e.at(residual, e.load_i32(segment, 8 + 4 * (rows + row)))
            sums += [b.fadd(e.load(plane, at), bias) for at in self.shape.residual]
        return sums

    def _flag(self, segment: Any, flag: int) -> Any:
        b = self.e.b
        flags = b.and_(self.e.load_i32(segment, 4), self.e.i64(flag))
        return b.icmp_signed("!=", flags, self.e.i64(0))

    def _columns(self, x: Any, begin: Any, end: Any, sums: list[Any]) -> list[Any]:
        e, b, spec = self.e, self.e.b, self.spec
        if spec.sets > 1:
            step = spec.sets * spec.entry_bytes
            middle = b.add(begin, b.mul(b.udiv(b.sub(end, begin), e.i64(step)), e.i64(step)))
            zeros = [e.splat(0.0)] * len(sums)
            with e.loop(begin, middle, step, sums + zeros * (spec.sets - 1)) as loop:
                for number in range(spec.sets):
                    mine = loop.carried[number * len(sums) : (number + 1) * len(sums)]
                    loop.next += self._column(x, b.add(loop.index, e.i64(number * spec.entry_bytes)), mine)
            parts = [loop.results[number * len(sums) : (number + 1) * len(sums)] for number in range(spec.sets)]
            while len(parts) > 1:
                parts = [[b.fadd(*pair) for pair in zip(*parts[:2], strict=True)], *parts[2:]]
            begin, sums = middle, parts[0]
        with e.loop(begin, end, spec.entry_bytes, sums) as loop:
            loop.next = self._column(x, loop.index, loop.carried)
        return loop.results

    def _column(self, x: Any, index: Any, sums: list[Any]) -> list[Any]:
        e = self.e
        entry = e.at(self.entries, index)
        column = e.at(x, e.load_i32(entry))
        weights = [e.splat(e.load_f32(entry, 4 + 4 * row)) for row in range(self.spec.rows)]
        inputs = [e.load(column, at) for at in self.shape.x]
        return [
            e.fma(weight, value, sums[row * self.vectors + t])
            for row, weight in enumerate(weights)
            for t, value in enumerate(inputs)
        ]

    def _end(self, segment: Any, outputs: list[Any], masks: Any, sums: list[Any]) -> None:
        if not self.spec.blocked:
            self._finish(outputs, masks, sums)
            return
        b = self.e.b
        with b.if_else(self._flag(segment, LAST)) as (then, otherwise):
            with then:
                self._finish(outputs, masks, sums)
            with otherwise:
                self._store(outputs, sums)

    def _finish(self, outputs: list[Any], masks: Any, sums: list[Any]) -> None:
        e = self.e
        values = [activate(e, self.spec.act, value) for value in sums]
        if self.masked:
            there = [self._lanes(masks, t) for t in range(self.vectors)]
            values = [e.select(there[i % self.vectors], value, e.splat(0.0)) for i, value in enumerate(values)]
        self._store(outputs, values)

    def _lanes(self, masks: Any, vector: int) -> Any:
        """The lanes of a vector of the tile that hold pixels."""
        e, lanes = self.e, self.e.target.lanes
        kind = I16 if lanes == 16 else I8
        bits = e.b.load(e.at(masks, vector * self._mask_bytes), typ=kind, align=1)
        if lanes < 8:
            bits = e.b.trunc(bits, ir.IntType(lanes))
        return e.b.bitcast(bits, ir.VectorType(I1, lanes))

    def _store(self, outputs: list[Any], values: list[Any]) -> None:
        for row, output in enumerate(outputs):
            for t, at in enumerate(self.shape.y):
                self.e.store(values[row * self.vectors + t], output, at)


def mask_bytes(target: Target) -> int:
    """Bytes of the mask of one vector."""
    return 2 if target.lanes == 16 else 1
