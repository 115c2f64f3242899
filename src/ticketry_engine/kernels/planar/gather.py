"""Copy elements of planes to other positions: window partitions, rolls, pads, transposes of channels and positions.

    y[i] = source[of[i]][element[i]]      or 0 where of[i] is -1

The copies are grouped into runs of consecutive elements (`copies`), which move as whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ticketry_engine.kernels.copies import Copies, copies
from ticketry_engine.kernels.planar.geometry import FLOAT, Planes
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array


def gather(sources: Sequence[Planes], y: Planes, where: tuple[Array, Array]) -> list[Op]:
    """Fill a value with elements of `sources` and zeros. Arguments as of `channels_last.gather`."""
    of, element = where
    goals, found = _bytes(y).reshape(of.shape), np.zeros(of.shape, np.int64)
    for number, source in enumerate(sources):
        inside = of == number
        found[inside] = _bytes(source).reshape(-1)[element[inside]]
    images = y.geometry.images
    ops = []
    for number, plan in copies(goals, found, of, FLOAT * images):
        kernel = Copies(plan.length * images, FLOAT, False, number < 0)
        ops.append(Op(kernel, (0, 0, 0, 0, len(plan.starts), len(plan.runs), plan.starts, plan.runs)))
    return ops


def _bytes(value: Planes) -> Array:
    """Return the arena byte of each element: [channels, positions]."""
    g = value.geometry
    rows = np.arange(g.height) * g.row + g.position(0, 0)
    positions = (rows[:, None] + np.arange(g.width)).reshape(-1)
    table: Array = value.offsets[:, None] + positions * g.step
    return table
