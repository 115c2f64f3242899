"""Which batch norms are replaced by synchronised ones: all, in every place, and none with a forward of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ticketry.core.devices import SynchronisedBatchNorm, synchronise_norms
from ticketry.errors import UsageError


class Activated(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class Inner(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm


def test_a_norm_in_several_places_is_one_afterwards_too() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 4, 1), norm, Inner(norm), nn.SyncBatchNorm(4))
    state = model.state_dict(keep_vars=True)
    assert synchronise_norms(model) is model
    assert model[1] is model[3] is model[4].norm
    assert type(model[1]) is type(model[5]) is SynchronisedBatchNorm
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(after[name] is state[name] for name in state)
    before = model[1]
    assert synchronise_norms(model)[1] is before


def test_a_norm_with_a_forward_of_its_own_is_refused_and_nothing_replaced() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), Inner(Activated(4)))
    with pytest.raises(UsageError, match=r"'2.norm' is of the class Activated, a batch norm whose own forward"):
        synchronise_norms(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_an_evaluation_needs_no_processes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    images = torch.randn(2, 3, 6, 6)
    expected = model(images)
    assert torch.equal(synchronise_norms(model)(images), expected)


def test_a_lazy_norm_and_a_lone_norm_are_refused() -> None:
    with pytest.raises(UsageError, match=r"has no shape yet \(a lazy layer\)"):
        synchronise_norms(nn.Sequential(nn.LazyBatchNorm1d()))
    with pytest.raises(UsageError, match="the model is a batch norm itself"):
        synchronise_norms(nn.BatchNorm1d(3))
