"""Layers of a ticket beside the same layers where nothing is pruned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry_engine.bench.compare import time_layers, unpruned
from ticketry_engine.compiled import Compiled


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


def test_nothing_is_pruned_any_more(model: nn.Module) -> None:
    mask = tk.structure.channels(model, torch.randn(2, 3, 8, 8), 0.4)
    mask.apply_(model)
    filled = unpruned(model, mask)
    for name, parameter in filled.named_parameters():
        kept = mask.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[kept], model.get_parameter(name)[kept])
        assert (parameter[~kept] != 0).all()
    assert not model.get_parameter("1.weight")[~mask["1.weight"]].any(), "the ticket's model stays as it is"


def test_every_layer_has_both_times(model: nn.Module) -> None:
    mask, inputs = tk.prune(model, density=0.2), torch.randn(4, 3, 8, 8)
    mask.apply_(model)
    fast = tk.compile(model, mask, inputs)
    assert isinstance(fast, Compiled)
    rows = {row.name: row for row in time_layers(fast, model, mask, inputs, "fp32")}
    for name in ("0", "4"):
        assert rows[name].density == pytest.approx(mask.table()[0 if name == "0" else 1].density)
        assert rows[name].seconds > 0
        assert rows[name].dense_seconds > 0
