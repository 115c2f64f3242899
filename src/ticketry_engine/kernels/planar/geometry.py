"""The planar layout: how a value is stored as one plane per channel, tiles on planes, and lanes of vectors.

    plane of a channel, halo 1:      . . . . . .        each position holds `images` floats
                                     . p p p p .        p: pixel   .: halo (zeros)
                                     . p p p p .
                                     . . . . . .

A halo of zeros surrounds the pixels: ``halo`` rows above and below, and ``halo`` positions between two rows, which are
the right border of one row and the left border of the next. So a tap of a convolution reads at the same distance from
every pixel, and needs no bounds checks.

A value is a list of planes at arbitrary arena offsets. Concatenating, splitting and shuffling channels only changes
that list and moves no data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry_engine.kernels.emitter import F32, I1, I8, I16, I32, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.target import Target

FLOAT = 4
"""Bytes of a float32."""

LINE = 64
"""Bytes of a cache line."""

SLACK = 256
"""Bytes after a plane that a kernel's last tile may read and write; their contents are never used."""


@dataclass(frozen=True)
class Geometry:
    """The shape of a plane, the memory of one channel.

    A value can reuse the memory of a value of equal geometry, because both keep the halo (border) zero.
    """

    height: int
    width: int
    halo: int
    images: int
    row: int
    """Positions from the start of one row to the start of the next: at least ``width + halo``."""

    @classmethod
    def build(cls, height: int, width: int, halo: int, images: int, row: int | None = None) -> Geometry:
        """Build a geometry whose rows start `row` positions apart, or as close as possible if `row` is None."""
        return cls(height, width, halo, images, width + halo if row is None else row)

    def pixel_position(self, y: int, x: int) -> int:
        """Return the position in its plane of pixel (y, x), which may be up to ``halo`` outside of the image."""
        return (y + self.halo) * self.row + x + self.halo

    def shift_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes from a pixel to the pixel `rows` rows below and `columns` columns to the right."""
        return (rows * self.row + columns) * self.position_bytes

    @property
    def positions(self) -> int:
        """Number of positions (pixels) of a plane, halo included."""
        return (self.height + 2 * self.halo) * self.row + self.halo

    @property
    def position_bytes(self) -> int:
        """Bytes from one position (pixel) of a plane to the next."""
        return FLOAT * self.images

    @property
    def bytes(self) -> int:
        """Bytes of a plane, with `SLACK` extra bytes at the end, rounded to a multiple of 64."""
        return -(-self.positions * self.position_bytes // 64) * 64 + SLACK


@dataclass(frozen=True)
class Bare(Geometry):
    """Shape of a plane without extra bytes at the end, for kernels that never read or write beyond a plane."""

    @property
    def bytes(self) -> int:
        return self.positions * self.position_bytes


@dataclass(frozen=True, eq=False)
class Planes:
    """A value: the shape of its planes (one per channel), and the byte in working memory where each begins."""

    geometry: Geometry
    offsets: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def from_offset(cls, geometry: Geometry, channels: int, offset: int) -> Planes:
        """Return a value whose planes follow one another in working memory from byte `offset` (a multiple of 64) on."""
        return cls(geometry, offset + geometry.bytes * np.arange(channels, dtype=np.int64))

    @property
    def channels(self) -> int:
        return len(self.offsets)

    def select_channels(self, channels: Sequence[int] | np.ndarray[Any, Any]) -> Planes:
        """Return a value that consists of the given channels, in the given order, in the same memory."""
        return Planes(self.geometry, self.offsets[np.asarray(channels, dtype=np.int64)])

    def channel_range(self, first: int, channels: int) -> Planes:
        """Return a view of `channels` consecutive channels from channel `first` on."""
        return Planes(self.geometry, self.offsets[first : first + channels])


# -- Tiles: sets of vectors whose sums a kernel holds in registers at once ---------------------------------------------

#     rectangle   pixels of some rows and columns; used if a position fills vectors, or a row fills whole vectors
#     run         consecutive vectors of the flattened plane, across row ends; results in the halo are masked to zero
#
# A tile's sums reuse each weight for all its vectors, so larger tiles load fewer weights per multiply-add.


@dataclass(frozen=True)
class Shape:
    """The shape of a tile (group of output vectors that are computed together).

    It consists of the byte offsets of the tile's vectors from its first vector, in planes of x, y and the residual.
    """

    x: tuple[int, ...]
    y: tuple[int, ...]
    residual: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tiles:
    """All tiles of a plane that have the same shape, with the bytes at which they begin."""

    shape: Shape
    places: np.ndarray[Any, np.dtype[np.int32]]
    """int32 [tiles, 3]: byte where a tile begins, in planes of x (for one tap without padding), y and the residual."""
    masks: np.ndarray[Any, Any] | None
    """[tiles, vectors], one bit per lane: whether the lane holds a pixel; None if all lanes hold pixels."""


def cut_tiles(
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    *,
    stride: tuple[int, int],
    lanes: int,
    most: int,
    taps: int = 1,
) -> list[Tiles]:
    """Divide the pixels of y into tiles of at most four shapes.

    A tile has at most `most` vectors of `lanes` lanes. `taps` is the larger of the window's height and width. The
    larger the window, the closer tiles are to squares. Raise `ValueError` if the same vectors cannot cover the
    positions of x, y and the residual.
    """
    residual = y if residual is None else residual
    if (residual.images, residual.height, residual.width) != (y.images, y.height, y.width) or x.images != y.images:
        raise ValueError(f"planes that do not fit each other: {x}, {residual}, {y}")
    if y.images % lanes and lanes % y.images:
        raise ValueError(f"{y.images} images neither fill vectors of {lanes} lanes nor are a part of one")
    positions = max(1, lanes // y.images)
    if positions > 1 and stride != (1, 1):
        raise ValueError("vectors of several positions need stride 1")
    if positions == 1 or y.width % positions == 0:
        return _rectangle_tiles(x, y, residual, stride, lanes, most, taps)
    if not x.row == y.row == residual.row:
        raise ValueError(f"rows of different lengths: {x}, {residual}, {y}")
    return _tiles_of_consecutive_pixels(x, y, residual, lanes, most)


def split_extent(extent: int, most: int) -> list[tuple[int, int]]:
    """Split `extent` items into few parts of at most `most` items and similar size; return (start, size) of each."""
    parts = -(-extent // most)
    bounds = [extent * part // parts for part in range(parts + 1)]
    return [(low, high - low) for low, high in itertools.pairwise(bounds)]


def _rectangle_tiles(
    x: Geometry, y: Geometry, residual: Geometry, stride: tuple[int, int], lanes: int, most: int, taps: int
) -> list[Tiles]:
    positions, deep = max(1, lanes // y.images), max(1, y.images // lanes)
    columns = y.width // positions
    rows, cols = _best_rectangle(y.height, columns, most // deep, positions, stride, taps)

    def offsets(geometry: Geometry, stride: tuple[int, int], height: int, width: int) -> tuple[int, ...]:
        """Return the bytes from where a tile begins to each of its vectors."""
        return tuple(
            (row * stride[0] * geometry.row + column * positions * stride[1]) * geometry.position_bytes
            + part * lanes * FLOAT
            for row in range(height)
            for column in range(width)
            for part in range(deep)
        )

    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for top, height in split_extent(y.height, rows):
        for column, width in split_extent(columns, cols):
            left = column * positions
            from_x = x.pixel_position(top * stride[0], left * stride[1]) * x.position_bytes
            place = (
                from_x,
                y.pixel_position(top, left) * y.position_bytes,
                residual.pixel_position(top, left) * residual.position_bytes,
            )
            found.setdefault((height, width), []).append(place)
    all_tiles = []
    for size, places in found.items():
        shape = Shape(offsets(x, stride, *size), offsets(y, (1, 1), *size), offsets(residual, (1, 1), *size))
        all_tiles.append(Tiles(shape, np.array(places, dtype=np.int32), None))
    return all_tiles


def _best_rectangle(
    height: int, columns: int, most: int, positions: int, stride: tuple[int, int], taps: int
) -> tuple[int, int]:
    """Return the size of a tile, in rows and in vectors per row, with the least time for loads of weights and inputs.

    y has `height` rows, each with `columns` vectors of `positions` positions. A tile has at most `most` vectors, and
    the window `taps` rows or columns.
    """
    best, least = (1, 1), math.inf
    for rows in range(1, min(height, most) + 1):
        for cols in range(1, min(columns, most // rows) + 1):
            tiles = -(-height // rows) * -(-columns // cols)
            parts = {(h, w) for _, h in split_extent(height, rows) for _, w in split_extent(columns, cols)}
            reads = ((rows - 1) * stride[0] + taps) * (((cols - 1) * stride[1] + (taps - 1) / positions) + 1)
            time = tiles * (2 + 0.15 * reads / taps) + 0.01 * height * columns * (len(parts) - 1)
            if time < least:
                best, least = (rows, cols), time
    return best


def _tiles_of_consecutive_pixels(x: Geometry, y: Geometry, residual: Geometry, lanes: int, most: int) -> list[Tiles]:
    positions = lanes // y.images
    pixels = np.zeros((y.height, y.row), dtype=bool)
    pixels[:, : y.width] = True
    flat = pixels.reshape(-1)[: (y.height - 1) * y.row + y.width]
    vectors = -(-len(flat) // positions)
    whole = np.zeros(vectors * positions, dtype=bool)
    whole[: len(flat)] = flat
    bits = np.repeat(whole, y.images).reshape(vectors, lanes) @ (1 << np.arange(lanes))
    found: dict[int, list[int]] = {}
    for first, size in split_extent(vectors, most):
        found.setdefault(size, []).append(first)
    all_tiles = []
    for size, firsts in found.items():
        offsets = tuple(vector * lanes * FLOAT for vector in range(size))
        starts = [g.pixel_position(0, 0) * g.position_bytes for g in (x, y, residual)]
        places = np.array([[start + first * lanes * FLOAT for start in starts] for first in firsts], dtype=np.int32)
        masks = np.stack([bits[first : first + size] for first in firsts])
        full = bool((masks == (1 << lanes) - 1).all())
        all_tiles.append(Tiles(Shape(offsets, offsets, offsets), places, None if full else masks))
    return all_tiles


# -- Lane operations of planar kernels: masks, partial vectors, transposes, repeated images ----------------------------

# images < lanes:   a vector holds several positions      [p0 i0, p0 i1, p1 i0, p1 i1, ...]
# images >= lanes:  a position takes several vectors


MOST = 16
"""Greatest number of float32 lanes that a target's vectors have."""


def vector_type(lanes: int) -> ir.VectorType:
    """Return the type of a vector of `lanes` float32 values."""
    return ir.VectorType(F32, lanes)


def shuffle(e: Emitter, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """Return a vector of the selected `lanes` of a and b; the lanes of b are numbered after those of a."""
    return e.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def splat(e: Emitter, scalar: ir.Value, lanes: int) -> ir.Value:
    """Return a vector of `lanes` lanes that all hold `scalar`."""
    one = e.b.insert_element(ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined), scalar, ir.Constant(I32, 0))
    return shuffle(e, one, one, [0] * lanes)


def first_lanes_mask(e: Emitter, count: ir.Value) -> ir.Value:
    """Return a mask with the first `count` lanes set: no lane if `count` is negative, all if it is large."""
    lanes = e.target.lanes
    most = e.i64(lanes)
    few = e.b.trunc(e.select(e.b.icmp_signed("<", count, most), count, most), I32)
    return e.b.icmp_signed("<", ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))), splat(e, few, lanes))


def load_bit_mask(e: Emitter, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
    """Load a mask that is stored as an element of type `mask_type`, with one bit per lane."""
    lanes = e.target.lanes
    bits = e.b.load(e.offset_pointer(pointer, byte), typ=I16 if lanes == 16 else I8, align=1)
    if lanes < 8:
        bits = e.b.trunc(bits, ir.IntType(lanes))
    return e.b.bitcast(bits, ir.VectorType(I1, lanes))


def mask_type(target: Target) -> np.dtype[Any]:
    """Return the element type of tables of masks: one element has a bit for each lane of a vector."""
    return np.dtype(np.uint16 if target.lanes == 16 else np.uint8)


def constant_mask(e: Emitter, count: int) -> ir.Value | None:
    """Return a constant mask with the first `count` lanes set; None if these are all lanes of a vector."""
    lanes = e.target.lanes
    return None if count >= lanes else ir.Constant(ir.VectorType(I1, lanes), [lane < count for lane in range(lanes)])


def load(
    e: Emitter,
    pointer: ir.Value,
    byte: ir.Value | int = 0,
    mask: ir.Value | None = None,
    otherwise: ir.Value | None = None,
) -> ir.Value:
    """Load a vector. If there is a `mask`, read only its lanes; the others come from `otherwise`, by default zero."""
    if mask is None:
        return e.load(pointer, byte)
    given = [e.offset_pointer(pointer, byte), ir.Constant(I32, FLOAT), mask, otherwise or ir.Constant(e.vector, None)]
    return e.call(f"llvm.masked.load.v{e.target.lanes}f32.p0", e.vector, given)


def store(
    e: Emitter, value: ir.Value, pointer: ir.Value, byte: ir.Value | int = 0, mask: ir.Value | None = None
) -> None:
    """Store the lanes of `value` that are set in `mask`; without a mask, store all lanes."""
    if mask is None:
        e.store(value, pointer, byte)
        return
    given = [value, e.offset_pointer(pointer, byte), ir.Constant(I32, FLOAT), mask]
    e.call(f"llvm.masked.store.v{e.target.lanes}f32.p0", ir.VoidType(), given)


def store_first_lanes(e: Emitter, value: ir.Value, pointer: ir.Value, byte: int, count: int) -> None:
    """Store the first `count` lanes of `value`, in pieces of 1, 2, 4, ... lanes where masked stores are slow."""
    if e.target.has_masked_memory_access or count >= e.target.lanes:
        store(e, value, pointer, byte, constant_mask(e, count))
        return
    done = 0
    while done < count:
        size = 1 << ((count - done).bit_length() - 1)
        piece = shuffle(e, value, value, range(done, done + size))
        e.store(piece, pointer, byte + done * FLOAT)
        done += size


def clear_lanes(e: Emitter, value: ir.Value, mask: ir.Value) -> ir.Value:
    """Return `value` with zero in some lanes; `mask` points to int32 per lane: 0 to clear the lane, -1 to keep it."""
    whole = ir.VectorType(I32, e.target.lanes)
    kept = e.b.and_(e.b.bitcast(value, whole), e.b.load(mask, typ=whole, align=4))
    return e.b.bitcast(kept, e.vector)


def interleave(e: Emitter, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """Return vectors with lane 0 of all rows, then lane 1, and so on: for as many rows as lanes, the transpose."""
    if len(rows) == 1:
        return list(rows)
    lanes, found = rows[0].type.count, []
    for a, b in zip(interleave(e, rows[::2]), interleave(e, rows[1::2]), strict=True):
        for start in (0, lanes // 2):
            found.append(shuffle(e, a, b, [k for i in range(start, start + lanes // 2) for k in (i, lanes + i)]))
    return found


def deinterleave(e: Emitter, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """Invert `interleave`: return the rows from which it makes `vectors`."""
    if len(vectors) == 1:
        return list(vectors)
    lanes, halves = vectors[0].type.count, []
    for odd in (0, 1):
        picked = [shuffle(e, a, b, range(odd, 2 * lanes, 2)) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        halves.append(deinterleave(e, picked))
    return [row for pair in zip(*halves, strict=True) for row in pair]


def load_repeated(e: Emitter, pointer: ir.Value, images: int, byte: ir.Value | int = 0) -> ir.Value:
    """Load the values of `images` images (at most a vector) at a position, and repeat them to fill a vector."""
    lanes = e.target.lanes
    if images >= lanes:
        return e.load(pointer, byte)
    if images == 1:
        return e.splat(e.load_f32(pointer, byte))
    few = e.b.load(e.offset_pointer(pointer, byte), typ=vector_type(images), align=FLOAT)
    return shuffle(e, few, few, [lane % images for lane in range(lanes)])


def sum_positions(e: Emitter, value: ir.Value, images: int) -> ir.Value:
    """Sum a vector over the positions that it holds, and return a vector with one lane for each of `images` images."""
    count = value.type.count
    while count > images:
        count //= 2
        low, high = (shuffle(e, value, value, range(start, start + count)) for start in (0, count))
        value = e.b.fadd(low, high)
    return value


def pick_positions(e: Emitter, vectors: Sequence[ir.Value], images: int, phase: int = 0) -> ir.Value:
    """Return a vector of every n-th position of n vectors, from position `phase` on.

    A position (pixel) has `images` lanes, one for each image.
    """
    width = e.target.lanes
    position, lane = np.divmod(np.arange(width), images)
    wanted = [int(place) for place in (position * len(vectors) + phase) * images + lane]
    found = vectors[0]
    for part in range(1, len(vectors)):
        # Lanes from earlier vectors are already in place.
        taken = [place % width + width if place // width == part else k for k, place in enumerate(wanted)]
        if part == 1:
            taken = [place if place < 2 * width else 0 for place in wanted]
        found = shuffle(e, found, vectors[part], taken)
    return found


def find_contiguous_runs(
    geometries: Sequence[Geometry], halos: bool = False
) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Return how planes of equal height, width and number of images are divided into runs of consecutive floats.

    The result has the number of runs, the floats per run, and for each geometry (byte of the first run, bytes between
    two runs). If `halos`, runs may include the zeros between rows (halo), so that a whole plane can be a single run.
    """
    first = geometries[0]
    places = tuple((g.pixel_position(0, 0) * g.position_bytes, g.row * g.position_bytes) for g in geometries)
    if len({g.row for g in geometries}) == 1 and (halos or first.row == first.width or first.height == 1):
        return 1, ((first.height - 1) * first.row + first.width) * first.images, places
    return first.height, first.width * first.images, places
