"""Cost models: estimates by density and granularity, files, budgets, and the advice for one below the floor."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from ticketry.budgets.cost_model import CostModel, Curve, LayerCost, advice_for_cheaper_parts, mask_granularity
from ticketry.budgets.units import parse_amount
from ticketry.core.mask import Mask
from ticketry.errors import CostError, UsageError


def test_curves_are_linear_between_points_and_never_fall():
    curve = Curve.fit([(0.1, 2.0), (0.5, 6.0), (0.8, 7.0), (1.0, 5.0)])
    assert curve == Curve((0.0, 0.1, 0.5, 0.8, 1.0), (1.0, 2.0, 6.0, 6.0, 6.0))
    assert curve.at(0.3) == pytest.approx(4.0)
    assert curve.at(0) == 1.0
    assert curve.at(1) == 6.0
    assert Curve.fit([(0.2, 1.0), (0.6, 3.0)]).costs == pytest.approx((0.0, 1.0, 3.0, 5.0))
    assert Curve.fit([(0.5, 1.0), (1.0, 9.0)]).costs[0] == 0.0


def test_the_hull_is_that_of_qhull():
    generator = np.random.default_rng(1)
    for _ in range(20):
        inner = np.sort(generator.random(8))
        densities = (0.0, *map(float, inner), 1.0)
        curve = Curve(densities, tuple(map(float, np.sort(generator.random(10)))))
        points = np.array([*zip(densities, curve.costs, strict=True), (0.0, 9.0), (1.0, 9.0)])
        lower = sorted(index for index in ConvexHull(points).vertices if index < 10)
        hull = curve.convex()
        assert hull.densities == tuple(densities[index] for index in lower)
        assert hull.costs == tuple(curve.costs[index] for index in lower)


@pytest.mark.parametrize(
    ("densities", "costs"),
    [
        ((0.0, 1.0), (1.0,)),
        ((0.1, 1.0), (1.0, 2.0)),
        ((0.0, 0.5, 0.5, 1.0), (1.0, 1.0, 2.0, 2.0)),
        ((0.0, 1.0), (2.0, 1.0)),
        ((0.0, 1.0), (math.nan, 1.0)),
    ],
)
def test_invalid_curves_are_refused(densities, costs):
    with pytest.raises(ValueError, match="curve"):
        Curve(densities, costs)


def a_model():
    single = Curve((0.0, 0.5, 1.0), (0.001, 0.005, 0.010))
    groups = Curve((0.0, 1.0), (0.0005, 0.008))
    return CostModel(
        "seconds",
        {"a.weight": LayerCost(32, 0.008, {"weights": single, "rows:4": groups}), "b.weight": LayerCost(10, 0.004, {})},
        fixed=0.002,
        spread=0.1,
        about={"target": "this machine", "threads": 1},
        fixed_parts={"pool": 0.0015, "load": 0.0005},
    )


def test_estimates_by_density_and_granularity():
    model = a_model()
    assert model.dense == pytest.approx(0.014)
    assert model.floor == pytest.approx(0.0065)
    kept = torch.zeros(8, 4, dtype=torch.bool)
    kept.view(-1)[torch.randperm(32, generator=torch.Generator().manual_seed(0))[:16]] = True
    b = torch.ones(2, 5, dtype=torch.bool)
    single = model.estimate(Mask({"a.weight": kept, "b.weight": b}))
    assert (single.value, single.low, single.high) == pytest.approx((0.011, 0.0099, 0.0121))
    kept[:] = False
    kept[:4, :2] = True
    kept[4:, 2:] = True
    assert model.estimate(Mask({"a.weight": kept})).value == pytest.approx(0.006 + 0.00425)
    assert model.estimate(Mask({"a.weight": torch.ones(8, 4, dtype=torch.bool)})).value == pytest.approx(0.014)
    assert model.estimate(Mask({"a.weight": ~torch.eye(8, 4, dtype=torch.bool)})).value <= 0.014
    layer = model.layers["a.weight"]
    for granularity in ("weights", "rows:4", "channels"):
        costs = [layer.at(density / 50, granularity) for density in range(51)]
        assert costs == sorted(costs)
    assert model.left_for(["a.weight"], 0.010) == pytest.approx(0.004)
    assert mask_granularity(torch.tensor([[1, 1], [1, 1], [1, 0]], dtype=torch.bool)) == "rows:2"
    with pytest.raises(CostError, match="another size"):
        model.estimate(Mask({"a.weight": torch.ones(8, 5)}))


def test_a_changed_file_is_refused(tmp_path):
    model = a_model()
    path = model.save(tmp_path / "costs.json")
    again = CostModel.load(path)
    assert again == model
    assert again.digest == model.digest
    document = json.loads(path.read_text())
    document["model"]["fixed"] = 0.003
    path.write_text(json.dumps(document))
    with pytest.raises(CostError, match="do not match"):
        CostModel.load(path)
    document["model"]["layers"]["a.weight"]["curves"]["weights"]["costs"] = [3, 2, 1]
    path.write_text(json.dumps(document))
    with pytest.raises(CostError, match="never fall"):
        CostModel.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "ticketry.cost", "format": 2}', "[" * 100_000])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(CostError):
        CostModel.load(path)
    with pytest.raises(CostError):
        CostModel.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("asked", "unit", "amount"),
    [
        (0.3, "seconds", 3.0),
        ("30%", "seconds", 3.0),
        ("0.3", "bytes", 3.0),
        (1, "seconds", 10.0),
        ("5 ms", "seconds", 0.005),
        ("2MB", "bytes", 2e6),
        ("1.5KiB", "bytes", 1536),
        ("50M", "multiplications", 5e7),
    ],
)
def test_amounts(asked, unit, amount):
    assert parse_amount(asked, unit, 10.0) == pytest.approx(amount)


@pytest.mark.parametrize(
    ("asked", "unit"),
    [(0, "seconds"), (1.5, "seconds"), (-1, "bytes"), ("5MB", "seconds"), ("fast", "seconds"), ("0ms", "seconds"),
     (True, "seconds"), (float("nan"), "seconds"), ("1.2.3", "seconds"), ("130%", "bytes"),
     (None, "seconds"), ([1], "seconds")],
)  # fmt: skip
def test_invalid_amounts_are_refused(asked, unit):
    with pytest.raises(UsageError, match="a budget of"):
        parse_amount(asked, unit, 10.0)


def test_a_budget_below_the_floor_names_its_parts():
    with pytest.raises(
        UsageError, match=r"below the floor: 6\.5 ms .* b, in torch 4 ms, pool 1\.5 ms.* what lowers it"
    ):
        a_model().budget("6ms")
    assert a_model().budget(0.5) == pytest.approx(0.007)


def test_a_budget_of_bytes_below_the_floor_is_no_matter_of_operations() -> None:
    with pytest.raises(UsageError) as caught:
        CostModel("bytes", {}, 50.0, fixed_parts={"attention": 50.0}).budget("1B")
    assert "what lowers it" not in str(caught.value)
    assert advice_for_cheaper_parts(["encoder.attention.mul, empty", "unknown"]) == "fewer layers"
