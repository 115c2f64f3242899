"""Between tensors outside and values of the engine: `load` and `store`."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ticketry.engine.cpu.emit import I64, Emitter, State
from ticketry.engine.cpu.pixels import lanes as lane
from ticketry.engine.cpu.pixels import values
from ticketry.engine.cpu.pixels.geometry import FLOAT, Pixels
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target
from ticketry.errors import EngineError

Array = np.ndarray[Any, Any]


class Way(enum.Enum):
    """How the numbers of the tensor lie."""

    CHANNELS = "a pixel's channels side by side"
    PLANES = "a row's pixels side by side"
    APART = "anyhow"


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
    """int64 [channels]: byte at which each channel of the value lies in a pixel of the tensor. Out of an order into
    neighbouring channels, the other way round: where each of the tensor's channels lies in a pixel of the value."""


def load(
    number: int, strides: Sequence[int], y: Pixels, *, target: Target, order: Array | None = None, label: str = ""
) -> list[Op]:
    """Fill a value from a float32 tensor outside.

    Args:
        number: which of the tensors that `Program.run` gets.
        strides: the tensor's, in elements: image, channel, row, column.
        y: the value.
        order: for each channel of the value, which of the tensor's it is; the same channel unless given.
    """
    return _move(number, strides, y, order, False, target, label)


def store(
    number: int, strides: Sequence[int], x: Pixels, *, target: Target, order: Array | None = None, label: str = ""
) -> list[Op]:
    """Write a value to a float32 tensor outside; arguments as those of `load`."""
    return _move(number, strides, x, order, True, target, label)


def _move(
    number: int, strides: Sequence[int], value: Pixels, order: Array | None, out: bool, target: Target, label: str
) -> list[Op]:
    image, channel, row, column = (FLOAT * int(stride) for stride in strides)
    count, geometry = value.channels, value.geometry
    order = np.arange(count) if order is None else np.asarray(order, dtype=np.int64)
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise EngineError(f"an order of {count} channels holds each of 0 … {count - 1} once")
    in_order = np.array_equal(order, np.arange(count))
    if count == 1 or (channel == FLOAT and (in_order or out)):
        way = Way.CHANNELS
    elif column == FLOAT and geometry.width > 1:
        way = Way.PLANES
    else:
        way = Way.APART
    table = order * channel
    if way is Way.CHANNELS:
        table = np.argsort(order) * geometry.item
    kernel = Move(
        geometry.height,
        geometry.width,
        count,
        geometry.pixel,
        geometry.row,
        geometry.image,
        way,
        out,
        way is Way.CHANNELS and not in_order,
        geometry.item,
    )
    start = value.start + geometry.at(0, 0)
    return [Op(kernel, (start, number, image, row, column, table.astype(np.int64)), label)]


@dataclass(frozen=True)
class Move:
    """Copies between a tensor outside and a value; arguments are listed in `Arg`."""

    height: int
    width: int
    channels: int
    pixel: int
    row: int
    image: int
    way: Way
    out: bool
    gathered: bool
    """Whether channels are taken out of the value in another order."""
    item: int
    """Bytes of a channel of the value."""

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b = e.b
        low, high = e.share(b.mul(e.state(State.IMAGES), e.i64(self.height)))
        value, outside = e.arena(e.arg(Arg.VALUE)), e.external(e.arg(Arg.NUMBER))
        with e.loop(low, high) as row:
            image = b.udiv(row.index, e.i64(self.height))
            y = b.sub(row.index, b.mul(image, e.i64(self.height)))
            inside = e.at(value, b.add(b.mul(image, e.i64(self.image)), b.mul(y, e.i64(self.row))))
            number = b.add(image, e.state(State.FIRST))
            there = b.add(b.mul(number, e.arg(Arg.IMAGE)), b.mul(y, e.arg(Arg.ROW)))
            self._row(e, inside, e.at(outside, there))
        return e.text()

    def _row(self, e: Emitter, inside: ir.Value, outside: ir.Value) -> None:
        lanes = e.target.lanes
        step = lanes if self.way is Way.PLANES else 1
        for first, last, pixels in _chunks(self.width, step):
            with e.loop(first, last, step) as column:
                place = e.at(inside, e.b.mul(column.index, e.i64(self.pixel)))
                there = e.at(outside, e.b.mul(column.index, e.arg(Arg.COLUMN)))
                for low, high, channels in _chunks(self.channels, lanes):
                    with e.loop(low, high, lanes) as channel:
                        if self.way is Way.PLANES:
                            self._square(e, channel.index, channels, pixels, place, there)
                        else:
                            self._some_channels(e, channel.index, channels, place, there)

    def _some_channels(self, e: Emitter, first: ir.Value, count: int, inside: ir.Value, outside: ir.Value) -> None:
        """Up to a vector of one pixel's channels."""
        near, far = (e.at(base, e.b.mul(first, e.i64(size))) for base, size in ((inside, self.item), (outside, FLOAT)))
        mask = lane.first_lanes(e, count)
        if self.way is Way.APART:
            pointers = lane.addresses(e, outside, self._offsets(e, first))
            if self.out:
                lane.scatter(e, values.load(e, near, 0, self.item), pointers, mask)
            else:
                _put(e, lane.gather(e, pointers, mask), near, count, self.item)
        elif self.gathered:
            pointers = lane.addresses(e, inside, self._offsets(e, first))
            _put(e, values.gather(e, pointers, mask, self.item), far, count)
        elif self.out:
            _put(e, values.load(e, near, 0, self.item), far, count)
        else:
            _put(e, _get(e, far, count), near, count, self.item)

    def _offsets(self, e: Emitter, first: ir.Value) -> ir.Value:
        """The table's entries of some channels; lanes without one have any."""
        entry = e.at(e.table(Arg.CHANNELS), e.b.mul(first, e.i64(8)))
        return e.b.load(entry, typ=ir.VectorType(I64, e.target.lanes), align=8)

    def _square(
        self, e: Emitter, first: ir.Value, channels: int, pixels: int, inside: ir.Value, outside: ir.Value
    ) -> None:
        """Up to a vector of channels of up to a vector of pixels, turned in registers."""
        entry = e.at(e.table(Arg.CHANNELS), e.b.mul(first, e.i64(8)))
        near = e.at(inside, e.b.mul(first, e.i64(self.item)))
        rows = [e.at(outside, e.load_i64(entry, 8 * channel)) for channel in range(channels)]
        columns = [e.at(near, pixel * self.pixel) for pixel in range(pixels)]
        empty = [e.splat(0.0)] * e.target.lanes
        if self.out:
            vectors = [values.load(e, column, 0, self.item) for column in columns]
            turned = lane.transposed(e, (vectors + empty)[: e.target.lanes])
            for vector, pointer in zip(turned, rows, strict=False):
                _put(e, vector, pointer, pixels)
        else:
            turned = lane.transposed(e, ([_get(e, row, pixels) for row in rows] + empty)[: e.target.lanes])
            for vector, pointer in zip(turned, columns, strict=False):
                _put(e, vector, pointer, channels, self.item)


def _chunks(count: int, step: int) -> list[tuple[int, int, int]]:
    """Loops over ``count`` things: (from, to, things a turn does): whole steps, and what is left over."""
    whole = count // step * step
    chunks = [(0, whole, step)] if whole else []
    return chunks + ([(whole, count, count - whole)] if count > whole else [])


def _get(e: Emitter, pointer: ir.Value, count: int) -> ir.Value:
    return e.load(pointer) if count == e.target.lanes else lane.load_first(e, pointer, count)


def _put(e: Emitter, vector: ir.Value, pointer: ir.Value, count: int, item: int = FLOAT) -> None:
    if count == e.target.lanes:
        values.store(e, vector, pointer, 0, item)
    else:
        values.store_first(e, vector, pointer, count, item)
