"""Weights as matrices: a row for each output, a column for each weight that makes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ticketry.core.mask import Mask
from ticketry.core.scope import EMBEDDINGS, SHOWN, normal_name, scope
from ticketry.core.structure.twin import unwrapped
from ticketry.errors import MaskError, ScopeError


@dataclass(frozen=True)
class MatrixView:
    """How a weight of two or more dimensions is read as a matrix [rows, columns], and written back.

    Rows are the layer's outputs, columns are (input channel, kernel height, kernel width), flattened in that order.
    Outputs lie in dimension 0, but in dimension 1 of a transposed convolution, an embedding, transformers' Conv1D.
    """

    shape: tuple[int, ...]
    outputs_second: bool = False
    """Whether outputs lie in dimension 1."""
    parts: int = 1
    """Groups of a grouped convolution: as many runs of rows, of which each has input channels of its own."""

    @property
    def rows(self) -> int:
        return self.shape[1] * self.parts if self.outputs_second else self.shape[0]

    @property
    def columns(self) -> int:
        size = 1
        for length in self.shape:
            size *= length
        return size // self.rows if self.rows else 0

    @property
    def runs(self) -> list[range]:
        """Rows that read the same inputs: all of them, or those of each group of a grouped convolution."""
        length = self.rows // self.parts
        return [range(start, start + length) for start in range(0, self.rows, length)] if length else []

    def matrix(self, weight: Tensor) -> Tensor:
        """[rows, columns]; a view where memory allows it."""
        if self.outputs_second:
            inputs, outputs, *taps = self.shape
            weight = weight.reshape(self.parts, inputs // self.parts, outputs, *taps).transpose(1, 2)
        return weight.reshape(self.rows, self.columns)

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: in the shape of the weight, contiguous."""
        if not self.outputs_second:
            return matrix.reshape(self.shape)
        inputs, outputs, *taps = self.shape
        parted = matrix.reshape(self.parts, outputs, inputs // self.parts, *taps)
        return parted.transpose(1, 2).reshape(self.shape)


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
    first_names = {id(parameter): normal_name(name) for name, parameter in model.named_parameters()}
    known = {name: first_names[id(parameter)] for name, parameter in parameters.items()}  # of tied ones the first name
    chosen = scope(model, spare=spare, include=known.values(), first_conv=first_conv, output=output)
    owners = _owners(model)
    views = {
        name: _view(tuple(parameter.shape), owners.get(id(parameter)))
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
    for name, parameter in mask.parameters(model).items():
        if name in views:
            size = views[name].matrix(parameter.detach().cpu()).abs().double()
            if not bool(size.isfinite().all()):
                raise MaskError(f"{name!r} has weights that are no finite numbers: rows cannot be compared by them")
            found[name] = size
    return found


def _owners(model: nn.Module) -> dict[int, nn.Module]:
    """The module that holds a parameter; of a shared one, one that computes with it as a layer does."""
    owners: dict[int, nn.Module] = {}
    for module in unwrapped(model).modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in owners or isinstance(module, (nn.Linear, _ConvNd)):
                owners[id(parameter)] = module
    return owners


def _view(shape: tuple[int, ...], owner: nn.Module | None) -> MatrixView:
    if isinstance(owner, _ConvNd):
        return MatrixView(shape, owner.transposed, owner.groups)
    return MatrixView(shape, isinstance(owner, EMBEDDINGS) or type(owner).__name__ == "Conv1D")
