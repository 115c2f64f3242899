"""What needs all channels of a pixel at once: layer norm, root-mean-square norm and softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ticketry_engine.kernels.activations import exp
from ticketry_engine.kernels.channels_last import lanes as lane
from ticketry_engine.kernels.channels_last import loops
from ticketry_engine.kernels.channels_last.geometry import Pixels
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array

_X, _Y, _SCALE, _SHIFT = range(4)
"""Arguments of the kernels: begins of the values, then float32 [channels, whole vectors] of a layer norm."""

_AT_ONCE = 4
"""Vectors a turn of a loop does, each with sums of its own."""


def layer_norm(
    x: Pixels, y: Pixels, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> list[Op]:
    """``y = (x - mean) / sqrt(variance + eps) * weight + bias``, both over the channels of a pixel; y may be x."""
    loops.same_shape(x, y)
    weight = np.ones(x.channels) if weight is None else weight
    bias = np.zeros(x.channels) if bias is None else bias
    tables = (loops.whole_vectors(weight, x.channels), loops.whole_vectors(bias, x.channels))
    shape = (x.geometry.height, x.geometry.width, x.channels)
    kernel = LayerNorm(*shape, Strides.of(x), Strides.of(y), float(eps))
    return [Op(kernel, (loops.begin(x), loops.begin(y), *tables))]


def rms_norm(x: Pixels, y: Pixels, weight: Array | None = None, eps: float = 1e-6) -> list[Op]:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the channels of a pixel; y may be x."""
    loops.same_shape(x, y)
    table = loops.whole_vectors(np.ones(x.channels) if weight is None else weight, x.channels)
    shape = (x.geometry.height, x.geometry.width, x.channels)
    return [Op(RmsNorm(*shape, Strides.of(x), Strides.of(y), float(eps)), (loops.begin(x), loops.begin(y), table))]


def softmax(x: Pixels, y: Pixels) -> list[Op]:
    """``y = exp(x) / sum(exp(x))`` over the channels of a pixel; y may be x."""
    loops.same_shape(x, y)
    kernel = Softmax(x.geometry.height, x.geometry.width, x.channels, Strides.of(x), Strides.of(y))
    return [Op(kernel, (loops.begin(x), loops.begin(y)))]


@dataclass(frozen=True)
class _OverChannels(Written):
    """A kernel that does one pixel after the other."""

    height: int
    width: int
    channels: int
    x: Strides
    y: Strides

    def write(self, e: Emitter) -> None:
        with loops.pixels(e, self.height, self.width, [(_X, self.x), (_Y, self.y)]) as (_, _, pixel):
            self._pixel(e, *pixel)

    def _pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        raise NotImplementedError

    def _reduce(
        self,
        e: Emitter,
        start: float,
        body: Callable[[ir.Value, int, ir.Value], ir.Value],
        combine: Callable[[ir.Value, ir.Value], ir.Value],
    ) -> ir.Value:
        """A vector that ``body`` (byte in a pixel, lanes that are channels, vector so far) has gone through."""
        lanes = e.target.lanes
        size = _AT_ONCE * lanes
        whole = self.channels // size * size
        sums = [e.splat(start)] * _AT_ONCE
        with e.loop(0, whole, size, carried=sums) as turn:
            byte = e.b.mul(turn.index, e.i64(4))
            turn.next = [
                body(loops.next_vector(e, byte, number), lanes, value) for number, value in enumerate(turn.carried)
            ]
        sums = list(turn.results)
        for number, at in enumerate(range(whole, self.channels, lanes)):
            sums[number] = body(e.i64(4 * at), min(lanes, self.channels - at), sums[number])
        return combine(combine(sums[0], sums[1]), combine(sums[2], sums[3]))


@dataclass(frozen=True)
class LayerNorm(_OverChannels):
    """Each pixel's channels less their mean, over their deviation."""

    eps: float

    def _pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        b = e.b
        count = e.f32(1 / self.channels)

        def add(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            return b.fadd(so_far, loops.get(e, x, byte, lanes, self.x.item))

        mean = e.splat(b.fmul(lane.total(e, self._reduce(e, 0.0, add, b.fadd)), count))

        def add_square(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            apart = _only(e, b.fsub(loops.get(e, x, byte, lanes, self.x.item), mean), lanes, 0.0)
            return e.fma(apart, apart, so_far)

        variance = b.fmul(lane.total(e, self._reduce(e, 0.0, add_square, b.fadd)), count)
        deviation = e.intrinsic("llvm.sqrt", b.fadd(variance, e.f32(self.eps)))
        factor = e.splat(b.fdiv(e.f32(1.0), deviation))

        def write(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = loops.next_vector(e, byte, number)
                value = b.fmul(b.fsub(loops.get(e, x, at, lanes, self.x.item), mean), factor)
                value = e.fma(value, e.load(e.table(_SCALE), at), e.load(e.table(_SHIFT), at))
                loops.put(e, value, y, at, lanes, self.y.item)

        loops.vectors(e, self.channels, _AT_ONCE, write)


@dataclass(frozen=True)
class RmsNorm(_OverChannels):
    """Each pixel's channels over the root of their mean square."""

    eps: float

    def _pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        b = e.b

        def add_square(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            value = loops.get(e, x, byte, lanes, self.x.item)  # 0 behind the last channel
            return e.fma(value, value, so_far)

        mean = b.fmul(lane.total(e, self._reduce(e, 0.0, add_square, b.fadd)), e.f32(1 / self.channels))
        factor = e.splat(b.fdiv(e.f32(1.0), e.intrinsic("llvm.sqrt", b.fadd(mean, e.f32(self.eps)))))

        def write(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = loops.next_vector(e, byte, number)
                value = b.fmul(loops.get(e, x, at, lanes, self.x.item), factor)
                loops.put(e, b.fmul(value, e.load(e.table(_SCALE), at)), y, at, lanes, self.y.item)

        loops.vectors(e, self.channels, _AT_ONCE, write)


@dataclass(frozen=True)
class Softmax(_OverChannels):
    """Exponentials of each pixel's channels, over their sum."""

    def _pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        b = e.b

        def larger(a: ir.Value, c: ir.Value) -> ir.Value:
            return e.intrinsic("llvm.maxnum", a, c)

        def most(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            return larger(so_far, _only(e, loops.get(e, x, byte, lanes, self.x.item), lanes, float("-inf")))

        largest = e.splat(lane.largest(e, self._reduce(e, float("-inf"), most, larger)))

        def add(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            power = exp(e, b.fsub(loops.get(e, x, byte, lanes, self.x.item), largest))
            loops.put(e, power, y, byte, lanes, self.y.item)
            return b.fadd(so_far, _only(e, power, lanes, 0.0))

        factor = e.splat(b.fdiv(e.f32(1.0), lane.total(e, self._reduce(e, 0.0, add, b.fadd))))

        def scale(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = loops.next_vector(e, byte, number)
                loops.put(e, b.fmul(loops.get(e, y, at, lanes, self.y.item), factor), y, at, lanes, self.y.item)

        loops.vectors(e, self.channels, _AT_ONCE, scale)


def _only(e: Emitter, vector: ir.Value, lanes: int, other: float) -> ir.Value:
    """The vector with another value behind its first ``lanes``."""
    if lanes == e.target.lanes:
        return vector
    return e.select(lane.first_lanes(e, lanes), vector, e.splat(other))
