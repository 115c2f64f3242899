"""What kernels of `sums` fetch ahead of time: the lines of x that come next, spread evenly over the work at hand.

Planes are read at hundreds of places in turn, which no processor foresees; where x lies beyond the second cache,
kernels that fetch nothing ahead run at half of their speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ticketry.engine.cpu.planes.geometry import Planes
from ticketry.engine.cpu.planes.sums import Fetch
from ticketry.engine.cpu.planes.tiles import Tiles

Array = np.ndarray[Any, Any]

LINE = 64
"""Bytes of a cache line."""

_MOST = 12
"""Entries of a segment: it fetches less than it should rather than be made up of fetching."""


def lines(columns: Array, tile: Sequence[int]) -> Array:
    """The cache lines, as bytes and ascending, that a tile reads of columns; ``tile``: the offsets of its vectors."""
    return np.unique((columns.reshape(-1, 1) + np.array(tile)) // LINE) * LINE


class Blocks:
    """For single rows: the lines of the next block of inputs, in runs of one length."""

    def __init__(self, tiles: Sequence[Tiles]) -> None:
        self._shapes = len(tiles)
        self._tile = tiles[0].shape.x
        self._found: list[tuple[Array, int]] = []

    def block(self, columns: Array, segments: int) -> None:
        self._found.append((lines(columns, self._tile), segments))

    def made(self) -> tuple[Fetch, Array]:
        """What kernels are made with, and the table."""
        longest, segments = max(self._found, key=lambda block: len(block[0]) / block[1])
        length = min(range(1, 9), key=lambda length: -(-len(_runs(longest, length)) // segments) * (1 + length))
        entries = [_runs(block, length) for block, _ in self._found]
        most = max(-(-len(e) // segments) for e, (_, segments) in zip(entries, self._found, strict=True))
        each = max(1, min(_MOST, most))
        count = max(each, *map(len, entries))
        table = np.concatenate([np.pad(e, (0, count - len(e)), mode="edge") for e in entries])
        run = tuple(range(0, LINE * length, LINE))
        return Fetch((run,) * self._shapes, each, count), table.astype(np.int32)


def planes(x: Planes, last: int, tiles: Sequence[Tiles], segments: int) -> tuple[Fetch, Array]:
    """For rows together: of every plane what a tile of the next block of tiles reads that none before it has read.

    Args:
        last: the shift of the tap that reads furthest.
    """
    starts = np.unique(x.offsets) + last
    each = min(_MOST, -(-len(starts) // segments))
    table = np.resize(starts, segments * each) if each * segments > len(starts) else starts[: segments * each]
    return Fetch(tuple(t.shape.x for t in tiles), each, segments * each), table.astype(np.int32)


def _runs(lines: Array, length: int) -> Array:
    """The starts of runs of so many lines that cover all lines."""
    starts: list[int] = []
    first = np.flatnonzero(np.diff(lines, prepend=-(LINE**4)) != LINE)
    for low, high in zip(first, [*first[1:], len(lines)], strict=True):
        starts += range(int(lines[low]), int(lines[high - 1]) + 1, LINE * length)
    return np.array(starts, dtype=np.int64)
