"""Which tile a block of rows is done with: estimated cycles of a core, checked by measuring (benchmarks)."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.engine.cpu.pixels.tiles import Plane, Tile
from ticketry.engine.cpu.target import Target

CYCLES_A_NANOSECOND = 4.0
"""Of a core as costs see it."""

_PIXELS = {32: {1: 16, 2: 12, 3: 8, 4: 6}, 16: {1: 12, 2: 6, 3: 4}}
"""Vector registers of a processor -> vectors of a block -> pixels of the largest tile without spills."""

_LATENCY = 4
"""Cycles until a sum can be added to again."""

_MULTIPLIERS = 2
"""Vectors multiplied and added in a cycle."""

_LOADS = 1.77
"""Vectors and broadcast values loaded in a cycle, as measured."""

_TILE, _RUN, _VALUE = 30.0, 12.0, 1.5
"""Cycles that a tile of a block takes beside its columns; each run of columns; each vector of results."""


@dataclass(frozen=True)
class Shape:
    """How a kernel does blocks of so many vectors."""

    vectors: int
    tile: Tile
    rest: Tile | None
    """The tile for images left over where `tile` has several."""


def sizes(target: Target) -> list[int]:
    """Vectors that a block may have."""
    return list(_PIXELS[target.registers])


def sets(vectors: int, tile: Tile, target: Target) -> int:
    """Accumulators an output needs so that sums are not waited for, as far as there are registers."""
    values = vectors * tile.pixels
    most = (target.registers - vectors - 2) // values
    return max(1, min(-(-_LATENCY * _MULTIPLIERS // values), most))


def step(vectors: int, tile: Tile, target: Target) -> float:
    """Cycles of one column in one tile."""
    values = vectors * tile.pixels
    waiting = _LATENCY / sets(vectors, tile, target)
    return max(values / _MULTIPLIERS, (vectors + tile.pixels) / _LOADS, waiting)


def cycles(plane: Plane, vectors: int, tile: Tile, columns: float, target: Target) -> float:
    """Cycles of one block with so many kept columns, for one image."""
    taps = plane.rows.size * plane.columns.size
    runs = 1.0 if min(tile.columns, tile.rows) > 1 or taps == 1 else 1.5
    beside = _TILE + _RUN * runs + _VALUE * vectors * tile.pixels
    return columns / taps * plane.work(tile) * step(vectors, tile, target) + plane.tiles(tile) * beside


def best_shape(plane: Plane, vectors: int, columns: float, images: int, target: Target) -> tuple[Shape, float]:
    """The shape for blocks of so many vectors and kept columns, and the `cycles` of one."""
    most = _PIXELS[target.registers][vectors]

    def price(tile: Tile) -> float:
        return cycles(plane, vectors, tile, columns, target)

    tile = min(plane.candidates(most, images), key=price)
    rest = None if tile.images == 1 else min(plane.candidates(most, 1), key=price)
    return Shape(vectors, tile, rest), price(tile)
