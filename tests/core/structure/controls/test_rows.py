"""Group-wise and N:M masks drawn anew keep the structure, meet the number of weights, and overlap by chance."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.mask import Mask
from ticketry.core.structure.controls import random_structure, shuffled_n_m


class _Net(nn.Module):
    """A layer of each kind: linear, convolution, grouped and transposed ones. Never run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(7, 24, 3)
        self.grouped = nn.Conv2d(24, 32, 3, groups=4)
        self.transposed = nn.ConvTranspose2d(10, 16, 2)
        self.linear = nn.Linear(50, 40)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return _Net()


def rows_of(name: str, kept: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs, taps], written out for each kind of layer."""
    if name.startswith("transposed"):
        kept = kept.transpose(0, 1)
    return kept.flatten(2) if kept.dim() > 2 else kept[:, :, None]


@pytest.mark.parametrize("seed", range(3))
def test_random_groups(model: nn.Module, seed: int) -> None:
    mask = tk.structure.regroup(model, tk.prune(model, density=0.4, distribution="layerwise"), rows=4)
    drawn = random_structure(model, mask, seed)
    assert drawn.shapes == mask.shapes
    assert 0 <= mask.kept - drawn.kept < 4
    assert drawn == random_structure(model, mask, seed)
    for name, kept in drawn.items():
        rows = rows_of(name, kept).flatten(1)
        assert rows.any(1).all(), "no row is empty"
        same = (rows[:, None] == rows[None]).all(2).sum(1)
        assert (same >= 4).all(), name
        share = float(kept.float().mean())
        assert share == pytest.approx(drawn.density, abs=5 * (0.25 * 4 / kept.numel()) ** 0.5)
    overlap = (mask & drawn).kept / mask.kept
    assert overlap == pytest.approx(drawn.density, abs=0.05)


def test_random_groups_of_grouped_layers_stay_in_their_runs(model: nn.Module) -> None:
    """Rows of a grouped convolution that read other inputs are never put together, whatever the group's size."""
    mask = tk.structure.regroup(model, tk.prune(model, density=0.4, distribution="layerwise"), rows=8)
    rows = random_structure(model, mask, 0)["grouped.weight"].flatten(1)
    for run in rows.split(8):
        assert (run == run[0]).all()


@pytest.mark.parametrize("m", [4, 8])
def test_n_of_m_is_shuffled_within_its_blocks(model: nn.Module, m: int) -> None:
    mask = tk.prune(model, density=0.4)
    drawn = shuffled_n_m(model, mask, m, 0)
    for name, kept in drawn.items():
        before, after = rows_of(name, mask[name]), rows_of(name, kept)
        for first in range(0, before.shape[1], m):
            assert torch.equal(before[:, first : first + m].sum(1), after[:, first : first + m].sum(1)), name
    assert drawn != mask
    assert drawn == shuffled_n_m(model, mask, m, 0) != shuffled_n_m(model, mask, m, 1)


def test_every_place_of_a_block_is_as_likely() -> None:
    linear = nn.Linear(6, 4000)
    kept = torch.zeros(4000, 6, dtype=torch.bool)
    kept[:, 0] = kept[:, 4] = True
    drawn = shuffled_n_m(linear, Mask({"weight": kept}), 4, 0)["weight"].float().mean(0)
    assert drawn[:4].tolist() == pytest.approx([0.25] * 4, abs=0.035)
    assert drawn[4:].tolist() == pytest.approx([0.5] * 2, abs=0.04)
