"""Where the values of a whole batch lie: planes of sixteen images, block after block, and tiles over them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ticketry_engine.kernels.planar.geometry import FLOAT, Bare, Geometry, Planes
from ticketry_engine.kernels.planar.tiles import Shape, Tiles, split
from ticketry_engine.kernels.window import Pair

IMAGES = 16
"""Images of a block in float32: what one vector with 16 lanes holds. In bfloat16 the same bytes hold twice as many."""


def images_of(item: int) -> int:
    """Images of a block of values of so many bytes."""
    return IMAGES * FLOAT // item


@dataclass(frozen=True)
class Batch:
    """A value of a batch: the planes of the channels of its first block of images, of the second, and so on."""

    geometry: Geometry
    channels: int
    blocks: int
    offset: int
    """The byte of the arena where the first plane begins."""
    item: int = FLOAT
    """Bytes of a value: `FLOAT`, or `HALF` for bfloat16. Positions and planes have the same bytes in either."""
    passing: bool = False
    """Whether blocks follow one another at one place: none is read any more when the next one is written."""

    @classmethod
    def of(cls, channels: int, size: Pair, halo: int, blocks: int, offset: int = 0, item: int = FLOAT) -> Batch:
        """Channels of so many rows and columns.

        Planes of single positions have no slack: tiles end with them, and linear layers took 0.92 to 0.94 of the time.
        """
        kind = Bare if tuple(size) == (1, 1) and not halo else Geometry
        return cls(kind.of(*size, halo, IMAGES), channels, blocks, offset, item)

    @property
    def images(self) -> int:
        """Of a block."""
        return images_of(self.item)

    @property
    def block_bytes(self) -> int:
        """From one block to the next."""
        return 0 if self.passing else self.geometry.bytes * self.channels

    @property
    def _places(self) -> int:
        """Blocks that lie beside one another."""
        return 1 if self.passing else self.blocks

    @property
    def bytes(self) -> int:
        return self.geometry.bytes * self.channels * self._places

    @property
    def channel_bytes(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Where the plane of each channel begins in a block."""
        return np.arange(self.channels, dtype=np.int64) * self.geometry.bytes

    @property
    def planes(self) -> Planes:
        """All planes of all blocks."""
        return Planes.at(self.geometry, self.channels * self._places, self.offset)


@dataclass(frozen=True)
class Side:
    """How tiles go over a value: the pixel that they begin at, and the pixels from one position to the next."""

    value: Batch
    begin: Pair = (0, 0)
    stride: Pair = (1, 1)

    def place(self, block: int, row: int, column: int) -> int:
        """The byte in channel 0 of a tile that begins at a position of a block."""
        g = self.value.geometry
        pixel = g.position(self.begin[0] + row * self.stride[0], self.begin[1] + column * self.stride[1])
        return self.value.offset + block * self.value.block_bytes + pixel * g.step

    def vectors(self, blocks: int, rows: int, columns: int, lanes: int) -> tuple[int, ...]:
        """Bytes from a tile's place to each of its vectors."""
        g = self.value.geometry
        return tuple(
            block * self.value.block_bytes + g.shift(row * self.stride[0], column * self.stride[1]) + part * FLOAT
            for block in range(blocks)
            for row in range(rows)
            for column in range(columns)
            for part in range(0, IMAGES, lanes)
        )


def tiles(sides: Sequence[Side], size: Pair, lanes: int, most: int, part: range | None = None) -> list[Tiles]:
    """Tiles that cover so many rows and columns of every block once, each of at most ``most`` vectors.

    Args:
        sides: two, or three with that of a value which is added.
        part: the blocks that are covered; all without it.
    """
    part = range(sides[0].value.blocks) if part is None else part
    return list(_tiles(tuple(sides), size, lanes, most, part))


@functools.lru_cache(maxsize=4096)
def _tiles(sides: tuple[Side, ...], size: Pair, lanes: int, most: int, part: range) -> tuple[Tiles, ...]:
    """They depend on no mask: a layer asks for the same ones several times, and again for each mask."""
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
    sides: tuple[Side, ...], size: Pair, rows: int, columns: int
) -> dict[Pair, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Where tiles begin in the first block, by rows and columns of a tile. It depends on no mask and is often asked."""
    spots: dict[Pair, list[list[int]]] = {}
    for top, height in split(size[0], rows):
        for left, width in split(size[1], columns):
            spots.setdefault((height, width), []).append([side.place(0, top, left) for side in sides])
    return {shape: np.array(places, dtype=np.int64) for shape, places in spots.items()}


def _rectangle(size: Pair, most: int) -> Pair:
    """The rows and columns of a tile: long rows, which caches are filled with before their turn comes.

    Squares share more inputs between their rows, and yet took a fifth longer where planes are large (16 to 64 channels
    of 32 x 32 pixels).
    """
    columns = min(size[1], most)
    return max(1, min(size[0], most // columns)), columns


def parts(blocks: int, size: Pair) -> list[range]:
    """Blocks that an operation goes over at a time: one, if its pixels fill tiles: caches keep it for the next one."""
    return [range(block, block + 1) for block in range(blocks)] if size[0] * size[1] >= 16 else [range(blocks)]


def shares(blocks: int, threads: int) -> list[range]:
    """The blocks of each thread: as even as can be, and as many threads as have some."""
    threads = min(blocks, threads)
    return [range(blocks * part // threads, blocks * (part + 1) // threads) for part in range(threads)]


def apart(blocks: int, size: Pair, threads: int) -> bool:
    """Whether threads take whole blocks each, or else share each operation: see `parts`."""
    return threads > 1 and blocks >= threads and len(parts(blocks, size)) == blocks
