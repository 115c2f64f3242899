"""Kernel of sparse convolutions and linear layers: weighted sums of shifted planes.

    sum[row][t] += weight[row] * x[column + t]        t: vectors of a tile, all sums in registers

A row is an output channel of the layer; a column is an input channel at one tap of the window. The kernel processes a
set of rows with equal columns and a tile of positions at a time. The sums stay in registers over all columns: an input
is loaded once for all rows, and a weight is broadcast once for all vectors of the tile. A column is the address of a
plane plus a shift, so that convolutions, groups, concatenated inputs and linear layers differ only in their columns.

Tables:
    segments (int32): the number of columns, shifted left by `FLAG_BITS`, and flags; the least byte at which a column
        begins (base); if several rows share columns, the index of the first column; then for each row the bytes of its
        plane of y and of its residual plane, and its bias
    columns: offset of each column from the base, in units of `unit` bytes; several segments may share their columns
    weights (float32): the weight of each row, for each column of each segment
    chunks (int64): parts of the rows that threads share: the byte of the first segment, the number of segments, the
        index of the first weight
    places and masks of tiles: see `geometry.Tiles`

A row may have several segments, one per block of inputs, so that a block's inputs stay in the L1 cache. The `FIRST`
segment of a row starts its sums, later segments add to y, and the `LAST` one applies activation and masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ticketry_engine.kernels.activations import Activation, activate_all
from ticketry_engine.kernels.emitter import I16, I32, I64, EmittedKernel, Emitter
from ticketry_engine.kernels.planar import geometry as lanes
from ticketry_engine.kernels.planar.geometry import LINE, Shape

FIRST, LAST = 1, 2
"""Flags of a segment: FIRST if it starts the sums of its rows, LAST if it completes them."""

FLAG_BITS = 2
"""Number of low bits of a segment's first word that hold flags."""

SEGMENTS, COLUMNS, WEIGHTS, CHUNKS, CHUNK_COUNT, SHAPES = range(6)
"""Positions of the arguments: four tables, the number of chunks, then (places, number of places, masks) per shape."""

AHEAD = 3
"""How many columns ahead the offsets of a single row are loaded, so that reading x never waits for an address."""

FETCHED_AHEAD = 4096
"""How many bytes ahead the table of weights is prefetched, for tiles with few positions.

With one image, each weight is read once, from the L3 cache. The distance was chosen by measurement on VGG-16 and
ResNet-18; half and twice the distance are about as fast. Nothing is prefetched with AVX2, where it gains no time."""


_UNDER_WAY = 8
"""Number of independent sums that keep the adders busy: two adders with a latency of four cycles each."""


def count_partial_sums(rows: int, vectors: int) -> int:
    """Return into how many partial sums each sum of a small tile is divided, so that additions need not wait."""
    return -(-_UNDER_WAY // (rows * vectors))


class SegmentKernel(EmittedKernel):
    """Base class of kernels that read a table of segments, which are parts of weight rows.

    The class defines the size of a segment's entry in the table.
    """

    rows: int
    residual: bool

    @property
    def header_words(self) -> int:
        """Number of 4-byte words at the start of a segment's entry in the table, before the words of its rows."""
        return 2 if self.rows == 1 else 3

    @property
    def segment_bytes(self) -> int:
        return 4 * (self.header_words + (3 if self.residual else 2) * self.rows)


@dataclass(frozen=True)
class RowSums(SegmentKernel):
    """Kernel that computes output channels of a layer (rows) as weighted sums of input planes.

    Args:
        rows: number of rows that are summed together and share their columns.
        shapes: shapes of the tiles; the kernel contains separate code for each shape.
        masked: for each shape, whether its tiles have masks.
        residual: whether another value is added to the sums.
        act: activation of the result.
        blocked: whether a row may be divided into several segments.
        unit: unit of the column offsets, in bytes.
        wide: whether column offsets take 32 bits (signed) instead of 16.
        sets: number of partial sums per row and vector; 0: each tile shape has its own number (`count_partial_sums`).
    """

    title: ClassVar[str] = "sums"
    finished: ClassVar[bool] = True

    rows: int
    shapes: tuple[Shape, ...]
    masked: tuple[bool, ...]
    residual: bool
    act: Activation
    blocked: bool = False
    unit: int = 1
    wide: bool = True
    sets: int = 0

    def write(self, e: Emitter) -> None:
        for number in range(len(self.shapes)):
            _SumsBody(e, self, number).write_body()


@dataclass
class _Tile:
    """Pointers to a tile in x, y and the residual, to which offsets of planes are added, and to the tile's masks."""

    x: Any
    y: Any
    residual: Any
    masks: Any


class _SumsBody:
    """Writer of the code of a `RowSums` kernel for the tiles of one shape."""

    def __init__(self, e: Emitter, spec: RowSums, number: int) -> None:
        self.e, self.spec, self.number = e, spec, number
        self.shape, self.masked = spec.shapes[number], spec.masked[number]
        self.vectors = len(self.shape.x)
        self.sets = spec.sets or count_partial_sums(spec.rows, self.vectors)
        self.arena = e.arena_pointer()
        self.segments, self.columns, self.weights = e.table(SEGMENTS), e.table(COLUMNS), e.table(WEIGHTS)
        self.chunks, self.chunk_count = e.table(CHUNKS), e.arg(CHUNK_COUNT)
        at = SHAPES + 3 * number
        self.places, self.count, self.masks = e.table(at), e.arg(at + 1), e.table(at + 2)

    def write_body(self) -> None:
        """Emit the loop over this thread's share of all pairs of a tile of pixels and a chunk of weight rows."""
        e, b = self.e, self.e.b
        low, high = e.thread_share(b.mul(self.count, self.chunk_count))
        with e.loop(low, high) as unit:
            chunk = e.offset_pointer(self.chunks, b.mul(b.urem(unit.index, self.chunk_count), e.i64(24)))
            self._write_chunk(chunk, self._tile_pointers(b.udiv(unit.index, self.chunk_count)))

    def _write_chunk(self, chunk: Any, tile: _Tile) -> None:
        """Emit the loop over the segments (parts of weight rows) of a chunk, for one tile of positions."""
        e, b, spec = self.e, self.e.b, self.spec
        start, count, weight = (e.load_i64(chunk, 8 * word) for word in range(3))
        stop = b.add(start, b.mul(count, e.i64(spec.segment_bytes)))
        with e.loop(start, stop, spec.segment_bytes, [weight]) as loop:
            segment = e.offset_pointer(self.segments, loop.index)
            head = e.load_i32(segment)
            begin = loop.carried[0]
            end = b.add(begin, b.ashr(head, e.i64(FLAG_BITS)))
            loop.next = [end]
            self._write_segment(segment, head, tile, begin, end)

    def _tile_pointers(self, tile: Any) -> _Tile:
        e, b = self.e, self.e.b
        place = e.offset_pointer(self.places, b.mul(tile, e.i64(12)))
        x, y, residual = (e.offset_pointer(self.arena, e.load_i32(place, 4 * word)) for word in range(3))
        masks = e.offset_pointer(self.masks, b.mul(tile, e.i64(self.vectors * self._mask_bytes)))
        return _Tile(x, y, residual, masks)

    def _write_segment(self, segment: Any, head: Any, tile: _Tile, begin: Any, end: Any) -> None:
        e, b, spec = self.e, self.e.b, self.spec
        outputs = [
            e.offset_pointer(tile.y, e.load_i32(segment, 4 * (spec.header_words + row))) for row in range(spec.rows)
        ]
        x, columns = e.offset_pointer(tile.x, e.load_i32(segment, 4)), self.columns
        if spec.rows > 1:
            columns = e.offset_pointer(columns, b.mul(b.sub(e.load_i32(segment, 8), begin), e.i64(self._column_bytes)))
        sums = self._compute_sums(x, columns, begin, end)
        bases = self._initial_sums(segment, head, outputs, tile)
        sums = [b.fadd(value, base) for value, base in zip(sums, bases, strict=True)]
        self._write_segment_end(head, outputs, tile, sums)

    # Sums

    @property
    def _mask_bytes(self) -> int:
        return lanes.mask_type(self.e.target).itemsize

    @property
    def _column_bytes(self) -> int:
        return 4 if self.spec.wide else 2

    def _compute_sums(self, x: Any, columns: Any, begin: Any, end: Any) -> list[Any]:
        e, spec = self.e, self.spec
        count = spec.rows * self.vectors
        sums = [e.splat(0.0)] * count
        if self.sets > 1:
            begin, sums = self._accumulate_partial_sums(x, columns, begin, end)
        ahead = [self._load_column(columns, begin, number) for number in range(AHEAD if spec.rows == 1 else 0)]
        with e.loop(begin, end, 1, [*sums, *ahead]) as loop:
            queue = [*loop.carried[count:], self._load_column(columns, loop.index, len(ahead))]
            weights = self._load_weights(loop.index, 1)[0]
            loop.next = self._add_column(x, queue[0], weights, loop.carried[:count]) + queue[1:]
        return loop.results[:count]

    def _accumulate_partial_sums(self, x: Any, columns: Any, begin: Any, end: Any) -> tuple[Any, list[Any]]:
        """Emit a loop over several columns at a time, with `sets` partial sums; return (next column, sums)."""
        e, b, spec = self.e, self.e.b, self.spec
        count, several = spec.rows * self.vectors, max(self.sets, 4)
        turns = b.udiv(b.sub(end, begin), e.i64(several))
        middle = b.add(begin, b.mul(turns, e.i64(several)))
        sums = [e.splat(0.0)] * (count * self.sets)
        with e.loop(begin, middle, several, sums + self._load_columns(columns, begin, several)) as loop:
            sums, now = list(loop.carried[: count * self.sets]), loop.carried[count * self.sets :]
            following = self._load_columns(columns, b.add(loop.index, e.i64(several)), several)
            self._prefetch_table(self.weights, loop.index, 4 * spec.rows, several)
            self._prefetch_table(columns, loop.index, self._column_bytes, several)
            weights = self._load_weights(loop.index, several)
            for number in range(several):
                mine = slice(number % self.sets * count, (number % self.sets + 1) * count)
                sums[mine] = self._add_column(x, now[number], weights[number], sums[mine])
            loop.next = sums + following
        parts = [loop.results[number * count : (number + 1) * count] for number in range(self.sets)]
        while len(parts) > 1:
            parts = [[b.fadd(*pair) for pair in zip(*parts[:2], strict=True)], *parts[2:]][::-1]
        return middle, parts[0]

    def _prefetch_table(self, table: Any, index: Any, size: int, count: int) -> None:
        """Prefetch `count` entries (of `size` bytes) of `table` that are needed `FETCHED_AHEAD` weight bytes later."""
        if not self.e.target.has_masked_memory_access:
            return
        ahead = FETCHED_AHEAD * size // (4 * self.spec.rows)
        here = self.e.offset_pointer(table, self.e.b.mul(index, self.e.i64(size)))
        for byte in range(0, size * count, LINE):
            self.e.prefetch(here, ahead + byte)

    def _load_columns(self, columns: Any, index: Any, count: int) -> list[Any]:
        """Return the byte offsets of `count` columns from `index` on; each load of 8 bytes reads several offsets."""
        e, b, size = self.e, self.e.b, self._column_bytes
        found, bits = [], 8 * size
        for number in range(count):
            part = number * size % 8
            if part == 0:
                at = e.offset_pointer(columns, b.add(b.mul(index, e.i64(size)), e.i64(number * size)))
                word = e.hide_from_optimiser(b.load(at, typ=I64, align=size))  # the load must not be delayed
            value = b.ashr(b.shl(word, e.i64(64 - bits - 8 * part)), e.i64(64 - bits)) if self.spec.wide else word
            if not self.spec.wide:
                value = b.and_(b.lshr(word, e.i64(8 * part)), e.i64((1 << bits) - 1))
            found.append(b.mul(value, e.i64(self.spec.unit)))
        return found

    def _load_weights(self, index: Any, count: int) -> list[list[Any]]:
        """Return, for each of `count` columns from `index` on, the weight of each row as a vector of equal lanes."""
        e, b, rows = self.e, self.e.b, self.spec.rows
        at = e.offset_pointer(self.weights, b.mul(index, e.i64(4 * rows)))
        if rows > 1 or count == 1:
            return [
                [e.splat(e.load_f32(at, 4 * (number * rows + row))) for row in range(rows)] for number in range(count)
            ]
        found = []
        width = min(count, e.target.lanes)
        for start in range(0, count, width):
            # Hidden from the optimiser, which would load each weight separately.
            several = e.hide_from_optimiser(
                b.load(e.offset_pointer(at, 4 * start), typ=lanes.vector_type(width), align=4)
            )
            found += [[lanes.shuffle(e, several, several, [number] * e.target.lanes)] for number in range(width)]
        return found

    def _load_column(self, columns: Any, index: Any, further: int = 0) -> Any:
        """Return the byte offset of column ``index + further``, relative to the segment's base."""
        e, b = self.e, self.e.b
        size = self._column_bytes
        at = e.offset_pointer(columns, b.mul(b.add(index, e.i64(further)), e.i64(size)))
        kind, widen = (I32, b.sext) if self.spec.wide else (I16, b.zext)
        # An atomic load takes no more time here, and the optimiser cannot delay it until the column is read.
        value = b.load_atomic(at, "monotonic", size, typ=kind) if further else b.load(at, typ=kind, align=size)
        return b.mul(widen(value, I64), e.i64(self.spec.unit))

    def _add_column(self, x: Any, column: Any, weights: list[Any], sums: list[Any]) -> list[Any]:
        e = self.e
        inputs = [e.load(e.offset_pointer(x, column), vector) for vector in self.shape.x]
        return [
            e.fma(weight, value, sums[row * self.vectors + t])
            for row, weight in enumerate(weights)
            for t, value in enumerate(inputs)
        ]

    # Bases of the sums, and the end of a segment

    def _initial_sums(self, segment: Any, head: Any, outputs: list[Any], tile: _Tile) -> list[Any]:
        """Return the vectors to which the segment's sums are added: bias and residual, or sums of earlier segments."""
        if not self.spec.blocked:
            return self._load_bias_and_residual(segment, tile)
        e, b = self.e, self.e.b
        with b.if_else(self._has_flag(head, FIRST)) as (then, otherwise):
            with then:
                fresh, fresh_end = self._load_bias_and_residual(segment, tile), b.block
            with otherwise:
                going = [e.load(output, at) for output in outputs for at in self.shape.y]
                going_end = b.block
        bases = []
        for one, other in zip(fresh, going, strict=True):
            phi = b.phi(e.vector)
            phi.add_incoming(one, fresh_end)
            phi.add_incoming(other, going_end)
            bases.append(phi)
        return bases

    def _load_bias_and_residual(self, segment: Any, tile: _Tile) -> list[Any]:
        e, b, spec, rows = self.e, self.e.b, self.spec, self.spec.rows
        bases = []
        for row in range(rows):
            bias = e.splat(e.load_f32(segment, spec.segment_bytes - 4 * (rows - row)))
            if not spec.residual:
                bases += [bias] * self.vectors
                continue
            plane = e.offset_pointer(tile.residual, e.load_i32(segment, 4 * (spec.header_words + rows + row)))
            bases += [b.fadd(e.load(plane, at), bias) for at in self.shape.residual]
        return bases

    def _has_flag(self, head: Any, flag: int) -> Any:
        b = self.e.b
        return b.icmp_signed("!=", b.and_(head, self.e.i64(flag)), self.e.i64(0))

    def _write_segment_end(self, head: Any, outputs: list[Any], tile: _Tile, sums: list[Any]) -> None:
        if not self.spec.blocked:
            self._write_outputs(outputs, tile, sums)
            return
        with self.e.b.if_else(self._has_flag(head, LAST)) as (then, otherwise):
            with then:
                self._write_outputs(outputs, tile, sums)
            with otherwise:
                self._store_outputs(outputs, sums)

    def _write_outputs(self, outputs: list[Any], tile: _Tile, sums: list[Any]) -> None:
        e = self.e
        values = activate_all(e, self.spec.act, sums)
        if self.masked:
            there = [lanes.load_bit_mask(e, tile.masks, t * self._mask_bytes) for t in range(self.vectors)]
            values = [e.select(there[i % self.vectors], value, e.splat(0.0)) for i, value in enumerate(values)]
        self._store_outputs(outputs, values)

    def _store_outputs(self, outputs: list[Any], values: list[Any]) -> None:
        for row, output in enumerate(outputs):
            for t, at in enumerate(self.shape.y):
                self.e.store(values[row * self.vectors + t], output, at)
