"""Which channels are removed: orders by score, masks at a density, and a path of masks with falling cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score import Score, ScoreInputs
from ticketry.core.score.measurement import temporarily_pruned
from ticketry.core.structure.channel_scores import channel_scores, sum_over_channels
from ticketry.core.structure.coupling import ChannelGroup, Structure
from ticketry.core.structure.layout import Roles
from ticketry.core.structure.plans import Flags, channel_mask, dead_channels, dead_indices, shapes_of
from ticketry.errors import LayerCollapseError, MaskError, StructureError, UsageError

Step = tuple[int, int]
"""(position in the list of groups, channel)"""


def check_counts(keep_at_least: int, multiple: int) -> None:
    """Raise `UsageError` for numbers of channels below 1."""
    for what, count in (("keep_at_least", keep_at_least), ("multiple", multiple)):
        if count < 1:
            raise UsageError(f"{what} is 1 or more channels, not {count}")


class Count:
    """Removed channels of some groups and the number and cost of the remaining weights, updated channel by channel.

    A tensor retains the product over its dimensions of the remaining indices.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        shapes: Mapping[str, tuple[int, ...]],
        prices: Mapping[str, float] | None = None,
    ) -> None:
        """Start with all channels; `prices` maps tensor names to the cost of one weight, for `cost`."""
        self.groups = groups
        self.removed: list[Flags] = [np.zeros(group.size, dtype=bool) for group in groups]
        self._left = {name: list(shape) for name, shape in shapes.items()}
        self.total = sum(prod(shape) for shape in shapes.values())
        self.kept = self.total
        self._prices = prices or {}
        self.cost = sum(self._prices.get(name, 0.0) * prod(shape) for name, shape in shapes.items())

    def remove(self, group: int, channel: int) -> None:
        self.removed[group][channel] = True
        self._change(group, channel, -1)

    def put_back(self, group: int, channel: int) -> None:
        self.removed[group][channel] = False
        self._change(group, channel, 1)

    def remaining(self, group: int) -> int:
        """Return the number of remaining channels of a group."""
        return int((~self.removed[group]).sum())

    @property
    def largest(self) -> str:
        """The tensor with most remaining weights."""
        return max(self._left, key=lambda name: prod(self._left[name]))

    def _change(self, group: int, channel: int, sign: int) -> None:
        for member in self.groups[group].parameters:
            left = self._left[member.name]
            before = prod(left)
            left[member.dim] += sign * len(member.indices[channel])
            change = prod(left) - before
            self.kept += change
            self.cost += change * self._prices.get(member.name, 0.0)


def global_order(count: Count, scores: Sequence[Tensor], keep_at_least: int) -> list[Step]:
    """Return the remaining channels one by one, the worst first; ties by position, the later first."""
    ranked = sorted(
        (float(value), -g, -c)
        for g, values in enumerate(scores)
        for c, value in enumerate(values.tolist())
        if not count.removed[g][c]
    )
    left = [count.remaining(g) for g in range(len(count.groups))]
    steps = []
    for _, g, c in ranked:
        if left[-g] > keep_at_least:
            left[-g] -= 1
            steps.append((-g, -c))
    return steps


def uniform_order(count: Count, scores: Sequence[Tensor], keep_at_least: int) -> list[Step]:
    """Return each group's worst channel in turn, so that all groups have about the same share left."""
    ranked = []
    for g, (group, values) in enumerate(zip(count.groups, scores, strict=True)):
        gone = group.size - count.remaining(g)
        left = [c for c in range(group.size) if not count.removed[g][c]]
        worst_first = sorted(left, key=lambda c: (float(values[c]), -c))
        for rank, channel in enumerate(worst_first[: max(len(left) - keep_at_least, 0)], start=gone + 1):
            ranked.append((rank / group.size, g, channel))
    return [(g, channel) for _, g, channel in sorted(ranked)]


DISTRIBUTIONS = {"global": global_order, "uniform": uniform_order}


@dataclass(frozen=True)
class ChannelOrder:
    """The order in which scored channels are removed, and how many stay for any scores.

    Raises:
        UsageError: for an unknown distribution, or numbers below 1.
    """

    distribution: str
    keep_at_least: int
    """Channels of each group that stay."""
    multiple: int
    """Channels are removed in blocks that leave a group a multiple of this number."""

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise UsageError(f"channels are distributed {' or '.join(DISTRIBUTIONS)}, not {self.distribution!r}")
        check_counts(self.keep_at_least, self.multiple)

    @property
    def limits(self) -> str:
        """Description of the channels of a group that stay."""
        least = -(-self.keep_at_least // self.multiple) * self.multiple
        return f"{least}{f' (the least multiple of {self.multiple})' if self.multiple > 1 else ''}"

    def blocks(self, count: Count, scores: Sequence[Tensor]) -> list[list[Step]]:
        """Return blocks of remaining channels that may be removed, the worst first."""
        steps = DISTRIBUTIONS[self.distribution](count, scores, self.keep_at_least)
        return in_blocks(count, steps, self.multiple)


def in_blocks(count: Count, steps: Sequence[Step], multiple: int) -> list[list[Step]]:
    """Return an order of channels as blocks, each of which leaves its group a multiple of channels.

    A block has a group's next channels in the order, and their mean position. A group whose size is not a multiple
    starts with a smaller block. Channels outside of complete blocks stay.
    """
    waiting: dict[int, list[tuple[int, int]]] = {}
    left = [count.remaining(g) for g in range(len(count.groups))]
    blocks: list[tuple[float, list[Step]]] = []
    for place, (g, channel) in enumerate(steps):
        block = waiting.setdefault(g, [])
        block.append((place, channel))
        if left[g] - len(block) and (left[g] - len(block)) % multiple == 0:
            blocks.append((sum(at for at, _ in block) / len(block), [(g, c) for _, c in block]))
            left[g] -= len(block)
            del waiting[g]
    return [block for _, block in sorted(blocks)]


def remove(count: Count, blocks: Sequence[Sequence[Step]], density: float, limits: str) -> list[Flags]:
    """Follow an order to the nearest density and return the removed channels of each group.

    Args:
        count: of the remaining weights; it is changed.
        blocks: the order.
        density: the target.
        limits: description of the channels that stay, for the error.

    Raises:
        LayerCollapseError: if the order ends above the density.
    """
    target = density * count.total
    for block in blocks:
        before = count.kept
        if before <= target:
            return count.removed
        for step in block:
            count.remove(*step)
        if target - count.kept > before - target:  # nearer with these channels
            for step in block:
                count.put_back(*step)
            return count.removed
    if count.kept > target:
        raise LayerCollapseError(
            f"density {density:g} cannot be reached by removing channels: with {limits} left in each of"
            f" {len(count.groups)} groups {count.kept / count.total:.4g} of the weights remain ({count.kept:,} of"
            f" {count.total:,}, most of them in {count.largest})",
            "choose a higher density, keep fewer channels in each (keep_at_least), or spare layers",
        )
    return count.removed


class Choice:
    """The channels of a model that may be removed in a scope."""

    def __init__(self, model: nn.Module, structure: Structure, scope: Scope) -> None:
        if not isinstance(structure, Structure):
            raise UsageError(
                "example_inputs= is a tensor, a tuple or a dictionary, or a function that gives a Structure, not one"
                f" that gives a {type(structure).__name__}"
            )
        self.model, self.structure, self.scope, self.roles = model, structure, scope, structure.roles
        self.positions = removable_group_positions(structure, scope)
        self.groups = [structure.groups[position] for position in self.positions]
        self.shapes = shapes_of(model)
        self.held = held_names(self.groups, self.shapes, scope)

    def scores(self, mask: Mask | None, inputs: ScoreInputs, *, score: str | Score, reduce: str) -> list[Tensor]:
        """Return the scores of each group's channels, in the network that a mask leaves."""
        with temporarily_pruned(mask, mask.parameters(self.model) if mask is not None else {}):
            found = channel_scores(self.model, self.groups, self.scope, self.roles, inputs, score=score, reduce=reduce)
        self.check_numbers(found)
        return found

    def sums(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the sum of each channel's scores of weights for each group, float64 [channels]."""
        return [
            sum_over_channels(values, [one for one in group.parameters if one.name in values])
            .double()
            .expand(group.size)
            for group in self.groups
        ]

    def check_numbers(self, scores: Sequence[Tensor]) -> None:
        """Raise `MaskError` for scores that are NaN."""
        for group, values in zip(self.groups, scores, strict=True):
            if bool(torch.isnan(values).any()):
                raise MaskError(f"the scores of the channels of {group.name} are not all numbers (NaN)")

    def check_reachable(self, within: Mask | None, density: float, order: ChannelOrder) -> None:
        """Raise `LayerCollapseError` if a density cannot be reached for any scores."""
        # With the largest channels removed first, those that must stay are as small as possible.
        sizes = [
            -torch.tensor([sum(len(member.indices[c]) for member in group.parameters) for c in range(group.size)])
            for group in self.groups
        ]
        self.cut(sizes, within, density, order)

    def cut(self, scores: list[Tensor], within: Mask | None, density: float, order: ChannelOrder) -> Mask:
        """Return the mask at a density, from `within`."""
        count = Count(self.groups, {name: self.shapes[name] for name in self.held})
        if within is not None:
            for g, channel in self.removed_channels(within):
                count.remove(g, channel)
        return self.mask(remove(count, order.blocks(count, scores), density, order.limits))

    def removed_channels(self, mask: Mask) -> list[Step]:
        """Return the channels that a mask removes."""
        dead = dead_indices(mask)
        return [(g, int(c)) for g, group in enumerate(self.groups) for c in np.flatnonzero(dead_channels(group, dead))]

    def mask(self, removed: list[Flags]) -> Mask:
        return channel_mask(self.held, self.structure, self.shapes, dict(zip(self.positions, removed, strict=True)))

    def check_mask_covers_tensors(self, mask: Mask) -> None:
        """Raise `MaskError` unless a mask removes whole channels of these groups only."""
        flags = [np.zeros(group.size, dtype=bool) for group in self.groups]
        if set(mask) == set(self.held):
            for g, channel in self.removed_channels(mask):
                flags[g][channel] = True
        if set(mask) != set(self.held) or self.mask(flags) != Mask({name: mask[name] for name in self.held}):
            raise MaskError(
                "the mask to go on from is not of whole channels of this model in this scope: make it with"
                " structure.channels and the same scope"
            )


def held_names(groups: Iterable[ChannelGroup], shapes: Mapping[str, tuple[int, ...]], scope: Scope) -> list[str]:
    """Return the tensors of a mask of these channels: those in scope, and others with these channels."""
    shared = {member.name for group in groups for member in group.parameters}
    return [name for name in shapes if name in scope or name in shared]


def removable_group_positions(structure: Structure, scope: Scope) -> list[int]:
    """Return the positions of the groups that may lose channels: prunable, and produced by weights in scope.

    Raises:
        StructureError: if no group may lose channels, with the reasons.
    """
    reasons = [group.reason or out_of_scope(group, structure.roles, scope) for group in structure.groups]
    found = [position for position, reason in enumerate(reasons) if not reason]
    if not found:
        shown = [f"{group.name}: {why}" for group, why in zip(structure.groups, reasons, strict=True)][:6]
        raise StructureError(f"there are no channels that can be removed; {'; '.join(shown) or 'no layer has any'}")
    return found


def out_of_scope(group: ChannelGroup, parts: Roles, scope: Scope) -> str:
    """Return why a group's channels stay in a scope, with the parameter's name; empty if they may be removed."""
    makers = list(dict.fromkeys(member.name for member in group.within(parts.outputs)))
    if not makers:
        return "no weight of a layer makes them"
    outside = [name for name in makers if name not in scope]
    if not outside:
        return ""
    return (
        f"it is out of scope, made by {', '.join(outside)}: to remove it, give scope=tk.scope(model, include={outside})"
    )


_LEAST_SHARE = 1e-12
"""Lower bound of a group's share of importance in the logarithm, and of a channel's share of all costs."""


@dataclass(frozen=True)
class ChannelOptions:
    """How whole channels are chosen under a budget."""

    order: ChannelOrder
    spare: tuple[str, ...] = ()
    known: Callable[[], Structure] | None = None
    """Returns the model's structure, if known."""
    scores: Callable[[Choice], list[Tensor]] | None = None
    """Returns the importance of each channel; by default the sum of that of its weights."""


class ChannelPath:
    """Masks of whole channels, from all channels to as few as may stay, each with its cost.

    A group whose importance sums to S and that retains s has the value S log(s / S), as layers in
    `budgets.layer_choice`: the emptier a group, the more expensive its next channel. Channels are removed in the order
    of value per cost saved.
    """

    def __init__(
        self,
        choice: Choice,
        scores: Sequence[Tensor],
        prices: Mapping[str, float],
        order: ChannelOrder,
        within: Mask | None = None,
    ) -> None:
        """Order the channels.

        Args:
            choice: the channels that may go.
            scores: importance of each channel of each group, none below 0.
            prices: parameter name -> cost of one of its weights; parameters without a price cost nothing.
            order: how many channels of each group stay, and in which multiples.
            within: a mask of whole channels to continue from.
        """
        choice.check_numbers(scores)
        self._choice, self._order = choice, order
        shapes = {name: choice.shapes[name] for name in choice.held}
        self._prices = {name: float(prices.get(name, 0.0)) for name in shapes}
        self.dense = Count(choice.groups, shapes, self._prices).cost
        """Cost of all channels."""
        self._start = choice.removed_channels(within) if within is not None else []
        count = self._count()
        self._blocks = in_blocks(count, self._steps(count, scores), order.multiple)
        self.costs = [count.cost]
        """Cost after each step, falling; the first is that of all candidates."""
        for block in self._blocks:
            for step in block:
                count.remove(*step)
            self.costs.append(count.cost)
        self._rising = [-cost for cost in self.costs]

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def floor(self) -> float:
        """Cost of the sparsest mask."""
        return self.costs[-1]

    def mask(self, step: int) -> Mask:
        """Return the mask after a number of steps."""
        count = self._count()
        for block in self._blocks[:step]:
            for one in block:
                count.remove(*one)
        return self._choice.mask(count.removed)

    def step_within(self, cost: float) -> int:
        """Return the first step whose cost is at most `cost`.

        Raises:
            LayerCollapseError: if the sparsest mask costs more.
        """
        step = bisect_left(self._rising, -cost * (1 + 1e-12))
        if step == len(self.costs):
            raise LayerCollapseError(
                f"with {self._order.limits} channels left in each of {len(self._choice.groups)} groups"
                f" {self.floor / self.dense:.4g} of the cost remains, and {cost / self.dense:.4g} is the budget",
                "ask for more, keep fewer channels in each (keep_at_least), or spare layers",
            )
        return step

    def _count(self) -> Count:
        shapes = {name: self._choice.shapes[name] for name in self._choice.held}
        count = Count(self._choice.groups, shapes, self._prices)
        for step in self._start:
            count.remove(*step)
        return count

    def _steps(self, count: Count, scores: Sequence[Tensor]) -> list[Step]:
        """Return single channels by falling value per cost, the worst first; ties by position, the later first."""
        ranked: list[tuple[float, int, int]] = []
        for g, (group, values) in enumerate(zip(count.groups, scores, strict=True)):
            worth = np.maximum(values.detach().cpu().double().numpy(), 0.0)
            there = [c for c in range(group.size) if not count.removed[g][c]]
            worst_first = sorted(there, key=lambda c: (worth[c], -c))
            whole = float(worth[there].sum())
            left = whole - np.cumsum(worth[worst_first])
            logs = np.log(np.maximum(np.concatenate([[whole], left]) / whole, _LEAST_SHARE)) if whole > 0 else None
            losses = whole * -np.diff(logs) if logs is not None else np.zeros(len(worst_first))
            rates = accumulate((loss / self._price(group, c) for loss, c in zip(losses, worst_first, strict=True)), max)
            may_go = max(len(there) - self._order.keep_at_least, 0)
            ranked += [(rate, -g, -c) for rate, c in list(zip(rates, worst_first, strict=True))[:may_go]]
        return [(-g, -c) for _, g, c in _in_order(ranked)]

    def _price(self, group: ChannelGroup, channel: int) -> float:
        """Return the cost saved by removing one channel of the whole network."""
        saved = 0.0
        for member in group.parameters:
            shape = self._choice.shapes[member.name]
            each = prod(shape) / max(shape[member.dim], 1)
            saved += self._prices.get(member.name, 0.0) * each * len(member.indices[channel])
        return max(saved, _LEAST_SHARE * max(self.dense, _LEAST_SHARE))


def _in_order(ranked: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Sort by rate; stable, so that channels of a group with equal rates stay in order."""
    return sorted(ranked, key=lambda one: (one[0], one[1]))
