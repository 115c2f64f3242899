"""Balanced gradients: against the rule written out, number by number, and where they lead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from samples import sample
from ticketry.core import gates
from ticketry.core.gates import Balance, Gates
from ticketry.errors import UsageError


def model_and_gates(init: float = -2.0, **kind: Any) -> tuple[nn.Sequential, Gates]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, gates.attach(model, init=init, kind=gates.BinaryConcrete(**kind))


def pulling(handle: Gates, strength: float) -> torch.Tensor:
    """A loss that opens the gates of some weights more than those of others."""
    return sum(-strength * (s * torch.linspace(0.5, 1.5, s.numel()).view_as(s)).sum() for s in handle.parameters())


@pytest.mark.parametrize("headroom", [1.0, 1.1])
def test_as_written_out(headroom: float) -> None:
    """lambda is a moving average of |g| / |e|, of 0 where fewer are expected to be kept than wanted."""
    _, handle = model_and_gates(init=-1.0)
    density, rate = 0.27, 0.3
    balance = Balance(handle, density, headroom=headroom, smoothing=0.25)
    values = [float(x) for s in handle.parameters() for x in s.detach().flatten()]
    opening = [0.01 * float(x) for s in handle.parameters() for x in torch.linspace(0.5, 1.5, s.numel())]
    slow: float | None = None
    ratios = set()
    for _ in range(40):
        kept = [1 / (1 + 2.718281828459045**-v) for v in values]
        closing = [k * (1 - k) for k in kept]
        norms = [sum(x * x for x in part) ** 0.5 for part in (opening, closing)]
        over = sum(kept) >= headroom * density * len(values)
        ratios.add(over)
        target = norms[0] / norms[1] if over else 0.0
        slow = target if slow is None else slow + 0.25 * (target - slow)
        for s in handle.parameters():
            s.grad = None
        pulling(handle, 0.01).backward()
        balance.add_gradients()
        found = torch.cat([s.grad.flatten() for s in handle.parameters()])
        wanted = [-g + slow * e for g, e in zip(opening, closing, strict=True)]
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-7)
        assert float(balance.multiplier) == pytest.approx(slow, rel=1e-5)
        with torch.no_grad():
            for s in handle.parameters():
                s -= rate * 10 * s.grad
        values = [float(x) for s in handle.parameters() for x in s.detach().flatten()]
    assert ratios == {True, False}


@pytest.mark.parametrize("density", sample([0.05, 0.3], 1))
@pytest.mark.parametrize("strength", sample([1e-4, 1e4, 1.0], 1))
def test_leads_to_the_density_whatever_the_loss_s_scale(density: float, strength: float) -> None:
    """A loss that would open every gate; Adam; begun at another density."""
    torch.manual_seed(1)
    model = nn.Linear(60, 50)
    handle = gates.attach(model, init=0.0, kind="binary-concrete")
    balance = Balance(handle, density, headroom=1.0, smoothing=0.1)
    optimizer = torch.optim.Adam(handle.parameters(), lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        opened = torch.sigmoid(handle.parameters()[0])
        (-strength * (opened * torch.rand_like(opened)).sum()).backward()
        balance.add_gradients()
        optimizer.step()
    assert handle.soft_density() == pytest.approx(density, rel=0.15)


def test_goes_on_from_its_multiplier() -> None:
    """Split in two, with the multiplier carried over, the bits are the same."""
    ends = []
    for parts in ((8,), (3, 5)):
        _, handle = model_and_gates(init=0.0)
        carried = None
        optimizer = torch.optim.SGD(handle.parameters(), lr=0.1)
        for steps in parts:
            balance = Balance(handle, 0.2)
            balance.multiplier = carried
            for _ in range(steps):
                optimizer.zero_grad()
                pulling(handle, 0.1).backward()
                balance.add_gradients()
                optimizer.step()
            carried = balance.multiplier
        ends.append([s.detach().clone() for s in handle.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_gates_that_the_loss_does_not_reach_are_closed() -> None:
    """They have no gradient of their own."""
    _, handle = model_and_gates(init=0.0)
    first, second = handle.parameters()
    first.sum().backward()
    balance = Balance(handle, 0.1)
    balance.add_gradients()
    assert second.grad is not None
    assert bool((second.grad > 0).all())


@pytest.mark.parametrize("kind", ["continuous", "stochastic", "hard-concrete", "binary-concrete"])
def test_every_kind_can_be_balanced(kind: str) -> None:
    model = nn.Linear(6, 5)
    handle = gates.attach(model, init=1.0, kind=kind)
    model(torch.ones(2, 6)).sum().backward()
    before = handle.parameters()[0].grad.clone()
    Balance(handle, 0.1).add_gradients()
    assert not torch.equal(handle.parameters()[0].grad, before)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"density": density} for density in (0.0, 1.0, -0.1, float("nan"))),
        {"density": 0.1, "headroom": 0.0},
        {"density": 0.1, "smoothing": 0.0},
        {"density": 0.1, "smoothing": 1.5},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, float]) -> None:
    _, handle = model_and_gates()
    with pytest.raises(UsageError):
        Balance(handle, **wrong)
