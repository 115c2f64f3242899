"""Choose which channels to remove: rankings by score, masks at a density, and sequences of masks with falling cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
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
from ticketry.core.structure import plans
from ticketry.core.structure.channel_scores import channel_scores, sum_over_channels
from ticketry.core.structure.coupling import ChannelGroup, Structure
from ticketry.core.structure.layout import Roles
from ticketry.core.structure.plans import Flags
from ticketry.errors import LayerCollapseError, MaskError, StructureError, UsageError

Channel = tuple[int, int]
"""(index of the group in a list of groups, index of the channel in the group)"""


def check_channel_limits(keep_at_least: int, multiple: int) -> None:
    """Raise `UsageError` if `keep_at_least` or `multiple` is below 1."""
    for what, count in (("keep_at_least", keep_at_least), ("multiple", multiple)):
        if count < 1:
            raise UsageError(f"{what} is 1 or more channels, not {count}")


class RemainingWeights:
    """Counts the remaining weights, and their cost, while channels are removed and restored one by one."""

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        shapes: Mapping[str, tuple[int, ...]],
        prices: Mapping[str, float] | None = None,
    ) -> None:
        """Start to count the weights of tensors with these `shapes`, with no channel removed.

        `prices` maps a tensor's name to the cost of each of its weights, by default 0.
        """
        self.groups = groups
        self.removed: list[Flags] = [np.zeros(group.size, dtype=bool) for group in groups]
        self._left = {name: list(shape) for name, shape in shapes.items()}
        self.total = sum(prod(shape) for shape in shapes.values())
        self.kept = self.total
        self._prices = prices or {}
        self.cost = sum(self._prices.get(name, 0.0) * prod(shape) for name, shape in shapes.items())

    def remove(self, group: int, channel: int, *, undo: bool = False) -> None:
        """Remove a channel or, with `undo`, restore it."""
        self.removed[group][channel] = not undo
        for member in self.groups[group].parameters:
            left = self._left[member.name]
            before = prod(left)
            left[member.dim] += len(member.indices[channel]) * (1 if undo else -1)
            change = prod(left) - before
            self.kept += change
            self.cost += change * self._prices.get(member.name, 0.0)

    def count_remaining(self, group: int) -> int:
        """Return the number of remaining channels of a group."""
        return int((~self.removed[group]).sum())

    @property
    def largest_tensor(self) -> str:
        """Name of the tensor with the most remaining weights."""
        return max(self._left, key=lambda name: prod(self._left[name]))


def rank_channels_globally(count: RemainingWeights, scores: Sequence[Tensor], keep_at_least: int) -> list[Channel]:
    """Return the channels of all groups that may still be removed, in the order of their scores, lowest first.

    Of equal scores, the later channel comes first. Each group retains `keep_at_least` channels. `count` knows which
    channels have been removed already.
    """
    ranked = sorted(
        (float(value), -g, -c)
        for g, values in enumerate(scores)
        for c, value in enumerate(values.tolist())
        if not count.removed[g][c]
    )
    left = [count.count_remaining(g) for g in range(len(count.groups))]
    steps = []
    for _, g, c in ranked:
        if left[-g] > keep_at_least:
            left[-g] -= 1
            steps.append((-g, -c))
    return steps


def rank_channels_uniformly(count: RemainingWeights, scores: Sequence[Tensor], keep_at_least: int) -> list[Channel]:
    """Return the channels that may still be removed, in an order by which groups lose about equal shares of channels.

    Within each group, channels are ordered by score, lowest first. Each group retains `keep_at_least` channels. `count`
    knows which channels have been removed already.
    """
    ranked = []
    for g, (group, values) in enumerate(zip(count.groups, scores, strict=True)):
        gone = group.size - count.count_remaining(g)
        left = [c for c in range(group.size) if not count.removed[g][c]]
        worst_first = sorted(left, key=lambda c: (float(values[c]), -c))
        for rank, channel in enumerate(worst_first[: max(len(left) - keep_at_least, 0)], start=gone + 1):
            ranked.append((rank / group.size, g, channel))
    return [(g, channel) for _, g, channel in sorted(ranked)]


DISTRIBUTIONS = {"global": rank_channels_globally, "uniform": rank_channels_uniformly}


@dataclass(frozen=True)
class ChannelOrder:
    """Settings for the order in which channels are removed, and for the number that each group retains."""

    distribution: str
    """``global`` (one ranking of all channels) or ``uniform`` (groups retain equal fractions)."""
    keep_at_least: int
    """Smallest number of channels that each group retains."""
    multiple: int
    """Channels are removed in blocks, so that a group that loses channels retains a multiple of this number."""

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise UsageError(f"channels are distributed {' or '.join(DISTRIBUTIONS)}, not {self.distribution!r}")
        check_channel_limits(self.keep_at_least, self.multiple)

    @property
    def minimum_description(self) -> str:
        """Text for error messages that says how many channels each group must retain."""
        least = -(-self.keep_at_least // self.multiple) * self.multiple
        return f"{least}{f' (the least multiple of {self.multiple})' if self.multiple > 1 else ''}"


def split_into_blocks(count: RemainingWeights, steps: Sequence[Channel], multiple: int) -> list[list[Channel]]:
    """Divide `steps`, the channels in order of removal, into blocks of `multiple` channels of one group.

    The first block of a group is smaller if the group's size is not a multiple of `multiple`. Blocks are sorted by the
    mean position of their channels in `steps`. Channels that do not fill a block are left out, and are not removed.
    """
    waiting: dict[int, list[tuple[int, int]]] = {}
    left = [count.count_remaining(g) for g in range(len(count.groups))]
    blocks: list[tuple[float, list[Channel]]] = []
    for place, (g, channel) in enumerate(steps):
        block = waiting.setdefault(g, [])
        block.append((place, channel))
        if left[g] - len(block) and (left[g] - len(block)) % multiple == 0:
            blocks.append((sum(at for at, _ in block) / len(block), [(g, c) for _, c in block]))
            left[g] -= len(block)
            del waiting[g]
    return [block for _, block in sorted(blocks)]


def remove_to_density(
    count: RemainingWeights, blocks: Sequence[Sequence[Channel]], density: float, limits: str
) -> list[Flags]:
    """Remove blocks in order until the density is nearest to `density`; return flags of each group's removed channels.

    `limits` is text for the error message that says how many channels each group retains.
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
                count.remove(*step, undo=True)
            return count.removed
    if count.kept > target:
        raise LayerCollapseError(
            f"density {density:g} cannot be reached by removing channels: with {limits} left in each of"
            f" {len(count.groups)} groups {count.kept / count.total:.4g} of the weights remain ({count.kept:,} of"
            f" {count.total:,}, most of them in {count.largest_tensor})",
            "choose a higher density, keep fewer channels in each (keep_at_least), or spare layers",
        )
    return count.removed


class ChannelChoice:
    """Scores the removable channels of a model, and builds masks that remove some of them."""

    def __init__(self, model: nn.Module, structure: Structure, scope: Scope) -> None:
        if not isinstance(structure, Structure):
            raise UsageError(
                "example_inputs= is a tensor, a tuple or a dictionary, or a function that gives a Structure, not one"
                f" that gives a {type(structure).__name__}"
            )
        self.model, self.structure, self.scope, self.roles = model, structure, scope, structure.roles
        self.positions = removable_group_positions(structure, scope)
        self.groups = [structure.groups[position] for position in self.positions]
        self.shapes = plans.named_shapes(model)
        shared = {member.name for group in self.groups for member in group.parameters}
        self.masked_names = [name for name in self.shapes if name in scope or name in shared]
        """Names of the tensors in a mask: all parameters in `scope`, and all that lose weights with a channel."""

    def score_channels(
        self, mask: Mask | None, inputs: ScoreInputs, *, score: str | Score, reduce: str
    ) -> list[Tensor]:
        """Return, for each group, the scores of its channels in the network pruned by `mask` (None: unpruned).

        `reduce` says whether the score of a channel is the ``mean`` or the ``sum`` over its weights.
        """
        with temporarily_pruned(mask, mask.parameters(self.model) if mask is not None else {}):
            found = channel_scores(self.model, self.groups, self.scope, self.roles, inputs, score=score, reduce=reduce)
        self.check_no_nan(found)
        return found

    def sum_weight_scores(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Return, for each group, the sum of the weight scores `values` in each channel: float64 [channels]."""
        return [
            sum_over_channels(values, [one for one in group.parameters if one.name in values])
            .double()
            .expand(group.size)
            for group in self.groups
        ]

    def check_no_nan(self, scores: Sequence[Tensor]) -> None:
        """Raise `MaskError` if any score of a channel is NaN."""
        for group, values in zip(self.groups, scores, strict=True):
            if bool(torch.isnan(values).any()):
                raise MaskError(f"the scores of the channels of {group.name} are not all numbers (NaN)")

    def check_reachable(self, within: Mask | None, density: float, order: ChannelOrder) -> None:
        """Raise `LayerCollapseError` if no choice of channels, starting from the mask `within`, can reach `density`."""
        # If the largest channels are removed first, the channels that must stay are as small as possible.
        sizes = [
            -torch.tensor([sum(len(member.indices[c]) for member in group.parameters) for c in range(group.size)])
            for group in self.groups
        ]
        self.prune_to_density(sizes, within, density, order)

    def prune_to_density(self, scores: list[Tensor], within: Mask | None, density: float, order: ChannelOrder) -> Mask:
        """Return the mask that removes channels in the order of their scores, lowest first, down to `density`.

        The mask also removes all channels that `within` removes. `order` says how groups share the removal.
        """
        count = RemainingWeights(self.groups, {name: self.shapes[name] for name in self.masked_names})
        if within is not None:
            for g, channel in self.removed_channels(within):
                count.remove(g, channel)
        steps = DISTRIBUTIONS[order.distribution](count, scores, order.keep_at_least)
        blocks = split_into_blocks(count, steps, order.multiple)
        return self.mask_without(remove_to_density(count, blocks, density, order.minimum_description))

    def removed_channels(self, mask: Mask) -> list[Channel]:
        """Return the channels that a mask removes as a whole."""
        removed_indices = plans.flag_removed_indices(mask)
        return [
            (g, int(c))
            for g, group in enumerate(self.groups)
            for c in np.flatnonzero(plans.flag_removed_channels(group, removed_indices))
        ]

    def mask_without(self, removed: list[Flags]) -> Mask:
        return plans.build_channel_mask(
            self.masked_names, self.structure, self.shapes, dict(zip(self.positions, removed, strict=True))
        )

    def check_whole_channel_mask(self, mask: Mask) -> None:
        """Raise `MaskError` unless a mask removes only whole channels, and only from groups that may be pruned."""
        flags = [np.zeros(group.size, dtype=bool) for group in self.groups]
        if set(mask) == set(self.masked_names):
            for g, channel in self.removed_channels(mask):
                flags[g][channel] = True
        if set(mask) != set(self.masked_names) or self.mask_without(flags) != Mask(
            {name: mask[name] for name in self.masked_names}
        ):
            raise MaskError(
                "the mask to go on from is not of whole channels of this model in this scope: make it with"
                " structure.channels and the same scope"
            )


def removable_group_positions(structure: Structure, scope: Scope) -> list[int]:
    """Return the indices of the prunable groups whose channels are computed by weights in scope."""
    reasons = [group.reason or explain_out_of_scope(group, structure.roles, scope) for group in structure.groups]
    found = [position for position, reason in enumerate(reasons) if not reason]
    if not found:
        shown = [f"{group.name}: {why}" for group, why in zip(structure.groups, reasons, strict=True)][:6]
        raise StructureError(f"there are no channels that can be removed; {'; '.join(shown) or 'no layer has any'}")
    return found


def explain_out_of_scope(group: ChannelGroup, parts: Roles, scope: Scope) -> str:
    """Return why the channels of a group cannot be removed in a scope; "" if they can.

    `parts` says which dimensions of weights compute channels and which read them.
    """
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
"""Lower bound of two fractions: a group's remaining importance (avoids log 0), and a channel's share of all costs."""


@dataclass(frozen=True)
class ChannelOptions:
    """Settings for the choice of whole channels under a budget."""

    order: ChannelOrder
    """How many channels each group retains, and in which multiples."""
    spare: tuple[str, ...] = ()
    """Names or patterns of modules that are not traced."""
    known: Callable[[], Structure] | None = None
    """Function that returns the model's channel structure."""
    scores: Callable[[ChannelChoice], list[Tensor]] | None = None
    """Function that returns the importance of each channel; by default the sum of the importance of its weights."""


class ChannelPath:
    """A sequence of masks of whole channels with falling cost, from all channels to as few as permitted.

    The value of a group is S log(s / S), where S is the importance of all its channels and s that of the retained
    channels. So the fewer channels a group has left, the more each is worth. Channels are
    removed in the order of value lost per cost saved, lowest first.
    """

    def __init__(
        self,
        choice: ChannelChoice,
        scores: Sequence[Tensor],
        prices: Mapping[str, float],
        order: ChannelOrder,
        within: Mask | None = None,
    ) -> None:
        """Order the channels by value lost per cost saved, continuing from the mask of whole channels `within`.

        `scores` has the importance of each channel, not negative, and `prices` the cost of each weight of a parameter.
        """
        choice.check_no_nan(scores)
        self._choice, self._order = choice, order
        shapes = {name: choice.shapes[name] for name in choice.masked_names}
        self._prices = {name: float(prices.get(name, 0.0)) for name in shapes}
        self.dense = RemainingWeights(choice.groups, shapes, self._prices).cost
        """Cost of the network with all channels."""
        self._start = choice.removed_channels(within) if within is not None else []
        count = self._count_starting_weights()
        self._blocks = split_into_blocks(count, self._rank_by_value_per_cost(count, scores), order.multiple)
        self.costs = [count.cost]
        """Costs after 0, 1, 2 … steps, falling; each step removes a block of channels."""
        for block in self._blocks:
            for step in block:
                count.remove(*step)
            self.costs.append(count.cost)
        self._rising = [-cost for cost in self.costs]

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def lowest_cost(self) -> float:
        """Cost of the sparsest mask, which is reached after all steps."""
        return self.costs[-1]

    def mask(self, step: int) -> Mask:
        """Return the mask after `step` steps, where each step removes a block of channels."""
        count = self._count_starting_weights()
        for block in self._blocks[:step]:
            for one in block:
                count.remove(*one)
        return self._choice.mask_without(count.removed)

    def first_step_within(self, cost: float) -> int:
        """Return the smallest number of steps after which the network costs at most `cost`."""
        step = bisect_left(self._rising, -cost * (1 + 1e-12))
        if step == len(self.costs):
            raise LayerCollapseError(
                f"with {self._order.minimum_description} channels left in each of {len(self._choice.groups)} groups"
                f" {self.lowest_cost / self.dense:.4g} of the cost remains, and {cost / self.dense:.4g} is the budget",
                "ask for more, keep fewer channels in each (keep_at_least), or spare layers",
            )
        return step

    def _count_starting_weights(self) -> RemainingWeights:
        shapes = {name: self._choice.shapes[name] for name in self._choice.masked_names}
        count = RemainingWeights(self._choice.groups, shapes, self._prices)
        for step in self._start:
            count.remove(*step)
        return count

    def _rank_by_value_per_cost(self, count: RemainingWeights, scores: Sequence[Tensor]) -> list[Channel]:
        """Return the channels in the order of value lost per cost saved, lowest first; of equal ones, later first."""
        ranked: list[tuple[float, int, int]] = []
        for g, (group, values) in enumerate(zip(count.groups, scores, strict=True)):
            worth = np.maximum(values.detach().cpu().double().numpy(), 0.0)
            there = [c for c in range(group.size) if not count.removed[g][c]]
            worst_first = sorted(there, key=lambda c: (worth[c], -c))
            whole = float(worth[there].sum())
            left = whole - np.cumsum(worth[worst_first])
            logs = np.log(np.maximum(np.concatenate([[whole], left]) / whole, _LEAST_SHARE)) if whole > 0 else None
            losses = whole * -np.diff(logs) if logs is not None else np.zeros(len(worst_first))
            rates = accumulate(
                (loss / self._compute_cost_saved(group, c) for loss, c in zip(losses, worst_first, strict=True)), max
            )
            may_go = max(len(there) - self._order.keep_at_least, 0)
            ranked += [(rate, -g, -c) for rate, c in list(zip(rates, worst_first, strict=True))[:may_go]]
        return [(-g, -c) for _, g, c in sorted(ranked, key=lambda one: one[:2])]

    def _compute_cost_saved(self, group: ChannelGroup, channel: int) -> float:
        """Return the cost saved by removing one channel from the unpruned network."""
        saved = 0.0
        for member in group.parameters:
            shape = self._choice.shapes[member.name]
            each = prod(shape) / max(shape[member.dim], 1)
            saved += self._prices.get(member.name, 0.0) * each * len(member.indices[channel])
        return max(saved, _LEAST_SHARE * max(self.dense, _LEAST_SHARE))
