"""Impossible minimums of layers are refused before anything is scored, exactly where allocation would fail."""

from __future__ import annotations

import re
from contextlib import nullcontext
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ticketry as tk
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost
from ticketry.core.allocate import allocate, check_layer_minimum
from ticketry.core.structure.channel_masks import check_channel_density
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import LayerCollapseError, UsageError

X = torch.zeros(2, 8)
SHAPES = {"0.weight": (16, 8), "2.weight": (4, 16)}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("something was scored or measured")


def known_costs(unit: Any) -> CostModel:
    """One unit for each weight and 8 fixed: 200 in all, of which 0.weight is 128."""
    layers = {
        name: LayerCost(prod(shape), float(prod(shape)), {"weights": Curve((0.0, 1.0), (0.0, float(prod(shape))))})
        for name, shape in SHAPES.items()
    }
    return CostModel(unit, layers, fixed=8.0, about={"processor": "none that there is"})


def refused(scores: dict[str, torch.Tensor], density: float, least: int, **more: Any) -> bool:
    try:
        allocate(scores, density, keep_at_least=least, **more)
    except LayerCollapseError:
        return True
    return False


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=4),
    st.sampled_from(("unstructured", "2x1", "4x1", "2:4", "1:2")),
    st.sampled_from(("global", "uniform", "erk")),
    st.integers(1, 100),
    st.integers(1, 30),
    st.integers(0, 2**31),
)
def test_minimums_are_refused_exactly_where_allocation_fails(shapes, pattern, distribution, percent, least, seed):
    """Rows are multiples of 4, so that all blocks have one size and scores make no difference."""
    found = Pattern.parse(pattern)
    draw = torch.Generator().manual_seed(seed)
    scores = {str(n): torch.rand(4 * rows, 4 * columns, generator=draw) for n, (rows, columns) in enumerate(shapes)}
    density = min(percent / 100, found.densest) if found.m else percent / 100
    late = refused(scores, density, least, pattern=pattern, distribution=distribution)
    try:
        check_layer_minimum({name: tuple(one.shape) for name, one in scores.items()}, density, least, pattern=found)
    except LayerCollapseError:
        assert late
    else:
        assert not late


def test_only_candidates_count():
    """One layer has 8 candidates of 8 weights, the other 2: a minimum of 3 in each is 5 in all."""
    within = tk.Mask({"a": torch.arange(8) < 8, "b": torch.arange(8) < 2})
    shapes = {"a": (8,), "b": (8,)}
    check_layer_minimum(shapes, 5 / 16, 3, within=within)
    with pytest.raises(LayerCollapseError, match=r"it is 4 weights, and those would be 5, 3 of them in a;"):
        check_layer_minimum(shapes, 4 / 16, 3, within=within)
    empty = tk.Mask({"a": torch.arange(8) < 8, "b": torch.arange(8) < 0})
    with pytest.raises(LayerCollapseError, match="b has none left"):
        check_layer_minimum(shapes, 0.5, 1, within=empty)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        # Of 192 weights.
        ({"density": 0.02, "keep_at_least": 3}, r"it is 4 .* would be 6, 3 of them in 0\.weight;"),
        ({"density": 0.1, "keep_at_least": 9, "pattern": "16x1"}, r"it is 19 .* would be 28 in .*, 16 of them in 0\.w"),
        ({"density": 0.2, "keep_at_least": 100, "pattern": "2:4"}, r"it is 38 .* would be 96, 64 of them"),
        # Each weight is multiplied once with each of 2 examples.
        ({"flops": 0.5, "example_inputs": X, "keep_at_least": 50}, r"are 192, .* are 200 .* 0\.weight takes 100"),
    ],
)
def test_prune_refuses_before_scoring(options: dict[str, Any], said: str):
    with pytest.raises(LayerCollapseError, match=said):
        tk.prune(network(), score=never, **options)


@pytest.mark.parametrize(("unit", "amount"), [("seconds", 0.5), ("seconds", "100"), ("bytes", "50%")])
def test_a_budget_with_known_costs_refuses_before_scoring(unit: str, amount: float | str):
    """Half of 200 is 100; 50 weights in each layer cost 8 + 50 + 50."""
    costs, budget = known_costs(unit), "time" if unit == "seconds" else "bytes"
    amount = f"{amount}{'s' if unit == 'seconds' else 'B'}" if amount == "100" else amount
    given: dict[str, Any] = {budget: amount, "example_inputs": X, "cost": costs}
    given |= {"base": "engine"} if unit == "seconds" else {}
    with pytest.warns(UserWarning, match="another machine") if unit == "seconds" else nullcontext():
        with pytest.raises(LayerCollapseError, match=r"the 108 .*\(0\.54 of dense\).* 50 weights .* 2 layers.* 50"):
            tk.prune(network(), **given, score=never, keep_at_least=50)
        assert tk.prune(network(), **given, keep_at_least=46).kept == 92


def test_gradual_pruning_refuses_before_training():
    with pytest.raises(LayerCollapseError, match=re.escape("it is 4 weights, and those would be 6")):
        tk.gradual(network(), 0.02, steps=100, keep_at_least=3)
    with pytest.raises(LayerCollapseError, match="in whole blocks of 4x1"):
        tk.gradual(network(), 0.02, steps=100, keep_at_least=9, pattern="4x1")
    tk.gradual(network(), 6 / 192, steps=100, keep_at_least=3)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4),
    st.sampled_from(("2x1", "4x1", "channel")),
    st.integers(1, 100),
    st.integers(1, 30),
    st.integers(0, 2**31),
)
def test_minimums_that_some_scores_permit_are_not_refused(shapes, pattern, percent, least, seed):
    draw = torch.Generator().manual_seed(seed)
    scores = {str(n): torch.rand(shape, generator=draw) for n, shape in enumerate(shapes)}
    if not refused(scores, percent / 100, least, pattern=pattern):
        check_layer_minimum(dict(enumerate(shapes)), percent / 100, least, pattern=Pattern.parse(pattern))


def test_a_layer_with_fewer_candidates_keeps_all():
    within = tk.Mask({"0.weight": torch.arange(128).view(16, 8) < 1, "2.weight": torch.ones(4, 16).bool()})
    mask = tk.prune(network(), flops=0.06, example_inputs=X, keep_at_least=10, within=within)  # 11 of 192 weights
    assert [row.kept for row in mask.table()] == [1, 10]


@pytest.mark.parametrize("budget", ["time", "bytes"])
def test_a_minimum_of_all_weights_is_refused_before_measuring(budget: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("latency.measure_costs", "model_costs.model", "latency.Meter"):
        monkeypatch.setattr(f"ticketry.budgets.{name}", never)
    options: dict[str, Any] = {budget: 0.5, "example_inputs": X, "score": never, "keep_at_least": 128}
    options |= {"base": "engine"} if budget == "time" else {}
    with pytest.raises(LayerCollapseError, match=r"128 weights kept .* 0\.weight, has 128, .* of all 2 layers"):
        tk.prune(network(), **options)
    with pytest.raises(UsageError, match="is for a time"):
        tk.prune(network(), bytes=0.5, example_inputs=X, structure="auto", score=never)


def test_a_budget_with_measured_costs_refuses_before_timing_masks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ticketry.budgets.latency.measure_costs", lambda *_, **__: known_costs("seconds"))
    monkeypatch.setattr("ticketry.budgets.latency.time_masks_near_budget", never)
    with pytest.raises(LayerCollapseError, match=r"50 weights in each of 2 layers, of which 0\.weight takes 50 s"):
        tk.cost.meet(network(), X, 0.5, base="engine", keep_at_least=50)


def test_channels_are_refused_before_scoring():
    """12 of 16 hidden units have 12 * 8 + 12 + 4 * 12 of 128 + 16 + 64 weights."""
    given: dict[str, Any] = {"score": never, "keep_at_least": 12}
    with pytest.raises(LayerCollapseError, match=r"12 left in each of 1 gr.* \(156 of 208, most of them in 0\.w"):
        tk.structure.channels(network(), X, 0.5, **given)
    with pytest.raises(LayerCollapseError, match=r"12 \(the least multiple of 4\) left"):
        tk.structure.channels(network(), X, 0.5, score=never, keep_at_least=9, multiple=4)
    structure, scope = tk.structure.tried_structure(network(), X), tk.scope(network())
    check_channel_density(network(), structure, 156 / 208, scope=scope, keep_at_least=12)
    with pytest.raises(LayerCollapseError, match="12 left"):
        check_channel_density(network(), structure, 0.7, scope=scope, keep_at_least=12)
