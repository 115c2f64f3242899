"""Channel-wise masks drawn anew: controls for one that was chosen."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.seeds import generator
from ticketry.core.structure.group import ChannelGroup, Structure
from ticketry.core.structure.ranking import Count, global_order, remove
from ticketry.core.structure.select import (
    Flags,
    dead_channels,
    dead_indices,
    kept_indices,
    mask_tensors,
    tensors_of,
)


def shuffled_channels(model: nn.Module, structure: Structure, mask: Mask, seed: int) -> Mask:
    """As many channels of each group as `mask` removes, in random places: random, with the mask's own layer ratios.

    A pure function of its arguments: every group has a generator seeded by (seed, position of the group).
    """
    dead, removed = dead_indices(mask), {}
    for position, group in enumerate(structure.groups):
        if group.prunable:
            gone = int(dead_channels(group, dead).sum())
            flags = np.zeros(group.size, dtype=bool)
            order = torch.randperm(group.size, generator=generator(seed, "shuffled", position))
            flags[order[:gone].numpy()] = True
            removed[position] = flags
    return _mask(model, structure, mask, removed)


def random_channels(model: nn.Module, structure: Structure, mask: Mask, seed: int) -> Mask:
    """Random channels of all groups together, up to the density of `mask`; one of each group stays.

    The groups are those of which the mask has every parameter.
    """
    positions = [position for position, group in enumerate(structure.groups) if group.prunable and _within(group, mask)]
    groups = [structure.groups[position] for position in positions]
    scores = [
        torch.rand(group.size, dtype=torch.float64, generator=generator(seed, "random_prune", position))
        for position, group in zip(positions, groups, strict=True)
    ]
    count = Count(groups, mask.shapes)
    steps = [[step] for step in global_order(count, scores, 1)]
    removed = remove(count, steps, mask.density, 1)
    return _mask(model, structure, mask, dict(zip(positions, removed, strict=True)))


def _within(group: ChannelGroup, mask: Mask) -> bool:
    return all(member.name in mask for member in group.parameters)


def _mask(model: nn.Module, structure: Structure, like: Mask, removed: dict[int, Flags]) -> Mask:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
    return Mask(mask_tensors(like, shapes, kept_indices(structure, shapes, removed)))
