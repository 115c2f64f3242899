"""Copy values between tensors outside the arena, of any strides, and planes: `load_tensor`, `store_tensor` and others.

    tensor [image, channel, row, column]  <->  planes [channel][row, column, image]

If the pixels of a row are contiguous in the tensor, the rows of several images are interleaved (`MovedRows`). If the
channels of a pixel are contiguous, squares of pixels and channels are transposed in registers (`Columns`). Otherwise
elements are copied one by one (`Elements`). A vector that would cross the end of a row or the last channel starts
earlier instead, so that nothing outside the tensor is accessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.copies import Copies, plan_copies
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter, StateSlot, minimum
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.planar import geometry as lanes
from ticketry_engine.kernels.planar.geometry import FLOAT, Planes
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array


def load_tensor(number: int, strides: Sequence[int], y: Planes, item: int = FLOAT) -> list[Op]:
    """Return the operations that copy a float32 tensor into planes.

    If a block has fewer images than the planes have room for, the last image is repeated. `number` is the index of the
    tensor among the tensors given to `Program.run`. `strides` are the tensor's strides in elements: image, channel,
    row, column. `item` is the bytes per value of the planes: `FLOAT`, or `bfloat.HALF` for bfloat16. With bfloat16, a
    pixel is stored for twice as many images, and vectors must have 16 lanes.
    """
    return [_build_move(number, strides, y, item, out=False)]


def store_tensor(number: int, strides: Sequence[int], x: Planes, item: int = FLOAT) -> list[Op]:
    """Return the operations that copy planes into a float32 tensor.

    `number`, `strides` and `item` have the same meaning as in `load`.
    """
    return [_build_move(number, strides, x, item, out=True)]


def store_constant(values: Array, y: Planes) -> list[Op]:
    """Return the operations that fill every image of y with `values`, float32 [channels, height, width]."""
    g, width = y.geometry, values.shape[2]
    kernel = MovedRows(g.images, min(width, lanes.MOST), False, True) if width >= 4 else Elements(False, True)
    steps = (0, FLOAT * g.height * width, FLOAT * width, FLOAT)
    place = (g.pixel_position(0, 0) * g.position_bytes, g.row * g.position_bytes, g.position_bytes)
    return [Op(kernel, (values, *steps, y.channels, g.height, width, *place, y.offsets))]


def _build_move(number: int, strides: Sequence[int], planes: Planes, item: int, out: bool) -> Op:
    g, channels = planes.geometry, planes.channels
    images = g.images * FLOAT // item
    height, width = g.height, g.width
    by_image, by_channel, by_row, by_column = strides
    if height == 1 or (width == 1 and g.row == 1) or (by_row == width * by_column and g.row == width):
        by_column = by_row if width == 1 else by_column
        height, width = 1, height * width
    pixels, depth = min(width, lanes.MOST), min(channels, lanes.MOST)
    rows = by_column == 1 and pixels >= 4
    columns = by_channel == 1 and pixels * images >= 4 and depth > 1
    kernel: MovedRows | Columns | Elements = Elements(out, item=item)
    if rows and (pixels >= depth or not columns):
        kernel = MovedRows(images, pixels, out, item=item)
    elif columns:
        kernel = Columns(images, pixels, depth, out, item)
    steps = (FLOAT * by_image, FLOAT * by_channel, FLOAT * by_row, FLOAT * by_column)
    place = (g.pixel_position(0, 0) * g.position_bytes, g.row * g.position_bytes, g.position_bytes)
    return Op(kernel, (number, *steps, channels, height, width, *place, planes.offsets))


class _MoveArguments:
    """Computes addresses in a tensor and in planes from the arguments of an operation that copies between them."""

    def __init__(self, e: Emitter, held: bool = False) -> None:
        """Emit the loads of the arguments. `held` is whether the tensor is stored in the operation, as a table."""
        self.e = e
        self.number, self.by_image, self.by_channel, self.by_row, self.by_column = (e.arg(i) for i in range(5))
        self.channels, self.height, self.width = (e.arg(i) for i in range(5, 8))
        self.start, self.row, self.step = (e.arg(i) for i in range(8, 11))
        self.planes = e.table(11)
        self.here = e.state(StateSlot.IMAGES)
        tensor = e.table(0) if held else e.tensor_pointer(self.number)
        self.tensor = e.offset_pointer(tensor, e.b.mul(e.state(StateSlot.FIRST), self.by_image))

    def tensor_row(self, channel: ir.Value, y: ir.Value) -> ir.Value:
        """Return a pointer to row `y` of a channel in the tensor, for the block's first image."""
        b = self.e.b
        return self.e.offset_pointer(self.tensor, b.add(b.mul(channel, self.by_channel), b.mul(y, self.by_row)))

    def plane_row(self, channel: ir.Value, y: ir.Value) -> ir.Value:
        """Return a pointer to row `y` of a channel in its plane."""
        b = self.e.b
        plane = self.e.arena_pointer(self.e.load_i64(self.planes, b.mul(channel, self.e.i64(8))))
        return self.e.offset_pointer(plane, b.add(self.start, b.mul(y, self.row)))

    def image_offset(self, number: int) -> ir.Value:
        """Return the bytes in the tensor from the block's first image to image `number`, at most to the last image."""
        b = self.e.b
        last = b.sub(self.here, self.e.i64(1))
        there = b.icmp_signed("<", self.e.i64(number), self.here)
        return b.mul(self.e.select(there, self.e.i64(number), last), self.by_image)

    def count_chunks(self, count: ir.Value, few: int, size: int) -> tuple[ir.Value, ir.Value]:
        """Return the number of chunks of `size` items that cover `count` items, and the start of the last chunk.

        The last chunk ends at the last item, so that it may overlap the chunk before. `few` is the smaller of `count`
        and `lanes.MOST`, known when the kernel is written; if `few` is below `size`, there is one chunk.
        """
        if few < size:
            return self.e.i64(1), self.e.i64(0)
        b = self.e.b
        return b.udiv(b.add(count, self.e.i64(size - 1)), self.e.i64(size)), b.sub(count, self.e.i64(size))


def _move_transposed(
    e: Emitter,
    near: Sequence[tuple[ir.Value, int, ir.Value | None]],
    far: Sequence[ir.Value],
    mask: ir.Value | None,
    transpose: Callable[[Emitter, Sequence[ir.Value]], list[ir.Value]],
    out: bool,
    item: int,
) -> None:
    """Emit the copy of vectors between planes and rows of the tensor, with a transpose in between.

    `near` has, for each vector in a plane, (pointer, bytes to add, mask); `far` are pointers to rows of the tensor, and
    `mask` selects lanes of these rows. The function `transpose` transposes vectors. If `out`, copy from planes to the
    tensor, else from the tensor to planes.
    """
    if not out:
        vectors = transpose(e, [lanes.load(e, row, 0, mask) for row in far])
        for value, (plane, byte, floats) in zip(vectors, near, strict=False):
            _store_vector(e, value, plane, byte, floats, item)
        return
    vectors = [_load_vector(e, plane, byte, floats, item) for plane, byte, floats in near]
    vectors += [ir.Constant(e.vector, None)] * (len(far) - len(vectors))
    # Lanes of missing images are written to the last image's row first, and the last image then overwrites them.
    for value, row in reversed(list(zip(transpose(e, vectors), far, strict=True))):
        lanes.store(e, value, row, 0, mask)


def _load_vector(e: Emitter, plane: ir.Value, byte: int, floats: ir.Value | None, item: int) -> ir.Value:
    return lanes.load(e, plane, byte, floats) if item == FLOAT else bfloat.load(e, plane, byte, item)


def _store_vector(e: Emitter, value: ir.Value, plane: ir.Value, byte: int, floats: ir.Value | None, item: int) -> None:
    """Store the lanes of `value` in the mask `floats`; if values are bfloat16 (`item` is 2), store all lanes."""
    if item == FLOAT:
        lanes.store(e, value, plane, byte, floats)
    else:
        bfloat.store(e, value, plane, byte, item)


@dataclass(frozen=True)
class MovedRows(EmittedKernel):
    """Kernel that copies rows of pixels which are contiguous in the tensor."""

    title: ClassVar[str] = "rows"  # its name in machine profiles
    images: int
    width: int
    """Pixels per row, at most `lanes.MOST`."""
    out: bool
    held: bool = False
    """Whether the tensor is a table of the operation."""
    item: int = FLOAT
    """Bytes per value in planes."""

    def write(self, e: Emitter) -> None:
        s = _MoveArguments(e, self.held)
        images = [s.image_offset(n) for n in range(self.images)]
        with e.loop_share_of_pairs(s.channels, s.height) as (channel, y):
            outside, inside = s.tensor_row(channel, y), s.plane_row(channel, y)
            count, last = s.count_chunks(s.width, self.width, e.target.lanes)
            with e.loop(0, count) as chunk:
                x = minimum(e, e.b.mul(chunk.index, e.i64(e.target.lanes)), last)
                pixels = e.offset_pointer(outside, e.b.mul(x, e.i64(FLOAT)))
                rows = [e.offset_pointer(pixels, image) for image in images]
                self._move_chunk(e, rows, e.offset_pointer(inside, e.b.mul(x, s.step)))

    def _move_chunk(self, e: Emitter, rows: Sequence[ir.Value], plane: ir.Value) -> None:
        """Emit the copy of a chunk of a row, one vector of pixels for each image."""
        width = e.target.lanes
        mask = lanes.constant_mask(e, self.width)
        together = min(self.images, width)
        for part in range(0, self.images, together):
            # byte offsets and masks of the vectors that hold these images in the plane
            places = [self._vector_byte_and_lanes(index, part, width) for index in range(together)]
            near = [(plane, byte, lanes.constant_mask(e, floats)) for byte, floats in places if floats > 0]
            ways = (lanes.interleave, lanes.deinterleave)
            _move_transposed(e, near, rows[part : part + together], mask, ways[self.out], self.out, self.item)

    def _vector_byte_and_lanes(self, index: int, part: int, width: int) -> tuple[int, int]:
        """Return the byte of vector `index` of a chunk for images from `part` on, and how many lanes a row fills."""
        if self.images >= width:
            return self.item * (index * self.images + part), width if index < self.width else 0
        return FLOAT * index * width, self.width * self.images - index * width


@dataclass(frozen=True)
class Columns(EmittedKernel):
    """Kernel that copies pixels whose channels are contiguous in the tensor."""

    images: int
    width: int
    """Pixels per row, at most `lanes.MOST`."""
    channels: int
    """Number of channels, at most `lanes.MOST`."""
    out: bool
    item: int = FLOAT
    """Bytes per value in planes."""

    def write(self, e: Emitter) -> None:
        s = _MoveArguments(e)
        images = [s.image_offset(n) for n in range(self.images)]
        tiles, last_tile = s.count_chunks(s.channels, self.channels, e.target.lanes)
        pixels = max(1, e.target.lanes // self.images)
        with e.loop_share_of_pairs(tiles, s.height) as (tile, y):
            channel = minimum(e, e.b.mul(tile, e.i64(e.target.lanes)), last_tile)
            outside = s.tensor_row(channel, y)
            rows = range(min(self.channels, e.target.lanes))
            inside = [s.plane_row(e.b.add(channel, e.i64(k)), y) for k in rows]
            count, last = s.count_chunks(s.width, self.width, pixels)
            with e.loop(0, count) as chunk:
                x = minimum(e, e.b.mul(chunk.index, e.i64(pixels)), last)
                pixel = e.offset_pointer(outside, e.b.mul(x, s.by_column))
                byte = e.b.mul(x, s.step)
                self._move_square(e, s, images, pixel, [e.offset_pointer(plane, byte) for plane in inside])

    def _move_square(
        self, e: Emitter, s: _MoveArguments, images: Sequence[ir.Value], pixel: ir.Value, planes: Sequence[ir.Value]
    ) -> None:
        """Emit the copy of a square: a vector of channels for each lane; lanes are pixels of all images."""
        width = e.target.lanes
        mask = lanes.constant_mask(e, self.channels)
        floats = lanes.constant_mask(e, self.width * self.images)
        for part in range(0, self.images, width):
            rows = list(self._lane_addresses(e, s, images[part : part + width], pixel))
            near = [(plane, self.item * part, floats) for plane in planes]
            _move_transposed(e, near, rows, mask, lanes.interleave, self.out, self.item)

    def _lane_addresses(
        self, e: Emitter, s: _MoveArguments, images: Sequence[ir.Value], pixel: ir.Value
    ) -> Iterator[ir.Value]:
        """Yield, for each lane, the address of a pixel in the tensor; lanes past a row's end use the last pixel."""
        for x in range(e.target.lanes // len(images)):
            here = e.offset_pointer(pixel, e.b.mul(s.by_column, e.i64(min(x, self.width - 1))))
            for image in images:
                yield e.offset_pointer(here, image)


@dataclass(frozen=True)
class Elements(EmittedKernel):
    """Kernel that copies single elements, for tensors of any strides and for values too small for vectors."""

    out: bool
    held: bool = False
    item: int = FLOAT

    def write(self, e: Emitter) -> None:
        s = _MoveArguments(e, self.held)
        with e.loop_share_of_pairs(s.channels, s.height) as (channel, y):
            outside, inside = s.tensor_row(channel, y), s.plane_row(channel, y)
            with e.loop(0, s.width) as column:
                pixel, plane = (
                    e.offset_pointer(place, e.b.mul(column.index, by))
                    for place, by in ((outside, s.by_column), (inside, s.step))
                )
                images = s.here if self.out else e.b.udiv(s.step, e.i64(self.item))
                with e.loop(0, images) as image:
                    there = minimum(e, image.index, e.b.sub(s.here, e.i64(1)))
                    far = e.offset_pointer(pixel, e.b.mul(there, s.by_image))
                    near = e.offset_pointer(plane, e.b.mul(image.index, e.i64(self.item)))
                    if self.out:
                        e.b.store(bfloat.load_scalar(e, near, self.item), far, align=FLOAT)
                    else:
                        bfloat.store_scalar(e, e.load_f32(far), near, self.item)


# -- gather ------------------------------------------------------------------------------------------------------------

#     y[i] = source[of[i]][element[i]]      or 0 where of[i] is -1
#
# The copies are grouped into runs of consecutive elements (`plan_copies`), which move as whole vectors.


def gather_elements(sources: Sequence[Planes], y: Planes, where: tuple[Array, Array]) -> list[Op]:
    """Return the operations that fill y with elements of `sources` and zeros.

    `where` has two arrays [channels of y, pixels of y]. The first holds the index of each element's source, or -1 for a
    zero. The second holds the number of the element in this source, channel * pixels + pixel.
    """
    of, element = where
    goals, found = _element_offsets(y).reshape(of.shape), np.zeros(of.shape, np.int64)
    for number, source in enumerate(sources):
        inside = of == number
        found[inside] = _element_offsets(source).reshape(-1)[element[inside]]
    images = y.geometry.images
    ops = []
    for number, starts, runs, length in plan_copies(goals, found, of, FLOAT * images):
        kernel = Copies(length * images, FLOAT, False, number < 0)
        ops.append(Op(kernel, (0, 0, 0, 0, len(starts), len(runs), starts, runs)))
    return ops


def _element_offsets(value: Planes) -> Array:
    """Return an array [channels, pixels]: where each element of a value is in working memory, in bytes."""
    g = value.geometry
    rows = np.arange(g.height) * g.row + g.pixel_position(0, 0)
    positions = (rows[:, None] + np.arange(g.width)).reshape(-1)
    table: Array = value.offsets[:, None] + positions * g.position_bytes
    return table
