"""Charges of open gates: against the definition, weight by weight in float64, and against differences."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from ticketry.budgets.cost_model import CostModel, Curve, LayerCost
from ticketry.core import gates
from ticketry.core.gates import Balance, Charges
from ticketry.core.gates.charges import permitted_gate_cost_share
from ticketry.errors import UsageError

CURVES = {
    "0.weight": Curve((0.0, 0.2, 0.5, 1.0), (3.0, 4.0, 9.0, 30.0)),
    "2.weight": Curve((0.0, 0.5, 1.0), (1.0, 8.0, 10.0)),  # above its hull, the line from 1 to 10
}
SIZES = {"0.weight": 20, "2.weight": 12}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def costs() -> CostModel:
    layers = {name: LayerCost(SIZES[name], curve.costs[-1], {"weights": curve}) for name, curve in CURVES.items()}
    return CostModel("seconds", layers, 6.0)


def slowly(opened: dict[str, float]) -> float:
    """The charge of so many open gates: the highest line below every pair of a curve's points, over the mean price."""
    found, dear = 0.0, 0.0
    for name, curve in CURVES.items():
        points = list(zip(curve.densities, curve.costs, strict=True))
        share = opened[name] / SIZES[name]
        below = [
            low + (high - low) / (last - first) * (share - first)
            for first, low in points
            for last, high in points
            if last > first
            and all(cost >= low + (high - low) / (last - first) * (density - first) - 1e-12 for density, cost in points)
        ]
        found += max(below) - curve.costs[0]
        dear += curve.costs[-1] - curve.costs[0]
    return found * sum(SIZES.values()) / dear


@pytest.mark.parametrize("kind", ["continuous", "binary-concrete", "hard-concrete", "stochastic"])
@pytest.mark.parametrize("init", [-0.7, 2.0])
def test_penalty_and_its_gradient_are_those_of_the_definition(kind: str, init: float) -> None:
    model = network()
    plain = gates.attach(network(), init=init, kind=kind)
    handle = gates.attach(model, init=init, kind=kind, charges=Charges.by(costs(), SIZES))
    noise = torch.Generator().manual_seed(1)
    for one, other in zip(handle.parameters(), plain.parameters(), strict=True):
        one.data += torch.rand(one.shape, generator=noise, dtype=one.dtype)
        other.data.copy_(one.data)

    def opened() -> dict[str, float]:
        each = {}
        for name, s in plain.named_parameters():
            each[name] = float(plain.kind.open(s.detach().double(), plain._moment).sum())
        return each

    found = handle.penalty(0.1)
    assert found.item() == pytest.approx(0.1 * slowly(opened()), rel=1e-9)
    found.backward()
    for mine, s in zip(handle.parameters(), plain.parameters(), strict=True):
        for place in (0, 7):
            step, value = 1e-6, float(s.data.view(-1)[place])
            s.data.view(-1)[place] = value + step
            high = slowly(opened())
            s.data.view(-1)[place] = value - step
            low = slowly(opened())
            s.data.view(-1)[place] = value
            assert float(mine.grad.view(-1)[place]) == pytest.approx(0.1 * (high - low) / (2 * step), rel=1e-4)
    with torch.no_grad():
        model.train()(torch.ones(2, 5, dtype=torch.double))
    model(torch.ones(2, 5, dtype=torch.double))
    if not handle.kind.draws:  # the sums that the forward pass has made are charged too
        assert handle.penalty(0.1).item() == pytest.approx(found.item(), rel=1e-12)


def test_prices_a_weight_and_blocks() -> None:
    prices = {"0.weight": 7, "2.weight": 2}
    charges = Charges.by(prices, SIZES)
    mean = sum(prices[name] * SIZES[name] for name in SIZES) / sum(SIZES.values())
    single = gates.attach(network(), init=0.4, charges=charges)
    blocks = gates.attach(network(), init=0.4, pattern="4x1", charges=charges)
    open_each = 1 / (1 + torch.tensor(-0.4, dtype=torch.double).exp())
    wanted = float(sum(prices[name] * size * open_each for name, size in SIZES.items()) / mean)
    assert single.penalty(1.0).item() == pytest.approx(wanted, rel=1e-6)
    assert blocks.penalty(1.0).item() == pytest.approx(wanted, rel=1e-6)
    full = gates.attach(network(), init=30.0, charges=charges)
    assert full.penalty(1.0).item() == pytest.approx(sum(SIZES.values()), rel=1e-6)


def test_gates_are_steered_to_a_share_of_the_charges() -> None:
    """A network that pulls nowhere ends, balanced, at the share of the charges and not of the weights."""
    charges = Charges.by(costs(), SIZES)
    handle = gates.attach(network(), init=2.0, kind="binary-concrete", charges=charges)
    balance = Balance(handle, 0.3, headroom=1.0, smoothing=0.5)
    optimizer = torch.optim.Adam(handle.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        sum(-0.01 * s.sum() for s in handle.parameters()).backward()
        balance.add_gradients()
        optimizer.step()
    opened = {name: float(torch.sigmoid(s.detach()).sum()) for name, s in handle.named_parameters()}
    assert slowly(opened) / sum(SIZES.values()) == pytest.approx(0.3, abs=0.03)


def test_shares_and_densities() -> None:
    charges = Charges.by(costs(), SIZES)
    shares = [charges.share(density) for density in (0.0, 0.1, 0.4, 0.8, 1.0)]
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    assert all(low < high for low, high in pairwise(shares))
    for share, density in zip(shares, (0.0, 0.1, 0.4, 0.8, 1.0), strict=True):
        assert charges.density_for(share) == pytest.approx(density, abs=1e-9)
    # 6 fixed, 30 and 10 of the layers; 3 and 1 of them when empty
    assert permitted_gate_cost_share(costs(), SIZES, 0.5) == pytest.approx((0.5 * 46 - 6 - 4) / 36)
    assert permitted_gate_cost_share(costs(), {"0.weight": 20}, 0.5) == pytest.approx((0.5 * 46 - 6 - 10 - 3) / 27)
    assert permitted_gate_cost_share({"0.weight": 7}, {"0.weight": 20}, 0.25) == 0.25


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no cost of 1.weight"):
        Charges.by({"0.weight": 1}, {"1.weight": 2})
    with pytest.raises(UsageError, match="nothing to charge"):
        Charges.by({"0.weight": 0}, {"0.weight": 2})
    with pytest.raises(UsageError, match="of gates on other weights"):
        gates.attach(network(), charges=Charges.by({"0.weight": 1}, {"0.weight": 20}))
    rows = LayerCost(20, 30.0, {"weights": CURVES["0.weight"], "rows:4": Curve((0.0, 1.0), (0.5, 30.0))})
    with pytest.raises(UsageError, match="left without a single weight"):
        permitted_gate_cost_share(CostModel("seconds", {"0.weight": rows}, 6.0), {"0.weight": 20}, 0.2)
