"""Tables of columns for training kernels: padding segments to whole sets, and loading a column's offset.

    segment with 5 columns, sets of 4:   c0 c1 c2 c3 | c4 c4 c4 c4       (the last column repeated)

Whole sets need no remainder loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ticketry_engine.kernels.emitter import I16, I32, I64, Emitter
from ticketry_engine.kernels.planar.conv import SumTables
from ticketry_engine.kernels.planar.row_sums import FLAG_BITS


def column(e: Emitter, table: Any, index: Any, further: int, unit: int, *, wide: bool) -> Any:
    """Load the byte offset of column ``index + further``.

    Args:
        unit: unit of the offsets, in bytes.
        wide: whether offsets take 32 bits (signed) instead of 16.
    """
    kind, widen, size = (I32, e.b.sext, 4) if wide else (I16, e.b.zext, 2)
    at = e.at(table, e.b.add(e.b.mul(index, e.i64(size)), e.i64(further * size)))
    return e.b.mul(widen(e.b.load(at, typ=kind, align=size), I64), e.i64(unit))


def pad_segments(made: SumTables, rows: int, together: int, *, once: bool = False) -> SumTables:
    """Pad segments to whole sets of columns by repeating the last column.

    With several rows per segment, each segment gets its own columns. Weights are ordered as kernels read them: for each
    set
    of columns, one row after the other.

    Args:
        together: columns per set.
        once: whether repeated columns get zero weights rather than copies of the last weights.
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
