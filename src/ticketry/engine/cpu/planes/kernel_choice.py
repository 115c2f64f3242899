"""Which kernels of `sums` a layer takes: which rows are summed together, over which tiles, of x as it is or unfolded.

Times are counted in cycles of a core that does two loads and two multiply-adds a cycle, and were compared with
measurements on one processor (see benchmarks/kernels.py). They are for choosing between ways to do the same work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ticketry.core.structure.group_wise.matrices import row_groups
from ticketry.engine.cpu.planes.geometry import FLOAT, LINE, Geometry
from ticketry.engine.cpu.planes.unfold import Unfolding, unfolding
from ticketry.engine.cpu.target import Target
from ticketry.engine.cpu.window import Array, Window

_LATENCY = 8
"""Sums that must be under way to keep the adders busy: two adders, four cycles each."""

_LAST = 16 << 20
"""Bytes that stay in the last cache, beside what others put there."""

_BYTES_A_CYCLE = 8.0
"""That come from memory, or go there."""

_UNITS = 12
"""Units of work that an operation should have, for threads to share."""

_CYCLES_PER_NS = 4.0


@dataclass(frozen=True, eq=False)
class Kind:
    """Rows that are summed by one kernel."""

    rows: int
    """Rows summed together."""
    groups: list[list[Array]]
    """Of each group of rows that keep the same columns, the sets of so many rows."""
    tiles: list[Tiles]
    block: int
    """Inputs of a conv group that a segment ranges over."""
    cycles: float

    @property
    def vectors(self) -> int:
        """Of the smallest tile."""
        return min(len(t.shape.x) for t in self.tiles)

    @property
    def sets(self) -> int:
        """Sums of each row and vector that are held side by side."""
        return -(-_LATENCY // (self.rows * self.vectors))

    @property
    def chunks(self) -> int:
        """Parts of the rows that threads may work on apart."""
        return -(-_UNITS // sum(len(t.places) for t in self.tiles))


@dataclass(frozen=True, eq=False)
class Way:
    """How a layer is done."""

    folds: Unfolding | None
    kinds: list[Kind]
    cycles: float

    @property
    def nanoseconds(self) -> float:
        return self.cycles / _CYCLES_PER_NS


def best(
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    weight: Array,
    window: Window,
    groups: int,
    target: Target,
    unfold: bool = True,
) -> Way:
    """The way that takes least time.

    Args:
        weight: O x I/groups x taps.
        unfold: whether x may be.

    Raises:
        ValueError: x would have to be unfolded, and may not be, or cannot as an image takes several vectors.
    """
    outputs, inputs, taps = weight.shape
    kept = weight != 0
    rows = kinds(kept.reshape(outputs, -1), groups)
    ways = []
    filled = y.images >= target.lanes
    if window.held(x, y) and (filled or (window.stride == (1, 1) and x.row == y.row)):
        columns = np.arange(inputs)[:, None] * x.bytes + np.array([x.shift(*window.shift(tap)) for tap in window.taps])
        some = _kinds(rows, kept, columns, x, y, residual, window, target)
        ways.append(Way(None, some, sum(kind.cycles for kind in some)))
    elif y.images > target.lanes:
        raise ValueError(f"{window} reads beyond the halo of {x}")
    elif not unfold:
        raise ValueError(f"{window} over {x} needs scratch memory for vectors of {target.lanes} lanes")
    if not ways or (unfold and not filled and window != Window()):
        used = kept.reshape(groups, outputs // groups, inputs, taps).any(axis=1).reshape(-1, taps)
        folds = unfolding(x, y, window, used, target)
        some = _kinds(rows, kept, folds.columns(0)[:inputs], folds.geometry, y, residual, Window(), target)
        copying = folds.vectors * (2 + 2 * folds.pieces) * (1 if target.lanes == 16 else 2)  # masks are slower there
        ways.append(Way(folds, some, sum(kind.cycles for kind in some) + copying))
    way = min(ways, key=lambda way: way.cycles)
    moved = x.bytes * inputs * groups + y.bytes * outputs * (1 if residual is None else 2)
    return replace(way, cycles=max(way.cycles, moved / _BYTES_A_CYCLE)) if moved > _LAST else way


def kinds(kept: Array, groups: int) -> dict[int, list[list[Array]]]:
    """How many rows are summed together, by the number: of each group that keeps the same columns the sets of rows."""
    found: dict[int, list[list[Array]]] = {}
    per = len(kept) // groups
    for group in range(groups):
        for same in row_groups(kept[group * per : (group + 1) * per]):
            rows = same.rows + group * per
            parts = _together(len(rows)) if len(same.columns) else [1] * len(rows)
            bounds = np.cumsum([0, *parts])
            sets = [rows[low:high] for low, high in itertools.pairwise(bounds)]
            for size in set(parts):
                found.setdefault(size, []).append([s for s in sets if len(s) == size])
    return found


def _together(rows: int) -> list[int]:
    """Rows that keep the same columns in sets of at most 6, if possible of one size."""
    for size in (6, 4, 5):
        if rows % size == 0:
            return [size] * (rows // size)
    return [size for _, size in split(rows, 6)]


def vectors(rows: int, target: Target) -> tuple[int, ...]:
    """Vectors a tile may have: sums, the inputs of one column and one weight stay in registers.

    For single rows smaller tiles too: the nearest cache keeps more inputs of those, so rows are taken up less often.
    """
    if target.registers >= 32:
        return {1: (16, 8), 2: (8,), 3: (8,)}.get(rows, (4,))
    return {1: (12, 8, 4), 2: (5,), 3: (4,)}.get(rows, (2,))


def _kinds(
    rows: dict[int, list[list[Array]]],
    kept: Array,
    columns: Array,
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    window: Window,
    target: Target,
) -> list[Kind]:
    """``columns``: inputs of one conv group x taps, the byte where each begins."""
    found = []
    for size, groups in rows.items():
        possible = []
        for most in vectors(size, target):
            tiles = cut(x, y, residual, stride=window.stride, lanes=target.lanes, most=most, taps=max(window.size))
            block = _block(columns, tiles, target.near) if size == 1 else len(columns)
            kind = Kind(size, groups, tiles, block, 0.0)
            possible.append(replace(kind, cycles=_cycles(kind, kept, columns, target)))
        found.append(min(possible, key=lambda kind: kind.cycles))
    return found


def _block(columns: Array, tiles: Sequence[Tiles], near: int) -> int:
    """Inputs whose part of a tile has so many bytes, which the nearest cache keeps."""
    some = columns[:8]
    if not some.size:
        return 1
    lines = np.unique((some.reshape(-1, 1) + np.array(tiles[0].shape.x)) // LINE)
    return max(1, near * len(some) // (LINE * len(lines)))


def _cycles(kind: Kind, kept: Array, columns: Array, target: Target) -> float:
    """The time of a kind: what each column and each segment of it takes, over all tiles."""
    entries = sum(int(kept[group[0][0]].sum()) * len(group) for group in kind.groups)
    blocks = max(1, -(-len(columns) // kind.block))
    segments = sum(len(group) for group in kind.groups)
    segments = min(segments * blocks, max(segments, entries))
    total = 0.0
    for tiles in kind.tiles:
        vectors = len(tiles.shape.x)
        begins = columns[:8].reshape(-1, 1) + np.array(tiles.shape.x) + int(tiles.places[0, 0])
        across = float((begins % LINE + target.lanes * FLOAT > LINE).mean()) if begins.size else 0.0
        several = kind.rows == 1 and kind.sets > 1  # columns of which one load reads the weights, and one the places
        loads = (vectors * (1 + across) + (0.4 if several else kind.rows + 1)) / 2
        sums = max(kind.rows * vectors / 2, 4 / max(1, kind.sets))
        each = max(loads, sums) + (0.8 if kind.sets == 1 else 0.4)
        begin = 20 + kind.rows * vectors * (2.0 if blocks > 1 else 1.0)
        total += len(tiles.places) * (entries * each + segments * begin)
    return total


# -- tiles: sets of vectors whose sums a kernel holds in registers at once ---------------------------------------------
#
# Where a pixel's images fill vectors, a tile is a rectangle of pixels, at any stride. Where a vector spans several
# positions, it is such a rectangle if rows are a multiple of a vector, else a run of vectors along the flattened plane,
# across the halo between two rows: what they give there is masked to zero.


@dataclass(frozen=True)
class Shape:
    """The vectors of a tile: byte offsets from the tile's place in the planes of x, of y and of the residual."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    residual: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tiles:
    """All tiles of one shape."""

    shape: Shape
    places: np.ndarray[Any, np.dtype[np.int32]]
    """Tiles x 3: the byte in a plane of x (of tap 0 without padding), of y and of the residual where a tile begins."""
    masks: np.ndarray[Any, Any] | None
    """Tiles x vectors: a bit for each lane that holds a pixel. None: all do."""


def cut(
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    *,
    stride: tuple[int, int],
    lanes: int,
    most: int,
    taps: int = 1,
) -> list[Tiles]:
    """Tiles that cover each pixel of y once, of at most ``most`` vectors and at most four shapes.

    Args:
        taps: rows and columns of the kernel that slides over x: tiles are squarer where it is large.

    Raises:
        ValueError: positions of x, y and the residual do not go side by side as vectors need them to.
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
        return _rectangles(x, y, residual, stride, lanes, most, taps)
    if not x.row == y.row == residual.row:
        raise ValueError(f"rows of different lengths: {x}, {residual}, {y}")
    return _runs(x, y, residual, lanes, most)


def split(extent: int, most: int) -> list[tuple[int, int]]:
    """An extent in as few parts of at most ``most`` as it takes, as equal as can be: (from, size) of each."""
    parts = -(-extent // most)
    bounds = [extent * part // parts for part in range(parts + 1)]
    return [(low, high - low) for low, high in itertools.pairwise(bounds)]


def _rectangles(
    x: Geometry, y: Geometry, residual: Geometry, stride: tuple[int, int], lanes: int, most: int, taps: int
) -> list[Tiles]:
    positions, deep = max(1, lanes // y.images), max(1, y.images // lanes)
    columns = y.width // positions
    rows, cols = _best(y.height, columns, most // deep, positions, stride, taps)

    def offsets(geometry: Geometry, stride: tuple[int, int], height: int, width: int) -> tuple[int, ...]:
        """Bytes from a tile's place to each of its vectors."""
        return tuple(
            (row * stride[0] * geometry.row + column * positions * stride[1]) * geometry.step + part * lanes * FLOAT
            for row in range(height)
            for column in range(width)
            for part in range(deep)
        )

    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for top, height in split(y.height, rows):
        for column, width in split(columns, cols):
            left = column * positions
            from_x = x.position(top * stride[0], left * stride[1]) * x.step
            place = (from_x, y.position(top, left) * y.step, residual.position(top, left) * residual.step)
            found.setdefault((height, width), []).append(place)
    all_tiles = []
    for size, places in found.items():
        shape = Shape(offsets(x, stride, *size), offsets(y, (1, 1), *size), offsets(residual, (1, 1), *size))
        all_tiles.append(Tiles(shape, np.array(places, dtype=np.int32), None))
    return all_tiles


def _best(height: int, columns: int, most: int, positions: int, stride: tuple[int, int], taps: int) -> tuple[int, int]:
    """The largest rows and columns of a tile that take the least time, by the loads of one weight and of the inputs."""
    best, least = (1, 1), math.inf
    for rows in range(1, min(height, most) + 1):
        for cols in range(1, min(columns, most // rows) + 1):
            tiles = -(-height // rows) * -(-columns // cols)
            parts = {(h, w) for _, h in split(height, rows) for _, w in split(columns, cols)}
            reads = ((rows - 1) * stride[0] + taps) * (((cols - 1) * stride[1] + (taps - 1) / positions) + 1)
            time = tiles * (2 + 0.15 * reads / taps) + 0.01 * height * columns * (len(parts) - 1)
            if time < least:
                best, least = (rows, cols), time
    return best


def _runs(x: Geometry, y: Geometry, residual: Geometry, lanes: int, most: int) -> list[Tiles]:
    positions = lanes // y.images
    pixels = np.zeros((y.height, y.row), dtype=bool)
    pixels[:, : y.width] = True
    flat = pixels.reshape(-1)[: (y.height - 1) * y.row + y.width]
    vectors = -(-len(flat) // positions)
    whole = np.zeros(vectors * positions, dtype=bool)
    whole[: len(flat)] = flat
    bits = np.repeat(whole, y.images).reshape(vectors, lanes) @ (1 << np.arange(lanes))
    found: dict[int, list[int]] = {}
    for first, size in split(vectors, most):
        found.setdefault(size, []).append(first)
    all_tiles = []
    for size, firsts in found.items():
        offsets = tuple(vector * lanes * FLOAT for vector in range(size))
        starts = [g.position(0, 0) * g.step for g in (x, y, residual)]
        places = np.array([[start + first * lanes * FLOAT for start in starts] for first in firsts], dtype=np.int32)
        masks = np.stack([bits[first : first + size] for first in firsts])
        full = bool((masks == (1 << lanes) - 1).all())
        all_tiles.append(Tiles(Shape(offsets, offsets, offsets), places, None if full else masks))
    return all_tiles
