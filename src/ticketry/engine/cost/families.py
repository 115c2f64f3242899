"""Masks under which a network is timed for its costs: random ones, or those that scores would choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ticketry.core.costs.allocation import allocate_cost
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import Granularity
from ticketry.core.layout import Blocks, Layout
from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern
from ticketry.core.synthetic_masks import Pattern as Synthetic
from ticketry.core.synthetic_masks import synthetic
from ticketry_engine.support.seeds import generator

DENSITIES = (1e-9, 0.003, 0.02, 0.08, 0.25, 0.6, 1.0)
"""Of every layer; of the least, a weight in each layer (or group)."""

SHARES = (1e-9, 0.01, 0.04, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Of the dense network's cost, were it in proportion to density; of the least, the best weight of each layer."""


class Family(Protocol):
    """Masks of a network from one weight in each layer to all."""

    about: str
    """What is told of them."""
    amounts: tuple[float, ...]
    """Rising, from next to 0 to 1."""

    def mask(self, granularity: str, amount: float) -> Mask:
        """One of them."""

    def other(self, amount: float, seed: int) -> Mask:
        """Single weights, in layers of other densities: what estimates are checked by."""


class RandomMasks:
    """Every layer has the same density, and any of its weights is kept alike."""

    about = "random"

    def __init__(
        self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]], amounts: tuple[float, ...] = DENSITIES
    ) -> None:
        self.amounts = amounts
        self._model, self._shapes = model, shapes

    def mask(self, granularity: str, amount: float) -> Mask:
        """Of one density."""
        rows = Granularity.parse(granularity).rows
        pattern = Synthetic("unstructured") if rows == 1 else Synthetic("groups", rows)
        found = synthetic(self._model, pattern, amount)
        return Mask({name: found[name] for name in self._shapes})

    def other(self, amount: float, seed: int) -> Mask:
        """Single weights at random, with a density of its own, about `amount`, in each layer."""
        made = {}
        for index, (name, shape) in enumerate(self._shapes.items()):
            source = generator(seed, "cost", index)
            density = min(1.0, amount * float(torch.empty(1).uniform_(-1, 1, generator=source).mul(1.2).exp()))
            made[name] = torch.rand(shape, generator=source) < density
            made[name].view(-1)[0] = True
        return Mask(made)


class ScoredMasks:
    """What has the most score for its share of the dense time: channels that nothing is left of, as in use.

    Such masks cost less than random ones of their densities, the more so the fewer weights they keep.
    """

    about = "of the scores"

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        seconds: Mapping[str, float],
        layouts: Mapping[str, Layout],
        amounts: tuple[float, ...] = SHARES,
    ) -> None:
        """`seconds` are those of layers without a mask; `layouts` as of `core.layout.layouts`."""
        self.amounts = amounts
        self._scores, self._seconds, self._layouts = scores, seconds, layouts

    def mask(self, granularity: str, amount: float) -> Mask:
        """The best blocks for a share of the dense time."""
        return self._chosen(granularity, amount, self._seconds)

    def other(self, amount: float, seed: int) -> Mask:
        """The best weights where each layer's are dearer or cheaper by a factor of its own, up to 1.6."""
        prices = {
            name: seconds * float(torch.empty(1).uniform_(-0.5, 0.5, generator=generator(seed, "cost", index)).exp())
            for index, (name, seconds) in enumerate(self._seconds.items())
        }
        return self._chosen("weights", amount, prices)

    def _chosen(self, granularity: str, amount: float, seconds: Mapping[str, float]) -> Mask:
        rows = Granularity.parse(granularity).rows
        pattern = Pattern(f"{rows}x1", rows=rows)
        blocks: dict[str, Blocks] = {
            name: pattern.blocks(tuple(score.shape), self._layouts.get(name, Layout()))
            for name, score in self._scores.items()
        }
        sums = {name: blocks[name].pool(score.detach().cpu().double()) for name, score in self._scores.items()}
        total = sum(seconds[name] for name in sums)
        least = sum(seconds[name] / max(1, each.count) for name, each in blocks.items())
        curves = {name: Curve((0.0, 1.0), (0.0, max(seconds[name], 1e-9 * total))) for name in sums}
        kept = allocate_cost(sums, curves, max(amount * total, 1.01 * least) * (1 + 1e-6), keep_at_least=1)
        return Mask({name: blocks[name].spread(part) for name, part in kept.items()})
