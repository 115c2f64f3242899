"""The granularity of a latency budget is chosen by measurement; what a user should know of the mask is a warning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.costs.bases import Latencies
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.core.costs.mixed import Choice, value_of
from ticketry.core.costs.saliency import output_change, with_magnitudes
from ticketry.core.costs.stages import stage_densities
from ticketry.engine.cost import latency_budgets, progress
from ticketry.engine.cost.latency_budgets import concerns
from ticketry.engine.cost.meeting import Considered, Met, approach, nearest
from ticketry.engine.cost.meter import Meter
from ticketry.errors import BudgetWarning, LayerCollapseError, UsageError
from ticketry_engine.bench.timing import Interval

X = torch.randn(4, 3, 12, 12)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3072, 10)
    ).eval()


def layers_of(mask: tk.Mask) -> list[float]:
    return [float(kept.double().mean()) for kept in mask.values()]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], dict[str, list[tk.Mask]]]:
    """A machine on which each granularity has a latency in proportion to the density of its masks.

    Each granularity is a family of masks: uniform random weights, or the first rows of each layer. Returned are the
    masks that were timed.
    """

    def build(slowness: dict[str, float]) -> dict[str, list[tk.Mask]]:
        timed: dict[str, list[tk.Mask]] = {name: [] for name in slowness}

        def masks(self: Any, name: str) -> tuple[Callable[[float], tuple[tk.Mask, float]], float]:
            if slowness[name] == math.inf:
                raise LayerCollapseError(f"no {name} here")

            def mask_at(aim: float) -> tuple[tk.Mask, float]:
                torch.manual_seed(0)
                mask = tk.prune(network(), min(max(aim / slowness[name], 1e-3), 1.0), distribution="uniform")
                timed[name].append(mask)
                latency[mask.digest] = mask.density * slowness[name]
                return mask, aim

            return mask_at, 0.01

        latency: dict[str, float] = {}

        def share(self: Meter, mask: tk.Mask, rounds: int = 5) -> Interval:
            return Interval(latency[mask.digest], latency[mask.digest], latency[mask.digest], 1)

        monkeypatch.setattr(latency_budgets._Search, "_masks", masks)
        monkeypatch.setattr(
            latency_budgets._Search, "_measured", lambda self: tk.cost.model(network(), X, unit="multiplications")
        )
        monkeypatch.setattr(Meter, "dense_seconds", 1.0)
        monkeypatch.setattr(Meter, "compiled", lambda self, mask=None, layout=None: mask)
        monkeypatch.setattr(Meter, "share", share)
        monkeypatch.setattr(Meter, "share_anew", share)
        return timed

    return build


@pytest.mark.parametrize(
    ("slowness", "best"),
    [
        ({"auto": 2.0, "weights": 4.0, "channels": 1.0}, "channels"),
        ({"auto": 1.0, "weights": 4.0, "channels": 2.0}, "auto"),
        ({"auto": 2.0, "weights": 1.0, "channels": math.inf}, "weights"),
    ],
)
def test_what_retains_most_at_the_measured_latency_is_chosen(
    slowness: dict[str, float], best: str, machine: Any
) -> None:
    machine(slowness)
    found = tk.cost.meet(network(), X, 0.5, base="engine", threads=1)
    assert found.structure == best
    assert found.share == pytest.approx(0.5, rel=0.05)
    assert found.mask.density == pytest.approx(0.5 / slowness[best], rel=0.05)
    assert {one.structure for one in found.considered} == set(slowness)
    for one in found.considered:
        known = slowness[one.structure] < math.inf
        assert known == (not one.why_not)
        assert not known or one.density == pytest.approx(0.5 / slowness[one.structure], rel=0.05)
        assert str(one).startswith(f"structure={one.structure!r} {'retains' if known else 'has no mask: no channels'}")


def test_a_structure_that_is_named_is_the_only_one(machine: Any) -> None:
    timed = machine({"auto": 1.0, "weights": 2.0, "channels": 1.0})
    found = tk.cost.meet(network(), X, 0.5, base="engine", structure="weights", threads=1)
    assert (found.structure, len(found.considered)) == ("weights", 1)
    assert not timed["auto"]
    assert not timed["channels"]


def test_no_granularity_at_all_is_an_error(machine: Any) -> None:
    machine({"auto": math.inf, "weights": math.inf, "channels": math.inf})
    with pytest.raises(LayerCollapseError, match="no channels here"):
        tk.cost.meet(network(), X, 0.5, base="engine", threads=1)


def test_masks_that_keep_too_few_weights_are_left_out(machine: Any) -> None:
    machine({"auto": 4.0, "weights": 1.2, "channels": 1.0})
    with pytest.raises(LayerCollapseError, match="fewer than keep_at_least=800"):
        tk.cost.meet(network(), X, 0.5, base="engine", structure="channels", keep_at_least=800, threads=1)


def test_a_small_network_is_met_on_this_machine() -> None:
    """Whatever it takes here: which candidate is best by the clock is tested with scripted latencies above."""
    found = tk.cost.meet(network(), X, 0.6, base="engine", threads=1)
    assert found.structure in {one.structure for one in found.considered if not one.why_not}
    assert str(found).endswith(f"density {found.mask.density:.4g}; {found.structure}")


def test_the_value_of_a_mask_is_that_of_its_definition() -> None:
    scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 2.0])}
    mask = tk.Mask({"a": torch.tensor([True, False]), "b": torch.tensor([True, False]), "c": torch.tensor([False])})
    assert value_of(scores, mask) == pytest.approx(4 * math.log(0.75) + 4 * math.log(0.5))
    assert value_of(scores, tk.Mask.ones({"a": (2,), "b": (2,)})) == 0


# -- the way to a budget -----------------------------------------------------------------------------------------------


class Scripted:
    def __init__(self, latency: Callable[[float], float]) -> None:
        self._latency = latency

    def compiled(self, mask: tk.Mask) -> tk.Mask:
        return mask

    def share(self, mask: tk.Mask, rounds: int) -> Interval:
        value = self._latency(mask.density)
        return Interval(value, value, value, 1)


def mask_at(aim: float) -> tuple[tk.Mask, float]:
    if aim < 0.05:
        raise UsageError("below the floor")
    kept = torch.zeros(10_000, dtype=torch.bool)
    kept[: int(min(aim, 1.0) * 10_000)] = True
    return tk.Mask({"a": kept}), aim


@pytest.mark.parametrize("asked", [0.7, 0.3])
def test_masks_that_were_timed_are_not_timed_again(asked: float) -> None:
    meter: Any = Scripted(lambda density: 1.5 * density)
    first = approach(meter, asked, mask_at, floor=0.05, rounds=1)
    assert first[0].found.median == pytest.approx(1.5 * asked, rel=1e-3)
    tried = approach(meter, asked, mask_at, floor=0.05, rounds=3, known=first)
    assert tried[0] is first[0]
    assert nearest(tried, asked).found.median == pytest.approx(asked, rel=0.015)
    assert len(tried) == 2


def test_an_aim_that_no_mask_meets_ends_the_way() -> None:
    meter: Any = Scripted(lambda density: 10 * density)
    tried = approach(meter, 0.3, mask_at, floor=0.01)
    assert [one.aim for one in tried] == [0.3]
    with pytest.raises(UsageError, match="below the floor"):
        approach(meter, 0.02, mask_at, floor=0.01)


# -- warnings ----------------------------------------------------------------------------------------------------------


def met(densities: dict[str, float], considered: tuple[Considered, ...] = (), first: float = 1.0) -> Met:
    mask = {}
    for name, density in densities.items():
        mask[name] = torch.arange(1000) < round(1000 * density)
    latencies = Latencies("eager", 10.0, 2.0, 1.0)
    return Met(tk.Mask(mask), latencies, 0.1, 0.1, 0.1, first=first, structure="weights", considered=considered)


def test_densities_of_stages() -> None:
    layers = [("layer1.0.weight", 1, 10), ("layer1.1.weight", 3, 10), ("blocks.0.a.weight", 5, 5), ("fc.weight", 0, 2)]
    assert stage_densities(layers) == {"layer1": 0.2, "blocks.0": 1.0, "fc": 0.0}


def test_a_stage_with_hardly_any_weights_is_named_with_the_alternative() -> None:
    densities = {"stem.weight": 0.9, "blocks.0.a.weight": 0.06, "blocks.1.a.weight": 0.02, "blocks.1.b.weight": 0.04}
    others = (
        Considered("weights", 0.2, 1.0, -0.5),
        Considered("channels", 0.4, 1.02, -0.6),
        Considered("auto", math.nan, math.nan, math.nan, "no mask"),
    )
    (said,) = concerns(met(densities, others))
    assert said.startswith("blocks.1 retains 3 % of its weights: retraining seldom recovers the accuracy.")
    assert "Instead: structure='channels' retains 40 % at 1.02 s for this budget" in said
    (said,) = concerns(met({**densities, "blocks.2.c.weight": 0.01}))
    assert "blocks.2 retains 1 % of its weights and 1 more stages are below 5 %" in said
    assert "request more time" in said
    assert not list(concerns(met({"stem.weight": 0.05, "head.weight": 0.5})))


@pytest.mark.parametrize(("first", "said"), [(1.21, "121 %"), (0.79, "79 %"), (1.19, ""), (0.81, "")])
def test_an_estimate_that_was_far_off_is_told(first: float, said: str) -> None:
    found = list(concerns(met({"a.weight": 0.5}, first=first)))
    assert len(found) == bool(said)
    assert not said or f"estimated at {said} of its measured latency" in found[0]
    assert not said or found[0].endswith("Leave structure out to have all granularities timed")


def test_warnings_are_of_their_own_kind(machine: Any) -> None:
    machine({"auto": 20.0, "weights": 20.0, "channels": 20.0})
    with pytest.warns(BudgetWarning, match="retraining seldom recovers"):
        tk.prune(network(), time=0.5, base="engine", example_inputs=X)


# -- progress ----------------------------------------------------------------------------------------------------------


def test_nothing_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    with progress.Progress("budget", steps=2) as shown:
        shown.step("one")
        shown.add(3)
        shown.step("two")
    assert (shown.done, shown.planned) == (2, 5)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_steps_and_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress("budget", steps=4) as shown:
        shown.step("timing weights")
        assert shown._bar is not None
        assert shown._bar.tasks[0].total == 4
        shown.step("timing channels")
        assert shown._bar.tasks[0].completed == 1
        assert shown._bar.tasks[0].description == "budget: timing channels"
    written = capsys.readouterr()
    assert written.out == ""
    assert "timing channels" in written.err


# -- weights without importance ----------------------------------------------------------------------------------------


def test_weights_without_importance_rank_by_magnitude_behind_all_others() -> None:
    scores = {"a": torch.tensor([4.0, 0.0, 0.0, 2.0]), "b": torch.zeros(3), "c": torch.zeros(2)}
    weights = {"a": torch.tensor([0.1, 3.0, -4.0, 0.0]), "b": torch.tensor([1.0, -5.0, 2.0]), "c": torch.zeros(2)}
    found = with_magnitudes(scores, weights)
    assert found["a"].argsort(descending=True).tolist() == [0, 3, 2, 1]
    assert found["b"].argsort(descending=True).tolist() == [1, 2, 0]
    assert not found["c"].any()
    assert float(found["b"].max()) < float(found["a"][1]) < 1e-4
    for name, values in scores.items():
        assert torch.allclose(found[name].float(), values, atol=1e-5)


def test_a_budget_is_spent_on_branches_whose_last_norm_is_zero() -> None:
    """A residual branch that starts at 0 has no importance; its weights stay as far as the budget pays for them."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.branch = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
            nn.init.zeros_(self.branch[1].weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            stem: torch.Tensor = self.stem(x)
            return stem + self.branch(stem)

    torch.manual_seed(0)
    model = Residual().eval()
    values = output_change(model, tk.scope(model), X)
    assert not values["branch.0.weight"].any()
    values = with_magnitudes(values, tk.scope(model).parameters(model))
    sizes = {"stem.weight": 432, "branch.0.weight": 2304}
    curve = {"weights": Curve((0.0, 1.0), (0.0, 1.0))}
    costs = CostModel("seconds", {name: LayerCost(size, 1.0, curve) for name, size in sizes.items()}, 0.0)
    mask = Choice(values, costs, only="weights").within(1.5).mask
    assert costs.estimate(mask).value == pytest.approx(1.5, rel=0.01)
    assert float(mask["branch.0.weight"].float().mean()) == pytest.approx(0.5, abs=0.02)
