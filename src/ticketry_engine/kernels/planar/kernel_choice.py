"""Choose the kernel of a convolution by estimated time.

    row_sums   weighted sums of planes; rows with equal columns are summed together, over tiles of x or of its copies
    taps       rows with few inputs, such as depthwise convolutions
    dots       inner products, for one position and one image

    time = sum over tiles of (columns * cycles per column + segments * cycles per segment) + copies + cache misses

Cycles assume a core with two loads and two multiply-adds per cycle; the constants were fitted to measurements (see
benchmarks/kernels.py). The estimates only serve to compare ways to do the same work.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ticketry_engine.kernels.planar import dots, taps
from ticketry_engine.kernels.planar.geometry import FLOAT, LINE, Geometry
from ticketry_engine.kernels.planar.row_sums import side_by_side
from ticketry_engine.kernels.planar.tiles import Tiles, cut, split
from ticketry_engine.kernels.planar.unfold import Unfolding, unfolding
from ticketry_engine.kernels.program import MARGIN
from ticketry_engine.kernels.target import FEW, Target
from ticketry_engine.kernels.window import Array, Window
from ticketry_engine.support.row_groups import row_groups

_LAST = 16 << 20
"""Bytes that stay in the L3 cache beside other data."""

_VISITS = ((2 << 20, 140), (1 << 20, 80), (1 << 18, 50))
"""(bytes of all values, cycles per visit of another row's planes), for each cache level they exceed. Fitted to layers
of
64 to 240 planes of 28 x 28 to 112 x 112 pixels."""

_ALONE = 1.3
"""Correction factor of the estimate for single rows whose columns other rows share."""

_BYTES_A_CYCLE = 8.0
"""Memory bandwidth in bytes per cycle."""

_UNITS = 12
"""Units of work per operation, for threads to share."""

_CYCLES_PER_NS = 4.0

_WIDEST_STRIDE = 2
"""Largest horizontal stride at which whole vectors are read and positions are picked from them."""


@dataclass(frozen=True, eq=False)
class Kind:
    """Rows of a layer that one kernel computes."""

    rows: int
    """Rows summed together."""
    groups: list[list[Array]]
    """For each group of rows with equal columns, the sets of `rows` rows."""
    tiles: list[Tiles]
    block: int
    """Inputs of a conv group covered by one segment."""
    cycles: float

    @property
    def chunks(self) -> int:
        """Number of parts of the rows that threads may process in parallel."""
        return -(-_UNITS // sum(len(t.places) for t in self.tiles))


@dataclass(frozen=True, eq=False)
class Way:
    """A way to compute a layer, with its estimated time."""

    folds: Unfolding | None
    kinds: list[Kind]
    cycles: float
    tapped: list[taps.Tapped] | None = None
    """Tiles of the `taps` kernel, which then computes all rows."""
    dots: dict[int, list[list[Array]]] | None = None
    """All rows by set size as of `kinds`, if inner products compute them."""

    @property
    def nanoseconds(self) -> float:
        return self.cycles / _CYCLES_PER_NS

    @property
    def visits(self) -> int:
        """How often the sums move on to the planes of other rows: once per tile and set of rows."""
        return sum(
            len(tiles.places) * sum(len(group) for group in kind.groups) for kind in self.kinds for tiles in kind.tiles
        )


def choose(
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    weight: Array,
    window: Window,
    groups: int,
    target: Target,
    unfold: bool = True,
) -> Way:
    """Return the fastest way.

    Args:
        weight: O x I/groups x taps.
        unfold: whether x may be copied.

    Raises:
        ValueError: if x would have to be unfolded but may not be, or cannot because an image takes several vectors.
    """
    outputs, inputs, size = weight.shape
    kept = weight != 0
    rows = kinds(kept.reshape(outputs, -1), groups)
    ways = []
    filled = y.images >= target.lanes
    if unfold and dots.can_use(x, y, target):
        ways.append(
            Way(None, [], dots.cycles(groups * inputs * size, rows, kept.reshape(outputs, -1), target), dots=rows)
        )
    if not filled and window.stride[1] <= _WIDEST_STRIDE and (target.masks or taps.reach(x, window) <= MARGIN):
        tiles = taps.make_tiles(x, y, residual, window, target)
        spent = taps.cycles(tiles, kept, x.bytes, inputs * groups, window.stride[1], target)
        ways.append(Way(None, [], spent, tiles))
    if window.reads_inside(x, y) and (filled or (window.stride == (1, 1) and x.row == y.row)):
        columns = np.arange(inputs)[:, None] * x.bytes + np.array([x.shift(*window.shift(tap)) for tap in window.taps])
        for one, more in [(rows, 1.0)] if filled or list(rows) == [1] else [(rows, 1.0), (_one_row_each(rows), _ALONE)]:
            some = _kinds(one, kept, columns, x, y, residual, window, target)
            ways.append(Way(None, some, more * sum(kind.cycles for kind in some)))
    elif y.images > target.lanes:
        raise ValueError(f"{window} reads beyond the halo of {x}")
    elif not unfold and not ways:
        raise ValueError(f"{window} over {x} needs scratch memory for vectors of {target.lanes} lanes")
    if not ways or (unfold and not filled and window != Window()):
        used = kept.reshape(groups, outputs // groups, inputs, size).any(axis=1).reshape(-1, size)
        folds = unfolding(x, y, window, used, target)
        some = _kinds(rows, kept, folds.columns(0)[:inputs], folds.geometry, y, residual, Window(), target)
        ways.append(Way(folds, some, sum(kind.cycles for kind in some) + folds.cycles))
    moved = x.bytes * inputs * groups + y.bytes * outputs * (1 if residual is None else 2)
    visit = 0 if filled else next((cycles for size, cycles in _VISITS if moved > size), 0)
    ways = [replace(way, cycles=way.cycles + visit * way.visits) for way in ways]
    way = min(ways, key=lambda way: way.cycles)
    return replace(way, cycles=max(way.cycles, moved / _BYTES_A_CYCLE)) if moved > _LAST else way


def kinds(kept: Array, groups: int) -> dict[int, list[list[Array]]]:
    """Return the sets of rows with equal columns that are summed together: set size -> for each group, its sets."""
    found: dict[int, list[list[Array]]] = {}
    per = len(kept) // groups
    for group in range(groups):
        for same in row_groups(kept[group * per : (group + 1) * per]):
            rows = same.rows + group * per
            parts = _set_sizes(len(rows)) if len(same.columns) else [1] * len(rows)
            bounds = np.cumsum([0, *parts])
            sets = [rows[low:high] for low, high in itertools.pairwise(bounds)]
            for size in set(parts):
                found.setdefault(size, []).append([s for s in sets if len(s) == size])
    return found


def _one_row_each(kinds: dict[int, list[list[Array]]]) -> dict[int, list[list[Array]]]:
    """Return the same rows, each in its own set."""
    return {
        1: [[row for rows in sets for row in np.split(rows, len(rows))] for some in kinds.values() for sets in some]
    }


def _set_sizes(rows: int) -> list[int]:
    """Split rows with equal columns into sets of at most 6, of one size if possible."""
    for size in (6, 4, 5):
        if rows % size == 0:
            return [size] * (rows // size)
    return [size for _, size in split(rows, 6)]


def vectors(rows: int, target: Target) -> tuple[int, ...]:
    """Return the possible numbers of vectors per tile: sums, one column's inputs and one weight stay in registers.

    Single rows also try smaller tiles: the L1 cache then holds more of their inputs, so rows have fewer segments.
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
    """Return the kinds with their tiles and times. ``columns``: [inputs of a conv group, taps], bytes."""
    found = []
    near = target.near_of_few if kept.mean() < FEW else target.near
    for size, groups in rows.items():
        possible = []
        for most in vectors(size, target):
            tiles = cut(x, y, residual, stride=window.stride, lanes=target.lanes, most=most, taps=max(window.size))
            block = _block(columns, tiles, near) if size == 1 else len(columns)
            kind = Kind(size, groups, tiles, block, 0.0)
            possible.append(replace(kind, cycles=_cycles(kind, kept, columns, target)))
        found.append(min(possible, key=lambda kind: kind.cycles))
    return found


def _block(columns: Array, tiles: Sequence[Tiles], near: int) -> int:
    """Return the number of inputs whose share of a tile fills ``near`` bytes of the L1 cache."""
    some = columns[:8]
    if not some.size:
        return 1
    lines = np.unique((some.reshape(-1, 1) + np.array(tiles[0].shape.x)) // LINE)
    return max(1, near * len(some) // (LINE * len(lines)))


def _cycles(kind: Kind, kept: Array, columns: Array, target: Target) -> float:
    """Estimate the cycles of a kind: those of each column and each segment, over all tiles."""
    entries = sum(int(kept[group[0][0]].sum()) * len(group) for group in kind.groups)
    blocks = max(1, -(-len(columns) // kind.block))
    segments = sum(len(group) for group in kind.groups)
    segments = min(segments * blocks, max(segments, entries))
    total = 0.0
    for tiles in kind.tiles:
        vectors = len(tiles.shape.x)
        begins = columns[:8].reshape(-1, 1) + np.array(tiles.shape.x) + int(tiles.places[0, 0])
        across = float((begins % LINE + target.lanes * FLOAT > LINE).mean()) if begins.size else 0.0
        sets = side_by_side(kind.rows, vectors)
        several = kind.rows == 1 and sets > 1  # one load reads several columns' weights, another their offsets
        loads = (vectors * (1 + across) + (0.4 if several else kind.rows + 1)) / 2
        sums = max(kind.rows * vectors / 2, 4 / sets)
        each = max(loads, sums) + (0.8 if sets == 1 else 0.4)
        begin = 20 + kind.rows * vectors * (2.0 if blocks > 1 else 1.0) + (4 * sets if several else 0)
        total += len(tiles.places) * (entries * each + segments * begin)
    return total
