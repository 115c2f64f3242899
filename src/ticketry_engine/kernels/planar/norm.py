"""Layer norm, RMS norm and softmax over the channels of each position.

    layer norm   y = (x - mean) / sqrt(variance + eps) * weight + bias
    RMS norm     y = x / sqrt(mean(x^2) + eps) * weight
    softmax      y = exp(x - max(x)) / sum(exp(x - max(x)))

Vectors run over positions and images, so no lanes are added together. 256 bytes of positions are processed at a time,
channel by channel: one pass per sum and one to write. They stay in the L1 cache between passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ticketry_engine.kernels.activations import exp
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.planar import lanes
from ticketry_engine.kernels.planar.geometry import FLOAT, Planes
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array

_BYTES = 256
"""Bytes of each channel processed at a time."""


def layer_norm(x: Planes, y: Planes, weight: Array | None, bias: Array | None, eps: float) -> list[Op]:
    """Return operations for ``(x - mean) / sqrt(variance + eps) * weight + bias`` over channels; ``y`` may be ``x``."""
    factors = np.zeros((x.channels, 2), np.float32)
    factors[:, 0] = 1 if weight is None else weight
    factors[:, 1] = 0 if bias is None else bias
    numbers = np.array([1 / x.channels, eps], np.float32)
    return [_op(PlanarLayerNorm(), x, y, [numbers, factors])]


def rms_norm(x: Planes, y: Planes, weight: Array | None, eps: float) -> list[Op]:
    """Return operations for ``x / sqrt(mean(x^2) + eps) * weight`` over channels; ``y`` may be ``x``."""
    factors = np.ones(x.channels, np.float32) if weight is None else np.asarray(weight, np.float32)
    return [_op(RmsNorm(), x, y, [np.array([1 / x.channels, eps], np.float32), factors])]


def softmax(x: Planes, y: Planes) -> list[Op]:
    """Return operations for ``exp(x) / sum(exp(x))`` over channels; ``y`` may be ``x``."""
    return [_op(Softmax(), x, y, [])]


def _op(kernel: PlanarLayerNorm | RmsNorm | Softmax, x: Planes, y: Planes, tables: Sequence[Array]) -> Op:
    count, floats, places = lanes.runs([x.geometry, y.geometry])
    flat = [number for place in places for number in place]
    return Op(kernel, (x.channels, count, floats, *flat, x.offsets, y.offsets, *tables))


class _Stack:
    """A few vectors of positions across all channels."""

    def __init__(self, e: Emitter, channels: ir.Value, x: ir.Value, y: ir.Value, mask: list[ir.Value | None]) -> None:
        self.e, self.channels, self.mask = e, channels, mask
        self._x, self._y = x, y
        self._tables = e.table(7), e.table(8)

    def for_each_channel(
        self, step: Callable[..., Sequence[ir.Value]], carried: Sequence[ir.Value] = ()
    ) -> list[ir.Value]:
        """Write ``carried = step(channel, carried)`` for each channel in order; return the final values."""
        with self.e.loop(0, self.channels, carried=carried) as channel:
            channel.next = list(step(channel.index, channel.carried))
        return channel.results

    def load_channel(self, channel: ir.Value, y: bool = False) -> list[ir.Value]:
        place = self._place(channel, y)
        return [lanes.load(self.e, place, k * self._step, mask) for k, mask in enumerate(self.mask)]

    def store_channel(self, channel: ir.Value, values: Sequence[ir.Value]) -> None:
        place = self._place(channel, True)
        for k, (value, mask) in enumerate(zip(values, self.mask, strict=True)):
            lanes.store(self.e, value, place, k * self._step, mask)

    @property
    def _step(self) -> int:
        return FLOAT * self.e.target.lanes

    def _place(self, channel: ir.Value, y: bool) -> ir.Value:
        plane = self.e.load_i64(self._tables[y], self.e.b.mul(channel, self.e.i64(8)))
        return self.e.at(self.e.arena(plane), self._y if y else self._x)


def _over_positions(e: Emitter, body: Callable[[_Stack], None]) -> None:
    """Write ``body`` for every position, several vectors at a time."""
    b, width = e.b, e.target.lanes
    channels, count, floats = (e.arg(i) for i in range(3))
    x, x_row, y, y_row = (e.arg(3 + i) for i in range(4))
    vectors = _BYTES // FLOAT // width
    size = e.i64(vectors * width)
    chunks = b.udiv(b.add(floats, b.sub(size, e.i64(1))), size)
    with e.turns(count, chunks) as (run, chunk):
        first = b.mul(chunk, size)
        byte = b.mul(first, e.i64(FLOAT))
        x, y = (b.add(b.add(start, b.mul(run, row)), byte) for start, row in ((x, x_row), (y, y_row)))
        rest = b.sub(floats, first)
        with b.if_else(b.icmp_signed(">=", rest, size)) as (whole, part):
            with whole:
                body(_Stack(e, channels, x, y, [None] * vectors))
            with part:
                some = [lanes.first_lanes_mask(e, b.sub(rest, e.i64(k * width))) for k in range(vectors)]
                body(_Stack(e, channels, x, y, some))


@dataclass(frozen=True)
class PlanarLayerNorm(Written):
    """Layer norm kernel with one pass for the mean and one for the variance.

    The second pass also sums ``x - mean``, the rounding error of the mean, and corrects for it (Chan, Golub and
    LeVeque,
    "Algorithms for computing the sample variance", 1983), so that a mean far from 0 loses no digits.
    """

    title: ClassVar[str] = "layernorm"

    def write(self, e: Emitter) -> None:
        _over_positions(e, self._normalise)

    def _normalise(self, s: _Stack) -> None:
        e, b = s.e, s.e.b
        numbers, factors = e.table(9), e.table(10)
        share, eps = e.splat(e.load_f32(numbers)), e.splat(e.load_f32(numbers, FLOAT))
        zeros = [e.splat(0.0) for _ in s.mask]

        def add(channel: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            return [b.fadd(total, value) for total, value in zip(sums, s.load_channel(channel), strict=True)]

        means = [b.fmul(total, share) for total in s.for_each_channel(add, zeros)]

        def from_mean(channel: ir.Value) -> list[ir.Value]:
            return [b.fsub(value, mean) for value, mean in zip(s.load_channel(channel), means, strict=True)]

        def add_apart(channel: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            apart = from_mean(channel)
            squares = zip(apart, sums[len(apart) :], strict=True)
            found = [b.fadd(total, value) for total, value in zip(sums, apart, strict=False)]
            return found + [e.fma(value, value, total) for value, total in squares]

        shares = [b.fmul(total, share) for total in s.for_each_channel(add_apart, zeros + zeros)]
        missed = shares[: len(zeros)]
        variances = [b.fsub(square, b.fmul(m, m)) for square, m in zip(shares[len(zeros) :], missed, strict=True)]
        inverse = [b.fdiv(e.splat(1.0), e.intrinsic("llvm.sqrt", b.fadd(variance, eps))) for variance in variances]

        def write(channel: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            pair = e.at(factors, b.mul(channel, e.i64(2 * FLOAT)))
            weight, bias = (e.splat(e.load_f32(pair, byte)) for byte in (0, FLOAT))
            apart = [b.fsub(value, m) for value, m in zip(from_mean(channel), missed, strict=True)]
            s.store_channel(channel, [e.fma(b.fmul(a, i), weight, bias) for a, i in zip(apart, inverse, strict=True)])
            return []

        s.for_each_channel(write)


@dataclass(frozen=True)
class RmsNorm(Written):
    """Root-mean-square norm kernel."""

    def write(self, e: Emitter) -> None:
        _over_positions(e, self._normalise)

    def _normalise(self, s: _Stack) -> None:
        e, b = s.e, s.e.b
        numbers, factors = e.table(9), e.table(10)
        share, eps = e.splat(e.load_f32(numbers)), e.splat(e.load_f32(numbers, FLOAT))

        def add_square(channel: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            return [e.fma(value, value, total) for total, value in zip(sums, s.load_channel(channel), strict=True)]

        squares = s.for_each_channel(add_square, [e.splat(0.0) for _ in s.mask])
        roots = [e.intrinsic("llvm.sqrt", e.fma(square, share, eps)) for square in squares]
        inverse = [b.fdiv(e.splat(1.0), root) for root in roots]

        def write(channel: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            weight = e.splat(e.load_f32(e.at(factors, b.mul(channel, e.i64(FLOAT)))))
            values = zip(s.load_channel(channel), inverse, strict=True)
            s.store_channel(channel, [b.fmul(b.fmul(value, i), weight) for value, i in values])
            return []

        s.for_each_channel(write)


@dataclass(frozen=True)
class Softmax(Written):
    """Softmax kernel; subtracts the largest value first."""

    def write(self, e: Emitter) -> None:
        _over_positions(e, self._normalise)

    def _normalise(self, s: _Stack) -> None:
        e, b = s.e, s.e.b

        def larger(channel: ir.Value, found: list[ir.Value]) -> list[ir.Value]:
            pairs = zip(found, s.load_channel(channel), strict=True)
            return [e.select(b.fcmp_ordered(">", old, new), old, new) for old, new in pairs]

        largest = s.for_each_channel(larger, [e.splat(float("-inf")) for _ in s.mask])

        def power(channel: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            powers = [exp(e, b.fsub(value, most)) for value, most in zip(s.load_channel(channel), largest, strict=True)]
            s.store_channel(channel, powers)
            return [b.fadd(total, value) for total, value in zip(sums, powers, strict=True)]

        sums = s.for_each_channel(power, [e.splat(0.0) for _ in s.mask])
        inverse = [b.fdiv(e.splat(1.0), total) for total in sums]

        def divide(channel: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            s.store_channel(
                channel, [b.fmul(value, i) for value, i in zip(s.load_channel(channel, y=True), inverse, strict=True)]
            )
            return []

        s.for_each_channel(divide)
