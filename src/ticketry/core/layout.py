"""Where a layer's weight has its outputs and its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ticketry.core.scope import EMBEDDINGS, normal_name
from ticketry.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """How a weight is seen as rows (outputs) times columns (inputs, then taps).

    Most layers have (outputs, inputs, taps …): linear, recurrent and attention layers, convolutions. Transposed
    convolutions have (inputs, outputs of a group, taps …); embeddings and transformers' Conv1D (inputs, outputs).
    """

    inputs_first: bool = False
    groups: int = 1
    """Of a grouped convolution: rows of different groups read different inputs."""

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
        parted = torch.unflatten(weight, 0, (self.groups, weight.shape[0] // self.groups))
        return parted.transpose(1, 2) if self.inputs_first else parted

    def weight(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse of `rows`."""
        if len(shape) < 2:
            return rows.reshape(shape)
        return (rows.transpose(1, 2) if self.inputs_first else rows).flatten(0, 1)


def layouts(model: nn.Module, names: Iterable[str]) -> dict[str, Layout]:
    """The layout of each of the named parameters, as the layers that hold them use them.

    Of a shared one, that of the layer that multiplies by it: an embedding tied to a linear layer is as the latter has
    it. A parameter that no known layer holds has its outputs in dimension 0.
    """
    found: dict[int, Layout] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in found or not isinstance(module, EMBEDDINGS):
                found[id(parameter)] = _layout(module)
    every = {normal_name(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: found[id(every[name])] if name in every else Layout() for name in names}


def _layout(module: nn.Module) -> Layout:
    if isinstance(module, _ConvNd):
        return Layout(module.transposed, module.groups)
    return Layout(isinstance(module, EMBEDDINGS) or type(module).__name__ == "Conv1D")
