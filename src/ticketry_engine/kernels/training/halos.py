"""Zero the halos of a value that reuses memory of other values.

    head        . . . . . .        before the first pixel
    row ends    . p p p . .        between two rows (the halo of both)
    tail        . . . . . .        after the last pixel

Only the halo is written, not the pixels, which are overwritten anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.training.layout import Batch, parts


@dataclass(frozen=True)
class Border(Written):
    """Kernel that zeroes everything around the pixels of consecutive planes.

    Arguments: number of planes, byte of the first, bytes per plane; bytes before the first pixel; rows minus one, bytes
    of
    a row's pixels and between two rows; byte after the last pixel.
    """

    finished: ClassVar[bool] = True

    def write(self, e: Emitter) -> None:
        b = e.b
        planes, begin, size, head, rows, pixels, row, tail = (e.arg(number) for number in range(8))
        with e.loop(*e.share(planes)) as plane:
            place = e.at(e.arena(begin), b.mul(plane.index, size))
            self._zero(e, place, e.i64(0), head)
            with e.loop(0, rows) as line:
                first = b.add(b.add(head, pixels), b.mul(line.index, row))
                self._zero(e, place, first, b.sub(b.add(first, row), pixels))
            self._zero(e, place, tail, size)

    @staticmethod
    def _zero(e: Emitter, place: object, begin: object, end: object) -> None:
        with e.loop(begin, end, FLOAT * e.target.lanes) as vector:
            e.store(e.splat(0.0), place, vector.index)


def border(value: Batch) -> list[Op]:
    """Return the operations that zero a value's halo, block by block or over all blocks (see `parts`)."""
    g = value.geometry
    pixels = g.width * g.step
    last = g.position(g.height - 1, 0) * g.step + pixels
    shape = (g.bytes, g.position(0, 0) * g.step, g.height - 1, pixels, g.row * g.step, last)
    return [
        Op(Border(), (value.channels * len(part), value.offset + part.start * value.block_bytes, *shape))
        for part in parts(value.blocks, (g.height, g.width))
    ]
