"""The tables of `sums`: which rows are summed over which columns, packed without a loop over weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.core.structure.groups import row_groups
from ticketry.engine.cpu.planes.geometry import Geometry, Planes
from ticketry.engine.cpu.planes.sums import FIRST, LAST

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A layer as rows over columns: weights, and for each column of each conv group the byte where it begins."""

    weight: Array
    """O x K float32; K runs over a group's inputs, then taps."""
    columns: Array
    """Groups x K int64: plane plus shift, relative to a tile's place."""
    inputs: int
    """Inputs of a group: K / taps."""
    y: Array
    """O int64: where the planes of y begin."""
    residual: Array | None
    bias: Array

    @property
    def group_rows(self) -> int:
        return len(self.weight) // len(self.columns)


def columns(planes: Sequence[Planes], taps: Array, groups: int) -> Array:
    """Where each column begins.

    Args:
        planes: for each tap the value that it reads (the same one, or the phases of one).
        taps: for each tap the byte that it is shifted by.
    """
    starts = np.stack([value.offsets + shift for value, shift in zip(planes, taps, strict=True)], axis=1)
    return starts.reshape(groups, -1)


@dataclass(frozen=True, eq=False)
class Tables:
    segments: Array
    entries: Array
    chunks: Array


def single(matrix: Matrix, rows: Array, *, block: int, chunks: int) -> Tables:
    """Each row for itself.

    Args:
        rows: ascending.
        block: inputs a segment ranges over.
        chunks: parts of the rows that threads may work on apart.
    """
    blocks = max(1, -(-matrix.inputs // block))
    taps = matrix.weight.shape[1] // max(matrix.inputs, 1)
    kept = matrix.weight[rows] != 0
    edges = np.minimum(np.arange(blocks + 1) * block, matrix.inputs) * taps
    running = np.concatenate([np.zeros((len(rows), 1), dtype=np.int64), np.cumsum(kept, axis=1)], axis=1)
    counts = np.diff(running[:, edges], axis=1)
    flags = _flags(counts)
    segments, entries, starts = [], [], []
    first_segment = first_entry = 0
    for part in _parts(counts.sum(axis=1), chunks):
        begin = first_segment
        starts.append([first_segment, 0, first_entry])
        for number in range(blocks):
            here = slice(edges[number], edges[number + 1])
            row, column = np.nonzero(kept[part, here])
            row += part.start
            column += edges[number]
            entries.append(_entries(matrix, rows, row, column))
            used = part.start + np.flatnonzero(flags[part, number] | counts[part, number])
            segments.append(_segments(matrix, counts[used, number], flags[used, number], rows[used, None]))
            first_segment += len(used)
            first_entry += len(row)
        starts[-1][1] = first_segment - begin
    return _tables(segments, entries, starts)


def shared(matrix: Matrix, groups: Sequence[Array], *, chunks: int) -> Tables:
    """Groups of rows that keep the same columns.

    Args:
        groups: of each the rows, all of one length.
    """
    segments, entries, starts = [], [], []
    kept = [np.flatnonzero(matrix.weight[rows[0]]) for rows in groups]
    first_entry = 0
    for part in _parts(np.array([len(k) + 1 for k in kept]), chunks):
        starts.append([part.start, part.stop - part.start, first_entry])
        for rows, column in zip(groups[part], kept[part], strict=True):
            entry = np.empty((len(column), 1 + len(rows)), dtype=np.int32)
            entry[:, 0] = matrix.columns[rows[0] // matrix.group_rows, column]
            entry[:, 1:] = matrix.weight[rows][:, column].T.view(np.int32)
            entries.append(entry)
            first_entry += len(column)
    rows_of = np.stack(groups)
    segments.append(_segments(matrix, [len(k) for k in kept], FIRST | LAST, rows_of))
    return _tables(segments, entries, starts)


def groups_by_size(matrix: Matrix, sizes: Sequence[int]) -> dict[int, list[Array]]:
    """Rows that keep the same columns of the same conv group, cut into sets of the sizes that kernels have.

    Args:
        sizes: descending; the last is 1.
    """
    found: dict[int, list[Array]] = {size: [] for size in sizes}
    per = matrix.group_rows
    for group in range(len(matrix.columns)):
        for same in row_groups(matrix.weight[group * per : (group + 1) * per]):
            rows, at = same.rows + group * per, 0
            for size in sizes if len(same.columns) else (1,):
                while len(rows) - at >= size:
                    found[size].append(rows[at : at + size])
                    at += size
    return {size: sets for size, sets in found.items() if sets}


def check(tables: Tables, rows: int, x: Sequence[Planes], places: Array, reach: tuple[int, int]) -> None:
    """That no tile reads outside the planes.

    Raises:
        ValueError: it would: the halo is too small for the layer, or the tables are not of these planes.
    """
    if not tables.entries.size:
        return
    offsets = tables.entries.reshape(-1, 1 + rows)[:, 0]
    low = int(offsets.min()) + int(places[:, 0].min()) + reach[0]
    high = int(offsets.max()) + int(places[:, 0].max()) + reach[1]
    first = min(int(value.offsets.min()) for value in x)
    end = max(int(value.offsets.max()) + value.geometry.bytes for value in x)
    if low < first or high > end:
        raise ValueError(f"columns at bytes {low} … {high} lie outside the planes at {first} … {end}")


def shift(geometry: Geometry, rows: int, columns: int) -> int:
    """Bytes from a pixel to another one."""
    return (rows * geometry.row + columns) * geometry.step


def _entries(matrix: Matrix, rows: Array, row: Array, column: Array) -> Array:
    entry = np.empty((len(row), 2), dtype=np.int32)
    index = rows[row]
    entry[:, 0] = (
        matrix.columns[0, column] if len(matrix.columns) == 1 else matrix.columns[index // matrix.group_rows, column]
    )
    entry[:, 1] = matrix.weight[index, column].view(np.int32)
    return entry


def _segments(matrix: Matrix, counts: Any, flags: Any, rows: Array) -> Array:
    """``rows``: segments x rows of each."""
    each = rows.shape[1]
    words = np.empty((len(rows), 2 + (2 if matrix.residual is None else 3) * each), dtype=np.int32)
    words[:, 0], words[:, 1] = counts, flags
    words[:, 2 : 2 + each] = matrix.y[rows]
    if matrix.residual is not None:
        words[:, 2 + each : 2 + 2 * each] = matrix.residual[rows]
    words[:, -each:] = matrix.bias[rows].view(np.int32)
    return words


def _flags(counts: Array) -> Array:
    """Rows x blocks: which block begins, and which ends each row: its first and last with weights, or block 0."""
    some = counts > 0
    flags = np.zeros(counts.shape, dtype=np.int32)
    index = np.arange(len(counts))
    flags[index, some.argmax(axis=1)] |= FIRST
    last = np.where(some.any(axis=1), counts.shape[1] - 1 - some[:, ::-1].argmax(axis=1), 0)
    flags[index, last] |= LAST
    return flags


def _parts(work: Array, parts: int) -> list[slice]:
    """Consecutive parts of about equal work, none of them empty."""
    done = np.cumsum(work + 1)
    cuts = np.searchsorted(done, done[-1] * np.arange(1, parts) / parts)
    bounds = np.unique(np.concatenate([[0], cuts, [len(work)]]))
    return [slice(int(low), int(high)) for low, high in zip(bounds, bounds[1:], strict=False)]


def _tables(segments: Sequence[Array], entries: Sequence[Array], starts: Sequence[Sequence[int]]) -> Tables:
    all_segments, all_entries = np.concatenate(segments), np.concatenate(entries)
    chunks = np.array(starts, dtype=np.int64)
    chunks[:, 0] *= all_segments.shape[1] * 4
    chunks[:, 2] *= all_entries.shape[1] * 4
    return Tables(all_segments, all_entries, chunks)
