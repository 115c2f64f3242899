"""A share of a latency budget is of its base: the model as it runs today, unless another base is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.costs.bases import BASES, Latencies
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.engine.cost import bases, latency_budgets
from ticketry.engine.cost.meter import Meter
from ticketry.errors import BudgetWarning, EngineError, UsageError

X = torch.randn(4, 16)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is measured, scored or pruned where the unpruned model meets the budget")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Scripted latencies: eager 10 s, ONNX Runtime 4 s, compiled without pruning 2 s."""
    found = {"eager": 10.0, "onnxruntime": 4.0}
    monkeypatch.setattr(bases, "base_seconds", lambda meter, base: found[base])
    monkeypatch.setattr(Meter, "dense_seconds", 2.0)
    return found


@pytest.fixture
def requested_of_unpruned(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[float]:
    """The shares of the unpruned compiled latency that the search for a mask is given."""
    shares: list[float] = []

    class Search:
        def __init__(self, request: Any, meter: Meter, known: Latencies, progress: Any) -> None:
            shares.append(known.requested / known.unpruned)
            self.found = latency_budgets.without_pruning(tk.Mask.ones(request.scope), known)

        def run(self) -> tk.cost.Met:
            return self.found

    monkeypatch.setattr(latency_budgets, "_Search", Search)
    return shares


@pytest.mark.parametrize(
    ("budget", "base", "share"),
    [
        (0.1, "eager", 0.5),
        ("15%", "eager", 0.75),
        (0.1, "onnxruntime", 0.2),
        (0.25, "engine", 0.25),
        ("1s", "eager", 0.5),
        ("500ms", "onnxruntime", 0.25),
    ],
)
def test_a_share_is_of_the_base_and_an_amount_of_nothing(
    budget: float | str, base: str, share: float, requested_of_unpruned: list[float]
) -> None:
    met = tk.cost.meet(network(), X, budget, base=base, threads=1)
    assert requested_of_unpruned == [pytest.approx(share)]
    assert met.latencies.requested == pytest.approx(2 * share)
    assert met.latencies.base == base


def test_eager_is_the_default_base(requested_of_unpruned: list[float]) -> None:
    tk.prune(network(), time=0.1, example_inputs=X)
    assert requested_of_unpruned == [pytest.approx(0.5)]


@pytest.mark.parametrize(("budget", "base"), [(0.5, "eager"), (0.2, "eager"), ("50%", "onnxruntime"), ("3s", "engine")])
def test_nothing_is_pruned_where_the_unpruned_model_meets_the_budget(
    budget: float | str, base: str, seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("measured", "approach"):
        monkeypatch.setattr(latency_budgets, name, never)
    with pytest.warns(BudgetWarning, match="nothing was pruned: .*compiled without pruning 2 s, .*no pruning needed"):
        mask = tk.prune(network(), time=budget, base=base, example_inputs=X)
    assert mask == tk.Mask.ones(tk.scope(network()))
    met = tk.cost.meet(network(), X, budget, base=base, threads=1)
    assert not met.pruned
    assert met.seconds == pytest.approx(2.0)
    assert "no pruning needed" in str(met)


def test_candidates_stay_where_nothing_is_pruned(seconds: dict[str, float]) -> None:
    within = tk.prune(network(), 0.5)
    assert tk.cost.meet(network(), X, 0.5, within=within, threads=1).mask == within


def test_the_result_names_all_latencies() -> None:
    words = str(Latencies("eager", 10.9e-3, 2.1e-3, 5.4e-3))
    assert words == "now 10.9 ms (eager), compiled without pruning 2.1 ms, requested 5.4 ms: no pruning needed"
    assert str(Latencies("engine", 2.1e-3, 2.1e-3, 1e-3)) == "compiled without pruning 2.1 ms, requested 1 ms"


@pytest.mark.parametrize("base", [one for one in BASES if one not in ("engine", "torch.compile")])
def test_a_base_runs_the_model(base: str) -> None:
    """Each base computes what eager torch does, on as many threads as the budget's call."""
    if base != "eager":
        pytest.importorskip(base)
    meter = Meter(network(), X, 1)
    output = bases.prepared(meter, base)()
    output = output[0] if isinstance(output, list) else output
    assert torch.allclose(output, network()(X), atol=1e-5)
    assert bases.base_seconds(meter, base) > 0


def test_a_model_in_training_is_timed_in_evaluation_and_left_in_training() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bases.base_seconds(Meter(model, X, 1), "eager")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"time": 0.5, "base": "tensorflow", "example_inputs": X}, "base 'tensorflow' is not known: eager, torch.comp"),
        ({"density": 0.5, "base": "engine"}, "base='engine' says what a share of the latency is of"),
        ({"bytes": 0.5, "base": "engine", "example_inputs": X}, "give time= too"),
        ({"time": 1.5, "example_inputs": X}, "a budget of seconds"),
    ],
)
def test_a_base_that_cannot_be_meant_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tk.prune(network(), **options)


def test_a_base_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticketry_engine.bench.dense_engines.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="the base openvino cannot be timed here: not installed"):
        tk.cost.meet(network(), X, 0.5, base="openvino", threads=1)


class TestCostsOfAnotherMachine:
    @pytest.fixture
    def elsewhere(self) -> CostModel:
        curve = {"weights": Curve((0.0, 1.0), (1e-6, 1e-4))}
        layers = {"0.weight": LayerCost(512, 1e-4, curve), "2.weight": LayerCost(128, 1e-4, curve)}
        about = {"processor": "Another 3000", "threads": torch.get_num_threads(), "batch": 4, "precision": "fp32"}
        return CostModel("seconds", layers, 0.0, about=about)

    @pytest.mark.parametrize("base", ["eager", "onnxruntime"])
    def test_no_share_of_a_base_that_cannot_be_timed_here(self, elsewhere: CostModel, base: str) -> None:
        with pytest.raises(UsageError, match=f"latency of {base}, which cannot be timed here: .*Another 3000"):
            tk.prune(network(), time=0.5, base=base, example_inputs=X, cost=elsewhere)

    def test_amounts_and_shares_of_the_engine(self, elsewhere: CostModel) -> None:
        with pytest.warns(UserWarning, match="estimated and not measured"):
            by_share = tk.prune(network(), time=0.5, base="engine", example_inputs=X, cost=elsewhere)
        with pytest.warns(UserWarning, match="estimated and not measured"):
            by_amount = tk.prune(network(), time="100us", example_inputs=X, cost=elsewhere)
        assert by_share == by_amount
        with pytest.warns(BudgetWarning, match="nothing was pruned: unpruned 200 us, requested 1ms"):
            assert tk.prune(network(), time="1ms", example_inputs=X, cost=elsewhere).density == 1
