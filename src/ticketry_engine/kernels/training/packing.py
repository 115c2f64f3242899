"""WeightGather weights from dense tensors into kernel tables, and scatter packed gradients back.

    gather    table[i] = source[index[i]]
    scatter   goal[places[i]] = source[order[i]],  0 elsewhere

The cost is the number of cache lines touched, about one per retained weight of a large sparse layer. So the tables of
the backward pass are gathered from those of the forward pass, and dense gradients are written in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.window import Array


@dataclass(frozen=True)
class WeightGather(Written):
    """Kernel of ``table[i] = source[index[i]]``. Arguments: index (int32), table, length, source.

    Args:
        packed: whether the source is another table rather than an external tensor, given by its number.
        item: bytes of a table entry; with bfloat16, a negative index gives 0.
    """

    finished: ClassVar[bool] = True

    packed: bool
    item: int = FLOAT

    def write(self, e: Emitter) -> None:
        b, index, table = e.b, e.table(0), e.table(1)
        source, item = (e.table(3), self.item) if self.packed else (e.external(e.arg(3)), FLOAT)
        with e.loop(*e.share(e.arg(2))) as loop:
            number = e.load_i32(index, b.mul(loop.index, e.i64(4)))
            there = b.icmp_signed(">=", number, e.i64(0))
            place = number if self.item == FLOAT else e.select(there, number, e.i64(0))
            value = bfloat.load_one(e, e.at(source, b.mul(place, e.i64(item))), item)
            value = value if self.item == FLOAT else e.select(there, value, e.f32(0.0))
            bfloat.store_one(e, value, e.at(table, b.mul(loop.index, e.i64(self.item))), self.item)


@dataclass(frozen=True)
class PackedCopy(Written):
    """Kernel of ``goal[i] = source[index[i]]``. Arguments: index (int32), length, numbers of both external tensors.

    Args:
        spread: whether the index addresses the destination instead: ``goal[index[i]] = source[i]``.
    """

    finished: ClassVar[bool] = True

    spread: bool

    def write(self, e: Emitter) -> None:
        index, source, goal = e.table(0), e.external(e.arg(2)), e.external(e.arg(3))
        with e.loop(*e.share(e.arg(1))) as loop:
            byte = e.b.mul(loop.index, e.i64(FLOAT))
            there = e.b.mul(e.load_i32(index, byte), e.i64(FLOAT))
            origin, end = (byte, there) if self.spread else (there, byte)
            e.b.store(e.load_f32(source, origin), e.at(goal, end), align=FLOAT)


PART = 4096
"""Elements of a dense tensor written at a time, so that they stay in the L1 cache between zeroing and scattering."""


@dataclass(frozen=True)
class Scatter(Written):
    """Kernel that expands packed numbers to a dense tensor: ``goal[places[i]] = source[order[i]]``, 0 elsewhere.

    Arguments: ascending places, order and the first place of each part (int32); number of parts and of elements;
    numbers of
    both external tensors.
    """

    finished: ClassVar[bool] = True

    def write(self, e: Emitter) -> None:
        b, width = e.b, e.target.lanes
        places, order, firsts = (e.table(number) for number in range(3))
        elements, source, goal = e.arg(4), e.external(e.arg(5)), e.external(e.arg(6))
        with e.loop(*e.share(e.arg(3))) as part:
            begin = b.mul(part.index, e.i64(PART))
            end = b.add(begin, e.i64(PART))
            end = e.select(b.icmp_signed("<", end, elements), end, elements)
            whole = b.sub(end, b.urem(b.sub(end, begin), e.i64(width)))
            with e.loop(begin, whole, width) as vector:
                e.store(e.splat(0.0), goal, b.mul(vector.index, e.i64(FLOAT)))
            with e.loop(whole, end) as rest:
                b.store(e.f32(0.0), e.at(goal, b.mul(rest.index, e.i64(FLOAT))), align=FLOAT)
            low, high = (e.load_i32(firsts, b.mul(b.add(part.index, e.i64(n)), e.i64(4))) for n in range(2))
            with e.loop(low, high) as loop:
                at = b.mul(loop.index, e.i64(4))
                value = e.load_f32(source, b.mul(e.load_i32(order, at), e.i64(FLOAT)))
                b.store(value, e.at(goal, b.mul(e.load_i32(places, at), e.i64(FLOAT))), align=FLOAT)


def scatter(places: Array, elements: int, *, alone: bool = False) -> Op:
    """Return the operation that expands external tensor 0 (packed) to external tensor 1 of `elements` elements.

    Args:
        places: int64, position of each packed number in the dense tensor. Repeated places must hold equal numbers.
        alone: whether to write only the packed numbers, in the order of their places.
    """
    found, order = np.unique(places, return_index=True)
    if alone:
        return Op(PackedCopy(spread=False), (order.astype(np.int32), len(order), 0, 1))
    parts = -(-elements // PART)
    firsts = np.searchsorted(found, PART * np.arange(parts + 1))
    return Op(Scatter(), (*(each.astype(np.int32) for each in (found, order, firsts)), parts, elements, 0, 1))
