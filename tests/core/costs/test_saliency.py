"""Shares of an output's energy, against outputs themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.costs.saliency import output_energy
from ticketry.errors import UsageError


def test_of_uncorrelated_inputs_it_is_the_change_of_the_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False)).double()
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.1, 1.0]).double()
    x = torch.linalg.qr(torch.randn(40, 6).double()).Q * scale * 40**0.5  # exactly uncorrelated columns
    energy = output_energy(model, tk.scope(model), x)["0.weight"]
    whole = model(x).square().sum()
    removed = torch.rand(4, 6) < 0.5
    thinner = nn.functional.linear(x, model[0].weight * ~removed)
    lost = ((model(x) - thinner).square().sum() / whole).item()
    assert float(energy[removed].sum()) == pytest.approx(lost, rel=1e-6)


def test_convolutions_groups_and_zeros():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3)).train()
    x = torch.randn(2, 4, 4, 4)
    x[:, 1] = 0
    energy = output_energy(model, tk.scope(model), x)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert energy["0.weight"].shape == (6, 2, 3, 3)
    assert float(energy["0.weight"][:3, 1].abs().sum()) == 0
    assert float(energy["0.weight"][3:, 1].min()) > 0
    assert [float(each.sum()) for each in energy.values()] == pytest.approx([1.0, 1.0])
    blind = output_energy(model, tk.scope(model), torch.zeros_like(x))
    assert float(blind["0.weight"].sum()) == pytest.approx(1.0)


def test_what_is_not_known_is_named():
    model = nn.Sequential(nn.LSTM(3, 4))
    with pytest.raises(UsageError, match=r"0\.weight_ih_l0"):
        output_energy(model, tk.scope(model), torch.zeros(2, 1, 3))
