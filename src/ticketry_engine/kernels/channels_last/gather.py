"""Elements of values copied to other places: windows, rolls, pads, channels and positions exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ticketry_engine.kernels.channels_last import loops
from ticketry_engine.kernels.channels_last.geometry import Pixels
from ticketry_engine.kernels.copies import Copies, copies
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array


def gather(sources: Sequence[Pixels], y: Pixels, where: tuple[Array, Array]) -> list[Op]:
    """Fill a value with elements of others, and with zeros.

    Args:
        where: of each channel and position of the value (each [channels, positions], positions row by row) the number
            of the source, -1 for a zero; and the element of the source: its channel times its positions, and its
            position.
    """
    of, element = where
    g = y.geometry
    places = [_bytes(value) for value in sources]
    goals = _bytes(y).reshape(of.shape).T
    found = np.zeros(of.shape, np.int64)
    for number, table in enumerate(places):
        inside = of == number
        found[inside] = table.reshape(-1)[element[inside]]
    ops = []
    for number, plan in copies(goals, found.T, of.T, g.item):
        source = sources[number] if number >= 0 else y
        kernel = Copies(plan.length, g.item, True, number < 0)
        begins = (loops.begin(source), loops.begin(y), source.geometry.image, g.image)
        ops.append(Op(kernel, (*begins, len(plan.starts), len(plan.runs), plan.starts, plan.runs)))
    return ops


def _bytes(value: Pixels) -> Array:
    """[channels, positions]: bytes from a value's begin to each element of an image."""
    g = value.geometry
    rows, columns = np.arange(g.height) * g.row, np.arange(g.width) * g.pixel
    positions = (rows[:, None] + columns).reshape(-1)
    table: Array = np.arange(value.channels)[:, None] * g.item + positions
    return table
