"""Groups of coupled channels, as plain data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import nn

from ticketry.core.layout import Roles, roles
from ticketry.core.structure.dependencies.axes import Ids
from ticketry.core.structure.dependencies.following import follow
from ticketry.core.structure.dependencies.model_copies import Arguments
from ticketry.core.structure.dependencies.trace import NO_CHANNEL, Site, Trace


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of one tensor in which a group has its channels.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hidden = next(group for group in tk.structure.channel_groups(model, torch.randn(2, 4)) if group.prunable)
        >>> member = hidden.parameters[0]
        >>> member.name, member.dim, member.indices[:3]
        ('0.weight', 0, ((0,), (1,), (2,)))
    """

    name: str
    """Of a parameter or buffer."""
    dim: int
    """The dimension."""
    array: Ids
    """For each channel of the group its indices along `dim`; as many for each: [channels, indices]."""
    buffer: bool = False
    """Whether it is a buffer, such as a running mean."""

    @cached_property
    def indices(self) -> tuple[tuple[int, ...], ...]:
        """`array` as tuples."""
        return tuple(map(tuple, self.array.tolist()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return self.name, self.dim, self.array.shape, self.array.tobytes(), self.buffer


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that lie in the same dimensions of the same tensors.

    Channel i is `indices[i]` of every member; it can only be removed from all of them at once. Two channels of one
    layer are in different groups if different tensors follow, as behind a concatenation.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hidden = next(group for group in tk.structure.channel_groups(model, torch.randn(2, 4)) if group.prunable)
        >>> hidden.name, hidden.size
        ('0', 8)
        >>> [(member.name, member.dim) for member in hidden.parameters]
        [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
        >>> [member.name for member in hidden.within([("2.weight", 1)])]
        ['2.weight']
    """

    name: str
    """Name of the first layer that makes the channels; of one that reads them, "(inputs)" added, if none does."""
    members: tuple[Member, ...]
    """All tensors that the channels are in: parameters and buffers."""
    size: int
    """Number of channels."""
    reason: str = ""
    """Why its channels cannot be removed; empty if they can."""
    residual: bool = False
    """Whether they are sums of what several layers make: a residual stream."""

    @property
    def prunable(self) -> bool:
        return not self.reason

    @property
    def parameters(self) -> tuple[Member, ...]:
        """The members that are of parameters."""
        return tuple(member for member in self.members if not member.buffer)

    def within(self, places: Collection[tuple[str, int]]) -> list[Member]:
        """Its parameters' members in some places, (name, dimension): where layers make the channels, or read them."""
        return [member for member in self.parameters if (member.name, member.dim) in places]

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
    guessed: bool = False
    """Whether that the attribute counts them is known only from its number."""


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
    """All groups of a model, and the attributes of modules that follow.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = tk.structure.tried_structure(model, torch.randn(2, 4))
        >>> structure.free
        8
        >>> free = next(i for i, group in enumerate(structure.groups) if group.prunable)
        >>> structure.staying({free: "I need them all"}).free
        0
    """

    groups: tuple[ChannelGroup, ...]
    counted: tuple[Counted, ...]
    """Attributes of modules that count channels."""
    cuts: tuple[Cut, ...] = ()
    """Dimensions that are cut into several, such as attention heads."""
    written: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Name of a module -> positions of the groups whose width its code may have as a number."""
    roles: Roles = field(default_factory=Roles)
    """Where layers make channels, and where they read them, by what the model does with its parameters."""

    @property
    def free(self) -> int:
        """Channels that can be removed."""
        return sum(group.size for group in self.groups if group.prunable)

    def staying(self, why: dict[int, str]) -> Structure:
        """The same with some groups (by position) that stay.

        Args:
            why: position of a group -> the reason.
        """
        groups = [replace(group, reason=why.get(i, group.reason)) for i, group in enumerate(self.groups)]
        return replace(self, groups=tuple(groups))


def structure_of(
    twin: nn.Module, arguments: Arguments, choices: Mapping[Site, int], spared: frozenset[str] = frozenset()
) -> Structure:
    """The groups that following a copy of a model gives, not yet tried out: see `follow`."""
    found = follow(twin, arguments, choices, spared)
    parts = roles(found.model, found.factors)
    buffers = {name for name, _ in found.model.named_buffers()}
    made: list[ChannelGroup] = []
    channel_of: dict[int, tuple[int, int]] = {}
    sums = set(found.labels.find(np.concatenate(found.sums)).tolist()) if found.sums else set()
    for alike in _alike(found):
        reason = found.labels.reason(alike.roots[0])
        if reason == NO_CHANNEL or all(name in buffers for name, _ in alike.places):
            continue
        channel_of |= {root: (len(made), channel) for channel, root in enumerate(alike.roots)}
        made.append(_group(alike, reason or "", buffers, parts, residual=alike.roots[0] in sums))
    written = {module: _groups_of(found, channel_of, several) for module, several in found.written.items()}
    cuts = tuple(
        Cut(site, options, _groups_of(found, channel_of, [ids])) for site, (ids, options) in found.cuts.items()
    )
    return Structure(tuple(made), _counted(found, channel_of), cuts, written, parts)


def _groups_of(found: Trace, channel_of: Mapping[int, tuple[int, int]], several: list[Ids]) -> frozenset[int]:
    roots = np.unique(found.labels.find(np.concatenate(several))).tolist()
    return frozenset(channel_of[root][0] for root in roots if root in channel_of)


def _counted(found: Trace, channel_of: Mapping[int, tuple[int, int]]) -> tuple[Counted, ...]:
    """Attributes that are known to count channels, and those that may: that only ever stand for the same ones."""
    guesses: dict[tuple[str, str], Ids] = {}
    for key, several in found.numbers.items():
        roots = [found.labels.find(ids) for ids in several]
        ours = [each for each in roots if any(root in channel_of for root in each.tolist())]
        if ours and key not in found.attributes and all(np.array_equal(each, ours[0]) for each in ours):
            guesses[key] = ours[0]
    return tuple(
        Counted(*key, tuple(channel_of.get(root) for root in found.labels.find(ids).tolist()), key in guesses)
        for key, ids in (*found.attributes.items(), *guesses.items())
    )


@dataclass(frozen=True)
class _Alike:
    """Channels that lie in the same dimensions of the same tensors, in each as often as one another."""

    roots: list[int]
    """The root of each channel's labels, in the model's order."""
    places: dict[tuple[str, int], Ids]
    """(name, dimension), in the model's order -> indices [channels, indices]"""


def _alike(found: Trace) -> list[_Alike]:
    """All channels, by where they lie and by why they stay."""
    keys = list(found.tensors)
    sizes = [len(ids) for ids in found.tensors.values()]
    if not keys:
        return []
    roots = np.concatenate([found.labels.find(ids) for ids in found.tensors.values()])
    tensor, index = np.repeat(np.arange(len(keys)), sizes), np.concatenate([np.arange(size) for size in sizes])
    order = np.argsort(roots, kind="stable")  # of each channel its indices, tensor by tensor
    first = np.flatnonzero(np.diff(roots[order], prepend=-1))
    last = np.append(first[1:], len(order))
    classes: dict[tuple[bytes, str | None], list[int]] = {}
    for run in np.argsort(order[first]).tolist():  # by where each channel is met first
        reason = found.labels.reason(int(roots[order[first[run]]]))
        classes.setdefault((tensor[order[first[run] : last[run]]].tobytes(), reason), []).append(run)
    alike = []
    for runs in classes.values():
        parts = np.stack([order[first[run] : last[run]] for run in runs])
        where = tensor[parts[0]]
        places = {keys[key]: index[parts[:, where == key]] for key in dict.fromkeys(where.tolist())}
        alike.append(_Alike(roots[parts[:, 0]].tolist(), places))
    return alike


def _group(alike: _Alike, reason: str, buffers: set[str], parts: Roles, *, residual: bool) -> ChannelGroup:
    members = tuple(Member(name, dim, indices, name in buffers) for (name, dim), indices in alike.places.items())
    if not reason and len(alike.roots) == 1:
        reason = "its channels can only go all together"
    parameters = [member for member in members if not member.buffer]
    makers = [member for member in parameters if (member.name, member.dim) in parts.outputs or member.dim == 0]
    name = (makers or parameters)[0].name
    name = name.rpartition(".")[0] or name
    return ChannelGroup(name if makers else f"{name} (inputs)", members, len(alike.roots), reason, residual)
