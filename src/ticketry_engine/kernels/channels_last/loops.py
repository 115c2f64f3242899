"""Loops over the pixels of values and over the vectors of a pixel's channels, which the simple kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import Activation
from ticketry_engine.kernels.channels_last import number_formats as values
from ticketry_engine.kernels.channels_last.geometry import FLOAT, LINE, Pixels
from ticketry_engine.kernels.emitter import Emitter, State
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.window import Array


@dataclass(frozen=True)
class Strides:
    """Bytes from one image, row and pixel of a value to the next; 0 where one stands for all."""

    image: int
    row: int
    pixel: int
    item: int = FLOAT
    """Bytes of a channel."""

    @classmethod
    def of(cls, value: Pixels, height: int = 0, width: int = 0) -> Strides:
        """Those of a value, seen from another's height and width: what is one row high stands for all rows."""
        geometry = value.geometry
        row = 0 if geometry.height == 1 < height else geometry.row
        return cls(geometry.image, row, 0 if geometry.width == 1 < width else geometry.pixel, geometry.item)

    def at(self, place: tuple[int, int, int]) -> int:
        """Bytes to so many images, rows and pixels further."""
        return place[0] * self.image + place[1] * self.row + place[2] * self.pixel


def whole_vectors(values: Array, channels: int) -> Array:
    """A float32 of each channel, with zeros behind up to whole vectors of the widest registers.

    Raises:
        EngineError: another number of values.
    """
    values = np.asarray(values, dtype=np.float32).reshape(-1)
    if len(values) != channels:
        raise EngineError(f"{len(values)} values for {channels} channels")
    return np.pad(values, (0, -channels % (LINE // FLOAT)))


def long(act: Activation) -> bool:
    """Whether an activation is more than a few instructions, so that it should stand in a kernel only once."""
    return (act[0] if isinstance(act, tuple) else act) not in (None, "relu", "relu6", "leaky_relu")


def same_shape(x: Pixels, y: Pixels) -> None:
    """Raises EngineError unless both have the same shape."""
    if not x.like(y):
        raise EngineError("input and output of an operation on each value or pixel have the same shape")


def begin(value: Pixels) -> int:
    """The arena's byte of a value's first pixel, behind the halo."""
    return value.start + value.geometry.at(0, 0)


@contextmanager
def rows(
    e: Emitter, height: int, strides: Sequence[tuple[int, Strides]]
) -> Iterator[tuple[ir.Value, ir.Value, list[ir.Value]]]:
    """This thread's share of all rows of all images: image, row, and for each value a pointer to the row's start.

    Args:
        height: rows of an image.
        strides: of each value the argument that holds its `begin`, and its strides.
    """
    b = e.b
    low, high = e.share(b.mul(e.state(State.IMAGES), e.i64(height)))
    bases = [e.arena(e.arg(arg)) for arg, _ in strides]
    with e.loop(low, high) as turn:
        image = b.udiv(turn.index, e.i64(height))
        row = b.sub(turn.index, b.mul(image, e.i64(height)))
        pairs = zip(bases, [steps for _, steps in strides], strict=True)
        yield image, row, [e.at(at, b.add(b.mul(image, e.i64(s.image)), b.mul(row, e.i64(s.row)))) for at, s in pairs]


@contextmanager
def pixels(
    e: Emitter, height: int, width: int, strides: Sequence[tuple[int, Strides]]
) -> Iterator[tuple[ir.Value, ir.Value, list[ir.Value]]]:
    """All pixels of this thread's `rows`: row, column, and for each value a pointer to the pixel."""
    with rows(e, height, strides) as (_, row, starts), e.loop(0, width) as turn:
        pairs = zip(starts, strides, strict=True)
        places = [e.at(start, e.b.mul(turn.index, e.i64(steps.pixel))) for start, (_, steps) in pairs]
        yield row, turn.index, places


def vectors(e: Emitter, channels: int, most: int, body: Callable[[ir.Value, list[int]], None]) -> None:
    """Write ``body`` for all channels, up to ``most`` vectors at a time: with the first one's byte in a pixel (as if of
    float32), and how many lanes of each vector are channels."""
    lanes = e.target.lanes
    full = channels // (most * lanes) * most * lanes
    if full:
        with e.loop(0, full, most * lanes) as turn:
            body(e.b.mul(turn.index, e.i64(FLOAT)), [lanes] * most)
    if full < channels:
        body(e.i64(FLOAT * full), [min(lanes, channels - at) for at in range(full, channels, lanes)])


def get(e: Emitter, pointer: ir.Value, byte: ir.Value, count: int, item: int = FLOAT) -> ir.Value:
    """A vector of the first ``count`` values, zeros behind. ``byte`` is that of float32, whatever is stored."""
    return values.get(e, _place(e, pointer, byte, item), count, item)


def put(e: Emitter, vector: ir.Value, pointer: ir.Value, byte: ir.Value, count: int, item: int = FLOAT) -> None:
    """Write the first ``count`` values; ``byte`` as of `get`."""
    values.put(e, vector, _place(e, pointer, byte, item), count, item)


def _place(e: Emitter, pointer: ir.Value, byte: ir.Value, item: int) -> ir.Value:
    return e.at(pointer, byte if item == FLOAT else e.b.lshr(byte, e.i64(1)))


def next_vector(e: Emitter, byte: ir.Value, number: int) -> ir.Value:
    """The byte of a vector so many vectors further."""
    return e.b.add(byte, e.i64(number * e.target.lanes * FLOAT))
