"""Latency budgets: bases of a share, structures compared by measurement, warnings and progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from composed import Composed
from samples import sample
from ticketry.budgets import latency, timing
from ticketry.budgets.allocation import allocate_cost
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost
from ticketry.budgets.latency import meet_share, nearest_timed_mask, time_masks_near_budget
from ticketry.budgets.layer_choice import LayerChoice, mask_value
from ticketry.budgets.request import Considered, Met, quality_warnings
from ticketry.budgets.timing import Meter
from ticketry.budgets.units import BASES, Latencies
from ticketry.core.output_change import add_small_magnitudes, output_change
from ticketry.errors import BudgetWarning, EngineError, LayerCollapseError, UsageError
from ticketry_engine.bench.timing import Interval

X = torch.randn(4, 16)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("measured or pruned although the unpruned model meets the budget")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Scripted latencies: 10 s in eager mode, 4 s in ONNX Runtime, 2 s compiled without pruning."""
    found = {"eager": 10.0, "onnxruntime": 4.0}
    monkeypatch.setattr(timing, "base_seconds", lambda meter, base: found[base])
    monkeypatch.setattr(Meter, "dense_seconds", 2.0)
    return found


@pytest.fixture
def requested_of_unpruned(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[float]:
    shares: list[float] = []

    class Search:
        def __init__(self, request: Any, meter: Meter, known: Latencies, progress: Any) -> None:
            shares.append(known.requested / known.unpruned)
            self.found = latency.result_without_pruning(tk.Mask.ones(request.scope), known)

        def run(self) -> tk.cost.Met:
            return self.found

    monkeypatch.setattr(latency, "_BudgetSearch", Search)
    return shares


@pytest.mark.parametrize(
    ("budget", "base", "share"), [(0.1, "eager", 0.5), ("10%", "onnxruntime", 0.2), ("500ms", "onnxruntime", 0.25)]
)
def test_only_shares_depend_on_the_base(
    budget: float | str, base: str, share: float, requested_of_unpruned: list[float]
) -> None:
    options = {} if base == "eager" else {"base": base}  # it is the default
    met = tk.cost.meet(network(), X, budget, threads=1, **options)
    assert requested_of_unpruned == [pytest.approx(share)]
    assert met.latencies.requested == pytest.approx(2 * share)
    assert met.latencies.base == base


@pytest.mark.parametrize(("budget", "base"), [(0.2, "eager"), ("3s", "engine")])
def test_nothing_is_pruned_where_the_unpruned_model_meets_the_budget(
    budget: float | str, base: str, seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("measure_costs", "time_masks_near_budget"):
        monkeypatch.setattr(latency, name, never)
    with pytest.warns(BudgetWarning, match="nothing was pruned: .*compiled without pruning 2 s, .*no pruning needed"):
        mask = tk.prune(network(), time=budget, base=base, example_inputs=X)
    assert mask == tk.Mask.ones(tk.scope(network()))
    met = tk.cost.meet(network(), X, budget, base=base, threads=1)
    assert not met.pruned
    within = tk.prune(network(), 0.5)
    assert tk.cost.meet(network(), X, budget, base=base, within=within, threads=1).mask == within
    assert met.seconds == pytest.approx(2.0)
    assert "no pruning needed" in str(met)


@pytest.mark.parametrize("base", sample(sorted({*BASES} - {"engine", "torch.compile"}), ("eager",)))
def test_a_base_runs_the_model(base: str) -> None:
    if base != "eager":
        pytest.importorskip(base)
    model = network().train()
    meter = Meter(model, X, 1)
    output = timing.prepare_base(meter, base)()
    output = output[0] if isinstance(output, list) else output
    assert torch.allclose(output, network()(X), atol=1e-5)
    assert timing.base_seconds(meter, base) > 0
    assert model.training


def test_one_slow_timing_of_the_base_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is slow while eager mode is timed first: pruning must not be skipped because of it."""
    ratios = iter([4.1, 2.0, 2.2, 2.0])
    monkeypatch.setattr(Meter, "dense_seconds", 1.0)
    monkeypatch.setattr(Meter, "ratio_to_dense", lambda meter, call, rounds: Interval(*3 * [next(ratios)], 0.95))
    meter = Meter(network(), X, 1)
    assert [timing.base_seconds(meter, "eager") for _ in range(4)] == pytest.approx([4.1, 3.05, 2.2, 2.1])

    ratios = iter([2.3, 1.6, 1.7])
    asked = []
    monkeypatch.setattr(latency._BudgetSearch, "run", lambda search: asked.append(search._asked) or never())
    with pytest.raises(AssertionError, match="measured or pruned"):
        tk.cost.meet(network(), X, 0.5, base="eager", threads=1)
    assert asked == pytest.approx([0.85])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"time": 0.5, "base": "tensorflow", "example_inputs": X}, "base 'tensorflow' is not known: eager, torch.comp"),
        ({"density": 0.5, "base": "engine"}, "base='engine' says what a share of the latency is of"),
        ({"bytes": 0.5, "base": "engine", "example_inputs": X}, "give time= too"),
        ({"time": 1.5, "example_inputs": X}, "a budget of seconds"),
    ],
)
def test_invalid_bases_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tk.prune(network(), **options)


def test_a_base_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticketry_engine.bench.dense_engines.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="the base openvino cannot be timed here: not installed"):
        tk.cost.meet(network(), X, 0.5, base="openvino", threads=1)


IMAGES = torch.randn(4, 3, 12, 12)


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3072, 10)
    ).eval()


def layers_of(mask: tk.Mask) -> list[float]:
    return [float(kept.double().mean()) for kept in mask.values()]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], dict[str, list[tk.Mask]]]:
    """A machine on which the latency of each structure is proportional to the density of its masks.

    Returns the masks that are timed.
    """

    def build(slowness: dict[str, float]) -> dict[str, list[tk.Mask]]:
        timed: dict[str, list[tk.Mask]] = {name: [] for name in slowness}

        def masks(self: Any, name: str) -> tuple[Callable[[float], tuple[tk.Mask, float]], float]:
            if slowness[name] == math.inf:
                raise LayerCollapseError(f"no {name} here")

            def mask_at(aim: float) -> tuple[tk.Mask, float]:
                torch.manual_seed(0)
                mask = tk.prune(convolutions(), min(max(aim / slowness[name], 1e-3), 1.0), distribution="uniform")
                timed[name].append(mask)
                shares[mask.digest] = mask.density * slowness[name]
                return mask, aim

            return mask_at, 0.01

        shares: dict[str, float] = {}

        def time_share(self: Meter, mask: tk.Mask, rounds: int = 5) -> Interval:
            return Interval(shares[mask.digest], shares[mask.digest], shares[mask.digest], 1)

        monkeypatch.setattr(latency._BudgetSearch, "_mask_builder", masks)
        monkeypatch.setattr(
            latency._BudgetSearch,
            "_measure_costs",
            lambda self: tk.cost.model(convolutions(), IMAGES, unit="multiplications"),
        )
        monkeypatch.setattr(Meter, "dense_seconds", 1.0)
        monkeypatch.setattr(Meter, "compiled", lambda self, mask=None, layout=None: mask)
        monkeypatch.setattr(Meter, "time_share", time_share)
        monkeypatch.setattr(Meter, "retime_share", time_share)
        return timed

    return build


@pytest.mark.parametrize(
    ("slowness", "best"),
    [
        ({"auto": 2.0, "channels": 1.0}, "channels"),
        ({"auto": 1.0, "channels": 2.0}, "auto"),
        ({"auto": 2.0, "channels": math.inf}, "auto"),
    ],
)
def test_the_structure_that_retains_most_at_the_measured_latency_is_chosen(
    slowness: dict[str, float], best: str, machine: Any
) -> None:
    machine(slowness)
    found = tk.cost.meet(convolutions(), IMAGES, 0.5, base="engine", threads=1)
    assert found.structure == best
    assert found.share == pytest.approx(0.5, rel=0.05)
    assert found.mask.density == pytest.approx(0.5 / slowness[best], rel=0.05)
    assert {one.structure for one in found.considered} == set(slowness)
    for one in found.considered:
        known = slowness[one.structure] < math.inf
        assert known == (not one.why_not)
        assert not known or one.density == pytest.approx(0.5 / slowness[one.structure], rel=0.05)
        assert str(one).startswith(f"structure={one.structure!r} {'retains' if known else 'has no mask: no channels'}")


def test_a_named_structure_is_the_only_one_timed(machine: Any) -> None:
    timed = machine({"auto": 1.0, "weights": 2.0, "channels": 1.0})
    found = tk.cost.meet(convolutions(), IMAGES, 0.5, base="engine", structure="weights", threads=1)
    assert (found.structure, len(found.considered)) == ("weights", 1)
    assert not timed["auto"]
    assert not timed["channels"]


def test_value_of_a_mask() -> None:
    scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 2.0])}
    mask = tk.Mask({"a": torch.tensor([True, False]), "b": torch.tensor([True, False]), "c": torch.tensor([False])})
    assert mask_value(scores, mask) == pytest.approx(4 * math.log(0.75) + 4 * math.log(0.5))
    assert mask_value(scores, tk.Mask.ones({"a": (2,), "b": (2,)})) == 0


class Scripted:
    dense_seconds = 2.0

    def __init__(self, latency: Callable[[float], float]) -> None:
        self._latency = latency

    def compiled(self, mask: tk.Mask) -> tk.Mask:
        return mask

    def time_share(self, mask: tk.Mask, rounds: int) -> Interval:
        value = self._latency(mask.density)
        return Interval(value, value, value, 1)

    def retime_share(self, mask: tk.Mask, rounds: int) -> Interval:
        value = 1.01 * self._latency(mask.density)
        return Interval(value, 0.99 * value, 1.02 * value, 1)


@pytest.mark.parametrize(("asked", "factor"), [(0.2, 0.8), (0.4, 1.3), (0.7, 1.0)])
def test_a_budget_is_met_by_correction(asked: float, factor: float) -> None:
    curve = Curve((0.0, 1.0), (0.1, 2.0))
    costs = CostModel("seconds", {"a": LayerCost(10_000, 2.0, {"weights": curve})}, 0.0)
    scores = {"a": torch.rand(10_000, generator=torch.Generator().manual_seed(0))}
    meter: Any = Scripted(lambda density: factor * (0.05 + 0.95 * density**1.1))
    met = meet_share(meter, costs, asked, lambda budget: allocate_cost(scores, costs.curves(), budget))
    assert abs(met.chosen / asked - 1) <= 0.015
    assert met.rounds <= 5
    # The reported share is measured anew, after the choice.
    assert met.share == pytest.approx(1.01 * met.chosen)
    assert (met.low, met.high) == pytest.approx((0.99 * met.share, 1.02 * met.share))
    assert met.missed_by == pytest.approx(met.share / asked - 1)
    assert met.seconds == pytest.approx(2 * met.share)


def mask_at(aim: float) -> tuple[tk.Mask, float]:
    if aim < 0.05:
        raise UsageError("below the floor")
    kept = torch.zeros(10_000, dtype=torch.bool)
    kept[: int(min(aim, 1.0) * 10_000)] = True
    return tk.Mask({"a": kept}), aim


@pytest.mark.parametrize("asked", [0.7, 0.3])
def test_no_mask_is_timed_twice(asked: float) -> None:
    meter: Any = Scripted(lambda density: 1.5 * density)
    first = time_masks_near_budget(meter, asked, mask_at, floor=0.05, rounds=1)
    assert first[0].found.median == pytest.approx(1.5 * asked, rel=1e-3)
    tried = time_masks_near_budget(meter, asked, mask_at, floor=0.05, rounds=3, known=first)
    assert tried[0] is first[0]
    assert nearest_timed_mask(tried, asked).found.median == pytest.approx(asked, rel=0.015)
    assert len(tried) == 2
    steep: Any = Scripted(lambda density: 10 * density)
    assert [one.aim for one in time_masks_near_budget(steep, 0.3, mask_at, floor=0.01)] == [0.3]
    with pytest.raises(UsageError, match="below the floor"):
        time_masks_near_budget(steep, 0.02, mask_at, floor=0.01)


def result(densities: dict[str, float], considered: tuple[Considered, ...] = (), first: float = 1.0) -> Met:
    mask = {}
    for name, density in densities.items():
        mask[name] = torch.arange(1000) < round(1000 * density)
    latencies = Latencies("eager", 10.0, 2.0, 1.0)
    return Met(tk.Mask(mask), latencies, 0.1, 0.1, 0.1, first=first, structure="weights", considered=considered)


def test_a_stage_with_hardly_any_weights_is_named_with_the_alternative() -> None:
    densities = {"stem.weight": 0.9, "blocks.0.a.weight": 0.06, "blocks.1.a.weight": 0.02, "blocks.1.b.weight": 0.04}
    others = (
        Considered("weights", 0.2, 1.0, -0.5),
        Considered("channels", 0.4, 1.02, -0.6),
        Considered("auto", math.nan, math.nan, math.nan, "no mask"),
    )
    (said,) = quality_warnings(result(densities, others))
    assert said.startswith("blocks.1 retains 3 % of its weights: retraining seldom recovers the accuracy.")
    assert "Instead: structure='channels' retains 40 % at 1.02 s for this budget" in said
    (said,) = quality_warnings(result(densities, (Considered("channels", 0.4, 1.2, -0.6),)))
    assert "Instead: request more time" in said  # the denser mask misses the budget of 1 s
    (said,) = quality_warnings(result({**densities, "blocks.2.c.weight": 0.01}))
    assert "blocks.2 retains 1 % of its weights and 1 more stages are below 5 %" in said
    assert "request more time" in said
    assert not list(quality_warnings(result({"stem.weight": 0.05, "head.weight": 0.5}, first=1.19)))
    (said,) = quality_warnings(result({"a.weight": 0.5}, first=1.21))
    assert "estimated at 121 % of its measured latency" in said


def test_a_missed_request_is_said() -> None:
    assert not list(quality_warnings(replace(result({"a.weight": 0.5}), share=0.109)))
    (said,) = quality_warnings(replace(result({"a.weight": 0.5}), share=0.15))
    assert said.startswith("the budget was missed: 15 % of the base's latency was achieved, and 10 % requested")


def test_concerns_are_budget_warnings(machine: Any) -> None:
    machine(dict.fromkeys(("auto", "weights", "channels"), math.inf))
    with pytest.raises(LayerCollapseError, match="no channels here"):
        tk.cost.meet(convolutions(), IMAGES, 0.5, base="engine", threads=1)
    machine(dict.fromkeys(("auto", "weights", "channels"), 20.0))
    with pytest.warns(BudgetWarning, match="retraining seldom recovers"):
        tk.prune(convolutions(), time=0.5, base="engine", example_inputs=IMAGES)


def test_a_budget_is_spent_on_branches_without_importance() -> None:
    """A residual branch whose last norm starts at 0 retains as many weights as the budget pays for."""

    torch.manual_seed(0)
    branch = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
    nn.init.zeros_(branch[1].weight)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = self.stem(x)
        return first + self.branch(first)

    model = Composed(forward, stem=nn.Conv2d(3, 16, 3, padding=1), branch=branch).eval()
    values = output_change(model, tk.scope(model), IMAGES)
    assert not values["branch.0.weight"].any()
    values = add_small_magnitudes(values, tk.scope(model).parameters(model))
    sizes = {"stem.weight": 432, "branch.0.weight": 2304}
    curve = {"weights": Curve((0.0, 1.0), (0.0, 1.0))}
    costs = CostModel("seconds", {name: LayerCost(size, 1.0, curve) for name, size in sizes.items()}, 0.0)
    mask = LayerChoice(values, costs, only="weights").choose_within(1.5).mask
    assert costs.estimate(mask).value == pytest.approx(1.5, rel=0.01)
    assert float(mask["branch.0.weight"].float().mean()) == pytest.approx(0.5, abs=0.02)


def test_masks_that_keep_too_few_weights_are_left_out(machine: Any) -> None:
    machine({"auto": 4.0, "weights": 1.2, "channels": 1.0})
    with pytest.raises(LayerCollapseError, match="fewer than keep_at_least=800"):
        tk.cost.meet(convolutions(), IMAGES, 0.5, base="engine", structure="channels", keep_at_least=800, threads=1)


@pytest.mark.slow
def test_a_small_network_is_met_on_this_machine() -> None:
    found = tk.cost.meet(convolutions(), IMAGES, 0.6, base="engine", threads=1)
    assert found.structure in {one.structure for one in found.considered if not one.why_not}
    assert str(found).endswith(f"density {found.mask.density:.4g}; {found.structure}")


@pytest.mark.parametrize("terminal", [False, True])
def test_only_a_terminal_shows_steps(terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(latency, "_PATIENCE", -1.0)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    with latency.Progress("budget", steps=2) as shown:
        shown.step("one")
        shown.add(3)
        shown.step("timing channels")
    assert (shown.done, shown.planned) == (2, 5)
    written = capsys.readouterr()
    assert written.out == ""
    assert "timing channels" in written.err if terminal else written.err == ""


def test_weights_without_importance_rank_last_by_magnitude() -> None:
    scores = {"a": torch.tensor([4.0, 0.0, 0.0, 2.0]), "b": torch.zeros(3), "c": torch.zeros(2)}
    weights = {"a": torch.tensor([0.1, 3.0, -4.0, 0.0]), "b": torch.tensor([1.0, -5.0, 2.0]), "c": torch.zeros(2)}
    found = add_small_magnitudes(scores, weights)
    assert found["a"].argsort(descending=True).tolist() == [0, 3, 2, 1]
    assert found["b"].argsort(descending=True).tolist() == [1, 2, 0]
    assert not found["c"].any()
    assert float(found["b"].max()) < float(found["a"][1]) < 1e-4
    for name, values in scores.items():
        assert torch.allclose(found[name].float(), values, atol=1e-5)
