"""A layer as its mask leaves it, and what is made of it: operations and the tables that are filled before each pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ticketry_engine.kernels.planar.row_sums import Sums
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.training.packing import Gather
from ticketry_engine.kernels.training.pair_sums import PairSums
from ticketry_engine.kernels.training.tile_sums import TileSums
from ticketry_engine.kernels.window import Array, Window


@dataclass(frozen=True, eq=False)
class Layer:
    """What a layer keeps, and how it slides over its input."""

    kept: Array
    """bool [O, I / groups, kh, kw]"""
    window: Window
    groups: int = 1
    threads: int = 1
    """That compute it. Of all that they give, gradients of weights alone depend on their number, in the last bits."""
    alone: bool = False
    """Whether its weights come, and their gradients go, as a row of the kept ones alone."""

    @property
    def places(self) -> Array:
        """[O, I / groups, taps]: 1 + the place of a weight in the dense tensor, 0 where it is pruned.

        int32, where that is enough: of large layers it is what making tables takes most memory for.
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
    """Operations, one for each part of the blocks, whose table of weights is filled from the dense ones before."""

    ops: list[Op]
    index: Array
    """Integers: the place in the dense tensor of each entry of the table; -1: it is 0."""
    alone: bool = False
    """Whether weights come as a row of the kept ones alone."""

    @property
    def rows(self) -> Array:
        """int64: segments x rows of each, in the order of their biases, which are the last words of a segment.

        Counted in bytes of y's planes.
        """
        spec, segments = self.ops[0].kernel, self.ops[0].args[0]
        assert isinstance(spec, (Sums, PairSums, TileSums))
        assert isinstance(segments, np.ndarray)
        return np.asarray(segments[:, spec.head : spec.head + spec.rows], dtype=np.int64)

    @property
    def table(self) -> Array:
        """The weights, of all the operations: float32, or the bits of bfloat16."""
        table = self.ops[0].args[2]
        assert isinstance(table, np.ndarray)
        return table

    def gather(self, source: Gathered | None = None) -> Op:
        """The operation that fills the table: from the external tensor 0, or from a table that has the same weights."""
        count, item = len(self.index), self.table.itemsize
        if source is None:
            index = self.index
            if self.alone:
                index = np.where(index >= 0, np.searchsorted(np.unique(index[index >= 0]), index), -1)
            return Op(Gather(packed=False, item=item), (index.astype(np.int32), self.table, count, 0))
        place = np.zeros(1 + source.index.max(initial=0), dtype=np.int32)
        there = np.flatnonzero(source.index >= 0)
        place[source.index[there]] = there
        index = np.where(self.index >= 0, place[self.index], -1).astype(np.int32)
        return Op(Gather(packed=True, item=item), (index, self.table, count, source.table))


@dataclass(frozen=True, eq=False)
class WeightGradient:
    """Operations that give the gradients of kept weights."""

    begin: list[Op]
    """One, or one for each thread that takes blocks of its own."""
    ops: list[Op]
    """One for each part of the blocks."""
    end: list[Op]
    """With two external tensors: one for packed gradients, and the dense one that they are written to, with zeros."""
    packed: int
    """Elements of the first of these tensors."""
