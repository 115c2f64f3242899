"""Kernels of elementwise operations and norms on planes: sums, products, activations, scaling, rotary embeddings.

    y = act(a + b)      y = act(a * b)      y = act(scale[c] * x + shift[c])      y = x * cos + partner * sin

A plane is processed as one long run of floats, halo included, if all values have the same row length and the operation
maps the zeros of the halo to zeros; otherwise row by row. A loop handles four vectors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import Activation, activate, parse_activation
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.norms import NORMS, LastStep, Step, Vectors
from ticketry_engine.kernels.planar.geometry import (
    FLOAT,
    Planes,
    find_contiguous_runs,
    first_lanes_mask,
    load,
    load_repeated,
    store,
)
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array

_NOT_ZERO_AT_ZERO = ("sigmoid", "hardsigmoid", "inverse_root")
_UNROLLED = 4
"""Vectors per iteration of the main loop."""


def elementwise(kind: str, a: Planes, b: Planes, y: Planes, act: Any = None) -> list[Op]:
    """Return the operations of ``y = act(a + b)`` (kind "add") or ``y = act(a * b)`` ("mul"); y may be a or b.

    b has the height and width of a, or is broadcast if its height and width are 1.
    """
    if kind not in ("add", "mul"):
        raise EngineError(f"no elementwise {kind!r}: choose from add, mul")
    g = a.geometry
    spread = (b.geometry.height, b.geometry.width) == (1, 1) and g.height * g.width > 1
    return [_build_op(Elementwise(kind, parse_activation(act), g.images, spread), [a, b], y, [])]


def apply_activation(act: Any, x: Planes, y: Planes) -> list[Op]:
    """Return the operations of ``y = act(x)``; y may be x."""
    return [_build_op(Elementwise("copy", parse_activation(act)), [x], y, [])]


def copy(x: Planes, y: Planes) -> list[Op]:
    """Return the operations that copy x to y.

    The width of the zero border (halo) and the length of rows in memory may differ.
    """
    return apply_activation(None, x, y)


def affine(x: Planes, y: Planes, scale: Array, shift: Array, act: Any = None) -> list[Op]:
    """Return the operations of ``y = act(scale * x + shift)``; scale and shift are [channels], and y may be x."""
    factors = np.stack([scale, shift], 1).astype(np.float32)
    return [_build_op(Elementwise("affine", parse_activation(act)), [x], y, [factors])]


def rotary(x: Planes, cos: Planes, sin: Planes, y: Planes, half: int) -> list[Op]:
    """Return the operations of rotary embeddings, ``y = x * cos + partner(x) * sin``, for each head.

    A head has as many channels as cos and sin. In a head, the partner of channel i is channel i + half for i < half,
    channel i - half for half <= i < 2 * half, and channel i itself otherwise. y must not overlap the other values.
    """
    size = cos.channels
    partner = np.arange(size)
    partner[: 2 * half] = (partner[: 2 * half] + half) % (2 * half)
    heads = np.arange(x.channels // size)[:, None] * size
    crossed = Planes(x.geometry, x.offsets[(heads + partner).reshape(-1)])
    repeated = [Planes(one.geometry, np.tile(one.offsets, len(heads))) for one in (cos, sin)]
    return [_build_op(Elementwise("rotary", None), [x, repeated[0], crossed, repeated[1]], y, [])]


def _build_op(kernel: Elementwise, sources: Sequence[Planes], y: Planes, tables: Sequence[Any]) -> Op:
    geometries = [value.geometry for value in (*sources, y)]
    walked = [geometries[0], geometries[-1]] if kernel.spread else geometries
    zeros = kernel.act not in _NOT_ZERO_AT_ZERO and kernel.kind != "affine" and not kernel.spread
    count, floats, places = find_contiguous_runs(walked, halos=zeros)
    if kernel.spread:
        one = geometries[1]
        places = (places[0], (one.pixel_position(0, 0) * one.position_bytes, 0), places[1])
    offsets = [value.offsets for value in (*sources, y)]
    flat = [number for place in places for number in place]
    return Op(kernel, (y.channels, count, floats, *flat, *offsets, *tables))


@dataclass(frozen=True)
class Elementwise(EmittedKernel):
    """Kernel of one elementwise operation on consecutive floats of each channel."""

    kind: str
    """"copy", "affine" (one source), "add", "mul" (two) or "rotary" (four)."""
    act: Activation
    images: int = 0
    """Images per position of the second source; used only if `spread`."""
    spread: bool = False
    """Whether the second source has a single position, which is broadcast."""

    def write(self, e: Emitter) -> None:
        b = e.b
        values = {"add": 3, "mul": 3, "rotary": 5}.get(self.kind, 2)
        channels, count, floats = (e.arg(i) for i in range(3))
        places = [(e.arg(3 + 2 * i), e.arg(4 + 2 * i)) for i in range(values)]
        tables = [e.table(3 + 2 * values + i) for i in range(values)]
        low, high = e.thread_share(channels)
        with e.loop(low, high) as channel:
            entry = b.mul(channel.index, e.i64(8))
            planes = [
                e.offset_pointer(e.arena_pointer(e.load_i64(table, entry)), start)
                for table, (start, _) in zip(tables, places, strict=True)
            ]
            combine = self._combine(e, entry, 3 + 3 * values)
            with e.loop(0, count) as run:
                rows = [
                    e.offset_pointer(plane, b.mul(run.index, row))
                    for plane, (_, row) in zip(planes, places, strict=True)
                ]
                self._write_run(e, floats, rows, combine)

    def _combine(self, e: Emitter, entry: ir.Value, factors: int) -> Callable[..., ir.Value]:
        """Return a function that emits the result, given one vector from each source.

        `factors` is the index of the kernel argument that holds scale and shift.
        """
        b = e.b
        if self.kind == "affine":
            pair = e.offset_pointer(e.table(factors), entry)
            scale, shift = (e.splat(e.load_f32(pair, byte)) for byte in (0, FLOAT))
            return lambda x: activate(e, self.act, e.fma(x, scale, shift))
        if self.kind == "copy":
            return lambda x: activate(e, self.act, x)
        if self.kind == "rotary":
            return lambda x, cos, partner, sin: e.fma(partner, sin, b.fmul(x, cos))
        return lambda x, other: activate(e, self.act, (b.fadd if self.kind == "add" else b.fmul)(x, other))

    def _write_run(
        self, e: Emitter, floats: ir.Value, rows: Sequence[ir.Value], combine: Callable[..., ir.Value]
    ) -> None:
        """Emit the loops over a run of floats: several vectors at a time, then single vectors, the last one masked."""
        b, width = e.b, e.target.lanes
        step = _UNROLLED * width
        whole = b.mul(b.udiv(floats, e.i64(step)), e.i64(step))
        with e.loop(0, whole, step) as loop:
            found = [combine(*self._load_sources(e, rows, loop.index, k * width, None)) for k in range(_UNROLLED)]
            for k, value in enumerate(found):
                store(e, value, rows[-1], self._byte_offset(e, loop.index, k * width))
        with e.loop(whole, floats, width) as loop:
            mask = first_lanes_mask(e, b.sub(floats, loop.index))
            value = combine(*self._load_sources(e, rows, loop.index, 0, mask))
            store(e, value, rows[-1], self._byte_offset(e, loop.index, 0), mask)

    def _load_sources(
        self, e: Emitter, rows: Sequence[ir.Value], index: ir.Value, further: int, mask: ir.Value | None
    ) -> list[ir.Value]:
        byte = self._byte_offset(e, index, further)
        found = [load(e, row, byte, mask) for row in rows[: 1 if self.spread else -1]]
        if self.spread:
            within = e.b.and_(byte, e.i64(FLOAT * self.images - 1))
            found.append(load_repeated(e, rows[1], self.images, within))
        return found

    def _byte_offset(self, e: Emitter, index: ir.Value, further: int) -> ir.Value:
        return e.b.mul(e.b.add(index, e.i64(further)), e.i64(FLOAT))


# -- Norms over the channels of each position: see `kernels.norms` -----------------------------------------------------

# Vectors run over positions and images, so no lanes are added together. 256 bytes of positions are processed at a time,
# channel by channel, so that they stay in the L1 cache between passes.


_BYTES = 256
"""Bytes of positions of each channel that are processed together."""


def layer_norm(x: Planes, y: Planes, weight: Array | None, bias: Array | None, eps: float) -> list[Op]:
    """Return the operations of ``y = (x - mean) / sqrt(variance + eps) * weight + bias`` over channels; y may be x."""
    factors = np.zeros((x.channels, 2), np.float32)
    factors[:, 0] = 1 if weight is None else weight
    factors[:, 1] = 0 if bias is None else bias
    return [_build_norm_op("layernorm", x, y, np.array([1 / x.channels, eps], np.float32), factors)]


def rms_norm(x: Planes, y: Planes, weight: Array | None, eps: float) -> list[Op]:
    """Return the operations of ``y = x / sqrt(mean(x^2) + eps) * weight`` over channels; y may be x."""
    factors = np.ones(x.channels, np.float32) if weight is None else np.asarray(weight, np.float32)
    return [_build_norm_op("rmsnorm", x, y, np.array([1 / x.channels, eps], np.float32), factors)]


def softmax(x: Planes, y: Planes) -> list[Op]:
    """Return the operations of ``y = exp(x) / sum(exp(x))`` over channels; y may be x."""
    return [_build_norm_op("softmax", x, y)]


def _build_norm_op(title: str, x: Planes, y: Planes, *tables: Array) -> Op:
    count, floats, places = find_contiguous_runs([x.geometry, y.geometry])
    flat = [number for place in places for number in place]
    return Op(PlanarNorm(title), (x.channels, count, floats, *flat, x.offsets, y.offsets, *tables))


class _PositionCursor:
    """Emits loops over channels for a few vectors of pixels, for norms and softmax (see `norms.ChannelCursor`)."""

    compensated = True

    def __init__(self, e: Emitter, channels: ir.Value, x: ir.Value, y: ir.Value, mask: list[ir.Value | None]) -> None:
        self.e, self.channels, self.mask = e, channels, mask
        self._x, self._y = x, y
        self._tables = e.table(7), e.table(8)
        self._channel: ir.Value = None

    def load_settings(self) -> tuple[ir.Value, ir.Value]:
        e, numbers = self.e, self.e.table(9)
        self._factors = e.table(10)
        return e.splat(e.load_f32(numbers)), e.splat(e.load_f32(numbers, FLOAT))

    def reduce(self, step: Step, start: float = 0.0, sums: int = 1, *, largest: bool = False) -> Vectors:
        with self.e.loop(0, self.channels, carried=[self.e.splat(start)] * (sums * len(self.mask))) as channel:
            self._channel = channel.index
            channel.next = list(step(self._load(), channel.carried))
        return channel.results

    def write(self, step: LastStep, *, weights: int = 0) -> None:
        e = self.e
        with e.loop(0, self.channels) as channel:
            self._channel, found = channel.index, list[ir.Value]()
            if weights:
                first = e.offset_pointer(self._factors, e.b.mul(channel.index, e.i64(weights * FLOAT)))
                found = [e.splat(e.load_f32(first, FLOAT * number)) for number in range(weights)]
            self.store(step(self._load(y=not weights), [partial(_identity, one) for one in found]))

    def store(self, values: Vectors) -> None:
        place = self._position_pointer(True)
        for k, (value, mask) in enumerate(zip(values, self.mask, strict=True)):
            store(self.e, value, place, k * FLOAT * self.e.target.lanes, mask)

    def fill_padding(self, values: Vectors, number: float) -> Vectors:
        return values

    def broadcast_totals(self, totals: Vectors) -> Vectors:
        return totals

    def elementwise_maximum(self, one: ir.Value, other: ir.Value) -> ir.Value:
        return self.e.select(self.e.b.fcmp_ordered(">", one, other), one, other)

    def scalar_one(self) -> ir.Value:
        return self.e.splat(1.0)

    def mean_plus_constant(self, total: ir.Value, share: ir.Value, number: ir.Value) -> ir.Value:
        return self.e.fma(total, share, number)

    def _load(self, *, y: bool = False) -> list[ir.Value]:
        place = self._position_pointer(y)
        return [load(self.e, place, k * FLOAT * self.e.target.lanes, mask) for k, mask in enumerate(self.mask)]

    def _position_pointer(self, y: bool) -> ir.Value:
        plane = self.e.load_i64(self._tables[y], self.e.b.mul(self._channel, self.e.i64(8)))
        return self.e.offset_pointer(self.e.arena_pointer(plane), self._y if y else self._x)


def _identity(value: ir.Value) -> ir.Value:
    return value


@dataclass(frozen=True)
class PlanarNorm(EmittedKernel):
    """Kernel of a norm or softmax over channels; `title` names the operation."""

    title: str

    def write(self, e: Emitter) -> None:
        """Emit the norm of all pixels, several vectors of pixels at a time."""
        b, width = e.b, e.target.lanes
        channels, count, floats = (e.arg(i) for i in range(3))
        x, x_row, y, y_row = (e.arg(3 + i) for i in range(4))
        vectors = _BYTES // FLOAT // width
        size = e.i64(vectors * width)
        chunks = b.udiv(b.add(floats, b.sub(size, e.i64(1))), size)
        with e.loop_share_of_pairs(count, chunks) as (run, chunk):
            first = b.mul(chunk, size)
            byte = b.mul(first, e.i64(FLOAT))
            x, y = (b.add(b.add(start, b.mul(run, row)), byte) for start, row in ((x, x_row), (y, y_row)))
            rest = b.sub(floats, first)
            with b.if_else(b.icmp_signed(">=", rest, size)) as (whole, part):
                with whole:
                    NORMS[self.title](_PositionCursor(e, channels, x, y, [None] * vectors))
                with part:
                    some = [first_lanes_mask(e, b.sub(rest, e.i64(k * width))) for k in range(vectors)]
                    NORMS[self.title](_PositionCursor(e, channels, x, y, some))
