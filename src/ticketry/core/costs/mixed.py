"""Which granularity each layer is pruned in, and how far, under one budget.

Every layer can be had in several granularities at many densities, each with a cost and a value. Only the options on the
upper concave hull of value against cost can be best (the relaxed multiple-choice knapsack: Sinha & Zoltners 1979); the
hulls' pieces of all layers are bought in the order of value for cost until the budget is spent.

Of scores that add up to S in a layer, of which s is kept, its value is S log(s / S). Where little is lost that is what
scores say, s - S. Where much is, they say too little: what one layer loses no other can make up for, as signals pass
through all of them, and shares that are kept multiply (Lee et al., "Layer-adaptive sparsity for the magnitude-based
pruning", ICLR 2021, whose score is the slope of this with S = 1). No layer is emptied for the sake of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ticketry.core.costs.allocation import check_worth
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import Granularity
from ticketry.core.layout import Blocks, Layout
from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern
from ticketry.errors import UsageError

WORTH = "logarithm of the share"
"""How values are made of scores, for the keys of what is remembered: another word for another rule."""

_FAINTEST = 1e-12
"""Share of a layer's scores that still has a logarithm."""

_DENSITIES = np.unique(np.concatenate([np.geomspace(1e-3, 1, 60), np.linspace(0.05, 1, 39)]))
"""At which each granularity of a layer can be had; the one that the budget ends at is met to a block."""


@dataclass(frozen=True)
class Option:
    """A layer in one granularity at one density."""

    cost: float
    value: float
    granularity: str
    blocks: int


@dataclass
class Layer:
    """The options of one layer."""

    scores: Tensor
    curves: Mapping[str, Curve]
    layout: Layout
    dense: Option | None
    """The whole layer, where that is cheaper than all of its blocks."""
    least: int = 1
    """Weights that any option keeps, if there are as many."""
    _known: dict[str, tuple[Blocks, Tensor, np.ndarray, np.ndarray]] = field(default_factory=dict)

    def blocks(self, granularity: str) -> tuple[Blocks, Tensor, np.ndarray, np.ndarray]:
        """The blocks, their order by falling mean score, and value and weights of the first 0, 1, … of them."""
        if granularity not in self._known:
            rows = Granularity.parse(granularity).rows
            pattern = Pattern(f"{rows}x1", rows=rows) if rows > 1 else Pattern("1x1", rows=1)
            found = pattern.blocks(tuple(self.scores.shape), self.layout)
            sums, sizes = found.pool(self.scores.double()).flatten(), found.sizes.flatten()
            order = (sums / sizes).argsort(descending=True, stable=True)
            value = _worth(np.concatenate([[0.0], sums[order].cumsum(0).numpy()]))
            weights = np.concatenate([[0], sizes[order].cumsum(0).numpy()])
            self._known[granularity] = found, order, value, weights
        return self._known[granularity]

    def option(self, granularity: str, blocks: int) -> Option:
        """The layer with its best so many blocks."""
        _, _, value, weights = self.blocks(granularity)
        cost = self.curves[granularity].at(float(weights[blocks] / max(weights[-1], 1)))
        return Option(cost, float(value[blocks]), granularity, blocks)

    def hull(self) -> list[Option]:
        """The options that a budget may end at, the cheapest first: value for cost falls from each to the next."""
        options = [self.dense] if self.dense else []
        for granularity in self.curves:
            _, order, _, weights = self.blocks(granularity)
            count = len(order)
            fewest = min(int(np.searchsorted(weights, max(self.least, 1))), count)
            for blocks in sorted({max(fewest, round(float(density) * count)) for density in _DENSITIES}):
                options.append(self.option(granularity, blocks))
        options.sort(key=lambda option: (option.cost, -option.value))
        found: list[Option] = []
        for option in options:
            if found and option.value <= found[-1].value:
                continue
            while len(found) > 1 and _gain(found[-2], found[-1]) <= _gain(found[-1], option):
                found.pop()
            if found and option.cost <= found[-1].cost:
                continue
            found.append(option)
        return found

    def mask(self, option: Option) -> Tensor:
        """What an option keeps."""
        if option is self.dense:
            return torch.ones(self.scores.shape, dtype=torch.bool)
        blocks, order, _, _ = self.blocks(option.granularity)
        kept = torch.zeros(blocks.count, dtype=torch.bool)
        kept[order[: option.blocks]] = True
        return blocks.spread(kept.view(blocks.shape))


@dataclass(frozen=True)
class Mixed:
    """A mask with a granularity of its own in each layer."""

    mask: Mask
    granularities: dict[str, str]
    """Parameter name -> ``weights``, ``rows:16`` …, or ``dense``."""
    value: float
    """Of all layers together, 0 where they keep all their scores, and less the more they lose."""
    cost: float
    """Of these layers, as estimated."""


class Choice:
    """What every layer can be had for, in each of the engine's layouts: made once, asked for many budgets."""

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
        """Raises what `allocate_mixed` does of scores and of `only`.

        Args:
            least: weights that each layer keeps, if it has so many.
            among: a mask of those that may be kept, where single weights are chosen; all by default.
        """
        for name, score in scores.items():
            if name not in costs.layers:
                raise UsageError(f"there is no cost of {name}: spare it in the scope")
            check_worth(name, score)
        costs.check_granularity(only)
        self.costs, self._among = costs, among
        scores = worth_within(scores, among)
        fewest = {name: least if among is None else min(least, int(among[name].sum())) for name in scores}
        self._rest, self._layers, self._hulls = [], [], []
        for in_rows in (False, True):
            layers: dict[str, Layer] = {}
            for name, score in scores.items():
                known = costs.layers[name]
                curves = _those(known.all_rows if in_rows else known.curves, only)
                whole = Option(known.dense, 0.0, "dense", 0)
                dense = whole if in_rows or not curves else None
                layers[name] = Layer(
                    score.detach().cpu(), curves, (layouts or {}).get(name, Layout()), dense, fewest[name]
                )
            others = [layer for name, layer in costs.layers.items() if name not in scores]
            self._rest.append(costs.fixed + sum(layer.dense if in_rows else layer.at(1.0) for layer in others))
            self._layers.append(layers)
            self._hulls.append({name: layer.hull() for name, layer in layers.items()})

    def within(self, budget: float) -> Mixed:
        """The best choice for a budget of the whole network. Raises `UsageError` if it is below the least."""
        found = [self._solved(number, budget) for number in range(2)]
        solved = [each for each in found if isinstance(each, Mixed)]
        if not solved:
            least = min(each for each in found if isinstance(each, float))
            raise UsageError(f"a budget of {budget:.4g} is below the {least:.4g} that one block in each layer takes")
        return max(solved, key=lambda each: each.value)

    def _solved(self, number: int, budget: float) -> Mixed | float:
        """In one layout of the engine; the least budget if this one is below it."""
        layers, hulls = self._layers[number], self._hulls[number]
        chosen = {name: hull[0] for name, hull in hulls.items()}
        left = budget - self._rest[number] - sum(option.cost for option in chosen.values())
        if left < 0:
            return budget - left
        pieces = [
            (-_gain(one, other), name, one, other) for name, hull in hulls.items() for one, other in pairwise(hull)
        ]
        for _, name, one, other in sorted(pieces, key=lambda piece: piece[0]):  # stable: of a layer in order
            if other.cost - one.cost > left:
                chosen[name] = _between(layers[name], one, other, left)
                left -= chosen[name].cost - one.cost
                break
            chosen[name] = other
            left -= other.cost - one.cost
        mask = Mask({name: layers[name].mask(option) for name, option in chosen.items()})
        if self._among is not None:  # a layer that is bought whole is so of what may be kept
            mask &= self._among
        value = sum(option.value for option in chosen.values())
        return Mixed(mask, {name: option.granularity for name, option in chosen.items()}, value, budget - left)


def value_of(scores: Mapping[str, Tensor], mask: Mask) -> float:
    """Return what the layers of a mask are worth together, by the rule of `Choice`: 0 if they keep all their scores.

    Args:
        scores: of each weight, none below 0.
        mask: of these weights, and perhaps of others.
    """
    value = 0.0
    for name, score in scores.items():
        whole = float(score.double().sum())
        kept = float(score.double()[mask[name].to(score.device)].sum()) if name in mask else whole
        value += float(_worth(np.array([kept, whole]))[0])
    return value


def worth_within(scores: Mapping[str, Tensor], mask: Mask | None) -> Mapping[str, Tensor]:
    """The scores of what a mask keeps, and 0 for all else; as they are without one."""
    if mask is None:
        return scores
    return {name: score * mask[name].to(score.device) for name, score in scores.items()}


def _worth(kept: np.ndarray) -> np.ndarray:
    """What sums of kept scores [n] are worth, the last of which is of all: that one times the share's logarithm."""
    whole = kept[-1]
    return whole * np.log(np.maximum(kept / whole, _FAINTEST)) if whole > 0 else np.zeros_like(kept)


def _those(curves: Mapping[str, Curve], only: str) -> Mapping[str, Curve]:
    """The curves of a layer's granularities, or of one alone."""
    return {one: curve for one, curve in curves.items() if only in ("", one)}


def allocate_mixed(
    scores: Mapping[str, Tensor],
    costs: CostModel,
    budget: float,
    layouts: Mapping[str, Layout] | None = None,
    *,
    only: str = "",
) -> Mixed:
    """Granularity and density of each layer that keep the most of its scores for a cost within `budget`, see above.

    Solved for both of the engine's layouts, of which the better one is taken.

    Args:
        scores: parameter name -> what each weight is worth, none below 0. They are added up over the blocks of coarser
            granularities, so they should be an additive estimate of what is lost: `saliency.output_change`, or a score
            such as fisher, rather than magnitudes.
        costs: with the granularities that may be chosen.
        budget: of the whole network, in the unit of the costs.
        only: the one granularity that all layers are pruned in; a layer may be left whole.

    Raises:
        UsageError: for a granularity that the costs do not have, scores below 0, a layer without costs, or a budget
            below what is left with one block a layer.
        MaskError: for scores that are not numbers.
    """
    return Choice(scores, costs, layouts, only=only).within(budget)


def _between(layer: Layer, one: Option, other: Option, left: float) -> Option:
    """The densest that can be paid for between two options; the first one if they are of different granularities."""
    if one.granularity != other.granularity:
        return one
    low, high = one.blocks, other.blocks
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if layer.option(one.granularity, middle).cost - one.cost <= left else (low, middle)
    return layer.option(one.granularity, low)


def _gain(one: Option, other: Option) -> float:
    return (other.value - one.value) / max(other.cost - one.cost, 1e-300)
