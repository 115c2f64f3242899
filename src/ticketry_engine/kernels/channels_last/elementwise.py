"""Kernels of elementwise operations and norms: sums, products, scaling, activations, copies, rotary embeddings.

    y = act(x + other)     y = act(x * other)     y = act(x * scale[c] + shift[c])     y = act(x)

If ``other`` has only one row, one column or one channel, it is broadcast. ``scale`` and ``shift`` are float32 tables
[channels], padded with zeros to whole vectors. Loads and stores are whole vectors, because the channels of a pixel are
contiguous. A loop handles four vectors at a time, so that additions need not wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels import bfloat
from ticketry_engine.kernels.activations import Activation, activate
from ticketry_engine.kernels.channels_last.geometry import (
    FLOAT,
    ChannelsLastValue,
    Strides,
    first_lanes_mask,
    first_pixel_offset,
    is_expensive,
    load_vector,
    loop_pixels,
    loop_vectors,
    max_lane,
    pad_to_vectors,
    require_same_shape,
    store_vector,
    sum_lanes,
    vector_offset,
)
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.norms import NORMS, LastStep, Step, Vectors
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array

_X, _OTHER, _Y, _SCALE, _SHIFT = range(5)
"""Positions of the arguments: arena offsets of the first pixels of x, other and y; for "affine", the tables scale and
shift, float32 [channels, padded to whole vectors]."""


def elementwise(
    kind: str, x: ChannelsLastValue, other: ChannelsLastValue, y: ChannelsLastValue, act: Activation = None
) -> list[Op]:
    """Return the operations of ``y = act(x + other)`` (kind "add") or ``y = act(x * other)`` ("mul").

    The height, width and channels of `other` are equal to those of x, or 1 to be broadcast; y may be x.
    """
    require_same_shape(x, y)
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
            (first_pixel_offset(x), first_pixel_offset(other), first_pixel_offset(y)),
        )
    ]


def apply_activation(act: Activation, x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return the operations of ``y = act(x)``; y may be x."""
    require_same_shape(x, y)
    return [Op(_build_kernel("copy", x, None, y, act), (first_pixel_offset(x), 0, first_pixel_offset(y)))]


def copy(x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return the operations that copy x to y.

    The width of the halo (zero border), the number format and the range of channels may differ.
    """
    return apply_activation(None, x, y)


def affine(x: ChannelsLastValue, y: ChannelsLastValue, scale: Array, shift: Array, act: Activation = None) -> list[Op]:
    """Return the operations of ``y = act(x * scale + shift)``; scale and shift are [channels], and y may be x."""
    require_same_shape(x, y)
    tables = (pad_to_vectors(scale, x.channels), pad_to_vectors(shift, x.channels))
    return [Op(_build_kernel("affine", x, None, y, act), (first_pixel_offset(x), 0, first_pixel_offset(y), *tables))]


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
class ChannelsLastElementwise(EmittedKernel):
    """Kernel of one elementwise operation, which the field `operation` names."""

    title: ClassVar[str] = "elementwise"

    operation: str
    """"add", "mul", "affine" or "copy"."""
    height: int
    width: int
    channels: int
    x: Strides
    other: Strides | None
    one_channel: bool
    """Whether ``other`` has one channel, which is broadcast over the channels of x."""
    y: Strides
    act: Activation

    def write(self, e: Emitter) -> None:
        strides = [(_X, self.x), (_Y, self.y)] + ([(_OTHER, self.other)] if self.other else [])
        with loop_pixels(e, self.height, self.width, strides) as (_, _, pixel):
            self._write_pixel(e, *pixel)

    def _write_pixel(self, e: Emitter, x: ir.Value, y: ir.Value, other: ir.Value | None = None) -> None:
        spread = e.splat(bfloat.load_scalar(e, other, self.other.item)) if self.other and self.one_channel else None
        for byte, counts in loop_vectors(e, self.channels, 1 if is_expensive(self.act) else 4):
            for number, count in enumerate(counts):
                at = vector_offset(e, byte, number)
                value = load_vector(e, x, at, count, self.x.item)
                if self.operation == "affine":
                    value = e.fma(value, e.load(e.table(_SCALE), at), e.load(e.table(_SHIFT), at))
                elif self.other is not None:
                    second = load_vector(e, other, at, count, self.other.item) if spread is None else spread
                    value = e.b.fadd(value, second) if self.operation == "add" else e.b.fmul(value, second)
                store_vector(e, activate(e, self.act, value), y, at, count, self.y.item)


# -- rotary ------------------------------------------------------------------------------------------------------------

#     y[token, c] = x[token, c] * cos[token, c] + x[token, partner(c)] * sin[token, c]
#
#     channels of a head:   0 ... half - 1 | half ... 2 half - 1 | 2 half ... size - 1
#     partner(c):           c + half       | c - half            | c
#
# In each of the three ranges, all channels have the same distance to their partners, so that the kernel loads whole
# vectors of channels and of partners, and multiplies them without shuffles.


_ROTARY_X, _COS, _SIN, _ROTARY_Y = range(4)
"""Positions of the arguments: arena offsets of the first pixels of x, cos, sin and y."""


def rotary(
    x: ChannelsLastValue, cos: ChannelsLastValue, sin: ChannelsLastValue, y: ChannelsLastValue, half: int
) -> list[Op]:
    """Return the operations of rotary embeddings, ``y = x * cos + partner(x) * sin``, for each head.

    A head has as many channels as cos and sin. In a head, the partner of channel i is channel i + half for i < half,
    channel i - half for half <= i < 2 * half, and channel i itself otherwise. y must not overlap the other values.
    """
    require_same_shape(x, y)
    require_same_shape(cos, sin)
    size = cos.channels
    if x.channels % size or not x.channel_range(0, size).has_shape_of(cos) or 2 * half > size:
        raise EngineError(f"{x.channels} channels cannot be split into heads of {size} with two halves of {half}")
    strides = tuple(Strides.from_value(one) for one in (x, cos, sin, y))
    kernel = Rotary(x.geometry.height, x.geometry.width, x.channels // size, size, half, *strides)
    return [Op(kernel, tuple(first_pixel_offset(one) for one in (x, cos, sin, y)))]


@dataclass(frozen=True)
class Rotary(EmittedKernel):
    """Kernel of rotary embeddings: ``y = x * cos + partner(x) * sin``, where a partner is another channel."""

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
                e.offset_pointer(place, e.b.mul(head.index, e.i64(self.size * steps.item)))
                for place, steps in ((x, self.x), (y, self.y))
            )
            for first, partner, count in self._channel_runs():
                self._write_run(e, (x, cos, sin, y), first, partner, count)

    def _channel_runs(self) -> list[tuple[int, int, int]]:
        """Divide the channels into ranges in which all channels are equally far from their partners.

        Return (first channel, its partner, number of channels) for each range.
        """
        rest = self.size - 2 * self.half
        runs = [(0, self.half, self.half), (self.half, 0, self.half), (2 * self.half, 2 * self.half, rest)]
        return [run for run in runs if run[2]]

    def _write_run(self, e: Emitter, places: tuple[ir.Value, ...], first: int, partner: int, count: int) -> None:
        x, cos, sin, y = places
        for byte, counts in loop_vectors(e, count, 2):
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


# -- Norms over the channels of each pixel: see `kernels.norms` --------------------------------------------------------

# ``weight`` and ``bias`` are float32 tables [channels], padded with zeros to whole vectors. Vectors of channels are
# added to four independent accumulators, whose lanes are added once at the end. The second and third pass over a pixel
# read from the L1 cache.


_NORM_X, _NORM_Y, _NORM_SCALE, _NORM_SHIFT = range(4)
"""Positions of the arguments: arena offsets of the first pixels of x and y; for norms with weights, the tables weight
and bias, float32 [channels, padded to whole vectors]."""

_UNROLL = 4
"""Vectors per iteration of a loop; each of them has its own accumulator."""


def layer_norm(
    x: ChannelsLastValue,
    y: ChannelsLastValue,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> list[Op]:
    """Return the operations of ``y = (x - mean) / sqrt(variance + eps) * weight + bias`` over channels; y may be x."""
    weight = np.ones(x.channels) if weight is None else weight
    bias = np.zeros(x.channels) if bias is None else bias
    return [_build_norm("layernorm", x, y, float(eps), weight, bias)]


def rms_norm(x: ChannelsLastValue, y: ChannelsLastValue, weight: Array | None = None, eps: float = 1e-6) -> list[Op]:
    """Return the operations of ``y = x / sqrt(mean(x^2) + eps) * weight`` over the channels of a pixel; y may be x."""
    return [_build_norm("rmsnorm", x, y, float(eps), np.ones(x.channels) if weight is None else weight)]


def softmax(x: ChannelsLastValue, y: ChannelsLastValue) -> list[Op]:
    """Return the operations of ``y = exp(x) / sum(exp(x))`` over the channels of a pixel; y may be x."""
    return [_build_norm("softmax", x, y, 0.0)]


def _build_norm(title: str, x: ChannelsLastValue, y: ChannelsLastValue, eps: float, *weights: Array) -> Op:
    require_same_shape(x, y)
    shape = (x.geometry.height, x.geometry.width, x.channels)
    kernel = ChannelsLastNorm(title, *shape, Strides.from_value(x), Strides.from_value(y), eps)
    tables = (pad_to_vectors(one, x.channels) for one in weights)
    return Op(kernel, (first_pixel_offset(x), first_pixel_offset(y), *tables))


@dataclass(frozen=True)
class ChannelsLastNorm(EmittedKernel):
    """Kernel of a norm or softmax over the channels of each pixel; `title` names the operation."""

    title: str
    height: int
    width: int
    channels: int
    x: Strides
    y: Strides
    eps: float

    def write(self, e: Emitter) -> None:
        with loop_pixels(e, self.height, self.width, [(_NORM_X, self.x), (_NORM_Y, self.y)]) as (_, _, (x, y)):
            NORMS[self.title](_PixelCursor(e, self, x, y))


class _PixelCursor:
    """Emits loops over the channels of a pixel, for norms and softmax (see `norms.ChannelCursor`)."""

    compensated = False

    def __init__(self, e: Emitter, kernel: ChannelsLastNorm, x: ir.Value, y: ir.Value) -> None:
        self.e, self.kernel, self._x, self._y = e, kernel, x, y
        self._at: tuple[ir.Value, int] = (None, 0)
        """(byte of the current vector in a pixel, counted as float32; number of channels in the vector)."""

    def load_settings(self) -> tuple[ir.Value, ir.Value]:
        return self.e.f32(1 / self.kernel.channels), self.e.f32(self.kernel.eps)

    def reduce(self, step: Step, start: float = 0.0, sums: int = 1, *, largest: bool = False) -> Vectors:
        e, channels, lanes = self.e, self.kernel.channels, self.e.target.lanes
        size = _UNROLL * lanes
        whole = channels // size * size
        with e.loop(0, whole, size, carried=[e.splat(start)] * _UNROLL) as turn:
            byte = e.b.mul(turn.index, e.i64(4))
            turn.next = [
                self._combine_vector(step, vector_offset(e, byte, number), lanes, value)
                for number, value in enumerate(turn.carried)
            ]
        totals = list(turn.results)
        for number, at in enumerate(range(whole, channels, lanes)):
            totals[number] = self._combine_vector(step, e.i64(4 * at), min(lanes, channels - at), totals[number])
        combine, finish = (self.elementwise_maximum, max_lane) if largest else (e.b.fadd, sum_lanes)
        return [finish(e, combine(combine(totals[0], totals[1]), combine(totals[2], totals[3])))]

    def _combine_vector(
        self, step: Callable[[Vectors, Vectors], Vectors], byte: ir.Value, lanes: int, total: ir.Value
    ) -> ir.Value:
        self._at = byte, lanes
        return step([load_vector(self.e, self._x, byte, lanes, self.kernel.x.item)], [total])[0]

    def write(self, step: LastStep, *, weights: int = 0) -> None:
        e, source = self.e, (self._x, self.kernel.x) if weights else (self._y, self.kernel.y)
        for byte, counts in loop_vectors(e, self.kernel.channels, _UNROLL):
            for number, lanes in enumerate(counts):
                at = vector_offset(e, byte, number)
                self._at = at, lanes
                tables = [partial(self._load_weight, arg) for arg in (_NORM_SCALE, _NORM_SHIFT)[:weights]]
                self.store(step([load_vector(e, source[0], at, lanes, source[1].item)], tables))

    def _load_weight(self, arg: int) -> ir.Value:
        return self.e.load(self.e.table(arg), self._at[0])

    def store(self, values: Vectors) -> None:
        store_vector(self.e, values[0], self._y, *self._at, self.kernel.y.item)

    def fill_padding(self, values: Vectors, number: float) -> Vectors:
        e, lanes = self.e, self._at[1]
        if lanes == e.target.lanes:
            return values
        return [e.select(first_lanes_mask(e, lanes), values[0], e.splat(number))]

    def broadcast_totals(self, totals: Vectors) -> Vectors:
        return [self.e.splat(total) for total in totals]

    def elementwise_maximum(self, one: ir.Value, other: ir.Value) -> ir.Value:
        return self.e.intrinsic("llvm.maxnum", one, other)

    def scalar_one(self) -> ir.Value:
        return self.e.f32(1.0)

    def mean_plus_constant(self, total: ir.Value, share: ir.Value, number: ir.Value) -> ir.Value:
        return self.e.b.fadd(self.e.b.fmul(total, share), number)
