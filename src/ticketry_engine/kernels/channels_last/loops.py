"""Loops that the simple kernels share: over rows, over pixels, and over the vectors of a pixel's channels.

    for row in this thread's share of all rows of all images:      loop_rows
        for pixel in row:                                          loop_pixels
            for vector of channels in pixel:                       loop_vectors

Bytes inside a pixel are always counted as if numbers were float32; `load_vector` and `store_vector` halve them for
bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import Activation
from ticketry_engine.kernels.channels_last import number_formats
from ticketry_engine.kernels.channels_last.geometry import FLOAT, LINE, ChannelsLastValue
from ticketry_engine.kernels.emitter import Emitter, State
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.window import Array


@dataclass(frozen=True)
class Strides:
    """Bytes from one image, row and pixel of a value to the next; 0 along an axis that is broadcast."""

    image: int
    row: int
    pixel: int
    item: int = FLOAT
    """Bytes of one number."""

    @classmethod
    def from_value(cls, value: ChannelsLastValue, height: int = 0, width: int = 0) -> Strides:
        """Return a value's strides; an axis of size 1 is broadcast to a larger ``height`` or ``width``."""
        geometry = value.geometry
        row = 0 if geometry.height == 1 < height else geometry.row
        return cls(geometry.image, row, 0 if geometry.width == 1 < width else geometry.pixel, geometry.item)

    def at(self, place: tuple[int, int, int]) -> int:
        """Return the bytes that this many images, rows and pixels span."""
        return place[0] * self.image + place[1] * self.row + place[2] * self.pixel


def pad_to_vectors(values: Array, channels: int) -> Array:
    """Return one float32 for each channel, padded with zeros to whole vectors of the widest registers.

    Raises:
        EngineError: if the number of values is not the number of channels.
    """
    values = np.asarray(values, dtype=np.float32).reshape(-1)
    if len(values) != channels:
        raise EngineError(f"{len(values)} values for {channels} channels")
    return np.pad(values, (0, -channels % (LINE // FLOAT)))


def is_expensive(act: Activation) -> bool:
    """Return whether an activation takes many instructions, so that a kernel should contain its code only once."""
    return (act[0] if isinstance(act, tuple) else act) not in (None, "relu", "relu6", "leaky_relu")


def check_same_shape(x: ChannelsLastValue, y: ChannelsLastValue) -> None:
    """Raise EngineError unless both values have the same shape."""
    if not x.like(y):
        raise EngineError("input and output of an elementwise operation or norm have to have the same shape")


def first_pixel(value: ChannelsLastValue) -> int:
    """Return the offset in the arena, in bytes, of a value's pixel (0, 0)."""
    return value.start + value.geometry.pixel_offset(0, 0)


@contextmanager
def loop_rows(
    e: Emitter, height: int, strides: Sequence[tuple[int, Strides]]
) -> Iterator[tuple[ir.Value, ir.Value, list[ir.Value]]]:
    """Loop over this thread's share of all rows of all images; yields image, row, and each value's pointer to the row.

    Args:
        height: rows of an image.
        strides: for each value the kernel argument that holds its `first_pixel`, and its strides.
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
def loop_pixels(
    e: Emitter, height: int, width: int, strides: Sequence[tuple[int, Strides]]
) -> Iterator[tuple[ir.Value, ir.Value, list[ir.Value]]]:
    """Loop over all pixels of this thread's rows; yields row, column, and each value's pointer to the pixel."""
    with loop_rows(e, height, strides) as (_, row, starts), e.loop(0, width) as turn:
        pairs = zip(starts, strides, strict=True)
        places = [e.at(start, e.b.mul(turn.index, e.i64(steps.pixel))) for start, (_, steps) in pairs]
        yield row, turn.index, places


def loop_vectors(e: Emitter, channels: int, most: int, body: Callable[[ir.Value, list[int]], None]) -> None:
    """Loop over a pixel's channels, ``most`` vectors at a time, and emit ``body(byte, counts)`` for each turn.

    Args:
        body: is called with the byte of the first vector in a pixel (counted as float32), and the lanes in use of each
            vector.
    """
    lanes = e.target.lanes
    full = channels // (most * lanes) * most * lanes
    if full:
        with e.loop(0, full, most * lanes) as turn:
            body(e.b.mul(turn.index, e.i64(FLOAT)), [lanes] * most)
    if full < channels:
        body(e.i64(FLOAT * full), [min(lanes, channels - at) for at in range(full, channels, lanes)])


def load_vector(e: Emitter, pointer: ir.Value, byte: ir.Value, count: int, item: int = FLOAT) -> ir.Value:
    """Load ``count`` numbers at ``byte`` (counted as float32) as a float32 vector, zeros in the other lanes."""
    return number_formats.load_vector(e, _element_pointer(e, pointer, byte, item), count, item)


def store_vector(
    e: Emitter, vector: ir.Value, pointer: ir.Value, byte: ir.Value, count: int, item: int = FLOAT
) -> None:
    """Store the first ``count`` lanes at ``byte`` (counted as float32)."""
    number_formats.store_vector(e, vector, _element_pointer(e, pointer, byte, item), count, item)


def _element_pointer(e: Emitter, pointer: ir.Value, byte: ir.Value, item: int) -> ir.Value:
    return e.at(pointer, byte if item == FLOAT else e.b.lshr(byte, e.i64(1)))


def vector_offset(e: Emitter, byte: ir.Value, number: int) -> ir.Value:
    """Return the byte of the vector ``number`` vectors after the one at ``byte``."""
    return e.b.add(byte, e.i64(number * e.target.lanes * FLOAT))
