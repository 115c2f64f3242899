"""The tables of `sums`: which rows are summed over which columns, packed without a loop over weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.engine.cpu.planes.geometry import Planes
from ticketry.engine.cpu.planes.sums import FIRST, FLAG_BITS, LAST

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A layer as rows over columns."""

    weight: Array
    """O x K float32; K runs over a conv group's inputs, then taps."""
    columns: Array
    """Groups x K int64: the byte where each column begins: plane plus shift, relative to a tile's place."""
    taps: int
    y: Array
    """O int64: where the planes of y begin."""
    residual: Array | None
    bias: Array

    @property
    def inputs(self) -> int:
        """Inputs of a conv group."""
        return int(self.weight.shape[1]) // self.taps

    @property
    def group_rows(self) -> int:
        return len(self.weight) // len(self.columns)


@dataclass(frozen=True, eq=False)
class Tables:
    """What a kernel of `sums` is given, and what it must know of it."""

    segments: Array
    columns: Array
    weights: Array
    chunks: Array
    unit: int
    wide: bool
    blocked: bool
    reach: tuple[int, int]
    """The least and the greatest byte at which a column begins."""


def single(matrix: Matrix, rows: Array, *, block: int, chunks: int) -> Tables:
    """Each row for itself.

    Args:
        rows: ascending.
        block: inputs that a segment ranges over.
        chunks: parts of the rows that threads may work on apart.
    """
    blocks = max(1, -(-matrix.inputs // block))
    kept = matrix.weight[rows] != 0
    edges = np.minimum(np.arange(blocks + 1) * block, matrix.inputs) * matrix.taps
    counts = np.stack([kept[:, low:high].sum(axis=1) for low, high in itertools.pairwise(edges)], axis=1)
    flags = _flags(counts)
    groups = rows // matrix.group_rows
    out = _Rows(matrix)
    for part in _parts(counts.sum(axis=1), chunks, groups if blocks > 1 else None):
        out.chunk()
        for number in np.flatnonzero((flags[part] | counts[part]).any(axis=0)):
            used = part.start + np.flatnonzero(flags[part, number] | counts[part, number])
            row, column = np.nonzero(kept[used, edges[number] : edges[number + 1]])
            out.segments(rows[used], counts[used, number], flags[used, number], row, column + edges[number])
    return out.tables(blocks > 1)


class _Rows:
    """Tables of single rows as they grow."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._heads: list[Array] = []
        self._bases: list[Array] = []
        self._rows: list[Array] = []
        self._columns: list[Array] = []
        self._weights: list[Array] = []
        self._starts: list[tuple[int, int]] = []
        self._reach: list[int] = []

    def chunk(self) -> None:
        self._starts.append((sum(map(len, self._rows)), sum(map(len, self._weights))))

    def segments(self, rows: Array, counts: Array, flags: Array, row: Array, column: Array) -> None:
        """Segments of some rows; ``row`` (an index into them) and ``column`` of each weight."""
        m = self._matrix
        index = rows[row]
        begins = m.columns[0, column] if len(m.columns) == 1 else m.columns[index // m.group_rows, column]
        base = _bases(begins, counts)
        self._columns.append(begins - base[row])
        if len(begins):
            self._reach += [int(begins.min()), int(begins.max())]
        self._weights.append(m.weight[index, column])
        self._rows.append(rows)
        self._bases.append(base)
        self._heads.append(counts << FLAG_BITS | flags)

    def tables(self, blocked: bool) -> Tables:
        rows = np.concatenate(self._rows)
        segments = _segments(
            self._matrix, [np.concatenate(self._heads), np.concatenate(self._bases)], rows.reshape(-1, 1)
        )
        bounds = [*self._starts, (len(rows), 0)]
        chunks = [(start, following[0] - start, weight) for (start, weight), following in itertools.pairwise(bounds)]
        columns, weights = np.concatenate(self._columns), np.concatenate(self._weights)
        reach = min(self._reach, default=0), max(self._reach, default=0)
        return _tables(segments, columns, weights, chunks, blocked, reach)


def shared(matrix: Matrix, groups: Sequence[Sequence[Array]], *, chunks: int) -> Tables:
    """Rows that keep the same columns.

    Args:
        groups: of each, sets of rows that are summed together, all of one length.
    """
    sets = [rows for group in groups for rows in group]
    kept = [np.flatnonzero(matrix.weight[group[0][0]]) for group in groups]
    absolute = [
        matrix.columns[group[0][0] // matrix.group_rows, columns] for group, columns in zip(groups, kept, strict=True)
    ]
    counts = np.array([len(columns) for columns in kept])
    bases = np.array([begins.min() for begins in absolute])
    first = np.cumsum(counts) - counts
    of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    weights = [matrix.weight[rows][:, kept[group]].T for rows, group in zip(sets, of, strict=True)]
    head = counts[of] << FLAG_BITS | FIRST | LAST
    segments = _segments(matrix, [head, bases[of], first[of]], np.stack(sets))
    done = np.cumsum(counts[of]) - counts[of]
    starts = [(part.start, part.stop - part.start, done[part.start]) for part in _parts(counts[of], chunks)]
    columns = np.concatenate([begins - base for begins, base in zip(absolute, bases, strict=True)])
    reach = min(int(begins.min()) for begins in absolute), max(int(begins.max()) for begins in absolute)
    return _tables(segments, columns, np.concatenate(weights), starts, False, reach)


def check(tables: Tables, x: Planes, places: Array, reach: tuple[int, int]) -> None:
    """That no tile reads outside the planes.

    Args:
        places: of the tiles.
        reach: the least byte a tile reads, counted from where a column begins in it, and the first it does not.

    Raises:
        ValueError: it would.
    """
    if not tables.weights.size:
        return
    low = tables.reach[0] + int(places[:, 0].min()) + reach[0]
    high = tables.reach[1] + int(places[:, 0].max()) + reach[1]
    first, end = int(x.offsets.min()), int(x.offsets.max()) + x.geometry.bytes
    if low < first or high > end:
        raise ValueError(f"columns at bytes {low} … {high} lie outside the planes at {first} … {end}")


def _bases(begins: Array, counts: Array) -> Array:
    """The least begin of each segment; 0 for one without columns."""
    bases = np.zeros(len(counts), dtype=np.int64)
    some = counts > 0
    if some.any():
        bases[some] = np.minimum.reduceat(begins, (np.cumsum(counts) - counts)[some])
    return bases


def _segments(matrix: Matrix, head: Sequence[Array], rows: Array) -> Array:
    """``rows``: segments x rows of each."""
    each = rows.shape[1]
    words = np.empty((len(rows), len(head) + (2 if matrix.residual is None else 3) * each), dtype=np.int32)
    for number, word in enumerate(head):
        words[:, number] = word
    at = len(head)
    words[:, at : at + each] = matrix.y[rows]
    if matrix.residual is not None:
        words[:, at + each : at + 2 * each] = matrix.residual[rows]
    words[:, -each:] = matrix.bias[rows].view(np.int32)
    return words


def _flags(counts: Array) -> Array:
    """Rows x blocks: which block begins, and which ends each row: its first and last with weights, or block 0."""
    some = counts > 0
    flags = np.zeros(counts.shape, dtype=np.int64)
    index = np.arange(len(counts))
    flags[index, some.argmax(axis=1)] |= FIRST
    last = np.where(some.any(axis=1), counts.shape[1] - 1 - some[:, ::-1].argmax(axis=1), 0)
    flags[index, last] |= LAST
    return flags


def _parts(work: Array, parts: int, groups: Array | None = None) -> Iterator[slice]:
    """Consecutive parts of about equal work, none of them empty; none with rows of two groups, if groups are given."""
    done = np.cumsum(work + 1)
    cuts = np.searchsorted(done, done[-1] * np.arange(1, parts) / parts)
    if groups is not None:
        cuts = np.concatenate([cuts, 1 + np.flatnonzero(np.diff(groups))])
    bounds = np.unique(np.concatenate([[0], cuts, [len(work)]]))
    for low, high in itertools.pairwise(bounds):
        yield slice(int(low), int(high))


def _tables(
    segments: Array,
    columns: Array,
    weights: Array,
    chunks: Sequence[tuple[int, int, int]],
    blocked: bool,
    reach: tuple[int, int],
) -> Tables:
    """``columns`` in bytes from their segments' bases; of each chunk the first segment, their number, first weights."""
    made = np.array(chunks, dtype=np.int64)
    made[:, 0] *= segments.shape[1] * 4
    common = int(np.gcd.reduce(columns)) if len(columns) else 0
    unit = max(1, common & -common)
    units = columns // unit
    wide = bool(len(columns)) and int(units.max()) >= 1 << 16
    return Tables(segments, units.astype(np.int32 if wide else np.uint16), weights, made, unit, wide, blocked, reach)
