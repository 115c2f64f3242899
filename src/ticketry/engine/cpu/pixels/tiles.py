"""How the pixels of a layer are cut into tiles that a kernel holds in registers, and which taps each tile can skip."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tile:
    """A box of output pixels computed at once."""

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """Image, row and column of each pixel, counted from the tile's first."""
        return [(n, y, x) for n in range(self.images) for y in range(self.rows) for x in range(self.columns)]


@dataclass(frozen=True)
class Window:
    """A convolution along one axis: taps ``size``, and what its outputs read of ``extent`` inputs."""

    extent: int
    size: int
    stride: int
    padding: int
    dilation: int

    @property
    def outputs(self) -> int:
        return (self.extent + 2 * self.padding - self.dilation * (self.size - 1) - 1) // self.stride + 1

    def seen(self, length: int) -> int:
        """Inputs that so many outputs side by side lie among."""
        return (length - 1) * self.stride + (self.size - 1) * self.dilation + 1

    def starts(self, length: int) -> Array:
        """Where tiles of a length begin: side by side, the last moved back over the one before to end with the axis."""
        return np.minimum(np.arange(0, self.outputs, length), self.outputs - length)

    def alive(self, length: int) -> Array:
        """For each tile of a length, the taps that see more than halo: bool [tiles, size]."""
        outputs = self.starts(length)[:, None] + np.arange(length)
        inputs = outputs[:, :, None] * self.stride - self.padding + np.arange(self.size) * self.dilation
        seen = (inputs >= 0) & (inputs < self.extent)
        found: Array = np.asarray(seen.any(axis=1))
        return found


@functools.lru_cache(maxsize=4096)
def _count(axis: Window, length: int) -> tuple[int, int, float]:
    """Of an axis cut into tiles of a length: how many, their taps in all, and the share of tiles with every tap."""
    alive = axis.alive(length)
    return len(alive), int(alive.sum()), float(alive.all(axis=1).mean())


@dataclass(frozen=True)
class Plane:
    """A convolution's pixels: its windows along rows and columns."""

    rows: Window
    columns: Window

    @property
    def taps(self) -> int:
        return self.rows.size * self.columns.size

    def work(self, tile: Tile) -> float:
        """Taps done for one image, summed over tiles, each counted once for all its pixels (of all images)."""
        return _count(self.rows, tile.rows)[1] * _count(self.columns, tile.columns)[1] / tile.images

    def tiles(self, tile: Tile) -> float:
        """Tiles an image has."""
        return _count(self.rows, tile.rows)[0] * _count(self.columns, tile.columns)[0] / tile.images

    def runs(self, tile: Tile) -> float:
        """Runs of taps a tile has in the mean: one, or one a row of the kernel where taps at the side are skipped."""
        tiles, taps, _ = _count(self.rows, tile.rows)
        whole = _count(self.columns, tile.columns)[2]
        return whole + (1 - whole) * taps / tiles

    def inputs(self, tile: Tile) -> int:
        """Pixels of the input that a tile sees."""
        return tile.images * self.rows.seen(tile.rows) * self.columns.seen(tile.columns)

    def candidates(self, pixels: int, images: int) -> list[Tile]:
        """Tiles of at most so many pixels that divide the images. Longer ones of equal cost are left out."""
        found = []
        for n in (n for n in range(1, min(images, pixels) + 1) if images % n == 0):
            for y in range(1, min(self.rows.outputs, pixels // n) + 1):
                longest = min(self.columns.outputs, pixels // (n * y))
                shortest_of_same_count = -(-self.columns.outputs // -(-self.columns.outputs // longest))
                found += [Tile(n, y, x) for x in {longest, shortest_of_same_count, 1}]
        return found


def spans(alive: Sequence[bool] | Array) -> list[tuple[int, int]]:
    """Runs of True, as (first, one behind the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], np.asarray(alive, dtype=bool), [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


@dataclass(frozen=True, eq=False)
class Tiling:
    """All tiles of an image: where each begins, and its class, which says which taps it does."""

    row: Array
    column: Array
    kind: Array
    """Class of each tile, an index into `spans`."""
    spans: list[list[tuple[int, int]]]
    """Of each class: runs of taps (row by row of the kernel, counted from 0) that see more than halo."""

    @classmethod
    def of(cls, plane: Plane, tile: Tile) -> Tiling:
        row_starts, column_starts = plane.rows.starts(tile.rows), plane.columns.starts(tile.columns)
        row_kinds, row_of = np.unique(plane.rows.alive(tile.rows), axis=0, return_inverse=True)
        column_kinds, column_of = np.unique(plane.columns.alive(tile.columns), axis=0, return_inverse=True)
        kinds = [spans((rows[:, None] & columns).reshape(-1)) for rows in row_kinds for columns in column_kinds]
        row, column = (part.reshape(-1) for part in np.meshgrid(row_starts, column_starts, indexing="ij"))
        kind = row_of.reshape(-1)[:, None] * len(column_kinds) + column_of.reshape(-1)
        return cls(row, column, kind.reshape(-1), kinds)
