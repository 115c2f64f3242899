"""Masks under a budget of MACs, time or bytes: the most score for the cost, or a layer-wise rule until it is spent.

Each weight of a layer costs as many multiplications as the positions it is applied at: early convolutions over large
feature maps are expensive, linear layers are cheap. Within a budget, the retained score is largest for the weights with
the most score per multiplication (the relaxed knapsack with one Lagrange multiplier; Dantzig 1957). Where scores are an
additive estimate of the loss, layers are valued as `costs.mixed` describes. For comparison at the same budget there are
also rules that ignore prices: one threshold over all layers, uniform and ERK densities, random masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.allocate import allocate, global_counts, layer_counts
from ticketry.core.costs.allocation import Flat, allocate_cost
from ticketry.core.costs.cost_model import CostModel, least_in_words
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.core.costs.least import candidates, check_floor, in_units, total_of
from ticketry.core.costs.mixed import Choice
from ticketry.core.costs.weight_uses import COUNTED, times_used
from ticketry.core.mask import Mask
from ticketry.core.pattern import check_distribution, share_of
from ticketry.core.scope import Scope
from ticketry.errors import LayerCollapseError, UsageError
from ticketry_engine.support.seeds import generator


def uses(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, int]:
    """Count the multiplications of one weight of each parameter in a call of `model` in evaluation mode.

    Padding counts as any other input. All calls of a layer count, and so do products in which others use its weight.

    Args:
        model: any module.
        scope: the parameters.
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments.

    Raises:
        UsageError: for a parameter in scope that is a factor of no product of the call.
    """
    parameters, known = scope.parameters(model), countable_parameters(model, scope)
    found = times_used(model, parameters, example_inputs)
    if unknown := [name for name in parameters if name not in known and not found[name]]:
        raise UsageError(
            f"multiplications are counted of linear and convolution layers and other products, not of"
            f" {', '.join(unknown)}: spare them in the scope, or ask for a density"
        )
    if idle := [name for name, times in found.items() if not times]:
        raise UsageError(f"a call with the example inputs does not use {', '.join(idle)}: spare them in the scope")
    return found


def countable_parameters(model: nn.Module, scope: Scope) -> list[str]:
    """Return the parameters in scope whose multiplications `uses` counts."""
    weights = {
        id(weight)
        for module in model.modules()
        if isinstance(module, COUNTED) and (weight := module._parameters.get("weight")) is not None
    }
    return [name for name, parameter in scope.parameters(model).items() if id(parameter) in weights]


def allocate_multiplications(
    scores: Mapping[str, Tensor],
    prices: Mapping[str, int],
    flops: float | str,
    *,
    within: Mask | None = None,
    keep_at_least: int = 0,
) -> Mask:
    """Return the mask with the most score per multiplication, using at most a share `flops` of all multiplications.

    The unused rest of the budget is less than the most expensive weight costs. Ties go to the earlier position.

    Args:
        scores: parameter name -> score of each weight, at least 0.
        prices: parameter name -> multiplications of one of its weights, see `uses`.
        flops: share of the multiplications of these layers, 0 < flops <= 1 or "25%".
        within: a mask of the candidates.
        keep_at_least: number of weights that every layer retains, its best.

    Raises:
        UsageError: for a share outside (0, 1], or scores below 0.
        MaskError: for NaN scores.
        LayerCollapseError: if a layer would be left empty, with the lowest budget that leaves a weight in each; or if
            the budget is too low for `keep_at_least` weights in each layer, see `check_floor`.
    """
    share = parse_flops(flops)
    flat = Flat.of(scores, within)
    parts = zip(scores, flat.values, strict=True)
    each = tuple(torch.full((len(values),), prices[name], dtype=torch.int64) for name, values in parts)
    sizes = {name: score.numel() for name, score in scores.items()}
    total = total_of(sizes, prices)
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    check_multiplications(shapes, prices, share, within=within, least=keep_at_least)
    chosen, worth, price = flat.taken(each, in_units(share, total), keep_at_least)
    mask = flat.mask(chosen)
    if empty := [name for name, part in mask.items() if not bool(part.any())]:
        raise _layer_collapse(share, empty, flat.least(worth, price), total)
    return mask


def allocate_worth(
    values: Mapping[str, Tensor],
    prices: Mapping[str, int],
    flops: float | str,
    *,
    within: Mask | None = None,
    keep_at_least: int = 0,
) -> Mask:
    """Return the mask whose layers retain the most value for a share `flops` of the multiplications.

    Values of layers are those of `costs.mixed`. No layer is left empty. Arguments and errors are those of
    `allocate_multiplications`.
    """
    share, least = parse_flops(flops), max(1, keep_at_least)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    check_multiplications(shapes, prices, share, within=within, least=least)
    costs = in_multiplications({name: value.numel() for name, value in values.items()}, prices)
    choice = Choice(values, costs, only=FINEST, least=least, among=within)
    return choice.within(share * costs.dense).mask


def in_multiplications(sizes: Mapping[str, int], prices: Mapping[str, int]) -> CostModel:
    """Build the cost model of layers with `sizes` weights, each costing `prices` multiplications."""
    whole = {name: float(price * sizes[name]) for name, price in prices.items()}
    layers = {
        name: LayerCost(sizes[name], dense, {FINEST: Curve((0.0, 1.0), (0.0, dense))}) for name, dense in whole.items()
    }
    return CostModel("multiplications", layers, 0.0, 0.0, {"of": "the layers in scope"})


def parse_flops(flops: float | str) -> float:
    """Return the share as a number; raise `UsageError` outside (0, 1]."""
    share = share_of(flops)
    if not 0 < share <= 1:
        raise UsageError(f"flops is the share of multiplications that is left, 0 < flops <= 1, not {flops}")
    return share


def check_multiplications(
    shapes: Mapping[str, tuple[int, ...]],
    prices: Mapping[str, int],
    share: float,
    *,
    within: Mask | None,
    least: int,
) -> None:
    """Check that a share of the multiplications suffices for `least` weights in each layer.

    Raises:
        LayerCollapseError: if it does not, see `check_floor`.
    """
    if least:
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        available = candidates(shapes, within)
        check_floor(sizes, prices, share, least=least, what="multiplications", available=available)


def _layer_collapse(share: float, empty: list[str], least: int | None, total: int) -> LayerCollapseError:
    higher = "" if least is None else f"each is left some at {-(-10_000 * least // total) / 10_000:g}: choose it, "
    return LayerCollapseError(
        f"{share:g} of the multiplications would leave no weight in {', '.join(empty)} (layer collapse)",
        f"{higher}spare the layer",
        keep="keep a weight in each",
    )


Prices = Mapping[str, int] | CostModel
"""Parameter name -> cost of each of its weights, above 0; or a cost model of layers by density."""


def mask_cost(mask: Mask, prices: Prices) -> float:
    """Return the cost of the weights that a mask retains; with a cost model, of the whole network."""
    if isinstance(prices, CostModel):
        return prices.estimate(mask).value
    return sum(prices[name] * int(kept.sum()) for name, kept in mask.items())


def allocate_budget(
    scores: Mapping[str, Tensor],
    prices: Prices,
    share: float | str,
    *,
    distribution: str = "global",
    weighed: bool = True,
    within: Mask | None = None,
    keep_at_least: int = 0,
    what: str = "multiplications",
) -> Mask:
    """Return the mask of a budget. A pure function of its arguments; ties go to the earlier weight.

    Args:
        scores: parameter name -> score of each weight.
        prices: the cost of a weight; or a cost model, then `share` is of the whole network.
        share: share of the cost of all these weights together, 0 < share <= 1 or "25%"; never exceeded.
        distribution: ``global``, or a distribution of `core.allocate`; then as many weights are retained as the budget
            pays for.
        weighed: with ``global``, whether scores are divided by prices (the most score for the budget), or the highest
            scores are retained as with a density.
        within: a mask of the candidates.
        keep_at_least: number of weights that every layer retains, its best.
        what: the unit of the prices, for messages.

    Raises:
        UsageError: for a share outside (0, 1].
        LayerCollapseError: if a layer would be left empty, with the lowest share that avoids it; or if the budget is
            too low for `keep_at_least` weights in each layer, with the floor and the layer that contributes most to it.
    """
    check_distribution(distribution)
    if isinstance(prices, CostModel):
        amount = prices.budget(share)
        if weighed and distribution == "global":
            return _by_hulls(scores, prices, amount, within, keep_at_least)
        return _by_rule(scores, prices, amount, distribution, within, keep_at_least)
    wanted = share_of(share)
    if not 0 < wanted <= 1:
        raise UsageError(f"a budget is a share of all {what}, 0 < share <= 1, not {share}")
    sizes = {name: score.numel() for name, score in scores.items()}
    available = candidates({name: tuple(score.shape) for name, score in scores.items()}, within)
    budget = check_floor(sizes, prices, wanted, least=keep_at_least, what=what, available=available)
    if weighed and distribution == "global":
        return allocate_multiplications(scores, prices, wanted, within=within, keep_at_least=keep_at_least)
    try:
        return _by_rule(scores, prices, budget, distribution, within, keep_at_least)
    except LayerCollapseError as error:
        raise error.with_prefix(f"{wanted:g} of the {what}, distribution {distribution}") from None


def random_mask_of_equal_cost(like: Mask, prices: Prices, seed: int, distribution: str = "global") -> Mask:
    """Return a random mask that costs as much as `like`, up to the cost of one weight; no layer is left empty.

    Args:
        like: the mask to match.
        prices: see `allocate_budget`.
        seed: of the random numbers.
        distribution: of the weights over the layers: ``global`` (uniformly random), ``uniform`` or ``erk``.
    """
    scores = {
        name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "random_prune", index))
        for index, (name, shape) in enumerate(like.shapes.items())
    }
    return _by_rule(scores, prices, mask_cost(like, prices), distribution, None, 1)


_BISECTIONS = 20
"""Bisection steps of the budget that hulls are given; they find it to a millionth."""


def _by_hulls(scores: Mapping[str, Tensor], costs: CostModel, amount: float, within: Mask | None, least: int) -> Mask:
    """Return the mask with the most score whose cost by the curves meets the budget.

    The mask is chosen by the convex hulls of the curves. A curve above its hull (a kernel that is no faster with half
    of its weights) costs more than the hull says; then the hulls get the largest budget at which the curves fit.
    """
    curves, left = costs.curves(), costs.left_for(scores, amount)
    found = allocate_cost(
        scores, curves, left, within=within, keep_at_least=least, in_words=partial(least_in_words, costs)
    )
    if mask_cost(found, costs) <= amount:
        return found
    low, high, best = costs.left_for(scores, costs.floor), left, None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        try:
            found = allocate_cost(scores, curves, middle, within=within, keep_at_least=least)
        except (LayerCollapseError, UsageError):
            low = middle  # too little for a weight in each layer
            continue
        if mask_cost(found, costs) <= amount:
            low, best = middle, found
        else:
            high = middle
    if best is None:
        raise LayerCollapseError(
            f"{amount / costs.dense:.4g} of the {costs.unit} would leave no weight in some layer (layer collapse)",
            "ask for more, spare layers",
            keep="keep a weight in each",
        )
    return best


def _by_rule(
    scores: Mapping[str, Tensor], prices: Prices, budget: float, distribution: str, within: Mask | None, least: int
) -> Mask:
    """Retain as many weights as the budget pays for, by a distribution that ignores prices."""
    total = sum(score.numel() for score in scores.values())
    count = _affordable(scores, prices, budget, distribution, within)
    while True:
        mask = allocate(scores, count / total, distribution=distribution, within=within, keep_at_least=least)
        over = mask_cost(mask, prices) - budget
        if over <= 0:
            return mask
        # Floors of layers were added, or a fraction was rounded up.
        count -= max(1, int(over // max(prices.values())) if not isinstance(prices, CostModel) else count // 1000)


def _affordable(
    scores: Mapping[str, Tensor], prices: Prices, budget: float, distribution: str, within: Mask | None
) -> int:
    """Return the number of weights that the budget pays for under a distribution, without floors."""
    if isinstance(prices, CostModel):
        return _affordable_by_curves(scores, prices, budget, distribution, within)
    if distribution == "global":
        values = torch.cat([_candidates(scores, name, within) for name in scores])
        price = torch.cat([torch.full((score.numel(),), prices[name]) for name, score in scores.items()])
        order = values.argsort(descending=True, stable=True)
        costs = price[order[values[order] > -torch.inf]].cumsum(0)
        return int(torch.searchsorted(costs, budget, right=True))
    available = {name: score.numel() if within is None else int(within[name].sum()) for name, score in scores.items()}

    def cost(count: int) -> int:
        counts = layer_counts(scores, available, count, distribution, ())
        return sum(prices[name] * kept for name, kept in counts.items())

    return _largest_number(lambda count: cost(count) <= budget, sum(available.values()))


def _affordable_by_curves(
    scores: Mapping[str, Tensor], costs: CostModel, budget: float, distribution: str, within: Mask | None
) -> int:
    """Return `_affordable` where the cost of a layer is not linear in its density."""
    values = {name: _candidates(scores, name, within) for name in scores}
    candidates = {name: part[part > -torch.inf] for name, part in values.items()}
    available = {name: len(part) for name, part in candidates.items()}
    left = costs.left_for(scores, budget)

    def cost(count: int) -> float:
        counts = layer_counts(scores, available, count, distribution, ()) or global_counts(candidates, count)
        return sum(costs.layers[name].at(kept / scores[name].numel()) for name, kept in counts.items())

    return _largest_number(lambda count: cost(count) <= left, sum(available.values()))


def _candidates(scores: Mapping[str, Tensor], name: str, within: Mask | None) -> Tensor:
    """Return scores [n] in float64, -inf where a weight is no candidate."""
    values = scores[name].detach().cpu().flatten().double()
    return values if within is None else values.masked_fill(~within[name].cpu().flatten(), -torch.inf)


def _largest_number(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that satisfies a monotonic predicate, by bisection."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
