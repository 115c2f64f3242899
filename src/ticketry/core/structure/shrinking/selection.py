"""Chosen channels as a mask, as a plan, and back from a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ticketry.core.computed_weights import computed_weights
from ticketry.core.mask import Mask
from ticketry.core.scope import is_transposed_linear, named_parameters, normal_name, unwrapped
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup, Structure
from ticketry.core.structure.shrinking.plan import Kept, ShrinkPlan, module_name, read_number

Flags = NDArray[np.bool_]

Removed = Mapping[int, Flags]
"""Position of a group -> for each of its channels whether it goes."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by normalised name, shared ones once under their first."""
    inner = unwrapped(model)
    buffers = {normal_name(name): buffer for name, buffer in inner.named_buffers()}
    return {**named_parameters(inner), **buffers}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters and buffers by normalised name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}


def kept_indices(
    structure: Structure, shapes: Mapping[str, tuple[int, ...]], removed: Removed
) -> dict[tuple[str, int], Flags]:
    """(name, dimension) -> for each index whether it stays, of dimensions that lose any."""
    kept: dict[tuple[str, int], Flags] = {}
    for position, flags in removed.items():
        for member in structure.groups[position].members if flags.any() else ():
            stays = kept.setdefault((member.name, member.dim), np.ones(shapes[member.name][member.dim], dtype=bool))
            stays[member.array[flags]] = False
    return kept


def channel_mask(
    names: Iterable[str], structure: Structure, shapes: Mapping[str, tuple[int, ...]], removed: Removed
) -> Mask:
    """The mask of these tensors without the removed channels: an element stays if every one of its indices does."""
    kept, tensors = kept_indices(structure, shapes, removed), {}
    for name in names:
        mask = torch.ones(shapes[name], dtype=torch.bool)
        for dim in range(len(shapes[name])):
            if (name, dim) in kept:
                flags = torch.from_numpy(kept[name, dim])
                mask &= flags.reshape([-1 if d == dim else 1 for d in range(mask.dim())])
        tensors[name] = mask
    return Mask(tensors)


def plan_for(model: nn.Module, structure: Structure, removed: Removed) -> ShrinkPlan:
    """The plan that keeps all channels but the removed ones."""
    return Sizes.of(model).plan(structure, removed)


# -- what modules know of their sizes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """The tensors of a model and the modules that know of their sizes, looked up once for many plans."""

    tensors: Mapping[str, Tensor]
    modules: Sequence[tuple[str, nn.Module]]
    behind: Mapping[tuple[int, str], Tensor]
    """(`id` of a module, local name of a weight that it computes) -> the parameter of that shape behind it."""

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        inner, behind = unwrapped(model), dict[tuple[int, str], Tensor]()
        for computed in computed_weights(inner):
            shape = computed.value().shape
            behind |= {(id(computed.module), computed.local): one for one in computed.originals if one.shape == shape}
        return cls(tensors_of(inner), list(inner.named_modules()), behind)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @cached_property
    def _first_names(self) -> dict[int, str]:
        return {id(tensor): name for name, tensor in self.tensors.items()}

    def plan(self, structure: Structure, removed: Removed) -> ShrinkPlan:
        """The plan that keeps all channels but the removed ones."""
        kept: Kept = {}
        for (name, dim), stay in sorted(kept_indices(structure, self.shapes, removed).items()):
            kept.setdefault(name, {})[dim] = tuple(np.flatnonzero(stay).tolist())
        plan = ShrinkPlan({name: self.shapes[name] for name in kept}, kept, {})
        return ShrinkPlan(plan.shapes, kept, self._attributes(structure, removed, plan))

    def _attributes(self, structure: Structure, removed: Removed, plan: ShrinkPlan) -> dict[str, dict[str, int]]:
        """module -> attribute -> value, of those that change."""
        counted: dict[str, dict[str, int]] = {}
        for entry in structure.counted:
            stays = [unit is None or unit[0] not in removed or not removed[unit[0]][unit[1]] for unit in entry.units]
            counted.setdefault(entry.module, {})[entry.attribute] = sum(stays)
        changed: dict[str, dict[str, int]] = {}
        for name, module in self.modules:

            def shape(local: str, module: nn.Module = module) -> tuple[int, ...]:
                computed = self.behind.get((id(module), local), module._parameters.get(f"{local}_orig"))
                tensor: Tensor = getattr(module, local) if computed is None else computed
                first = self._first_names.get(id(tensor), "")
                return plan.shape(first) if first in plan.shapes else tuple(tensor.shape)

            values = _sizes(module, shape, counted.get(name, {}))
            new = {key: value for key, value in values.items() if read_number(module, key) not in (None, value)}
            if new:
                changed[module_name(name)] = new
        return changed


def _sizes(module: nn.Module, shape: Callable[[str], tuple[int, ...]], counted: dict[str, int]) -> dict[str, int]:
    if isinstance(module, _ConvNd):
        return {**counted, **_convolution_sizes(module, shape("weight"), counted.get("groups", module.groups))}
    if isinstance(module, nn.Linear):
        outputs, inputs = shape("weight")
        return {"in_features": inputs, "out_features": outputs}
    if isinstance(module, nn.Bilinear):
        outputs, one, other = shape("weight")
        return {"in1_features": one, "in2_features": other, "out_features": outputs}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"embedding_dim": shape("weight")[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape("weight")[0]}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        sizes = {"input_size": shape("weight_ih_l0")[1], "hidden_size": shape("weight_ih_l0")[0] // gates}
        return {**sizes, "proj_size": shape("weight_hr_l0")[0]} if module.proj_size else sizes
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": shape("weight_ih")[1], "hidden_size": shape("weight_hh")[1]}
    if is_transposed_linear(module):
        return {"nx": shape("weight")[0], "nf": shape("weight")[1]}
    return counted


def _convolution_sizes(module: _ConvNd, weight: tuple[int, ...], groups: int) -> dict[str, int]:
    if module.transposed:
        return {"in_channels": weight[0], "out_channels": weight[1] * groups}
    return {"in_channels": weight[1] * groups, "out_channels": weight[0]}


# -- from a mask ------------------------------------------------------------------------------------------------------


def dead_channels(group: ChannelGroup, dead: Mapping[tuple[str, int], Flags]) -> Flags:
    """The channels of which every part of every parameter is removed by a mask.

    `dead` has, for the parameters that the mask is of, the indices of each dimension that keep nothing.
    """
    gone = np.ones(group.size, dtype=bool)
    for member in group.parameters:
        flags = dead.get((member.name, member.dim))
        gone &= False if flags is None else flags[member.array].all(axis=1)
    return gone


def dead_indices(mask: Mapping[str, Tensor]) -> dict[tuple[str, int], Flags]:
    """(name, dimension) -> for each index whether the mask removes all of it."""
    found = {}
    for name, tensor in mask.items():
        for dim in range(tensor.dim()):
            others = [d for d in range(tensor.dim()) if d != dim]
            alive = tensor.cpu().any(dim=others) if others else tensor.cpu()
            found[name, dim] = ~alive.numpy()
    return found
