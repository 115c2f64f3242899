"""Whole channels under a budget: one order of removal by importance per cost, and the cost after each step of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np
from torch import Tensor

from ticketry.core.mask import Mask
from ticketry.core.structure.channel_wise.choice import Choice
from ticketry.core.structure.channel_wise.ranking import ChannelOrder, Count, Step, in_blocks
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup, Structure
from ticketry.errors import LayerCollapseError

_FAINTEST = 1e-12
"""Share of a group's importance that still has a logarithm, and of all costs that still counts as one."""


@dataclass(frozen=True)
class ChannelOptions:
    """How whole channels are chosen under a budget."""

    order: ChannelOrder
    spare: tuple[str, ...] = ()
    known: Callable[[], Structure] | None = None
    """Returns the model's structure, where it is known."""
    scores: Callable[[Choice], list[Tensor]] | None = None
    """Returns the importance of each channel; by default the sum of that of its weights."""


class ChannelPath:
    """Masks of whole channels, from all channels to as few as may stay, each with its cost.

    A group of channels whose importance adds up to S and which retains s of it is worth S log(s / S), as layers are in
    `costs.mixed`: the emptier a group, the dearer its next channel. Channels go in the order of what they are worth per
    cost that their removal saves.
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
            within: a mask of whole channels to go on from.
        """
        choice.check_numbers(scores)
        self._choice, self._order = choice, order
        shapes = {name: choice.shapes[name] for name in choice.held}
        self._prices = {name: float(prices.get(name, 0.0)) for name in shapes}
        self.dense = Count(choice.groups, shapes, self._prices).cost
        """Cost of all channels."""
        self._start = choice.gone(within) if within is not None else []
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
        """Return the mask after so many steps."""
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
        """Single channels, the one that is worth least per cost first; ties by position, the later first."""
        ranked: list[tuple[float, int, int]] = []
        for g, (group, values) in enumerate(zip(count.groups, scores, strict=True)):
            worth = np.maximum(values.detach().cpu().double().numpy(), 0.0)
            there = [c for c in range(group.size) if not count.removed[g][c]]
            worst_first = sorted(there, key=lambda c: (worth[c], -c))
            whole = float(worth[there].sum())
            left = whole - np.cumsum(worth[worst_first])
            logs = np.log(np.maximum(np.concatenate([[whole], left]) / whole, _FAINTEST)) if whole > 0 else None
            losses = whole * -np.diff(logs) if logs is not None else np.zeros(len(worst_first))
            rates = accumulate((loss / self._price(group, c) for loss, c in zip(losses, worst_first, strict=True)), max)
            may_go = max(len(there) - self._order.keep_at_least, 0)
            ranked += [(rate, -g, -c) for rate, c in list(zip(rates, worst_first, strict=True))[:may_go]]
        return [(-g, -c) for _, g, c in _in_order(ranked)]

    def _price(self, group: ChannelGroup, channel: int) -> float:
        """Cost that goes with one channel of a network that has lost none."""
        saved = 0.0
        for member in group.parameters:
            shape = self._choice.shapes[member.name]
            each = prod(shape) / max(shape[member.dim], 1)
            saved += self._prices.get(member.name, 0.0) * each * len(member.indices[channel])
        return max(saved, _FAINTEST * max(self.dense, _FAINTEST))


def _in_order(ranked: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Sort by rate; a stable sort, so that a group's channels of one rate stay in their order."""
    return sorted(ranked, key=lambda one: (one[0], one[1]))
