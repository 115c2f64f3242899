"""Elementwise operations and norms: sums, products, scaling, activations, copies, rotary embeddings.

    y = act(x + other)     y = act(x * other)     y = act(x * scale[c] + shift[c])     y = act(x)

``other`` may have one row, one column or one channel, which is broadcast. ``scale`` and ``shift`` are float32 tables
[channels], padded with zeros to whole vectors. A pixel's channels are consecutive, so every load and store is a whole
vector, and four vectors at a time hide the latency of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import Activation, activate, exp
from ticketry_engine.kernels.channels_last import lanes as lane
from ticketry_engine.kernels.channels_last import number_formats
from ticketry_engine.kernels.channels_last.geometry import (
    FLOAT,
    ChannelsLastValue,
    Strides,
    check_same_shape,
    first_pixel,
    is_expensive,
    load_vector,
    loop_pixels,
    loop_vectors,
    pad_to_vectors,
    store_vector,
    vector_offset,
)
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.jit import ir
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
    check_same_shape(x, y)
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
            (first_pixel(x), first_pixel(other), first_pixel(y)),
        )
    ]


def apply(act: Activation, x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return operations for ``y = act(x)``; y may be x."""
    check_same_shape(x, y)
    return [Op(_build_kernel("copy", x, None, y, act), (first_pixel(x), 0, first_pixel(y)))]


def copy(x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return operations for ``y = x``; the halo, number format and channel range may differ."""
    return apply(None, x, y)


def affine(x: ChannelsLastValue, y: ChannelsLastValue, scale: Array, shift: Array, act: Activation = None) -> list[Op]:
    """Return operations for ``y = act(x * scale + shift)``, scale and shift float32 [channels]; y may be x."""
    check_same_shape(x, y)
    tables = (pad_to_vectors(scale, x.channels), pad_to_vectors(shift, x.channels))
    return [Op(_build_kernel("affine", x, None, y, act), (first_pixel(x), 0, first_pixel(y), *tables))]


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
        with loop_pixels(e, self.height, self.width, strides) as (_, _, pixel):
            self._write_pixel(e, *pixel)

    def _write_pixel(self, e: Emitter, x: ir.Value, y: ir.Value, other: ir.Value | None = None) -> None:
        spread = (
            e.splat(number_formats.load_one(e, other, self.other.item)) if self.other and self.one_channel else None
        )

        def write_vectors(byte: ir.Value, counts: list[int]) -> None:
            for number, count in enumerate(counts):
                at = vector_offset(e, byte, number)
                value = load_vector(e, x, at, count, self.x.item)
                if self.operation == "affine":
                    value = e.fma(value, e.load(e.table(_SCALE), at), e.load(e.table(_SHIFT), at))
                elif self.other is not None:
                    second = load_vector(e, other, at, count, self.other.item) if spread is None else spread
                    value = e.b.fadd(value, second) if self.operation == "add" else e.b.fmul(value, second)
                store_vector(e, activate(e, self.act, value), y, at, count, self.y.item)

        loop_vectors(e, self.channels, 1 if is_expensive(self.act) else 4, write_vectors)


# -- rotary ------------------------------------------------------------------------------------------------------------

#     y[token, c] = x[token, c] * cos[token, c] + x[token, partner(c)] * sin[token, c]
#
#     channels of a head:   0 ... half - 1 | half ... 2 half - 1 | 2 half ... size - 1
#     partner(c):           c + half       | c - half            | c
#
# Each of the three ranges is a run of consecutive channels with a constant distance to its partners, so the kernel
# loads whole vectors of both and multiplies them without shuffles.


_ROTARY_X, _COS, _SIN, _ROTARY_Y = range(4)
"""Arguments: offsets of the values' first pixels."""


def rotary(
    x: ChannelsLastValue, cos: ChannelsLastValue, sin: ChannelsLastValue, y: ChannelsLastValue, half: int
) -> list[Op]:
    """Return operations for ``y = x * cos + partner(x) * sin``, head by head; the partners are drawn above.

    Args:
        x: its channels are several heads, each with as many channels as ``cos`` and ``sin``.
        y: the result; it must not overlap the inputs.

    Raises:
        EngineError: if x does not consist of such heads, or ``2 * half`` exceeds a head's channels.
    """
    check_same_shape(x, y)
    check_same_shape(cos, sin)
    size = cos.channels
    if x.channels % size or not x.part(0, size).like(cos) or 2 * half > size:
        raise EngineError(f"{x.channels} channels cannot be split into heads of {size} with two halves of {half}")
    strides = tuple(Strides.from_value(one) for one in (x, cos, sin, y))
    kernel = Rotary(x.geometry.height, x.geometry.width, x.channels // size, size, half, *strides)
    return [Op(kernel, tuple(first_pixel(one) for one in (x, cos, sin, y)))]


@dataclass(frozen=True)
class Rotary(Written):
    """Kernel of rotary embeddings: see above."""

    height: int
    width: int
    heads: int
    size: int
    half: int
    x: Strides
    cos: Strides
    sin: Strides
    y: Strides

    def write(self, e: Emitter) -> None:
        values = [(_ROTARY_X, self.x), (_COS, self.cos), (_SIN, self.sin), (_ROTARY_Y, self.y)]
        with loop_pixels(e, self.height, self.width, values) as (_, _, pixel), e.loop(0, self.heads) as head:
            x, cos, sin, y = pixel
            x, y = (
                e.at(place, e.b.mul(head.index, e.i64(self.size * steps.item)))
                for place, steps in ((x, self.x), (y, self.y))
            )
            for first, partner, count in self._channel_runs():
                self._write_run(e, (x, cos, sin, y), first, partner, count)

    def _channel_runs(self) -> list[tuple[int, int, int]]:
        """Return runs of channels with a constant distance to their partners: (first, first partner, count)."""
        rest = self.size - 2 * self.half
        runs = [(0, self.half, self.half), (self.half, 0, self.half), (2 * self.half, 2 * self.half, rest)]
        return [run for run in runs if run[2]]

    def _write_run(self, e: Emitter, places: tuple[ir.Value, ...], first: int, partner: int, count: int) -> None:
        x, cos, sin, y = places

        def write_vectors(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = vector_offset(e, byte, number)
                mine, its = (e.b.add(at, e.i64(FLOAT * channel)) for channel in (first, partner))
                straight = e.b.fmul(
                    load_vector(e, x, mine, lanes, self.x.item),
                    load_vector(e, cos, mine, lanes, self.cos.item),
                )
                crossed = load_vector(e, x, its, lanes, self.x.item)
                turned = e.fma(crossed, load_vector(e, sin, mine, lanes, self.sin.item), straight)
                store_vector(e, turned, y, mine, lanes, self.y.item)

        loop_vectors(e, count, 2, write_vectors)


# -- Norms over the channels of each pixel: layer norm, root-mean-square norm and softmax ------------------------------

#     layer norm   y = (x - mean) / sqrt(variance + eps) * weight + bias
#     RMS norm     y = x / sqrt(mean(x^2) + eps) * weight
#     softmax      y = exp(x - max(x)) / sum(exp(x - max(x)))
#
# ``weight`` and ``bias`` are float32 tables [channels], padded with zeros to whole vectors. A pixel's channels are
# consecutive, so sums run over whole vectors with four independent accumulators, and the lanes are added once at the
# end. The second and third pass over a pixel read from the L1 cache.


_NORM_X, _NORM_Y, _NORM_SCALE, _NORM_SHIFT = range(4)
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
    check_same_shape(x, y)
    weight = np.ones(x.channels) if weight is None else weight
    bias = np.zeros(x.channels) if bias is None else bias
    tables = (pad_to_vectors(weight, x.channels), pad_to_vectors(bias, x.channels))
    shape = (x.geometry.height, x.geometry.width, x.channels)
    kernel = ChannelsLastLayerNorm(*shape, Strides.from_value(x), Strides.from_value(y), float(eps))
    return [Op(kernel, (first_pixel(x), first_pixel(y), *tables))]


def rms_norm(x: ChannelsLastValue, y: ChannelsLastValue, weight: Array | None = None, eps: float = 1e-6) -> list[Op]:
    """Return operations for ``y = x / sqrt(mean(x^2) + eps) * weight`` over the channels of a pixel; y may be x."""
    check_same_shape(x, y)
    table = pad_to_vectors(np.ones(x.channels) if weight is None else weight, x.channels)
    shape = (x.geometry.height, x.geometry.width, x.channels)
    return [
        Op(
            ChannelsLastRmsNorm(*shape, Strides.from_value(x), Strides.from_value(y), float(eps)),
            (first_pixel(x), first_pixel(y), table),
        )
    ]


def softmax(x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return operations for ``y = exp(x) / sum(exp(x))`` over the channels of a pixel; y may be x."""
    check_same_shape(x, y)
    kernel = ChannelsLastSoftmax(
        x.geometry.height, x.geometry.width, x.channels, Strides.from_value(x), Strides.from_value(y)
    )
    return [Op(kernel, (first_pixel(x), first_pixel(y)))]


@dataclass(frozen=True)
class _ChannelKernel(Written):
    """A kernel that handles one pixel at a time, with all its channels."""

    height: int
    width: int
    channels: int
    x: Strides
    y: Strides

    def write(self, e: Emitter) -> None:
        with loop_pixels(e, self.height, self.width, [(_NORM_X, self.x), (_NORM_Y, self.y)]) as (_, _, pixel):
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
                body(vector_offset(e, byte, number), lanes, value) for number, value in enumerate(turn.carried)
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
            return b.fadd(so_far, load_vector(e, x, byte, lanes, self.x.item))

        mean = e.splat(b.fmul(lane.sum_lanes(e, self._reduce_channels(e, 0.0, add, b.fadd)), count))

        def add_square(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            apart = _replace_padding(e, b.fsub(load_vector(e, x, byte, lanes, self.x.item), mean), lanes, 0.0)
            return e.fma(apart, apart, so_far)

        variance = b.fmul(lane.sum_lanes(e, self._reduce_channels(e, 0.0, add_square, b.fadd)), count)
        deviation = e.intrinsic("llvm.sqrt", b.fadd(variance, e.f32(self.eps)))
        factor = e.splat(b.fdiv(e.f32(1.0), deviation))

        def write(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = vector_offset(e, byte, number)
                value = b.fmul(b.fsub(load_vector(e, x, at, lanes, self.x.item), mean), factor)
                value = e.fma(value, e.load(e.table(_NORM_SCALE), at), e.load(e.table(_NORM_SHIFT), at))
                store_vector(e, value, y, at, lanes, self.y.item)

        loop_vectors(e, self.channels, _UNROLL, write)


@dataclass(frozen=True)
class ChannelsLastRmsNorm(_ChannelKernel):
    """Kernel of RMS norm."""

    title: ClassVar[str] = "rmsnorm"

    eps: float

    def _write_pixel(self, e: Emitter, x: ir.Value, y: ir.Value) -> None:
        b = e.b

        def add_square(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            value = load_vector(e, x, byte, lanes, self.x.item)  # 0 after the last channel
            return e.fma(value, value, so_far)

        mean = b.fmul(lane.sum_lanes(e, self._reduce_channels(e, 0.0, add_square, b.fadd)), e.f32(1 / self.channels))
        factor = e.splat(b.fdiv(e.f32(1.0), e.intrinsic("llvm.sqrt", b.fadd(mean, e.f32(self.eps)))))

        def write(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = vector_offset(e, byte, number)
                value = b.fmul(load_vector(e, x, at, lanes, self.x.item), factor)
                store_vector(e, b.fmul(value, e.load(e.table(_NORM_SCALE), at)), y, at, lanes, self.y.item)

        loop_vectors(e, self.channels, _UNROLL, write)


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
                so_far, _replace_padding(e, load_vector(e, x, byte, lanes, self.x.item), lanes, float("-inf"))
            )

        largest = e.splat(lane.max_lane(e, self._reduce_channels(e, float("-inf"), take_larger, larger)))

        def add(byte: ir.Value, lanes: int, so_far: ir.Value) -> ir.Value:
            power = exp(e, b.fsub(load_vector(e, x, byte, lanes, self.x.item), largest))
            store_vector(e, power, y, byte, lanes, self.y.item)
            return b.fadd(so_far, _replace_padding(e, power, lanes, 0.0))

        factor = e.splat(b.fdiv(e.f32(1.0), lane.sum_lanes(e, self._reduce_channels(e, 0.0, add, b.fadd))))

        def scale(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = vector_offset(e, byte, number)
                store_vector(e, b.fmul(load_vector(e, y, at, lanes, self.y.item), factor), y, at, lanes, self.y.item)

        loop_vectors(e, self.channels, _UNROLL, scale)


def _replace_padding(e: Emitter, vector: ir.Value, lanes: int, other: float) -> ir.Value:
    """Replace all lanes after the first ``lanes`` by ``other``."""
    if lanes == e.target.lanes:
        return vector
    return e.select(lane.first_lanes_mask(e, lanes), vector, e.splat(other))
