"""For tests: masks made from the groups as they are told, and the smaller model against the masked one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

import ticketry as tk


def example(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def groups_of(model: nn.Module, x: object, **options: Any) -> dict[str, tk.structure.ChannelGroup]:
    return {group.name: group for group in tk.structure.channel_groups(model, x, **options)}


def without(model: nn.Module, groups: Any, step: int = 2) -> tk.Mask:
    """Every second channel of each group that can lose any is removed, or every third, …"""
    mask = {name: torch.ones(parameter.shape, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for group in groups:
        for member in group.parameters if group.prunable else ():
            gone = [index for channel in member.indices[step - 1 :: step] for index in channel]
            mask[member.name].index_fill_(member.dim, torch.tensor(gone), False)
    return tk.Mask(mask)


def difference(model: nn.Module, small: nn.Module, mask: tk.Mask, inputs: Any, *, training: bool = False) -> float:
    """Of the outputs of the masked and the smaller model in float64, relative to the largest."""

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    masked = mask.apply_(copy.deepcopy(model)).double().train(training)
    inputs = tree_map(double, inputs if isinstance(inputs, tuple) else (inputs,))
    found = []
    for network in (masked, copy.deepcopy(small).double().train(training)):
        torch.manual_seed(1)
        with torch.no_grad():
            outputs = network(*tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs))
        found.append([value for value in tree_flatten(outputs)[0] if isinstance(value, Tensor)])
    apart = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True)]
    assert all(a.shape == b.shape for a, b in zip(*found, strict=True))
    return max(apart)


def check(model: nn.Module, x: Any, mask: tk.Mask, **options: Any) -> nn.Module:
    """Shrink, compare with the masked model in both modes, and return the smaller one."""
    small = tk.shrink(model, mask, x, **options)
    for training in (False, True):
        assert difference(model, small, mask, x, training=training) <= 1e-12
    return small
