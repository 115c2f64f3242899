"""Whole channels for a budget: the cost of what stays, by an independent count, and which channels go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from samples import sample
from ticketry.budgets import timing
from ticketry.budgets.timing import Meter
from ticketry.core.output_change import output_change
from ticketry.errors import BudgetWarning, LayerCollapseError, UsageError
from ticketry_engine.bench.timing import Interval

X = torch.randn(2, 3, 12, 12)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def multiplications(model: nn.Module, x: torch.Tensor) -> int:
    """Of linear layers and convolutions, by the shapes of weights and outputs as they run."""
    found: list[int] = []

    def count(module: Any, _: Any, output: torch.Tensor) -> None:
        found.append(module.weight.numel() * output.numel() // module.weight.shape[0])

    handles = [one.register_forward_hook(count) for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(found)


def test_one_group_keeps_its_most_important_channels() -> None:
    """A hidden unit takes 8 + 4 multiplications and is worth what its 12 weights are; half of them stay."""
    model, x = perceptron(), torch.randn(5, 8)
    worth = output_change(model, tk.scope(model), x)
    units = worth["0.weight"].sum(1) + worth["2.weight"].sum(0)
    mask = tk.structure.channels(model, x, flops=0.5)
    kept = mask["0.weight"].any(1)
    assert set(kept.nonzero().flatten().tolist()) == set(units.argsort(descending=True)[:8].tolist())
    assert tk.structure.channels(model, x, flops=0.56)["0.bias"].sum() == 8
    assert tk.structure.channels(model, x, flops=0.57)["0.bias"].sum() == 9


@pytest.mark.parametrize("share", sample([0.7, 0.3, 0.1], 1))
@pytest.mark.parametrize("options", [{}, {"score": "l2"}, {"multiple": 4}, {"keep_at_least": 5}])
def test_multiplications_are_those_of_the_smaller_network(share: float, options: dict[str, Any]) -> None:
    model = network()
    dense = multiplications(model, X)
    mask = tk.structure.channels(model, X, flops=share, **options)
    small = tk.shrink(model, mask, X)
    assert multiplications(small, X) <= share * dense
    widths = [small[0].weight.shape[0], small[3].weight.shape[0]]
    assert all(width >= options.get("keep_at_least", 1) and width % options.get("multiple", 1) == 0 for width in widths)
    # One more block of either group would be too many.
    step = options.get("multiple", 1)
    more = [
        2 * (144 * 27 * (first + a) + 36 * 9 * (first + a) * (second + b) + 5 * (second + b))
        for first, second in [widths]
        for a, b in ((step, 0), (0, step))
    ]
    assert max(more) > share * dense


def test_channels_go_in_the_order_of_worth_per_cost() -> None:
    """By the definition: what a group's logarithm of the share loses, for the multiplications that a channel frees."""
    model = network()
    worth = output_change(model, tk.scope(model), X)
    groups = [
        (worth["0.weight"].sum((1, 2, 3)) + worth["3.weight"].sum((0, 2, 3)), 2 * (144 * 27 + 36 * 9 * 32)),
        (worth["3.weight"].sum((1, 2, 3)) + worth["7.weight"].sum(0), 2 * (36 * 9 * 24 + 5)),
    ]
    order: list[tuple[float, int, int]] = []
    for number, (values, price) in enumerate(groups):
        left, rate = float(values.sum()), 0.0
        for channel in values.argsort().tolist()[:-1]:
            loss = float(values.sum()) * (np.log(left) - np.log(left - float(values[channel])))
            left, rate = left - float(values[channel]), max(rate, loss / price)
            order.append((rate, number, channel))
    order.sort()
    for share in (0.8, 0.4, 0.15):
        mask = tk.structure.channels(model, X, flops=share)
        gone = {(0, c) for c in (~mask["0.weight"].flatten(1).any(1)).nonzero().flatten().tolist()}
        gone |= {(1, c) for c in (~mask["3.bias"]).nonzero().flatten().tolist()}
        assert gone == {(number, channel) for _, number, channel in order[: len(gone)]}


@pytest.mark.parametrize("amount", [0.5, 0.2, "12kB"])
def test_bytes_are_those_of_the_file(amount: float | str, tmp_path: Path) -> None:
    model = network()
    dense = tk.compile(model, None, X).save(tmp_path / "dense.tk").stat().st_size
    wanted = 12_000 if amount == "12kB" else float(amount) * dense
    mask = tk.structure.channels(model, X, bytes=amount)
    size = tk.compile(model, mask, X).save(tmp_path / "small.tk").stat().st_size
    assert 0.85 * wanted < size <= wanted
    assert tk.shrink(model, mask, X)(X).shape == (2, 5)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which latency is 0.2 and 0.8 times the share of the weights: 1 s without pruning."""

    def time_share(_: Meter, mask: tk.Mask, rounds: int = 5) -> Interval:
        value = 0.2 + 0.8 * mask.density
        return Interval(value, value, value, 1)

    monkeypatch.setattr(timing, "base_seconds", lambda meter, base: 10.0)
    monkeypatch.setattr(Meter, "dense_seconds", 1.0)
    monkeypatch.setattr(Meter, "compiled", lambda self, mask=None, layout=None: mask)
    monkeypatch.setattr(Meter, "time_share", time_share)
    monkeypatch.setattr(Meter, "retime_share", time_share)
    profile = {"0.weight": 0.3, "3.weight": 0.4, "7.weight": 0.1}
    monkeypatch.setattr(
        Meter, "dense_profile", type("Profile", (), {"layers": profile, "others": {"relu": 0.2}, "torch": set()})()
    )


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_a_latency_is_met_by_measurement(share: float, scripted: None) -> None:
    mask = tk.structure.channels(network(), X, time=share, base="engine")
    assert 0.2 + 0.8 * mask.density == pytest.approx(share, rel=0.05)
    assert tk.shrink(network(), mask, X)(X).shape == (2, 5)


def test_no_channel_goes_where_the_unpruned_model_meets_the_budget(scripted: None) -> None:
    with pytest.warns(BudgetWarning, match="no pruning needed"):
        mask = tk.structure.channels(network(), X, time="2s")
    assert mask.density == 1


def test_candidates_that_are_gone_stay_gone() -> None:
    model = network()
    within = tk.structure.channels(model, X, 0.6)
    mask = tk.structure.channels(model, X, flops=0.2, within=within)
    assert mask <= within
    assert multiplications(tk.shrink(model, mask, X), X) <= 0.2 * multiplications(model, X)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0.5, "flops": 0.5}, "not flops and density"),
        ({"time": 0.5, "bytes": 0.5}, "not time and bytes"),
        ({"flops": 0.5, "base": "engine"}, "base='engine' says what a share"),
        ({"flops": 0.5, "iterations": 2}, "flops is met in one cut"),
        ({"flops": 0.5, "distribution": "uniform"}, "one ranking of all channels"),
        ({"flops": 0.5, "score": "l3"}, "score 'l3' is not known"),
        ({"time": 0.5, "base": "caffe"}, "base 'caffe' is not known"),
    ],
)
def test_budgets_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tk.structure.channels(network(), X, **options)


def test_a_budget_below_the_floor_says_what_is_left() -> None:
    with pytest.raises(LayerCollapseError, match=r"with 6 channels left in each of 2 groups 0\.1\d+ of the cost rem"):
        tk.structure.channels(network(), X, flops=0.05, keep_at_least=6)
