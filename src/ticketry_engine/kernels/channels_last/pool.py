"""Kernel of max and average pooling.

    y[row, column, c] = max or weighted sum of x[r, q, c]  for r in rows[row], q in columns[column]

Two tables, int32 [outputs, 2], hold the first and the end of the input rows (or columns) that each output row (or
column) reads. Padding is not contained in these ranges, so that it is never read and needs no test. Two tables,
float32 [outputs], hold factors for means. A window is reduced for four vectors of channels at once, in registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.channels_last.geometry import (
    ChannelsLastValue,
    Strides,
    first_pixel_offset,
    load_vector,
    loop_pixels,
    loop_vectors,
    store_vector,
    vector_offset,
)
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array, Pair, Window

_X, _Y, _ROWS, _COLUMNS, _ROW_WEIGHTS, _COLUMN_WEIGHTS = range(6)
"""Positions of the arguments: arena offsets of the first pixels of x and y; for each axis a table of the windows, int32
[outputs, 2]: first input and end; for each axis a table of the factors of means, float32 [outputs]."""


def max_pool(x: ChannelsLastValue, y: ChannelsLastValue, window: Window) -> list[Op]:
    """Return the operations of max pooling; there are as many windows as pixels of y."""
    ones = [np.ones(size) for size in _height_and_width(y)]
    return [_build_pool("max", x, y, _window_ranges(x, y, window), ones, window.dilation)]


def avg_pool(x: ChannelsLastValue, y: ChannelsLastValue, window: Window, count_include_pad: bool = True) -> list[Op]:
    """Return the operations of average pooling; if `count_include_pad`, padding counts as zeros."""
    tables = _window_ranges(x, y, window)
    counts = [table[:, 1] - table[:, 0] for table in tables]
    if count_include_pad:
        counts = [
            axis.count_padded_taps(outputs)
            for axis, outputs in zip(window.axes(x.geometry), _height_and_width(y), strict=True)
        ]
    return [_build_pool("mean", x, y, tables, [1 / np.maximum(count, 1) for count in counts], (1, 1))]


def global_mean(x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return the operations of the mean over all pixels of each channel; y has one pixel."""
    if _height_and_width(y) != (1, 1):
        raise EngineError("the result of a mean over all pixels has to have one pixel")
    tables = [np.array([[0, extent]]) for extent in _height_and_width(x)]
    return [_build_pool("mean", x, y, tables, [1 / table[:, 1] for table in tables], (1, 1))]


def _height_and_width(value: ChannelsLastValue) -> Pair:
    return value.geometry.height, value.geometry.width


def _window_ranges(x: ChannelsLastValue, y: ChannelsLastValue, window: Window) -> list[Array]:
    """Return, for rows and for columns, an array [windows, 2] of the first input that a window reads, and the end."""
    tables = []
    for axis, outputs in zip(window.axes(x.geometry), _height_and_width(y), strict=True):
        first = axis.first_inputs(outputs)
        if first[-1] >= axis.extent:
            raise EngineError(f"the last of {outputs} pooling windows begins after the last of {axis.extent} inputs")
        last = np.minimum(first + axis.dilation * (axis.size - 1) + 1, axis.extent)
        first += -(-np.maximum(-first, 0) // axis.dilation) * axis.dilation
        tables.append(np.stack([first, last], axis=1))
    return tables


def _build_pool(
    operation: str, x: ChannelsLastValue, y: ChannelsLastValue, tables: list[Array], weights: list[Array], steps: Pair
) -> Op:
    if x.channels != y.channels:
        raise EngineError(f"pooling {x.channels} channels into {y.channels}")
    kernel = ChannelsLastPool(
        operation, *_height_and_width(y), y.channels, Strides.from_value(x), Strides.from_value(y), steps
    )
    ranges = [table.astype(np.int32) for table in tables]
    return Op(
        kernel, (first_pixel_offset(x), first_pixel_offset(y), *ranges, *(each.astype(np.float32) for each in weights))
    )


@dataclass(frozen=True)
class ChannelsLastPool(EmittedKernel):
    """Kernel of max or average pooling."""

    title: ClassVar[str] = "pool"

    operation: str
    """"max" or "mean"."""
    height: int
    width: int
    channels: int
    x: Strides
    y: Strides
    steps: tuple[int, int]
    """Dilation: the distance between the inputs of a window, in rows and in columns."""

    def write(self, e: Emitter) -> None:
        # The window's rows come from a table, so the input's pointer stays at the start of its image.
        values = [(_X, Strides(self.x.image, 0, 0)), (_Y, self.y)]
        with loop_pixels(e, self.height, self.width, values) as (row, column, (x, y)):
            begins = [
                e.offset_pointer(e.table(arg), e.b.mul(at, e.i64(8))) for arg, at in ((_ROWS, row), (_COLUMNS, column))
            ]
            (top, bottom), (left, right) = [(e.load_i32(begin), e.load_i32(begin, 4)) for begin in begins]
            row_weight = e.load_f32(e.table(_ROW_WEIGHTS), e.b.mul(row, e.i64(4)))
            column_weight = e.load_f32(e.table(_COLUMN_WEIGHTS), e.b.mul(column, e.i64(4)))
            weight = e.splat(e.b.fmul(row_weight, column_weight))
            for byte, counts in loop_vectors(e, self.channels, 4):
                start = [e.splat(float("-inf") if self.operation == "max" else 0.0)] * len(counts)
                with e.loop(top, bottom, self.steps[0], carried=start) as taps_down:
                    line = e.offset_pointer(x, e.b.mul(taps_down.index, e.i64(self.x.row)))
                    with e.loop(left, right, self.steps[1], carried=taps_down.carried) as taps:
                        place = e.offset_pointer(line, e.b.mul(taps.index, e.i64(self.x.pixel)))
                        for number, (count, value) in enumerate(zip(counts, taps.carried, strict=True)):
                            more = load_vector(e, place, vector_offset(e, byte, number), count, self.x.item)
                            taps.next.append(self._combine_values(e, value, more))
                    taps_down.next = taps.results
                for number, (count, value) in enumerate(zip(counts, taps_down.results, strict=True)):
                    result = value if self.operation == "max" else e.b.fmul(value, weight)
                    store_vector(e, result, y, vector_offset(e, byte, number), count, self.y.item)

    def _combine_values(self, e: Emitter, value: ir.Value, more: ir.Value) -> ir.Value:
        if self.operation == "mean":
            return e.b.fadd(value, more)
        # NaN counts as larger than any number, as in torch.
        larger = e.b.or_(e.b.fcmp_ordered(">", more, value), e.b.fcmp_unordered("uno", more, more))
        return e.select(larger, more, value)
