"""Norms over the channels of each pixel: layer norm, root-mean-square norm and softmax.

    layer norm   y = (x - mean) / sqrt(variance + eps) * weight + bias
    RMS norm     y = x / sqrt(mean(x^2) + eps) * weight
    softmax      y = exp(x - max(x)) / sum(exp(x - max(x)))

``weight`` and ``bias`` are float32 tables [channels], padded with zeros to whole vectors. A pixel's channels are
consecutive, so sums run over whole vectors with four independent accumulators, and the lanes are added once at the end.
The second and third pass over a pixel read from the L1 cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ticketry_engine.kernels.activations import exp
from ticketry_engine.kernels.channels_last import lanes as lane
from ticketry_engine.kernels.channels_last import loops
from ticketry_engine.kernels.channels_last.geometry import ChannelsLastValue
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array

_X, _Y, _SCALE, _SHIFT = range(4)
"""Arguments: offsets of the values' first pixels; float32 [channels padded to whole vectors] of a norm with weights."""

_UNROLL = 4
"""Vectors in one turn of a loop, each with its own accumulator."""


def layer_norm(
    x: ChannelsLastValue,
    y: ChannelsLastValue,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> list[Op]:
    """Return operations for ``y = (x - mean) / sqrt(variance + eps) * weight + bias`` over channels; y may be x."""
    loops.check_same_shape(x, y)
    weight = np.ones(x.channels) if weight is None else weight
    bias = np.zeros(x.channels) if bias is None else bias
    tables = (loops.pad_to_vectors(weight, x.channels), loops.pad_to_vectors(bias, x.channels))
    shape = (x.geometry.height, x.geometry.width, x.channels)
    kernel = ChannelsLastLayerNorm(*shape, Strides.from_value(x), Strides.from_value(y), float(eps))
    return [Op(kernel, (loops.first_pixel(x), loops.first_pixel(y), *tables))]


def rms_norm(x: ChannelsLastValue, y: ChannelsLastValue, weight: Array | None = None, eps: float = 1e-6) -> list[Op]:
    """Return operations for ``y = x / sqrt(mean(x^2) + eps) * weight`` over the channels of a pixel; y may be x."""
    loops.check_same_shape(x, y)
    table = loops.pad_to_vectors(np.ones(x.channels) if weight is None else weight, x.channels)
    shape = (x.geometry.height, x.geometry.width, x.channels)
    return [
        Op(
            ChannelsLastRmsNorm(*shape, Strides.from_value(x), Strides.from_value(y), float(eps)),
            (loops.first_pixel(x), loops.first_pixel(y), table),
        )
    ]


def softmax(x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return operations for ``y = exp(x) / sum(exp(x))`` over the channels of a pixel; y may be x."""
    loops.check_same_shape(x, y)
    kernel = ChannelsLastSoftmax(
        x.geometry.height, x.geometry.width, x.channels, Strides.from_value(x), Strides.from_value(y)
    )
    return [Op(kernel, (loops.first_pixel(x), loops.first_pixel(y)))]


@dataclass(frozen=True)
class _ChannelKernel(Written):
    """A kernel that handles one pixel at a time, with all its channels."""

    height: int
    width: int
    channels: int
    x: Strides
    y: Strides

    def write(self, e: Emitter) -> None:
        with loops.loop_pixels(e, self.height, self.width, [(_X, self.x), (_Y, self.y)]) as (_, _, pixel):
            self._write_pixel(e, *pixel)

    def _write_pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        raise NotImplementedError

    def _reduce_channels(
        self,
        e: Emitter,
        start: float,
        body: Callable[[ir.Value, int, ir.Value], ir.Value],
        combine: Callable[[ir.Value, ir.Value], ir.Value],
    ) -> ir.Value:
        """Reduce a pixel's channels to one vector.

        Args:
            start: initial value of every lane.
            body: (byte in a pixel, lanes in use, accumulator) -> new accumulator.
            combine: joins two accumulators.
        """
        lanes = e.target.lanes
        size = _UNROLL * lanes
        whole = self.channels // size * size
        sums = [e.splat(start)] * _UNROLL
        with e.loop(0, whole, size, carried=sums) as turn:
            byte = e.b.mul(turn.index, e.i64(4))
            turn.next = [
                body(loops.vector_offset(e, byte, number), lanes, value) for number, value in enumerate(turn.carried)
            ]
        sums = list(turn.results)
        for number, at in enumerate(range(whole, self.channels, lanes)):
            sums[number] = body(e.i64(4 * at), min(lanes, self.channels - at), sums[number])
        return combine(combine(sums[0], sums[1]), combine(sums[2], sums[3]))


@dataclass(frozen=True)
class ChannelsLastLayerNorm(_ChannelKernel):
    """Kernel of layer norm."""

    title: ClassVar[str] = "layernorm"

    eps: float

    def _write_pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        b = e.b
        count = e.f32(1 / self.channels)

        def add(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            return b.fadd(so_far, loops.load_vector(e, x, byte, lanes, self.x.item))

        mean = e.splat(b.fmul(lane.sum_lanes(e, self._reduce_channels(e, 0.0, add, b.fadd)), count))

        def add_square(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            apart = _replace_padding(e, b.fsub(loops.load_vector(e, x, byte, lanes, self.x.item), mean), lanes, 0.0)
            return e.fma(apart, apart, so_far)

        variance = b.fmul(lane.sum_lanes(e, self._reduce_channels(e, 0.0, add_square, b.fadd)), count)
        deviation = e.intrinsic("llvm.sqrt", b.fadd(variance, e.f32(self.eps)))
        factor = e.splat(b.fdiv(e.f32(1.0), deviation))

        def write(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = loops.vector_offset(e, byte, number)
                value = b.fmul(b.fsub(loops.load_vector(e, x, at, lanes, self.x.item), mean), factor)
                value = e.fma(value, e.load(e.table(_SCALE), at), e.load(e.table(_SHIFT), at))
                loops.store_vector(e, value, y, at, lanes, self.y.item)

        loops.loop_vectors(e, self.channels, _UNROLL, write)


@dataclass(frozen=True)
class ChannelsLastRmsNorm(_ChannelKernel):
    """Kernel of RMS norm."""

    title: ClassVar[str] = "rmsnorm"

    eps: float

    def _write_pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        b = e.b

        def add_square(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            value = loops.load_vector(e, x, byte, lanes, self.x.item)  # 0 after the last channel
            return e.fma(value, value, so_far)

        mean = b.fmul(lane.sum_lanes(e, self._reduce_channels(e, 0.0, add_square, b.fadd)), e.f32(1 / self.channels))
        factor = e.splat(b.fdiv(e.f32(1.0), e.intrinsic("llvm.sqrt", b.fadd(mean, e.f32(self.eps)))))

        def write(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = loops.vector_offset(e, byte, number)
                value = b.fmul(loops.load_vector(e, x, at, lanes, self.x.item), factor)
                loops.store_vector(e, b.fmul(value, e.load(e.table(_SCALE), at)), y, at, lanes, self.y.item)

        loops.loop_vectors(e, self.channels, _UNROLL, write)


@dataclass(frozen=True)
class ChannelsLastSoftmax(_ChannelKernel):
    """Kernel of softmax."""

    title: ClassVar[str] = "softmax"

    def _write_pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        b = e.b

        def larger(a: ir.Value, c: ir.Value) -> ir.Value:
            return e.intrinsic("llvm.maxnum", a, c)

        def take_larger(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            return larger(
                so_far, _replace_padding(e, loops.load_vector(e, x, byte, lanes, self.x.item), lanes, float("-inf"))
            )

        largest = e.splat(lane.max_lane(e, self._reduce_channels(e, float("-inf"), take_larger, larger)))

        def add(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            power = exp(e, b.fsub(loops.load_vector(e, x, byte, lanes, self.x.item), largest))
            loops.store_vector(e, power, y, byte, lanes, self.y.item)
            return b.fadd(so_far, _replace_padding(e, power, lanes, 0.0))

        factor = e.splat(b.fdiv(e.f32(1.0), lane.sum_lanes(e, self._reduce_channels(e, 0.0, add, b.fadd))))

        def scale(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = loops.vector_offset(e, byte, number)
                loops.store_vector(
                    e, b.fmul(loops.load_vector(e, y, at, lanes, self.y.item), factor), y, at, lanes, self.y.item
                )

        loops.loop_vectors(e, self.channels, _UNROLL, scale)


def _replace_padding(e: Emitter, vector: ir.Value, lanes: int, other: float) -> ir.Value:
    """Replace all lanes after the first ``lanes`` by ``other``."""
    if lanes == e.target.lanes:
        return vector
    return e.select(lane.first_lanes_mask(e, lanes), vector, e.splat(other))
