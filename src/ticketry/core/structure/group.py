"""Groups of coupled channels, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from ticketry.core.structure.labels import Ids
from ticketry.core.structure.roles import Roles, roles
from ticketry.core.structure.trace import NO_CHANNEL, Inputs, Site, Trace, trace


@dataclass(frozen=True)
class Member:
    """One dimension of one tensor in which a group has its channels."""

    name: str
    """Of a parameter or buffer."""
    dim: int
    indices: tuple[tuple[int, ...], ...]
    """For each channel of the group its indices along `dim`; as many for each."""
    buffer: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that lie in the same dimensions of the same tensors.

    Channel i is `indices[i]` of every member; it can only be removed from all of them at once. Two channels of one
    layer are in different groups if different tensors follow, as behind a concatenation.
    """

    name: str
    """Name of the first layer that makes the channels; of one that reads them, "(inputs)" added, if none does."""
    members: tuple[Member, ...]
    size: int
    """Number of channels."""
    reason: str = ""
    """Why its channels cannot be removed; empty if they can."""

    @property
    def prunable(self) -> bool:
        return not self.reason

    @property
    def parameters(self) -> tuple[Member, ...]:
        """The members that are of parameters."""
        return tuple(member for member in self.members if not member.buffer)

    def __repr__(self) -> str:
        end = "" if self.prunable else f", stays: {self.reason}"
        return f"ChannelGroup({self.name!r}, {self.size} channels, {len(self.members)} members{end})"


@dataclass(frozen=True)
class Counted:
    """An attribute of a module that counts units: it is the number of those that have a channel left."""

    module: str
    attribute: str
    units: tuple[tuple[int, int] | None, ...]
    """For each unit (group, channel), or None if it always stays."""


@dataclass(frozen=True)
class Cut:
    """A place where a dimension is cut into several, of which one was taken to be the one that can be narrower."""

    site: Site
    options: int
    """Into how many dimensions."""
    groups: frozenset[int]
    """Positions of the groups that are cut."""


@dataclass(frozen=True)
class Structure:
    """All groups of a model, and the attributes of modules that follow."""

    groups: tuple[ChannelGroup, ...]
    counted: tuple[Counted, ...]
    cuts: tuple[Cut, ...] = ()

    @property
    def free(self) -> int:
        """Channels that can be removed."""
        return sum(group.size for group in self.groups if group.prunable)

    def staying(self, why: dict[int, str]) -> Structure:
        """The same with some groups (by position) that stay."""
        groups = [replace(group, reason=why.get(i, group.reason)) for i, group in enumerate(self.groups)]
        return replace(self, groups=tuple(groups))


def structure_of(model: nn.Module, example_inputs: Inputs, choices: Mapping[Site, int]) -> Structure:
    """The groups that following the model gives, not yet tried out."""
    found = trace(model, example_inputs, choices)
    parts = roles(found.model)
    buffers = {name for name, _ in found.model.named_buffers()}
    groups: dict[tuple[object, ...], list[int]] = {}
    places = _places(found)
    for root, where in places.items():
        reason = found.labels.reason(root)
        if reason == NO_CHANNEL or all(name in buffers for name, _ in where):
            continue
        groups.setdefault((tuple((key, len(indices)) for key, indices in where.items()), reason), []).append(root)
    made = [_group(roots, [places[root] for root in roots], found, buffers, parts) for roots in groups.values()]
    channel_of = {root: (g, c) for g, roots in enumerate(groups.values()) for c, root in enumerate(roots)}
    counted = [
        Counted(module, attribute, tuple(channel_of.get(int(root)) for root in found.labels.find(ids)))
        for (module, attribute), ids in found.attributes.items()
    ]
    cuts = []
    for site, (ids, options) in found.cuts.items():
        roots = np.unique(found.labels.find(ids)).tolist()
        cuts.append(Cut(site, options, frozenset(channel_of[root][0] for root in roots if root in channel_of)))
    return Structure(tuple(made), tuple(counted), tuple(cuts))


Where = dict[tuple[str, int], list[int]]


def _places(found: Trace) -> dict[int, Where]:
    """For each channel (the root of its labels) its indices in each dimension of each tensor, in the model's order."""
    places: dict[int, Where] = {}
    for key, ids in found.tensors.items():
        for index, root in enumerate(found.labels.find(ids).tolist()):
            places.setdefault(root, {}).setdefault(key, []).append(index)
    return places


def _group(roots: list[int], places: list[Where], found: Trace, buffers: set[str], parts: Roles) -> ChannelGroup:
    members = tuple(
        Member(name, dim, tuple(tuple(where[name, dim]) for where in places), name in buffers)
        for name, dim in places[0]
    )
    reason = found.labels.reason(roots[0]) or ""
    if not reason and len(roots) == 1:
        reason = "its channels can only go all together"
    parameters = [member for member in members if not member.buffer]
    makers = [member for member in parameters if (member.name, member.dim) in parts.outputs or member.dim == 0]
    name = (makers or parameters)[0].name
    name = name.rpartition(".")[0] or name
    return ChannelGroup(name if makers else f"{name} (inputs)", members, len(roots), reason)


def each_index(members: tuple[Member, ...]) -> Iterator[tuple[Member, Ids]]:
    """Members with their indices as an array [channels, indices]."""
    for member in members:
        yield member, np.asarray(member.indices, dtype=np.int64)
