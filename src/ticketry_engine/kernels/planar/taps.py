"""Kernel of layers whose rows read few inputs, such as depthwise convolutions: sums of shifted planes without copies.

    y[row][t] = act(bias + residual + sum over taps of weight[tap] * (x[t * stride + shift(tap)] if inside else 0))

If a vector spans several positions, a tap may read outside of x for some of them. `unfold` copies planes to avoid that,
which pays if many rows read a copy. Here vectors are read in place, and a table of masks sets the lanes that read
outside to zero. With a horizontal stride, `stride` neighbouring vectors are read, and every stride-th position is kept.

With mask registers (AVX-512), a mask has one bit per lane, and masked lanes are not read. On other processors, masked
loads and stores are slow. There all lanes are read, even outside of the plane, and ANDed with a mask of whole lanes;
equal masks are stored once. All tiles of a row are processed before the next row.

Tables:
    segments (int32), one per row: number of columns; bytes of the row's planes of y and residual (0 if none); bias
    columns (int32): for each retained weight, its byte (plane plus shift) and the number of its tap
    weights (float32), one per column
    chunks (int64), parts of the rows that threads share: first segment, number of segments, first column
    for each shape of tiles:
        places (int32): bytes where a tile begins in planes of x, y and the residual; the number of tiles
        masks of the lanes that are read and of those that are written
            AVX-512: bits, [tiles, taps, vectors, stride] and [tiles, vectors]
            otherwise: uint16 [tiles, taps, vectors] and [tiles, vectors], byte of a mask in the next table
        masks (int32) [n, lanes]
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ticketry_engine.kernels.activations import Activation, activate_all
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.planar.geometry import (
    FLOAT,
    MOST,
    Geometry,
    Shape,
    clear_lanes,
    load,
    load_bit_mask,
    mask_type,
    pick_positions,
    split_extent,
    store,
    store_first_lanes,
)
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array, Window

SEGMENTS, COLUMNS, WEIGHTS, CHUNKS, CHUNK_COUNT, SHAPES = range(6)
"""Positions of the arguments: four tables and the number of chunks; then `SHAPE_ARGS` arguments for each tile shape:
places, their number, masks of lanes read, masks of lanes written, table of masks."""

SHAPE_ARGS = 5

SEGMENT_WORDS = 4


@dataclass(frozen=True)
class Taps(EmittedKernel):
    """Kernel that computes output channels with few inputs, as weighted sums of input planes.

    Masks at the border of the image replace what is outside by zeros.

    Args:
        shapes: shapes of the tiles; the kernel contains separate code for each shape.
        taps: number of taps of the window.
        stride: horizontal stride of the window.
        images: number of images, whose values for a pixel are stored side by side.
        few: for each shape and vector, how many lanes are written; these are the first lanes.
        masked: for each shape, whether some of the leading lanes are between two rows and must stay zero.
        residual: whether another value is added to the sums.
        act: activation of the result.
    """

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    taps: int
    stride: int
    images: int
    few: tuple[tuple[int, ...], ...]
    masked: tuple[bool, ...]
    residual: bool
    act: Activation

    def write(self, e: Emitter) -> None:
        b = e.b
        segments, columns, chunks = e.table(SEGMENTS), e.table(COLUMNS), e.table(CHUNKS)
        low, high = e.thread_share(e.arg(CHUNK_COUNT))
        with e.loop(low, high) as turn:
            chunk = e.offset_pointer(chunks, b.mul(turn.index, e.i64(24)))
            first, count, column = (e.load_i64(chunk, 8 * word) for word in range(3))
            with e.loop(first, b.add(first, count), carried=[column]) as row:
                segment = e.offset_pointer(segments, b.mul(row.index, e.i64(4 * SEGMENT_WORDS)))
                begin = row.carried[0]
                end = b.add(begin, e.load_i32(segment))
                row.next = [end]
                for number in range(len(self.shapes)):
                    _Tiles(self, e, number).write_tiles(segment, columns, begin, end)


class _Tiles:
    """Writer of the code of a `Taps` kernel for the tiles of one shape."""

    def __init__(self, kernel: Taps, e: Emitter, number: int) -> None:
        self.kernel, self.e, self.shape = kernel, e, kernel.shapes[number]
        self.masked, self.few = kernel.masked[number], kernel.few[number]
        self.bytes, self.parts = (
            _mask_entry_type(e.target).itemsize,
            kernel.stride if e.target.has_masked_memory_access else 1,
        )
        at = SHAPES + SHAPE_ARGS * number
        self.places, self.count = e.table(at), e.arg(at + 1)
        self.read, self.written, self.masks = e.table(at + 2), e.table(at + 3), e.table(at + 4)
        self.weights = e.table(WEIGHTS)

    def write_tiles(self, segment: Any, columns: Any, begin: Any, end: Any) -> None:
        e, b, kernel, vectors = self.e, self.e.b, self.kernel, len(self.shape.x)
        arena, bias = e.arena_pointer(), e.splat(e.load_f32(segment, 4 * (SEGMENT_WORDS - 1)))
        with e.loop(0, self.count) as tile:
            place = e.offset_pointer(self.places, b.mul(tile.index, e.i64(12)))
            x, y, residual = (e.offset_pointer(arena, e.load_i32(place, 4 * word)) for word in range(3))
            y, residual = (
                e.offset_pointer(y, e.load_i32(segment, 4)),
                e.offset_pointer(residual, e.load_i32(segment, 8)),
            )
            masks = e.offset_pointer(
                self.read, b.mul(tile.index, e.i64(self.bytes * kernel.taps * vectors * self.parts))
            )
            with e.loop(begin, end, carried=[bias] * vectors) as column:
                entry = e.offset_pointer(columns, b.mul(column.index, e.i64(8)))
                tap = e.i64(self.bytes * vectors * self.parts)
                source, mask = (
                    e.offset_pointer(x, e.load_i32(entry)),
                    e.offset_pointer(masks, b.mul(e.load_i32(entry, 4), tap)),
                )
                weight = e.splat(e.load_f32(self.weights, b.mul(column.index, e.i64(4))))
                column.next = [
                    e.fma(weight, self._load_input(source, mask, number), value)
                    for number, value in enumerate(column.carried)
                ]
            written = e.offset_pointer(self.written, b.mul(tile.index, e.i64(self.bytes * vectors)))
            sums = column.results
            if kernel.residual:
                sums = [
                    b.fadd(value, e.load(residual, at)) for value, at in zip(sums, self.shape.residual, strict=True)
                ]
            for number, value in enumerate(activate_all(e, kernel.act, sums)):
                self._store_vector(value, y, written, number)

    def _store_vector(self, value: Any, y: Any, masks: Any, number: int) -> None:
        """Store vector `number` of a tile, without the lanes that hold no pixel."""
        e, byte = self.e, self.shape.y[number]
        if self.masked and e.target.has_masked_memory_access:
            store(e, value, y, byte, load_bit_mask(e, masks, self.bytes * number))
        elif self.masked:
            store(e, self._clear_lanes(value, masks, number), y, byte)
        else:
            store_first_lanes(e, value, y, byte, self.few[number])

    def _clear_lanes(self, value: Any, masks: Any, number: int) -> Any:
        """Return `value` with zero in the lanes that entry `number` of a table of masks excludes."""
        at = self.e.load_u16(masks, self.bytes * number)
        return clear_lanes(self.e, value, self.e.offset_pointer(self.masks, at))

    def _load_input(self, source: Any, masks: Any, number: int) -> Any:
        """Load what a tap (kernel position) reads for vector `number` of a tile, with zeros for pixels outside of x."""
        e, stride, width = self.e, self.kernel.stride, self.e.target.lanes * FLOAT
        if not e.target.has_masked_memory_access:
            read = [e.load(source, self.shape.x[number] + part * width) for part in range(stride)]
            return self._clear_lanes(
                pick_positions(e, read, self.kernel.images) if stride > 1 else read[0], masks, number
            )
        parts = [
            load(
                e,
                source,
                self.shape.x[number] + part * width,
                load_bit_mask(e, masks, self.bytes * (number * stride + part)),
            )
            for part in range(stride)
        ]
        return parts[0] if stride == 1 else pick_positions(e, parts, self.kernel.images)


@dataclass(frozen=True, eq=False)
class MaskedTiles:
    """All tiles of one shape, with masks that say which lanes are read and written."""

    shape: Shape
    few: tuple[int, ...]
    """Number of leading lanes of each vector that are written."""
    places: Array
    """int32 [tiles, 3]: bytes where a tile begins in planes of x (for one tap without padding), y and the residual."""
    read: Array
    """Masks of the lanes that each tap reads, in the form that the module docstring describes."""
    written: Array
    """Masks of the lanes that are written, in the same form."""
    masks: Array
    """int32 [n, lanes], the masks to which `read` and `written` refer; unused if those tables hold bits."""
    masked: bool
    """Whether some of the first `few` lanes belong to no pixel."""


def _mask_entry_type(target: Target) -> np.dtype[Any]:
    """Return the dtype of the tables `read` and `written` of `MaskedTiles`: bits of masks, or byte offsets of masks."""
    return mask_type(target) if target.has_masked_memory_access else np.dtype(np.uint16)


@dataclass(frozen=True)
class _Vector:
    """A vector of output pixels: its pixels, and the byte offsets of its first lane in planes of x, y and residual."""

    x: int
    y: int
    residual: int
    pixels: tuple[tuple[int, int] | None, ...]


@functools.lru_cache(maxsize=256)
def make_tiles(
    x: Geometry, y: Geometry, residual: Geometry | None, window: Window, target: Target
) -> list[MaskedTiles]:
    """Divide the pixels of y into tiles.

    If all rows have equal length and the stride is 1, a vector may continue into the next row.
    """
    beside = y if residual is None else residual
    each, follow = target.lanes // y.images, window.stride == (1, 1) and x.row == y.row == beside.row
    found: dict[tuple[Shape, tuple[int, ...]], list[list[_Vector]]] = {}
    for pixels in _iterate_tile_vectors(y, follow, each, 12 if target.registers >= 32 else 6):
        vectors = [_build_vector(x, y, beside, window, some, each) for some in pixels]
        first = vectors[0]
        shape = Shape(
            tuple(one.x - first.x for one in vectors),
            tuple(one.y - first.y for one in vectors),
            tuple(one.residual - first.residual for one in vectors),
        )
        few = tuple(target.lanes if follow else count * y.images for _, _, count in pixels)
        found.setdefault((shape, few), []).append(vectors)
    return [_build_tiles(shape, few, tiles, x, y, window, target) for (shape, few), tiles in found.items()]


def largest_read_distance(x: Geometry, window: Window) -> int:
    """Return how many bytes before or after a plane of x the kernel positions of a window may read."""
    return (
        max(abs(x.shift_bytes(*window.tap_offset(tap))) for tap in window.taps) + (window.stride[1] + 1) * MOST * FLOAT
    )


_Run = tuple[int, int, int]
"""A vector's row, first column and number of positions; a column after the row's end is in a later row."""


def _iterate_tile_vectors(y: Geometry, follow: bool, each: int, most: int) -> Iterator[list[_Run]]:
    """Yield the vectors of each tile: at most `most` vectors of `each` pixels.

    If `follow`, vectors may continue in the next row of the image.
    """
    if follow:
        last = (y.height - 1) * y.row + y.width
        for first, size in split_extent(-(-last // each), most):
            yield [(0, at * each, min(each, last - at * each)) for at in range(first, first + size)]
        return
    across = split_extent(-(-y.width // each), most)
    for top, rows in split_extent(y.height, max(1, most // max(size for _, size in across))):
        for first, size in across:
            yield [
                (row, at * each, min(each, y.width - at * each))
                for row in range(top, top + rows)
                for at in range(first, first + size)
            ]


def _build_vector(x: Geometry, y: Geometry, residual: Geometry, window: Window, run: _Run, each: int) -> _Vector:
    row, at, count = run
    places = [divmod(row * y.row + at + number, y.row) for number in range(count)]
    return _Vector(
        (x.pixel_position(row * window.stride[0], 0) + at * window.stride[1]) * x.position_bytes,
        (y.pixel_position(row, 0) + at) * y.position_bytes,
        (residual.pixel_position(row, 0) + at) * residual.position_bytes,
        (*(place if place[1] < y.width else None for place in places), *[None] * (each - count)),
    )


def _build_tiles(
    shape: Shape,
    few: tuple[int, ...],
    tiles: Sequence[Sequence[_Vector]],
    x: Geometry,
    y: Geometry,
    window: Window,
    target: Target,
) -> MaskedTiles:
    places = np.array([[t[0].x, t[0].y, t[0].residual] for t in tiles], dtype=np.int32)
    nothing = -(1 << 20)
    pixels = np.array([[[p or (nothing, nothing) for p in v.pixels] for v in t] for t in tiles])  # [tiles, v, each, 2]
    there = pixels[..., 0] > nothing
    seen = np.stack(
        [
            there
            & _is_in_range(window.input_position(0, tap[0], 0) + pixels[..., 0] * window.stride[0], x.height)
            & _is_in_range(window.input_position(0, tap[1], 1) + pixels[..., 1] * window.stride[1], x.width)
            for tap in window.taps
        ],
        axis=1,
    )  # [tiles, taps, v, each]
    masked = bool((there.repeat(y.images, axis=-1) != (np.arange(target.lanes) < np.array(few)[:, None])).any())
    if target.has_masked_memory_access:
        read = _lane_masks(seen, window.stride[1], y.images, target)
        return MaskedTiles(
            shape, few, places, read, _lane_masks(there, 1, y.images, target)[..., 0], np.zeros(1), masked
        )
    both = np.concatenate([seen, there[:, None]], axis=1)  # [tiles, taps + 1, v, each]
    bits = _lane_masks(both, 1, y.images, target)[..., 0]
    kinds, at = np.unique(bits, return_inverse=True)
    masks = -(kinds[:, None].astype(np.int32) >> np.arange(target.lanes, dtype=np.int32) & 1)
    entries = (at.reshape(bits.shape) * target.lanes * FLOAT).astype(_mask_entry_type(target))
    read, written = (np.ascontiguousarray(some) for some in (entries[:, :-1], entries[:, -1]))
    return MaskedTiles(shape, few, places, read, written, np.ascontiguousarray(masks, dtype=np.int32), masked)


def _is_in_range(place: Array, extent: int) -> Array:
    found: Array = (place >= 0) & (place < extent)
    return found


def _lane_masks(there: Array, stride: int, images: int, target: Target) -> Array:
    """Return bit masks of the lanes that are used in the `stride` input vectors read for one output vector."""
    spread = np.zeros((*there.shape[:-1], there.shape[-1] * stride), dtype=bool)
    spread[..., ::stride] = there
    all_lanes = np.repeat(spread, images, axis=-1).reshape(*there.shape[:-1], stride, target.lanes)
    found: Array = (all_lanes @ (1 << np.arange(target.lanes))).astype(mask_type(target))
    return found


def build_op(
    tiles: Sequence[MaskedTiles],
    columns: tuple[Array, Array, Array, Array],
    rows: tuple[Array, Array | None, Array],
    window: Window,
    images: int,
    act: Activation,
    target: Target,
) -> Op:
    """Return the operation that computes a layer with the kernel `Taps`.

    `columns` has four arrays with an entry for each retained weight, row by row: its row, the byte that it reads (byte
    of the plane plus shift of the tap), its tap (kernel position), and the weight. `rows` has three arrays with an
    entry for each row: the byte of its plane of y, the byte of its plane of the residual, and its bias.
    """
    row, begins, tap, weights = columns
    y, residual, bias = rows
    count = np.bincount(row, minlength=len(y))
    beside = np.zeros_like(y) if residual is None else residual
    segments = np.stack([count, y, beside, bias.astype(np.float32).view(np.int32)], axis=1).astype(np.int32)
    done = np.concatenate([[0], np.cumsum(count)])
    parts = split_extent(len(y), -(-len(y) // _CHUNKS))
    chunks = np.array([(first, size, done[first]) for first, size in parts], dtype=np.int64)
    kernel = Taps(
        tuple(each.shape for each in tiles),
        len(window.taps),
        window.stride[1],
        images,
        tuple(each.few for each in tiles),
        tuple(each.masked for each in tiles),
        residual is not None,
        act,
    )
    args: list[int | Array] = [segments, np.zeros((1, 2), np.int32), np.ones(1, np.float32), chunks, len(chunks)]
    if len(row):
        args[COLUMNS] = np.stack([begins, tap], axis=1).astype(np.int32)
        args[WEIGHTS] = np.ascontiguousarray(weights, dtype=np.float32)
    return Op(
        kernel,
        (
            *args,
            *(arg for each in tiles for arg in (each.places, len(each.places), each.read, each.written, each.masks)),
        ),
    )


_CHUNKS = 12
"""Greatest number of parts into which the rows are divided for threads."""


_SECOND_BYTES_A_CYCLE, _LAST_BYTES_A_CYCLE = 40, 16
"""Bandwidths of the L2 and L3 caches, in bytes per cycle."""

_SECOND = 1 << 20
"""Bytes of inputs that stay in the L2 cache."""


def estimate_cycles(
    tiles: Sequence[MaskedTiles], kept: Array, plane: int, planes: int, stride: int, target: Target
) -> float:
    """Estimate the processor cycles of the kernel: arithmetic, overhead per tile and row, and repeated reads of inputs.

    `kept` [rows, inputs of a conv group, taps] is True for retained weights; x has `planes` planes of `plane` bytes.
    """
    beside = 1 if target.lanes == 16 else 3  # without mask registers
    entries, rows, total = int(kept.sum()), len(kept), 0.0
    for each in tiles:
        vectors = len(each.shape.x)
        column = vectors * (0.5 * (1 + 1.9 * stride) + (stride - 1)) * beside + 2.5
        total += len(each.places) * (entries * column + rows * (12 + 2.0 * vectors))
    speed = _LAST_BYTES_A_CYCLE if plane * planes > _SECOND else _SECOND_BYTES_A_CYCLE
    again = max(0, int(kept.any(axis=2).sum()) - planes)  # each plane is read at least once
    return total + again * plane / speed
