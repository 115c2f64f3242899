"""Which rows of a layer's weights share their columns, and how they are cut into blocks of whole vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.errors import EngineError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Block:
    """Rows done together, in so many vectors: some of one group's."""

    rows: Array
    columns: Array
    """Sorted."""
    vectors: int


def columns_by_tap(weight: Array, groups: int) -> Array:
    """A convolution's weights as [rows, taps * input channels]: a tap's channels are neighbours.

    Weights [O, I / groups, kh, kw] of a grouped convolution become those of a plain one with zeros.
    """
    outputs, inputs, height, width = weight.shape
    flat = weight.transpose(0, 2, 3, 1).reshape(outputs, height * width, inputs)
    if groups > 1:
        whole = np.zeros((outputs, height * width, groups, inputs), dtype=np.float32)
        whole[np.arange(outputs), :, np.arange(outputs) * groups // outputs] = flat
        flat = whole
    return np.ascontiguousarray(flat.reshape(outputs, -1), dtype=np.float32)


def paired(weights: Array, channels: int) -> Array:
    """Weights [rows, taps * channels] as [rows, taps * pairs of channels, 2], an odd last channel with a zero."""
    rows = len(weights)
    taps = np.pad(weights.reshape(rows, -1, channels), ((0, 0), (0, 0), (0, channels % 2)))
    return taps.reshape(rows, -1, 2)


def checked(rows: Sequence[Array], outputs: int) -> list[Array]:
    """Groups without empty ones.

    Raises:
        EngineError: some row is in no group, or in two.
    """
    groups = [np.asarray(group, dtype=np.int64).reshape(-1) for group in rows]
    groups = [group for group in groups if len(group)]
    if not np.array_equal(np.sort(np.concatenate([*groups, np.empty(0, np.int64)])), np.arange(outputs)):
        raise EngineError(f"groups of rows must hold each of the {outputs} rows once")
    return groups


def groups_of(support: Array, lanes: int) -> list[Array]:
    """Neighbouring rows with the same columns, joined further where a vector of both does less than two vectors would.

    Args:
        support: bool [rows, columns], which columns each row keeps.
        lanes: rows a vector holds.
    """
    new = (support[1:] != support[:-1]).any(axis=1)
    bounds = [0, *(np.flatnonzero(new) + 1).tolist(), len(support)]
    groups: list[list[int]] = []
    columns: list[Array] = []
    for first, last in itertools.pairwise(bounds):
        mine = support[first]
        if groups:
            size, more = groups[-1][1] - groups[-1][0], last - first
            union = columns[-1] | mine
            apart = -(-size // lanes) * columns[-1].sum() + -(-more // lanes) * mine.sum()
            if -(-(size + more) // lanes) * union.sum() <= apart:
                groups[-1][1], columns[-1] = last, union
                continue
        groups.append([first, last])
        columns.append(mine)
    return [np.arange(first, last) for first, last in groups]


def blocks_of(support: Array, groups: Sequence[Array], lanes: int, cost: dict[int, float]) -> list[Block]:
    """Groups cut into blocks.

    Args:
        support: bool [rows, columns].
        groups: rows of each.
        lanes: rows a vector holds.
        cost: of one column of a block, by how many vectors the block has.
    """
    best = _cuts(max((-(-len(group) // lanes) for group in groups), default=0), cost)
    blocks = []
    for group in groups:
        columns = np.flatnonzero(support[group].any(axis=0))
        at = 0
        for vectors in best[-(-len(group) // lanes)]:
            blocks.append(Block(group[at : at + vectors * lanes], columns, vectors))
            at += vectors * lanes
    return blocks


def _cuts(most: int, cost: dict[int, float]) -> list[tuple[int, ...]]:
    """For 0 … most vectors, the cheapest way to cut them."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for count in range(1, most + 1):
        best.append(
            min(
                (best[count - size][0] + price, (*best[count - size][1], size))
                for size, price in cost.items()
                if size <= count
            )
        )
    return [tuple(sorted(cut, reverse=True)) for _, cut in best]
