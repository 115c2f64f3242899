"""Pooling over planes: the largest or the mean value of windows, and the mean of a whole plane.

Only positions inside the picture are looked at, so what a halo holds does not matter. Tables tell for each row and each
column of the output where its window begins and how many of its taps are inside; a vector holds one position's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ticketry.engine.cpu.emit import Emitter
from ticketry.engine.cpu.planes import lanes
from ticketry.engine.cpu.planes.geometry import FLOAT, Planes
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target

Pair = tuple[int, int]
Array = np.ndarray[Any, Any]


def max_pool(
    x: Planes, y: Planes, kernel: Pair, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)
) -> list[Op]:
    """The largest value of each window. All pairs are (rows, columns); the size of ``y`` tells how many windows there are."""
    rows, columns = (_inside(x, y, axis, kernel, stride, padding, dilation) for axis in (0, 1))
    ones = np.ones(max(y.geometry.height, y.geometry.width), np.float32)
    return [_windows("max", x, y, dilation, (rows, columns), (ones, ones))]


def avg_pool(
    x: Planes,
    y: Planes,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> list[Op]:
    """The mean of each window, as of `max_pool`.

    Args:
        count_include_pad: whether the padding counts as zeros rather than not at all.
        divisor: by what each window's sum is divided instead of its size.
    """
    places, shares = [], []
    for axis in (0, 1):
        places.append(_inside(x, y, axis, kernel, stride, padding, (1, 1)))
        size = (x.geometry.height, x.geometry.width)[axis]
        begin = np.arange(len(places[axis])) * stride[axis] - padding[axis]
        padded = np.minimum(begin + kernel[axis], size + padding[axis]) - begin
        count = padded if count_include_pad else places[axis][:, 1]
        if divisor is not None:
            count = np.full(len(begin), divisor if axis == 0 else 1)
        shares.append((1 / count).astype(np.float32))
    return [_windows("mean", x, y, (1, 1), places, shares)]


def global_mean(x: Planes, y: Planes) -> list[Op]:
    """The mean of each plane; ``y`` has one position."""
    g = x.geometry
    _, floats, ((start, _),) = lanes.runs([g], halos=True)
    share = np.array([1 / (g.height * g.width)], np.float32)
    place = y.geometry.position(0, 0) * y.geometry.step
    return [Op(Mean(g.images), (x.channels, start, floats, place, share, x.offsets, y.offsets), "mean")]


def _inside(x: Planes, y: Planes, axis: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Array:
    """For each row (axis 0) or column (1) of the output: the first row or column of its window that is inside, and how
    many of its taps are.
    """
    size, count = ((g.height, g.width)[axis] for g in (x.geometry, y.geometry))
    step = dilation[axis]
    begin = np.arange(count) * stride[axis] - padding[axis]
    first = np.maximum(0, -(begin // step))
    last = np.minimum(kernel[axis], -(-(size - begin) // step))
    return np.stack([begin + first * step, np.maximum(last - first, 0)], 1).astype(np.int64)


def _windows(kind: str, x: Planes, y: Planes, dilation: Pair, places: Sequence[Array], shares: Sequence[Array]) -> Op:
    g, h = x.geometry, y.geometry
    rows, columns = (np.array(place) for place in places)
    rows[:, 0] = (rows[:, 0] * g.row + g.position(0, 0)) * g.step
    columns[:, 0] *= g.step
    taps = (dilation[0] * g.row * g.step, dilation[1] * g.step)
    place = (h.position(0, 0) * h.step, h.row * h.step)
    args: tuple[int | Array, ...] = (
        x.channels,
        h.height,
        h.width,
        *taps,
        *place,
        rows,
        columns,
        *shares,
        x.offsets,
        y.offsets,
    )
    return Op(Windows(kind, g.images), args, f"{kind} pool")


@dataclass(frozen=True)
class Windows:
    """The largest (``"max"``) or mean (``"mean"``) value of windows, one position of the output after the other."""

    kind: str
    images: int

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b = e.b
        channels, height, width, down, right, start, row = (e.arg(i) for i in range(7))
        rows, columns, share_rows, share_columns, xs, ys = (e.table(i) for i in range(7, 13))
        low, high = e.share(b.mul(channels, height))
        with e.loop(low, high) as turn:
            channel, i = b.udiv(turn.index, height), b.urem(turn.index, height)
            x, y = (e.arena(e.load_i64(table, b.mul(channel, e.i64(8)))) for table in (xs, ys))
            entry = b.mul(i, e.i64(16))
            x, many = e.at(x, e.load_i64(rows, entry)), e.load_i64(rows, b.add(entry, e.i64(8)))
            y = e.at(y, b.add(start, b.mul(i, row)))
            share = e.load_f32(share_rows, b.mul(i, e.i64(FLOAT)))
            with e.loop(0, width) as column:
                entry = b.mul(column.index, e.i64(16))
                first = e.at(x, e.load_i64(columns, entry))
                found = self._window(e, first, (many, e.load_i64(columns, b.add(entry, e.i64(8)))), (down, right))
                here = e.at(y, b.mul(column.index, e.i64(FLOAT * self.images)))
                if self.kind == "mean":
                    one = e.load_f32(share_columns, b.mul(column.index, e.i64(FLOAT)))
                    found = [b.fmul(value, lanes.splat(e, b.fmul(share, one), value.type.count)) for value in found]
                for part, value in enumerate(found):
                    b.store(value, e.at(here, FLOAT * target.lanes * part), align=FLOAT)
        return e.text()

    def _window(
        self, e: Emitter, first: ir.Value, counts: tuple[ir.Value, ir.Value], steps: tuple[ir.Value, ir.Value]
    ) -> list[ir.Value]:
        """What the taps inside come to, as many vectors as a position's images take."""
        b = e.b
        kind = lanes.vector(min(self.images, e.target.lanes))
        begin = ir.Constant(kind, [0.0 if self.kind == "mean" else float("-inf")] * kind.count)
        parts = range(self.images // kind.count)
        with e.loop(0, counts[0], carried=[begin for _ in parts]) as row:
            line = e.at(first, b.mul(row.index, steps[0]))
            with e.loop(0, counts[1], carried=row.carried) as tap:
                place = e.at(line, b.mul(tap.index, steps[1]))
                values = [b.load(e.at(place, FLOAT * kind.count * part), typ=kind, align=FLOAT) for part in parts]
                pairs = list(zip(tap.carried, values, strict=True))
                if self.kind == "mean":
                    tap.next = [b.fadd(old, new) for old, new in pairs]
                else:
                    tap.next = [e.select(b.fcmp_ordered(">", old, new), old, new) for old, new in pairs]
            row.next = tap.results
        return row.results


@dataclass(frozen=True)
class Mean:
    """The mean of each plane, whose halo of zeros between the rows is added too."""

    images: int

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b, width = e.b, target.lanes
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
        return e.text()
