"""Dense blocks of rows and columns as the paper on structurally sparse tickets makes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ticketry.core.structure.groups import Indices
from ticketry.core.structure.hypergraph import partitioned_rows


def sizes_of(count: int, rows: int) -> list[int]:
    """`count` rows in groups of `rows`; what remains is one smaller group."""
    whole, rest = divmod(count, rows)
    return [rows] * whole + [rest] * (rest > 0)


@dataclass
class PaperBlocks:
    """The heuristic on one matrix (Chen et al. 2022, section 3.2, after Rumi et al. 2020).

    Rows are partitioned by a hypergraph; in each part of at least b1 rows the columns that at least t2 of them keep
    become a dense block, if they are at least b2; rows without a block are partitioned again until no block is found,
    and then removed. t1, the number of parts, follows from the rows of a group; t2 from the number of weights.
    """

    kept: Tensor
    """Boolean [rows, columns]; every row keeps something."""
    rows: int
    """Of a group."""
    b1: int
    b2: int
    seed: int
    _parts: dict[tuple[int, ...], list[Indices]] = field(default_factory=dict)

    def within(self, budget: int) -> Tensor:
        """Boolean [rows, columns]: the blocks with the greatest t2 that gives `budget` weights, or all with t2 = 1.

        Columns that exactly t2 rows keep are more than the budget has room for: the later ones are left out, so that
        less than one column is too many.
        """
        found: list[tuple[Indices, Tensor]] = []
        for threshold in range(min(self.rows, len(self.kept)), 0, -1):
            found = self._blocks(threshold)
            if sum(len(rows) * int((counts >= threshold).sum()) for rows, counts in found) >= budget:
                return self._dense(found, threshold, budget)
        return self._dense(found, 1, budget)

    def _blocks(self, threshold: int) -> list[tuple[Indices, Tensor]]:
        """(rows, how many of them keep each column) of each block."""
        left, blocks = np.arange(len(self.kept)), []
        while len(left):
            without = []
            for part in self._partition(tuple(left.tolist())):
                rows = left[part]
                counts = self.kept[torch.as_tensor(rows)].sum(0)
                if len(rows) >= self.b1 and int((counts >= threshold).sum()) >= self.b2:
                    blocks.append((rows, counts))
                else:
                    without.append(rows)
            rest = np.sort(np.concatenate(without)) if without else left[:0]
            if len(rest) == len(left):
                break
            left = rest
        return blocks

    def _partition(self, rows: tuple[int, ...]) -> list[Indices]:
        if rows not in self._parts:
            sizes = sizes_of(len(rows), self.rows)
            self._parts[rows] = partitioned_rows(self.kept[list(rows)], sizes, self.seed)
        return self._parts[rows]

    def _dense(self, found: list[tuple[Indices, Tensor]], threshold: int, budget: int) -> Tensor:
        dense = torch.zeros_like(self.kept)
        excess = sum(len(rows) * int((counts >= threshold).sum()) for rows, counts in found) - budget
        for rows, counts in reversed(found):
            columns = counts >= threshold
            tied = (counts == threshold).nonzero().flatten()
            fewer = min(max(excess, 0) // len(rows), len(tied), int(columns.sum()) - self.b2)
            columns[tied[len(tied) - fewer :]] = False
            excess -= fewer * len(rows)
            dense[torch.as_tensor(rows)] = columns
        return dense
