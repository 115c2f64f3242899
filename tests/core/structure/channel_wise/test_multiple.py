"""Channels that go in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.errors import LayerCollapseError, UsageError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 21, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(21 * 4, 3),
    )  # fmt: skip


X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def widths(mask: tk.Mask) -> tuple[int, int]:
    """Output channels left of the two convolutions."""
    return tuple(int(mask[name].flatten(1).any(1).sum()) for name in ("0.weight", "3.weight"))  # type: ignore[return-value]


@pytest.mark.parametrize("distribution", ["global", "uniform"])
@pytest.mark.parametrize("density", [0.7, 0.4, 0.2])
def test_what_loses_channels_keeps_a_multiple(density, distribution):
    model = network()
    mask = tk.structure.channels(model, X, density, distribution=distribution, multiple=8)
    first, second = widths(mask)
    assert first % 8 == 0
    assert second == 21 or second % 8 == 0
    small = tk.shrink(model.eval(), mask, X)
    masked = network().eval()
    mask.apply_(masked)
    torch.testing.assert_close(small(X), masked(X))


def test_the_density_is_the_nearest_that_blocks_can_have():
    """Written out: of all pairs of widths that keep the worst-first order, none on its way is nearer."""
    model = network()
    mask = tk.structure.channels(model, X, 0.5, distribution="uniform", multiple=8)

    def density(first: int, second: int) -> float:
        weights = first * 9 + 3 * first + second * first * 9 + second + 3 * second * 4
        total = 24 * 9 + 3 * 24 + 21 * 24 * 9 + 21 + 3 * 21 * 4
        return weights / total

    assert mask.density == pytest.approx(density(*widths(mask)))
    # The order: each block's place is the mean share of its group that is gone when its channels go.
    places = [
        (sum(range(1, 6)) / 5 / 21, 16, "b"), (sum(range(6, 14)) / 8 / 21, 8, "b"),
        (sum(range(1, 9)) / 8 / 24, 16, "a"), (sum(range(9, 17)) / 8 / 24, 8, "a"),
    ]  # fmt: skip
    left = {"a": 24, "b": 21}
    way = [density(24, 21)]
    for _, width, group in sorted(places):
        left[group] = width
        way.append(density(left["a"], left["b"]))
    assert min(abs(each - 0.5) for each in way) == pytest.approx(abs(mask.density - 0.5))


def test_too_few_channels_for_the_density():
    with pytest.raises(LayerCollapseError, match=r"with 16 \(the least multiple of 16\) left in each"):
        tk.structure.channels(network(), X, 0.05, multiple=16)


def test_bad_numbers():
    with pytest.raises(UsageError, match="multiple is 1 or more"):
        tk.structure.channels(network(), X, 0.5, multiple=0)
    with pytest.raises(UsageError, match="a whole number from 1 on after the colon, got '0'"):
        tk.search.early.Settings(density=(0.5,), structure="channels:0")
