"""Loops over the pixels of values and over the vectors of a pixel's channels, which the simple kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ticketry.engine.cpu.activations import Activation
from ticketry.engine.cpu.emit import Emitter, State
from ticketry.engine.cpu.pixels import values
from ticketry.engine.cpu.pixels.geometry import FLOAT, Pixels
from ticketry.engine.cpu.target import Target
from ticketry.errors import EngineError

Array = np.ndarray[Any, Any]


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


def whole_vectors(values: Array, channels: int, target: Target) -> Array:
    """A float32 of each channel, with zeros behind up to whole vectors.

    Raises:
        EngineError: another number of values.
    """
    values = np.asarray(values, dtype=np.float32).reshape(-1)
    if len(values) != channels:
        raise EngineError(f"{len(values)} values for {channels} channels")
    return np.pad(values, (0, -channels % target.lanes))


def long(act: Activation) -> bool:
    """Whether an activation is more than a few instructions, so that it should stand in a kernel only once."""
    return (act[0] if isinstance(act, tuple) else act) not in (None, "relu", "relu6", "leaky_relu")


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
        yield (
            image,
            row,
            [
                e.at(base, b.add(b.mul(image, e.i64(steps.image)), b.mul(row, e.i64(steps.row))))
                for base, (_, steps) in zip(bases, strides, strict=True)
            ],
        )


@contextmanager
def columns(
    e: Emitter, width: int, pointers: Sequence[ir.Value], strides: Sequence[tuple[int, Strides]]
) -> Iterator[tuple[ir.Value, list[ir.Value]]]:
    """All pixels of a row: the column, and for each value a pointer to the pixel."""
    with e.loop(0, width) as turn:
        yield (
            turn.index,
            [
                e.at(pointer, e.b.mul(turn.index, e.i64(steps.pixel)))
                for pointer, (_, steps) in zip(pointers, strides, strict=True)
            ],
        )


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
    place = _place(e, pointer, byte, item)
    return values.load(e, place, 0, item) if count == e.target.lanes else values.load_first(e, place, count, item)


def put(e: Emitter, vector: ir.Value, pointer: ir.Value, byte: ir.Value, count: int, item: int = FLOAT) -> None:
    """Write the first ``count`` values; ``byte`` as of `get`."""
    place = _place(e, pointer, byte, item)
    if count == e.target.lanes:
        values.store(e, vector, place, 0, item)
    else:
        values.store_first(e, vector, place, count, item)


def _place(e: Emitter, pointer: ir.Value, byte: ir.Value, item: int) -> ir.Value:
    return e.at(pointer, byte if item == FLOAT else e.b.lshr(byte, e.i64(1)))


def next_vector(e: Emitter, byte: ir.Value, number: int) -> ir.Value:
    """The byte of a vector so many vectors further."""
    return e.b.add(byte, e.i64(number * e.target.lanes * FLOAT))
