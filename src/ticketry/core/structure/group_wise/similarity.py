"""Rows put into groups of given sizes: by similarity, or by cutting a hypergraph (rows its nodes, columns its edges).

By similarity few columns hold most of what a group keeps: rows are matched, then exchanged. With the hypergraph come
the dense blocks that are made of its parts in the paper on structurally sparse tickets.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ticketry.core.structure.group_wise.matrices import Indices
from ticketry.errors import MissingExtraError, StructureError

Values = np.ndarray[Any, np.dtype[np.float64]]

ROUNDS = 40
BLOCK = 64
"""Rows looked at together: what is computed for them stays in the cache."""
WORTH_A_ROUND = 5e-4
"""Relative gain of likeness below which there is no further round of exchanges."""


def similar_rows(worth: Tensor, sizes: Sequence[int]) -> list[Indices]:
    """The rows [rows, columns] of `worth` (not negative) in groups of `sizes`, which sum to the rows.

    A group starts from the row of greatest norm that is left and takes, one by one, the row whose cosine similarity to
    it (the mean over its rows) is greatest. Then rows change places, two at a time, wherever that raises the sum of
    inner products of rows within groups. Cosines put rows together that keep the same columns, whatever their size;
    inner products count what is at stake.

    Nothing is drawn: ties go to the earlier row. Takes O(rows^2 columns) time and O(rows^2) memory.
    """
    alike = (worth @ worth.T).numpy()
    groups = _matched(alike, sorted(sizes, reverse=True))
    return _exchanged(alike, groups) if len(groups) > 1 else groups


def _matched(alike: Values, sizes: Sequence[int]) -> list[Indices]:
    norms = np.sqrt(alike.diagonal())
    cosine = alike / np.maximum(np.outer(norms, norms), np.finfo(np.float64).tiny)
    by_norm = (-norms).argsort(kind="stable")
    taken, first, groups = np.zeros(len(alike), dtype=bool), 0, []
    for size in sizes:
        while taken[by_norm[first]]:
            first += 1
        rows = [int(by_norm[first])]
        near = cosine[rows[0]].copy()
        taken[rows[0]] = True
        for _ in range(size - 1):
            rows.append(int(np.where(taken, -1.0, near).argmax()))
            taken[rows[-1]] = True
            near += cosine[rows[-1]]
        groups.append(np.sort(np.array(rows, dtype=np.int64)))
    return groups


def _exchanged(alike: Values, groups: list[Indices]) -> list[Indices]:
    """The groups, of the same sizes, after exchanges of rows, each of which raises the likeness within groups."""
    count = len(alike)
    of = np.empty(count, dtype=np.int64)
    for group, rows in enumerate(groups):
        of[rows] = group
    alike = alike.copy()
    np.fill_diagonal(alike, 0)
    to = np.zeros((count, len(groups)))
    np.add.at(to.T, of, alike)  # likeness of each row to the rows of each group, itself left out
    for _ in range(ROUNDS):
        within = float(to[np.arange(count), of].sum())
        gains, partners = _best_exchanges(alike, to, of)
        if _made(gains, partners, alike, to, of) <= WORTH_A_ROUND * within:
            break
    return [np.flatnonzero(of == group) for group in range(len(groups))]


def _best_exchanges(alike: Values, to: Values, of: Indices) -> tuple[Values, Indices]:
    """For each row what its best exchange gains, and with which row; nothing within a group, where it is 0 at most."""
    group = torch.from_numpy(of)
    places = torch.from_numpy(to)
    moving = places - places.gather(1, group[:, None])  # [rows, groups] what a row gains by moving
    turned = moving.T.contiguous()
    likeness = torch.from_numpy(alike)
    gains, partners = torch.empty(len(of), dtype=moving.dtype), torch.empty(len(of), dtype=torch.int64)
    for start in range(0, len(of), BLOCK):
        here = slice(start, start + BLOCK)
        gain = moving[here].index_select(1, group)
        gain += turned[group[here]]
        gain.sub_(likeness[here], alpha=2)  # the two are no longer, or never were, in one group
        torch.max(gain, 1, out=(gains[here], partners[here]))
    return gains.numpy(), partners.numpy()


def _made(gains: Values, partners: Indices, alike: Values, to: Values, of: Indices) -> float:
    """Makes exchanges, the best first and each row in one at most; how much likeness within groups they gain.

    As exchanges change what others gain, each is looked at again when its turn comes and made if it has kept half of
    what it promised: a later round looks at all anew.
    """
    free = np.ones(len(of), dtype=bool)
    total = 0.0
    for row in (-gains).argsort(kind="stable").tolist():
        other, promised = int(partners[row]), float(gains[row])
        if promised <= 0:
            break
        one, two = of[row], of[other]
        if not (free[row] and free[other]) or one == two:
            continue
        gain = to[row, two] + to[other, one] - to[row, one] - to[other, two] - 2 * alike[row, other]
        if gain <= promised / 2:
            continue
        free[row] = free[other] = False
        of[row], of[other] = two, one
        moved = alike[other] - alike[row]
        to[:, one] += moved
        to[:, two] -= moved
        total += gain
    return 2 * total


def partitioned_rows(kept: Tensor, sizes: Sequence[int], seed: int) -> list[Indices]:
    """The rows of `kept` (boolean [rows, columns]) in parts of exactly `sizes`, so that few columns lie in many parts.

    What is minimised is the sum over columns of (parts that its kept weights lie in - 1), by the deterministic preset
    of Mt-KaHyPar (Gottesbüren et al. 2021), with one thread. Empty sizes are not allowed.

    Raises:
        MissingExtraError: if mtkahypar is not installed.
        StructureError: if the partitioner does not meet the sizes.
    """
    if len(sizes) == 1:
        return [np.arange(len(kept))]
    mtkahypar = _library()
    made = mtkahypar.initialize(1, print_warnings=False)
    mtkahypar.set_seed(seed % 2**31)
    context = made.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(len(sizes), 0.0, mtkahypar.Objective.KM1)
    context.set_individual_target_block_weights(list(sizes))
    edges = [rows for rows in (column.nonzero()[0].tolist() for column in kept.numpy().T) if len(rows) > 1]
    if not edges:  # no two rows share a column: any parts are as good
        return np.split(np.arange(len(kept)), np.cumsum(sizes)[:-1])
    parts = np.array(made.create_hypergraph(context, len(kept), len(edges), edges).partition(context).get_partition())
    found = np.bincount(parts, minlength=len(sizes)).tolist()
    if found != list(sizes):
        raise StructureError(
            f"the partitioner put {len(kept)} rows into parts of {found} where {list(sizes)} were asked for: take"
            " another method or another number of rows"
        )
    return [np.flatnonzero(parts == part) for part in range(len(sizes))]


def _library() -> ModuleType:
    try:
        return importlib.import_module("mtkahypar")
    except ImportError as error:
        raise MissingExtraError("mtkahypar", "hypergraph", "grouping rows by a hypergraph") from error


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
