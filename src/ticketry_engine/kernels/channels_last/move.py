"""Copies between tensors outside the arena and channels-last values inside the arena: `load_tensor`, `store_tensor`.

    value[image, y, x, c] = tensor[image * s0 + c * s1 + y * s2 + x * s3]      (load; `store` is the reverse)

The tensor may have any strides. If its channels are innermost, a copy is a loop over whole vectors. If the pixels of a
row are contiguous (NCHW), a square block of channels and pixels is loaded by rows, transposed in registers and stored
by columns, so that loads and stores are whole vectors.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels import bfloat
from ticketry_engine.kernels.channels_last import geometry
from ticketry_engine.kernels.channels_last.geometry import (
    FLOAT,
    ChannelsLastValue,
    Strides,
    first_pixel_offset,
    loop_rows,
)
from ticketry_engine.kernels.copies import Copies, plan_copies
from ticketry_engine.kernels.emitter import I64, EmittedKernel, Emitter, StateSlot
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array


class TensorOrder(enum.Enum):
    """Says which numbers of a tensor are contiguous in memory, which decides how a kernel copies the tensor."""

    CHANNELS = "the channels of a pixel"
    PLANES = "the pixels of a row"
    STRIDED = "none"
    CHANNEL_PLANES = "any; the value itself has one plane for each channel"


class MoveArg(enum.IntEnum):
    """Indices of the arguments of a `Move` kernel."""

    VALUE = 0
    """Arena offset in bytes of pixel (0, 0) of the value's first image."""
    NUMBER = 1
    """Index of the tensor among the tensors given to `Program.run`, or the tensor as a table (`Move.is_table`)."""
    IMAGE = 2
    """Bytes in the tensor from one image to the next; `ROW` and `COLUMN` are those between rows and columns."""
    ROW = 3
    COLUMN = 4
    CHANNELS = 5
    """int64 [channels]: bytes in the tensor from a pixel's channel 0 to each of its channels."""


def load_tensor(number: int, strides: Sequence[int], y: ChannelsLastValue) -> list[Op]:
    """Return the operations that copy a float32 tensor into the value y.

    `number` is the index of the tensor among the tensors given to `Program.run`. `strides` are the tensor's strides in
    elements: image, channel, row, column.
    """
    return [_build_move(number, strides, y, to_tensor=False)]


def store_tensor(number: int, strides: Sequence[int], x: ChannelsLastValue) -> list[Op]:
    """Return the operations that copy the value x into a float32 tensor; `number` and `strides` are as in `load`."""
    if x.geometry.channel_stride:
        raise EngineError("a value with one plane for each channel can only be read by convolutions")
    return [_build_move(number, strides, x, to_tensor=True)]


def store_constant(values: Array, y: ChannelsLastValue) -> list[Op]:
    """Return the operations that fill every image of y with `values`, float32 [channels, height, width]."""
    g = y.geometry
    table = np.ascontiguousarray(values.transpose(1, 2, 0), np.float32)
    kernel = Move(g.height, g.width, y.channels, Strides.from_value(y), TensorOrder.CHANNELS, False, True)
    pixel = FLOAT * y.channels
    return [Op(kernel, (first_pixel_offset(y), table, 0, g.width * pixel, pixel, np.zeros(0, np.int64)))]


def _build_move(number: int, strides: Sequence[int], value: ChannelsLastValue, to_tensor: bool) -> Op:
    image, channel, row, column = (FLOAT * int(stride) for stride in strides)
    g = value.geometry
    if g.channel_stride:
        order = TensorOrder.CHANNEL_PLANES
    elif value.channels == 1 or channel == FLOAT:
        order = TensorOrder.CHANNELS
    elif column == FLOAT and g.width > 1:
        order = TensorOrder.PLANES
    else:
        order = TensorOrder.STRIDED
    table = np.arange(value.channels, dtype=np.int64) * (g.item if order is TensorOrder.CHANNELS else channel)
    rows = order is TensorOrder.CHANNEL_PLANES and column == FLOAT
    kernel = Move(
        g.height,
        g.width,
        value.channels,
        Strides.from_value(value),
        order,
        to_tensor,
        channel_stride=g.channel_stride,
        contiguous_rows=rows,
    )
    return Op(kernel, (first_pixel_offset(value), number, image, row, column, table))


@dataclass(frozen=True)
class Move(EmittedKernel):
    """Kernel that copies a tensor into a value, or a value into a tensor; `MoveArg` lists its arguments."""

    height: int
    width: int
    channels: int
    value: Strides
    order: TensorOrder
    to_tensor: bool
    is_table: bool = False
    """Whether the tensor is a table of the operation, passed as the argument NUMBER."""
    channel_stride: int = 0
    """Bytes from one channel plane of the value to the next; 0 if the value's channels are innermost."""
    contiguous_rows: bool = False
    """Whether the pixels of a row are contiguous in the tensor; used only for values with channel planes."""

    def write(self, e: Emitter) -> None:
        outside = e.table(MoveArg.NUMBER) if self.is_table else e.tensor_pointer(e.arg(MoveArg.NUMBER))
        with loop_rows(e, self.height, [(MoveArg.VALUE, self.value)]) as (image, y, (inside,)):
            number = e.b.add(image, e.state(StateSlot.FIRST))
            there = e.b.add(e.b.mul(number, e.arg(MoveArg.IMAGE)), e.b.mul(y, e.arg(MoveArg.ROW)))
            write = self._move_channel_planes if self.order is TensorOrder.CHANNEL_PLANES else self._move_row
            write(e, inside, e.offset_pointer(outside, there))

    def _move_channel_planes(self, e: Emitter, inside: ir.Value, outside: ir.Value) -> None:
        """Emit the copy of a row of pixels into a value in which each channel is contiguous, channel by channel."""
        with e.loop(0, self.channels) as channel:
            near = e.offset_pointer(inside, e.b.mul(channel.index, e.i64(self.channel_stride)))
            far = e.offset_pointer(
                outside, e.load_i64(e.offset_pointer(e.table(MoveArg.CHANNELS), e.b.mul(channel.index, e.i64(8))))
            )
            for column, count in _loop_over_parts(e, self.width, e.target.lanes):
                place = e.offset_pointer(near, e.b.mul(column, e.i64(FLOAT)))
                there = e.offset_pointer(far, e.b.mul(column, e.arg(MoveArg.COLUMN)))
                geometry.store_lanes(e, self._load_pixels(e, there, count), place, count)

    def _load_pixels(self, e: Emitter, there: ir.Value, count: int) -> ir.Value:
        """Load `count` pixels of one channel from the tensor as a vector."""
        if self.contiguous_rows:
            return geometry.load_lanes(e, there, count)
        steps = ir.Constant(ir.VectorType(I64, e.target.lanes), list(range(e.target.lanes)))
        offsets = e.b.mul(steps, e.splat(e.arg(MoveArg.COLUMN)))
        return geometry.gather(e, geometry.lane_addresses(e, there, offsets), geometry.first_lanes_mask(e, count))

    def _move_row(self, e: Emitter, inside: ir.Value, outside: ir.Value) -> None:
        step = e.target.lanes if self.order is TensorOrder.PLANES else 1
        for column, pixels in _loop_over_parts(e, self.width, step):
            place = e.offset_pointer(inside, e.b.mul(column, e.i64(self.value.pixel)))
            there = e.offset_pointer(outside, e.b.mul(column, e.arg(MoveArg.COLUMN)))
            for channel, channels in _loop_over_parts(e, self.channels, e.target.lanes):
                if self.order is TensorOrder.PLANES:
                    self._move_transposed_block(e, channel, channels, pixels, place, there)
                else:
                    self._move_channels(e, channel, channels, place, there)

    def _move_channels(self, e: Emitter, first: ir.Value, count: int, inside: ir.Value, outside: ir.Value) -> None:
        """Emit the copy of `count` channels of one pixel, at most a vector, from channel `first` on."""
        near, far = (
            e.offset_pointer(base, e.b.mul(first, e.i64(size)))
            for base, size in ((inside, self.value.item), (outside, FLOAT))
        )
        mask = geometry.first_lanes_mask(e, count)
        if self.order is TensorOrder.STRIDED:
            entry = e.offset_pointer(e.table(MoveArg.CHANNELS), e.b.mul(first, e.i64(8)))
            # The offsets after the last channel are undefined.
            offsets = e.b.load(entry, typ=ir.VectorType(I64, e.target.lanes), align=8)
            pointers = geometry.lane_addresses(e, outside, offsets)
            if self.to_tensor:
                geometry.scatter(e, bfloat.load(e, near, 0, self.value.item), pointers, mask)
            else:
                geometry.store_lanes(e, geometry.gather(e, pointers, mask), near, count, self.value.item)
        elif self.to_tensor:
            geometry.store_lanes(e, bfloat.load(e, near, 0, self.value.item), far, count)
        else:
            geometry.store_lanes(e, geometry.load_lanes(e, far, count), near, count, self.value.item)

    def _move_transposed_block(
        self, e: Emitter, first: ir.Value, channels: int, pixels: int, inside: ir.Value, outside: ir.Value
    ) -> None:
        """Emit the copy of a block of channels and pixels, at most a vector of each, with a transpose in registers."""
        entry = e.offset_pointer(e.table(MoveArg.CHANNELS), e.b.mul(first, e.i64(8)))
        near = e.offset_pointer(inside, e.b.mul(first, e.i64(self.value.item)))
        rows = [e.offset_pointer(outside, e.load_i64(entry, 8 * channel)) for channel in range(channels)]
        columns = [e.offset_pointer(near, pixel * self.value.pixel) for pixel in range(pixels)]
        empty = [e.splat(0.0)] * e.target.lanes
        if self.to_tensor:
            pixels_read = [bfloat.load(e, column, 0, self.value.item) for column in columns]
            turned = geometry.transpose(e, (pixels_read + empty)[: e.target.lanes])
            for vector, pointer in zip(turned, rows, strict=False):
                geometry.store_lanes(e, vector, pointer, pixels)
        else:
            turned = geometry.transpose(
                e, ([geometry.load_lanes(e, row, pixels) for row in rows] + empty)[: e.target.lanes]
            )
            for vector, pointer in zip(turned, columns, strict=False):
                geometry.store_lanes(e, vector, pointer, channels, self.value.item)


def _loop_over_parts(e: Emitter, count: int, step: int) -> Iterator[tuple[ir.Value, int]]:
    """Emit loops over `count` items in parts of `step` items and a smaller rest; yield (first item, size) of a part."""
    whole = count // step * step
    for first, last, size in ((0, whole, step), (whole, count, count - whole)):
        if first < last:
            with e.loop(first, last, step) as turn:
                yield turn.index, size


# -- gather ------------------------------------------------------------------------------------------------------------

#     y[channel, position] = sources[number][channel', position']   or 0
#
# Elements that are contiguous in source and destination are joined to runs (`kernels.copies`). A run is copied by
# vectors, so a gather costs about as much as a copy if whole pixels move.


def gather_elements(sources: Sequence[ChannelsLastValue], y: ChannelsLastValue, where: tuple[Array, Array]) -> list[Op]:
    """Return the operations that fill y with elements of `sources` and with zeros.

    `where` has two arrays [channels of y, pixels of y], with pixels row by row. The first holds the index of each
    element's source, or -1 for a zero. The second holds the number of the element in this source: channel * pixels +
    pixel.
    """
    source_index, element = where
    g = y.geometry
    places = [_element_offsets(value) for value in sources]
    goals = _element_offsets(y).reshape(source_index.shape).T
    found = np.zeros(source_index.shape, np.int64)
    for number, table in enumerate(places):
        inside = source_index == number
        found[inside] = table.reshape(-1)[element[inside]]
    ops = []
    for number, starts, runs, length in plan_copies(goals, found.T, source_index.T, g.item):
        source = sources[number] if number >= 0 else y
        kernel = Copies(length, g.item, True, number < 0)
        begins = (first_pixel_offset(source), first_pixel_offset(y), source.geometry.image, g.image)
        ops.append(Op(kernel, (*begins, len(starts), len(runs), starts, runs)))
    return ops


def _element_offsets(value: ChannelsLastValue) -> Array:
    """Return the byte offsets [channels, pixels] of an image's elements from its pixel (0, 0)."""
    g = value.geometry
    rows, columns = np.arange(g.height) * g.row_bytes, np.arange(g.width) * g.pixel
    positions = (rows[:, None] + columns).reshape(-1)
    table: Array = np.arange(value.channels)[:, None] * g.item + positions
    return table
