"""Choose the single weights with the largest sum of scores that a budget pays for, over all layers together.

The sum of the retained scores is largest within the budget when the last weight retained in every layer has the same
score per marginal cost: one Lagrange multiplier over all layers (the relaxed knapsack: Dantzig 1957). For convex costs
this is exact. Costs are curves by density (`allocate_cost`), or whole numbers of multiplications per weight
(`allocate_multiplications`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor, prod

import numpy as np
import torch
from torch import Tensor

from ticketry.budgets.cost_model import CostModel, Curve
from ticketry.budgets.units import format_cost, format_cost_above
from ticketry.core.allocate import check_mask_covers_tensors, count_candidates, mask_of_largest
from ticketry.core.mask import Mask
from ticketry.core.structure.pattern import parse_share
from ticketry.errors import LayerCollapseError, MaskError, UsageError

_PRICE_UNITS = 1 << 50
"""Prices are whole multiples of the cost of all layers divided by this number, so that sums are exact."""

_SMALL_LAYER = 100_000
"""In layers with fewer weights than this, an edge of a cost curve is not rounded to one whole weight, but placed
between two."""

_ROUNDING = 1e-4
"""Share of a budget that allocation may leave unspent, because edges of cost curves are moved to whole weights."""

_DIGIT_BITS = 16

_BLOCK = 1 << 18
"""Number of elements that are processed at a time, so that intermediate results stay in the processor's cache."""


_Block = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""(worth, price, the layer's part of the result, indices of these elements in this part or None for all)."""


# -- the knapsack ------------------------------------------------------------------------------------------------------


def select_affordable(worth: Sequence[Tensor], price: Sequence[Tensor], budget: int) -> list[Tensor]:
    """Return bool tensors that select the elements of highest worth until the next one would exceed the budget.

    Equal elements are selected in their order. A radix sort that follows a single bucket takes linear time for many
    millions of elements.

    `worth` and `price` have one tensor [n] for each layer: float64, of which elements below 0 are never selected, and
    int64, at least 0, with a sum below 2^63. The sum of selected prices is at most `budget`, at least 0.

        >>> select_affordable([torch.tensor([3.0, 1.0, 2.0]).double()], [torch.tensor([4, 1, 5])], 9)
        [tensor([ True, False,  True])]
    """
    chosen = [torch.zeros(len(part), dtype=torch.bool) for part in worth]
    blocks: list[_Block] = [
        (*each, None)
        for parts in zip(worth, price, chosen, strict=True)
        for each in zip(*(torch.split(part, _BLOCK) for part in parts), strict=True)
    ]
    for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        spent = torch.zeros(1 + (1 << _DIGIT_BITS), dtype=torch.int64)
        for values, costs, _, _ in blocks:
            spent.scatter_add_(0, _digits_from_one(values, shift), costs)
        above = spent[1:].flip(0).cumsum(0).flip(0)  # the cost of each digit and all larger ones
        crossing = int((above > budget).sum())  # `above` falls, so these are the first digits
        if crossing:
            budget -= int(above[crossing - 1] - spent[crossing])
        left: list[_Block] = []
        for values, costs, part, places in blocks:
            digits = _digits_from_one(values, shift)
            if places is None:
                part.copy_(digits > crossing)
            else:
                part[places[digits > crossing]] = True
            tied = (digits == crossing).nonzero().flatten()
            if crossing and len(tied):
                left.append((values[tied], costs[tied], part, tied if places is None else places[tied]))
        if not crossing:
            return chosen
        blocks = left
    for _, costs, part, places in blocks:
        assert places is not None
        part[places[costs.cumsum(0) <= budget]] = True
        budget -= int(costs.sum())
    return chosen


def _digits_from_one(worth: Tensor, shift: int) -> Tensor:
    """Return 1 plus the 16 bits of each number at bit `shift`, int64 [n]; at the highest bits 0 for negative numbers.

    Floats that are not negative sort like their bits.
    """
    digits = (worth + 0.0).view(torch.int64) >> shift  # + 0.0 removes -0.0
    if shift < 64 - _DIGIT_BITS:
        digits &= (1 << _DIGIT_BITS) - 1
    return digits.clamp_(min=-1).add_(1)


@dataclass(frozen=True)
class FlatScores:
    """Scores of all layers as vectors, and the candidates: the weights that a mask over all layers may retain."""

    scores: Mapping[str, Tensor]
    values: tuple[Tensor, ...]
    """For each layer, its scores: float64 [weights of the layer], at least 0."""
    candidates: tuple[Tensor | None, ...]
    """For each layer, which weights may be retained (candidates): bool [weights of the layer]; None for all."""

    @classmethod
    def build(cls, scores: Mapping[str, Tensor], within: Mask | None) -> FlatScores:
        """Flatten `scores`; the candidates are the weights that `within` retains. Raise an error for invalid scores."""
        if not scores:
            raise MaskError("there are no scores to allocate by")
        check_mask_covers_tensors({name: tuple(score.shape) for name, score in scores.items()}, within)
        values = []
        for name, score in scores.items():
            check_scores(name, score)
            values.append(score.detach().cpu().flatten().double())
        chosen = [None if within is None else within[name].cpu().flatten() for name in scores]
        return cls(scores, tuple(values), tuple(chosen))

    def select(self, prices: Sequence[Tensor], budget: int, least: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return, for each layer, the weights selected for a budget (bool), and their worth: score divided by price.

        `prices` has, for each layer, the int64 prices of its weights, in the units of `budget`. The `least` best
        weights of each layer are selected before all others.
        """
        worth = []
        for value, price, among in zip(self.values, prices, self.candidates, strict=True):
            part = value / price
            allowed = value if among is None else torch.where(among, value, -1.0)
            if least:
                room = len(value) if among is None else int(among.sum())
                part[mask_of_largest(allowed, min(least, room))] = torch.inf
            if among is not None:
                part[~among] = -1.0
            worth.append(part)
        return select_affordable(worth, prices, budget), worth

    def to_mask(self, chosen: Sequence[Tensor]) -> Mask:
        """Return the mask that retains the weights that `chosen` selects: a bool vector for each layer."""
        parts = zip(self.scores.items(), chosen, strict=True)
        return Mask({name: part.reshape(score.shape) for (name, score), part in parts})

    def smallest_budget_for_all_layers(self, worth: Sequence[Tensor], prices: Sequence[Tensor]) -> int | None:
        """Return the smallest budget for which each layer retains a weight; None if a layer has no candidate."""
        found = 0
        for position, part in enumerate(worth):
            if not len(part):
                continue
            best = int(part.argmax())
            if part[best] < 0:
                return None
            spent = 0
            for index, (other, price) in enumerate(zip(worth, prices, strict=True)):
                before = other > part[best]
                if index <= position:  # equal elements are selected in their order
                    tied = other == part[best]
                    before |= tied if index < position else tied.logical_and_(torch.arange(len(part)) <= best)
                spent += int(price[before].sum())
            found = max(found, spent)
        return found


def check_scores(name: str, score: Tensor) -> None:
    """Raise `MaskError` if a score of the parameter `name` is NaN, and `UsageError` if one is below 0."""
    if bool(score.isnan().any()):
        raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")
    if bool((score < 0).any()):
        raise UsageError(f"scores below 0, as {name!r} has, cannot be weighed against what weights cost")


# -- costs by density --------------------------------------------------------------------------------------------------


def allocate_cost(
    scores: Mapping[str, Tensor],
    curves: Mapping[str, Curve],
    budget: float,
    *,
    within: Mask | None = None,
    keep_at_least: int = 0,
    in_words: Callable[[Mask], str] | None = None,
) -> Mask:
    """Return the mask with the largest sum of scores whose layers cost at most `budget`.

    The unspent rest is less than the next weight costs. Ties go to the earlier weight.

    Args:
        scores: parameter name -> score of each weight, none below 0.
        curves: parameter name -> cost of the layer by density, in the budget's unit; the curve's convex hull is used.
        budget: budget for all these layers together.
        within: a mask of the candidates.
        keep_at_least: number of best weights of each layer that are retained before any other.
        in_words: for errors, function that maps a mask to a text with the budget that pays for it; by default the cost
            of these layers.

    Raises:
        UsageError: if a score is below 0, a layer has no curve, or the budget is below the cost of these layers when
            empty (or with `keep_at_least` weights each).
        MaskError: for scores that are NaN.
        LayerCollapseError: if a layer would be left empty; the message has the smallest budget that avoids this.
    """
    check_costs_known(scores, curves)
    flat = FlatScores.build(scores, within)
    hulls = [curves[name].convex() for name in scores]
    base = sum(hull.costs[0] for hull in hulls)
    savings = sum(hull.costs[-1] for hull in hulls) - base
    unit = max(savings, 1e-290) / _PRICE_UNITS
    prices = tuple(
        _cost_added_by_each_weight(*each, unit) for each in zip(flat.values, flat.candidates, hulls, strict=True)
    )
    left = 0.0 if abs(budget - base) <= 1e-9 * base else budget - base  # both are sums of many floats
    if left < savings:
        money = int(max(left, -unit) / unit)
    else:  # all weights, also where none costs anything, as in layers that run in torch
        money = sum(int(price.sum()) for price in prices)
    chosen, worth = flat.select(prices, max(money, 0), keep_at_least)
    forced = 0
    if keep_at_least:
        forced = sum(int(price[part == torch.inf].sum()) for part, price in zip(worth, prices, strict=True))
    if money < forced or left < 0:
        raise UsageError(
            f"a budget of {budget:.4g} is below the {base + forced * unit:.4g} that these layers cost"
            + (f" with {keep_at_least} weights in each" if keep_at_least else " without any weight")
            + ": ask for more"
            + (" or keep fewer in each (keep_at_least)" if keep_at_least else "")
        )
    mask = flat.to_mask(chosen)
    if empty := [name for name, part in mask.items() if part.numel() and not bool(part.any())]:
        enough, least = "", flat.smallest_budget_for_all_layers(worth, prices)
        if least is not None:
            amount = f"{1.0005 * (base + least * unit):.4g}"
            if in_words is not None:
                amount = in_words(flat.to_mask(flat.select(prices, least, keep_at_least)[0]))
            enough = f"each is left some at {amount}: ask for that, "
        raise LayerCollapseError(
            f"the budget would leave no weight in {', '.join(empty)} (layer collapse)",
            f"{enough}spare the layer",
            keep="keep a weight in each",
        )
    return mask


def _cost_added_by_each_weight(values: Tensor, among: Tensor | None, hull: Curve, unit: float) -> Tensor:
    """Return, for each weight, what it adds to the cost of its layer if all better weights are retained.

    The result is int64 [n], at least 1.
    """
    count = len(values)
    if not count:
        return torch.zeros(0, dtype=torch.int64)
    rounding = (floor, ceil) if count < _SMALL_LAYER else (round,)
    edges = sorted({int(whole(density * count)) for density in hull.densities for whole in rounding})
    known = [hull.at(edge / count) for edge in edges]
    slopes = [
        max(1, round((high - low) / (last - first) / unit))
        for (first, last), (low, high) in zip(pairwise(edges), pairwise(known), strict=True)
    ]
    inner = list(zip(edges[1:-1], slopes, strict=False))
    price = torch.tensor(slopes[-1]).expand(count)
    if not inner:
        return price
    price = price.clone()
    ranked = values if among is None else torch.where(among, values, -1.0)
    places = [count - edge for edge, _ in inner]
    thresholds = np.partition(ranked.numpy(), places)[places].tolist()  # one partition for all edges
    for (edge, each), threshold in reversed(list(zip(inner, thresholds, strict=True))):
        better = ranked > threshold
        price[better] = each
        tied = (ranked == threshold).nonzero().flatten()
        price[tied[: edge - int(better.sum())]] = each
    return price


# -- multiplications per weight ----------------------------------------------------------------------------------------


def allocate_multiplications(
    scores: Mapping[str, Tensor],
    prices: Mapping[str, int],
    flops: float | str,
    *,
    within: Mask | None = None,
    keep_at_least: int = 0,
) -> Mask:
    """Return the mask of the weights with the highest score per multiplication, within a share of multiplications.

    The unspent rest is less than the most expensive weight costs. Ties go to the earlier weight.

    Args:
        scores: parameter name -> score of each weight, none below 0.
        prices: parameter name -> number of multiplications of one of its weights, see `multiplications_per_weight`.
        flops: share of these layers' multiplications that the mask may take, 0 < flops <= 1 or "25%".
        within: a mask of the candidates.
        keep_at_least: number of best weights that every layer retains.

    Raises:
        UsageError: if the share is outside (0, 1] or a score is below 0.
        MaskError: for scores that are NaN.
        LayerCollapseError: if a layer would be left empty; the message has the smallest budget that avoids this. Also
            if the budget does not pay for `keep_at_least` weights in each layer, see `check_floor`.
    """
    share = parse_flops_share(flops)
    flat = FlatScores.build(scores, within)
    parts = zip(scores, flat.values, strict=True)
    each = [torch.tensor(prices[name]).expand(len(values)) for name, values in parts]
    total = total_price({name: score.numel() for name, score in scores.items()}, prices)
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    check_multiplications(shapes, prices, share, within=within, least=keep_at_least)
    chosen, worth = flat.select(each, exact_share(share, total), keep_at_least)
    mask = flat.to_mask(chosen)
    if empty := [name for name, part in mask.items() if not bool(part.any())]:
        least = flat.smallest_budget_for_all_layers(worth, each)
        enough = "" if least is None else f"each is left some at {-(-10_000 * least // total) / 10_000:g}: choose it, "
        raise LayerCollapseError(
            f"{share:g} of the multiplications would leave no weight in {', '.join(empty)} (layer collapse)",
            f"{enough}spare the layer",
            keep="keep a weight in each",
        )
    return mask


def parse_flops_share(flops: float | str) -> float:
    """Parse a share of the multiplications such as 0.25 or "25%"; raise `UsageError` if it is outside (0, 1]."""
    share = parse_share(flops)
    if not 0 < share <= 1:
        raise UsageError(f"flops is the share of multiplications that is left, 0 < flops <= 1, not {flops}")
    return share


def total_price(sizes: Mapping[str, int], prices: Mapping[str, int]) -> int:
    """Return the cost of all weights, given each layer's number of weights and price of one weight."""
    return sum(prices[name] * size for name, size in sizes.items())


def exact_share(share: float, total: int) -> int:
    """Return `share` times `total`, rounded down, computed exactly from the decimal digits of `share`."""
    return int(Fraction(str(share)) * total)


# -- checks before anything is scored ----------------------------------------------------------------------------------


def check_multiplications(
    shapes: Mapping[str, tuple[int, ...]],
    prices: Mapping[str, int],
    share: float,
    *,
    within: Mask | None,
    least: int,
) -> None:
    """Raise `LayerCollapseError` if a share of the multiplications does not pay for `least` weights in each layer."""
    if least:
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        check_floor(
            sizes, prices, share, least=least, what="multiplications", available=count_candidates(shapes, within)
        )


def check_floor(
    sizes: Mapping[str, int],
    prices: Mapping[str, int],
    share: float,
    *,
    least: int = 0,
    what: str,
    available: Mapping[str, int] | None = None,
) -> int:
    """Return the budget, `share` times the cost of all weights rounded down, if it pays for `least` weights per layer.

    `sizes` has the number of weights of each layer, `prices` the cost of one weight, and `available` the number of
    candidates. If the budget is too small, raise `LayerCollapseError`, which calls the cost `what`. `least` below 1
    counts as 1.
    """
    least, total = max(least, 1), total_price(sizes, prices)
    budget = exact_share(share, total)
    floors = {name: prices[name] * min(least, size) for name, size in (available or sizes).items()}
    floor = sum(floors.values())
    if floor > budget:
        dearest = max(floors, key=lambda name: floors[name])
        weights = "one weight" if least == 1 else f"{least} weights"
        raise LayerCollapseError(
            f"{share:g} of the {what} are {budget:,}, and the least possible are {floor:,} (a share of"
            f" {_round_share_up(floor, total):g}): {weights} in each of {len(floors)} layers, of which {dearest} takes"
            f" {floors[dearest]:,}: ask for that or more, or spare layers"
        )
    return budget


def _round_share_up(part: int, total: int) -> float:
    """Return `part` / `total`, rounded up to at least three significant digits."""
    scale = 10**4
    while 1000 * total > part * scale and scale < 10**16:
        scale *= 10
    return float(Fraction(-(-part * scale // total), scale))


def check_floor_of_costs(costs: CostModel, available: Mapping[str, int], amount: float, least: int) -> None:
    """Raise an error if the budget does not pay for `least` weights in each layer.

    Costs are those of the convex hulls of the layers' cost curves. `available` has the number of candidates of each
    layer; `amount` is the budget of the whole network, in the unit of the costs. A `LayerCollapseError` names the
    smallest sufficient budget and the layer that contributes most to it.
    """
    if not least:
        return
    curves = costs.curves()
    check_costs_known(available, curves)
    floors = {
        name: curves[name].convex().at(min(least, count) / costs.layers[name].weights)
        for name, count in available.items()
    }
    floor = amount - costs.left_for(available, amount) + sum(floors.values())
    if floor > amount * (1 + _ROUNDING):
        dearest = max(floors, key=lambda name: floors[name])
        weights = "one weight" if least == 1 else f"{least} weights"
        raise LayerCollapseError(
            f"a budget of {format_cost(amount, costs.unit)} is below the {format_cost_above(floor, costs.unit)}"
            f" ({floor / costs.dense:.4g} of dense) that the network costs with {weights} in each of {len(floors)}"
            f" layers, of which {dearest} takes {format_cost(floors[dearest], costs.unit)}",
            "ask for more, keep fewer in each (keep_at_least) or spare layers",
        )


def check_costs_known(names: Iterable[str], curves: Mapping[str, Curve]) -> None:
    """Raise `UsageError` if one of the layers `names` has no cost curve."""
    if missing := [name for name in names if name not in curves]:
        raise UsageError(f"there is no cost of {', '.join(missing)}: spare them in the scope")
