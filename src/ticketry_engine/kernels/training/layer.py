"""A layer with its mask, and its lowered form: operations whose weight tables are refilled before each pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ticketry_engine.kernels.planar.row_sums import Sums
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.training.packing import WeightGather
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
        assert isinstance(spec, (Sums, PairSums, TileSums))
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
