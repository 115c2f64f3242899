"""A layer with its mask, and its lowered form: operations whose weight tables are refilled before each pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.planar.row_sums import RowSums
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.training.pair_sums import PairSums
from ticketry_engine.kernels.training.tile_sums import TileSums
from ticketry_engine.kernels.window import Array, Window


@dataclass(frozen=True, eq=False)
class MaskedLayer:
    """A layer's mask and window."""

    kept: Array
    """bool [O, I / groups, kh, kw]: retained weights."""
    window: Window
    groups: int = 1
    threads: int = 1
    """Number of threads. Only the last bits of weight gradients depend on it."""
    alone: bool = False
    """Whether weights and gradients are packed vectors of the retained ones, rather than dense tensors."""

    @property
    def places(self) -> Array:
        """[O, I / groups, taps]: 1 + the position of each weight in the dense tensor; 0 if pruned.

        int32 where sufficient: for large layers this array dominates the memory of making tables.
        """
        numbered = np.arange(1, self.kept.size + 1, dtype=np.int32 if self.kept.size < 1 << 31 else np.int64)
        numbered = numbered.reshape(self.kept.shape)
        numbered *= self.kept
        return np.asarray(numbered.reshape(*self.kept.shape[:2], -1))

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.kept))


@dataclass(frozen=True, eq=False)
class Gathered:
    """Operations, one per part of the blocks, whose weight table is filled from the weights before each pass."""

    ops: list[Op]
    index: Array
    """Position in the dense tensor of each entry of the table; -1: the entry is 0."""
    alone: bool = False
    """Whether weights are a packed vector of the retained ones."""

    @property
    def rows(self) -> Array:
        """int64 [segments, rows of each]: bytes of y's planes, in the order of the biases, a segment's last words."""
        spec, segments = self.ops[0].kernel, self.ops[0].args[0]
        assert isinstance(spec, (RowSums, PairSums, TileSums))
        assert isinstance(segments, np.ndarray)
        return np.asarray(segments[:, spec.head : spec.head + spec.rows], dtype=np.int64)

    @property
    def table(self) -> Array:
        """The weight table of all operations: float32, or the bits of bfloat16."""
        table = self.ops[0].args[2]
        assert isinstance(table, np.ndarray)
        return table

    def gather(self, source: Gathered | None = None) -> Op:
        """Return the operation that fills the table from external tensor 0, or from a table with the same weights."""
        count, item = len(self.index), self.table.itemsize
        if source is None:
            index = self.index
            if self.alone:
                index = np.where(index >= 0, np.searchsorted(np.unique(index[index >= 0]), index), -1)
            return Op(WeightGather(packed=False, item=item), (index.astype(np.int32), self.table, count, 0))
        place = np.zeros(1 + source.index.max(initial=0), dtype=np.int32)
        there = np.flatnonzero(source.index >= 0)
        place[source.index[there]] = there
        index = np.where(self.index >= 0, place[self.index], -1).astype(np.int32)
        return Op(WeightGather(packed=True, item=item), (index, self.table, count, source.table))


@dataclass(frozen=True, eq=False)
class WeightGradient:
    """Operations that compute the gradients of retained weights."""

    begin: list[Op]
    """Operations that zero the sums: one, or one per thread with its own blocks."""
    ops: list[Op]
    """One operation per part of the blocks."""
    end: list[Op]
    """Final operations, with external tensors 0 (packed gradients) and 1 (the destination, with zeros elsewhere)."""
    packed: int
    """Number of elements of the packed gradients."""


# -- WeightGather weights from dense tensors into kernel tables, and scatter packed gradients back ---------------------

#     gather    table[i] = source[index[i]]
#     scatter   goal[places[i]] = source[order[i]],  0 elsewhere
#
# The cost is the number of cache lines touched, about one per retained weight of a large sparse layer. So the tables of
# the backward pass are gathered from those of the forward pass, and dense gradients are written in one pass.


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
