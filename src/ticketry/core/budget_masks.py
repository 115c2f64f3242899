"""Masks under a budget: most score for what weights cost, or layers' densities by a rule until the budget is spent.

`core.budget` weighs each score against its price. The others here are what it is compared with, at the same budget and
not at the same density: one threshold over all layers (global magnitude), uniform and ERK densities, random masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.allocate import allocate, global_counts, layer_shares
from ticketry.core.budget import allocate_multiplications, allocate_worth
from ticketry.core.costs.allocation import allocate_cost
from ticketry.core.costs.cost_model import CostModel, least_in_words
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.least import candidates, check_floor
from ticketry.core.costs.mixed import Choice, allocate_mixed, worth_within
from ticketry.core.layout import Layout, layouts, layouts_or_rows
from ticketry.core.mask import Mask
from ticketry.core.pattern import check_distribution, share_of
from ticketry.core.prune import densities, measures_at_mask, on_the_way, scores_in
from ticketry.core.scope import Scope
from ticketry.core.score import Score, ScoreInputs, get
from ticketry.core.score._measure import kept_batches
from ticketry.core.structuring import in_blocks, only_of
from ticketry.errors import LayerCollapseError, UsageError
from ticketry_engine.support.seeds import generator

Prices = Mapping[str, int] | CostModel
"""Parameter name -> what each of its weights costs, above 0; or costs of layers by density."""


def spent(mask: Mask, prices: Prices) -> float:
    """What the weights that a mask keeps cost together; by costs of layers, the whole network."""
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
    """The mask of a budget. A pure function of its arguments; ties go to the earlier weight.

    Args:
        scores: parameter name -> score of each weight.
        prices: what a weight costs; or costs of layers, whose share is of the whole network's.
        share: of the cost of all these weights together, 0 < share <= 1 or "25%"; never more is spent.
        distribution: ``global``, or how the weights kept are spread over the layers, see `core.allocate`: then as many
            are kept as the budget pays for.
        weighed: of ``global``, whether each score is weighed against the price (most score for the budget), or the
            highest scores are kept wherever they lie, as a density does.
        within: a mask of the candidates.
        keep_at_least: weights that every layer keeps, its best.
        what: is counted, for errors.

    Raises:
        UsageError: for a share outside (0, 1].
        LayerCollapseError: if a layer would be left empty, with the least share that does not; for a budget that does
            not pay for `keep_at_least` weights in each layer, with the floor and the layer that makes most of it.
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
    """Share of a budget -> its mask by a model's scores, in one cut or several, as `prune` makes that of a density.

    A budget that is met by measurement asks for several shares: what the model is scored by as it is, is found once.

    Args:
        iterations, schedule, regrow: as of `prune`; the shares on the way are of the budget.
        inputs: what the score needs.
        structure: ``auto`` to choose for each layer among the granularities that costs in seconds know, or one of these
            for all layers, see `costs.mixed`: blocks are worth what `within` keeps of them, and are kept whole. The
            score should be one that can be added up.
        by_value: single weights by what layers are worth, see `budget.allocate_worth`, of those that `within` keeps; of
            the rules of `allocate_budget` only `keep_at_least`. The score should be one that can be added up.
        rule: of `allocate_budget`.
    """
    function, inputs = get(score), inputs or ScoreInputs(None, None, 0)
    if regrow and not measures_at_mask(function):
        raise UsageError("regrow needs a score that tells what removed weights would be worth, by the option `at`")
    if iterations > 1:
        inputs = kept_batches(inputs, model)

    @cache
    def first() -> dict[str, Tensor]:
        return scores_in(function, model, scope, within if measures_at_mask(function) else None, inputs)

    single = only_of(structure) == FINEST
    known = (layouts_or_rows if single else layouts)(model, scope) if in_blocks(structure) else {}

    def prune(share: float) -> Mask:
        mask = within
        for target in densities(share, iterations, schedule):
            scores = first() if mask is within else scores_in(function, model, scope, mask, inputs)
            among = within if regrow else mask
            if in_blocks(structure):
                mask = _mixed(scores, prices, target, among, known, structure)
                continue
            with on_the_way(target, share, "a share of"):
                if by_value:
                    mask = _by_value(scores, prices, target, among, rule.get("keep_at_least", 0))
                else:
                    mask = allocate_budget(scores, prices, target, within=among, **rule)
        assert mask is not None
        return mask

    return prune


def _mixed(
    scores: Mapping[str, Tensor],
    costs: Prices,
    share: float,
    within: Mask | None,
    known: Mapping[str, Layout],
    structure: str,
) -> Mask:
    """The mask of a budget with a granularity of its own in each layer, where what is not `within` is worth nothing."""
    assert isinstance(costs, CostModel)
    scores = worth_within(scores, within)
    return allocate_mixed(scores, costs, costs.budget(share), known, only=only_of(structure)).mask


def _by_value(scores: Mapping[str, Tensor], prices: Prices, share: float, within: Mask | None, least: int) -> Mask:
    """The mask of a budget whose layers are worth most together, of single weights."""
    if isinstance(prices, CostModel):
        choice = Choice(scores, prices, only=FINEST, least=max(least, 1), among=within)
        return choice.within(prices.budget(share)).mask
    return allocate_worth(scores, prices, share, within=within, keep_at_least=least)


def random_of_cost(like: Mask, prices: Prices, seed: int, distribution: str = "global") -> Mask:
    """A random mask that costs as much as `like`, but for less than one weight; no layer is left empty.

    Args:
        distribution: of the weights over the layers: ``global`` (as chance has it), ``uniform`` or ``erk``.
    """
    scores = {
        name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "random_prune", index))
        for index, (name, shape) in enumerate(like.shapes.items())
    }
    return _by_rule(scores, prices, spent(like, prices), distribution, None, 1)


_HALVINGS = 20
"""Of the money that hulls are given: to a millionth."""


def _by_hulls(scores: Mapping[str, Tensor], costs: CostModel, amount: float, within: Mask | None, least: int) -> Mask:
    """Most score for the budget, by the hulls of the curves, with as little money as makes the curves themselves fit.

    Where a curve lies above its hull (a kernel that is no faster at half of its weights), what the hull pays for costs
    more than it says.
    """
    curves, left = costs.curves(), costs.left_for(scores, amount)
    found = allocate_cost(
        scores, curves, left, within=within, keep_at_least=least, in_words=partial(least_in_words, costs)
    )
    if spent(found, costs) <= amount:
        return found
    low, high, best = costs.left_for(scores, costs.floor), left, None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        try:
            found = allocate_cost(scores, curves, middle, within=within, keep_at_least=least)
        except (LayerCollapseError, UsageError):
            low = middle  # too little for a weight in each layer
            continue
        if spent(found, costs) <= amount:
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
    """As many weights as the budget pays for, by a rule that takes no notice of prices."""
    total = sum(score.numel() for score in scores.values())
    count = _affordable(scores, prices, budget, distribution, within)
    while True:
        mask = allocate(scores, count / total, distribution=distribution, within=within, keep_at_least=least)
        over = spent(mask, prices) - budget
        if over <= 0:
            return mask
        # The floors of layers came on top, or a fraction was rounded up.
        count -= max(1, int(over // max(prices.values())) if not isinstance(prices, CostModel) else count // 1000)


def _affordable(
    scores: Mapping[str, Tensor], prices: Prices, budget: float, distribution: str, within: Mask | None
) -> int:
    """How many weights a rule can keep for the budget, without any floors."""
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
        shares = layer_shares(scores, available, count, distribution, ())
        return sum(prices[name] * kept for name, kept in shares.items())

    return _last(lambda count: cost(count) <= budget, sum(available.values()))


def _affordable_by_curves(
    scores: Mapping[str, Tensor], costs: CostModel, budget: float, distribution: str, within: Mask | None
) -> int:
    """`_affordable` where the next weight of a layer costs more or less the denser it is."""
    values = {name: _candidates(scores, name, within) for name in scores}
    candidates = {name: part[part > -torch.inf] for name, part in values.items()}
    available = {name: len(part) for name, part in candidates.items()}
    left = costs.left_for(scores, budget)

    def cost(count: int) -> float:
        shares = layer_shares(scores, available, count, distribution, ()) or global_counts(candidates, count)
        return sum(costs.layers[name].at(kept / scores[name].numel()) for name, kept in shares.items())

    return _last(lambda count: cost(count) <= left, sum(available.values()))


def _candidates(scores: Mapping[str, Tensor], name: str, within: Mask | None) -> Tensor:
    """Scores [n] in float64; of what is no candidate the lowest there is."""
    values = scores[name].detach().cpu().flatten().double()
    return values if within is None else values.masked_fill(~within[name].cpu().flatten(), -torch.inf)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The last number up to `most` for which something holds that holds for 0 and, once it does not, never again."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
