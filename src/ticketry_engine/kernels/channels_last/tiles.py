"""How the pixels of a layer are cut into tiles that a kernel holds in registers, and which tile a block of rows is done
with: by estimated cycles of a core, their constants fitted to measurements."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ticketry_engine.kernels.channels_last.geometry import FLOAT, LINE
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array, Axis


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


@functools.lru_cache(maxsize=4096)
def _count(axis: Axis, length: int) -> tuple[int, int, float]:
    """Of an axis cut into tiles of a length: how many, their taps in all, and the share of tiles with every tap."""
    alive = axis.alive(length)
    return len(alive), int(alive.sum()), float(alive.all(axis=1).mean())


@dataclass(frozen=True)
class Plane:
    """A convolution's pixels: its windows along rows and columns."""

    rows: Axis
    columns: Axis

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


# -- the choice of a tile ----------------------------------------------------------------------------------------------

CYCLES_A_NANOSECOND = 4.0
"""Of a core as costs see it."""

WEIGHTS_KEPT = 1 << 19
"""Bytes of weights that stay in the second cache while a kernel goes from tile to tile."""

_PIXELS = {32: {1: 28, 2: 12, 3: 8, 4: 6}, 16: {1: 12, 2: 6, 3: 4}}
"""Vector registers of a processor -> vectors of a block -> pixels of the largest tile without spills."""

_LATENCY = 4
"""Cycles until a sum can be added to again."""

_MULTIPLIERS = 2
"""Vectors multiplied and added in a cycle."""

_LOADS = 2
"""Loads in a cycle: vectors of weights, inputs of pixels, and where the column's inputs lie."""

_NEAR_INPUT = 36 << 10
"""Bytes of input that stay in the first cache from one block of a tile to the next."""

_STEP, _TILE, _RUN, _VALUE = 0.4, 5.0, 23.0, 6.0
"""Cycles beside the multiplications: of each column, each tile of a block, each run of columns, each vector written."""

_INPUT_LINE, _WEIGHT_LINE, _FAR_WEIGHT_LINE = 0.67, 1.4, 1.75
"""Cycles for a cache line of input or weights from the second cache, and what is added for weights from beyond it."""


@dataclass(frozen=True)
class Shape:
    """How a kernel does blocks of so many vectors."""

    vectors: int
    tile: Tile
    rest: Tile | None
    """The tile for images left over where `tile` has several."""


@dataclass(frozen=True)
class Work:
    """What there is to do, as far as the choice of a tile depends on it."""

    plane: Plane
    channels: int
    """Columns of a tap: the input's channels, or pairs of them in bfloat16, which take as many bytes and as long."""
    images: int
    """In a block, mostly."""
    blocks: int
    """Of rows."""
    columns: float
    """Kept in each, in the mean."""

    @property
    def density(self) -> float:
        return min(1.0, self.columns / (self.channels * self.plane.taps))


def sizes(target: Target) -> list[int]:
    """Vectors that a block may have."""
    return list(_PIXELS[target.registers])


def sets(vectors: int, tile: Tile, target: Target) -> int:
    """Accumulators an output needs so that sums are not waited for, as far as there are registers."""
    values = vectors * tile.pixels
    most = (target.registers - vectors - 2) // values
    return max(1, min(-(-_LATENCY * _MULTIPLIERS // values), most))


def cycles(work: Work, vectors: int, tile: Tile, target: Target) -> float:
    """Cycles of one block for one image."""
    plane, values = work.plane, vectors * tile.pixels
    columns = work.columns * plane.work(tile) / plane.taps
    beside = _TILE + _RUN * plane.runs(tile) + _VALUE * values
    return columns * step(work, vectors, tile, target) + plane.tiles(tile) * beside


def step(work: Work, vectors: int, tile: Tile, target: Target) -> float:
    """Cycles of one column in one tile: what the slowest of multipliers, loads, sums and caches needs."""
    plane = work.plane
    waiting = _LATENCY / sets(vectors, tile, target)
    multiplied = vectors * tile.pixels / _MULTIPLIERS
    loaded = (vectors + tile.pixels + 1) / _LOADS
    column = vectors * target.lanes * FLOAT  # bytes of its weights
    line = _WEIGHT_LINE
    if work.blocks * work.columns * column > WEIGHTS_KEPT:
        line += _FAR_WEIGHT_LINE / max(1.0, plane.tiles(tile) * work.images)
    fetched = line * column / LINE
    if plane.inputs(tile) * work.channels * FLOAT > _NEAR_INPUT:
        loaded += _INPUT_LINE * lines(work, tile)
    return max(multiplied, loaded, waiting, fetched) + _STEP


def lines(work: Work, tile: Tile) -> float:
    """Cache lines of the tile's input that are fetched, over the columns, in the mean of masks."""
    values = LINE // FLOAT
    inputs = work.plane.taps * tile.pixels
    if tile.pixels * work.channels * FLOAT <= _NEAR_INPUT:
        # What one tap has left in the first cache serves those beside it.
        inputs = min(inputs, work.plane.inputs(tile))
    uses = values * work.plane.taps * tile.pixels / inputs  # of a line, if no column were pruned
    touched = inputs * work.channels / values * (1 - float((1 - work.density) ** uses))
    return touched / max(1.0, work.columns)


def best_shape(work: Work, vectors: int, target: Target) -> tuple[Shape, float]:
    """The shape for blocks of so many vectors, and the `cycles` of one."""
    most = _PIXELS[target.registers][vectors]

    def price(tile: Tile) -> float:
        return cycles(work, vectors, tile, target)

    tile = min(work.plane.candidates(most, work.images), key=price)
    rest = None if tile.images == 1 else min(work.plane.candidates(most, 1), key=price)
    return Shape(vectors, tile, rest), price(tile)
