"""Columns of a layer in tables: sets of them that kernels take together, and where each begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ticketry_engine.kernels.emitter import I16, I32, I64, Emitter
from ticketry_engine.kernels.planar.conv import Tables
from ticketry_engine.kernels.planar.row_sums import FLAG_BITS


def column(e: Emitter, table: Any, index: Any, further: int, unit: int, *, wide: bool) -> Any:
    """The byte where the column so many behind that of an index begins.

    Args:
        unit: bytes that columns are counted in.
        wide: whether they take 32 bits (signed) instead of 16.
    """
    kind, widen, size = (I32, e.b.sext, 4) if wide else (I16, e.b.zext, 2)
    at = e.at(table, e.b.add(e.b.mul(index, e.i64(size)), e.i64(further * size)))
    return e.b.mul(widen(e.b.load(at, typ=kind, align=size), I64), e.i64(unit))


def filled_up(made: Tables, rows: int, together: int, *, once: bool = False) -> Tables:
    """Tables whose segments have whole sets of columns: the last one again.

    Those of several rows have columns of their own. Weights are in the order in which kernels take them: for each set
    of columns those of one row after the other.

    Args:
        together: columns of a set.
        once: whether a column that is there again has weights of 0; else it has its own.
    """
    counts = made.segments[:, 0].astype(np.int64) >> FLAG_BITS
    filled = -(-counts // together) * together
    first, start = np.cumsum(counts) - counts, np.cumsum(filled) - filled
    number, counted = np.arange(int(filled.sum())) - np.repeat(start, filled), np.repeat(counts, filled)
    behind = np.minimum(number, counted - 1)
    segments, chunks = made.segments.copy(), made.chunks.copy()
    segments[:, 0] = filled << FLAG_BITS
    chunks[:, 2] = start[chunks[:, 0] // (4 * segments.shape[1])]
    columns = made.columns[np.repeat(first if rows == 1 else made.segments[:, 2], filled) + behind]
    weights = made.weights[np.repeat(first, filled) + behind]
    if once:
        weights[number >= counted] = 0
    if rows > 1:
        weights = weights.reshape(-1, together, rows).swapaxes(1, 2).reshape(-1)
    return replace(made, segments=segments, chunks=chunks, columns=columns, weights=weights)
