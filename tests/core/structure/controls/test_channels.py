"""Masks of whole channels drawn anew: as many of each group, or at the same density over all groups."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.core.mask import Mask
from ticketry.core.structure.controls import random_channels, shuffled_channels
from ticketry.core.structure.removal_trial import tried_structure


@pytest.fixture
def model() -> nn.Module:
    """Four hidden layers, two of them of one size."""
    torch.manual_seed(0)
    sizes = (12, 60, 60, 60, 30, 5)
    return nn.Sequential(*(layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())))


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(2, 12)


@pytest.fixture
def mask(model: nn.Module, inputs: Tensor) -> Mask:
    return tk.structure.channels(model, inputs, 0.4, score="random")


BIASES = ("0.bias", "2.bias", "4.bias", "6.bias")


def test_shuffled_ones_are_as_many_of_each_group(model: nn.Module, inputs: Tensor, mask: Mask) -> None:
    structure = tried_structure(model, inputs)
    first, same, second = (shuffled_channels(model, structure, mask, seed) for seed in (0, 0, 1))
    assert first == same != second
    assert {name: int(kept.sum()) for name, kept in first.items()} == {n: int(kept.sum()) for n, kept in mask.items()}
    tk.structure.shrink_plan(model, first, inputs)  # it is of whole channels
    for name in BIASES:
        assert not torch.equal(first[name], mask[name])
    uniform = tk.structure.channels(model, inputs, 0.4, distribution="uniform")
    drawn = shuffled_channels(model, structure, uniform, 0)
    for one, other in (("0.bias", "2.bias"), ("2.bias", "0.bias")):
        assert (drawn[one] & ~drawn[other]).any(), "groups of one size get different draws"


def test_random_ones_have_the_density_over_all(model: nn.Module, inputs: Tensor) -> None:
    mask = tk.structure.channels(model, inputs, 0.4, distribution="uniform")
    with torch.no_grad():
        model[2].weight *= 100  # the mask keeps all of this layer, which chance does not
    uneven = tk.structure.channels(model, inputs, 0.4)
    structure = tried_structure(model, inputs)
    for like in (mask, uneven):
        one, same, other = (random_channels(model, structure, like, seed) for seed in (0, 0, 1))
        assert one == same != other
        assert one.shapes == like.shapes
        assert abs(one.density - like.density) < 0.02
        tk.structure.shrink_plan(model, one, inputs)
        shares = [float(one[name].float().mean()) for name in BIASES]
        assert all(0.35 < share < 0.9 for share in shares), "each group near the share of all"


def test_layers_that_were_spared_are_left_alone(model: nn.Module, inputs: Tensor) -> None:
    spared = tk.structure.channels(model, inputs, 0.6, scope=tk.scope(model, spare=("2", "6")))
    structure = tried_structure(model, inputs)
    assert "2.bias" not in spared
    for draw in (shuffled_channels, random_channels):
        drawn = draw(model, structure, spared, 0)
        assert drawn.shapes == spared.shapes
        for name in ("4.weight", "8.weight"):  # those behind the spared layers keep all their columns
            assert drawn[name].any(0).all()
