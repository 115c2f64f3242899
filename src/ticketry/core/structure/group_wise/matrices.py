"""Weights as matrices (a row for each output, a column for each weight that makes it), and rows that keep the same.

Rows that keep the same columns are what a kernel can compute together; they are read off a mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core.computed_weights import weights_in_use
from ticketry.core.layout import Layout, layouts
from ticketry.core.mask import Mask, require_mask
from ticketry.core.scope import SHOWN, first_names, scope_among
from ticketry.errors import MaskError, ScopeError, UsageError

Indices = np.ndarray[Any, np.dtype[np.int64]]


class RowGroup:
    """Rows with one support.

    Examples:
        >>> mask = tk.Mask({"weight": torch.tensor([[True, False, True], [True, False, True]])})
        >>> group = tk.structure.groups(mask)["weight"][0]
        >>> group.rows.tolist(), group.columns.tolist(), group.width
        ([0, 1], [0, 2], 2)
    """

    def __init__(self, rows: Indices, support: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self.rows = rows
        """The outputs (filters), ascending."""
        self._support = support

    @cached_property
    def columns(self) -> Indices:
        """The columns, flattened over inputs and taps, that all of the rows keep and no other; ascending."""
        return np.flatnonzero(self._support)

    @cached_property
    def width(self) -> int:
        """How many columns."""
        return int(np.count_nonzero(self._support))

    def __repr__(self) -> str:
        return f"RowGroup({len(self.rows)} rows, {self.width} columns)"


def row_groups(kept: np.ndarray[Any, Any] | torch.Tensor) -> list[RowGroup]:
    """The rows of a matrix (or of a filter bank, flattened behind its first dimension), grouped by what they keep.

    Args:
        kept: O x …; anything that is not zero is kept.

    Returns:
        Groups in the order of their first rows. Every row is in one group: rows that keep nothing form one without
        columns.

    Raises:
        UsageError: if `kept` is no tensor and no array.

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


def groups(mask: Mask) -> dict[str, list[RowGroup]]:
    """For each parameter of a mask its groups of rows: as many groups as rows where no two rows agree.

    Args:
        mask: of any parameters; rows lie in dimension 0.

    Raises:
        UsageError: if it is no mask.

    Examples:
        >>> mask = tk.Mask({"weight": torch.tensor([[True, False], [False, True], [True, False]])})
        >>> [group.rows.tolist() for group in tk.structure.groups(mask)["weight"]]
        [[0, 2], [1]]
    """
    require_mask(mask)
    return {name: row_groups(kept) for name, kept in mask.items()}


@dataclass(frozen=True)
class MatrixView:
    """How a weight of two or more dimensions is read as a matrix [rows, columns], and written back.

    Rows are the layer's outputs, columns are (input channel, kernel height, kernel width), flattened in that order.
    """

    shape: tuple[int, ...]
    layout: Layout = field(default_factory=Layout)
    """Where the weight has its outputs, and how many groups of them read inputs of their own."""

    @property
    def rows(self) -> int:
        return self.shape[1] * self.layout.groups if self.layout.inputs_first else self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape) // self.rows if self.rows else 0

    @property
    def inputs(self) -> int:
        """Input channels that a row reads."""
        return self.shape[0] // self.layout.groups if self.layout.inputs_first else self.shape[1]

    @property
    def runs(self) -> list[range]:
        """Rows that read the same inputs: all of them, or those of each group of a grouped convolution."""
        length = self.rows // self.layout.groups
        return [range(start, start + length) for start in range(0, self.rows, length)] if length else []

    def matrix(self, weight: Tensor) -> Tensor:
        """[rows, columns]; a view where memory allows it."""
        return self.layout.rows(weight).reshape(self.rows, self.columns)

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: in the shape of the weight, contiguous."""
        if not self.layout.inputs_first:
            return matrix.reshape(self.shape)
        groups, taps = self.layout.groups, self.shape[2:]
        return self.layout.weight(matrix.reshape(groups, -1, self.inputs, *taps), self.shape).contiguous()


def matrix_views(
    model: nn.Module, mask: Mask, *, spare: Iterable[str] = (), first_conv: bool = True, output: bool = True
) -> dict[str, MatrixView]:
    """For each parameter of a mask that is a matrix or a filter bank, how it is read as one.

    Vectors (biases, norms) have no columns and are left out, and so is what the words say, as in `ticketry.scope`.

    Args:
        spare: names or patterns left out; a module's name spares all its parameters.
        first_conv, output: whether the first convolution, the last linear or convolution layer are in.

    Raises:
        MaskError: if the mask does not fit the model.
        ScopeError: if a pattern matches nothing, or nothing is left.
    """
    parameters = mask.parameters(model)
    known = first_names(model, parameters)
    chosen = scope_among(model, known.values(), spare=spare, first_conv=first_conv, output=output)
    known_layouts = layouts(model, parameters)
    views = {
        name: MatrixView(tuple(parameter.shape), known_layouts[name])
        for name, parameter in parameters.items()
        if parameter.dim() > 1 and parameter.numel() and known[name] in chosen
    }
    if not views:
        more = "" if len(mask) <= SHOWN else ", …"
        raise ScopeError(
            f"no layer is left that has groups of rows: the mask is of {', '.join(list(mask)[:SHOWN])}{more}, of which"
            " some are vectors and the others are left out by spare=, first_conv= or output="
        )
    return views


def magnitudes(model: nn.Module, mask: Mask, views: dict[str, MatrixView]) -> dict[str, Tensor]:
    """|w| of each layer [rows, columns], float64, on the CPU.

    Raises:
        MaskError: if a weight is not a finite number.
    """
    found = {}
    for name, weight in weights_in_use(model, mask.parameters(model)).items():
        if name in views:
            size = views[name].matrix(weight.cpu()).abs().double()
            if not bool(size.isfinite().all()):
                raise MaskError(f"{name!r} has weights that are no finite numbers: rows cannot be compared by them")
            found[name] = size
    return found
