"""Splits a convolution's output into tiles, and chooses the tile of each block of rows by estimated cycles.

A tile is a box of output pixels (images x rows x columns) whose accumulators a kernel keeps in registers:

    accumulators = vectors of rows * pixels of the tile  <=  vector registers

More pixels reuse a weight vector more often, more vectors reuse an input more often. The estimate takes the slowest of
multipliers, loads, latency and caches (`estimate_column_cycles`); its constants are fitted to measurements.
"""

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
    """A box of output pixels that are computed together."""

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.images * self.rows * self.columns

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """Image, row and column of each pixel relative to the tile's first."""
        return [(n, y, x) for n in range(self.images) for y in range(self.rows) for x in range(self.columns)]


@functools.lru_cache(maxsize=4096)
def _count_tiles(axis: Axis, length: int) -> tuple[int, int, float]:
    """Return the tiles of this length along an axis, the sum of their taps, and the share of tiles with every tap."""
    alive = axis.alive(length)
    return len(alive), int(alive.sum()), float(alive.all(axis=1).mean())


@dataclass(frozen=True)
class ConvAxes:
    """The windows of a convolution along rows and columns."""

    rows: Axis
    columns: Axis

    @property
    def taps(self) -> int:
        """Taps of the kernel window."""
        return self.rows.size * self.columns.size

    def count_taps(self, tile: Tile) -> float:
        """Return the taps computed for one image, summed over tiles; a tap counts once for all pixels of a tile."""
        return _count_tiles(self.rows, tile.rows)[1] * _count_tiles(self.columns, tile.columns)[1] / tile.images

    def tiles_per_image(self, tile: Tile) -> float:
        """Return the tiles of one image; a fraction if a tile covers several images."""
        return _count_tiles(self.rows, tile.rows)[0] * _count_tiles(self.columns, tile.columns)[0] / tile.images

    def runs_per_tile(self, tile: Tile) -> float:
        """Return the mean number of runs of a tile: one, or one for each kernel row if the side skips taps."""
        tiles, taps, _ = _count_tiles(self.rows, tile.rows)
        whole = _count_tiles(self.columns, tile.columns)[2]
        return whole + (1 - whole) * taps / tiles

    def count_input_pixels(self, tile: Tile) -> int:
        """Return the number of input pixels that a tile reads."""
        return tile.images * self.rows.seen(tile.rows) * self.columns.seen(tile.columns)

    def candidate_tiles(self, pixels: int, images: int) -> list[Tile]:
        """Return tiles of at most ``pixels`` pixels whose images divide ``images``, without redundant longer ones."""
        found = []
        for n in (n for n in range(1, min(images, pixels) + 1) if images % n == 0):
            for y in range(1, min(self.rows.outputs, pixels // n) + 1):
                longest = min(self.columns.outputs, pixels // (n * y))
                shortest_of_same_count = -(-self.columns.outputs // -(-self.columns.outputs // longest))
                found += [Tile(n, y, x) for x in {longest, shortest_of_same_count, 1}]
        return found


def find_runs(alive: Sequence[bool] | Array) -> list[tuple[int, int]]:
    """Return the runs of True as (first, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], np.asarray(alive, dtype=bool), [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


@dataclass(frozen=True, eq=False)
class Tiling:
    """All tiles of an image: the first pixel of each, and its class. Tiles of a class compute the same taps."""

    row: Array
    column: Array
    kind: Array
    """Class of each tile: an index into `spans`."""
    spans: list[list[tuple[int, int]]]
    """For each class the runs of taps that touch the image; taps are numbered row by row of the kernel."""

    @classmethod
    def from_axes(cls, plane: ConvAxes, tile: Tile) -> Tiling:
        """Return the tiles of an image."""
        row_starts, column_starts = plane.rows.starts(tile.rows), plane.columns.starts(tile.columns)
        row_kinds, row_of = np.unique(plane.rows.alive(tile.rows), axis=0, return_inverse=True)
        column_kinds, column_of = np.unique(plane.columns.alive(tile.columns), axis=0, return_inverse=True)
        kinds = [find_runs((rows[:, None] & columns).reshape(-1)) for rows in row_kinds for columns in column_kinds]
        row, column = (part.reshape(-1) for part in np.meshgrid(row_starts, column_starts, indexing="ij"))
        kind = row_of.reshape(-1)[:, None] * len(column_kinds) + column_of.reshape(-1)
        return cls(row, column, kind.reshape(-1), kinds)


# -- the choice of a tile ----------------------------------------------------------------------------------------------

CYCLES_A_NANOSECOND = 4.0
"""Clock rate that converts estimated cycles to time."""

WEIGHTS_KEPT = 1 << 19
"""Bytes of weights that stay in the L2 cache while a kernel moves from tile to tile."""

_PIXELS = {32: {1: 28, 2: 12, 3: 8, 4: 6}, 16: {1: 12, 2: 6, 3: 4}}
"""Vector registers of the target -> vectors of a block -> most pixels of a tile without register spills."""

_LATENCY = 4
"""Latency of a fused multiply-add in cycles."""

_MULTIPLIERS = 2
"""Fused multiply-adds of vectors per cycle."""

_LOADS = 2
"""Loads per cycle; a column loads its weight vectors, one input for each pixel, and its offset."""

_NEAR_INPUT = 36 << 10
"""Bytes of input that stay in the L1 cache from one block of a tile to the next."""

_STEP, _TILE, _RUN, _VALUE = 0.4, 5.0, 23.0, 6.0
"""Overhead in cycles of each column, tile, run of columns, and stored vector; fitted to measurements."""

_INPUT_LINE, _WEIGHT_LINE, _FAR_WEIGHT_LINE = 0.67, 1.4, 1.75
"""Cycles to load a cache line of input or weights from L2, and extra cycles for weights from beyond it; fitted."""


@dataclass(frozen=True)
class BlockShape:
    """The size of a block and of its output tiles."""

    vectors: int
    tile: Tile
    rest: Tile | None
    """Tile for the remaining images, if `tile` covers several images."""


@dataclass(frozen=True)
class ConvWork:
    """The facts about a convolution that the choice of a tile depends on."""

    plane: ConvAxes
    channels: int
    """Columns of a tap: input channels, or pairs of channels in bfloat16, which cost the same."""
    images: int
    """Images in a full block of the batch."""
    blocks: int
    """Number of blocks of rows."""
    columns: float
    """Mean number of retained columns of a block."""

    @property
    def density(self) -> float:
        """Share of columns that are retained."""
        return min(1.0, self.columns / (self.channels * self.plane.taps))


def block_sizes(target: Target) -> list[int]:
    """Return the numbers of vectors that a block may have."""
    return list(_PIXELS[target.registers])


def count_accumulators(vectors: int, tile: Tile, target: Target) -> int:
    """Return the sets of accumulators that hide the latency of additions, limited by the registers."""
    values = vectors * tile.pixels
    most = (target.registers - vectors - 2) // values
    return max(1, min(-(-_LATENCY * _MULTIPLIERS // values), most))


def estimate_cycles(work: ConvWork, vectors: int, tile: Tile, target: Target) -> float:
    """Estimate the cycles of one block for one image."""
    plane, values = work.plane, vectors * tile.pixels
    columns = work.columns * plane.count_taps(tile) / plane.taps
    beside = _TILE + _RUN * plane.runs_per_tile(tile) + _VALUE * values
    return columns * estimate_column_cycles(work, vectors, tile, target) + plane.tiles_per_image(tile) * beside


def estimate_column_cycles(work: ConvWork, vectors: int, tile: Tile, target: Target) -> float:
    """Estimate the cycles of one column in one tile: the slowest of multipliers, loads, latency and caches."""
    plane = work.plane
    waiting = _LATENCY / count_accumulators(vectors, tile, target)
    multiplied = vectors * tile.pixels / _MULTIPLIERS
    loaded = (vectors + tile.pixels + 1) / _LOADS
    column = vectors * target.lanes * FLOAT  # bytes of its weights
    line = _WEIGHT_LINE
    if work.blocks * work.columns * column > WEIGHTS_KEPT:
        line += _FAR_WEIGHT_LINE / max(1.0, plane.tiles_per_image(tile) * work.images)
    fetched = line * column / LINE
    if plane.count_input_pixels(tile) * work.channels * FLOAT > _NEAR_INPUT:
        loaded += _INPUT_LINE * estimate_fetched_lines(work, tile)
    return max(multiplied, loaded, waiting, fetched) + _STEP


def estimate_fetched_lines(work: ConvWork, tile: Tile) -> float:
    """Estimate the cache lines of the tile's input fetched for each column, on average over masks."""
    values = LINE // FLOAT
    inputs = work.plane.taps * tile.pixels
    if tile.pixels * work.channels * FLOAT <= _NEAR_INPUT:
        # Neighbouring taps find their inputs in the L1 cache.
        inputs = min(inputs, work.plane.count_input_pixels(tile))
    uses = values * work.plane.taps * tile.pixels / inputs  # of a line, if no column were pruned
    touched = inputs * work.channels / values * (1 - float((1 - work.density) ** uses))
    return touched / max(1.0, work.columns)


def choose_block_shape(work: ConvWork, vectors: int, target: Target) -> tuple[BlockShape, float]:
    """Return the fastest shape for blocks of this many vectors, and its `estimate_cycles`."""
    most = _PIXELS[target.registers][vectors]

    def price(tile: Tile) -> float:
        return estimate_cycles(work, vectors, tile, target)

    tile = min(work.plane.candidate_tiles(most, work.images), key=price)
    rest = None if tile.images == 1 else min(work.plane.candidate_tiles(most, 1), key=price)
    return BlockShape(vectors, tile, rest), price(tile)
