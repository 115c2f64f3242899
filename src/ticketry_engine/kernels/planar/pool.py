"""Pooling over planes: the largest or the mean value of windows, and the mean of a whole plane.

Tables tell for each row and column of the output where its window begins in the input, and how many of its taps are
inside: a halo's zeros never count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.planar import lanes
from ticketry_engine.kernels.planar.geometry import FLOAT, Planes
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array, Axis, Window


def max_pool(x: Planes, y: Planes, window: Window) -> list[Op]:
    """The largest value of each window; NaN does not count. The size of ``y`` tells how many windows there are."""
    return [_Pool("max", x, y, window).op(np.ones(1), np.ones(1))]


def avg_pool(x: Planes, y: Planes, window: Window, count_include_pad: bool = True) -> list[Op]:
    """The mean of each window, as of `max_pool`.

    Args:
        count_include_pad: whether the padding counts as zeros rather than not at all.
    """
    pool = _Pool("mean", x, y, window)
    counts = [pool.inside(axis)[:, 1] for axis in (0, 1)]
    if count_include_pad:
        counts = [along.padded(outputs) for along, outputs in map(pool.along, (0, 1))]
    return [pool.op(*(1 / np.maximum(count, 1) for count in counts))]


def global_mean(x: Planes, y: Planes) -> list[Op]:
    """The mean of each plane; ``y`` has one position."""
    g = x.geometry
    _, floats, ((start, _),) = lanes.runs([g], halos=True)
    share = np.array([1 / (g.height * g.width)], np.float32)
    place = y.geometry.position(0, 0) * y.geometry.step
    return [Op(Mean(g.images), (x.channels, start, floats, place, share, x.offsets, y.offsets))]


@dataclass(frozen=True)
class _Pool:
    """Which windows of ``x`` become which positions of ``y``."""

    kind: str
    x: Planes
    y: Planes
    window: Window

    def along(self, axis: int) -> tuple[Axis, int]:
        """The windows along the rows (axis 0) or columns (1), and how many there are."""
        g = self.y.geometry
        return self.window.axes(self.x.geometry)[axis], (g.height, g.width)[axis]

    def inside(self, axis: int) -> Array:
        """Of each window: the first row or column inside the input, and how many of its taps are."""
        along, outputs = self.along(axis)
        begin, step = along.begins(outputs), along.dilation
        first = np.maximum(0, -(begin // step))
        last = np.minimum(along.size, -(-(along.extent - begin) // step))
        return np.stack([begin + first * step, np.maximum(last - first, 0)], 1).astype(np.int64)

    def op(self, share_rows: Array, share_columns: Array) -> Op:
        """The operation. A mean is the sum times the shares of its row and column."""
        g, h, dilation = self.x.geometry, self.y.geometry, self.window.dilation
        rows, columns = self.inside(0), self.inside(1)
        rows[:, 0] = (rows[:, 0] * g.row + g.position(0, 0)) * g.step
        columns[:, 0] *= g.step
        taps = (dilation[0] * g.row * g.step, dilation[1] * g.step)
        args: tuple[int | Array, ...] = (self.x.channels, h.height, h.width, *taps, h.position(0, 0) * h.step)
        args += (h.row * h.step, rows, share_rows.astype(np.float32), self.x.offsets, self.y.offsets)
        if not self._spanned():
            return Op(Windows(self.kind, g.images), (*args, share_columns.astype(np.float32), columns))
        size, stride, padding = self.window.size[1], self.window.stride[1], self.window.padding[1]
        over = padding > 0 or self._last >= g.width
        kernel = Spans(self.kind, g.images, size, stride, over and self.kind == "max")
        table = self._bounds() if self.kind == "max" else self._repeated(share_columns)
        return Op(kernel, (*args, table, -padding * g.step))

    def _spanned(self) -> bool:
        """Whether vectors over positions save time, and all they read is in the plane (and its halo wide enough)."""
        g = self.x.geometry
        size, stride, padding = self.window.size[1], self.window.stride[1], self.window.padding[1]
        saved = stride * g.images <= 8 and stride <= 4 and size <= 7
        return saved and padding <= g.halo and self._last < g.width + g.halo

    @property
    def _last(self) -> int:
        """The last column that a window reaches."""
        along, outputs = self.along(1)
        return int(along.begins(outputs)[-1]) + (along.size - 1) * along.dilation

    def _bounds(self) -> Array:
        """What values of a row count at most, from the first window's begin on: those outside, as nothing."""
        g, (along, outputs) = self.x.geometry, self.along(1)
        count = (_rounded(outputs * g.images) * along.stride) // g.images + along.size * along.dilation
        columns = np.arange(count) - along.padding
        bounds = np.where((columns >= 0) & (columns < g.width), np.inf, -np.inf)
        return np.repeat(bounds, g.images).astype(np.float32)

    def _repeated(self, shares: Array) -> Array:
        """The share of each column, as often as there are images."""
        values = np.zeros(_rounded(len(shares) * self.x.geometry.images), np.float32)
        values[: len(shares) * self.x.geometry.images] = np.repeat(shares, self.x.geometry.images)
        return values


def _rounded(floats: int) -> int:
    """Floats that vectors of any target take to hold so many."""
    return -(-floats // lanes.MOST) * lanes.MOST


class _Line:
    """A row of the output, and the rows of the input that its windows have taps in."""

    def __init__(self, e: Emitter, turn: ir.Value) -> None:
        b = e.b
        height, self.width, self.down, self.right, start, step = (e.arg(i) for i in range(1, 7))
        channel, row = b.udiv(turn, height), b.urem(turn, height)
        x, y = (e.arena(e.load_i64(e.table(i), b.mul(channel, e.i64(8)))) for i in (9, 10))
        entry = e.at(e.table(7), b.mul(row, e.i64(16)))
        self.x, self.rows = e.at(x, e.load_i64(entry)), e.load_i64(entry, 8)
        self.y = e.at(y, b.add(start, b.mul(row, step)))
        self._e, self._row = e, row

    def share(self) -> ir.Value:
        """By what the sums of this row are multiplied."""
        return self._e.load_f32(self._e.table(8), self._e.b.mul(self._row, self._e.i64(FLOAT)))


@contextmanager
def _lines(e: Emitter) -> Iterator[_Line]:
    low, high = e.share(e.b.mul(e.arg(0), e.arg(1)))
    with e.loop(low, high) as turn:
        yield _Line(e, turn.index)


def _nothing(kind: str) -> float:
    return 0.0 if kind == "mean" else float("-inf")


def _added(e: Emitter, kind: str, old: ir.Value, new: ir.Value) -> ir.Value:
    if kind == "mean":
        return e.b.fadd(old, new)
    larger = e.b.or_(e.b.fcmp_ordered(">", old, new), e.b.fcmp_unordered("uno", old, old))
    return e.select(larger, old, new)  # like torch: NaN is larger than anything


@dataclass(frozen=True)
class Windows(Written):
    """The largest (``"max"``) or mean (``"mean"``) value of windows of any shape, position by position.

    A vector holds the images of one position. The last arguments are the shares by which columns' sums are multiplied,
    and for each column where its windows begin and how many taps they have.
    """

    kind: str
    images: int

    def write(self, e: Emitter) -> None:
        b = e.b
        shares, columns = e.table(11), e.table(12)
        with _lines(e) as line, e.loop(0, line.width) as column:
            entry = e.at(columns, b.mul(column.index, e.i64(16)))
            found = self._window(e, line, e.at(line.x, e.load_i64(entry)), e.load_i64(entry, 8))
            here = e.at(line.y, b.mul(column.index, e.i64(FLOAT * self.images)))
            if self.kind == "mean":
                share = b.fmul(line.share(), e.load_f32(shares, b.mul(column.index, e.i64(FLOAT))))
                found = [b.fmul(value, lanes.splat(e, share, value.type.count)) for value in found]
            for part, value in enumerate(found):
                b.store(value, e.at(here, FLOAT * e.target.lanes * part), align=FLOAT)

    def _window(self, e: Emitter, line: _Line, first: ir.Value, count: ir.Value) -> list[ir.Value]:
        """What the taps inside come to, as many vectors as a position's images take."""
        b = e.b
        kind = lanes.vector(min(self.images, e.target.lanes))
        begin = ir.Constant(kind, [_nothing(self.kind)] * kind.count)
        parts = range(self.images // kind.count)
        with e.loop(0, line.rows, carried=[begin for _ in parts]) as row:
            taps = e.at(first, b.mul(row.index, line.down))
            with e.loop(0, count, carried=row.carried) as tap:
                place = e.at(taps, b.mul(tap.index, line.right))
                values = [b.load(e.at(place, FLOAT * kind.count * part), typ=kind, align=FLOAT) for part in parts]
                tap.next = [_added(e, self.kind, *pair) for pair in zip(tap.carried, values, strict=True)]
            row.next = tap.results
        return row.results


@dataclass(frozen=True)
class Spans(Written):
    """As `Windows`, for few images: vectors run over positions.

    With a stride, positions between those wanted are worked out too and left out at the end. Positions outside the
    input are read as the halo's zeros (means), or `bounded`. The last arguments are the shares of each float of a row's
    sums, or what each float of a row of the input counts at most; and the byte at which a row's first window begins.
    """

    kind: str
    images: int
    taps: int
    """Columns of a window."""
    stride: int
    """From one window to the next along a row."""
    bounded: bool
    """Whether windows reach over the ends of a row and their largest values are wanted."""

    def write(self, e: Emitter) -> None:
        b, width = e.b, e.target.lanes
        with _lines(e) as line:
            line.x = e.at(line.x, e.arg(12))
            floats = b.mul(line.width, e.i64(self.images))
            whole = b.and_(floats, e.i64(-width))
            with e.loop(0, whole, width) as loop:
                self._vector(e, line, loop.index, None)
            rest = b.sub(floats, whole)
            with e.when(b.icmp_signed(">", rest, e.i64(0))):
                self._vector(e, line, whole, lanes.within(e, rest))

    def _vector(self, e: Emitter, line: _Line, first: ir.Value, mask: ir.Value | None) -> None:
        """A vector of a row of the output, from a float on."""
        byte = e.b.mul(first, e.i64(FLOAT))
        value = lanes.every(e, self._sums(e, line, e.b.mul(byte, e.i64(self.stride))), self.images)
        if self.kind == "mean":
            value = e.b.fmul(value, e.b.fmul(e.splat(line.share()), e.load(e.table(11), byte)))
        lanes.store(e, value, line.y, byte, mask)

    def _sums(self, e: Emitter, line: _Line, byte: ir.Value) -> list[ir.Value]:
        """What windows that begin at each of so many neighbouring positions come to."""
        b = e.b
        vectors = [FLOAT * e.target.lanes * part for part in range(self.stride)]
        with e.loop(0, line.rows, carried=[e.splat(_nothing(self.kind))] * self.stride) as row:
            start = e.at(line.x, b.add(byte, b.mul(row.index, line.down)))
            row.next = list(row.carried)
            for tap in range(self.taps):
                along = b.mul(line.right, e.i64(tap))
                for part, further in enumerate(vectors):
                    value = e.load(e.at(start, along), further)
                    if self.bounded:
                        most = e.load(e.at(e.table(11), b.add(byte, along)), further)
                        value = e.select(b.fcmp_ordered(">", most, e.splat(0.0)), value, most)  # NaN outside too
                    row.next[part] = _added(e, self.kind, row.next[part], value)
        return row.results


@dataclass(frozen=True)
class Mean(Written):
    """The mean of each plane, whose halo of zeros between the rows is added too."""

    images: int

    def write(self, e: Emitter) -> None:
        b, width = e.b, e.target.lanes
        channels, start, floats, place = (e.arg(i) for i in range(4))
        share, xs, ys = (e.table(i) for i in range(4, 7))
        sums = 4 if self.images <= 4 * width else self.images // width
        low, high = e.share(channels)
        with e.loop(low, high) as turn:
            x, y = (e.arena(e.load_i64(table, b.mul(turn.index, e.i64(8)))) for table in (xs, ys))
            x, y = e.at(x, start), e.at(y, place)
            zero = e.splat(0.0)
            whole = b.mul(b.udiv(floats, e.i64(sums * width)), e.i64(sums * width))
            with e.loop(0, whole, sums * width, carried=[zero] * sums) as loop:
                here = e.at(x, b.mul(loop.index, e.i64(FLOAT)))
                loop.next = [b.fadd(old, e.load(here, FLOAT * width * k)) for k, old in enumerate(loop.carried)]
            rest, here = b.sub(floats, whole), e.at(x, b.mul(whole, e.i64(FLOAT)))
            found = [
                b.fadd(old, lanes.load(e, here, FLOAT * width * k, lanes.within(e, b.sub(rest, e.i64(k * width)))))
                for k, old in enumerate(loop.results)
            ]
            apart = max(1, self.images // width)
            for part in range(apart):
                value = found[part]
                for other in found[part + apart :: apart]:
                    value = b.fadd(value, other)
                value = lanes.folded(e, value, min(self.images, width))
                value = b.fmul(value, lanes.splat(e, e.load_f32(share), value.type.count))
                b.store(value, e.at(y, FLOAT * width * part), align=FLOAT)
