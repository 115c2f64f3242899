"""Granularities by layer under one budget."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ticketry.budgets.cost_model import CostModel, Curve, LayerCost
from ticketry.budgets.layer_choice import LayerChoice
from ticketry.errors import MaskError, UsageError


def allocate_mixed(scores, costs, budget):
    return LayerChoice(scores, costs).choose_within(budget)


def line(cost, floor=0.0):
    return Curve((0.0, 1.0), (floor, cost))


def costs_of(*layers):
    return CostModel("seconds", dict(zip("ab", layers, strict=False)), 0.25)


def worth(score, kept):
    """Return the value by its definition: the logarithm of the retained share of scores, times their sum."""
    whole = float(score.sum())
    return whole * math.log(float(kept) / whole)


def best_of_all(scores, costs, budget):
    """Return the best value over all granularities and numbers of best blocks in both layers."""
    options = []
    for name, score in scores.items():
        layer = costs.layers[name]
        own = []
        for granularity, curve in layer.curves.items():
            rows = 1 if granularity == "weights" else int(granularity[5:])
            sums = score.view(-1, rows, score.shape[1]).sum(1).flatten().sort(descending=True).values
            for count in range(1, len(sums) + 1):
                own.append((curve.at(count * rows / score.numel()), worth(score, sums[:count].sum())))
        options.append(own)
    return max(
        sum(value for _, value in chosen)
        for chosen in itertools.product(*options)
        if costs.fixed + sum(cost for cost, _ in chosen) <= budget + 1e-12
    )


@pytest.mark.parametrize("seed", range(2))
def test_near_the_best_of_all_choices(seed):
    """The relaxed solution may lack one piece of one layer's hull: here, a few blocks."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(8, 12, generator=generator).double() ** 3 for name in "ab"}
    costs = costs_of(
        LayerCost(96, 1.0, {"weights": line(1.0, 0.1), "rows:4": line(0.5, 0.05)}),
        LayerCost(96, 2.0, {"weights": line(2.0, 0.1), "rows:2": line(1.6, 0.1)}),
    )
    budget = 0.25 + 0.4 * 3
    found = LayerChoice(scores, costs).choose_within(budget)
    best = best_of_all(scores, costs, budget)
    assert found.cost <= budget + 1e-9
    assert 1.1 * best <= found.value <= best + 1e-9  # values are below 0
    assert found.value == pytest.approx(
        sum(worth(scores[name], scores[name][kept].sum()) for name, kept in found.mask.items())
    )


def test_small_losses_follow_the_scores():
    """The weights with the lowest scores of all are removed first, whatever the sum of scores in their layer."""
    generator = torch.Generator().manual_seed(0)
    scores = {name: 0.5 + torch.rand(40, 50, generator=generator).double() for name in "ab"}
    scores["b"] *= 3
    layer = LayerCost(2000, 1.0, {"weights": line(1.0)})
    mask = allocate_mixed(scores, costs_of(layer, layer), 0.25 + 2 * 0.98).mask
    lowest = torch.cat([score.flatten() for score in scores.values()]).sort().values[80]
    assert float(mask["b"].float().mean()) == 1
    assert torch.equal(mask["a"], scores["a"] >= lowest)


def test_each_layer_gets_the_granularity_that_pays_for_it():
    blocks = torch.ones(8, 8)
    blocks[:4, ::2] = 9
    blocks[4:, 1::2] = 9  # groups of four rows with the same scores
    generator = torch.Generator().manual_seed(0)
    single = torch.rand(8, 8, generator=generator) ** 8
    curves = {"weights": line(1.0), "rows:4": line(0.7)}
    costs = costs_of(LayerCost(64, 1.0, curves), LayerCost(64, 1.0, curves))
    found = allocate_mixed({"a": blocks / blocks.sum(), "b": single / single.sum()}, costs, 0.25 + 0.55)
    assert found.granularities == {"a": "rows:4", "b": "weights"}
    assert torch.equal(found.mask["a"][0], found.mask["a"][3])


def test_more_budget_never_keeps_less():
    scores = {name: torch.rand(8, 12, generator=torch.Generator().manual_seed(3)) for name in "ab"}
    curves = {"weights": line(1.0, 0.1), "rows:4": line(0.5, 0.05)}
    choice = LayerChoice(scores, costs_of(LayerCost(96, 1.0, curves), LayerCost(96, 1.0, curves)))
    values = [choice.choose_within(0.45 + step / 20).value for step in range(20)]
    assert values == sorted(values)


@pytest.mark.parametrize("least", [17, 500])
def test_least(least):
    scores = {"a": torch.rand(8, 12).double(), "b": 1e-6 * torch.rand(8, 12).double()}
    costs = costs_of(LayerCost(96, 1.0, {"weights": line(1.0)}), LayerCost(96, 1.0, {"rows:4": line(1.0)}))
    found = LayerChoice(scores, costs, least=least).choose_within(0.25 + max(0.2, 2.3 * min(least, 96) / 96)).mask
    kept = {name: int(found[name].sum()) for name in "ab"}
    assert min(least, 96) <= kept["a"]
    assert min(-(-least // 4) * 4, 96) <= kept["b"] < 96 or least == 500


def test_invalid_scores_and_budgets_are_refused():
    costs = costs_of(LayerCost(4, 1.0, {"weights": line(1.0, 0.5)}))
    with pytest.raises(UsageError, match="no cost of c"):
        allocate_mixed({"c": torch.ones(2, 2)}, costs, 1)
    with pytest.raises(UsageError, match="below 0"):
        allocate_mixed({"a": -torch.ones(2, 2)}, costs, 1)
    with pytest.raises(MaskError, match="NaN"):
        allocate_mixed({"a": torch.full((2, 2), float("nan"))}, costs, 1)
    with pytest.raises(UsageError, match=r"below the 0\.875"):
        allocate_mixed({"a": torch.ones(2, 2)}, costs, 0.7)


def test_the_cheaper_layout_is_taken():
    layer = LayerCost(64, 0.5, {"weights": line(4.0)}, {"rows:8": line(0.5)})
    scores = {"a": torch.rand(8, 8, generator=torch.Generator().manual_seed(1))}
    found = allocate_mixed(scores, costs_of(layer), 0.25 + 0.26)
    assert found.granularities == {"a": "rows:8"}
    assert allocate_mixed(scores, costs_of(layer), 0.76).mask.density == 1
