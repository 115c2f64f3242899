"""Values of a whole batch and their tiles, and masked layers as operations on them.

    value:   block 0 [channel 0 | channel 1 | ...]   block 1 [channel 0 | ...]   ...
    plane:   [rows, columns, 16 images]       one AVX-512 vector per position

Because each position takes one vector, every shift and stride is aligned. A tile may span several blocks if planes are
small. The weight tables of a layer's operations are refilled before each pass (`GatheredOps`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.planar.geometry import FLOAT, Bare, Geometry, Planes, Shape, Tiles, split_extent
from ticketry_engine.kernels.planar.row_sums import SegmentKernel
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array, Pair, Window

IMAGES = 16
"""Images per block in float32, one per lane of a 64-byte vector; a block has twice as many images in bfloat16."""


def images_per_block(item: int) -> int:
    """Return the number of images per block for values of `item` bytes."""
    return IMAGES * FLOAT // item


@dataclass(frozen=True)
class Batch:
    """Memory layout of a value of a whole batch: block after block of images, each with one plane per channel."""

    geometry: Geometry
    channels: int
    blocks: int
    offset: int
    """Arena offset of the first plane in bytes."""
    item: int = FLOAT
    """Bytes of a stored value: `FLOAT`, or `HALF` for bfloat16. Planes have the same number of bytes for either."""
    passing: bool = False
    """Whether all blocks reuse the same memory, because a block is no longer read when the next block is written."""

    @classmethod
    def build(cls, channels: int, size: Pair, halo: int, blocks: int, offset: int = 0, item: int = FLOAT) -> Batch:
        """Return the memory layout of a value with `channels` planes of `size` (rows, columns)."""
        # Without unused bytes between planes of a single position, tiles of linear layers end where the planes end.
        kind = Bare if tuple(size) == (1, 1) and not halo else Geometry
        return cls(kind.build(*size, halo, IMAGES), channels, blocks, offset, item)

    @property
    def images(self) -> int:
        """Number of images per block."""
        return images_per_block(self.item)

    @property
    def block_bytes(self) -> int:
        """Bytes from one block to the next; 0 if all blocks reuse the same memory."""
        return 0 if self.passing else self.geometry.bytes * self.channels

    @property
    def _stored_block_count(self) -> int:
        """Number of blocks of images that are stored at the same time."""
        return 1 if self.passing else self.blocks

    @property
    def bytes(self) -> int:
        return self.geometry.bytes * self.channels * self._stored_block_count

    @property
    def channel_bytes(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Byte offset of each channel's plane from the start of a block."""
        return np.arange(self.channels, dtype=np.int64) * self.geometry.bytes

    @property
    def planes(self) -> Planes:
        """All planes of all blocks."""
        return Planes.from_offset(self.geometry, self.channels * self._stored_block_count, self.offset)


@dataclass(frozen=True)
class TileSide:
    """How tiles lie in a value: the pixel at which the first tile begins, and the stride in pixels."""

    value: Batch
    begin: Pair = (0, 0)
    stride: Pair = (1, 1)

    def tile_offset(self, block: int, row: int, column: int) -> int:
        """Return the memory byte, in channel 0, of the tile that begins at `row` and `column` of block `block`."""
        g = self.value.geometry
        pixel = g.pixel_position(self.begin[0] + row * self.stride[0], self.begin[1] + column * self.stride[1])
        return self.value.offset + block * self.value.block_bytes + pixel * g.position_bytes

    def vector_offsets(self, blocks: int, rows: int, columns: int, lanes: int) -> tuple[int, ...]:
        """Return the bytes from a tile's first vector to each of its vectors."""
        g = self.value.geometry
        return tuple(
            block * self.value.block_bytes + g.shift_bytes(row * self.stride[0], column * self.stride[1]) + part * FLOAT
            for block in range(blocks)
            for row in range(rows)
            for column in range(columns)
            for part in range(0, IMAGES, lanes)
        )


def build_tiles(sides: Sequence[TileSide], size: Pair, lanes: int, most: int, part: range | None = None) -> list[Tiles]:
    """Divide the pixels of all blocks, or of the blocks in `part`, into tiles of at most `most` vectors.

    `sides` says where tiles lie in the input, in the output, and optionally in a value that is added.
    """
    part = range(sides[0].value.blocks) if part is None else part
    return list(_compute_tiles(tuple(sides), size, lanes, most, part))


@functools.lru_cache(maxsize=4096)
def _compute_tiles(sides: tuple[TileSide, ...], size: Pair, lanes: int, most: int, part: range) -> tuple[Tiles, ...]:
    """Compute the result of `build_tiles`; tiles do not depend on masks, so the cache serves all layers and updates."""
    positions = max(1, most * lanes // IMAGES)
    columns = min(size[1], positions)  # long rows suit hardware prefetching
    rows = max(1, min(size[0], positions // columns))
    together = max(1, min(len(part), positions // (rows * columns)))
    sides = (*sides, sides[1]) if len(sides) == 2 else sides
    steps = np.array([side.value.block_bytes for side in sides])
    groups: dict[int, list[int]] = {}
    for block, blocks in split_extent(len(part), together):
        groups.setdefault(blocks, []).append(part[block])
    found = {
        (blocks, *shape): (np.array(begins)[:, None, None] * steps + places).reshape(-1, len(sides))
        for blocks, begins in groups.items()
        for shape, places in _tile_starts_in_block(sides, size, rows, columns).items()
    }
    made = []
    for shape, places in found.items():
        narrow = places.astype(np.int32)
        narrow.flags.writeable = False
        made.append(Tiles(Shape(*(side.vector_offsets(*shape, lanes) for side in sides)), narrow, None))
    return tuple(made)


@functools.lru_cache(maxsize=1024)
def _tile_starts_in_block(
    sides: tuple[TileSide, ...], size: Pair, rows: int, columns: int
) -> dict[Pair, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Return where the tiles of the first block begin in memory, by the size (rows, columns) of a tile."""
    spots: dict[Pair, list[list[int]]] = {}
    for top, height in split_extent(size[0], rows):
        for left, width in split_extent(size[1], columns):
            spots.setdefault((height, width), []).append([side.tile_offset(0, top, left) for side in sides])
    return {shape: np.array(places, dtype=np.int64) for shape, places in spots.items()}


def operation_blocks(blocks: int, size: Pair) -> list[range]:
    """Return the range of blocks that each operation computes.

    An operation computes one block if a block has enough pixels for a whole tile, otherwise all blocks.

    If operations compute single blocks, the caches still hold the results of an operation when the next one reads them.
    """
    return [range(block, block + 1) for block in range(blocks)] if size[0] * size[1] >= 16 else [range(blocks)]


def split_blocks_by_thread(blocks: int, threads: int) -> list[range]:
    """Divide the indices of the blocks evenly among threads; threads without a block are not in the list."""
    threads = min(blocks, threads)
    return [range(blocks * part // threads, blocks * (part + 1) // threads) for part in range(threads)]


def threads_take_blocks(blocks: int, size: Pair, threads: int) -> bool:
    """Return whether each thread processes separate blocks of images; if not, all threads share each operation."""
    return threads > 1 and blocks >= threads and len(operation_blocks(blocks, size)) == blocks


# -- Zero the halos of a value that reuses memory of other values ------------------------------------------------------

#     head        . . . . . .        before the first pixel
#     row ends    . p p p . .        between two rows (the halo of both)
#     tail        . . . . . .        after the last pixel
#
# Only the halo is written, not the pixels, which are overwritten anyway.


@dataclass(frozen=True)
class Border(EmittedKernel):
    """Kernel that zeroes the border (halo) around the pixels of consecutive planes.

    Arguments: number of planes; byte of the first plane; bytes per plane; bytes before the first pixel; number of rows
    minus one; bytes of a row's pixels; bytes from a row to the next; byte after the last pixel.
    """

    finished: ClassVar[bool] = True

    def write(self, e: Emitter) -> None:
        b = e.b
        planes, begin, size, head, rows, pixels, row, tail = (e.arg(number) for number in range(8))
        with e.loop(*e.thread_share(planes)) as plane:
            place = e.offset_pointer(e.arena_pointer(begin), b.mul(plane.index, size))
            self._zero_bytes(e, place, e.i64(0), head)
            with e.loop(0, rows) as line:
                first = b.add(b.add(head, pixels), b.mul(line.index, row))
                self._zero_bytes(e, place, first, b.sub(b.add(first, row), pixels))
            self._zero_bytes(e, place, tail, size)

    @staticmethod
    def _zero_bytes(e: Emitter, place: object, begin: object, end: object) -> None:
        with e.loop(begin, end, FLOAT * e.target.lanes) as vector:
            e.store(e.splat(0.0), place, vector.index)


def build_border_ops(value: Batch) -> list[Op]:
    """Return the operations that zero a value's halo, divided as in `operation_blocks`."""
    g = value.geometry
    pixels = g.width * g.position_bytes
    last = g.pixel_position(g.height - 1, 0) * g.position_bytes + pixels
    shape = (g.bytes, g.pixel_position(0, 0) * g.position_bytes, g.height - 1, pixels, g.row * g.position_bytes, last)
    return [
        Op(Border(), (value.channels * len(part), value.offset + part.start * value.block_bytes, *shape))
        for part in operation_blocks(value.blocks, (g.height, g.width))
    ]


# -- a layer with its mask: operations whose weight tables are refilled before each pass -------------------------------


@dataclass(frozen=True, eq=False)
class MaskedLayer:
    """A layer's mask, its window, and where its weights are stored."""

    kept: Array
    """bool [O, I / groups, kh, kw]: True where a weight is retained."""
    window: Window
    groups: int = 1
    threads: int = 1
    """Number of threads; only the last bits of weight gradients depend on it."""
    alone: bool = False
    """Whether weights and gradients are vectors of the retained numbers only, rather than dense tensors."""

    @property
    def places(self) -> Array:
        """Array [O, I / groups, taps]: 1 + index in the dense tensor for retained weights, 0 for pruned weights."""
        # int32 if possible: for large layers this array needs most of the memory while tables are built.
        numbered = np.arange(1, self.kept.size + 1, dtype=np.int32 if self.kept.size < 1 << 31 else np.int64)
        numbered = numbered.reshape(self.kept.shape)
        numbered *= self.kept
        return np.asarray(numbered.reshape(*self.kept.shape[:2], -1))

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.kept))


@dataclass(frozen=True, eq=False)
class GatheredOps:
    """Operations on blocks of images that read the same table of weights.

    The table is filled from the layer's weights before each pass.
    """

    ops: list[Op]
    index: Array
    """For each entry of the table, the index of its weight in the dense tensor; -1 if the entry is 0."""
    alone: bool = False
    """Whether the weights are a vector of the retained numbers only, rather than a dense tensor."""

    @property
    def rows(self) -> Array:
        """Byte offsets of the planes of y, as int64 [segments, rows per segment]; biases are in the same order."""
        spec, segments = self.ops[0].kernel, self.ops[0].args[0]
        assert isinstance(spec, SegmentKernel)
        assert isinstance(segments, np.ndarray)
        return np.asarray(segments[:, spec.header_words : spec.header_words + spec.rows], dtype=np.int64)

    @property
    def table(self) -> Array:
        """The weight table that all operations share: float32, or bfloat16 stored as 16-bit integers."""
        table = self.ops[0].args[2]
        assert isinstance(table, np.ndarray)
        return table

    def build_gather_op(self, source: GatheredOps | None = None) -> Op:
        """Return the operation that fills the table from the table of `source`; None: from external tensor 0."""
        count, item = len(self.index), self.table.itemsize
        if source is None:
            index = self.index
            if self.alone:
                index = np.where(index >= 0, np.searchsorted(np.unique(index[index >= 0]), index), -1)
            return Op(WeightGather(packed=False, item=item), (index.astype(np.int32), self.table, count, 0))
        place = np.zeros(1 + source.index.max(initial=0), dtype=np.int32)
        there = np.flatnonzero(source.index >= 0)
        place[source.index[there]] = there
        index = np.where(self.index >= 0, place[self.index], -1).astype(np.int32)
        return Op(WeightGather(packed=True, item=item), (index, self.table, count, source.table))


@dataclass(frozen=True, eq=False)
class WeightGradient:
    """Operations that compute the gradients of a layer's retained weights, in three stages."""

    begin: list[Op]
    """Operations that zero the sums: a single one, or one per thread that has separate sums."""
    ops: list[Op]
    """Operations that add products to the sums, in order; each processes some blocks."""
    end: list[Op]
    """Operations that write the gradients: packed to external tensor 0, then as the layer stores them to tensor 1."""
    packed: int
    """Number of elements of external tensor 0, the packed gradients."""


# -- Copy weights from dense tensors to kernel tables (`WeightGather`), and packed gradients back (`Scatter`) ----------

#     gather    table[i] = source[index[i]]
#     scatter   goal[places[i]] = source[order[i]],  0 elsewhere
#
# The cost is the number of cache lines touched, about one per retained weight of a large sparse layer. So the tables of
# the backward pass are gathered from those of the forward pass, and dense gradients are written in one pass.


@dataclass(frozen=True)
class WeightGather(EmittedKernel):
    """Kernel that copies ``table[i] = source[index[i]]``. Arguments: index (int32), table, length, source.

    Args:
        packed: whether the source is another table; otherwise it is an external tensor, given by its number.
        item: bytes of a table entry; with bfloat16, a negative index gives 0.
    """

    finished: ClassVar[bool] = True

    packed: bool
    item: int = FLOAT

    def write(self, e: Emitter) -> None:
        b, index, table = e.b, e.table(0), e.table(1)
        source, item = (e.table(3), self.item) if self.packed else (e.tensor_pointer(e.arg(3)), FLOAT)
        with e.loop(*e.thread_share(e.arg(2))) as loop:
            number = e.load_i32(index, b.mul(loop.index, e.i64(4)))
            there = b.icmp_signed(">=", number, e.i64(0))
            place = number if self.item == FLOAT else e.select(there, number, e.i64(0))
            value = bfloat.load_scalar(e, e.offset_pointer(source, b.mul(place, e.i64(item))), item)
            value = value if self.item == FLOAT else e.select(there, value, e.f32(0.0))
            bfloat.store_scalar(e, value, e.offset_pointer(table, b.mul(loop.index, e.i64(self.item))), self.item)


@dataclass(frozen=True)
class PackedCopy(EmittedKernel):
    """Kernel that copies ``goal[i] = source[index[i]]``, or ``goal[index[i]] = source[i]`` if `spread`.

    Arguments: index (int32), length, numbers of the two external tensors.
    """

    finished: ClassVar[bool] = True

    spread: bool

    def write(self, e: Emitter) -> None:
        index, source, goal = e.table(0), e.tensor_pointer(e.arg(2)), e.tensor_pointer(e.arg(3))
        with e.loop(*e.thread_share(e.arg(1))) as loop:
            byte = e.b.mul(loop.index, e.i64(FLOAT))
            there = e.b.mul(e.load_i32(index, byte), e.i64(FLOAT))
            origin, end = (byte, there) if self.spread else (there, byte)
            e.b.store(e.load_f32(source, origin), e.offset_pointer(goal, end), align=FLOAT)


PART = 4096
"""Number of elements of a dense tensor that are zeroed and then filled together, while they are in the L1 cache."""


@dataclass(frozen=True)
class Scatter(EmittedKernel):
    """Kernel that writes packed numbers to a dense tensor: ``goal[places[i]] = source[order[i]]``, 0 elsewhere.

    Arguments: three int32 tables: ascending places, order, and the number of the first place in each part of `PART`
    elements; number of parts; number of elements; numbers of the two external tensors.
    """

    finished: ClassVar[bool] = True

    def write(self, e: Emitter) -> None:
        b, width = e.b, e.target.lanes
        places, order, firsts = (e.table(number) for number in range(3))
        elements, source, goal = e.arg(4), e.tensor_pointer(e.arg(5)), e.tensor_pointer(e.arg(6))
        with e.loop(*e.thread_share(e.arg(3))) as part:
            begin = b.mul(part.index, e.i64(PART))
            end = b.add(begin, e.i64(PART))
            end = e.select(b.icmp_signed("<", end, elements), end, elements)
            whole = b.sub(end, b.urem(b.sub(end, begin), e.i64(width)))
            with e.loop(begin, whole, width) as vector:
                e.store(e.splat(0.0), goal, b.mul(vector.index, e.i64(FLOAT)))
            with e.loop(whole, end) as rest:
                b.store(e.f32(0.0), e.offset_pointer(goal, b.mul(rest.index, e.i64(FLOAT))), align=FLOAT)
            low, high = (e.load_i32(firsts, b.mul(b.add(part.index, e.i64(n)), e.i64(4))) for n in range(2))
            with e.loop(low, high) as loop:
                at = b.mul(loop.index, e.i64(4))
                value = e.load_f32(source, b.mul(e.load_i32(order, at), e.i64(FLOAT)))
                b.store(value, e.offset_pointer(goal, b.mul(e.load_i32(places, at), e.i64(FLOAT))), align=FLOAT)


def build_scatter_op(places: Array, elements: int, *, alone: bool = False) -> Op:
    """Return the operation that writes packed numbers (tensor 0) to a dense tensor of `elements` numbers (tensor 1).

    Both tensors are given when the operation runs. Unless `alone`, elements without a packed number become 0.

    Args:
        places: int64, index in the dense tensor of each packed number. Repeated indices must have equal numbers.
        alone: whether to write only the packed numbers, sorted by index and without zeros between them.
    """
    found, order = np.unique(places, return_index=True)
    if alone:
        return Op(PackedCopy(spread=False), (order.astype(np.int32), len(order), 0, 1))
    parts = -(-elements // PART)
    firsts = np.searchsorted(found, PART * np.arange(parts + 1))
    return Op(Scatter(), (*(each.astype(np.int32) for each in (found, order, firsts)), parts, elements, 0, 1))
