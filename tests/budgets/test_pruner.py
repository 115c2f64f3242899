"""Masks under a budget: by rules, at random, in several steps; and the advice where a layer would be empty."""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import ticketry as tk
from ticketry.budgets.allocation import allocate_cost, allocate_multiplications, check_floor, select_affordable
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost, mask_cost
from ticketry.budgets.layer_choice import allocate_by_layer_value
from ticketry.budgets.pruner import allocate_budget, budget_pruner, random_mask_of_equal_cost
from ticketry.core.mask import Mask
from ticketry.core.model_calls import count_multiplications, countable_parameters
from ticketry.core.output_change import output_change
from ticketry.core.prune import densities
from ticketry.core.score import ScoreInputs
from ticketry.errors import LayerCollapseError, MaskError, UsageError

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


def by_stable_sort(worth, price, budget):
    order = worth.argsort(descending=True, stable=True)
    order = order[worth[order] >= 0]
    chosen = torch.zeros(len(worth), dtype=torch.bool)
    chosen[order[price[order].cumsum(0) <= budget]] = True
    return chosen


@pytest.mark.parametrize("kind", ["spread", "ties", "zeros", "extremes", "excluded"])
def test_selection_is_that_of_a_stable_sort(kind):
    generator = torch.Generator().manual_seed(7)
    for count, share in itertools.product((0, 1, 1000), (0.0, 0.3, 0.77, 1.0)):
        worth = torch.rand(count, generator=generator).double()
        if kind == "ties":
            worth = (worth * 5).floor() / 3
        elif kind == "zeros":
            worth[:] = 0.0
            worth[::3] = -0.0
        elif kind == "extremes":
            worth = worth ** torch.randint(0, 60, (count,), generator=generator)
            worth[::7] = torch.inf
        elif kind == "excluded":
            worth[::2] = -1.0
        price = torch.randint(0, 50, (count,), generator=generator)
        budget = int(share * int(price.sum()))
        found = torch.cat(select_affordable(worth.split(300), price.split(300), budget))
        assert torch.equal(found, by_stable_sort(worth, price, budget))


def convex(generator, pieces=4):
    edges = np.concatenate([[0], np.sort(generator.choice(np.arange(1, 10), pieces - 1, replace=False)) / 10, [1]])
    slopes = np.sort(generator.random(pieces)) + 0.05
    costs = np.concatenate([[generator.random()], generator.random() + np.cumsum(slopes * np.diff(edges))])
    costs[0] = min(costs[0], costs[1] - slopes[0] * edges[1])
    return Curve(tuple(map(float, edges)), tuple(float(cost) for cost in costs)).convex()


def cost_of(mask, curves):
    return sum(curves[name].at(float(part.float().mean())) for name, part in mask.items())


def kept_score(mask, scores):
    return sum(float(score[mask[name]].sum()) for name, score in scores.items())


@pytest.mark.parametrize("seed", range(2))
def test_against_a_linear_program(seed):
    """The relaxed problem, solved by HiGHS: fractions of weights; a layer costs at least each line of its curve."""
    generator = np.random.default_rng(seed)
    sizes = {"a": 40, "b": 90, "c": 60}
    scores = {name: torch.tensor(generator.random(size) ** 2) for name, size in sizes.items()}
    curves = {name: convex(generator) for name in sizes}
    total = sum(sizes.values())
    budget = sum(curve.costs[0] + 0.35 * (curve.costs[-1] - curve.costs[0]) for curve in curves.values())
    rows, right = [], []
    start = 0
    for index, (name, size) in enumerate(sizes.items()):
        points = list(zip(curves[name].densities, curves[name].costs, strict=True))
        for one, other in itertools.pairwise(points):
            slope = (other[1] - one[1]) / (other[0] - one[0])
            row = np.zeros(total + 3)
            row[start : start + size] = slope / size
            row[total + index] = -1
            rows.append(row)
            right.append(slope * one[0] - one[1])
        start += size
    rows.append(np.concatenate([np.zeros(total), np.ones(3)]))
    right.append(budget)
    aim = np.concatenate([-torch.cat(list(scores.values())).numpy(), np.zeros(3)])
    solved = linprog(aim, np.array(rows), right, bounds=[(0, 1)] * total + [(0, None)] * 3)
    mask = allocate_cost(scores, curves, budget)
    assert cost_of(mask, curves) <= budget + 1e-9
    assert -solved.fun - 1 <= kept_score(mask, scores) <= -solved.fun + 1e-9
    assert mask <= allocate_cost(scores, curves, 1.2 * budget)


def test_keep_at_least():
    scores = {"a": torch.tensor([1.0, 2.0, 0.5]), "b": torch.tensor([50.0, 60.0])}
    curves = {"a": Curve((0.0, 1.0), (0.0, 30.0)), "b": Curve((0.0, 1.0), (0.0, 2.0))}
    with pytest.raises(LayerCollapseError, match=r"no weight in a .* at 12\.01: ask for that"):
        allocate_cost(scores, curves, 11)
    assert allocate_cost(scores, curves, 12.01).kept == 3
    mask = allocate_cost(scores, curves, 11.01, keep_at_least=1)
    assert mask["a"].tolist() == [False, True, False]
    assert mask["b"].tolist() == [False, True]
    with pytest.raises(UsageError, match="with 1 weights in each"):
        allocate_cost(scores, curves, 10.5, keep_at_least=1)


def test_free_weights_are_all_kept():
    """No mask makes layers that run in torch faster; rounding must not put the budget below their cost."""
    scores = {"a": torch.tensor([0.0, 1.0, 2.0]), "b": torch.tensor([3.0])}
    flat = {name: Curve((0.0, 1.0), (0.3, 0.3)) for name in scores}
    for budget in (0.6 - 1e-16, 0.6, 7.0):
        assert allocate_cost(scores, flat, budget, keep_at_least=1).kept == 4
    with pytest.raises(UsageError, match="below the"):
        allocate_cost(scores, flat, 0.59, keep_at_least=1)
    within = Mask({"a": torch.tensor([True, False, True]), "b": torch.tensor([True])})
    assert allocate_cost(scores, flat, 0.6, within=within) == within
    one = {**flat, "a": Curve((0.0, 1.0), (0.0, 0.3))}
    assert allocate_cost(scores, one, 0.6).kept == 4  # all of the budget is all of the weights
    assert allocate_cost(scores, one, 0.6 - 0.05).kept == 3


@pytest.mark.parametrize(
    ("scores", "budget", "error", "said"),
    [
        ({}, 1, MaskError, "no scores"),
        ({"a": torch.tensor([float("nan")])}, 1, MaskError, "not all numbers"),
        ({"b": torch.tensor([1.0])}, 1, UsageError, "no cost of b"),
        ({"a": torch.tensor([1.0])}, 0.5, UsageError, "below the 0.75"),
    ],
)
def test_invalid_scores_and_budgets_are_refused(scores, budget, error, said):
    with pytest.raises(error, match=said):
        allocate_cost(scores, {"a": Curve((0.0, 1.0), (0.75, 2.0))}, budget)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 5))


IMAGES = torch.zeros(2, 3, 8, 8)


def test_a_budget_of_multiplications_is_met_and_expensive_layers_lose_most(model):
    prices = count_multiplications(model, tk.scope(model), IMAGES)
    mask = tk.prune(model, flops="30%", example_inputs=IMAGES)
    total = sum(prices[name] * part.numel() for name, part in mask.items())
    spent = sum(prices[name] * int(part.sum()) for name, part in mask.items())
    assert 0.3 * total - max(prices.values()) < spent <= 0.3 * total
    plain = tk.prune(model, density=mask.density)
    assert int(mask["0.weight"].sum()) < int(plain["0.weight"].sum())


def test_worth_is_allocated_as_well_as_by_any_counts():
    """Against the best of all pairs of weight counts in two layers, computed from the definition, up to one weight."""
    torch.manual_seed(0)
    values = {"a": torch.rand(6, 4).double() ** 2, "b": 100 * torch.rand(3, 6).double() ** 2}
    prices, budget = {"a": 5, "b": 2}, 0.4 * (24 * 5 + 18 * 2)
    found = allocate_by_layer_value(values, prices, 0.4)
    kept = {name: int(part.sum()) for name, part in found.items()}
    assert sum(prices[name] * count for name, count in kept.items()) <= budget
    best = {name: value.flatten().sort(descending=True).values.cumsum(0) for name, value in values.items()}

    def worth(name, count):
        return float(best[name][-1] * (best[name][count - 1] / best[name][-1]).log())

    most = max(
        worth("a", one) + worth("b", other)
        for one in range(1, 25)
        for other in range(1, 19)
        if 5 * one + 2 * other <= budget
    )
    reached = worth("a", kept["a"]) + worth("b", kept["b"])
    piece = max(worth(name, count + 1) - worth(name, count) for name, count in kept.items())
    assert most - piece <= reached <= most + 1e-9
    for name, part in found.items():
        assert bool(part.flatten()[values[name].flatten().argsort(descending=True)[: kept[name]]].all())


def test_prune_without_a_score_allocates_the_change_of_the_outputs(model):
    outputs = output_change(model, tk.scope(model), IMAGES)
    whole = tk.prune(model, flops=0.3, example_inputs=IMAGES)
    assert whole == allocate_by_layer_value(outputs, count_multiplications(model, tk.scope(model), IMAGES), 0.3)
    assert all(row.kept for row in tk.prune(model, flops=0.02, example_inputs=IMAGES).table())
    assert all(row.kept >= 3 for row in tk.prune(model, flops=0.2, example_inputs=IMAGES, keep_at_least=3).table())


@pytest.mark.parametrize(("least", "share"), [(0, 0.45), (2, 0.6)])
def test_against_all_subsets_that_keep_the_best_of_each_layer(least, share):
    """Up to one weight, by which the relaxed optimum may differ."""
    generator = torch.Generator().manual_seed(1)
    scores = {"a": torch.rand(5, generator=generator) * 0.01, "b": torch.rand(5, generator=generator) + 0.1}
    prices = {"a": 7, "b": 3}
    cost, worth = torch.tensor([7.0] * 5 + [3.0] * 5), torch.cat(list(scores.values()))
    mask = allocate_multiplications(scores, prices, share, keep_at_least=least)
    chosen = torch.cat(list(mask.values())).float()
    for name, score in scores.items():
        assert mask[name][score.argsort(descending=True)[:least]].all()
    needed = torch.cat([score.argsort(descending=True).argsort() < least for score in scores.values()]).float()
    subsets = map(torch.tensor, itertools.product((0.0, 1.0), repeat=10))
    best = max(float(worth @ one) for one in subsets if (one >= needed).all() and float(cost @ one) <= share * 50)
    assert float(cost @ chosen) <= share * 50
    assert best - float(worth @ chosen) <= float((worth[~chosen.bool()]).max())
    with pytest.raises(LayerCollapseError, match="3 weights in each of 2 layers"):
        allocate_multiplications(scores, prices, 0.5, keep_at_least=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0.1, "example_inputs": IMAGES}, "takes the place of density"),
        ({"pattern": "4x1", "example_inputs": IMAGES}, "single weights"),
        ({}, "is of a call, in which it is counted"),
        ({"flops": 25, "example_inputs": IMAGES}, "0 < flops <= 1"),
    ],
)
def test_invalid_options_of_a_budget_of_multiplications_are_refused(model, options, said):
    with pytest.raises(UsageError, match=said):
        tk.prune(model, **{"flops": 0.2, **options})
    with pytest.raises(UsageError, match=r"not of 0\.weight_ih_l0"):
        tk.prune(nn.Sequential(nn.LSTM(3, 4)), flops=0.2, example_inputs=torch.zeros(2, 1, 3))


def test_prices_above_the_integers_that_floats_hold():
    price = torch.tensor([2**61, 2**61 + 1, 1])
    worth = torch.tensor([3.0, 2.0, 1.0]).double()
    assert select_affordable([worth], [price], 2**62)[0].tolist() == [True, False, False]
    assert select_affordable([worth], [price], 2**62 + 1)[0].tolist() == [True, True, False]
    assert select_affordable([worth], [price], 2**62 + 2)[0].tolist() == [True, True, True]


def test_a_budget_that_empties_a_layer_says_what_is_enough():
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0, 6.0])}
    with pytest.raises(LayerCollapseError, match=r"no weight in a .* at 0\.5455: choose it"):
        allocate_multiplications(scores, {"a": 10, "b": 1}, 0.1)
    # Both weights of b and the better one of a: 12 of 22.
    assert allocate_multiplications(scores, {"a": 10, "b": 1}, 0.5455).kept == 3
