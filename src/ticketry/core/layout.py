"""Where a layer's weight has its outputs and its inputs: to read it as rows and columns, to follow channels, and what
goes together in it: its blocks of rows, and its runs of m inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from ticketry.choices import did_you_mean, format_names
from ticketry.core.computed_weights import computed_weights, computed_weights_of
from ticketry.core.costs.factor_axes import FactorUse, factor_uses
from ticketry.core.scope import (
    EMBEDDINGS,
    NORMS,
    is_transposed_linear,
    named_parameters,
    normal_name,
    unwrapped,
)
from ticketry.errors import MaskError, ScopeError, StructureError, UsageError
from ticketry_engine.support.entry_points import Need, entry_point

_ROWS_FIRST = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers whose weights have outputs in dimension 0 and inputs in dimension 1."""


@dataclass(frozen=True)
class Layout:
    """How a weight is seen as rows (outputs) times columns (inputs, then taps).

    Most layers have (outputs, inputs, taps …): linear, recurrent and attention layers, convolutions. Transposed
    convolutions have (inputs, outputs of a group, taps …); embeddings and transformers' Conv1D (inputs, outputs).

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
    """Of a grouped convolution: rows of different groups read different inputs."""
    stacked: bool = False
    """Whether dimension 0 counts matrices, such as experts, whose outputs and inputs are in dimensions 1 and 2."""

    def rows(self, weight: Tensor) -> Tensor:
        """The weight as [groups, rows of a group, inputs of a group, taps …]: a view, whatever its memory layout.

        A vector is [1, rows], a single number [1, 1].

        Raises:
            UsageError: if the groups do not divide its first dimension.
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
        """The inverse of `rows`."""
        if len(shape) < 2:
            return rows.reshape(shape)
        if self.stacked:
            return rows.transpose(1, 2) if self.inputs_first else rows
        return (rows.transpose(1, 2) if self.inputs_first else rows).flatten(0, 1)


@entry_point(Need(values=False))
def layouts(model: nn.Module, names: Iterable[str], example_inputs: Any = None) -> dict[str, Layout]:
    """Return the layout of each of the named parameters, as the layers that hold them use them.

    Of a shared one, that of the layer that multiplies by it: an embedding tied to a linear layer is as the latter has
    it. A vector or a number has no inputs, whatever holds it.

    Args:
        model: with the parameters.
        names: of the parameters.
        example_inputs: of a call, in which is seen how the model multiplies by its parameters: needed for those of two
            or more dimensions that no layer of torch's holds. A tensor, a tuple of arguments or a dict of them by name.

    Raises:
        ScopeError: for a name that the model does not have.
        StructureError: for a parameter whose inputs are not known, as its class does not tell them and the call, if
            there is one, has no product with it or several that differ.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 3))
        >>> tk.structure.layouts(model, ["0.weight", "1.weight"])
        {'0.weight': Layout(inputs_first=False, groups=4, stacked=False), '1.weight': Layout(inputs_first=True, ...
    """
    names = list(names)
    found = _by_class(model, names)
    if example_inputs is not None:
        parameters = {normal_name(name): one for name, one in model.named_parameters(remove_duplicate=False)}
        uses = factor_uses(model, {name: parameters[name] for name in names}, example_inputs)
        for name, layout in found.items():
            seen = {_by_use(use, parameters[name].dim()) for use in uses[name]}
            if seen and layout not in seen:
                found[name] = seen.pop() if len(seen) == 1 else None
    if unknown := [name for name, layout in found.items() if layout is None]:
        raise StructureError(_unknown(model, unknown[0], called=example_inputs is not None))
    return {name: layout for name, layout in found.items() if layout is not None}


def layouts_or_rows(model: nn.Module, names: Iterable[str]) -> dict[str, Layout]:
    """Return `layouts`, with the outputs in dimension 0 where they are unknown: for single weights, which need none."""
    return {name: layout or Layout() for name, layout in _by_class(model, list(names)).items()}


def _by_class(model: nn.Module, names: list[str]) -> dict[str, Layout | None]:
    """Return the layout that the class of a parameter's layer tells; None where it does not."""
    found: dict[int, Layout | None] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if found.get(id(parameter)) is None or not isinstance(module, EMBEDDINGS):
                found[id(parameter)] = _layout(module, parameter) or found.get(id(parameter))
    for computed in computed_weights(model):
        found |= {id(original): _layout(computed.module, original) for original in computed.originals}
    every = {normal_name(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    if unknown := [name for name in names if name not in every]:
        question = did_you_mean(str(unknown[0]), every)
        raise ScopeError(
            f"{type(model).__name__} has no parameter {unknown[0]!r}; {question}it has {format_names(every)}"
        )
    return {name: found[id(every[name])] for name in names}


def _layout(module: nn.Module, parameter: Tensor) -> Layout | None:
    if isinstance(module, _ConvNd):
        return Layout(module.transposed, module.groups)
    if isinstance(module, EMBEDDINGS) or is_transposed_linear(module):
        return Layout(inputs_first=True)
    return Layout() if isinstance(module, _ROWS_FIRST) or parameter.dim() < 2 else None


def _by_use(use: FactorUse, dimensions: int) -> Layout | None:
    """Return the layout of a parameter of so many dimensions that a product uses so; None if `Layout` has none."""
    if use.convolution:
        return Layout(0 in use.summed, use.groups)
    if dimensions == 2 and len(use.summed) == 1:
        return Layout(inputs_first=0 in use.summed)
    if dimensions == 3 and use.summed == {2} and use.rows in ({1}, {0, 1}):
        return Layout(stacked=True)
    if dimensions == 3 and use.summed == {1} and use.rows == {2}:
        return Layout(inputs_first=True, stacked=True)
    return None


def _unknown(model: nn.Module, name: str, *, called: bool) -> str:
    """Return the message on a parameter whose layout is unknown."""
    shape = tuple(named_parameters(model)[name].shape) if name in named_parameters(model) else ()
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
    """Sets of (parameter, dimension), and names of parameters."""

    outputs: frozenset[tuple[str, int]] = frozenset()
    """Dimensions of weights along which a layer's outputs lie."""
    inputs: frozenset[tuple[str, int]] = frozenset()
    """Those along which it takes its inputs. Both of a depthwise convolution are dimension 0."""
    scales: frozenset[str] = frozenset()
    """Scales of norms."""


def roles(model: nn.Module, factors: Mapping[str, Collection[int]] | None = None) -> Roles:
    """Return the roles of all parameters.

    Args:
        model: with the parameters.
        factors: name of a parameter that activations are multiplied by -> dimensions that are summed over, as seen in a
            call. Parameters of no known layer have their roles from there: one that is no factor, such as a scale or a
            position embedding, makes no channels, and follows those that it meets. Without, all their dimensions are
            outputs.
    """
    inner = unwrapped(model)
    names = {id(parameter): name for name, parameter in named_parameters(inner).items()}
    outputs: set[tuple[str, int]] = set()
    inputs: set[tuple[str, int]] = set()
    scales: set[str] = set()
    for module in inner.modules():
        for local, parameter in held_parameters(module):
            name = names[id(parameter)]
            if isinstance(module, NORMS):
                scales |= {name} if local == "weight" else set()
            elif parameter.dim() > 1:
                known = _dimensions(module)
                made, taken = known or (tuple(range(parameter.dim())), ())
                if known is None and factors is not None:
                    taken = tuple(factors.get(name, ()))
                    made = tuple(set(made) - set(taken)) if name in factors else ()
                outputs |= {(name, dim) for dim in made}
                inputs |= {(name, dim) for dim in taken}
    return Roles(frozenset(outputs), frozenset(inputs), frozenset(scales))


def held_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's parameters by what it calls them; of a weight that it computes, those of the weight's shape by its
    name, and no others."""
    if not isinstance(module, ParametrizationList):
        yield from module.named_parameters(recurse=False)
    for computed in computed_weights_of(module):
        shape = computed.value().shape
        yield from ((computed.local, original) for original in computed.originals if original.shape == shape)


def _dimensions(module: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the dimensions of a layer's weights that are (outputs, inputs); None of a layer that is not known."""
    if isinstance(module, _ConvNd):
        if module.groups > 1 and module.in_channels == module.groups:
            return (0, 1) if module.transposed else (0,), (0,)
        return ((1,), (0,)) if module.transposed else ((0,), (1,))
    if isinstance(module, (nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return (0,), (1,)
    if isinstance(module, nn.Bilinear):
        return (0,), (1, 2)
    if isinstance(module, EMBEDDINGS) or is_transposed_linear(module):
        return (1,), (0,)
    return None


class Blocks:
    """The blocks of a weight under a pattern. Made by `Pattern.blocks`.

    A tensor with one entry a block has the shape [blocks of rows, inputs, taps …] of the weight's own rows and columns
    (whatever its layout), or of whole rows [rows]. If the rows of a weight, or of each group of a convolution, are no
    multiple of those of a block, the last block of each column is smaller: **compare blocks by `mean`**, the worth of
    each of their weights, and count them by `sizes`.
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
        """Of a tensor with one entry a block."""

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return prod(self.shape)

    @cached_property
    def sizes(self) -> Tensor:
        """int64, of `shape`: the weights of each block."""
        heights = torch.full((self._groups, self._high), self.height)
        if self._high > self._whole:
            heights[:, -1] = self._rows - self._whole * self.height
        if self.whole_rows:
            return (heights * prod(self._columns)).flatten()
        return heights.flatten()[(...,) + (None,) * len(self._columns)].expand(self.shape)

    def views(self, weight: Tensor) -> list[Tensor]:
        """The weight's elements by block: [groups, blocks of rows, rows of a block, inputs, taps …], each a view.

        Those of full height, then those of the last rows, if there are any.
        """
        height, whole = self.height, self._whole
        if self._high == whole and not self.layout.inputs_first and weight.dim():  # the usual case, in one step
            return [weight.view(self._groups, whole, height, *self._columns)]
        rows = self.layout.rows(weight)
        full = torch.unflatten(rows[:, : whole * height], 1, (whole, height))
        return [full, rows[:, whole * height :].unsqueeze(1)] if self._high > whole else [full]

    def own_views(self, blocks: Tensor) -> list[Tensor]:
        """A tensor with one entry a block, as views that broadcast against `views`."""
        columns = (1,) * len(self._columns) if self.whole_rows else self._columns
        parted = blocks.view(self._groups, self._high, 1, *columns)
        return [parted[:, : self._whole], parted[:, self._whole :]] if self._high > self._whole else [parted]

    def pool(self, weights: Tensor) -> Tensor:
        """Sums over blocks: `shape`, from the weight's. Differentiable."""
        over = list(range(2, 3 + len(self._columns))) if self.whole_rows else [2]
        sums = [view.sum(over) for view in self.views(weights)]
        return (torch.cat(sums, 1) if len(sums) > 1 else sums[0]).flatten(0, 1)

    def mean(self, scores: Tensor) -> Tensor:
        """The mean score of each block's weights, in float64."""
        return self.pool(scores.double()) / self.sizes.to(scores.device)

    def spread(self, blocks: Tensor) -> Tensor:
        """Every weight gets the entry of its block: the weight's shape, from `shape`. Differentiable."""
        parts = [
            own.expand(self._groups, own.shape[1], height, *self._columns).flatten(1, 2)
            for own, height in zip(self.own_views(blocks), self._heights(), strict=True)
        ]
        return self.layout.weight(torch.cat(parts, 1) if len(parts) > 1 else parts[0], self.weight_shape)

    def whole(self, mask: Tensor, name: str) -> Tensor:
        """Boolean, of `shape`: the blocks that a mask keeps.

        Raises:
            MaskError: naming the parameter, if it keeps a part of one.
        """
        kept, sizes = self.pool(mask.cpu() != 0), self.sizes
        if bool(((kept != 0) & (kept != sizes)).any()):
            raise MaskError(
                f"the mask keeps parts of blocks of {name!r}: it is not of pattern {self.pattern}. Go on from a mask"
                " that was made with this pattern"
            )
        return (kept == sizes) & (sizes > 0)

    def _heights(self) -> Iterator[int]:
        yield self.height
        if self._high > self._whole:
            yield self._rows - self._whole * self.height


def best_of_m(scores: Tensor, n: int, m: int, layout: Layout | None = None, among: Tensor | None = None) -> Tensor:
    """Boolean, in the shape of `scores`: of every m inputs that are neighbours, at one tap of one row, the n best.

    Inputs 0 … m - 1 go together, then m … 2m - 1, and so on; the last ones, if fewer than m, keep n too. Ties go to the
    earlier input. A tensor without inputs (a vector, a number) keeps everything.

    Args:
        scores: of a weight, in its shape.
        layout: where the weight has its inputs, see `core.layout`; in dimension 1 if left out.
        among: boolean, of the same shape: only these can be chosen.
    """
    layout = layout or Layout()
    among = torch.ones_like(scores, dtype=torch.bool) if among is None else among
    if scores.dim() < 2:
        return among.clone()
    rows = layout.rows(scores)
    values = _by_m(rows, m)
    candidates = _by_m(layout.rows(among), m)
    # By counting who is better, which for small m takes a tenth of the time of sorting.
    chosen = []
    for place, (own, candidate) in enumerate(zip(values, candidates, strict=True)):
        better = torch.zeros_like(own, dtype=torch.int32)
        for other, (value, counts) in enumerate(zip(values, candidates, strict=True)):
            if other != place:
                better += (value >= own if other < place else value > own) & counts
        chosen.append(candidate & (better < n))
    found = torch.stack(chosen, 3).flatten(2, 3)[:, :, : rows.shape[2]]
    return layout.weight(found, tuple(scores.shape))


def _by_m(rows: Tensor, m: int) -> tuple[Tensor, ...]:
    """m views [groups, rows, inputs / m, taps …] of [groups, rows, inputs, taps …], filled up with 0 or False."""
    inputs = rows.shape[2]
    filled = functional.pad(rows, (0, 0) * (rows.dim() - 3) + (0, -inputs % m)) if inputs % m else rows
    return torch.unflatten(filled, 2, (filled.shape[2] // m, m)).unbind(3)
