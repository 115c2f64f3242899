"""Elementwise operations on planes: sums, products, activations, per-channel scale and shift, rotary embeddings.

    y = act(a + b)      y = act(a * b)      y = act(scale[c] * x + shift[c])      y = x * cos + partner * sin

If all values have the same row length, a plane is one long run, including the halo where the result stays zero there;
otherwise it is processed row by row. Four vectors per iteration keep loads and arithmetic busy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import Activation, activate, activation
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.planar import lanes
from ticketry_engine.kernels.planar.geometry import FLOAT, Planes
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array

_NOT_ZERO_AT_ZERO = ("sigmoid", "hardsigmoid")
_UNROLLED = 4
"""Vectors per iteration of the main loop: at least as many as the images of a position take."""


def elementwise(kind: str, a: Planes, b: Planes, y: Planes, act: Any = None) -> list[Op]:
    """Return the operations of ``y = act(a + b)`` (kind "add") or ``act(a * b)`` ("mul"); ``y`` may be ``a`` or ``b``.

    ``b`` has a's height and width, or one position that is broadcast.
    """
    if kind not in ("add", "mul"):
        raise EngineError(f"no elementwise {kind!r}: choose from add, mul")
    g = a.geometry
    spread = (b.geometry.height, b.geometry.width) == (1, 1) and g.height * g.width > 1
    return [_op(Elementwise(kind, activation(act), g.images, spread), [a, b], y, [])]


def apply(act: Any, x: Planes, y: Planes) -> list[Op]:
    """Return the operations of ``y = act(x)``; ``y`` may be ``x``."""
    return [_op(Elementwise("copy", activation(act)), [x], y, [])]


def copy(x: Planes, y: Planes) -> list[Op]:
    """Return the operations of ``y = x`` for a geometry of the same height, width and images."""
    return apply(None, x, y)


def affine(x: Planes, y: Planes, scale: Array, shift: Array, act: Any = None) -> list[Op]:
    """Return the operations of ``y = act(scale * x + shift)`` with per-channel factors; ``y`` may be ``x``."""
    factors = np.stack([scale, shift], 1).astype(np.float32)
    return [_op(Elementwise("affine", activation(act)), [x], y, [factors])]


def rotary(x: Planes, cos: Planes, sin: Planes, y: Planes, half: int) -> list[Op]:
    """Return the operations of ``y = x * cos + partner * sin``, for heads of as many channels as ``cos`` and ``sin``.

    The partner of channel i of a head is i + half for i < half, i - half for i < 2 half, and i itself otherwise. ``y``
    must
    not overlap the others.
    """
    size = cos.channels
    partner = np.arange(size)
    partner[: 2 * half] = (partner[: 2 * half] + half) % (2 * half)
    heads = np.arange(x.channels // size)[:, None] * size
    crossed = Planes(x.geometry, x.offsets[(heads + partner).reshape(-1)])
    repeated = [Planes(one.geometry, np.tile(one.offsets, len(heads))) for one in (cos, sin)]
    return [_op(Elementwise("rotary", None), [x, repeated[0], crossed, repeated[1]], y, [])]


def _op(kernel: Elementwise, sources: Sequence[Planes], y: Planes, tables: Sequence[Any]) -> Op:
    geometries = [value.geometry for value in (*sources, y)]
    walked = [geometries[0], geometries[-1]] if kernel.spread else geometries
    zeros = kernel.act not in _NOT_ZERO_AT_ZERO and kernel.kind != "affine" and not kernel.spread
    count, floats, places = lanes.runs(walked, halos=zeros)
    if kernel.spread:
        one = geometries[1]
        places = (places[0], (one.position(0, 0) * one.step, 0), places[1])
    offsets = [value.offsets for value in (*sources, y)]
    flat = [number for place in places for number in place]
    return Op(kernel, (y.channels, count, floats, *flat, *offsets, *tables))


@dataclass(frozen=True)
class Elementwise(Written):
    """Kernel of ``y = act(...)`` on runs of floats in the planes of each channel."""

    kind: str
    """"copy", "affine" (one source), "add", "mul" (two) or "rotary" (four)."""
    act: Activation
    images: int = 0
    """If `spread`: images per position of the second source."""
    spread: bool = False
    """Whether the second source has one position, which is broadcast."""

    def write(self, e: Emitter) -> None:
        b = e.b
        values = {"add": 3, "mul": 3, "rotary": 5}.get(self.kind, 2)
        channels, count, floats = (e.arg(i) for i in range(3))
        places = [(e.arg(3 + 2 * i), e.arg(4 + 2 * i)) for i in range(values)]
        tables = [e.table(3 + 2 * values + i) for i in range(values)]
        low, high = e.share(channels)
        with e.loop(low, high) as channel:
            entry = b.mul(channel.index, e.i64(8))
            planes = [
                e.at(e.arena(e.load_i64(table, entry)), start) for table, (start, _) in zip(tables, places, strict=True)
            ]
            combine = self._combine(e, entry, 3 + 3 * values)
            with e.loop(0, count) as run:
                rows = [e.at(plane, b.mul(run.index, row)) for plane, (_, row) in zip(planes, places, strict=True)]
                self._run(e, floats, rows, combine)

    def _combine(self, e: Emitter, entry: ir.Value, factors: int) -> Callable[..., ir.Value]:
        """Return the function that combines one vector of each source."""
        b = e.b
        if self.kind == "affine":
            pair = e.at(e.table(factors), entry)
            scale, shift = (e.splat(e.load_f32(pair, byte)) for byte in (0, FLOAT))
            return lambda x: activate(e, self.act, e.fma(x, scale, shift))
        if self.kind == "copy":
            return lambda x: activate(e, self.act, x)
        if self.kind == "rotary":
            return lambda x, cos, partner, sin: e.fma(partner, sin, b.fmul(x, cos))
        return lambda x, other: activate(e, self.act, (b.fadd if self.kind == "add" else b.fmul)(x, other))

    def _run(self, e: Emitter, floats: ir.Value, rows: Sequence[ir.Value], combine: Callable[..., ir.Value]) -> None:
        """Process a run of floats: several vectors at once, then one by one; the last may be partial."""
        b, width = e.b, e.target.lanes
        step = _UNROLLED * width
        whole = b.mul(b.udiv(floats, e.i64(step)), e.i64(step))
        with e.loop(0, whole, step) as loop:
            found = [combine(*self._sources(e, rows, loop.index, k * width, None)) for k in range(_UNROLLED)]
            for k, value in enumerate(found):
                lanes.store(e, value, rows[-1], self._byte(e, loop.index, k * width))
        with e.loop(whole, floats, width) as loop:
            mask = lanes.first_lanes_mask(e, b.sub(floats, loop.index))
            value = combine(*self._sources(e, rows, loop.index, 0, mask))
            lanes.store(e, value, rows[-1], self._byte(e, loop.index, 0), mask)

    def _sources(
        self, e: Emitter, rows: Sequence[ir.Value], index: ir.Value, further: int, mask: ir.Value | None
    ) -> list[ir.Value]:
        byte = self._byte(e, index, further)
        found = [lanes.load(e, row, byte, mask) for row in rows[: 1 if self.spread else -1]]
        if self.spread:
            within = e.b.and_(byte, e.i64(FLOAT * self.images - 1))
            found.append(lanes.load_repeated(e, rows[1], self.images, within))
        return found

    def _byte(self, e: Emitter, index: ir.Value, further: int) -> ir.Value:
        return e.b.mul(e.b.add(index, e.i64(further)), e.i64(FLOAT))
