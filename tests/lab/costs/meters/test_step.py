"""One step: memory against known sizes, and nothing is left changed."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.errors import UsageError
from ticketry.lab.costs.meters import StepCost, allocated_at_peak, measure_step, resident_at_peak, tensor_bytes

SMALL = 100_000
"""Bytes of activations and of what the loss needs."""


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def batch(size: int = 4, features: int = 1000) -> tuple[Tensor, Tensor]:
    return torch.randn(size, features), torch.randint(0, 5, (size,))


@pytest.mark.parametrize(
    ("kind", "copies"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True), 3),
        (lambda p: torch.optim.Adam(p, 1e-3, fused=True), 4),
    ],
    ids=["momentum", "adam"],
)
def test_memory_is_weights_gradients_and_state(kind, copies: int) -> None:
    model = nn.Sequential(nn.Linear(1000, 2000), nn.ReLU(), nn.Linear(2000, 5))
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    cost = measure_step(model, loss, batch(), kind(model.parameters()), repeats=1)
    assert copies * size <= cost.allocated <= copies * size + 3 * SMALL
    assert cost.reserved is None
    assert cost.device == "cpu"
    assert cost.seconds > 0


def test_the_height_of_some_work() -> None:
    held = torch.zeros(1000)
    views = {"a": [held, held.view(10, 100)], "b": (torch.zeros(10, dtype=torch.float64), "text", 3)}
    assert tensor_bytes(views) == 4000 + 80

    def work() -> None:
        first = torch.ones(100_000)
        second = torch.ones(50_000)
        del first
        third = torch.ones(25_000)
        del second, third

    assert allocated_at_peak(work, [held]) == pytest.approx(4 * (1000 + 150_000), abs=1000)


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system tells no peak")
def test_the_process_is_as_large_as_what_it_holds() -> None:
    block = torch.ones(50_000_000, dtype=torch.uint8)
    peak = resident_at_peak()
    assert peak is not None
    assert 5e7 < peak < 1e12
    del block
    assert resident_at_peak() >= peak


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize(("trained", "kind"), [(False, torch.optim.SGD), (True, torch.optim.Adam)])
def test_all_is_left_as_it_was(trained: bool, kind) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))
    optimizer = kind(model.parameters(), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    data = batch(6, 20)
    if trained:
        loss(model, data).backward()
        optimizer.step()
    twin, settings = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    before, random = state(model, optimizer), torch.random.get_rng_state()
    cost = measure_step(model, loss, data, optimizer, mask=tk.prune(model, 0.5), repeats=2)
    after = state(model, optimizer)
    assert len(after) == len(before)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.training
    assert isinstance(cost, StepCost)
    assert 0 < cost.flops < cost.dense_flops
    # and training goes on as if nothing had been
    other = kind(twin.parameters(), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    other.load_state_dict(settings)
    for network, steps in ((model, optimizer), (twin, other)):
        torch.manual_seed(1)
        steps.zero_grad()
        loss(network, data).backward()
        steps.step()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))


def test_what_cannot_be_measured_is_told() -> None:
    model = nn.Linear(1000, 5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UsageError, match="at least 1"):
        measure_step(model, loss, batch(), optimizer, repeats=0)
    with pytest.raises(UsageError, match="ReLU has no parameters"):
        measure_step(nn.ReLU(), loss, batch(), optimizer)
