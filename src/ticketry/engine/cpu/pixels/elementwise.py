"""One value after the other: sums, products, scaling, activations, copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ticketry.engine.cpu.activations import Activation, activate
from ticketry.engine.cpu.emit import Emitter
from ticketry.engine.cpu.pixels import values, walk
from ticketry.engine.cpu.pixels.geometry import Pixels
from ticketry.engine.cpu.pixels.walk import Strides
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target
from ticketry.errors import EngineError

Array = np.ndarray[Any, Any]

_X, _OTHER, _Y, _SCALE, _SHIFT = range(5)
"""Arguments of the kernel: begins of the values, then float32 [channels, whole vectors] of an affine one."""


def add(x: Pixels, other: Pixels, y: Pixels, *, target: Target, act: Activation = None, label: str = "") -> list[Op]:
    """``y = act(x + other)``; see `mul`."""
    return _both("add", x, other, y, act, label)


def mul(x: Pixels, other: Pixels, y: Pixels, *, target: Target, act: Activation = None, label: str = "") -> list[Op]:
    """``y = act(x * other)``. Of ``other``, one row, column or channel may stand for all of them; y may be x."""
    return _both("mul", x, other, y, act, label)


def apply(x: Pixels, y: Pixels, act: Activation, *, target: Target, label: str = "") -> list[Op]:
    """``y = act(x)``; y may be x."""
    _same(x, y)
    return [Op(_kernel("copy", x, None, y, act), (walk.begin(x), 0, walk.begin(y)), label)]


def copy(x: Pixels, y: Pixels, *, target: Target, label: str = "") -> list[Op]:
    """``y = x``, which may have another halo or be some channels of a wider value."""
    return apply(x, y, None, target=target, label=label)


def affine(
    x: Pixels,
    y: Pixels,
    scale: Array,
    shift: Array,
    *,
    target: Target,
    act: Activation = None,
    label: str = "",
) -> list[Op]:
    """``y = act(x * scale + shift)`` with a float32 of each for each channel; y may be x."""
    _same(x, y)
    tables = (walk.whole_vectors(scale, x.channels, target), walk.whole_vectors(shift, x.channels, target))
    return [Op(_kernel("affine", x, None, y, act), (walk.begin(x), 0, walk.begin(y), *tables), label)]


def _both(operation: str, x: Pixels, other: Pixels, y: Pixels, act: Activation, label: str) -> list[Op]:
    _same(x, y)
    mine, its = x.geometry, other.geometry
    sizes = ((mine.height, its.height), (mine.width, its.width), (x.channels, other.channels))
    if any(b not in (1, a) for a, b in sizes):
        raise EngineError(
            f"{operation}: no value of (height, width, channels) {tuple(b for _, b in sizes)} for each "
            f"of one of {tuple(a for a, _ in sizes)}"
        )
    args = (walk.begin(x), walk.begin(other), walk.begin(y))
    return [Op(_kernel(operation, x, other, y, act), args, label)]


def _same(x: Pixels, y: Pixels) -> None:
    if not x.like(y):
        raise EngineError("input and output of an operation on each value have the same shape")


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
class Elementwise:
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

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        strides = [(_X, self.x), (_Y, self.y)] + ([(_OTHER, self.other)] if self.other else [])
        with (
            walk.rows(e, self.height, strides) as (_, _, starts),
            walk.columns(e, self.width, starts, strides) as (_, pixel),
        ):
            self._pixel(e, *pixel)
        return e.text()

    def _pixel(self, e: Emitter, x: ir.Value, y: ir.Value, other: ir.Value | None = None) -> None:
        spread = e.splat(values.load_one(e, other, self.other.item)) if self.other and self.one_channel else None

        def some(byte: ir.Value, counts: list[int]) -> None:
            for number, count in enumerate(counts):
                at = walk.next_vector(e, byte, number)
                value = walk.get(e, x, at, count, self.x.item)
                if self.operation == "affine":
                    value = e.fma(value, e.load(e.table(_SCALE), at), e.load(e.table(_SHIFT), at))
                elif self.other is not None:
                    second = walk.get(e, other, at, count, self.other.item) if spread is None else spread
                    value = e.b.fadd(value, second) if self.operation == "add" else e.b.fmul(value, second)
                walk.put(e, activate(e, self.act, value), y, at, count, self.y.item)

        walk.vectors(e, self.channels, 1 if walk.long(self.act) else 4, some)
