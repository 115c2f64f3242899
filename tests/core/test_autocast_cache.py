"""Autocast keeps low-precision copies of weights; what changes weights inside of it is seen by the next call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))


def _mask_weights(model: nn.Module) -> None:
    held = tk.hold(model, tk.prune(model, 0.3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    model(_x())  # a copy without the mask
    held.mask_weights()
    held.release()


def _gradual(model: nn.Module) -> None:
    with tk.gradual(model, 0.3, steps=2, begin="0it", end="1it", frequency="1it") as pruning:
        pruning.step()


def _detach(model: nn.Module) -> None:
    gates = tk.gates.attach(model, init=0.5)
    model(_x())
    gates.detach()


def _update(model: nn.Module) -> None:
    fast = tk.sparse_training(model, tk.prune(model, 0.6), _x())
    model(_x())
    fast.update(tk.prune(model, 0.3))
    fast.release()


def _x() -> Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "Mask.apply_": lambda model: tk.prune(model, 0.3).apply_(model),
    "hold": lambda model: tk.hold(model, tk.prune(model, 0.3)).release(),
    "Hold.mask_weights": _mask_weights,
    "gradual": _gradual,
    "Ticket.apply": lambda model: tk.Ticket(
        tk.prune(model, 0.3), {name: value + 1 for name, value in _network().state_dict().items()}, {}
    ).apply(model),
    "Gates.detach": _detach,
    "sparse_training": lambda model: tk.sparse_training(model, tk.prune(model, 0.3), _x()).release(),
    "SparseTraining.update": _update,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_call_after_a_change_of_weights_has_the_new_ones(name: str) -> None:
    model = _network()
    with torch.autocast("cpu", torch.bfloat16):
        before = model(_x())  # autocast keeps copies of the weights from here on
        CHANGES[name](model)
        found = model(_x())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = model(_x())
    assert torch.equal(found, expected)
    assert name == "Gates.detach" or not torch.equal(found, before)


def test_torch_keeps_the_weights_of_before() -> None:
    """Else the tests above show nothing."""
    model = _network()
    with torch.autocast("cpu", torch.bfloat16):
        before = model(_x())
        with torch.no_grad():
            model[0].weight.zero_()
        assert torch.equal(model(_x()), before)
