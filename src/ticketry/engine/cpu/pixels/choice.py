"""Which tile a block of rows is done with: estimated cycles of a core, their constants fitted to measurements."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.engine.cpu.pixels.geometry import FLOAT, LINE
from ticketry.engine.cpu.pixels.tiles import Plane, Tile
from ticketry.engine.cpu.target import Target

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
