"""What kernels do whose rows have few inputs, or values of one position, counted as sums of planes are."""

from __future__ import annotations

from typing import Any

import numpy as np

from ticketry_engine.kernels.planar import dots, taps
from ticketry_engine.kernels.program import Op

LIKE = {
    "taps": "sums",
    "taps of a position": "sums of a position",
    "dots of a position": "sums of a position",
    "planes collect": "planes elements",
    "pixels copies": "pixels move",
    "planes turn": "planes elementwise",
}
"""Kind of work -> another one, by whose coefficients it is estimated where a profile is older than its kernel."""

_GATHERED = 16
"""Loads' time that a gathered vector takes, about."""


def of_taps(kernel: taps.Taps, op: Op) -> dict[str, float]:
    """Counts of `Taps`: a vector of a column takes a load of its mask and one or two of its numbers."""
    (segments,) = _arrays(op, taps.SEGMENTS)
    rows, found = len(segments), dict.fromkeys(_COUNTS, 0.0)
    for number, shape in enumerate(kernel.shapes):
        at = taps.SHAPES + taps.SHAPE_ARGS * number
        tiles, vectors = int(op.args[at + 1]), len(shape.x)
        turn = float(int(segments[:, 0].sum()) * tiles)
        loads, store = vectors * (1 + 1.9 * kernel.stride) + 3, float(rows * tiles * vectors)
        found["load"] += turn * loads
        found["sum"] += turn * vectors
        found["most"] += turn * loads
        found["column"] += turn
        found["turn"] += turn
        found["segment"] += float(rows * tiles)
        found["store"] += store
        found["residual"] += store if kernel.residual else 0.0
        found["masked"] += store if kernel.masked[number] else 0.0
    return found


def of_dots(kernel: dots.Dots, op: Op) -> dict[str, float]:
    """Counts of `Dots`: a chunk of columns is gathered once for all rows that share it."""
    groups, chunks = _arrays(op, 0, 3)
    turn, rows = float(len(chunks) - 1), float(len(groups) * kernel.rows)
    loads = _GATHERED + kernel.rows
    found = dict.fromkeys(_COUNTS, 0.0)
    found |= {
        "load": turn * loads,
        "sum": turn * kernel.rows,
        "most": turn * loads,
        "column": turn,
        "turn": turn,
        "segment": rows,
        "store": rows,
        "residual": rows if kernel.residual else 0.0,
    }
    return found


_COUNTS = ("load", "sum", "most", "column", "turn", "segment", "store", "residual", "masked")


def _arrays(op: Op, *numbers: int) -> list[Any]:
    found = [op.args[number] for number in numbers]
    assert all(isinstance(one, np.ndarray) for one in found)
    return found
