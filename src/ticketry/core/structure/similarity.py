"""Rows put into groups of given sizes so that few columns hold most of what they keep: matched, then exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ticketry.core.structure.groups import Indices

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
