"""Masks under a budget: by rules, at random, in several steps; and the advice where a layer would be empty."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.budgets.allocation import allocate_cost, check_floor
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost, mask_cost
from ticketry.budgets.pruner import allocate_budget, budget_pruner, random_mask_of_equal_cost
from ticketry.core.mask import Mask
from ticketry.core.model_calls import count_multiplications, countable_parameters
from ticketry.core.prune import densities
from ticketry.core.score import ScoreInputs
from ticketry.errors import LayerCollapseError, UsageError

SHAPES = {"a": (6, 3, 3, 3), "b": (8, 6), "c": (4, 8)}
PRICES = {"a": 49, "b": 3, "c": 1}
FULL = 49 * 162 + 3 * 48 + 32


def scores(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=draw) for name, shape in SHAPES.items()}


def cost_by_weight(kept: Mapping[str, torch.Tensor]) -> int:
    return sum(PRICES[name] for name, flags in kept.items() for flag in flags.flatten().tolist() if flag)


@pytest.mark.parametrize("share", [0.1, 0.33, 0.8])
def test_one_threshold_keeps_the_highest_scores_until_the_budget_is_spent(share):
    found, left, wanted = scores(), share * FULL, set()
    for _, name, index in sorted(
        (
            (-value, name, index)
            for name, values in found.items()
            for index, value in enumerate(values.flatten().tolist())
        )
    ):
        left -= PRICES[name]
        if left < 0:
            break
        wanted.add((name, index))
    mask = allocate_budget(found, PRICES, share, weighed=False)
    kept = {(name, index) for name in mask for index in mask[name].flatten().nonzero()[:, 0].tolist()}
    assert kept == wanted
    assert mask_cost(mask, PRICES) == cost_by_weight(mask) <= share * FULL


@pytest.mark.parametrize("distribution", ["uniform", "erk", "layerwise"])
@pytest.mark.parametrize("share", [0.15, 0.9])
def test_rules_spend_the_budget_up_to_two_of_the_most_expensive_weights(distribution, share):
    mask = allocate_budget(scores(), PRICES, share, distribution=distribution)
    assert share * FULL - 2 * 49 < cost_by_weight(mask) <= share * FULL
    assert mask == tk.allocate(scores(), mask.density, distribution=distribution)
    assert all(bool(part.any()) for part in mask.values())
    random = random_mask_of_equal_cost(mask, PRICES, 4, distribution)
    assert random != random_mask_of_equal_cost(mask, PRICES, 5, distribution)
    assert cost_by_weight(mask) - 2 * 49 < cost_by_weight(random) <= cost_by_weight(mask)


def test_every_rule_stays_within_the_candidates():
    within = Mask({name: value > 0.5 for name, value in scores().items()})
    for distribution, weighed in (("global", True), ("global", False), ("uniform", True), ("erk", True)):
        mask = allocate_budget(scores(), PRICES, 0.2, distribution=distribution, weighed=weighed, within=within)
        assert mask & within == mask
        assert cost_by_weight(mask) <= 0.2 * FULL


def test_a_budget_below_the_floor_names_its_largest_part():
    sizes = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}
    with pytest.raises(
        LayerCollapseError, match=r"least possible are 53 .* one weight in each of 3 layers.* a takes 49"
    ):
        check_floor(sizes, PRICES, 0.005, what="multiplications")
    assert check_floor(sizes, PRICES, 0.0066, what="multiplications") == 53
    with pytest.raises(LayerCollapseError, match="4 weights in each"):
        allocate_budget(scores(), PRICES, 0.02, keep_at_least=4)


@pytest.mark.parametrize(("seed", "unit"), [(0, "seconds"), (1, "bytes")])
def test_the_advised_budget_leaves_each_layer_a_weight(seed, unit):
    """It includes fixed costs and what a curve costs above its hull."""
    draw = torch.Generator().manual_seed(seed)
    found = {name: values * (1e-4 if name == "a" else 1.0) for name, values in scores(seed).items()}
    scale = 1e-3 if unit == "seconds" else 1e5
    layers = {}
    for name, values in found.items():
        dear, empty = scale * (1 + torch.rand((), generator=draw).item()), 0.1 * scale
        curve = Curve((0.0, 0.4, 0.6, 1.0), (empty, empty + 0.7 * dear, empty + 0.75 * dear, empty + dear))
        layers[name] = LayerCost(values.numel(), empty + dear, {"weights": curve})
    costs = CostModel(unit, layers, 2 * scale)
    with pytest.raises(LayerCollapseError, match="each is left some at") as caught:
        allocate_budget(found, costs, 0.45)
    words = re.search(r"at (.*) \((.*) % of the dense network's\): ask for that", str(caught.value))
    assert words is not None
    least = words[1].replace(" ", "")
    assert costs.budget(least) > 0.45 * costs.dense
    assert float(words[2]) == pytest.approx(100 * costs.budget(least) / costs.dense, rel=0.02)
    mask = allocate_budget(found, costs, least)
    assert all(bool(part.any()) for part in mask.values())
    assert mask_cost(mask, costs) <= costs.budget(least)


def test_several_steps_meet_the_same_budget():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    scope = tk.scope(model)
    prices = count_multiplications(model, scope, torch.zeros(1, 3, 8, 8))
    assert countable_parameters(model, scope) == list(prices)
    full = sum(prices[name] * value.numel() for name, value in scope.parameters(model).items())
    once = budget_pruner(model, scope, prices)(0.3)
    several = budget_pruner(model, scope, prices, iterations=4)(0.3)
    assert once == several  # magnitudes of what is left do not change
    inputs = ScoreInputs([torch.zeros(1, 3, 8, 8)], None, 0)
    flow = budget_pruner(model, scope, prices, score="synflow", iterations=3, keep_at_least=1, inputs=inputs)(0.3)
    for mask in (once, flow):
        assert 0.3 * full - 36 < mask_cost(mask, prices) <= 0.3 * full


SCORES = {"poor": torch.full((8, 4), 0.001), "rich": torch.rand(32, 8, generator=torch.Generator().manual_seed(0)) + 1}
PRICES_OF_TWO = {"poor": 3, "rich": 1}
CURVES = {"poor": Curve((0.0, 1.0), (0.0, 96.0)), "rich": Curve((0.0, 1.0), (0.0, 256.0))}
X = torch.zeros(2, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[0].weight.data *= 1e-4
    return model


def gates_of(**more: Any) -> tk.Mask:
    model = network()
    gates = tk.gates.attach(model)
    with torch.no_grad():
        gates.parameters()[0].fill_(-9.0)
    return gates.allocate(0.3, **more)


CALLS: dict[str, Callable[..., object]] = {
    "allocate": lambda **more: tk.allocate(SCORES, 0.5, **more),
    "multiplications": lambda **more: allocate_budget(SCORES, PRICES_OF_TWO, 0.3, **more),
    "multiplications by a rule": lambda **more: allocate_budget(SCORES, PRICES_OF_TWO, 0.3, weighed=False, **more),
    "costs": lambda **more: allocate_cost(SCORES, CURVES, 100.0, **more),
    "prune": lambda **more: tk.prune(network(), 0.3, **more),
    "prune flops": lambda **more: tk.prune(network(), flops=0.3, example_inputs=X, score="magnitude", **more),
    "gates": gates_of,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_advice_against_layer_collapse_works(call: Callable[..., object]):
    with pytest.raises(LayerCollapseError) as told:
        call()
    error = told.value
    assert str(error).endswith(f", or {error.keep} ({error.by})")
    argument, _, value = error.by.partition("=")
    call(**{argument: int(value) if value.isdigit() else value})


def test_collapse_errors_can_be_pickled_and_prefixed():
    error = (
        LayerCollapseError("fc is empty", "spare it", keep="keep one")
        .with_keep_argument("collapse=keep")
        .with_prefix("level 2")
    )
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert str(one) == "level 2: fc is empty; spare it, or keep one (collapse=keep)"
        assert (one.what, one.advice, one.keep, one.by) == (
            "level 2: fc is empty", "spare it", "keep one", "collapse=keep",
        )  # fmt: skip
    assert str(LayerCollapseError("fc is empty")) == "fc is empty"
    assert str(LayerCollapseError("fc is empty", keep="keep one")) == "fc is empty; keep one (keep_at_least=1)"


def test_a_budget_at_equal_prices_is_a_density():
    prices = dict.fromkeys(SHAPES, 7)
    for distribution in ("global", "uniform", "erk"):
        mask = allocate_budget(scores(), prices, 0.5, distribution=distribution)
        assert mask == tk.allocate(scores(), 0.5, distribution=distribution)


def test_keep_at_least():
    found = scores()
    found["a"] = found["a"] * 1e-3
    with pytest.raises(LayerCollapseError, match="no weight in a"):
        allocate_budget(found, PRICES, 0.02)
    mask = allocate_budget(found, PRICES, 0.02, keep_at_least=2)
    assert int(mask["a"].sum()) >= 2
    assert set(found["a"].flatten().topk(2).indices.tolist()) <= set(mask["a"].flatten().nonzero()[:, 0].tolist())
    assert cost_by_weight(mask) <= 0.02 * FULL


@pytest.mark.parametrize(("share", "found"), [(0, None), (1.5, None), (0.5, -1.0)])
def test_invalid_shares_and_scores_are_refused(share, found):
    given = {name: value if found is None else value + found for name, value in scores().items()}
    with pytest.raises(UsageError):
        allocate_budget(given, PRICES, share)


def test_granularities_are_chosen_anew_in_each_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    line = {"weights": Curve((0.0, 1.0), (0.0, 1.0)), "rows:4": Curve((0.0, 1.0), (0.0, 0.5))}
    layers = {name: LayerCost(model.get_parameter(name).numel(), 1.0, line) for name in ("0.weight", "1.weight")}
    costs, scope, inputs = CostModel("seconds", layers, 0.0), tk.scope(model), torch.randn(5, 16)
    given = {"structure": "auto", "examples": inputs}
    by_hand = None
    for share in densities(0.1, 3, "exponential"):
        by_hand = budget_pruner(model, scope, costs, within=by_hand, **given)(share)
    several = budget_pruner(model, scope, costs, iterations=3, **given)(0.1)
    assert several == by_hand
    assert costs.estimate(several).value <= 0.1 * costs.dense
