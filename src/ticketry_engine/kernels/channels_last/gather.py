"""Gather: fill a value with elements of other values, as window partitions, rolls, pads and transposes need.

    y[channel, position] = sources[number][channel', position']   or 0

The element tables are compiled into runs of consecutive bytes (`kernels.copies`): a table of starts and lengths. A run
is copied by vectors, so a gather costs about as much as a copy where whole pixels move.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ticketry_engine.kernels.channels_last import loops
from ticketry_engine.kernels.channels_last.geometry import ChannelsLastValue
from ticketry_engine.kernels.copies import Copies, copies
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array


def gather(sources: Sequence[ChannelsLastValue], y: ChannelsLastValue, where: tuple[Array, Array]) -> list[Op]:
    """Return operations that fill ``y`` with elements of ``sources`` and with zeros.

    Args:
        where: two arrays [channels of y, positions of y], positions row by row. The first has the index of the source,
            or -1 for a zero. The second has the element of that source: channel * positions + position.
    """
    source_index, element = where
    g = y.geometry
    places = [_element_offsets(value) for value in sources]
    goals = _element_offsets(y).reshape(source_index.shape).T
    found = np.zeros(source_index.shape, np.int64)
    for number, table in enumerate(places):
        inside = source_index == number
        found[inside] = table.reshape(-1)[element[inside]]
    ops = []
    for number, plan in copies(goals, found.T, source_index.T, g.item):
        source = sources[number] if number >= 0 else y
        kernel = Copies(plan.length, g.item, True, number < 0)
        begins = (loops.first_pixel(source), loops.first_pixel(y), source.geometry.image, g.image)
        ops.append(Op(kernel, (*begins, len(plan.starts), len(plan.runs), plan.starts, plan.runs)))
    return ops


def _element_offsets(value: ChannelsLastValue) -> Array:
    """Return an array [channels, positions]: bytes from a value's first pixel to each element of an image."""
    g = value.geometry
    rows, columns = np.arange(g.height) * g.row, np.arange(g.width) * g.pixel
    positions = (rows[:, None] + columns).reshape(-1)
    table: Array = np.arange(value.channels)[:, None] * g.item + positions
    return table
