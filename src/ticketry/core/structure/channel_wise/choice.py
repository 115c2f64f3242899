"""The channels of a model that may go: their scores, and masks without some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core.layout import Roles
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score import Score, ScoreInputs
from ticketry.core.score._measure import pruned_to
from ticketry.core.structure.channel_wise.ranking import ChannelOrder, Count, Step, remove
from ticketry.core.structure.channel_wise.scores import channel_scores, gathered
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup, Structure
from ticketry.core.structure.shrinking.selection import Flags, channel_mask, dead_channels, dead_indices, shapes_of
from ticketry.errors import MaskError, StructureError, UsageError


class Choice:
    """The channels of a model that a scope lets go."""

    def __init__(self, model: nn.Module, structure: Structure, scope: Scope) -> None:
        if not isinstance(structure, Structure):
            raise UsageError(
                "example_inputs= is a tensor, a tuple or a dictionary, or a function that gives a Structure, not one"
                f" that gives a {type(structure).__name__}"
            )
        self.model, self.structure, self.scope, self.roles = model, structure, scope, structure.roles
        self.positions = candidates(structure, scope)
        self.groups = [structure.groups[position] for position in self.positions]
        self.shapes = shapes_of(model)
        self.held = held_names(self.groups, self.shapes, scope)

    def scores(self, mask: Mask | None, inputs: ScoreInputs, *, score: str | Score, reduce: str) -> list[Tensor]:
        """Of each group's channels, in the network that a mask leaves."""
        with pruned_to(mask, mask.parameters(self.model) if mask is not None else {}):
            found = channel_scores(self.model, self.groups, self.scope, self.roles, inputs, score=score, reduce=reduce)
        self.check_numbers(found)
        return found

    def sums(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Return for each group the sum of each channel's scores of weights, float64 [channels]."""
        return [
            gathered(values, [one for one in group.parameters if one.name in values]).double().expand(group.size)
            for group in self.groups
        ]

    def check_numbers(self, scores: Sequence[Tensor]) -> None:
        """Raises `MaskError` where scores are none."""
        for group, values in zip(self.groups, scores, strict=True):
            if bool(torch.isnan(values).any()):
                raise MaskError(f"the scores of the channels of {group.name} are not all numbers (NaN)")

    def check_reachable(self, within: Mask | None, density: float, order: ChannelOrder) -> None:
        """Raises `LayerCollapseError` where no scores would let enough channels go."""
        # The largest go first: those that have to stay are then as small as can be.
        sizes = [
            -torch.tensor([sum(len(member.indices[c]) for member in group.parameters) for c in range(group.size)])
            for group in self.groups
        ]
        self.cut(sizes, within, density, order)

    def cut(self, scores: list[Tensor], within: Mask | None, density: float, order: ChannelOrder) -> Mask:
        """What is left of `within` at a density."""
        count = Count(self.groups, {name: self.shapes[name] for name in self.held})
        if within is not None:
            for g, channel in self.gone(within):
                count.remove(g, channel)
        return self.mask(remove(count, order.blocks(count, scores), density, order.limits))

    def gone(self, mask: Mask) -> list[Step]:
        """The channels that a mask removes."""
        dead = dead_indices(mask)
        return [(g, int(c)) for g, group in enumerate(self.groups) for c in np.flatnonzero(dead_channels(group, dead))]

    def mask(self, removed: list[Flags]) -> Mask:
        return channel_mask(self.held, self.structure, self.shapes, dict(zip(self.positions, removed, strict=True)))

    def check_within(self, mask: Mask) -> None:
        """Raises `MaskError` unless a mask is one of whole channels of these groups."""
        flags = [np.zeros(group.size, dtype=bool) for group in self.groups]
        if set(mask) == set(self.held):
            for g, channel in self.gone(mask):
                flags[g][channel] = True
        if set(mask) != set(self.held) or self.mask(flags) != Mask({name: mask[name] for name in self.held}):
            raise MaskError(
                "the mask to go on from is not of whole channels of this model in this scope: make it with"
                " structure.channels and the same scope"
            )


def held_names(groups: Iterable[ChannelGroup], shapes: Mapping[str, tuple[int, ...]], scope: Scope) -> list[str]:
    """The tensors that a mask of these channels is of: those in scope, and what the channels share besides."""
    shared = {member.name for group in groups for member in group.parameters}
    return [name for name in shapes if name in scope or name in shared]


def candidates(structure: Structure, scope: Scope) -> list[int]:
    """Return the positions of the groups that may lose channels: prunable, and made by weights in scope.

    Raises:
        StructureError: if there are none, with the reasons.
    """
    reasons = [group.reason or out_of_scope(group, structure.roles, scope) for group in structure.groups]
    found = [position for position, reason in enumerate(reasons) if not reason]
    if not found:
        shown = [f"{group.name}: {why}" for group, why in zip(structure.groups, reasons, strict=True)][:6]
        raise StructureError(f"there are no channels that can be removed; {'; '.join(shown) or 'no layer has any'}")
    return found


def out_of_scope(group: ChannelGroup, parts: Roles, scope: Scope) -> str:
    """Return why a scope lets a group's channels stay, with the name of the parameter; empty if it does not."""
    makers = list(dict.fromkeys(member.name for member in group.within(parts.outputs)))
    if not makers:
        return "no weight of a layer makes them"
    outside = [name for name in makers if name not in scope]
    if not outside:
        return ""
    return (
        f"it is out of scope, made by {', '.join(outside)}: to remove it, give scope=tk.scope(model, include={outside})"
    )
