"""Unfolding: copies of planes, shifted by the taps of a convolution, so that it reads whole vectors.

Where a vector spans several positions, shifts by a tap begin anywhere in a line (which halves the rate of loads),
strides leave gaps, and small planes leave lanes empty. A copy has the positions of y, one for each, and zeros where its
tap reads outside of x. Taps one below the other share a copy if that leaves vectors aligned to half a line at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.engine.cpu.emit import Emitter
from ticketry.engine.cpu.planes import lanes
from ticketry.engine.cpu.planes.geometry import FLOAT, Geometry, Planes
from ticketry.engine.cpu.planes.window import Pair, Window
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target

Array = np.ndarray[Any, Any]

LINE = 64
"""Bytes of a cache line."""


@dataclass(frozen=True)
class Copy:
    """A copy for one or several taps: y's columns as tap ``column`` reads them, and rows of x from ``row`` on."""

    column: int
    row: int
    rows: int
    """Rows of the copy."""


@dataclass(frozen=True, eq=False)
class Unfolding:
    """Which copies of which channels a layer reads, and where they lie once there is a place for them."""

    x: Geometry
    y: Geometry
    window: Window
    copies: tuple[Copy, ...]
    of: dict[Pair, tuple[int, int]]
    """For each tap its copy, and the row of the copy that is the first row of y."""
    used: Array
    """Copies x channels: those that any weight reads."""
    target: Target

    @property
    def geometry(self) -> Geometry:
        """Of all copies."""
        rows = max((copy.rows for copy in self.copies), default=self.y.height)
        return Geometry(rows, self.y.width, 0, self.y.images, self.y.row)

    @property
    def phases(self) -> list[int]:
        """Columns of x modulo the horizontal stride that taps read; none if it is 1."""
        stride = self.window.stride[1]
        return sorted({self.window.input(0, copy.column, 1) % stride for copy in self.copies}) if stride > 1 else []

    @property
    def phase(self) -> Geometry:
        """Of every so-manieth column of x."""
        return Geometry.of(self.x.height, -(-self.x.width // self.window.stride[1]), 0, self.x.images)

    @property
    def channels(self) -> Array:
        """Channels that any weight reads."""
        return np.flatnonzero(self.used.any(axis=0))

    @property
    def bytes(self) -> int:
        """Memory that the copies take."""
        return int(self.used.sum()) * self.geometry.bytes + len(self.phases) * len(self.channels) * self.phase.bytes

    @property
    def vectors(self) -> int:
        """Vectors written."""
        each = -(-self.geometry.positions * self.y.images // self.target.lanes)
        return int(self.used.sum()) * each

    def value(self, offset: int) -> Planes:
        """All copies, one behind the other from an offset on."""
        return Planes.at(self.geometry, int(self.used.sum()), offset)

    def columns(self, offset: int) -> Array:
        """Channels x taps: the byte where each begins, for copies from an offset on; 0 where there is none."""
        starts = np.zeros(self.used.shape, dtype=np.int64)
        starts[self.used] = offset + self.geometry.bytes * np.arange(int(self.used.sum()))
        columns = np.zeros((self.used.shape[1], len(self.window.taps)), dtype=np.int64)
        for number, tap in enumerate(self.window.taps):
            if tap in self.of:
                copy, row = self.of[tap]
                columns[:, number] = np.where(self.used[copy], starts[copy] + self.geometry.shift(row, 0), 0)
        return columns

    def ops(self, x: Planes, offset: int, label: str) -> list[Op]:
        """What makes the copies."""
        ops, sources = [], {0: x}
        if self.phases:
            first = offset + int(self.used.sum()) * self.geometry.bytes
            count, stride = len(self.channels), self.phase.bytes * len(self.channels)
            sources = {}
            for number, phase in enumerate(self.phases):
                offsets = np.zeros(x.channels, dtype=np.int64)
                offsets[self.channels] = first + number * stride + self.phase.bytes * np.arange(count)
                sources[phase] = Planes(self.phase, offsets)
            ops.append(self._split(x, first, stride, label))
        return [*ops, self._copy(sources, offset, label)]

    def _split(self, x: Planes, first: int, apart: int, label: str) -> Op:
        stride, count = self.window.stride[1], len(self.channels)
        each = -(-self.phase.width * x.geometry.images // self.target.lanes)
        valid = np.arange(each * stride * self.target.lanes) < x.geometry.width * x.geometry.images
        bits = valid.reshape(-1, self.target.lanes) @ (1 << np.arange(self.target.lanes))
        begin = x.geometry.position(0, 0) * x.geometry.step
        places = np.stack([x.offsets[self.channels] + begin, first + self.phase.bytes * np.arange(count)], axis=1)
        kernel = Split(stride, tuple(self.phases), x.geometry.images)
        numbers = (x.geometry.height, x.geometry.row * x.geometry.step, self.phase.row * self.phase.step, apart, each)
        return Op(kernel, (places, count, *numbers, bits.astype(lanes.mask_type(self.target))), label)

    def _copy(self, sources: dict[int, Planes], offset: int, label: str) -> Op:
        places, all_pieces, all_bits, done = [], [], [], 0
        starts = iter(offset + self.geometry.bytes * np.arange(int(self.used.sum())))
        made = [self._pieces(copy, next(iter(sources.values())).geometry) for copy in self.copies]
        most = max(pieces.shape[1] for pieces, _ in made)
        for copy, used, (pieces, bits) in zip(self.copies, self.used, made, strict=True):
            source = sources[self.window.input(0, copy.column, 1) % self.window.stride[1]]
            places += [
                (int(source.offsets[channel]), int(next(starts)), done, done + len(pieces))
                for channel in np.flatnonzero(used)
            ]
            all_pieces.append(np.pad(pieces, ((0, 0), (0, most - pieces.shape[1]))))
            all_bits.append(np.pad(bits, ((0, 0), (0, most - bits.shape[1]))))
            done += len(pieces)
        table = np.array(places, dtype=np.int64).reshape(-1, 4)
        pieces, bits = np.concatenate(all_pieces).astype(np.int32), np.concatenate(all_bits)
        return Op(Gather(most), (table, len(table), pieces, bits.astype(lanes.mask_type(self.target))), label)

    def _pieces(self, copy: Copy, source: Geometry) -> tuple[Array, Array]:
        """For each vector of a copy what it is put together from: bytes of the source, and lanes."""
        width, images = self.target.lanes, self.y.images
        each = width // images
        stride = self.window.stride[0]
        vectors = -(-((copy.rows - 1) * self.y.row + self.y.width) // each)
        row, column = np.divmod(np.arange(vectors * each), self.y.row)
        from_row = copy.row + row * stride
        shift = self.window.input(0, copy.column, 1) // self.window.stride[1]
        from_column, columns = column + shift, source.width
        valid = (column < self.y.width) & (row < copy.rows) & (from_column >= 0) & (from_column < columns)
        valid &= (from_row >= 0) & (from_row < source.height)
        begin = (from_row + source.halo) * source.row + from_column + source.halo - np.arange(vectors * each) % each
        left = np.where(valid, begin, _NOWHERE).reshape(vectors, each)
        pieces: list[Array] = []
        bits: list[Array] = []
        while not pieces or (left > _NOWHERE).any():
            piece = left.max(axis=1)
            here = (left == piece[:, None]) & (left > _NOWHERE)
            left[here] = _NOWHERE
            pieces.append(np.where(piece > _NOWHERE, piece, 0) * source.step)
            bits.append(np.repeat(here, images, axis=1) @ (1 << np.arange(width)))
        return np.stack(pieces, axis=1), np.stack(bits, axis=1)


_NOWHERE = -(1 << 40)


def unfolding(x: Geometry, y: Geometry, window: Window, used: Array, target: Target) -> Unfolding:
    """What a layer needs unfolded.

    Args:
        used: channels x taps, whether any weight reads it.
    """
    share = y.row * y.step % (LINE // 2) == 0
    copies: list[Copy] = []
    of: dict[Pair, tuple[int, int]] = {}
    taps = window.taps
    wanted = [tap for number, tap in enumerate(taps) if used[:, number].any() and window.meets(x, y, tap)]
    families: dict[tuple[int, int], list[Pair]] = {}
    for tap in wanted:
        first = window.input(0, tap[0], 0)
        families.setdefault((tap[1], first % window.stride[0] if share else tap[0]), []).append(tap)
    rows = []
    for members in families.values():
        firsts = [window.input(0, tap[0], 0) for tap in members]
        span = (max(firsts) - min(firsts)) // window.stride[0]
        for tap, first in zip(members, firsts, strict=True):
            of[tap] = len(copies), (first - min(firsts)) // window.stride[0]
        copies.append(Copy(members[0][1], min(firsts), y.height + span))
        rows.append(used[:, [taps.index(tap) for tap in members]].any(axis=1))
    read = np.array(rows, dtype=bool).reshape(len(copies), len(used))
    return Unfolding(x, y, window, tuple(copies), of, read, target)


@dataclass(frozen=True)
class Gather:
    """Vectors put together from pieces: consecutive lanes of anywhere in a plane each; what no piece covers is zero.

    Arguments: places (from, to, its first vector and the one behind its last; each int64), their number, for each
    vector the bytes of its pieces (int32), and their lanes.
    """

    pieces: int

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b, arena = e.b, e.arena()
        places, pieces, bits = e.table(0), e.table(2), e.table(3)
        size = lanes.mask_type(target).itemsize
        low, high = e.share(e.arg(1))
        with e.loop(low, high) as plane:
            place = e.at(places, b.mul(plane.index, e.i64(32)))
            source, to = (e.at(arena, e.load_i64(place, 8 * word)) for word in (0, 1))
            first, last = (e.load_i64(place, 8 * word) for word in (2, 3))
            with e.loop(first, last, carried=[e.i64(0)]) as loop:
                at = e.at(pieces, b.mul(loop.index, e.i64(4 * self.pieces)))
                mask = e.at(bits, b.mul(loop.index, e.i64(size * self.pieces)))
                value = e.splat(0.0)
                for piece in range(self.pieces):
                    begin = e.at(source, e.load_i32(at, 4 * piece))
                    value = lanes.load(e, begin, 0, lanes.from_bits(e, mask, size * piece), value)
                e.store(value, to, loop.carried[0])
                loop.next = [b.add(loop.carried[0], e.i64(target.lanes * FLOAT))]
        return e.text()


@dataclass(frozen=True)
class Split:
    """Every so-manieth pixel of each row, once for each of some phases.

    Arguments: places (from, to of the first phase; int64), their number, rows, bytes from one row to the next and in
    the phases, bytes from one phase's plane to the next phase's, vectors that a phase's row takes, and the lanes of a
    row's vectors that hold pixels.
    """

    stride: int
    phases: tuple[int, ...]
    images: int

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b, arena = e.b, e.arena()
        places, masks = e.table(0), e.table(7)
        rows, from_row, to_row, apart, each = (e.arg(index) for index in range(2, 7))
        size, width = lanes.mask_type(target).itemsize, target.lanes * FLOAT
        low, high = e.share(e.arg(1))
        with e.loop(low, high) as plane:
            place = e.at(places, b.mul(plane.index, e.i64(16)))
            source, to = (e.at(arena, e.load_i64(place, 8 * word)) for word in (0, 1))
            with e.loop(0, rows) as row, e.loop(0, each) as vector:
                begin = e.at(source, b.mul(row.index, from_row))
                bits = e.at(masks, b.mul(vector.index, e.i64(size * self.stride)))
                begin = e.at(begin, b.mul(vector.index, e.i64(width * self.stride)))
                read = [
                    lanes.load(e, begin, width * part, lanes.from_bits(e, bits, size * part))
                    for part in range(self.stride)
                ]
                end = e.at(e.at(to, b.mul(row.index, to_row)), b.mul(vector.index, e.i64(width)))
                for number, phase in enumerate(self.phases):
                    e.store(self._phase(e, read, phase), e.at(end, b.mul(apart, e.i64(number))))
        return e.text()

    def _phase(self, e: Emitter, read: Sequence[Any], phase: int) -> Any:
        width = e.target.lanes
        unit, lane = np.divmod(np.arange(width), self.images)
        wanted = (unit * self.stride + phase) * self.images + lane
        value = read[0]
        for part in range(1, self.stride):
            # Lanes that come from vectors before this one are in their places already.
            taken = [int(w % width) + width if w // width == part else k for k, w in enumerate(wanted)]
            if part == 1:
                taken = [int(w) if w < 2 * width else 0 for w in wanted]
            value = lanes.shuffle(e, value, read[part], taken)
        return value
