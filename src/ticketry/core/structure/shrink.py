"""From a channel-wise mask to a physically smaller model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.structure.group import ChannelGroup, Structure
from ticketry.core.structure.plan import ShrinkPlan, rebuild
from ticketry.core.structure.select import (
    Flags,
    dead_channels,
    dead_indices,
    kept_indices,
    mask_tensors,
    plan_for,
    tensors_of,
)
from ticketry.core.structure.trial import Problem, compare, smaller, tried_structure
from ticketry.core.structure.twin import Inputs, arguments_of, natural_dtype, twin_of, unwrapped
from ticketry.errors import LayerCollapseError, MaskError, StructureError


def shrink(model: nn.Module, mask: Mask, example_inputs: Inputs, *, spare: Iterable[str] = ()) -> nn.Module:
    """A smaller copy of `model` without the channels that `mask` removes; its outputs are those of the masked model.

    The copy keeps class, names, devices and types; weights, norm statistics and other buffers are cut. It is compared
    with the masked model on the example inputs, in float64 and evaluation mode, before it is returned. In training
    mode it is equal too (train it on with `shrink_optimizer`), but for dropout, which draws other random numbers for
    tensors of another shape.

    Args:
        mask: channel-wise, such as `structure.channels` gives: of each removed channel it removes all coupled weights,
            biases, norm scales and shifts.
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them.
        spare: modules that are not looked into, see `structure.channel_groups`.

    Raises:
        MaskError: if the mask does not fit the model, or is not channel-wise: says in which layer and by how much.
        LayerCollapseError: if it removes all channels of a group.
        StructureError: if the model cannot be followed, or is not the same without the channels.

        >>> small = shrink(model, mask, example_inputs)  # doctest: +SKIP
    """
    return rebuild(model, shrink_plan(model, mask, example_inputs, spare=spare))


def shrink_plan(model: nn.Module, mask: Mask, example_inputs: Inputs, *, spare: Iterable[str] = ()) -> ShrinkPlan:
    """What `shrink` keeps, as data: see `ShrinkPlan`, `rebuild`. Arguments and errors are those of `shrink`."""
    mask.parameters(model)
    return plan_of(model, mask, example_inputs, tried_structure(model, example_inputs, spare))


def plan_of(model: nn.Module, mask: Mask, example_inputs: Inputs, structure: Structure) -> ShrinkPlan:
    """`shrink_plan` of a model whose structure is known."""
    dead = dead_indices(mask)
    removed = {position: dead_channels(group, dead) for position, group in enumerate(structure.groups)}
    for position, group in enumerate(structure.groups):
        if not group.prunable:
            removed[position] = removed[position] & False
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
    names = {id(parameter): name for name, parameter in tensors_of(model).items()}
    named = Mask({names[id(parameter)]: mask[name] for name, parameter in mask.parameters(model).items()})
    implied = Mask(mask_tensors(named, shapes, kept_indices(structure, shapes, removed)))
    if implied != named:
        raise MaskError(_not_channel_wise(named, implied, structure, dead))
    for position, group in enumerate(structure.groups):
        if removed[position].all():
            raise LayerCollapseError(f"the mask removes all {group.size} channels of {group.name} (layer collapse)")
    found = plan_for(model, structure, removed)
    _check(model, named, found, example_inputs)
    return found


def _check(model: nn.Module, mask: Mask, found: ShrinkPlan, example_inputs: Inputs) -> None:
    inner = unwrapped(model)
    problem = _difference(inner, mask, found, example_inputs, torch.float64)
    if problem is not None and not problem.ran:  # what the model holds besides parameters may be of its own type
        problem = _difference(inner, mask, found, example_inputs, natural_dtype(inner))
    if problem is not None:
        where = f" (in {problem.where})" if problem.where else ""
        raise StructureError(
            f"{type(inner).__name__} is not the same without the removed channels: {problem.text}{where};"
            " a number in its code stands for a width: compute it from shapes, or choose channels with"
            " structure.channels, which leaves such layers alone"
        )


def _difference(
    model: nn.Module, mask: Mask, found: ShrinkPlan, example_inputs: Inputs, dtype: torch.dtype
) -> Problem | None:
    masked = twin_of(model, dtype).eval()
    with torch.no_grad():
        mask.apply_(masked)
    return compare(masked, smaller(masked, found), arguments_of(example_inputs, dtype))


def _not_channel_wise(mask: Mask, implied: Mask, structure: Structure, dead: dict[tuple[str, int], Flags]) -> str:
    rows = []
    for name, kept in mask.items():
        stray = int((implied[name].cpu() & ~kept.cpu()).sum())
        if stray:
            rows.append((stray, int((~kept).sum()), name))
    stray, removed, name = max(rows, key=lambda row: row[0])
    return (
        f"the mask is not channel-wise: {stray:,} of the {removed:,} weights that it removes from {name!r} are in"
        f" channels that are not removed as a whole{_example(name, mask, structure, dead)}. So it is in {len(rows)} of"
        f" {len(mask)} tensors. Make a channel-wise mask, with structure.channels"
    )


def _example(name: str, mask: Mask, structure: Structure, dead: dict[tuple[str, int], Flags]) -> str:
    """Why a channel that the mask removes from this tensor is not removed."""
    for group in structure.groups:
        for member in group.parameters:
            flags = dead.get((name, member.dim)) if member.name == name else None
            for channel, indices in enumerate(member.indices if flags is not None else ()):
                if flags is not None and all(flags[i] for i in indices):
                    return f": channel {channel} of {group.name} {_why(group, channel, dead)}"
    return ""


def _why(group: ChannelGroup, channel: int, dead: dict[tuple[str, int], Flags]) -> str:
    if not group.prunable:
        return f"cannot be removed, for {group.reason}"
    for member in group.parameters:
        flags = dead.get((member.name, member.dim))
        if flags is None:
            return f"is not removed from {member.name!r}, which the mask does not have"
        if not all(flags[i] for i in member.indices[channel]):
            return f"is not removed from {member.name!r} (dimension {member.dim})"
    return "is removed"
