"""The layout of a whole batch: planes of sixteen images, block after block, and tiles on them.

    value:   block 0 [channel 0 | channel 1 | ...]   block 1 [channel 0 | ...]   ...
    plane:   [rows, columns, 16 images]       one AVX-512 vector per position

One vector per position makes every shift and stride aligned; tiles may span blocks if planes are small.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar.geometry import FLOAT, Bare, Geometry, Planes, Shape, Tiles, split
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Pair

IMAGES = 16
"""Images per block in float32: one vector of 16 lanes. In bfloat16 the same bytes hold twice as many."""


def images_of(item: int) -> int:
    """Return the images per block for values of `item` bytes."""
    return IMAGES * FLOAT // item


@dataclass(frozen=True)
class Batch:
    """A value of a batch: the planes of all channels of its first block of images, of the second, and so on."""

    geometry: Geometry
    channels: int
    blocks: int
    offset: int
    """Arena byte of the first plane."""
    item: int = FLOAT
    """Bytes of a stored value: `FLOAT`, or `HALF` for bfloat16. Positions and planes have the same bytes in both."""
    passing: bool = False
    """Whether all blocks reuse one place: a block is no longer read when the next one is written."""

    @classmethod
    def of(cls, channels: int, size: Pair, halo: int, blocks: int, offset: int = 0, item: int = FLOAT) -> Batch:
        """Build a value of `channels` planes of `size` (rows, columns).

        Planes of single positions have no slack, which makes linear layers faster: their tiles end exactly with them.
        """
        kind = Bare if tuple(size) == (1, 1) and not halo else Geometry
        return cls(kind.of(*size, halo, IMAGES), channels, blocks, offset, item)

    @property
    def images(self) -> int:
        """Images per block."""
        return images_of(self.item)

    @property
    def block_bytes(self) -> int:
        """Bytes between two blocks."""
        return 0 if self.passing else self.geometry.bytes * self.channels

    @property
    def _places(self) -> int:
        """Number of blocks stored at the same time."""
        return 1 if self.passing else self.blocks

    @property
    def bytes(self) -> int:
        return self.geometry.bytes * self.channels * self._places

    @property
    def channel_bytes(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Byte of each channel's plane in a block."""
        return np.arange(self.channels, dtype=np.int64) * self.geometry.bytes

    @property
    def planes(self) -> Planes:
        """All planes of all blocks."""
        return Planes.at(self.geometry, self.channels * self._places, self.offset)


@dataclass(frozen=True)
class TileSide:
    """How tiles cover a value: first pixel and stride in pixels."""

    value: Batch
    begin: Pair = (0, 0)
    stride: Pair = (1, 1)

    def place(self, block: int, row: int, column: int) -> int:
        """Return the byte, in channel 0, of a tile that begins at a position of a block."""
        g = self.value.geometry
        pixel = g.position(self.begin[0] + row * self.stride[0], self.begin[1] + column * self.stride[1])
        return self.value.offset + block * self.value.block_bytes + pixel * g.step

    def vectors(self, blocks: int, rows: int, columns: int, lanes: int) -> tuple[int, ...]:
        """Return the bytes from a tile's place to each of its vectors."""
        g = self.value.geometry
        return tuple(
            block * self.value.block_bytes + g.shift(row * self.stride[0], column * self.stride[1]) + part * FLOAT
            for block in range(blocks)
            for row in range(rows)
            for column in range(columns)
            for part in range(0, IMAGES, lanes)
        )


def tiles(sides: Sequence[TileSide], size: Pair, lanes: int, most: int, part: range | None = None) -> list[Tiles]:
    """Return tiles of at most ``most`` vectors that cover all rows and columns of every block once.

    Args:
        sides: input and output, and optionally an added value.
        part: blocks to cover; default all.
    """
    part = range(sides[0].value.blocks) if part is None else part
    return list(_tiles(tuple(sides), size, lanes, most, part))


@functools.lru_cache(maxsize=4096)
def _tiles(sides: tuple[TileSide, ...], size: Pair, lanes: int, most: int, part: range) -> tuple[Tiles, ...]:
    """Compute the tiles. They do not depend on masks, so the cache serves all layers and updates."""
    positions = max(1, most * lanes // IMAGES)
    rows, columns = _rectangle(size, positions)
    together = max(1, min(len(part), positions // (rows * columns)))
    sides = (*sides, sides[1]) if len(sides) == 2 else sides
    steps = np.array([side.value.block_bytes for side in sides])
    groups: dict[int, list[int]] = {}
    for block, blocks in split(len(part), together):
        groups.setdefault(blocks, []).append(part[block])
    found = {
        (blocks, *shape): (np.array(begins)[:, None, None] * steps + places).reshape(-1, len(sides))
        for blocks, begins in groups.items()
        for shape, places in _in_a_block(sides, size, rows, columns).items()
    }
    made = []
    for shape, places in found.items():
        narrow = places.astype(np.int32)
        narrow.flags.writeable = False
        made.append(Tiles(Shape(*(side.vectors(*shape, lanes) for side in sides)), narrow, None))
    return tuple(made)


@functools.lru_cache(maxsize=1024)
def _in_a_block(
    sides: tuple[TileSide, ...], size: Pair, rows: int, columns: int
) -> dict[Pair, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Return the places of tiles in the first block, by (rows, columns) of a tile. Independent of masks, so cached."""
    spots: dict[Pair, list[list[int]]] = {}
    for top, height in split(size[0], rows):
        for left, width in split(size[1], columns):
            spots.setdefault((height, width), []).append([side.place(0, top, left) for side in sides])
    return {shape: np.array(places, dtype=np.int64) for shape, places in spots.items()}


def _rectangle(size: Pair, most: int) -> Pair:
    """Return the rows and columns of a tile: long rows, which hardware prefetching handles better than squares."""
    columns = min(size[1], most)
    return max(1, min(size[0], most // columns)), columns


def parts(blocks: int, size: Pair) -> list[range]:
    """Return the blocks of each operation: single blocks if their pixels fill tiles, so that caches serve the next
    operation.
    """
    return [range(block, block + 1) for block in range(blocks)] if size[0] * size[1] >= 16 else [range(blocks)]


def shares(blocks: int, threads: int) -> list[range]:
    """Divide blocks evenly among threads; only threads with at least one block are listed."""
    threads = min(blocks, threads)
    return [range(blocks * part // threads, blocks * (part + 1) // threads) for part in range(threads)]


def threads_take_blocks(blocks: int, size: Pair, threads: int) -> bool:
    """Return whether each thread takes whole blocks (otherwise threads share each operation: see `parts`)."""
    return threads > 1 and blocks >= threads and len(parts(blocks, size)) == blocks


# -- Zero the halos of a value that reuses memory of other values ------------------------------------------------------

#     head        . . . . . .        before the first pixel
#     row ends    . p p p . .        between two rows (the halo of both)
#     tail        . . . . . .        after the last pixel
#
# Only the halo is written, not the pixels, which are overwritten anyway.


@dataclass(frozen=True)
class Border(Written):
    """Kernel that zeroes everything around the pixels of consecutive planes.

    Arguments: number of planes, byte of the first, bytes per plane; bytes before the first pixel; rows minus one, bytes
    of
    a row's pixels and between two rows; byte after the last pixel.
    """

    finished: ClassVar[bool] = True

    def write(self, e: Emitter) -> None:
        b = e.b
        planes, begin, size, head, rows, pixels, row, tail = (e.arg(number) for number in range(8))
        with e.loop(*e.share(planes)) as plane:
            place = e.at(e.arena(begin), b.mul(plane.index, size))
            self._zero(e, place, e.i64(0), head)
            with e.loop(0, rows) as line:
                first = b.add(b.add(head, pixels), b.mul(line.index, row))
                self._zero(e, place, first, b.sub(b.add(first, row), pixels))
            self._zero(e, place, tail, size)

    @staticmethod
    def _zero(e: Emitter, place: object, begin: object, end: object) -> None:
        with e.loop(begin, end, FLOAT * e.target.lanes) as vector:
            e.store(e.splat(0.0), place, vector.index)


def border(value: Batch) -> list[Op]:
    """Return the operations that zero a value's halo, block by block or over all blocks (see `parts`)."""
    g = value.geometry
    pixels = g.width * g.step
    last = g.position(g.height - 1, 0) * g.step + pixels
    shape = (g.bytes, g.position(0, 0) * g.step, g.height - 1, pixels, g.row * g.step, last)
    return [
        Op(Border(), (value.channels * len(part), value.offset + part.start * value.block_bytes, *shape))
        for part in parts(value.blocks, (g.height, g.width))
    ]
