"""Kernels of max and average pooling, and of the mean of whole planes.

    y[r, c] = max or mean of x[r * stride + i * dilation - padding, c * stride + j * dilation - padding] over taps i, j

For each output row and column, a table holds where the window begins in the input and how many of its taps are inside.
So the zeros of the halo never count, and the inner loops have no bounds checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.planar.geometry import (
    FLOAT,
    MOST,
    Planes,
    find_contiguous_runs,
    first_lanes_mask,
    load,
    pick_positions,
    splat,
    store,
    sum_positions,
    vector_type,
)
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array, Axis, Window


def max_pool(x: Planes, y: Planes, window: Window) -> list[Op]:
    """Return the operations of max pooling; there is one window for each pixel of y."""
    return [_Pool("max", x, y, window).build_op(np.ones(1), np.ones(1))]


def avg_pool(x: Planes, y: Planes, window: Window, count_include_pad: bool = True) -> list[Op]:
    """Return the operations of average pooling; if `count_include_pad`, padding counts as zeros."""
    pool = _Pool("mean", x, y, window)
    counts = [pool.taps_inside_input(axis)[:, 1] for axis in (0, 1)]
    if count_include_pad:
        counts = [along.count_padded_taps(outputs) for along, outputs in map(pool.axis_windows, (0, 1))]
    return [pool.build_op(*(1 / np.maximum(count, 1) for count in counts))]


def global_mean(x: Planes, y: Planes) -> list[Op]:
    """Return the operations of the mean over all pixels of each channel; y has one pixel."""
    g = x.geometry
    _, floats, ((start, _),) = find_contiguous_runs([g], halos=True)
    share = np.array([1 / (g.height * g.width)], np.float32)
    place = y.geometry.pixel_position(0, 0) * y.geometry.position_bytes
    return [Op(Mean(g.images), (x.channels, start, floats, place, share, x.offsets, y.offsets))]


@dataclass(frozen=True)
class _Pool:
    """Describes the pixels of x that each window reads, and builds the pooling operation from them."""

    kind: str
    x: Planes
    y: Planes
    window: Window

    def axis_windows(self, axis: int) -> tuple[Axis, int]:
        """Return the window along rows (axis 0) or columns (axis 1), and the number of windows along this axis."""
        g = self.y.geometry
        return self.window.axes(self.x.geometry)[axis], (g.height, g.width)[axis]

    def taps_inside_input(self, axis: int) -> Array:
        """Return int64 [windows, 2]: for each window along an axis, its first input and its number of inputs."""
        along, outputs = self.axis_windows(axis)
        begin, step = along.first_inputs(outputs), along.dilation
        first = np.maximum(0, -(begin // step))
        last = np.minimum(along.size, -(-(along.extent - begin) // step))
        return np.stack([begin + first * step, np.maximum(last - first, 0)], 1).astype(np.int64)

    def build_op(self, share_rows: Array, share_columns: Array) -> Op:
        """Return the pooling operation; a mean is a sum times a factor of its row and a factor of its column."""
        g, h, dilation = self.x.geometry, self.y.geometry, self.window.dilation
        rows, columns = self.taps_inside_input(0), self.taps_inside_input(1)
        rows[:, 0] = (rows[:, 0] * g.row + g.pixel_position(0, 0)) * g.position_bytes
        columns[:, 0] *= g.position_bytes
        taps = (dilation[0] * g.row * g.position_bytes, dilation[1] * g.position_bytes)
        args: tuple[int | Array, ...] = (
            self.x.channels,
            h.height,
            h.width,
            *taps,
            h.pixel_position(0, 0) * h.position_bytes,
        )
        args += (h.row * h.position_bytes, rows, share_rows.astype(np.float32), self.x.offsets, self.y.offsets)
        size, stride, padding = self.window.size[1], self.window.stride[1], self.window.padding[1]
        along, outputs = self.axis_windows(1)
        last = int(along.first_inputs(outputs)[-1]) + (along.size - 1) * along.dilation  # column that a window reads
        # The kernel `Spans` is for few images, and for windows that read nothing beyond the zero border (halo).
        few = stride * g.images <= 8 and stride <= 4 and size <= 7
        if not few or padding > g.halo or last >= g.width + g.halo:
            return Op(Windows(self.kind, g.images), (*args, share_columns.astype(np.float32), columns))
        over = padding > 0 or last >= g.width
        kernel = Spans(self.kind, g.images, size, stride, over and self.kind == "max")
        table = self._window_upper_bounds() if self.kind == "max" else self._repeat_column_factors(share_columns)
        return Op(kernel, (*args, table, -padding * g.position_bytes))

    def _window_upper_bounds(self) -> Array:
        """Return a bound for each float of an input row, from the first window on: -inf in padding, else inf.

        The minimum of a float and its bound is what max pooling reads.
        """
        g, (along, outputs) = self.x.geometry, self.axis_windows(1)
        count = (_round_to_vectors(outputs * g.images) * along.stride) // g.images + along.size * along.dilation
        columns = np.arange(count) - along.padding
        bounds = np.where((columns >= 0) & (columns < g.width), np.inf, -np.inf)
        return np.repeat(bounds, g.images).astype(np.float32)

    def _repeat_column_factors(self, shares: Array) -> Array:
        """Return the factors of columns, `shares`, repeated for each image and padded with zeros to whole vectors."""
        values = np.zeros(_round_to_vectors(len(shares) * self.x.geometry.images), np.float32)
        values[: len(shares) * self.x.geometry.images] = np.repeat(shares, self.x.geometry.images)
        return values


def _round_to_vectors(floats: int) -> int:
    """Round a number of floats up to whole vectors of the widest target."""
    return -(-floats // MOST) * MOST


class _PoolRow:
    """Pointers and numbers for one output row: `y` points to the row, `x` to the first input row of its windows."""

    def __init__(self, e: Emitter, turn: ir.Value) -> None:
        b = e.b
        height, self.width, self.down, self.right, start, step = (e.arg(i) for i in range(1, 7))
        channel, row = b.udiv(turn, height), b.urem(turn, height)
        x, y = (e.arena_pointer(e.load_i64(e.table(i), b.mul(channel, e.i64(8)))) for i in (9, 10))
        entry = e.offset_pointer(e.table(7), b.mul(row, e.i64(16)))
        self.x, self.rows = e.offset_pointer(x, e.load_i64(entry)), e.load_i64(entry, 8)
        self.y = e.offset_pointer(y, b.add(start, b.mul(row, step)))
        self._e, self._row = e, row

    def load_row_share(self) -> ir.Value:
        """Load the factor that turns sums of this row into means."""
        return self._e.load_f32(self._e.table(8), self._e.b.mul(self._row, self._e.i64(FLOAT)))


@contextmanager
def _loop_output_rows(e: Emitter) -> Iterator[_PoolRow]:
    low, high = e.thread_share(e.b.mul(e.arg(0), e.arg(1)))
    with e.loop(low, high) as turn:
        yield _PoolRow(e, turn.index)


def _initial_value(kind: str) -> float:
    return 0.0 if kind == "mean" else float("-inf")


def _add_or_take_larger(e: Emitter, kind: str, old: ir.Value, new: ir.Value) -> ir.Value:
    if kind == "mean":
        return e.b.fadd(old, new)
    larger = e.b.or_(e.b.fcmp_ordered(">", old, new), e.b.fcmp_unordered("uno", old, old))
    return e.select(larger, old, new)  # as in torch, NaN is the maximum


@dataclass(frozen=True)
class Windows(EmittedKernel):
    """Kernel of max (``"max"``) or mean (``"mean"``) pooling with windows of any shape, one output pixel at a time.

    A vector holds one pixel of several images. The last two arguments are tables for the columns of y. The first table
    holds the factor of a column's sums. The second holds the byte in a row of x where the column's windows begin, and
    their number of taps.
    """

    kind: str
    images: int

    def write(self, e: Emitter) -> None:
        b = e.b
        shares, columns = e.table(11), e.table(12)
        with _loop_output_rows(e) as line, e.loop(0, line.width) as column:
            entry = e.offset_pointer(columns, b.mul(column.index, e.i64(16)))
            found = self._reduce_window(e, line, e.offset_pointer(line.x, e.load_i64(entry)), e.load_i64(entry, 8))
            here = e.offset_pointer(line.y, b.mul(column.index, e.i64(FLOAT * self.images)))
            if self.kind == "mean":
                share = b.fmul(line.load_row_share(), e.load_f32(shares, b.mul(column.index, e.i64(FLOAT))))
                found = [b.fmul(value, splat(e, share, value.type.count)) for value in found]
            for part, value in enumerate(found):
                b.store(value, e.offset_pointer(here, FLOAT * e.target.lanes * part), align=FLOAT)

    def _reduce_window(self, e: Emitter, line: _PoolRow, first: ir.Value, count: ir.Value) -> list[ir.Value]:
        """Return the maximum or sum over a window's inputs, padding excluded, as vectors with a lane for each image."""
        b = e.b
        kind = vector_type(min(self.images, e.target.lanes))
        begin = ir.Constant(kind, [_initial_value(self.kind)] * kind.count)
        parts = range(self.images // kind.count)
        with e.loop(0, line.rows, carried=[begin for _ in parts]) as row:
            taps = e.offset_pointer(first, b.mul(row.index, line.down))
            with e.loop(0, count, carried=row.carried) as tap:
                place = e.offset_pointer(taps, b.mul(tap.index, line.right))
                values = [
                    b.load(e.offset_pointer(place, FLOAT * kind.count * part), typ=kind, align=FLOAT) for part in parts
                ]
                tap.next = [_add_or_take_larger(e, self.kind, *pair) for pair in zip(tap.carried, values, strict=True)]
            row.next = tap.results
        return row.results


@dataclass(frozen=True)
class Spans(EmittedKernel):
    """Kernel of max or mean pooling for few images, where a vector holds several positions (pixels).

    With a stride, windows at all pixels are computed, and those that the stride skips are dropped. Outside of the
    input, a mean adds the zeros of the border (halo), and a maximum replaces what it reads by -inf (if `bounded`). The
    last but one argument is a table: the factor of each float of an output row ("mean"), or the upper bound of each
    float of an input row ("max"). The last argument is the byte where a row's first window begins.
    """

    kind: str
    images: int
    taps: int
    """Width of a window in pixels."""
    stride: int
    """Pixels between the starts of two neighbouring windows of a row."""
    bounded: bool
    """Whether to apply the upper bounds: in max pooling whose windows cross the ends of a row."""

    def write(self, e: Emitter) -> None:
        b, width = e.b, e.target.lanes
        with _loop_output_rows(e) as line:
            line.x = e.offset_pointer(line.x, e.arg(12))
            floats = b.mul(line.width, e.i64(self.images))
            whole = b.and_(floats, e.i64(-width))
            with e.loop(0, whole, width) as loop:
                self._write_vector(e, line, loop.index, None)
            rest = b.sub(floats, whole)
            with e.when(b.icmp_signed(">", rest, e.i64(0))):
                self._write_vector(e, line, whole, first_lanes_mask(e, rest))

    def _write_vector(self, e: Emitter, line: _PoolRow, first: ir.Value, mask: ir.Value | None) -> None:
        """Emit the code for the vector of an output row that begins at float `first`; store the lanes set in `mask`."""
        byte = e.b.mul(first, e.i64(FLOAT))
        value = pick_positions(e, self._reduce_windows(e, line, e.b.mul(byte, e.i64(self.stride))), self.images)
        if self.kind == "mean":
            value = e.b.fmul(value, e.b.fmul(e.splat(line.load_row_share()), e.load(e.table(11), byte)))
        store(e, value, line.y, byte, mask)

    def _reduce_windows(self, e: Emitter, line: _PoolRow, byte: ir.Value) -> list[ir.Value]:
        """Return `stride` vectors: the maximum or sum of the window at each of several consecutive pixels."""
        b = e.b
        vectors = [FLOAT * e.target.lanes * part for part in range(self.stride)]
        with e.loop(0, line.rows, carried=[e.splat(_initial_value(self.kind))] * self.stride) as row:
            start = e.offset_pointer(line.x, b.add(byte, b.mul(row.index, line.down)))
            row.next = list(row.carried)
            for tap in range(self.taps):
                along = b.mul(line.right, e.i64(tap))
                for part, further in enumerate(vectors):
                    value = e.load(e.offset_pointer(start, along), further)
                    if self.bounded:
                        most = e.load(e.offset_pointer(e.table(11), b.add(byte, along)), further)
                        value = e.select(
                            b.fcmp_ordered(">", most, e.splat(0.0)), value, most
                        )  # NaN outside of the input is replaced too
                    row.next[part] = _add_or_take_larger(e, self.kind, row.next[part], value)
        return row.results


@dataclass(frozen=True)
class Mean(EmittedKernel):
    """Kernel of the mean over all pixels of each channel.

    The sum includes the zeros that are stored between rows, which do not change it.
    """

    images: int

    def write(self, e: Emitter) -> None:
        b, width = e.b, e.target.lanes
        channels, start, floats, place = (e.arg(i) for i in range(4))
        share, xs, ys = (e.table(i) for i in range(4, 7))
        sums = 4 if self.images <= 4 * width else self.images // width
        low, high = e.thread_share(channels)
        with e.loop(low, high) as turn:
            x, y = (e.arena_pointer(e.load_i64(table, b.mul(turn.index, e.i64(8)))) for table in (xs, ys))
            x, y = e.offset_pointer(x, start), e.offset_pointer(y, place)
            zero = e.splat(0.0)
            whole = b.mul(b.udiv(floats, e.i64(sums * width)), e.i64(sums * width))
            with e.loop(0, whole, sums * width, carried=[zero] * sums) as loop:
                here = e.offset_pointer(x, b.mul(loop.index, e.i64(FLOAT)))
                loop.next = [b.fadd(old, e.load(here, FLOAT * width * k)) for k, old in enumerate(loop.carried)]
            rest, here = b.sub(floats, whole), e.offset_pointer(x, b.mul(whole, e.i64(FLOAT)))
            found = [
                b.fadd(old, load(e, here, FLOAT * width * k, first_lanes_mask(e, b.sub(rest, e.i64(k * width)))))
                for k, old in enumerate(loop.results)
            ]
            apart = max(1, self.images // width)
            for part in range(apart):
                value = found[part]
                for other in found[part + apart :: apart]:
                    value = b.fadd(value, other)
                value = sum_positions(e, value, min(self.images, width))
                value = b.fmul(value, splat(e, e.load_f32(share), value.type.count))
                b.store(value, e.offset_pointer(y, FLOAT * width * part), align=FLOAT)
