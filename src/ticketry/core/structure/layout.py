"""Views of weights as rows (outputs) and columns (inputs): layouts, blocks, N:M runs, matrices and channel roles."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from ticketry.choices import did_you_mean, format_names
from ticketry.core import scope as scopes
from ticketry.core.computed_weights import computed_weights, computed_weights_in, effective_weights
from ticketry.core.mask import Mask
from ticketry.core.model_calls import FactorUse, find_factor_uses
from ticketry.core.scope import Patterns
from ticketry.errors import MaskError, ScopeError, StructureError, UsageError
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.row_groups import Indices as Indices
from ticketry_engine.support.row_groups import RowGroup as RowGroup
from ticketry_engine.support.row_groups import row_groups as row_groups

_ROWS_FIRST = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers whose weights have outputs in dimension 0 and inputs in dimension 1."""


@dataclass(frozen=True)
class Layout:
    """Describes which dimensions of a weight are outputs (rows) and which are inputs and kernel positions (columns).

    The dimensions are (outputs, inputs, kernel positions …) in linear, recurrent, attention and convolution layers,
    (inputs, outputs of a group, kernel positions …) in transposed convolutions, and (inputs, outputs) in embeddings and
    in the Conv1D of the library transformers.

    Examples:
        >>> weight = torch.arange(24.0).reshape(4, 6)
        >>> tk.structure.Layout().rows(weight).shape
        torch.Size([1, 4, 6])
        >>> grouped = tk.structure.Layout(groups=2)
        >>> grouped.rows(weight).shape
        torch.Size([2, 2, 6])
        >>> torch.equal(grouped.weight(grouped.rows(weight), (4, 6)), weight)
        True
        >>> tk.structure.Layout(inputs_first=True).rows(weight).shape
        torch.Size([1, 6, 4])
    """

    inputs_first: bool = False
    groups: int = 1
    """Number of groups of a convolution; rows of different groups read different inputs."""
    stacked: bool = False
    """Whether dimension 0 indexes separate matrices, such as experts, with outputs and inputs in dimensions 1 and 2."""

    def rows(self, weight: Tensor) -> Tensor:
        """Return a view of the weight as [groups, rows of a group, inputs of a group, kernel positions …].

        A vector becomes [1, rows], a scalar [1, 1].

        Raises:
            UsageError: if the number of groups does not divide the first dimension of the weight.
        """
        if weight.dim() == 0:
            return weight.view(1, 1)
        if weight.shape[0] % self.groups:
            raise UsageError(f"a weight of shape {tuple(weight.shape)} has no {self.groups} groups of equal size")
        if weight.dim() == 1:
            return weight[None]
        if self.stacked:
            return weight.transpose(1, 2) if self.inputs_first else weight
        parted = torch.unflatten(weight, 0, (self.groups, weight.shape[0] // self.groups))
        return parted.transpose(1, 2) if self.inputs_first else parted

    def weight(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the weight of the given shape from `rows` [groups, rows of a group, inputs, kernel positions …]."""
        if len(shape) < 2:
            return rows.reshape(shape)
        if self.stacked:
            return rows.transpose(1, 2) if self.inputs_first else rows
        return (rows.transpose(1, 2) if self.inputs_first else rows).flatten(0, 1)


@entry_point(Need(values=False))
def layouts(model: nn.Module, names: Iterable[str], example_inputs: Any = None) -> dict[str, Layout]:
    """Return which dimensions of each named parameter are outputs and inputs, as the parameter's layer uses it.

    A parameter shared by an embedding and a linear layer has the layout of the linear layer, which multiplies by it.
    Vectors and scalars have no inputs.

    Args:
        model: the model with the parameters.
        names: names of the parameters.
        example_inputs: a tensor, a tuple of arguments or a dict of them by name. The model is called with them to see
            how it multiplies by its parameters. Needed for parameters with two or more dimensions that do not belong to
            a layer of torch.

    Raises:
        ScopeError: for a name that the model does not have.
        StructureError: for a parameter whose inputs are unknown: it does not belong to a layer of torch, and no call is
            made, or the call does not multiply by it, or does so in different ways.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 3))
        >>> tk.structure.layouts(model, ["0.weight", "1.weight"])
        {'0.weight': Layout(inputs_first=False, groups=4, stacked=False), '1.weight': Layout(inputs_first=True, ...
    """
    names = list(names)
    found = _layouts_by_class(model, names)
    if example_inputs is not None:
        parameters = {
            scopes.name_without_wrappers(name): one for name, one in model.named_parameters(remove_duplicate=False)
        }
        uses = find_factor_uses(model, {name: parameters[name] for name in names}, example_inputs)
        for name, layout in found.items():
            seen = {_layout_from_use(use, parameters[name].dim()) for use in uses[name]}
            if seen and layout not in seen:
                found[name] = seen.pop() if len(seen) == 1 else None
    if unknown := [name for name, layout in found.items() if layout is None]:
        raise StructureError(_describe_unknown_layout(model, unknown[0], called=example_inputs is not None))
    return {name: layout for name, layout in found.items() if layout is not None}


def layouts_or_rows_first(model: nn.Module, names: Iterable[str]) -> dict[str, Layout]:
    """Return the `Layout` of each parameter; where it is unknown, assume that outputs are in dimension 0."""
    return {name: layout or Layout() for name, layout in _layouts_by_class(model, list(names)).items()}


def _layouts_by_class(model: nn.Module, names: list[str]) -> dict[str, Layout | None]:
    """Return the layout of each parameter, as implied by the class of its layer; None for an unknown class."""
    found: dict[int, Layout | None] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if found.get(id(parameter)) is None or not isinstance(module, scopes.EMBEDDINGS):
                found[id(parameter)] = _layout_of_layer(module, parameter) or found.get(id(parameter))
    for computed in computed_weights(model):
        found |= {id(original): _layout_of_layer(computed.module, original) for original in computed.originals}
    every = {scopes.name_without_wrappers(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    if unknown := [name for name in names if name not in every]:
        question = did_you_mean(str(unknown[0]), every)
        raise ScopeError(
            f"{type(model).__name__} has no parameter {unknown[0]!r}; {question}it has {format_names(every)}"
        )
    return {name: found[id(every[name])] for name in names}


def _layout_of_layer(module: nn.Module, parameter: Tensor) -> Layout | None:
    if isinstance(module, _ConvNd):
        return Layout(module.transposed, module.groups)
    if isinstance(module, scopes.EMBEDDINGS) or scopes.is_transposed_linear(module):
        return Layout(inputs_first=True)
    return Layout() if isinstance(module, _ROWS_FIRST) or parameter.dim() < 2 else None


def _layout_from_use(use: FactorUse, dimensions: int) -> Layout | None:
    """Return the layout that a product implies for its parameter; None if no `Layout` describes it."""
    if use.convolution:
        return Layout(0 in use.summed, use.groups)
    if dimensions == 2 and len(use.summed) == 1:
        return Layout(inputs_first=0 in use.summed)
    if dimensions == 3 and use.summed == {2} and use.rows in ({1}, {0, 1}):
        return Layout(stacked=True)
    if dimensions == 3 and use.summed == {1} and use.rows == {2}:
        return Layout(inputs_first=True, stacked=True)
    return None


def _describe_unknown_layout(model: nn.Module, name: str, *, called: bool) -> str:
    shape = tuple(scopes.named_parameters(model)[name].shape) if name in scopes.named_parameters(model) else ()
    advice = f"leave it out (spare=[{name!r}]), or prune single weights (pattern='unstructured')"
    if called:
        return (
            f"the layout of {name!r} {list(shape)} is unknown: the call with the example inputs has no product with it,"
            f" or several that sum over other dimensions, so that no dimension has its inputs; {advice}"
        )
    return (
        f"the layout of {name!r} {list(shape)} is unknown: no layer of torch's holds it, so that its class does not"
        f" tell which dimension has its inputs; give example_inputs= to see it in a call, {advice}"
    )


@dataclass(frozen=True)
class Roles:
    """Says which dimensions of parameters index produced channels, or read channels, and which are scales of norms."""

    outputs: frozenset[tuple[str, int]] = frozenset()
    """Dimensions of weights along which a layer produces channels."""
    inputs: frozenset[tuple[str, int]] = frozenset()
    """Dimensions along which a layer reads channels; depthwise convolutions produce and read along dimension 0."""
    scales: frozenset[str] = frozenset()
    """Names of the parameters that are scales of norms."""


def find_roles(model: nn.Module, factors: Mapping[str, Collection[int]] | None = None) -> Roles:
    """Return along which dimensions each parameter of a model produces or reads channels.

    Args:
        factors: name of each parameter that activations are multiplied by in a call -> dimensions that the product sums
            over. Used for layers of unknown classes: the summed dimensions read channels, the others produce channels,
            and a parameter that is no factor, such as a position embedding, does neither. Without `factors`, all
            dimensions in layers of unknown classes produce channels.
    """
    inner = scopes.unwrapped(model)
    names = {id(parameter): name for name, parameter in scopes.named_parameters(inner).items()}
    outputs: set[tuple[str, int]] = set()
    inputs: set[tuple[str, int]] = set()
    scales: set[str] = set()
    for module in inner.modules():
        for local, parameter in iterate_layer_parameters(module):
            name = names[id(parameter)]
            if isinstance(module, scopes.NORMS):
                scales |= {name} if local == "weight" else set()
            elif parameter.dim() > 1:
                made, taken = set(range(parameter.dim())), set[int]()
                if isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels:
                    made, taken = ({0, 1} if module.transposed else {0}), {0}
                elif isinstance(module, nn.Bilinear):
                    made, taken = {0}, {1, 2}
                elif (layout := _layout_of_layer(module, parameter)) is not None:
                    made, taken = ({1}, {0}) if layout.inputs_first else ({0}, {1})
                elif factors is not None:
                    taken = set(factors.get(name, ()))
                    made = made - taken if name in factors else set()
                outputs |= {(name, dim) for dim in made}
                inputs |= {(name, dim) for dim in taken}
    return Roles(frozenset(outputs), frozenset(inputs), frozenset(scales))


def iterate_layer_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (local name, parameter) for the parameters of a module.

    For a weight that the module computes from parameters, yield the weight's name with each parameter of the same
    shape.
    """
    if not isinstance(module, ParametrizationList):
        yield from module.named_parameters(recurse=False)
    for computed in computed_weights_in(module):
        shape = computed.value().shape
        yield from ((computed.local, original) for original in computed.originals if original.shape == shape)


class Blocks:
    """The division of a weight into the blocks of a pattern; created by `Pattern.blocks`.

    A tensor with one entry per block has the shape [blocks of rows, inputs, kernel positions …], or [rows] if blocks
    are whole rows. The last block of each column (in each group of a convolution) may have fewer rows than the others.
    Therefore compare blocks by `mean_by_block`, and count their weights by `sizes`.
    """

    def __init__(self, pattern: str, rows: int, whole_rows: bool, shape: tuple[int, ...], layout: Layout) -> None:
        self.pattern, self.height, self.whole_rows = pattern, rows, whole_rows
        self.weight_shape, self.layout = tuple(shape), layout
        like = layout.rows(torch.empty(shape, device="meta"))
        self._groups, self._rows = like.shape[:2]
        self._columns = tuple(like.shape[2:])
        self._high = -(-self._rows // rows)  # blocks of rows in a group
        self._whole = self._rows // rows  # those of full height
        self.shape: tuple[int, ...] = (self._groups * self._high, *(() if whole_rows else self._columns))
        """Shape of a tensor with one entry per block."""

    @property
    def count(self) -> int:
        return prod(self.shape)

    @cached_property
    def sizes(self) -> Tensor:
        """Number of weights of each block: an int64 tensor in the shape `shape`."""
        heights = torch.full((self._groups, self._high), self.height)
        if self._high > self._whole:
            heights[:, -1] = self._rows - self._whole * self.height
        if self.whole_rows:
            return (heights * prod(self._columns)).flatten()
        return heights.flatten()[(...,) + (None,) * len(self._columns)].expand(self.shape)

    def weight_views(self, weight: Tensor) -> list[Tensor]:
        """Return views of a weight by block: [groups, blocks, rows of a block, inputs, kernel positions …].

        The first view contains all blocks of full height. If the last rows form smaller blocks, a second view contains
        these.
        """
        height, whole = self.height, self._whole
        if self._high == whole and not self.layout.inputs_first and weight.dim():  # the common case
            return [weight.view(self._groups, whole, height, *self._columns)]
        rows = self.layout.rows(weight)
        full = torch.unflatten(rows[:, : whole * height], 1, (whole, height))
        return [full, rows[:, whole * height :].unsqueeze(1)] if self._high > whole else [full]

    def block_views(self, blocks: Tensor) -> list[Tensor]:
        """Return views of a tensor with one entry per block; they broadcast with those that `weight_views` returns."""
        columns = (1,) * len(self._columns) if self.whole_rows else self._columns
        parted = blocks.view(self._groups, self._high, 1, *columns)
        return [parted[:, : self._whole], parted[:, self._whole :]] if self._high > self._whole else [parted]

    def sum_by_block(self, weights: Tensor) -> Tensor:
        """Return the sum of the weights in each block, as a tensor in the shape `shape`; differentiable."""
        over = list(range(2, 3 + len(self._columns))) if self.whole_rows else [2]
        single = over == [2] and self.height == 1 and weights.is_floating_point()
        sums = [view.squeeze(2) if single else view.sum(over) for view in self.weight_views(weights)]
        return (torch.cat(sums, 1) if len(sums) > 1 else sums[0]).flatten(0, 1)

    def mean_by_block(self, scores: Tensor) -> Tensor:
        """Return the mean score of the weights in each block, as a float64 tensor in the shape `shape`."""
        return self.sum_by_block(scores.double()) / self.sizes.to(scores.device)

    def expand_to_weights(self, blocks: Tensor) -> Tensor:
        """Return a tensor in the weight's shape, in which each weight has the entry of its block; differentiable."""
        heights = (self.height, self._rows - self._whole * self.height)
        parts = [
            own.expand(self._groups, own.shape[1], height, *self._columns).flatten(1, 2)
            for own, height in zip(self.block_views(blocks), heights, strict=False)
        ]
        return self.layout.weight(torch.cat(parts, 1) if len(parts) > 1 else parts[0], self.weight_shape)

    def retained_blocks(self, mask: Tensor, name: str) -> Tensor:
        """Return a bool tensor in the shape `shape` that marks the blocks which a mask retains."""
        kept, sizes = self.sum_by_block(mask.cpu() != 0), self.sizes
        if bool(((kept != 0) & (kept != sizes)).any()):
            raise MaskError(
                f"the mask keeps parts of blocks of {name!r}: it is not of pattern {self.pattern}. Go on from a mask"
                " that was made with this pattern"
            )
        return (kept == sizes) & (sizes > 0)


def mark_best_n_of_m(
    scores: Tensor, n: int, m: int, layout: Layout | None = None, among: Tensor | None = None
) -> Tensor:
    """Mark the n highest scores among every m neighbouring inputs of a row, at each kernel position.

    The result is a bool tensor in the shape of `scores`. The inputs are divided into runs 0 … m - 1, m … 2m - 1, and so
    on; in a shorter last run n are marked too. Of equal scores, the earlier input is marked. In a vector or scalar,
    which has no inputs, all elements are marked.

    Args:
        layout: layout of the weight, see `layouts`; by default inputs are in dimension 1.
        among: bool tensor in the same shape; only weights where it is True can be marked. By default all can.
    """
    layout = layout or Layout()
    among = torch.ones_like(scores, dtype=torch.bool) if among is None else among
    if scores.dim() < 2:
        return among.clone()
    rows = layout.rows(scores)
    values = _split_inputs_into_runs(rows, m)
    candidates = _split_inputs_into_runs(layout.rows(among), m)
    # Counting better candidates takes a tenth of the time of sorting for small m.
    chosen = []
    for place, (own, candidate) in enumerate(zip(values, candidates, strict=True)):
        better = torch.zeros_like(own, dtype=torch.int32)
        for other, (value, counts) in enumerate(zip(values, candidates, strict=True)):
            if other != place:
                better += (value >= own if other < place else value > own) & counts
        chosen.append(candidate & (better < n))
    found = torch.stack(chosen, 3).flatten(2, 3)[:, :, : rows.shape[2]]
    return layout.weight(found, tuple(scores.shape))


def _split_inputs_into_runs(rows: Tensor, m: int) -> tuple[Tensor, ...]:
    """Split the inputs into runs of m, and return m views: view i contains input i of every run.

    Each view has the shape [groups, rows, runs, kernel positions …]. A shorter last run is padded with 0 or False.
    """
    inputs = rows.shape[2]
    filled = functional.pad(rows, (0, 0) * (rows.dim() - 3) + (0, -inputs % m)) if inputs % m else rows
    return torch.unflatten(filled, 2, (filled.shape[2] // m, m)).unbind(3)


@entry_point()
def groups(mask: Mask) -> dict[str, list[RowGroup]]:
    """Return, for each parameter of a mask, the groups of rows that retain the same columns.

    Args:
        mask: a mask of any parameters; rows are in dimension 0.

    Raises:
        UsageError: if `mask` is not a mask.

    Examples:
        >>> mask = tk.Mask({"weight": torch.tensor([[True, False], [False, True], [True, False]])})
        >>> [group.rows.tolist() for group in tk.structure.groups(mask)["weight"]]
        [[0, 2], [1]]
    """
    return {name: row_groups(kept) for name, kept in mask.items()}


@dataclass(frozen=True)
class MatrixView:
    """Converts a weight of two or more dimensions to a matrix [rows, columns], and back.

    Rows are the layer's outputs; columns are all combinations of input channel, kernel height and kernel width,
    flattened in this order.
    """

    shape: tuple[int, ...]
    layout: Layout = field(default_factory=Layout)

    @property
    def row_count(self) -> int:
        return self.shape[1] * self.layout.groups if self.layout.inputs_first else self.shape[0]

    @property
    def column_count(self) -> int:
        return prod(self.shape) // self.row_count if self.row_count else 0

    @property
    def input_count(self) -> int:
        """Number of input channels that a row reads."""
        return self.shape[0] // self.layout.groups if self.layout.inputs_first else self.shape[1]

    @property
    def row_ranges(self) -> list[range]:
        """Ranges of rows that read the same inputs: one for each group of a convolution, otherwise a single range."""
        length = self.row_count // self.layout.groups
        return [range(start, start + length) for start in range(0, self.row_count, length)] if length else []

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as a matrix [rows, columns]; the matrix is a view of the weight if possible."""
        return self.layout.rows(weight).reshape(self.row_count, self.column_count)

    def to_weight(self, matrix: Tensor) -> Tensor:
        """Convert a matrix [rows, columns] back to a contiguous tensor in the weight's shape."""
        if not self.layout.inputs_first:
            return matrix.reshape(self.shape)
        groups, taps = self.layout.groups, self.shape[2:]
        return self.layout.weight(matrix.reshape(groups, -1, self.input_count, *taps), self.shape).contiguous()


def matrix_views(
    model: nn.Module, mask: Mask, *, spare: Patterns = (), first_conv: bool = True, output: bool = True
) -> dict[str, MatrixView]:
    """Return the `MatrixView` of each parameter of a mask with two or more dimensions.

    Left out are parameters that the names or patterns `spare` match, the first convolution if `first_conv` is False,
    and the last layer if `output` is False.
    """
    parameters = mask.parameters(model)
    known = scopes.first_names_of_tied(model, parameters)
    chosen = scopes.filter_by_scope_options(model, known.values(), spare=spare, first_conv=first_conv, output=output)
    matrices = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.dim() > 1 and parameter.numel() and known[name] in chosen
    }
    known_layouts = layouts(model, matrices)
    views = {name: MatrixView(tuple(one.shape), known_layouts[name]) for name, one in matrices.items()}
    if not views:
        names = ", ".join(list(mask)[: scopes.MOST_NAMES]) + (", …" if len(mask) > scopes.MOST_NAMES else "")
        raise ScopeError(
            f"no layer is left that has groups of rows: the mask is of {names}, of which some are vectors and the"
            " others are left out by spare=, first_conv= or output="
        )
    return views


def weight_magnitudes(model: nn.Module, mask: Mask, views: dict[str, MatrixView]) -> dict[str, Tensor]:
    """Return the absolute weights of each layer in `views`, as float64 matrices [rows, columns] on the CPU."""
    found = {}
    for name, weight in effective_weights(model, mask.parameters(model)).items():
        if name in views:
            size = views[name].to_matrix(weight.cpu()).abs().double()
            if not bool(size.isfinite().all()):
                raise MaskError(f"{name!r} has weights that are no finite numbers: rows cannot be compared by them")
            found[name] = size
    return found
