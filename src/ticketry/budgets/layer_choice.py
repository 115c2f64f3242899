"""Choose the granularity and the density of each layer under one cost budget.

Every layer can be pruned in several granularities at many densities, each with a cost and a value. Only options on
the upper concave hull of value against cost can be optimal (the relaxed multiple-choice knapsack: Sinha & Zoltners
1979). The pieces of all layers' hulls are bought in the order of value per cost until the budget is spent.

A layer whose scores sum to S, and whose retained scores sum to s, has the value S log(s / S). For small losses this is
about s - S. Large losses count for more, because signals pass through all layers and retained shares multiply (Lee et
al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021; their score is the slope of this function
with S = 1). So no layer is emptied for the sake of another.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ticketry.budgets.allocation import check_multiplications, check_scores, parse_flops_share
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost
from ticketry.budgets.units import FINEST, Granularity
from ticketry.core.mask import Mask
from ticketry.core.structure.layout import Layout
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import UsageError

WORTH = "logarithm of the share"
"""Name of the rule that converts scores to values. It is part of the keys of stored masks: change it if the rule
changes."""

_LEAST_SHARE = 1e-12
"""Lower bound of a layer's retained share of scores when its logarithm is taken."""

_DENSITIES = np.unique(np.concatenate([np.geomspace(1e-3, 1, 60), np.linspace(0.05, 1, 39)]))
"""Densities at which a layer can be pruned. For the last layer that gets more budget, the density is refined to single
blocks."""


@dataclass(frozen=True)
class Option:
    """One way to prune a layer: granularity and number of the retained blocks, with the layer's cost and value."""

    cost: float
    value: float
    granularity: str
    blocks: int


class RankedBlocks:
    """The blocks of a layer in one granularity, ranked by falling mean score; of equal blocks the earlier one first."""

    def __init__(self, scores: Tensor, granularity: str, layout: Layout) -> None:
        rows = Granularity.parse(granularity).rows
        self._blocks = Pattern(f"{rows}x1", rows=rows).blocks(tuple(scores.shape), layout)
        self._sums = self._blocks.sum_by_block(scores.double()).flatten()
        self._order: Tensor | None = None
        if rows == 1:  # sorted values take a third of the time of sorted indices
            self._ascending = np.sort(self._sums.numpy())
            falling = self._ascending[::-1]
            self.weights: Sequence[int] | np.ndarray = range(len(falling) + 1)
            """Entry i is the number of weights in the first i blocks."""
        else:
            sizes = self._blocks.sizes.flatten()
            self._order = (self._sums / sizes).argsort(descending=True, stable=True)
            falling = self._sums[self._order].numpy()
            self.weights = np.concatenate([[0], sizes[self._order].cumsum(0).numpy()])
        self._retained = np.concatenate([[0.0], falling]).cumsum()

    def __len__(self) -> int:
        return len(self._sums)

    def value(self, count: int) -> float:
        """Return the value of the layer if it retains the first `count` blocks."""
        return _value_of_retained_sum(float(self._retained[count]), float(self._retained[-1]))

    def mask(self, count: int) -> Tensor:
        """Return the layer's mask (bool tensor) that retains the first `count` blocks."""
        if self._order is None:
            least = self._ascending[len(self) - count] if count else np.inf
            kept = self._sums > least
            tied = (self._sums == least).nonzero().flatten()
            kept[tied[: count - int(kept.sum())]] = True
        else:
            kept = torch.zeros(len(self), dtype=torch.bool)
            kept[self._order[:count]] = True
        return self._blocks.expand_to_weights(kept.view(self._blocks.shape))


@dataclass
class LayerOptions:
    """All ways to prune one layer, which differ in granularity and density; each has a cost and a value."""

    scores: Tensor
    curves: Mapping[str, Curve]
    layout: Layout
    dense: Option | None
    """The unpruned layer as an option, if it is cheaper than a pruned layer that retains all blocks; else None."""
    ranked: dict[str, RankedBlocks] = field(default_factory=dict)
    """Granularity -> ranked blocks, which both memory layouts share."""
    least: int = 1
    """Minimum number of weights that every option retains, if the layer has that many."""

    def rank_blocks(self, granularity: str) -> RankedBlocks:
        """Return the ranked blocks of a granularity."""
        if granularity not in self.ranked:
            self.ranked[granularity] = RankedBlocks(self.scores, granularity, self.layout)
        return self.ranked[granularity]

    def build_option(self, granularity: str, blocks: int) -> Option:
        """Return the option that retains the `blocks` best blocks of the layer in this granularity."""
        ranked = self.rank_blocks(granularity)
        cost = self.curves[granularity].at(float(ranked.weights[blocks] / max(ranked.weights[-1], 1)))
        return Option(cost, ranked.value(blocks), granularity, blocks)

    def hull(self) -> list[Option]:
        """Return the options on the upper concave hull of value against cost, cheapest first."""
        options = [self.dense] if self.dense else []
        for granularity in self.curves:
            ranked = self.rank_blocks(granularity)
            count = len(ranked)
            fewest = min(bisect_left(ranked.weights, max(self.least, 1)), count)
            for blocks in sorted({max(fewest, round(float(density) * count)) for density in _DENSITIES}):
                options.append(self.build_option(granularity, blocks))
        options.sort(key=lambda option: (option.cost, -option.value))
        found: list[Option] = []
        for option in options:
            if found and option.value <= found[-1].value:
                continue
            while len(found) > 1 and _value_per_cost(found[-2], found[-1]) <= _value_per_cost(found[-1], option):
                found.pop()
            if found and option.cost <= found[-1].cost:
                continue
            found.append(option)
        return found

    def mask(self, option: Option) -> Tensor:
        """Return the layer's mask (bool tensor) that retains the blocks of an option."""
        if option is self.dense:
            return torch.ones(self.scores.shape, dtype=torch.bool)
        return self.rank_blocks(option.granularity).mask(option.blocks)


@dataclass(frozen=True)
class ChosenLayers:
    """A mask of all layers, with the granularity (size of the blocks that are retained whole) of each layer."""

    mask: Mask
    granularities: dict[str, str]
    """Parameter name -> ``weights``, ``rows:16`` …, or ``dense``."""
    value: float
    """Sum of the values of all layers: 0 if all scores are retained, lower the more is lost."""
    cost: float
    """Estimated cost of the network."""


class LayerChoice:
    """The options of all layers in both memory layouts of the engine; `choose_within` chooses the best for a budget."""

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        costs: CostModel,
        layouts: Mapping[str, Layout] | None = None,
        *,
        only: str = "",
        least: int = 1,
        among: Mask | None = None,
    ) -> None:
        """Find the options of all layers.

        Args:
            scores: parameter name -> score of each weight, none below 0. Scores are summed over blocks, so they should
                estimate the loss additively, as `output_change` or fisher do and magnitudes do not.
            costs: cost model with all granularities that may be chosen.
            layouts: parameter name -> which rows may form a group, see `core.structure.layout.layouts`.
            only: granularity of all pruned layers; empty to choose by layer. A layer may always be left whole.
            least: minimum number of weights that each layer retains, if it has that many.
            among: a mask that retains the candidates, if single weights are chosen; by default all weights.

        Raises:
            UsageError: if the costs lack a granularity or a layer, or a score is below 0.
            MaskError: if a score is NaN.
        """
        for name, score in scores.items():
            if name not in costs.layers:
                raise UsageError(f"there is no cost of {name}: spare it in the scope")
            check_scores(name, score)
        costs.check_granularity(only)
        self.costs, self._among = costs, among
        scores = zero_outside(scores, among)
        fewest = {name: least if among is None else min(least, int(among[name].sum())) for name in scores}
        self._rest, self._layers, self._hulls = [], [], []
        ranked: dict[str, dict[str, RankedBlocks]] = {name: {} for name in scores}
        for in_rows in (False, True):
            layers: dict[str, LayerOptions] = {}
            for name, score in scores.items():
                known = costs.layers[name]
                every = known.all_rows if in_rows else known.curves
                curves = {one: curve for one, curve in every.items() if only in ("", one)}
                whole = Option(known.dense, 0.0, "dense", 0)
                dense = whole if in_rows or not curves else None
                layout = (layouts or {}).get(name, Layout())
                layers[name] = LayerOptions(score.detach().cpu(), curves, layout, dense, ranked[name], fewest[name])
            others = [layer for name, layer in costs.layers.items() if name not in scores]
            self._rest.append(costs.fixed + sum(layer.dense if in_rows else layer.at(1.0) for layer in others))
            self._layers.append(layers)
            self._hulls.append({name: layer.hull() for name, layer in layers.items()})

    def choose_within(self, budget: float) -> ChosenLayers:
        """Return the mask of the largest value with which the whole network's estimated cost is within `budget`.

        Raises:
            UsageError: if the network costs more than the budget even with one block in each layer.
        """
        found = [self._choose_in_layout(number, budget) for number in range(2)]
        solved = [each for each in found if isinstance(each, ChosenLayers)]
        if not solved:
            least = min(each for each in found if isinstance(each, float))
            raise UsageError(f"a budget of {budget:.4g} is below the {least:.4g} that one block in each layer takes")
        return max(solved, key=lambda each: each.value)

    def _choose_in_layout(self, number: int, budget: float) -> ChosenLayers | float:
        """Return the best choice in memory layout `number`, or the smallest possible budget if `budget` is lower."""
        layers, hulls = self._layers[number], self._hulls[number]
        chosen = {name: hull[0] for name, hull in hulls.items()}
        left = budget - self._rest[number] - sum(option.cost for option in chosen.values())
        if left < 0:
            return budget - left
        pieces = [
            (-_value_per_cost(one, other), name, one, other)
            for name, hull in hulls.items()
            for one, other in pairwise(hull)
        ]
        for _, name, one, other in sorted(pieces, key=lambda piece: piece[0]):  # stable
            if other.cost - one.cost > left:
                chosen[name] = _densest_affordable(layers[name], one, other, left)
                left -= chosen[name].cost - one.cost
                break
            chosen[name] = other
            left -= other.cost - one.cost
        mask = Mask({name: layers[name].mask(option) for name, option in chosen.items()})
        if self._among is not None:  # a layer that is bought whole has its candidates only
            mask &= self._among
        value = sum(option.value for option in chosen.values())
        return ChosenLayers(mask, {name: option.granularity for name, option in chosen.items()}, value, budget - left)


def allocate_by_layer_value(
    values: Mapping[str, Tensor],
    prices: Mapping[str, int],
    flops: float | str,
    *,
    within: Mask | None = None,
    keep_at_least: int = 0,
) -> Mask:
    """Return the mask of single weights with the largest total value, for a share `flops` of all multiplications.

    The value of a layer is that of `LayerChoice`. No layer is left empty. Arguments and errors are those of
    `allocation.allocate_multiplications`.
    """
    share, least = parse_flops_share(flops), max(1, keep_at_least)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    check_multiplications(shapes, prices, share, within=within, least=least)
    costs = multiplication_costs({name: value.numel() for name, value in values.items()}, prices)
    choice = LayerChoice(values, costs, only=FINEST, least=least, among=within)
    return choice.choose_within(share * costs.dense).mask


def multiplication_costs(sizes: Mapping[str, int], prices: Mapping[str, int]) -> CostModel:
    """Return a cost model of multiplications, for layers with `sizes` weights of `prices` multiplications each."""
    whole = {name: float(price * sizes[name]) for name, price in prices.items()}
    layers = {
        name: LayerCost(sizes[name], dense, {FINEST: Curve((0.0, 1.0), (0.0, dense))}) for name, dense in whole.items()
    }
    return CostModel("multiplications", layers, 0.0, 0.0, {"of": "the layers in scope"})


def mask_value(scores: Mapping[str, Tensor], mask: Mask) -> float:
    """Return the total value of a mask's layers by the rule of `LayerChoice`; 0 if all scores are retained."""
    value = 0.0
    for name, score in scores.items():
        whole = float(score.sum(dtype=torch.float64))
        kept = float((score * mask[name].to(score.device)).sum(dtype=torch.float64)) if name in mask else whole
        value += _value_of_retained_sum(kept, whole)
    return value


def zero_outside(scores: Mapping[str, Tensor], mask: Mask | None) -> Mapping[str, Tensor]:
    """Return the scores with 0 for all weights that the mask removes; unchanged if `mask` is None."""
    if mask is None:
        return scores
    return {name: score * mask[name].to(score.device) for name, score in scores.items()}


def _value_of_retained_sum(kept: float, whole: float) -> float:
    """Return the layer's value for a sum of retained scores, if the sum of all scores is `whole`."""
    return whole * math.log(max(kept / whole, _LEAST_SHARE)) if whole > 0 else 0.0


def _densest_affordable(layer: LayerOptions, one: Option, other: Option, left: float) -> Option:
    """Return the densest option between `one` and `other` that costs at most `left` more than `one`.

    If their granularities differ, there is no option in between, and `one` is returned.
    """
    if one.granularity != other.granularity:
        return one
    more = bisect_left(
        range(one.blocks + 1, other.blocks),
        True,
        key=lambda blocks: layer.build_option(one.granularity, blocks).cost - one.cost > left,
    )
    return layer.build_option(one.granularity, one.blocks + more)


def _value_per_cost(one: Option, other: Option) -> float:
    """Return how much value the more expensive option `other` adds to `one`, divided by its additional cost."""
    return (other.value - one.value) / max(other.cost - one.cost, 1e-300)
