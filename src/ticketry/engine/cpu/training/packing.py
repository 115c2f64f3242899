"""Kernels between dense tensors and the tables that kernels read: weights are gathered, gradients scattered.

What is kept of a large weight lies in about as many cache lines as it has numbers: reading it once is most of what this
costs, so tables of the way back are gathered from those of the way there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ticketry.engine.cpu.emitter import Emitter, Written
from ticketry.engine.cpu.planes.geometry import FLOAT


@dataclass(frozen=True)
class Gather(Written):
    """``table[i] = source[index[i]]``. Arguments: index (int32), table, how many, and the source.

    Args:
        packed: whether the source is another table, or a tensor from outside, by its number.
    """

    finished: ClassVar[bool] = True

    packed: bool

    def write(self, e: Emitter) -> None:
        index, table = e.table(0), e.table(1)
        source = e.table(3) if self.packed else e.external(e.arg(3))
        with e.loop(*e.share(e.arg(2))) as loop:
            byte = e.b.mul(loop.index, e.i64(FLOAT))
            place = e.b.mul(e.load_i32(index, byte), e.i64(FLOAT))
            e.b.store(e.load_f32(source, place), e.at(table, byte), align=FLOAT)


@dataclass(frozen=True)
class Scatter(Written):
    """``goal[index[i]] = source[i]``. Arguments: index (int32), how many; the numbers of two tensors from outside.

    Places that come several times have to get the same number each time.
    """

    finished: ClassVar[bool] = True

    def write(self, e: Emitter) -> None:
        index, source, goal = e.table(0), e.external(e.arg(2)), e.external(e.arg(3))
        with e.loop(*e.share(e.arg(1))) as loop:
            byte = e.b.mul(loop.index, e.i64(FLOAT))
            place = e.b.mul(e.load_i32(index, byte), e.i64(FLOAT))
            value = e.load_f32(source, byte)
            e.b.store(value, e.at(goal, place), align=FLOAT)
