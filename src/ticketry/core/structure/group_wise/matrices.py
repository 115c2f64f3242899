"""Weights as matrices (a row for each output, a column for each weight that makes it), and rows that keep the same.

Rows that keep the same columns are what a kernel can compute together; they are read off a mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from ticketry.core.computed_weights import weights_in_use
from ticketry.core.layout import Layout, layouts
from ticketry.core.mask import Mask
from ticketry.core.scope import SHOWN, Patterns, first_names, scope_among
from ticketry.errors import MaskError, ScopeError
from ticketry_engine.support.entry_points import entry_point
from ticketry_engine.support.row_groups import Indices as Indices
from ticketry_engine.support.row_groups import RowGroup as RowGroup
from ticketry_engine.support.row_groups import row_groups as row_groups


@entry_point()
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
    model: nn.Module, mask: Mask, *, spare: Patterns = (), first_conv: bool = True, output: bool = True
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
    matrices = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.dim() > 1 and parameter.numel() and known[name] in chosen
    }
    known_layouts = layouts(model, matrices)
    views = {name: MatrixView(tuple(one.shape), known_layouts[name]) for name, one in matrices.items()}
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
