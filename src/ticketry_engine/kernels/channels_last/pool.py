"""Pooling: the largest or the mean of a window of pixels. Tables tell each window, so that padding is never read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.channels_last import loops
from ticketry_engine.kernels.channels_last.geometry import Pixels
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array, Pair, Window

_X, _Y, _ROWS, _COLUMNS, _ROW_WEIGHTS, _COLUMN_WEIGHTS = range(6)
"""Arguments of the kernel: begins of the values; int32 [outputs, 2] of each axis: the window's first input and one
behind its last; float32 [outputs]: what a mean weighs each with."""


def max_pool(x: Pixels, y: Pixels, window: Window) -> list[Op]:
    """The largest of each window; how many windows there are (and so torch's ``ceil_mode``) is y's to say."""
    ones = [np.ones(size) for size in _size(y)]
    return [_pool("max", x, y, _inside(x, y, window), ones, window.dilation)]


def avg_pool(x: Pixels, y: Pixels, window: Window, count_include_pad: bool = True) -> list[Op]:
    """The mean of each window, as of `max_pool`.

    Args:
        count_include_pad: whether padding counts as values of 0, or not at all.
    """
    tables = _inside(x, y, window)
    counts = [table[:, 1] - table[:, 0] for table in tables]
    if count_include_pad:
        counts = [axis.padded(outputs) for axis, outputs in zip(window.axes(x.geometry), _size(y), strict=True)]
    return [_pool("mean", x, y, tables, [1 / np.maximum(count, 1) for count in counts], (1, 1))]


def global_mean(x: Pixels, y: Pixels) -> list[Op]:
    """The mean of all pixels; y has one."""
    if _size(y) != (1, 1):
        raise EngineError("the mean of all pixels is one pixel")
    tables = [np.array([[0, extent]]) for extent in _size(x)]
    return [_pool("mean", x, y, tables, [1 / table[:, 1] for table in tables], (1, 1))]


def _size(value: Pixels) -> Pair:
    return value.geometry.height, value.geometry.width


def _inside(x: Pixels, y: Pixels, window: Window) -> list[Array]:
    """Of each window the first input that is none of the padding, and a bound behind the last: for rows and columns.

    Raises:
        EngineError: a window that begins behind the last input.
    """
    tables = []
    for axis, outputs in zip(window.axes(x.geometry), _size(y), strict=True):
        first = axis.begins(outputs)
        if first[-1] >= axis.extent:
            raise EngineError(
                f"{outputs} pooling windows, the last of which begins behind the last of {axis.extent} inputs"
            )
        last = np.minimum(first + axis.dilation * (axis.size - 1) + 1, axis.extent)
        first += -(-np.maximum(-first, 0) // axis.dilation) * axis.dilation
        tables.append(np.stack([first, last], axis=1))
    return tables


def _pool(operation: str, x: Pixels, y: Pixels, tables: list[Array], weights: list[Array], steps: Pair) -> Op:
    if x.channels != y.channels:
        raise EngineError(f"pooling {x.channels} channels into {y.channels}")
    kernel = Pool(operation, *_size(y), y.channels, Strides.of(x), Strides.of(y), steps)
    ranges = [table.astype(np.int32) for table in tables]
    return Op(kernel, (loops.begin(x), loops.begin(y), *ranges, *(each.astype(np.float32) for each in weights)))


@dataclass(frozen=True)
class Pool(Written):
    """The largest or the weighted sum of windows."""

    operation: str
    """"max" or "mean"."""
    height: int
    width: int
    channels: int
    x: Strides
    y: Strides
    steps: tuple[int, int]
    """From one input of a window to the next, along rows and columns."""

    def write(self, e: Emitter) -> None:
        # An output's row tells nothing of the input's, so the input's pointer stays at its image.
        values = [(_X, Strides(self.x.image, 0, 0)), (_Y, self.y)]
        with loops.pixels(e, self.height, self.width, values) as (row, column, (x, y)):
            begins = [e.at(e.table(arg), e.b.mul(at, e.i64(8))) for arg, at in ((_ROWS, row), (_COLUMNS, column))]
            ranges = [(e.load_i32(begin), e.load_i32(begin, 4)) for begin in begins]
            down = e.load_f32(e.table(_ROW_WEIGHTS), e.b.mul(row, e.i64(4)))
            right = e.load_f32(e.table(_COLUMN_WEIGHTS), e.b.mul(column, e.i64(4)))
            weight = e.splat(e.b.fmul(down, right))
            loops.vectors(e, self.channels, 4, lambda at, counts: self._window(e, x, y, ranges, weight, at, counts))

    def _window(
        self,
        e: Emitter,
        x: ir.Value,
        y: ir.Value,
        ranges: list[tuple[ir.Value, ir.Value]],
        weight: ir.Value,
        byte: ir.Value,
        counts: list[int],
    ) -> None:
        start = [e.splat(float("-inf") if self.operation == "max" else 0.0)] * len(counts)
        (top, bottom), (left, right) = ranges
        with e.loop(top, bottom, self.steps[0], carried=start) as row:
            line = e.at(x, e.b.mul(row.index, e.i64(self.x.row)))
            with e.loop(left, right, self.steps[1], carried=row.carried) as column:
                place = e.at(line, e.b.mul(column.index, e.i64(self.x.pixel)))
                for number, (count, value) in enumerate(zip(counts, column.carried, strict=True)):
                    more = loops.get(e, place, loops.next_vector(e, byte, number), count, self.x.item)
                    column.next.append(self._combine(e, value, more))
            row.next = column.results
        for number, (count, value) in enumerate(zip(counts, row.results, strict=True)):
            result = value if self.operation == "max" else e.b.fmul(value, weight)
            loops.put(e, result, y, loops.next_vector(e, byte, number), count, self.y.item)

    def _combine(self, e: Emitter, value: ir.Value, more: ir.Value) -> ir.Value:
        if self.operation == "mean":
            return e.b.fadd(value, more)
        # Like torch: NaN is larger than anything.
        larger = e.b.or_(e.b.fcmp_ordered(">", more, value), e.b.fcmp_unordered("uno", more, more))
        return e.select(larger, more, value)
