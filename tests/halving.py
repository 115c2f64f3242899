"""Masks made from channel groups, and a comparison of the smaller model with the masked one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

import ticketry as tk
from ticketry.core.structure.coupling import Structure


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
    """Return the largest difference of the two models' outputs in float64, relative to the largest output."""

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    masked = mask.apply_(copy.deepcopy(model)).double().train(training)
    inputs = tree_map(double, inputs if isinstance(inputs, tuple) else (inputs,))
    found = []
    for network in (masked, copy.deepcopy(small).double().train(training)):
        torch.manual_seed(1)
        with torch.no_grad():
            outputs = network(*tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs))
        found.append(tensors(outputs))
    apart = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True)]
    assert all(a.shape == b.shape for a, b in zip(*found, strict=True))
    return max(apart)


def halved(model: nn.Module, structure: Structure) -> tk.Mask:
    """A mask at the density of half of the channels of each group that can lose any."""
    groups = [group for group in structure.groups if group.prunable]
    coupled = {member.name for group in groups for member in group.parameters}
    every_second = without(model, groups)
    counted = tk.Mask({name: every_second[name] for name in every_second if name in coupled | set(tk.scope(model))})
    return tk.structure.channels(model, lambda: structure, counted.density, distribution="uniform")


def tensors(outputs: Any) -> list[Tensor]:
    plain = dict(outputs) if isinstance(outputs, dict) else outputs
    return [leaf for leaf in tree_flatten(plain)[0] if isinstance(leaf, Tensor)]


def gradients(network: nn.Module, x: Tensor, *, training: bool = True) -> dict[str, Tensor]:
    """Name of a parameter -> its gradient, of a loss that all outputs are in."""
    kind = next(network.parameters()).dtype
    torch.manual_seed(1)
    outputs = tensors(network.train(training)(x.to(kind) if x.is_floating_point() else x))
    torch.stack([value.square().mean() for value in outputs if value.is_floating_point()]).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def gradients_apart(
    model: nn.Module, small: nn.Module, mask: tk.Mask, plan: tk.structure.ShrinkPlan, x: Tensor, *, training: bool
) -> tuple[float, str]:
    """In float64, of each weight that is left, relative to the largest of its parameter; and the furthest parameter.

    A largest below a thousandth of that of all parameters counts as that: the gradient of a shift before a norm, or of
    keys in attention, is 0 but for rounding.
    """
    wanted = gradients(mask.apply_(copy.deepcopy(model)).double(), x, training=training)
    found = gradients(copy.deepcopy(small).double(), x, training=training)
    assert found.keys() == wanted.keys()
    least = 1e-3 * max(float(gradient.abs().max()) for gradient in found.values())
    apart = {}
    for name, gradient in found.items():
        expected = plan.cut(name, wanted[name])
        apart[name] = float((gradient - expected).abs().max()) / max(float(expected.abs().max()), least)
    furthest = max(apart, key=lambda name: apart[name])
    return apart[furthest], furthest


def check(model: nn.Module, x: Any, mask: tk.Mask, **options: Any) -> nn.Module:
    """Shrink, compare with the masked model in both modes, and return the smaller one."""
    small = tk.shrink(model, mask, x, **options)
    for training in (False, True):
        assert difference(model, small, mask, x, training=training) <= 1e-12
    return small
