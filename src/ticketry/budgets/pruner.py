"""Choose masks under a cost budget: for searches, controls, and comparisons at equal cost.

By default weights are retained by score divided by price. The alternatives serve for comparisons at the same cost
instead of the same density: one threshold over all layers (global magnitude), uniform and ERK densities, random masks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.budgets.allocation import allocate_cost, allocate_multiplications, check_floor
from ticketry.budgets.cost_model import CostModel, Prices, describe_required_budget, mask_cost
from ticketry.budgets.layer_choice import LayerChoice, allocate_by_layer_value, zero_outside
from ticketry.budgets.units import FINEST, retains_whole_blocks, single_granularity
from ticketry.core.allocate import allocate, count_candidates, count_largest_per_tensor, count_weights_per_layer
from ticketry.core.mask import Mask
from ticketry.core.prune import densities, name_final_target_in_errors
from ticketry.core.scope import Scope
from ticketry.core.score import Score, ScoreInputs, get
from ticketry.core.score.measurement import cache_batches, has_mask_option, score_pruned_model
from ticketry.core.structure.layout import layouts, layouts_or_rows_first
from ticketry.core.structure.pattern import check_distribution, parse_share
from ticketry.errors import LayerCollapseError, UsageError
from ticketry_engine.support.seeds import generator


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
    """Return a mask within a budget; the result depends only on the arguments, and ties go to the earlier weight.

    Args:
        scores: parameter name -> score of each weight.
        prices: parameter name -> cost of one weight; or a cost model of the whole network.
        share: budget as a share, 0 < share <= 1 or "25%", of the cost of all these weights, or with a cost model of the
            whole network. The mask never costs more.
        distribution: ``global``, or another rule by which retained weights are spread over the layers, see
            `core.allocate`. With another rule, the mask retains as many weights as the budget pays for.
        weighed: for ``global``: whether the retained sum of scores is maximised for the budget (score against price),
            or the highest scores are retained whatever they cost.
        within: a mask that retains the candidates; by default all weights.
        keep_at_least: minimum number of weights that every layer retains.
        what: name of the cost in error messages.

    Raises:
        UsageError: if the share is outside (0, 1].
        LayerCollapseError: if a layer would be left empty; the message has the smallest share that avoids this. Also if
            the budget does not pay for `keep_at_least` weights in each layer; the message has the smallest possible
            cost and the layer that contributes most to it.
    """
    check_distribution(distribution)
    if isinstance(prices, CostModel):
        amount = prices.budget(share)
        if weighed and distribution == "global":
            return _allocate_by_convex_hulls(scores, prices, amount, within, keep_at_least)
        return _allocate_ignoring_prices(scores, prices, amount, distribution, within, keep_at_least)
    wanted = parse_share(share)
    if not 0 < wanted <= 1:
        raise UsageError(f"a budget is a share of all {what}, 0 < share <= 1, not {share}")
    sizes = {name: score.numel() for name, score in scores.items()}
    available = count_candidates({name: tuple(score.shape) for name, score in scores.items()}, within)
    budget = check_floor(sizes, prices, wanted, least=keep_at_least, what=what, available=available)
    if weighed and distribution == "global":
        return allocate_multiplications(scores, prices, wanted, within=within, keep_at_least=keep_at_least)
    try:
        return _allocate_ignoring_prices(scores, prices, budget, distribution, within, keep_at_least)
    except LayerCollapseError as error:
        raise error.with_prefix(f"{wanted:g} of the {what}, distribution {distribution}") from None


def budget_pruner(
    model: nn.Module,
    scope: Scope,
    prices: Prices,
    *,
    score: str | Score = "magnitude",
    within: Mask | None = None,
    iterations: int = 1,
    schedule: str = "exponential",
    regrow: bool = False,
    inputs: ScoreInputs | None = None,
    structure: str = "none",
    by_value: bool = False,
    **rule: Any,
) -> Callable[[float], Mask]:
    """Return a function that maps a share of the dense cost to a mask, as `prune` does for densities.

    Call it with several shares to meet a budget by measurement: scores of the unpruned model are computed only once.

    Args:
        prices: costs, see `allocate_budget`.
        within: a mask that retains the candidates; by default all weights.
        iterations, schedule, regrow: see `prune`; intermediate rounds have shares of the dense cost instead of
            densities.
        inputs: batches, loss and seed that the score needs.
        structure: ``auto`` chooses a granularity for each layer, among those of the cost model in seconds; a
            granularity applies to all layers, see `layer_choice`. A block's score is the sum over its weights in
            `within`, and blocks are retained whole. The score should be additive.
        by_value: choose single weights so that the total value of layers is largest, see `layer_choice`. Of the options
            of `allocate_budget` only `keep_at_least` then applies. The score should be additive.
        rule: further options of `allocate_budget`.
    """
    function, inputs = get(score), inputs or ScoreInputs(None, None, 0)
    if regrow and not has_mask_option(function):
        raise UsageError("regrow needs a score that rates removed weights, by the option `at`")
    if iterations > 1:
        inputs = cache_batches(inputs, model)

    @cache
    def unpruned_scores() -> dict[str, Tensor]:
        return score_pruned_model(function, model, scope, within if has_mask_option(function) else None, inputs)

    only, least = single_granularity(structure), rule.get("keep_at_least", 0)
    known = (
        (layouts_or_rows_first if only == FINEST else layouts)(model, scope) if retains_whole_blocks(structure) else {}
    )

    def prune_to_share(share: float) -> Mask:
        mask = within
        for target in densities(share, iterations, schedule):
            scores = unpruned_scores() if mask is within else score_pruned_model(function, model, scope, mask, inputs)
            among = within if regrow else mask
            if retains_whole_blocks(structure):
                assert isinstance(prices, CostModel)
                choice = LayerChoice(zero_outside(scores, among), prices, known, only=only)
                mask = choice.choose_within(prices.budget(target)).mask
                continue
            with name_final_target_in_errors(target, share, "a share of"):
                if not by_value:
                    mask = allocate_budget(scores, prices, target, within=among, **rule)
                elif isinstance(prices, CostModel):
                    choice = LayerChoice(scores, prices, only=FINEST, least=max(least, 1), among=among)
                    mask = choice.choose_within(prices.budget(target)).mask
                else:
                    mask = allocate_by_layer_value(scores, prices, target, within=among, keep_at_least=least)
        assert mask is not None
        return mask

    return prune_to_share


def random_mask_of_equal_cost(like: Mask, prices: Prices, seed: int, distribution: str = "global") -> Mask:
    """Return a random mask without empty layers that costs as much as `like`, or less by under one weight's cost.

    Retained weights are spread over the layers at random (``global``), or by the distribution ``uniform`` or ``erk``.
    """
    scores = {
        name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "random_prune", index))
        for index, (name, shape) in enumerate(like.shapes.items())
    }
    return _allocate_ignoring_prices(scores, prices, mask_cost(like, prices), distribution, None, 1)


_HALVINGS = 20
"""Number of bisections that find, to a millionth, the budget that convex hulls of curves get."""


def _allocate_by_convex_hulls(
    scores: Mapping[str, Tensor], costs: CostModel, amount: float, within: Mask | None, least: int
) -> Mask:
    """Return the mask with the largest sum of scores whose exact cost is within `amount`.

    Masks are found by the convex hulls of cost curves. If a curve is above its hull (a kernel that is not faster with
    half of its weights), a mask costs more than the hulls say, so the hulls get a smaller budget.
    """
    curves, left = costs.curves(), costs.left_for(scores, amount)
    in_words = partial(describe_required_budget, costs)
    found = allocate_cost(scores, curves, left, within=within, keep_at_least=least, in_words=in_words)
    if mask_cost(found, costs) <= amount:
        return found
    low, high, best = costs.left_for(scores, costs.floor), left, None
    for _ in range(_HALVINGS):
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


def _allocate_ignoring_prices(
    scores: Mapping[str, Tensor], prices: Prices, budget: float, distribution: str, within: Mask | None, least: int
) -> Mask:
    """Return a mask by a rule that ignores prices, with as many weights as the budget pays for."""
    total = sum(score.numel() for score in scores.values())
    count = _count_affordable(scores, prices, budget, distribution, within)
    while True:
        mask = allocate(scores, count / total, distribution=distribution, within=within, keep_at_least=least)
        over = mask_cost(mask, prices) - budget
        if over <= 0:
            return mask
        # Minimums of layers came on top, or a fraction was rounded up.
        count -= max(1, int(over // max(prices.values())) if not isinstance(prices, CostModel) else count // 1000)


def _count_affordable(
    scores: Mapping[str, Tensor], prices: Prices, budget: float, distribution: str, within: Mask | None
) -> int:
    """Return how many weights a `distribution` can retain within the budget, without a minimum per layer."""
    if not isinstance(prices, CostModel) and distribution == "global":
        values = torch.cat([_candidate_scores(scores, name, within) for name in scores])
        price = torch.cat([torch.full((score.numel(),), prices[name]) for name, score in scores.items()])
        order = values.argsort(descending=True, stable=True)
        costs = price[order[values[order] > -torch.inf]].cumsum(0)
        return int(torch.searchsorted(costs, budget, right=True))
    available = {name: score.numel() if within is None else int(within[name].sum()) for name, score in scores.items()}
    left, finite = budget, dict[str, Tensor]()
    if isinstance(prices, CostModel):
        left = prices.left_for(scores, budget)
        for name in scores:
            part = _candidate_scores(scores, name, within)
            finite[name] = part[part > -torch.inf]

    def is_too_expensive(count: int) -> bool:
        shares = count_weights_per_layer(scores, available, count, distribution, ())
        if not isinstance(prices, CostModel):
            return sum(prices[name] * kept for name, kept in shares.items()) > left
        shares = shares or count_largest_per_tensor(finite, count)
        return sum(prices.layers[name].at(kept / scores[name].numel()) for name, kept in shares.items()) > left

    return bisect_left(range(1, sum(available.values()) + 1), True, key=is_too_expensive)


def _candidate_scores(scores: Mapping[str, Tensor], name: str, within: Mask | None) -> Tensor:
    """Return a layer's scores as float64 [n], with -inf for weights that `within` removes."""
    values = scores[name].detach().cpu().flatten().double()
    return values if within is None else values.masked_fill(~within[name].cpu().flatten(), -torch.inf)
