"""Finds groups of rows of a weight matrix that retain the same columns; a kernel can compute such a group together."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ticketry_engine.errors import UsageError

Indices = np.ndarray[Any, np.dtype[np.int64]]


class RowGroup:
    """A group of rows of a weight matrix that retain the same columns.

    Examples:
        >>> mask = tk.Mask({"weight": torch.tensor([[True, False, True], [True, False, True]])})
        >>> group = tk.structure.groups(mask)["weight"][0]
        >>> group.rows.tolist(), group.columns.tolist(), group.width
        ([0, 1], [0, 2], 2)
    """

    def __init__(self, rows: Indices, support: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self.rows = rows
        """Numbers of the rows (output features or filters), ascending."""
        self._support = support

    @cached_property
    def columns(self) -> Indices:
        """Return the columns that the rows retain, ascending, as indices into the flattened row of the weight."""
        return np.flatnonzero(self._support)

    @cached_property
    def width(self) -> int:
        """Return the number of columns that the rows retain."""
        return int(np.count_nonzero(self._support))

    def __repr__(self) -> str:
        return f"RowGroup({len(self.rows)} rows, {self.width} columns)"


def row_groups(kept: np.ndarray[Any, Any] | torch.Tensor) -> list[RowGroup]:
    """Return the groups of rows of a weight that retain the same columns.

    Args:
        kept: weight or mask [rows, ...], whose dimensions after the first are flattened to columns; every nonzero entry
            counts as retained.

    Returns:
        Groups in the order of their first rows. Every row is in one group. All rows that retain nothing form a group
        without columns.

    Raises:
        UsageError: if `kept` is neither a tensor nor an array.

    Examples:
        >>> rows = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
        >>> for group in tk.structure.row_groups(rows):
        ...     print(group.rows.tolist(), group.columns.tolist())
        [0, 2] [0, 2]
        [1] [1]
    """
    if not isinstance(kept, (np.ndarray, torch.Tensor)):
        raise UsageError(
            f"kept= is one tensor or array, not a {type(kept).__name__}: tk.structure.groups(mask) takes a whole mask"
        )
    array = kept.detach().cpu().numpy() if isinstance(kept, torch.Tensor) else kept
    array = array.reshape(1) if not array.ndim else array  # a single number is a row
    matrix = array.reshape(len(array), math.prod(array.shape[1:])) != 0
    found: dict[bytes, list[int]] = {}
    for row, support in enumerate(np.packbits(matrix, axis=1)):
        found.setdefault(support.tobytes(), []).append(row)
    return [RowGroup(np.array(rows, dtype=np.int64), matrix[rows[0]]) for rows in found.values()]


def row_groups_by_convolution_group(weight: np.ndarray[Any, Any] | torch.Tensor, groups: int) -> list[RowGroup]:
    """Return the `row_groups` of each convolution group; rows of two convolution groups read different channels."""
    per = len(weight) // groups
    return [
        RowGroup(found.rows + number * per, found._support)
        for number in range(groups)
        for found in row_groups(weight[number * per : (number + 1) * per])
    ]
