"""One value after the other: sums, products, scaling, activations, copies."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import Activation, activate
from ticketry_engine.kernels.channels_last import loops, number_formats
from ticketry_engine.kernels.channels_last.geometry import Pixels
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array

_X, _OTHER, _Y, _SCALE, _SHIFT = range(5)
"""Arguments of the kernel: begins of the values, then float32 [channels, whole vectors] of an affine one."""


def elementwise(kind: str, x: Pixels, other: Pixels, y: Pixels, act: Activation = None) -> list[Op]:
    """``y = act(x + other)`` (kind "add") or ``act(x * other)`` ("mul"); y may be x.

    Of ``other``, one row, column or channel may stand for all of them.
    """
    loops.same_shape(x, y)
    mine, its = x.geometry, other.geometry
    sizes = ((mine.height, its.height), (mine.width, its.width), (x.channels, other.channels))
    if any(b not in (1, a) for a, b in sizes):
        raise EngineError(
            f"{kind}: no value of (height, width, channels) {tuple(b for _, b in sizes)} for each "
            f"of one of {tuple(a for a, _ in sizes)}"
        )
    return [Op(_kernel(kind, x, other, y, act), (loops.begin(x), loops.begin(other), loops.begin(y)))]


def apply(act: Activation, x: Pixels, y: Pixels) -> list[Op]:
    """``y = act(x)``; y may be x."""
    loops.same_shape(x, y)
    return [Op(_kernel("copy", x, None, y, act), (loops.begin(x), 0, loops.begin(y)))]


def copy(x: Pixels, y: Pixels) -> list[Op]:
    """``y = x``, which may have another halo or be some channels of a wider value."""
    return apply(None, x, y)


def affine(x: Pixels, y: Pixels, scale: Array, shift: Array, act: Activation = None) -> list[Op]:
    """``y = act(x * scale + shift)`` with a float32 of each for each channel; y may be x."""
    loops.same_shape(x, y)
    tables = (loops.whole_vectors(scale, x.channels), loops.whole_vectors(shift, x.channels))
    return [Op(_kernel("affine", x, None, y, act), (loops.begin(x), 0, loops.begin(y), *tables))]


def _kernel(operation: str, x: Pixels, other: Pixels | None, y: Pixels, act: Activation) -> Elementwise:
    height, width = x.geometry.height, x.geometry.width
    return Elementwise(
        operation,
        height,
        width,
        x.channels,
        Strides.of(x),
        Strides.of(other, height, width) if other else None,
        other is not None and other.channels == 1 < x.channels,
        Strides.of(y),
        act,
    )


@dataclass(frozen=True)
class Elementwise(Written):
    """An operation on each value."""

    operation: str
    """"add", "mul", "affine" or "copy"."""
    height: int
    width: int
    channels: int
    x: Strides
    other: Strides | None
    one_channel: bool
    """Whether the other's only channel stands for all."""
    y: Strides
    act: Activation

    def write(self, e: Emitter) -> None:
        strides = [(_X, self.x), (_Y, self.y)] + ([(_OTHER, self.other)] if self.other else [])
        with loops.pixels(e, self.height, self.width, strides) as (_, _, pixel):
            self._pixel(e, *pixel)

    def _pixel(self, e: Emitter, x: ir.Value, y: ir.Value, other: ir.Value | None = None) -> None:
        spread = (
            e.splat(number_formats.load_one(e, other, self.other.item)) if self.other and self.one_channel else None
        )

        def some(byte: ir.Value, counts: list[int]) -> None:
            for number, count in enumerate(counts):
                at = loops.next_vector(e, byte, number)
                value = loops.get(e, x, at, count, self.x.item)
                if self.operation == "affine":
                    value = e.fma(value, e.load(e.table(_SCALE), at), e.load(e.table(_SHIFT), at))
                elif self.other is not None:
                    second = loops.get(e, other, at, count, self.other.item) if spread is None else spread
                    value = e.b.fadd(value, second) if self.operation == "add" else e.b.fmul(value, second)
                loops.put(e, activate(e, self.act, value), y, at, count, self.y.item)

        loops.vectors(e, self.channels, 1 if loops.long(self.act) else 4, some)
