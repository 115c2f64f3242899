"""Memory layout of channels-last values: an image is a sequence of pixels, row by row, and a pixel holds its channels.

A halo of zeros surrounds each image. Here an image of 2 x 3 pixels with ``halo`` 1 (h: zeros, p: a pixel with all its
channels):

    h h h h          row above; the halo to the right of a row is also the halo to the left of the next row
    h p p p
    h p p p
    h h h h h        row below, and the right halo of the last row

A tap of a convolution therefore reads at the same distance from every pixel, also at the border, and needs no test for
padding. The images of a block follow one another. Channels are padded to whole cache lines. Halo and padding are zero
from the start, and no kernel writes to them.

An input image with few channels that only convolutions read may be stored as one plane of pixels for each channel
(`ChannelsLastGeometry.build_channel_planes`), because padding three channels to a cache line would waste most of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels import bfloat
from ticketry_engine.kernels.activations import Activation
from ticketry_engine.kernels.bfloat import FLOAT as FLOAT
from ticketry_engine.kernels.bfloat import HALF as HALF
from ticketry_engine.kernels.emitter import F32, I1, I16, I32, I64, PTR, Emitter, StateSlot
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.window import Array

Position = TypeVar("Position", int, Array)
"""A number of pixels, or an array of such numbers."""

LINE = 64
"""Bytes of a cache line, which is as long as the widest vector."""

SLACK = 64
"""Bytes after the last image that vector loads may read."""


@dataclass(frozen=True)
class ChannelsLastGeometry:
    """Shape and strides of a value that is stored with channels as innermost axis.

    A sequence of tokens is stored as an image of one row, and a vector as an image of one pixel.
    """

    height: int
    width: int
    channels: int
    halo: int
    pixel: int
    """Bytes from one pixel to the next."""
    image: int
    """Bytes from one image to the next."""
    item: int = FLOAT
    """Bytes of one number: 4 for float32, 2 for bfloat16."""
    channel_stride: int = 0
    """Bytes from one channel to the next if each channel is a separate plane; 0 if the channels are innermost."""

    @classmethod
    def build_channel_planes(cls, height: int, width: int, channels: int, halo: int = 0) -> ChannelsLastGeometry:
        """Return the geometry of a float32 image in which each channel is contiguous; only convolutions can read it."""
        plane = _round_to_odd_lines(_count_positions(height, width, halo) * FLOAT)
        return cls(height, width, channels, halo, FLOAT, _round_to_odd_lines(channels * plane), channel_stride=plane)

    @classmethod
    def build(cls, height: int, width: int, channels: int, halo: int = 0, item: int = FLOAT) -> ChannelsLastGeometry:
        """Return the geometry of a value with innermost channels.

        Pixels and images are odd numbers of cache lines apart. At distances of powers of two, all of them would be
        mapped to a small part of the L1 cache.
        """
        pixel = _round_to_odd_lines(item * channels)
        return cls(
            height,
            width,
            channels,
            halo,
            pixel,
            _round_to_odd_lines(_count_positions(height, width, halo) * pixel),
            item,
        )

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return (self.width + self.halo) * self.pixel

    def pixel_offset(self, y: Position, x: Position) -> Position:
        """Return the bytes from an image's start to pixel (y, x), which may be up to ``halo`` outside of the image."""
        found: Position = (y + self.halo) * self.row_bytes + (x + self.halo) * self.pixel
        return found

    def bytes(self, images: int) -> int:
        """Return the bytes that a value of `images` images takes: a multiple of 64."""
        return images * self.image + SLACK


def _count_positions(height: int, width: int, halo: int) -> int:
    """Return the number of pixels that an image takes in memory, including its halo (zero border)."""
    return (height + 2 * halo) * (width + halo) + halo


def _round_to_odd_lines(size: int) -> int:
    """Round `size` bytes up to an odd number of cache lines."""
    return (-(-size // LINE) | 1) * LINE


@dataclass(frozen=True)
class ChannelsLastValue:
    """A value in working memory (the arena): its geometry, its offset, and the range of channels that belong to it.

    Values with the same geometry and offset but different channels form a concatenation without copies.
    """

    geometry: ChannelsLastGeometry
    offset: int
    first: int = 0
    """First channel of the geometry that belongs to the value."""
    channels: int = -1
    """Number of channels; -1 means all channels from ``first`` on."""

    def __post_init__(self) -> None:
        if self.channels < 0:
            object.__setattr__(self, "channels", self.geometry.channels - self.first)
        if self.first + self.channels > self.geometry.channels:
            raise ValueError(f"channels {self.first} … {self.first + self.channels} of {self.geometry.channels}")

    def channel_range(self, first: int, channels: int) -> ChannelsLastValue:
        """Return a view of `channels` channels from channel `first` of this value on."""
        return ChannelsLastValue(self.geometry, self.offset, self.first + first, channels)

    def select_channels(self, channels: Sequence[int] | Array) -> ChannelsLastValue:
        """Return a view of the given channels, which must be consecutive."""
        if list(channels) != list(range(int(channels[0]), int(channels[0]) + len(channels))):
            raise ValueError("channels of a channels-last value have to be consecutive")
        return self.channel_range(int(channels[0]), len(channels))

    @property
    def first_channel_offset(self) -> int:
        """Memory offset in bytes of the value's first channel at the start of the first image, including its halo."""
        return self.offset + (self.geometry.channel_stride or self.geometry.item) * self.first

    def has_shape_of(self, other: ChannelsLastValue) -> bool:
        """Return whether this value and `other` have the same height, width and number of channels."""
        mine, its = self.geometry, other.geometry
        return (mine.height, mine.width, self.channels) == (its.height, its.width, other.channels)


# -- loops -------------------------------------------------------------------------------------------------------------

#     for row in this thread's share of all rows of all images:      loop_rows
#         for pixel in row:                                          loop_pixels
#             for vector of channels in pixel:                       loop_vectors
#
# Bytes inside a pixel are always counted as if numbers were float32; `load_vector` and `store_vector` halve such byte
# counts for bfloat16.


@dataclass(frozen=True)
class Strides:
    """Bytes from one image, row or pixel of a value to the next; 0 along an axis that is broadcast."""

    image: int
    row: int
    pixel: int
    item: int = FLOAT

    @classmethod
    def from_value(cls, value: ChannelsLastValue, height: int = 0, width: int = 0) -> Strides:
        """Return the strides of `value`; an axis of size 1 is broadcast if `height` or `width` is larger."""
        geometry = value.geometry
        row = 0 if geometry.height == 1 < height else geometry.row_bytes
        return cls(geometry.image, row, 0 if geometry.width == 1 < width else geometry.pixel, geometry.item)

    def bytes_to(self, place: tuple[int, int, int]) -> int:
        """Return how many bytes the element at `place` (image, row, pixel) is after the first element."""
        return place[0] * self.image + place[1] * self.row + place[2] * self.pixel


def pad_to_vectors(values: Array, channels: int) -> Array:
    """Return `values`, one per channel, as float32, padded with zeros to whole vectors of the widest registers."""
    values = np.asarray(values, dtype=np.float32).reshape(-1)
    if len(values) != channels:
        raise EngineError(f"{len(values)} values for {channels} channels")
    return np.pad(values, (0, -channels % (LINE // FLOAT)))


def is_expensive(act: Activation) -> bool:
    """Return whether an activation's code is long, so that a kernel should contain the code only once."""
    return (act[0] if isinstance(act, tuple) else act) not in (None, "relu", "relu6", "leaky_relu")


def require_same_shape(x: ChannelsLastValue, y: ChannelsLastValue) -> None:
    """Raise EngineError unless x and y have the same height, width and number of channels."""
    if not x.has_shape_of(y):
        raise EngineError("input and output of an elementwise operation or norm have to have the same shape")


def first_pixel_offset(value: ChannelsLastValue) -> int:
    """Return the arena offset in bytes of pixel (0, 0) of a value's first image."""
    return value.first_channel_offset + value.geometry.pixel_offset(0, 0)


@contextmanager
def loop_rows(
    e: Emitter, height: int, strides: Sequence[tuple[int, Strides]]
) -> Iterator[tuple[ir.Value, ir.Value, list[ir.Value]]]:
    """Loop over this thread's share of rows; yield image, row, and a row pointer for each entry of `strides`."""
    b = e.b
    low, high = e.thread_share(b.mul(e.state(StateSlot.IMAGES), e.i64(height)))
    bases = [e.arena_pointer(e.arg(arg)) for arg, _ in strides]
    with e.loop(low, high) as turn:
        image = b.udiv(turn.index, e.i64(height))
        row = b.sub(turn.index, b.mul(image, e.i64(height)))
        pairs = zip(bases, [steps for _, steps in strides], strict=True)
        yield (
            image,
            row,
            [e.offset_pointer(at, b.add(b.mul(image, e.i64(s.image)), b.mul(row, e.i64(s.row)))) for at, s in pairs],
        )


@contextmanager
def loop_pixels(
    e: Emitter, height: int, width: int, strides: Sequence[tuple[int, Strides]]
) -> Iterator[tuple[ir.Value, ir.Value, list[ir.Value]]]:
    """Loop over the pixels of this thread's rows; yield row, column, and a pixel pointer per entry of `strides`."""
    with loop_rows(e, height, strides) as (_, row, starts), e.loop(0, width) as turn:
        pairs = zip(starts, strides, strict=True)
        places = [e.offset_pointer(start, e.b.mul(turn.index, e.i64(steps.pixel))) for start, (_, steps) in pairs]
        yield row, turn.index, places


def loop_vectors(e: Emitter, channels: int, most: int) -> Iterator[tuple[ir.Value, list[int]]]:
    """Emit a loop over the channels of a pixel, `most` vectors at a time, then one iteration for the remaining vectors.

    For each iteration, yield the byte offset of the first vector in the pixel, counted as if values were float32, and a
    list with the number of channels in each vector.
    """
    lanes = e.target.lanes
    full = channels // (most * lanes) * most * lanes
    if full:
        with e.loop(0, full, most * lanes) as turn:
            yield e.b.mul(turn.index, e.i64(FLOAT)), [lanes] * most
    if full < channels:
        yield e.i64(FLOAT * full), [min(lanes, channels - at) for at in range(full, channels, lanes)]


def load_vector(e: Emitter, pointer: ir.Value, byte: ir.Value, count: int, item: int = FLOAT) -> ir.Value:
    """Load `count` numbers at `byte` (counted as if they were float32) as a float32 vector; other lanes are zero."""
    return load_lanes(e, _element_pointer(e, pointer, byte, item), count, item)


def store_vector(
    e: Emitter, vector: ir.Value, pointer: ir.Value, byte: ir.Value, count: int, item: int = FLOAT
) -> None:
    """Store the first `count` lanes at `byte` (counted as if the stored numbers were float32)."""
    store_lanes(e, vector, _element_pointer(e, pointer, byte, item), count, item)


def _element_pointer(e: Emitter, pointer: ir.Value, byte: ir.Value, item: int) -> ir.Value:
    return e.offset_pointer(pointer, byte if item == FLOAT else e.b.lshr(byte, e.i64(1)))


def vector_offset(e: Emitter, byte: ir.Value, number: int) -> ir.Value:
    """Return `byte` plus the bytes of `number` float32 vectors."""
    return e.b.add(byte, e.i64(number * e.target.lanes * FLOAT))


# -- vectors of float32 in registers: masked loads and stores, gathers and scatters, sums over lanes, transposes -------

# A lane is one float32 of a vector register; a register has `Target.lanes` lanes (16 with AVX-512). Masked instructions
# touch only the memory of the lanes that are set in the mask, so that a kernel never reads past the end of a value. The
# argument ``item`` is the size of a number in memory: `FLOAT` bytes, or `HALF` bytes for bfloat16, which is converted.


def load_first_lanes(e: Emitter, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> ir.Value:
    """Load `count` numbers into the first lanes of a float32 vector; the other lanes are zero and not read."""
    if item == FLOAT:
        return _masked_load(e, pointer, count)
    return bfloat.widen(e, _masked_load(e, pointer, count, HALF, I16))


def store_first_lanes(
    e: Emitter, vector: ir.Value, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT
) -> None:
    """Store the first `count` lanes of a float32 vector; the memory of the other lanes is not written."""
    if item == FLOAT:
        _masked_store(e, vector, pointer, count)
    else:
        _masked_store(e, bfloat.narrow(e, vector), pointer, count, HALF)


def load_lanes(e: Emitter, pointer: ir.Value, count: int, item: int = FLOAT) -> ir.Value:
    """Load `count` numbers, known when the kernel is written, as a float32 vector; the other lanes are zero."""
    return bfloat.load(e, pointer, 0, item) if count == e.target.lanes else load_first_lanes(e, pointer, count, item)


def store_lanes(e: Emitter, vector: ir.Value, pointer: ir.Value, count: int, item: int = FLOAT) -> None:
    """Store the first `count` lanes of a float32 vector, where `count` is known when the kernel is written."""
    if count == e.target.lanes:
        bfloat.store(e, vector, pointer, 0, item)
    else:
        store_first_lanes(e, vector, pointer, count, item)


def first_lanes_mask(e: Emitter, count: ir.Value | int) -> ir.Value:
    """Return a mask with the first `count` lanes set."""
    lanes = e.target.lanes
    if isinstance(count, int):
        return ir.Constant(ir.VectorType(I1, lanes), [int(lane < count) for lane in range(lanes)])
    everywhere = e.splat(e.b.trunc(count, I32))
    return e.b.icmp_signed("<", ir.Constant(everywhere.type, list(range(lanes))), everywhere)


def _masked_load(e: Emitter, pointer: ir.Value, count: ir.Value | int, align: int = 4, kind: ir.Type = F32) -> ir.Value:
    """Load `count` values of type `kind` into the first lanes of a vector.

    The other lanes are zero, and their memory is not read.
    """
    vector = ir.VectorType(kind, e.target.lanes)
    given = [pointer, ir.Constant(I32, align), first_lanes_mask(e, count), ir.Constant(vector, None)]
    return e.call(f"llvm.masked.load.{_intrinsic_suffix(vector)}.p0", vector, given)


def _masked_store(e: Emitter, value: ir.Value, pointer: ir.Value, count: ir.Value | int, align: int = 4) -> None:
    """Store the first `count` lanes of `value`; the memory of the other lanes is not written."""
    given = [value, pointer, ir.Constant(I32, align), first_lanes_mask(e, count)]
    e.call(f"llvm.masked.store.{_intrinsic_suffix(value.type)}.p0", ir.VoidType(), given)


def lane_addresses(e: Emitter, base: ir.Value, offsets: ir.Value) -> ir.Value:
    """Return a vector of pointers, ``base + offsets[lane]`` in each lane; `offsets` are int64, in bytes."""
    everywhere = e.splat(e.b.ptrtoint(base, I64))
    return e.b.inttoptr(e.b.add(everywhere, offsets), ir.VectorType(PTR, e.target.lanes))


def gather(e: Emitter, pointers: ir.Value, mask: ir.Value) -> ir.Value:
    """Load one float32 per lane from the lane's pointer; lanes not in `mask` are zero and not read."""
    name = f"llvm.masked.gather.{_intrinsic_suffix(e.vector)}.v{e.target.lanes}p0"
    return e.call(name, e.vector, [pointers, ir.Constant(I32, 4), mask, e.splat(0.0)])


def scatter(e: Emitter, value: ir.Value, pointers: ir.Value, mask: ir.Value) -> None:
    """Store each lane that is set in `mask` to the lane's pointer."""
    name = f"llvm.masked.scatter.{_intrinsic_suffix(e.vector)}.v{e.target.lanes}p0"
    e.call(name, ir.VoidType(), [value, pointers, ir.Constant(I32, 4), mask])


def sum_lanes(e: Emitter, vector: ir.Value) -> ir.Value:
    """Return the sum of all lanes of a vector, added pairwise."""
    return _reduce_lanes(e, vector, e.b.fadd)


def max_lane(e: Emitter, vector: ir.Value) -> ir.Value:
    """Return the largest lane of a vector."""
    return _reduce_lanes(e, vector, lambda a, b: e.intrinsic("llvm.maxnum", a, b))


def _reduce_lanes(e: Emitter, vector: ir.Value, combine: object) -> ir.Value:
    """Combine the lanes of `vector` in pairs by the function `combine` until one number is left; return it."""
    lanes = e.target.lanes
    while lanes > 1:
        lanes //= 2
        order = [(lane + lanes) % e.target.lanes for lane in range(e.target.lanes)]
        turned = _shuffle(e, vector, ir.Constant(vector.type, ir.Undefined), order)
        vector = combine(vector, turned)  # type: ignore[operator]
    return e.b.extract_element(vector, ir.Constant(I32, 0))


def transpose(e: Emitter, rows: list[ir.Value]) -> list[ir.Value]:
    """Transpose a square matrix of values: given its rows as vectors, return its columns as vectors.

    A vector has as many lanes as there are rows.
    """
    lanes = e.target.lanes
    half = 1
    while half < lanes:
        # Exchange blocks of `half` lanes between vectors `half` apart.
        low = [lane if not lane & half else lanes + lane - half for lane in range(lanes)]
        high = [lane + half if not lane & half else lanes + lane for lane in range(lanes)]
        done = list(rows)
        for index in range(lanes):
            if not index & half:
                done[index] = _shuffle(e, rows[index], rows[index + half], low)
                done[index + half] = _shuffle(e, rows[index], rows[index + half], high)
        rows, half = done, half * 2
    return rows


def _shuffle(e: Emitter, a: ir.Value, b: ir.Value, order: list[int]) -> ir.Value:
    return e.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def _intrinsic_suffix(vector: ir.VectorType) -> str:
    """Return the suffix, such as ``v16f32``, for a vector type in names of LLVM intrinsics."""
    return f"v{vector.count}{'f32' if vector.element == F32 else vector.element}"
