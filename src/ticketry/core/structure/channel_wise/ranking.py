"""Which channels go, once each has a score: an order of all of them, followed as far as a density asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor

from ticketry.core.structure.dependencies.channel_groups import ChannelGroup
from ticketry.core.structure.shrinking.selection import Flags
from ticketry.errors import LayerCollapseError, UsageError

Step = tuple[int, int]
"""(position in the list of groups, channel)"""


def check_counts(keep_at_least: int, multiple: int) -> None:
    """Raises `UsageError` unless both are numbers of channels."""
    for what, count in (("keep_at_least", keep_at_least), ("multiple", multiple)):
        if count < 1:
            raise UsageError(f"{what} is 1 or more channels, not {count}")


class Count:
    """Which channels of some groups are gone, and how many weights remain, kept up to date channel by channel.

    A tensor keeps the product over its dimensions of the indices that are left.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        shapes: Mapping[str, tuple[int, ...]],
        prices: Mapping[str, float] | None = None,
    ) -> None:
        """Count from all channels; `cost` is of what is kept, by `prices` (tensor name -> cost of one weight)."""
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

    def left(self, group: int) -> int:
        """Channels of a group that are not gone."""
        return int((~self.removed[group]).sum())

    @property
    def largest(self) -> str:
        """The tensor that keeps most weights."""
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
    """Channels that are left one by one, the worst first; ties by position, the later first."""
    ranked = sorted(
        (float(value), -g, -c)
        for g, values in enumerate(scores)
        for c, value in enumerate(values.tolist())
        if not count.removed[g][c]
    )
    left = [count.left(g) for g in range(len(count.groups))]
    steps = []
    for _, g, c in ranked:
        if left[-g] > keep_at_least:
            left[-g] -= 1
            steps.append((-g, -c))
    return steps


def uniform_order(count: Count, scores: Sequence[Tensor], keep_at_least: int) -> list[Step]:
    """Each group's worst channel at a time, so that all are at about the same share of their channels."""
    ranked = []
    for g, (group, values) in enumerate(zip(count.groups, scores, strict=True)):
        gone = group.size - count.left(g)
        left = [c for c in range(group.size) if not count.removed[g][c]]
        worst_first = sorted(left, key=lambda c: (float(values[c]), -c))
        for rank, channel in enumerate(worst_first[: max(len(left) - keep_at_least, 0)], start=gone + 1):
            ranked.append((rank / group.size, g, channel))
    return [(g, channel) for _, g, channel in sorted(ranked)]


DISTRIBUTIONS = {"global": global_order, "uniform": uniform_order}


@dataclass(frozen=True)
class ChannelOrder:
    """In which order channels go once they have scores, and how many stay whatever these are.

    Raises:
        UsageError: for an unknown distribution, or numbers below 1.
    """

    distribution: str
    keep_at_least: int
    """Channels of each group."""
    multiple: int
    """Channels go in blocks, after each of which a group has a multiple of this number."""

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise UsageError(f"channels are distributed {' or '.join(DISTRIBUTIONS)}, not {self.distribution!r}")
        check_counts(self.keep_at_least, self.multiple)

    @property
    def limits(self) -> str:
        """By what channels of a group stay."""
        least = -(-self.keep_at_least // self.multiple) * self.multiple
        return f"{least}{f' (the least multiple of {self.multiple})' if self.multiple > 1 else ''}"

    def blocks(self, count: Count, scores: Sequence[Tensor]) -> list[list[Step]]:
        """All that may go of what `count` has left, the worst first."""
        steps = DISTRIBUTIONS[self.distribution](count, scores, self.keep_at_least)
        return in_blocks(count, steps, self.multiple)


def in_blocks(count: Count, steps: Sequence[Step], multiple: int) -> list[list[Step]]:
    """An order of channels as one of blocks, after each of which its group has a multiple of channels left.

    A block has a group's next channels of the order, and the place that is the mean of theirs; a group whose number is
    no multiple begins with a smaller block. Channels that no block can have stay.
    """
    waiting: dict[int, list[tuple[int, int]]] = {}
    left = [count.left(g) for g in range(len(count.groups))]
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
    """Follow the order to the point whose density is nearest to the one wanted; for each group the channels gone.

    Args:
        limits: by what channels stay, for the error.

    Raises:
        LayerCollapseError: if it ends before.
    """
    target = density * count.total
    for block in blocks:
        before = count.kept
        if before <= target:
            return count.removed
        for step in block:
            count.remove(*step)
        if target - count.kept > before - target:  # it was nearer without these channels
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
