"""Between tensors outside and values of the engine: `load` and `store`."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.channels_last import lanes as lane
from ticketry_engine.kernels.channels_last import loops, number_formats
from ticketry_engine.kernels.channels_last.geometry import FLOAT, Pixels
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.emitter import I64, Emitter, State, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array


class Way(enum.Enum):
    """How the numbers of the tensor lie."""

    CHANNELS = "a pixel's channels side by side"
    PLANES = "a row's pixels side by side"
    APART = "anyhow"
    ALIKE = "anyhow, and the value's channels lie apart as well"


class Arg(enum.IntEnum):
    """Arguments of the kernel."""

    VALUE = 0
    """Byte of the arena of the first image's first pixel (not the halo's)."""
    NUMBER = 1
    """Of the tensor."""
    IMAGE = 2
    """Bytes from one image of the tensor to the next, then rows, then columns."""
    ROW = 3
    COLUMN = 4
    CHANNELS = 5
    """int64 [channels]: byte at which each channel of the value lies in a pixel of the tensor."""


def load(number: int, strides: Sequence[int], y: Pixels) -> list[Op]:
    """Fill a value from a float32 tensor outside.

    Args:
        number: which of the tensors that `Program.run` gets.
        strides: the tensor's, in elements: image, channel, row, column.
        y: the value.
    """
    return [_move(number, strides, y, out=False)]


def store(number: int, strides: Sequence[int], x: Pixels) -> list[Op]:
    """Write a value, whose pixels hold their channels, to a float32 tensor outside; arguments as those of `load`."""
    if x.geometry.apart:
        raise EngineError("channels that lie apart are read by convolutions alone")
    return [_move(number, strides, x, out=True)]


def constant(values: Array, y: Pixels) -> list[Op]:
    """Fill a value, for each image alike, with float32 [channels, height, width]."""
    g = y.geometry
    table = np.ascontiguousarray(values.transpose(1, 2, 0), np.float32)
    kernel = Move(g.height, g.width, y.channels, Strides.of(y), Way.CHANNELS, False, True)
    pixel = FLOAT * y.channels
    return [Op(kernel, (loops.begin(y), table, 0, g.width * pixel, pixel, np.zeros(0, np.int64)))]


def _move(number: int, strides: Sequence[int], value: Pixels, out: bool) -> Op:
    image, channel, row, column = (FLOAT * int(stride) for stride in strides)
    g = value.geometry
    if g.apart:
        way = Way.ALIKE
    elif value.channels == 1 or channel == FLOAT:
        way = Way.CHANNELS
    elif column == FLOAT and g.width > 1:
        way = Way.PLANES
    else:
        way = Way.APART
    table = np.arange(value.channels, dtype=np.int64) * (g.item if way is Way.CHANNELS else channel)
    rows = way is Way.ALIKE and column == FLOAT
    kernel = Move(g.height, g.width, value.channels, Strides.of(value), way, out, apart=g.apart, rows=rows)
    return Op(kernel, (loops.begin(value), number, image, row, column, table))


@dataclass(frozen=True)
class Move(Written):
    """Copies between a tensor outside and a value; arguments are listed in `Arg`."""

    height: int
    width: int
    channels: int
    value: Strides
    way: Way
    out: bool
    held: bool = False
    """Whether the tensor is a table, at the place of the number."""
    apart: int = 0
    """Bytes from a channel of the value to the next, where they lie apart."""
    rows: bool = False
    """Whether a channel's pixels lie side by side in the tensor; of values whose channels lie apart."""

    def write(self, e: Emitter) -> None:
        outside = e.table(Arg.NUMBER) if self.held else e.external(e.arg(Arg.NUMBER))
        with loops.rows(e, self.height, [(Arg.VALUE, self.value)]) as (image, y, (inside,)):
            number = e.b.add(image, e.state(State.FIRST))
            there = e.b.add(e.b.mul(number, e.arg(Arg.IMAGE)), e.b.mul(y, e.arg(Arg.ROW)))
            write = self._rows_of_channels if self.way is Way.ALIKE else self._row
            write(e, inside, e.at(outside, there))

    def _rows_of_channels(self, e: Emitter, inside: ir.Value, outside: ir.Value) -> None:
        """A row's pixels, channel by channel."""
        lanes = e.target.lanes
        with e.loop(0, self.channels) as channel:
            near = e.at(inside, e.b.mul(channel.index, e.i64(self.apart)))
            far = e.at(outside, e.load_i64(e.at(e.table(Arg.CHANNELS), e.b.mul(channel.index, e.i64(8)))))
            for first, last, count in _chunks(self.width, lanes):
                with e.loop(first, last, lanes) as column:
                    place = e.at(near, e.b.mul(column.index, e.i64(FLOAT)))
                    there = e.at(far, e.b.mul(column.index, e.arg(Arg.COLUMN)))
                    number_formats.put(e, self._pixels(e, there, count), place, count)

    def _pixels(self, e: Emitter, there: ir.Value, count: int) -> ir.Value:
        """Up to a vector of one channel's pixels of the tensor."""
        if self.rows:
            return number_formats.get(e, there, count)
        steps = ir.Constant(ir.VectorType(I64, e.target.lanes), list(range(e.target.lanes)))
        offsets = e.b.mul(steps, e.splat(e.arg(Arg.COLUMN)))
        return lane.gather(e, lane.addresses(e, there, offsets), lane.first_lanes(e, count))

    def _row(self, e: Emitter, inside: ir.Value, outside: ir.Value) -> None:
        lanes = e.target.lanes
        step = lanes if self.way is Way.PLANES else 1
        for first, last, pixels in _chunks(self.width, step):
            with e.loop(first, last, step) as column:
                place = e.at(inside, e.b.mul(column.index, e.i64(self.value.pixel)))
                there = e.at(outside, e.b.mul(column.index, e.arg(Arg.COLUMN)))
                for low, high, channels in _chunks(self.channels, lanes):
                    with e.loop(low, high, lanes) as channel:
                        if self.way is Way.PLANES:
                            self._square(e, channel.index, channels, pixels, place, there)
                        else:
                            self._some_channels(e, channel.index, channels, place, there)

    def _some_channels(self, e: Emitter, first: ir.Value, count: int, inside: ir.Value, outside: ir.Value) -> None:
        """Up to a vector of one pixel's channels."""
        near, far = (
            e.at(base, e.b.mul(first, e.i64(size))) for base, size in ((inside, self.value.item), (outside, FLOAT))
        )
        mask = lane.first_lanes(e, count)
        if self.way is Way.APART:
            pointers = lane.addresses(e, outside, self._offsets(e, first))
            if self.out:
                lane.scatter(e, number_formats.load(e, near, 0, self.value.item), pointers, mask)
            else:
                number_formats.put(e, lane.gather(e, pointers, mask), near, count, self.value.item)
        elif self.out:
            number_formats.put(e, number_formats.load(e, near, 0, self.value.item), far, count)
        else:
            number_formats.put(e, number_formats.get(e, far, count), near, count, self.value.item)

    def _offsets(self, e: Emitter, first: ir.Value) -> ir.Value:
        """The table's entries of some channels; lanes without one have any."""
        entry = e.at(e.table(Arg.CHANNELS), e.b.mul(first, e.i64(8)))
        return e.b.load(entry, typ=ir.VectorType(I64, e.target.lanes), align=8)

    def _square(
        self, e: Emitter, first: ir.Value, channels: int, pixels: int, inside: ir.Value, outside: ir.Value
    ) -> None:
        """Up to a vector of channels of up to a vector of pixels, turned in registers."""
        entry = e.at(e.table(Arg.CHANNELS), e.b.mul(first, e.i64(8)))
        near = e.at(inside, e.b.mul(first, e.i64(self.value.item)))
        rows = [e.at(outside, e.load_i64(entry, 8 * channel)) for channel in range(channels)]
        columns = [e.at(near, pixel * self.value.pixel) for pixel in range(pixels)]
        empty = [e.splat(0.0)] * e.target.lanes
        if self.out:
            vectors = [number_formats.load(e, column, 0, self.value.item) for column in columns]
            turned = lane.transposed(e, (vectors + empty)[: e.target.lanes])
            for vector, pointer in zip(turned, rows, strict=False):
                number_formats.put(e, vector, pointer, pixels)
        else:
            turned = lane.transposed(
                e, ([number_formats.get(e, row, pixels) for row in rows] + empty)[: e.target.lanes]
            )
            for vector, pointer in zip(turned, columns, strict=False):
                number_formats.put(e, vector, pointer, channels, self.value.item)


def _chunks(count: int, step: int) -> list[tuple[int, int, int]]:
    """Loops over ``count`` things: (from, to, things a turn does): whole steps, and what is left over."""
    whole = count // step * step
    chunks = [(0, whole, step)] if whole else []
    return chunks + ([(whole, count, count - whole)] if count > whole else [])
