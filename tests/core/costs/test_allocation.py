"""Masks under a budget, against all subsets and against a solver of linear programs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from samples import sample
from ticketry.core.costs.allocation import allocate_cost
from ticketry.core.costs.curve import Curve
from ticketry.core.mask import Mask
from ticketry.errors import LayerCollapseError, MaskError, UsageError


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


@pytest.mark.parametrize("seed", sample(range(8), 2))
def test_against_all_subsets(seed):
    """No subset within the budget has more than the mask and the next weight together."""
    generator = np.random.default_rng(seed)
    scores = {name: torch.tensor(generator.random(7) + 0.01) for name in "ab"}
    curves = {name: convex(generator) for name in scores}
    budget = sum(curve.costs[0] + 0.4 * (curve.costs[-1] - curve.costs[0]) for curve in curves.values())
    best = 0.0
    for bits in itertools.product((False, True), repeat=14):
        mask = {"a": torch.tensor(bits[:7]), "b": torch.tensor(bits[7:])}
        if cost_of(mask, curves) <= budget:
            best = max(best, kept_score(mask, scores))
    found = allocate_cost(scores, curves, budget)
    assert cost_of(found, curves) <= budget + 1e-9
    richer = allocate_cost(scores, curves, budget + max(c.costs[-1] for c in curves.values()) / 3)
    assert kept_score(found, scores) <= best + 1e-9
    left = max(float(score[~found[name]].max()) for name, score in scores.items())
    assert best <= kept_score(found, scores) + left + 1e-9
    assert found <= richer


@pytest.mark.parametrize("seed", range(6))
def test_against_a_linear_program(seed):
    """Shares of weights, and a cost of each layer above each of its lines: the relaxed problem, solved by HiGHS."""
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


def test_ties_break_by_position_and_across_edges_of_a_curve():
    curves = {"a": Curve((0.0, 0.5, 1.0), (0.0, 1.0, 3.0))}
    mask = allocate_cost({"a": torch.ones(4)}, curves, 2.01)
    assert mask["a"].tolist() == [True, True, True, False]


def test_each_layer_keeps_its_best_where_asked():
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


def test_where_no_weight_costs_anything_all_are_kept():
    """Layers that run in torch: a mask makes none faster; the budget is theirs but for the last digit."""
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


def test_candidates_alone_are_taken():
    within = Mask({"a": torch.tensor([True, False, True])})
    mask = allocate_cost({"a": torch.tensor([1.0, 9.0, 2.0])}, {"a": Curve((0.0, 1.0), (0.0, 3.0))}, 3, within=within)
    assert mask == within


@pytest.mark.parametrize(
    ("scores", "budget", "error", "said"),
    [
        ({}, 1, MaskError, "no scores"),
        ({"a": torch.tensor([float("nan")])}, 1, MaskError, "not all numbers"),
        ({"a": torch.tensor([-1.0])}, 1, UsageError, "below 0"),
        ({"b": torch.tensor([1.0])}, 1, UsageError, "no cost of b"),
        ({"a": torch.tensor([1.0])}, 0.5, UsageError, "below the 0.75"),
    ],
)
def test_what_cannot_be_meant(scores, budget, error, said):
    with pytest.raises(error, match=said):
        allocate_cost(scores, {"a": Curve((0.0, 1.0), (0.75, 2.0))}, budget)
