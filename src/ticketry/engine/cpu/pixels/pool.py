"""Pooling: the largest or the mean of a window of pixels. Tables tell each window, so that padding is never read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ticketry.engine.cpu.emit import Emitter
from ticketry.engine.cpu.pixels import walk
from ticketry.engine.cpu.pixels.geometry import Pixels
from ticketry.engine.cpu.pixels.tiles import Window
from ticketry.engine.cpu.pixels.walk import Strides
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target
from ticketry.errors import EngineError

Array = np.ndarray[Any, Any]
Pair = int | tuple[int, int]

_X, _Y, _ROWS, _COLUMNS, _ROW_WEIGHTS, _COLUMN_WEIGHTS = range(6)
"""Arguments of the kernel: begins of the values; int32 [outputs, 2] of each axis: the window's first input and one
behind its last; float32 [outputs]: what a mean weighs each with."""


def max_pool(
    x: Pixels,
    y: Pixels,
    kernel: Pair,
    *,
    target: Target,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    label: str = "",
) -> list[Op]:
    """The largest of each window; how many windows there are (and so torch's ``ceil_mode``) is y's to say."""
    stride = kernel if stride is None else stride
    axes = _axes(x, kernel, stride, padding, dilation)
    sizes = (y.geometry.height, y.geometry.width)
    tables = [_inside(axis, outputs) for axis, outputs in zip(axes, sizes, strict=True)]
    return _pool("max", x, y, tables, [np.ones(size) for size in sizes], (axes[0].dilation, axes[1].dilation), label)


def avg_pool(
    x: Pixels,
    y: Pixels,
    kernel: Pair,
    *,
    target: Target,
    stride: Pair | None = None,
    padding: Pair = 0,
    count_include_pad: bool = True,
    divisor: int | None = None,
    label: str = "",
) -> list[Op]:
    """The mean of each window; how many windows there are (and so torch's ``ceil_mode``) is y's to say.

    Args:
        count_include_pad: whether padding counts as values of 0, or not at all.
        divisor: what sums are divided by instead of the window's size.
    """
    stride = kernel if stride is None else stride
    axes = _axes(x, kernel, stride, padding, 1)
    sizes = (y.geometry.height, y.geometry.width)
    tables = [_inside(axis, outputs) for axis, outputs in zip(axes, sizes, strict=True)]
    counts = [table[:, 1] - table[:, 0] for table in tables]
    if count_include_pad:
        counts = [_padded_counts(axis, outputs) for axis, outputs in zip(axes, sizes, strict=True)]
    if divisor is not None:
        counts = [np.full(sizes[0], divisor), np.ones(sizes[1])]
    return _pool("mean", x, y, tables, [1 / np.maximum(count, 1) for count in counts], (1, 1), label)


def adaptive_avg_pool(x: Pixels, y: Pixels, *, target: Target, label: str = "") -> list[Op]:
    """Means of y's number of windows that divide the input, overlapping where it cannot be divided evenly."""
    tables = []
    for inputs, outputs in ((x.geometry.height, y.geometry.height), (x.geometry.width, y.geometry.width)):
        at = np.arange(outputs)
        tables.append(np.stack([at * inputs // outputs, -(-(at + 1) * inputs // outputs)], axis=1))
    weights = [1 / (table[:, 1] - table[:, 0]) for table in tables]
    return _pool("mean", x, y, tables, weights, (1, 1), label)


def global_mean(x: Pixels, y: Pixels, *, target: Target, label: str = "") -> list[Op]:
    """The mean of all pixels; y has one."""
    if (y.geometry.height, y.geometry.width) != (1, 1):
        raise EngineError("the mean of all pixels is one pixel")
    return adaptive_avg_pool(x, y, target=target, label=label)


def _axes(x: Pixels, *pairs: Pair) -> list[Window]:
    both = [(value, value) if isinstance(value, int) else value for value in pairs]
    sizes = (x.geometry.height, x.geometry.width)
    return [Window(sizes[axis], *(value[axis] for value in both)) for axis in range(2)]


def _inside(axis: Window, outputs: int) -> Array:
    """Of each window the first input that is none of the padding, and a bound behind the last.

    Raises:
        EngineError: a window that begins behind the last input.
    """
    if (outputs - 1) * axis.stride - axis.padding >= axis.extent:
        raise EngineError(
            f"{outputs} pooling windows, the last of which begins behind the last of {axis.extent} inputs"
        )
    first = np.arange(outputs) * axis.stride - axis.padding
    last = np.minimum(first + axis.dilation * (axis.size - 1) + 1, axis.extent)
    first += -(-np.maximum(-first, 0) // axis.dilation) * axis.dilation
    return np.stack([first, last], axis=1)


def _padded_counts(axis: Window, outputs: int) -> Array:
    """Taps of each window that lie on inputs or padding."""
    first = np.arange(outputs) * axis.stride - axis.padding
    counts: Array = np.minimum(first + axis.size, axis.extent + axis.padding) - first
    return counts


def _pool(
    operation: str,
    x: Pixels,
    y: Pixels,
    tables: list[Array],
    weights: list[Array],
    steps: tuple[int, int],
    label: str,
) -> list[Op]:
    if x.channels != y.channels:
        raise EngineError(f"pooling {x.channels} channels into {y.channels}")
    kernel = Pool(
        operation,
        y.geometry.height,
        y.geometry.width,
        y.channels,
        Strides.of(x),
        Strides.of(y),
        steps,
    )
    ranges = [table.astype(np.int32) for table in tables]
    return [Op(kernel, (walk.begin(x), walk.begin(y), *ranges, *(each.astype(np.float32) for each in weights)), label)]


@dataclass(frozen=True)
class Pool:
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

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        # An output's row tells nothing of the input's, so the input's pointer stays at its image.
        values = [(_X, Strides(self.x.image, 0, 0)), (_Y, self.y)]
        with (
            walk.rows(e, self.height, values) as (_, row, starts),
            walk.columns(e, self.width, starts, values) as (column, (x, y)),
        ):
            row_range = e.at(e.table(_ROWS), e.b.mul(row, e.i64(8)))
            column_range = e.at(e.table(_COLUMNS), e.b.mul(column, e.i64(8)))
            ranges = (
                (e.load_i32(row_range), e.load_i32(row_range, 4)),
                (
                    e.load_i32(column_range),
                    e.load_i32(column_range, 4),
                ),
            )
            down = e.load_f32(e.table(_ROW_WEIGHTS), e.b.mul(row, e.i64(4)))
            right = e.load_f32(e.table(_COLUMN_WEIGHTS), e.b.mul(column, e.i64(4)))
            weight = e.splat(e.b.fmul(down, right))
            walk.vectors(e, self.channels, 4, lambda at, counts: self._window(e, x, y, ranges, weight, at, counts))
        return e.text()

    def _window(
        self,
        e: Emitter,
        x: ir.Value,
        y: ir.Value,
        ranges: tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]],
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
                    more = walk.get(e, place, walk.next_vector(e, byte, number), count, self.x.item)
                    column.next.append(self._combine(e, value, more))
            row.next = column.results
        for number, (count, value) in enumerate(zip(counts, row.results, strict=True)):
            result = value if self.operation == "max" else e.b.fmul(value, weight)
            walk.put(e, result, y, walk.next_vector(e, byte, number), count, self.y.item)

    def _combine(self, e: Emitter, value: ir.Value, more: ir.Value) -> ir.Value:
        if self.operation == "mean":
            return e.b.fadd(value, more)
        # Like torch: NaN is larger than anything.
        larger = e.b.or_(e.b.fcmp_ordered(">", more, value), e.b.fcmp_unordered("uno", more, more))
        return e.select(larger, more, value)
