"""Scores of channels, then whole channels up to a density: a structured mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core.density import check_density
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score
from ticketry.core.structure.group import ChannelGroup, Structure
from ticketry.core.structure.roles import Roles, roles
from ticketry.core.structure.saliency import channel_scores
from ticketry.core.structure.select import Flags, kept_indices, mask_tensors, tensors_of
from ticketry.core.structure.trace import Inputs
from ticketry.core.structure.trial import tried_structure
from ticketry.errors import LayerCollapseError, MaskError, StructureError, UsageError

DISTRIBUTIONS = ("global", "uniform")


def channel_groups(model: nn.Module, example_inputs: Inputs) -> tuple[ChannelGroup, ...]:
    """All groups of coupled channels of `model`, those that can be removed and those that stay, with the reason.

    A copy runs on the example inputs, in float64, while every index of every parameter is followed through each
    operation: additions, concatenations, flattening, grouped convolutions, norms, attention, recurrent layers. Then
    some channels of each group are removed on trial: a group whose removal breaks the model, or makes its outputs
    other than the masked model's, stays.

    Args:
        example_inputs: a tensor, or a tuple of the model's arguments; two examples or more.

    Raises:
        StructureError: if the model does not run on them.

        >>> groups = channel_groups(model, example_inputs)  # doctest: +SKIP
    """
    return tried_structure(model, example_inputs).groups


def channels(
    model: nn.Module,
    example_inputs: Inputs,
    density: float | None = None,
    *,
    sparsity: float | None = None,
    score: str | Score = "l1",
    reduce: str = "mean",
    distribution: str = "global",
    scope: Scope | None = None,
    keep_at_least: int = 1,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> Mask:
    """A mask of whole coupled channels, which `shrink` can take out.

    The mask is of the weights in scope and of all other parameters that channels share (biases, norm scales and
    shifts). Of a removed channel all of them go, and the weights of every layer behind it that reads it, so that it is
    exactly 0 everywhere. Its density is the share kept of all these tensors, and is met as closely as whole channels,
    the worst first, permit.

    Args:
        example_inputs: a tensor, or a tuple of the model's arguments.
        density: share kept, 0 < density <= 1.
        sparsity: share removed, instead of density.
        score: ``l1``, ``l2`` (norm of a channel's weights, in all layers that share it), ``slimming`` (|scale| of its
            norms; Liu et al. 2017), ``taylor`` (sum of |w dL/dw|; Molchanov et al. 2019), ``snap`` (|dL/dc| of a gate
            c = 1 on the channel; Verdenius et al. 2020), ``crop_gates`` (change of gradient flow by such a gate;
            Rachwan et al. 2022), or any score of weights, by name or as a function, of which each channel gets the sum.
        reduce: ``mean`` over a channel's weights, or their ``sum``. What is removed is worth the sum but frees as many
            weights as it has: the mean is the worth of each. Gates have no use for it.
        distribution: ``global``: one ranking of all channels; ``uniform``: each group keeps the same share of its own.
        scope: the weights to choose among, by default `ticketry.scope(model)`. Channels that a layer out of scope
            makes all stay.
        keep_at_least: channels that each group keeps whatever the scores.
        batches, loss, seed: what the score needs, if it needs any.

    Raises:
        UsageError: for a density outside (0, 1], an unknown score or option.
        StructureError: if the model cannot be followed or has no channels that can be removed.
        LayerCollapseError: if the density cannot be reached with `keep_at_least` channels in each group.

        >>> mask = channels(model, example_inputs, density=0.5)  # doctest: +SKIP
    """
    wanted = check_density(density, sparsity)
    if distribution not in DISTRIBUTIONS:
        raise UsageError(f"channels are distributed {' or '.join(DISTRIBUTIONS)}, not {distribution!r}")
    if keep_at_least < 1:
        raise UsageError(f"keep_at_least is 1 or more channels, not {keep_at_least}")
    scope = scope_of(model) if scope is None else scope
    structure, parts = tried_structure(model, example_inputs), roles(model)
    positions = candidates(structure, scope, parts)
    groups = [structure.groups[position] for position in positions]
    scores = channel_scores(
        model, groups, scope, parts, score=score, reduce=reduce, batches=batches, loss=loss, seed=seed
    )
    for group, values in zip(groups, scores, strict=True):
        if bool(torch.isnan(values).any()):
            raise MaskError(f"the scores of the channels of {group.name} are not all numbers (NaN)")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
    shared = {member.name for group in groups for member in group.parameters}
    held = [name for name in shapes if name in scope or name in shared]
    count = _Count(groups, {name: shapes[name] for name in held})
    order = _global_order if distribution == "global" else _uniform_order
    removed = _remove(count, order(groups, scores, keep_at_least), wanted, keep_at_least)
    kept = kept_indices(structure, shapes, dict(zip(positions, removed, strict=True)))
    return Mask(mask_tensors(held, shapes, kept))


def candidates(structure: Structure, scope: Scope, parts: Roles) -> list[int]:
    """Positions of the groups that may lose channels: prunable, and made by weights in scope.

    Raises:
        StructureError: if there are none, with the reasons.
    """
    found = []
    for position, group in enumerate(structure.groups):
        makers = [member.name for member in group.parameters if (member.name, member.dim) in parts.outputs]
        if group.prunable and makers and all(name in scope for name in makers):
            found.append(position)
    if not found:
        reasons = [f"{group.name}: {group.reason or 'it is out of scope'}" for group in structure.groups][:6]
        raise StructureError(f"there are no channels that can be removed; {'; '.join(reasons) or 'no layer has any'}")
    return found


# -- which channels go ------------------------------------------------------------------------------------------------

Step = tuple[int, int]
"""(position in the list of candidates, channel)"""


def _global_order(groups: Sequence[ChannelGroup], scores: Sequence[Tensor], keep_at_least: int) -> list[Step]:
    """Channels one by one, the worst first; ties by position, the later first."""
    ranked = sorted(
        ((float(value), -g, -c) for g, values in enumerate(scores) for c, value in enumerate(values.tolist())),
    )
    left = [group.size for group in groups]
    steps = []
    for _, g, c in ranked:
        if left[-g] > keep_at_least:
            left[-g] -= 1
            steps.append((-g, -c))
    return steps


def _uniform_order(groups: Sequence[ChannelGroup], scores: Sequence[Tensor], keep_at_least: int) -> list[Step]:
    """Each group's worst channel at a time, so that all are at about the same share of their channels."""
    ranked = []
    for g, (group, values) in enumerate(zip(groups, scores, strict=True)):
        worst_first = sorted(range(group.size), key=lambda c: (float(values[c]), -c))
        for rank, channel in enumerate(worst_first[: max(group.size - keep_at_least, 0)]):
            ranked.append(((rank + 1) / group.size, g, channel))
    return [(g, channel) for _, g, channel in sorted(ranked)]


def _remove(count: _Count, steps: Sequence[Step], density: float, keep_at_least: int) -> list[Flags]:
    """Follow the order to the point whose density is nearest to the one wanted."""
    target = density * count.total
    removed = [np.zeros(group.size, dtype=bool) for group in count.groups]
    for g, channel in steps:
        before = count.kept
        if before <= target:
            return removed
        count.remove(g, channel)
        if target - count.kept > before - target:  # it was nearer without this channel
            return removed
        removed[g][channel] = True
    if count.kept > target:
        raise LayerCollapseError(
            f"density {density:g} cannot be reached by removing channels: with {keep_at_least} left in each of"
            f" {len(removed)} groups {count.kept / count.total:.4g} of the weights remain; choose a higher density"
        )
    return removed


class _Count:
    """How many weights remain, kept up to date channel by channel.

    A tensor keeps the product over its dimensions of the indices that are left.
    """

    def __init__(self, groups: Sequence[ChannelGroup], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.groups = groups
        self._left = {name: list(shape) for name, shape in shapes.items()}
        self.total = sum(prod(shape) for shape in shapes.values())
        self.kept = self.total

    def remove(self, group: int, channel: int) -> None:
        for member in self.groups[group].parameters:
            left = self._left[member.name]
            self.kept -= prod(left)
            left[member.dim] -= len(member.indices[channel])
            self.kept += prod(left)
