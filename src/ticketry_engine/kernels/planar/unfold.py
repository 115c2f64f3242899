"""Unfolding: copies of planes, shifted by the taps of a convolution, so that the convolution reads aligned vectors.

    x row:   . a b c d .        copy for tap -1:   . a b c        copy for tap +1:   b c d .

If a vector spans several positions, shifted reads cross cache lines (which halves the load rate), strides leave gaps,
and small planes leave lanes empty. A copy has one position per position of y, and zeros where the tap reads outside of
x. Taps share a copy if the vectors that they read in the copy stay aligned. Copying takes time once per channel, and
pays if many rows read the copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.planar.geometry import (
    FLOAT,
    LINE,
    SLACK,
    Geometry,
    Planes,
    load,
    load_bit_mask,
    mask_type,
    pick_positions,
    shuffle,
)
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array, Pair, Window


@dataclass(frozen=True)
class PlaneCopy:
    """Says which rows and columns of an input plane a copy of it contains.

    The weights at one or more kernel positions read the copy instead of the plane.
    """

    row: int
    """First row of x; further rows follow at the window's vertical stride."""
    rows: int
    phase: int
    """The copy contains columns of x whose number, modulo the horizontal stride, is `phase`."""
    column: int
    """First column, counting only columns with this phase; negative if it is left of the first column of x."""
    columns: int


@dataclass(frozen=True, eq=False)
class Unfolding:
    """The copies of input planes that a layer reads, and where these copies are in scratch memory."""

    x: Geometry
    y: Geometry
    window: Window
    copies: tuple[PlaneCopy, ...]
    of: dict[Pair, tuple[int, int, int]]
    """By tap: (index of the copy that the tap reads, row and column of the copy for the first pixel of y)."""
    used: Array
    """bool [copies, channels]: whether any weight reads the channel's copy."""
    row: int
    """Positions from one row of a copy to the next."""
    target: Target

    @property
    def geometry(self) -> Geometry:
        """Shape of the planes of all copies."""
        rows = max((copy.rows for copy in self.copies), default=self.y.height)
        columns = max((copy.columns for copy in self.copies), default=self.y.width)
        return Geometry(rows, columns, 0, self.y.images, self.row)

    @property
    def copy_bytes(self) -> int:
        """Bytes from one copied plane to the next, a multiple of the cache line.

        Copies have no extra bytes at the end of each plane, so that they use few memory pages.
        """
        return -(-self.geometry.positions * self.geometry.position_bytes // LINE) * LINE

    @property
    def column_phases(self) -> list[int]:
        """The values of `PlaneCopy.phase` among the copies, without repetition; empty if the horizontal stride is 1."""
        return sorted({copy.phase for copy in self.copies}) if self.window.stride[1] > 1 else []

    @property
    def phase_geometry(self) -> Geometry:
        """Shape of the planes that hold every n-th column of x, for the horizontal stride n.

        There is a plane for each possible first column, 0 to n - 1 (its phase).
        """
        return Geometry.build(self.x.height, -(-self.x.width // self.window.stride[1]), 0, self.x.images)

    @property
    def channels(self) -> Array:
        """Numbers of the channels that any weight reads."""
        return np.flatnonzero(self.used.any(axis=0))

    @property
    def bytes(self) -> int:
        """Bytes of scratch memory for the copies, and for the planes that hold every stride-th column of x."""
        return (
            int(self.used.sum()) * self.copy_bytes
            + SLACK
            + len(self.column_phases) * len(self.channels) * self.phase_geometry.bytes
        )

    @property
    def uses_turn_kernel(self) -> bool:
        """Whether the kernel `Turn` can make the copies: each consists of the same rows of x, shifted sideways."""
        each = self.target.lanes // self.y.images
        alike = len({(copy.row, copy.rows) for copy in self.copies}) == 1
        return self.window.stride == (1, 1) and alike and self.x.width % each == 0 and self.row % each == 0

    @property
    def cycles(self) -> float:
        """Estimated cycles for making the copies."""
        vectors = int(self.used.sum()) * -(-self.geometry.positions * self.y.images // self.target.lanes)
        if self.uses_turn_kernel:
            return 1.5 * vectors
        each = self.target.lanes // self.y.images
        pieces = 1 if self.row % each == 0 else 1 + -(-each // self.row)  # of x, from which a vector is assembled
        return vectors * (2 + 2 * pieces) * (1 if self.target.lanes == 16 else 2)  # masks need mask registers

    def to_planes(self, offset: int) -> Planes:
        """Return the copied planes, which follow one another from memory byte `offset` on, as one value."""
        return Planes(self.geometry, offset + self.copy_bytes * np.arange(int(self.used.sum())))

    def column_offsets(self, offset: int) -> Array:
        """Return an array [channels, taps] of the memory byte that weights read from; 0 where no weight reads."""
        starts = self._copy_offsets(offset)
        columns = np.zeros((self.used.shape[1], len(self.window.taps)), dtype=np.int64)
        for number, tap in enumerate(self.window.taps):
            if tap in self.of:
                copy, row, column = self.of[tap]
                columns[:, number] = np.where(self.used[copy], starts[copy] + self.geometry.shift_bytes(row, column), 0)
        return columns

    def _copy_offsets(self, offset: int) -> Array:
        """Return an array [copies, channels]: the byte of each copied plane; 0 if no weight reads it."""
        starts = np.zeros(self.used.shape, dtype=np.int64)
        starts[self.used] = self.to_planes(offset).offsets
        return starts

    def build_ops(self, x: Planes, offset: int) -> list[Op]:
        """Return the operations that copy planes of x to working memory, from byte `offset` on."""
        ops, sources = [], {0: x}
        if self.column_phases:
            first = offset + int(self.used.sum()) * self.copy_bytes + SLACK
            count, stride = len(self.channels), self.phase_geometry.bytes * len(self.channels)
            sources = {}
            for number, phase in enumerate(self.column_phases):
                offsets = np.zeros(x.channels, dtype=np.int64)
                offsets[self.channels] = first + number * stride + self.phase_geometry.bytes * np.arange(count)
                sources[phase] = Planes(self.phase_geometry, offsets)
            ops.append(self._build_phase_split_op(x, first, stride))
        whole = np.asarray(self.used.all(axis=0) & self.uses_turn_kernel)
        if whole.any():
            ops.append(self._build_turn_op(x, np.flatnonzero(whole), offset))
        if (self.used & ~whole).any():
            ops.append(self._build_gather_op(sources, offset, ~whole))
        return ops

    def _build_turn_op(self, x: Planes, channels: Array, offset: int) -> Op:
        """Return the operation that makes the copies of `channels` by shifting rows sideways (kernel `Turn`)."""
        g, (row, rows) = x.geometry, (self.copies[0].row, self.copies[0].rows)
        above = min(max(0, -row), rows)
        inside = max(0, min(rows - above, g.height - max(0, row)))
        begin = g.pixel_position(max(0, row), 0) * g.position_bytes
        places = np.stack([x.offsets[channels] + begin, *self._copy_offsets(offset)[:, channels]], axis=1)
        shifts = tuple(copy.column * self.y.images for copy in self.copies)
        vectors, row = (count * self.y.images // self.target.lanes for count in (self.x.width, self.row))
        kernel = Turn(shifts, vectors, row)
        return Op(kernel, (places, len(places), g.row * g.position_bytes, above, above + inside, rows))

    def _build_phase_split_op(self, x: Planes, first: int, copy_bytes: int) -> Op:
        stride, count = self.window.stride[1], len(self.channels)
        each = -(-self.phase_geometry.width * x.geometry.images // self.target.lanes)
        valid = np.arange(each * stride * self.target.lanes) < x.geometry.width * x.geometry.images
        bits = valid.reshape(-1, self.target.lanes) @ (1 << np.arange(self.target.lanes))
        begin = x.geometry.pixel_position(0, 0) * x.geometry.position_bytes
        places = np.stack(
            [x.offsets[self.channels] + begin, first + self.phase_geometry.bytes * np.arange(count)], axis=1
        )
        kernel = PhaseSplit(stride, tuple(self.column_phases), x.geometry.images)
        row_bytes, phase_bytes = (
            x.geometry.row * x.geometry.position_bytes,
            self.phase_geometry.row * self.phase_geometry.position_bytes,
        )
        numbers = (x.geometry.height, row_bytes, phase_bytes, copy_bytes, each)
        return Op(kernel, (places, count, *numbers, bits.astype(mask_type(self.target))))

    def _build_gather_op(self, sources: dict[int, Planes], offset: int, channels: Array) -> Op:
        """Return the operation that assembles the copies of `channels` from pieces of planes.

        `sources` maps a phase (first column of every stride-th column) to the planes that hold these columns.
        """
        places, all_pieces, all_bits, done = [], [], [], 0
        made = [self._piece_tables(copy, next(iter(sources.values())).geometry) for copy in self.copies]
        most = max(pieces.shape[1] for pieces, _ in made)
        for copy, used, starts, (pieces, bits) in zip(
            self.copies, self.used, self._copy_offsets(offset), made, strict=True
        ):
            source = sources[copy.phase]
            places += [
                (int(source.offsets[channel]), int(starts[channel]), done, done + len(pieces))
                for channel in np.flatnonzero(used & channels)
            ]
            all_pieces.append(np.pad(pieces, ((0, 0), (0, most - pieces.shape[1]))))
            all_bits.append(np.pad(bits, ((0, 0), (0, most - bits.shape[1]))))
            done += len(pieces)
        table = np.array(places, dtype=np.int64).reshape(-1, 4)
        pieces, bits = np.concatenate(all_pieces).astype(np.int32), np.concatenate(all_bits)
        return Op(Gather(most), (table, len(table), pieces, bits.astype(mask_type(self.target))))

    def _piece_tables(self, copy: PlaneCopy, source: Geometry) -> tuple[Array, Array]:
        """Return two arrays [vectors of a copy, pieces]: each piece's byte in the source, and its lanes as bits."""
        width, images = self.target.lanes, self.y.images
        each = width // images
        vectors = -(-((copy.rows - 1) * self.row + copy.columns) // each)
        row, column = np.divmod(np.arange(vectors * each), self.row)
        from_row, from_column = copy.row + row * self.window.stride[0], column + copy.column
        valid = (column < copy.columns) & (row < copy.rows) & (from_row >= 0) & (from_row < source.height)
        valid &= (from_column >= 0) & (from_column < source.width)
        begin = (from_row + source.halo) * source.row + from_column + source.halo - np.arange(vectors * each) % each
        left = np.where(valid, begin, _NOWHERE).reshape(vectors, each)
        pieces: list[Array] = []
        bits: list[Array] = []
        while not pieces or (left > _NOWHERE).any():
            piece = left.max(axis=1)
            here = (left == piece[:, None]) & (left > _NOWHERE)
            left[here] = _NOWHERE
            pieces.append(np.where(piece > _NOWHERE, piece, 0) * source.position_bytes)
            bits.append(np.repeat(here, images, axis=1) @ (1 << np.arange(width)))
        return np.stack(pieces, axis=1), np.stack(bits, axis=1)


_NOWHERE = -(1 << 40)


def plan_unfolding(x: Geometry, y: Geometry, window: Window, used: Array, target: Target) -> Unfolding:
    """Return the copies of input planes that a layer needs.

    `used` [channels, taps] is True where any weight reads a channel at a kernel position (tap).
    """
    each = target.lanes // y.images
    whole = y.width % each == 0
    families: dict[tuple[int, int, int, int], list[Pair]] = {}
    for number, tap in enumerate(window.taps):
        if used[:, number].any() and window.reads_any_pixel(x, y, tap):
            families.setdefault(_copy_key(window, tap, y, each, whole), []).append(tap)
    copies: list[PlaneCopy] = []
    of: dict[Pair, tuple[int, int, int]] = {}
    read = np.zeros((len(families), len(used)), dtype=bool)
    for members in families.values():
        rows, columns = ([window.input_position(0, tap[axis], axis) for tap in members] for axis in (0, 1))
        row, column = min(rows), min(columns)
        for tap, from_row, from_column in zip(members, rows, columns, strict=True):
            of[tap] = len(copies), (from_row - row) // window.stride[0], (from_column - column) // window.stride[1]
            read[len(copies)] |= used[:, window.taps.index(tap)]
        spans = [max(of[tap][1 + axis] for tap in members) for axis in (0, 1)]
        phase, shift = column % window.stride[1], column // window.stride[1]
        copies.append(PlaneCopy(row, y.height + spans[0], phase, shift, y.width + spans[1]))
    widest = max((copy.columns for copy in copies), default=y.width)
    row = -(-widest // each) * each if whole else y.row
    return Unfolding(x, y, window, tuple(copies), of, read, row, target)


def _copy_key(window: Window, tap: Pair, y: Geometry, each: int, whole: bool) -> tuple[int, int, int, int]:
    """Return a key for a kernel position (tap); positions with equal keys can read the same copy, aligned."""
    row, column = (window.input_position(0, tap[axis], axis) for axis in (0, 1))
    shift, phase = divmod(column, window.stride[1])
    shift = shift % each if whole else shift
    if whole or y.row * y.position_bytes % (LINE // 2) == 0:
        return row % window.stride[0], 0, phase, shift
    return 0, row, phase, shift


@dataclass(frozen=True)
class Gather(EmittedKernel):
    """Kernel that assembles each vector of a plane from pieces of another plane, and zeros in between.

    Arguments: a table of planes (int64: byte of the source, byte of the destination, numbers of the first vector and of
    the vector after the last); the number of planes; for each vector the bytes of its pieces in the source (int32); for
    each vector masks of the lanes of its pieces.
    """

    pieces: int
    """Pieces per vector."""

    def write(self, e: Emitter) -> None:
        b, arena = e.b, e.arena_pointer()
        places, pieces, bits = e.table(0), e.table(2), e.table(3)
        size = mask_type(e.target).itemsize
        low, high = e.thread_share(e.arg(1))
        with e.loop(low, high) as plane:
            place = e.offset_pointer(places, b.mul(plane.index, e.i64(32)))
            source, to = (e.offset_pointer(arena, e.load_i64(place, 8 * word)) for word in (0, 1))
            first, last = (e.load_i64(place, 8 * word) for word in (2, 3))
            with e.loop(first, last, carried=[e.i64(0)]) as loop:
                at = e.offset_pointer(pieces, b.mul(loop.index, e.i64(4 * self.pieces)))
                mask = e.offset_pointer(bits, b.mul(loop.index, e.i64(size * self.pieces)))
                value = e.splat(0.0)
                for piece in range(self.pieces):
                    begin = e.offset_pointer(source, e.load_i32(at, 4 * piece))
                    value = load(e, begin, 0, load_bit_mask(e, mask, size * piece), value)
                e.store(value, to, loop.carried[0])
                loop.next = [b.add(loop.carried[0], e.i64(e.target.lanes * FLOAT))]


@dataclass(frozen=True)
class Turn(EmittedKernel):
    """Kernel that makes several copies of a plane at once, each shifted sideways, with zeros outside of the plane.

    Arguments: a table of planes (int64: byte of the first row to copy, byte of each copy); the number of planes; bytes
    from one row of the plane to the next; and three numbers about rows of a copy: index of the first row that is
    inside of x, index of the first row below x, number of rows.
    """

    shifts: tuple[int, ...]
    """For each copy, the lanes from the start of a row of x to the start of the copy's row; negative if before."""
    vectors: int
    """Vectors per row of x."""
    row: int
    """Vectors per row of a copy."""

    def write(self, e: Emitter) -> None:
        b, arena, places = e.b, e.arena_pointer(), e.table(0)
        step, first, last, rows = (e.arg(index) for index in range(2, 6))
        size, line = 8 * (1 + len(self.shifts)), self.row * e.target.lanes * FLOAT
        low, high = e.thread_share(e.arg(1))
        with e.loop(low, high) as plane:
            place = e.offset_pointer(places, b.mul(plane.index, e.i64(size)))
            source = e.offset_pointer(arena, e.load_i64(place))
            copies = [
                e.offset_pointer(arena, e.load_i64(place, 8 * (1 + number))) for number in range(len(self.shifts))
            ]
            for begin, end in ((e.i64(0), first), (last, rows)):
                with e.loop(begin, end) as outside:
                    for copy in copies:
                        to = e.offset_pointer(copy, b.mul(outside.index, e.i64(line)))
                        for vector in range(self.row):
                            e.store(e.splat(0.0), to, vector * e.target.lanes * FLOAT)
            with e.loop(first, last) as inside:
                begin = e.offset_pointer(source, b.mul(b.sub(inside.index, first), step))
                for shift, copy in zip(self.shifts, copies, strict=True):
                    self._write_shifted(e, begin, shift, e.offset_pointer(copy, b.mul(inside.index, e.i64(line))))

    def _write_shifted(self, e: Emitter, row: ir.Value, shift: int, to: ir.Value) -> None:
        """Emit the code that writes a row of a copy, which begins `shift` lanes after the start of the row of x."""
        lanes_, last = e.target.lanes, self.vectors * e.target.lanes
        for at in range(0, self.row * lanes_, lanes_):
            begin = at + shift
            if 0 <= begin <= last - lanes_:
                value = e.load(row, begin * FLOAT)
            else:
                one, other = (self._load_vector(e, row, begin // lanes_ + more) for more in (0, 1))
                first = begin % lanes_
                value = shuffle(e, one, other, range(first, first + lanes_))
            e.store(value, to, at * FLOAT)

    def _load_vector(self, e: Emitter, row: ir.Value, number: int) -> ir.Value:
        inside = 0 <= number < self.vectors
        return e.load(row, number * e.target.lanes * FLOAT) if inside else e.splat(0.0)


@dataclass(frozen=True)
class PhaseSplit(EmittedKernel):
    """Kernel that copies every n-th pixel of each row to a plane, for a stride n.

    There is one plane for each phase, the number of the first pixel that is copied.

    Arguments: a table of planes (int64: byte of the source, byte of the first phase's plane); the number of planes; the
    number of rows; bytes from one row to the next in x and in a phase's plane; bytes from one phase's plane to the
    next; vectors per row of a phase; masks of the lanes of a row that hold pixels.
    """

    title: ClassVar[str] = "split"  # its name in machine profiles
    stride: int
    phases: tuple[int, ...]
    images: int

    def write(self, e: Emitter) -> None:
        b, arena = e.b, e.arena_pointer()
        places, masks = e.table(0), e.table(7)
        rows, from_row, to_row, copy_bytes, each = (e.arg(index) for index in range(2, 7))
        size, width = mask_type(e.target).itemsize, e.target.lanes * FLOAT
        low, high = e.thread_share(e.arg(1))
        with e.loop(low, high) as plane:
            place = e.offset_pointer(places, b.mul(plane.index, e.i64(16)))
            source, to = (e.offset_pointer(arena, e.load_i64(place, 8 * word)) for word in (0, 1))
            with e.loop(0, rows) as row, e.loop(0, each) as vector:
                begin = e.offset_pointer(source, b.mul(row.index, from_row))
                bits = e.offset_pointer(masks, b.mul(vector.index, e.i64(size * self.stride)))
                begin = e.offset_pointer(begin, b.mul(vector.index, e.i64(width * self.stride)))
                read = [
                    load(e, begin, width * part, load_bit_mask(e, bits, size * part)) for part in range(self.stride)
                ]
                end = e.offset_pointer(
                    e.offset_pointer(to, b.mul(row.index, to_row)), b.mul(vector.index, e.i64(width))
                )
                for number, phase in enumerate(self.phases):
                    e.store(
                        pick_positions(e, read, self.images, phase),
                        e.offset_pointer(end, b.mul(copy_bytes, e.i64(number))),
                    )
