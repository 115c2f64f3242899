"""Elementwise operations: sums, products, scaling, activations and copies.

    y = act(x + other)     y = act(x * other)     y = act(x * scale[c] + shift[c])     y = act(x)

``other`` may have one row, one column or one channel, which is broadcast. ``scale`` and ``shift`` are float32 tables
[channels], padded with zeros to whole vectors. A pixel's channels are consecutive, so every load and store is a whole
vector, and four vectors at a time hide the latency of the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import Activation, activate
from ticketry_engine.kernels.channels_last import loops, number_formats
from ticketry_engine.kernels.channels_last.geometry import ChannelsLastValue
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array

_X, _OTHER, _Y, _SCALE, _SHIFT = range(5)
"""Arguments: offsets of the values' first pixels; float32 [channels padded to vectors] of the affine operation."""


def elementwise(
    kind: str, x: ChannelsLastValue, other: ChannelsLastValue, y: ChannelsLastValue, act: Activation = None
) -> list[Op]:
    """Return operations for ``y = act(x + other)`` (kind "add") or ``act(x * other)`` ("mul"); y may be x.

    Args:
        other: its height, width and channels are those of x, or 1 to be broadcast.

    Raises:
        EngineError: shapes that cannot be broadcast.
    """
    loops.check_same_shape(x, y)
    mine, its = x.geometry, other.geometry
    sizes = ((mine.height, its.height), (mine.width, its.width), (x.channels, other.channels))
    if any(b not in (1, a) for a, b in sizes):
        raise EngineError(
            f"{kind}: (height, width, channels) {tuple(b for _, b in sizes)} cannot be broadcast"
            f" to {tuple(a for a, _ in sizes)}: each size has to be equal or 1"
        )
    return [
        Op(
            _build_kernel(kind, x, other, y, act),
            (loops.first_pixel(x), loops.first_pixel(other), loops.first_pixel(y)),
        )
    ]


def apply(act: Activation, x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return operations for ``y = act(x)``; y may be x."""
    loops.check_same_shape(x, y)
    return [Op(_build_kernel("copy", x, None, y, act), (loops.first_pixel(x), 0, loops.first_pixel(y)))]


def copy(x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return operations for ``y = x``; the halo, number format and channel range may differ."""
    return apply(None, x, y)


def affine(x: ChannelsLastValue, y: ChannelsLastValue, scale: Array, shift: Array, act: Activation = None) -> list[Op]:
    """Return operations for ``y = act(x * scale + shift)``, scale and shift float32 [channels]; y may be x."""
    loops.check_same_shape(x, y)
    tables = (loops.pad_to_vectors(scale, x.channels), loops.pad_to_vectors(shift, x.channels))
    return [Op(_build_kernel("affine", x, None, y, act), (loops.first_pixel(x), 0, loops.first_pixel(y), *tables))]


def _build_kernel(
    operation: str, x: ChannelsLastValue, other: ChannelsLastValue | None, y: ChannelsLastValue, act: Activation
) -> ChannelsLastElementwise:
    height, width = x.geometry.height, x.geometry.width
    return ChannelsLastElementwise(
        operation,
        height,
        width,
        x.channels,
        Strides.from_value(x),
        Strides.from_value(other, height, width) if other else None,
        other is not None and other.channels == 1 < x.channels,
        Strides.from_value(y),
        act,
    )


@dataclass(frozen=True)
class ChannelsLastElementwise(Written):
    """Kernel of one elementwise operation."""

    title: ClassVar[str] = "elementwise"

    operation: str
    """"add", "mul", "affine" or "copy"."""
    height: int
    width: int
    channels: int
    x: Strides
    other: Strides | None
    one_channel: bool
    """Whether ``other`` has one channel, which is broadcast over x's."""
    y: Strides
    act: Activation

    def write(self, e: Emitter) -> None:
        strides = [(_X, self.x), (_Y, self.y)] + ([(_OTHER, self.other)] if self.other else [])
        with loops.loop_pixels(e, self.height, self.width, strides) as (_, _, pixel):
            self._write_pixel(e, *pixel)

    def _write_pixel(self, e: Emitter, x: ir.Value, y: ir.Value, other: ir.Value | None = None) -> None:
        spread = (
            e.splat(number_formats.load_one(e, other, self.other.item)) if self.other and self.one_channel else None
        )

        def write_vectors(byte: ir.Value, counts: list[int]) -> None:
            for number, count in enumerate(counts):
                at = loops.vector_offset(e, byte, number)
                value = loops.load_vector(e, x, at, count, self.x.item)
                if self.operation == "affine":
                    value = e.fma(value, e.load(e.table(_SCALE), at), e.load(e.table(_SHIFT), at))
                elif self.other is not None:
                    second = loops.load_vector(e, other, at, count, self.other.item) if spread is None else spread
                    value = e.b.fadd(value, second) if self.operation == "add" else e.b.fmul(value, second)
                loops.store_vector(e, activate(e, self.act, value), y, at, count, self.y.item)

        loops.loop_vectors(e, self.channels, 1 if loops.is_expensive(self.act) else 4, write_vectors)
