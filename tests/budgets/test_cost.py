"""Costs of a model on this machine, and masks that meet a budget."""

from __future__ import annotations

import itertools
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import ticketry as tk
from composed import Composed
from ticketry.budgets.allocation import allocate_cost
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost
from ticketry.budgets.latency import mask_nearest_budget
from ticketry.budgets.layer_choice import LayerChoice
from ticketry.budgets.timing import QUICK, Meter, RandomMasks, ScoredMasks, build_costs
from ticketry.core.output_change import output_change
from ticketry.errors import BudgetWarning, CostError, LayerCollapseError, UsageError
from ticketry_engine.bench.timing import machine
from ticketry_engine.costs import CallSeconds


def odd():
    """A prunable layer with three spatial dimensions, which the engine leaves to torch."""
    return Composed(lambda self, x: self.two(self.one(x).mean((2, 3, 4))), one=nn.Conv3d(2, 4, 3), two=nn.Linear(4, 5))


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)).eval()


X = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def costs():
    return tk.cost.model(network(), X, threads=1, densities=(0.05, 0.3, 1.0))


def test_costs_of_this_machine(costs):
    assert costs.unit == "seconds"
    assert list(costs.layers) == ["0.weight", "2.weight", "6.weight"]
    assert 0 < costs.floor < costs.dense
    assert costs.spread > 0
    assert costs.about["threads"] == 1
    assert costs.about["batch"] == 4
    model = network()
    values = [
        costs.estimate(tk.prune(model, density, distribution="uniform")).value for density in (0.05, 0.1, 0.2, 0.4)
    ]
    assert values == sorted(values)
    assert values[0] < 0.7 * costs.dense
    meter = Meter(model, X, effort=QUICK)
    dense = meter.dense_profile
    assert sum(dense.layers.values()) + sum(dense.others.values()) == pytest.approx(meter.dense_seconds)
    assert dense.torch == set()
    shares = {name: layer.dense / costs.dense for name, layer in costs.layers.items()}
    assert max(shares, key=shares.get) == "2.weight"  # of 32 inputs, where the first has 3


class ScriptedTimer:
    """A timer of a network whose layers take a given time by density, and pooling the rest."""

    def __init__(self, dense_others):
        self.model = network()
        self._shapes = tk.scope(self.model).shapes
        self.names = tuple(self._shapes)
        self.dense_profile = CallSeconds({name: 1.0 * size for name, size in self.sizes.items()}, dense_others, set())

    @property
    def sizes(self):
        return {name: float(torch.Size(shape).numel()) for name, shape in self._shapes.items()}

    @property
    def dense_seconds(self):
        return sum(self.dense_profile.layers.values()) + sum(self.dense_profile.others.values())

    def shape(self, name):
        return self._shapes[name]

    def profile(self, mask, layout):
        spent = {name: size * (0.1 + 0.8 * float(mask[name].float().mean())) for name, size in self.sizes.items()}
        return CallSeconds(spent, {"pool": 50.0}, set())


@pytest.mark.parametrize("dense_others", [{"pool": 50.0}, {"pool over pixels": 20.0}])
def test_costs_reproduce_a_timer(dense_others):
    timer = ScriptedTimer(dense_others)
    family = RandomMasks(timer.model, tk.scope(timer.model).shapes, (0.01, 0.1, 0.5, 1.0))
    costs = build_costs(timer, ("weights",), family, {})
    assert costs.dense == pytest.approx(timer.dense_seconds)
    assert costs.fixed == 50.0
    for density in (0.02, 0.3, 0.75):
        mask = tk.prune(timer.model, density, distribution="uniform")
        told = timer.profile(mask, "planes")
        assert costs.estimate(mask).value == pytest.approx(
            50 + sum(told.layers.values()), rel=1e-6
        )  # densities are of float32


class _CountingMeter(Meter):
    def compiled(self, mask=None, layout=None):
        self.__dict__.setdefault("compilations", []).append((1.0 if mask is None else mask.density, layout))
        return super().compiled(mask, layout)


def test_nothing_is_timed_twice():
    meter = _CountingMeter(network(), X, effort=QUICK)
    family = RandomMasks(meter.model, tk.scope(meter.model).shapes, (1e-9, 0.2, 1.0))
    costs = build_costs(meter, ("weights", "rows:16"), family, {})
    (chosen,) = meter.dense.layouts
    unpruned = [layout for density, layout in meter.compilations if density == 1]
    assert sorted(unpruned, key=str) == sorted([None, *({"planes", "pixels"} - {chosen})], key=str)
    nearly_empty = [layout for density, layout in meter.compilations if density < 0.05]
    assert sorted(nearly_empty) == ["pixels", "planes"]
    assert all(list(layer.curves) == ["weights", "rows:16"] for layer in costs.layers.values())


def test_layers_in_torch_are_part_of_the_floor():
    costs = tk.cost.model(odd().eval(), torch.randn(2, 2, 6, 6, 6), threads=1, densities=(0.1, 1.0))
    assert "in torch, which no mask makes faster: one.weight" in str(costs)
    assert costs.layers["one.weight"].curves == {}
    counted = tk.cost.model(network(), X, unit="multiplications")
    assert counted.dense == 4 * (24 * 24 * (27 * 32 + 288 * 48) + 480)
    with pytest.raises(UsageError, match=r"below the floor: .*one, in torch"):
        costs.budget(1e-4)


def test_bytes_are_those_of_the_file(tmp_path):
    model = network()
    costs = tk.cost.model(model, X, unit="bytes")
    for mask in (tk.prune(model, 0.02, collapse="keep"), tk.Mask.ones(tk.scope(model))):
        size = tk.compile(model, mask, X, threads=1).save(tmp_path / "model.tk").stat().st_size
        assert costs.estimate(mask).value == pytest.approx(size, abs=128)
    mask = tk.prune(model, bytes="20kB", example_inputs=X)
    assert 19_000 < costs.estimate(mask).value <= 20_000
    assert costs.estimate(tk.prune(model, bytes=0.5, example_inputs=X)).value <= 0.5 * costs.dense


def of_negative_norms():
    """Half of the factors of folded norms are negative."""
    torch.manual_seed(0)
    layers = [part for _ in range(3) for part in (nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())]
    for norm in layers[1::3]:
        nn.init.uniform_(norm.weight, -1, 1)
    return nn.Sequential(*layers), torch.randn(2, 24, 6, 6)


def of_float64():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).double(), torch.randn(2, 64).double()


def of_images():
    """Two thirds of the first layer's entries in the file are not its weights."""
    torch.manual_seed(0)
    layers = [nn.ConvTranspose2d(16, 24, 3, 2, 1, 1, bias=False), nn.ReLU(), nn.ConvTranspose2d(24, 16, 4, 2, 1)]
    return nn.Sequential(*layers), torch.randn(2, 16, 5, 5)


@pytest.mark.parametrize("make", [of_negative_norms, of_float64, of_images])
def test_a_model_file_meets_the_budget_of_bytes(make, tmp_path):
    model, x = make()
    model.eval()
    whole = tk.compile(model, None, x).save(tmp_path / "whole.tk").stat().st_size
    costs = tk.cost.model(model, x, unit="bytes")
    packed = make is of_images  # the header may be estimated too large by a few bytes
    share = 0.7
    assert whole <= costs.dense <= whole + 64 * packed
    mask = tk.prune(model, bytes=share, example_inputs=x, keep_at_least=1)
    size = tk.compile(model, mask, x).save(tmp_path / "model.tk").stat().st_size
    assert 0.97 * share * whole < size <= costs.estimate(mask).value <= share * costs.dense


def test_prune_to_a_latency_budget(costs, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model = network()
    mask = tk.prune(model, time=0.5, base="engine", example_inputs=X, cost=costs, keep_at_least=1)
    assert 0.02 < mask.density < 0.9


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"threads": 7}, "of threads 7, and here it is 1"),
        ({"batch": 9}, "of batch 9"),
        ({"processor_kind": "AuthenticAMD 25 1 1"}, r"another machine \(.*, AuthenticAMD 25 1 1; this one is "),
    ],
)
def test_costs_of_other_conditions_are_refused(costs, changed, said):
    with pytest.raises(CostError, match=said):
        tk.cost.meet(network(), X, 0.5, cost=costs.scaled(1.0, **changed), threads=1)


class TestDefaultScoreOfALatencyBudget:
    """`prune(model, time=..., example_inputs=x)` with costs of another machine, so that nothing is timed."""

    @pytest.fixture
    def elsewhere(self):
        half = Curve((0.0, 0.5, 1.0), (2e-5, 3.5e-4, 4e-4))
        layers = {
            "0.weight": LayerCost(864, 4e-5, {"weights": Curve((0.0, 1.0), (1e-5, 4e-5))}),
            "2.weight": LayerCost(13_824, 4e-4, {"weights": half}),
            "6.weight": LayerCost(480, 2e-6, {"weights": Curve((0.0, 1.0), (1e-6, 2e-6))}),
        }
        about = {"processor": "Another 3000", "threads": torch.get_num_threads(), "batch": 4, "precision": "fp32"}
        return CostModel("seconds", layers, 1e-5, about=about)

    def pruned(self, costs, time, **more):
        with pytest.warns(UserWarning, match="estimated and not measured"):
            return tk.prune(network(), time=time, base="engine", example_inputs=X, cost=costs, **more)

    def test_is_the_change_of_the_outputs(self, elsewhere):
        model = network()
        known = tk.scope(model)
        choice = LayerChoice(output_change(model, known, X), elsewhere, only="weights")
        wanted = mask_nearest_budget(elsewhere, 0.4 * elsewhere.dense, lambda budget: choice.choose_within(budget).mask)
        found = self.pruned(elsewhere, 0.4)
        assert found == wanted
        assert found != self.pruned(elsewhere, 0.4, score="magnitude", keep_at_least=1)
        assert found == self.pruned(elsewhere, 0.4, structure="weights")

    @pytest.mark.parametrize("score", [None, "magnitude"])
    def test_within_a_mask_and_with_weights_in_every_layer(self, elsewhere, score):
        within = tk.prune(network(), 0.4, distribution="uniform")
        found = self.pruned(elsewhere, 0.3, within=within, keep_at_least=30, score=score)
        assert all(not kept[~within[name]].any() for name, kept in found.items())
        assert all(row.kept >= 30 for row in found.table())
        assert elsewhere.estimate(found).value / elsewhere.dense == pytest.approx(0.3, rel=0.02)

    def test_is_kfac_with_a_loss(self, elsewhere):
        def loss(model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        batches = [(X, torch.arange(4))]
        found = self.pruned(elsewhere, 0.4, batches=batches, loss=loss)
        assert found == self.pruned(elsewhere, 0.4, batches=batches, loss=loss, score="kfac", structure="weights")
        assert found != self.pruned(elsewhere, 0.4)

    def test_amounts_and_shares_of_the_engine(self, elsewhere):
        assert self.pruned(elsewhere, 0.5) == self.pruned(elsewhere, f"{5e5 * elsewhere.dense:.6f}us")
        with pytest.warns(BudgetWarning, match=r"nothing was pruned: unpruned \S+ us, requested 1ms"):
            assert tk.prune(network(), time="1ms", example_inputs=X, cost=elsewhere).density == 1

    @pytest.mark.parametrize("base", ["eager", "onnxruntime"])
    def test_no_share_of_a_base_that_cannot_be_timed_here(self, elsewhere, base):
        with pytest.raises(UsageError, match=f"latency of {base}, which cannot be timed here: .*Another 3000"):
            tk.prune(network(), time=0.5, base=base, example_inputs=X, cost=elsewhere)

    def test_empties_no_layer(self, elsewhere):
        least = elsewhere.floor / elsewhere.dense
        with pytest.raises(LayerCollapseError):
            self.pruned(elsewhere, 1.1 * least, score="magnitude")
        assert all(row.kept for row in self.pruned(elsewhere, 1.1 * least).table())


def test_costs_of_another_model_are_refused(costs, tmp_path):
    path = costs.save(tmp_path / "costs.json")
    assert tk.cost.load(path) == costs
    assert tk.cost.model(network(), X, path, threads=1) == costs
    with pytest.raises(CostError, match="another model"):
        tk.cost.model(nn.Sequential(nn.Flatten(), nn.Linear(1728, 2)), X, path, threads=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"time": 0.3, "density": 0.1, "example_inputs": X}, "takes the place of density"),
        ({"time": 0.3}, "is of a call"),
        ({"time": 0.3, "example_inputs": X, "structure": "some"}, "none, auto, weights, rows:N"),
        (
            {"time": 0.3, "example_inputs": X, "structure": "auto", "within": tk.prune(network(), 0.5)},
            "leave out within",
        ),
        ({"time": 0.3, "example_inputs": X, "structure": "auto", "score": "magnitude"}, "which magnitudes cannot be"),
        (
            {"time": 0.3, "example_inputs": X, "structure": "weights", "score": tk.score.magnitude},
            "leave the score out",
        ),
        ({"density": 0.3, "structure": "auto"}, "for time and bytes"),
        ({"bytes": "1B", "example_inputs": X}, "below the floor"),
        ({"bytes": "5ms", "example_inputs": X}, "a budget of bytes"),
    ],
)
def test_invalid_options_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        tk.prune(network(), **options)


@pytest.mark.slow
def test_layers_that_the_engine_rewrites_have_their_own_cost(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(8, 32, 3), nn.ReLU(), nn.Conv1d(32, 32, 3), nn.Flatten()).eval()
    x = torch.randn(8, 8, 20)
    costs = tk.cost.model(model, x, densities=(0.1, 1.0))
    assert all(layer.dense > 0 for layer in costs.layers.values())
    assert sum(layer.dense for layer in costs.layers.values()) > 0.5 * costs.dense


def test_the_clock_itself_takes_no_time():
    """If the clock advances by one at each reading, every operation takes as long as none."""
    compiled = tk.compile(network(), None, X, threads=1)
    compiled.clock = itertools.count().__next__
    seconds = [row.seconds for row in compiled.profile(X, rounds=1) if row.seconds is not None]
    assert len(seconds) > 3
    assert set(seconds) == {0.0}


def test_masks_of_scores_are_those_of_an_allocation():
    model = network()
    scores = {name: weight.square() for name, weight in tk.scope(model).parameters(model).items()}
    seconds = {"0.weight": 1.0, "2.weight": 4.0, "6.weight": 0.1}
    family = ScoredMasks(scores, seconds, {})
    for rows in (1, 4):
        name = f"rows:{rows}" if rows > 1 else "weights"
        masks = [family.mask(name, amount) for amount in family.amounts]
        assert all(mask[one].any() for mask in masks for one in scores)
        assert masks[-1].density == 1
        for mask, other in pairwise(masks):
            assert all((other[one] | ~mask[one]).all() for one in scores)  # each holds the one before
        for mask, amount in zip(masks, family.amounts, strict=True):
            spent = sum(seconds[one] * float(kept.double().mean()) for one, kept in mask.items())
            # of 10 rows in groups of 4 the last one is smaller, and is charged as the others are
            assert spent <= max(amount, 0.02) * sum(seconds.values()) * (1.001 if rows == 1 else 1.05)
    together = masks[3]["2.weight"].flatten(1).unflatten(0, (-1, 4))
    assert (together == together[:, :1]).all()
    kept = family.mask("weights", 0.2)
    worth = torch.cat([(scores[one] / (seconds[one] / scores[one].numel())).flatten() for one in scores])
    flat = torch.cat([kept[one].flatten() for one in scores])
    assert worth[flat].min() >= worth[~flat].max() * (1 - 1e-6)
    assert family.mask_for_check(0.2, 0) != kept


@pytest.mark.slow
def test_costs_of_scores(costs):
    model = network()
    scores = {name: weight.square() for name, weight in tk.scope(model).parameters(model).items()}
    found = tk.cost.model(model, X, threads=1, scores=scores, densities=(1e-9, 0.1, 0.5, 1.0))
    assert found.about["masks"] == "of the scores"
    assert costs.about["masks"] == "random"
    assert 0 < found.floor < found.dense


@pytest.mark.slow
def test_a_model_that_runs_mostly_in_torch_is_reported(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model, x = odd().eval(), torch.randn(2, 2, 6, 6, 6)
    two = LayerCost(20, 1e-5, {"weights": Curve((0.0, 1.0), (1e-6, 1e-5))})
    about = {"processor": machine()["processor"], "threads": 1, "batch": 2, "precision": "fp32"}
    dear = CostModel("seconds", {"one.weight": LayerCost(216, 3e-3, {}), "two.weight": two}, 9.9e-4, about=about)
    said = r"in torch, which no mask makes faster: one\.weight: .*\(75 % of dense\)"
    assert re.search(said, str(dear))
    with pytest.raises(UsageError, match=rf"below the floor.*{said}"):
        tk.prune(model, time=0.3, base="engine", example_inputs=x, cost=dear)
    elsewhere = dear.scaled(1.0, processor="Another 3000")
    with pytest.warns(UserWarning, match=rf"most of the time is of layers {said}"):
        tk.prune(model, time=0.999, base="engine", example_inputs=x, cost=elsewhere, keep_at_least=1)
    with pytest.warns(UserWarning, match=said):
        tk.cost.meet(model, x, 0.999, base="engine", cost=dear, threads=1, keep_at_least=1)


@pytest.mark.parametrize("asked", [0.15, 0.5])
def test_a_budget_is_met_where_curves_are_far_above_their_hulls(asked):
    """A tenth of the weights costs five times as much by the curve as by its hull."""
    curve = Curve((0.0, 0.1, 1.0), (0.0, 0.5, 1.0))
    costs = CostModel("seconds", {"a": LayerCost(10_000, 1.0, {"weights": curve})}, 0.01)
    scores = {"a": torch.rand(10_000, generator=torch.Generator().manual_seed(0))}
    budget = asked * costs.dense
    mask = mask_nearest_budget(costs, budget, lambda money: allocate_cost(scores, costs.curves(), money - 0.01))
    assert costs.estimate(mask).value == pytest.approx(budget, rel=0.006)


@pytest.mark.slow
def test_a_latency_budget_with_a_granularity_for_each_layer():
    model = network()
    mixed = tk.cost.model(model, X, threads=1, granularities=("weights", "rows:8"), densities=(0.05, 0.3, 1.0))
    met = tk.cost.meet(model, X, 0.5, base="engine", cost=mixed, structure="auto", threads=1)
    assert "50.0 % requested" in str(met)
