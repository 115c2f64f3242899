"""The best-scored single weights that a budget pays for, where a layer's next weight costs more the denser it is.

The sum of the kept scores is largest, within the budget, where in every layer the last weight kept has the same score
for its marginal cost: one Lagrange multiplier over all layers (the relaxed problem; convex costs make it exact).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor

import numpy as np
import torch
from torch import Tensor

from ticketry.core.allocate import largest
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.least import check_priced, check_within
from ticketry.core.costs.selection import affordable, spent_with
from ticketry.core.mask import Mask
from ticketry.errors import LayerCollapseError, MaskError, UsageError

_FINEST = 1 << 50
"""Prices are whole numbers of this share of all that the layers cost: sums are exact."""

_SMALL = 100_000
"""Weights of a layer in which an edge of a curve may not be moved to the next whole weight."""


@dataclass(frozen=True)
class Flat:
    """All weights of all layers in one row."""

    scores: Mapping[str, Tensor]
    values: tuple[Tensor, ...]
    """float64 [weights of a layer], at least 0."""
    candidates: tuple[Tensor | None, ...]
    """Boolean [weights of a layer]; None for all."""

    @classmethod
    def of(cls, scores: Mapping[str, Tensor], within: Mask | None) -> Flat:
        """Raises what `allocate_cost` does of scores."""
        if not scores:
            raise MaskError("there are no scores to allocate by")
        check_within({name: tuple(score.shape) for name, score in scores.items()}, within)
        values = []
        for name, score in scores.items():
            check_worth(name, score)
            values.append(score.detach().cpu().flatten().double())
        chosen = [None if within is None else within[name].cpu().flatten() for name in scores]
        return cls(scores, tuple(values), tuple(chosen))

    def taken(self, prices: tuple[Tensor, ...], budget: int, least: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `prices` [weights of a layer] and the budget leave (boolean), its worth, and all prices, in one row."""
        worth = torch.cat([value / price for value, price in zip(self.values, prices, strict=True)])
        parts = torch.split(worth, [len(value) for value in self.values])
        for part, value, among in zip(parts, self.values, self.candidates, strict=True):
            allowed = value if among is None else torch.where(among, value, -1.0)
            if least:
                room = len(value) if among is None else int(among.sum())
                part[largest(allowed, min(least, room))] = torch.inf
            part[allowed < 0] = -1.0
        price = torch.cat(list(prices))
        return affordable(worth, price, budget), worth, price

    def mask(self, chosen: Tensor) -> Mask:
        """The mask of what is chosen in the one row."""
        parts = torch.split(chosen, [len(value) for value in self.values])
        return Mask(
            {name: part.reshape(self.scores[name].shape) for name, part in zip(self.scores, parts, strict=True)}
        )

    def least(self, worth: Tensor, price: Tensor) -> int | None:
        """What is spent when each layer has a weight; None if a layer has no candidate."""
        found, start = 0, 0
        for part in torch.split(worth, [len(value) for value in self.values]):
            if len(part):
                if bool(part.max() < 0):
                    return None
                found = max(found, spent_with(worth, price, start + int(part.argmax())))
            start += len(part)
        return found


def check_worth(name: str, score: Tensor) -> None:
    """Raises `MaskError` for scores of a parameter that are not numbers, `UsageError` for some below 0."""
    if bool(score.isnan().any()):
        raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")
    if bool((score < 0).any()):
        raise UsageError(f"scores below 0, as {name!r} has, cannot be weighed against what weights cost")


def allocate_cost(
    scores: Mapping[str, Tensor],
    curves: Mapping[str, Curve],
    budget: float,
    *,
    within: Mask | None = None,
    keep_at_least: int = 0,
    in_words: Callable[[Mask], str] | None = None,
) -> Mask:
    """The mask of the largest sum of scores whose layers cost at most `budget`, by the convex hulls of their curves.

    What is left of the budget is less than the next weight costs. Ties break by position, the earlier is kept.

    Args:
        scores: parameter name -> score of each weight, none below 0.
        curves: parameter name -> what the layer costs by its density; the budget's unit.
        budget: for all of these layers together.
        within: a mask of the candidates.
        keep_at_least: weights that each layer keeps, its best ones, before any other is paid for.
        in_words: a mask -> the budget that pays for it, as its user writes it, for errors; by default these layers'
            part of it.

    Raises:
        UsageError: for scores below 0, a layer without a curve, or a budget that is below what these layers cost when
            they keep nothing (or the least).
        MaskError: for scores that are not numbers.
        LayerCollapseError: if a layer would be left empty; it says the least budget that leaves a weight in each.
    """
    check_priced(scores, curves)
    flat = Flat.of(scores, within)
    hulls = [curves[name].convex() for name in scores]
    base = sum(hull.costs[0] for hull in hulls)
    dear = sum(hull.costs[-1] for hull in hulls) - base
    unit = max(dear, 1e-290) / _FINEST
    prices = tuple(_prices(*each, unit) for each in zip(flat.values, flat.candidates, hulls, strict=True))
    left = 0.0 if abs(budget - base) <= 1e-9 * base else budget - base  # both are sums of many
    if left < dear:
        money = int(max(left, -unit) / unit)
    else:  # all weights, also where none costs anything, as in layers that run in torch
        money = sum(int(price.sum()) for price in prices)
    chosen, worth, price = flat.taken(prices, max(money, 0), keep_at_least)
    forced = int(price[worth == torch.inf].sum()) if keep_at_least else 0
    if money < forced or left < 0:
        raise UsageError(
            f"a budget of {budget:.4g} is below the {base + forced * unit:.4g} that these layers cost"
            + (f" with {keep_at_least} weights in each" if keep_at_least else " without any weight")
            + ": ask for more"
            + (" or keep fewer in each (keep_at_least)" if keep_at_least else "")
        )
    mask = flat.mask(chosen)
    if empty := [name for name, part in mask.items() if part.numel() and not bool(part.any())]:
        least = flat.least(worth, price)
        enough = ""
        if least is not None:
            amount = f"{1.0005 * (base + least * unit):.4g}"
            if in_words is not None:
                amount = in_words(flat.mask(flat.taken(prices, least, keep_at_least)[0]))
            enough = f"each is left some at {amount}: ask for that, "
        raise LayerCollapseError(
            f"the budget would leave no weight in {', '.join(empty)} (layer collapse)",
            f"{enough}spare the layer",
            keep="keep a weight in each",
        )
    return mask


def _prices(values: Tensor, among: Tensor | None, hull: Curve, unit: float) -> Tensor:
    """int64 [n]: what each weight costs when all better ones of its layer are kept, at least 1."""
    count = len(values)
    if not count:
        return torch.zeros(0, dtype=torch.int64)
    nearest = (floor, ceil) if count < _SMALL else (round,)
    edges = sorted({int(whole(density * count)) for density in hull.densities for whole in nearest})
    known = [hull.at(edge / count) for edge in edges]
    dear = [
        max(1, round((high - low) / (last - first) / unit))
        for (first, last), (low, high) in zip(pairwise(edges), pairwise(known), strict=True)
    ]
    price = torch.full((count,), dear[-1], dtype=torch.int64)
    inner = list(zip(edges[1:-1], dear, strict=False))
    if not inner:
        return price
    ranked = values if among is None else torch.where(among, values, -1.0)
    places = [count - edge for edge, _ in inner]
    thresholds = np.partition(ranked.numpy(), places)[places].tolist()  # once for all, where `largest` takes each anew
    for (edge, each), threshold in reversed(list(zip(inner, thresholds, strict=True))):
        better = ranked > threshold
        price[better] = each
        tied = (ranked == threshold).nonzero().flatten()
        price[tied[: edge - int(better.sum())]] = each
    return price
