"""Channels in pairs: an order that is one, that keeps to its runs, and that keeps more pairs together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.engine.bench.masks import synthetic
from ticketry.engine.capture import capture
from ticketry.engine.plan.arenas import paired, pairs_of
from ticketry.engine.plan.partition import Region, partition
from ticketry.engine.plan.sketch import Sketch

LANES = 16


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 1)
    )


def sketch_of(model: nn.Module, mask: tk.Mask) -> Sketch:
    graph = capture(model, mask, torch.randn(2, 4, 8, 8))
    (region,) = partition(graph).steps
    assert isinstance(region, Region)
    return region.sketch(graph)


def pairs_kept(weight: torch.Tensor, order: np.ndarray) -> int:
    """Pairs (of the last convolution's inputs, at each row and tap) of which some channel is kept."""
    kept = weight.numpy()[:, order] != 0
    return int((kept[:, ::2] | kept[:, 1::2]).sum())


@pytest.mark.parametrize("count", [2, 3, 4, 6, 7])
def test_pairs_are_as_good_as_any(count: int) -> None:
    """Against all ways to pair; exchanges may end in one of several good ones, so nearly."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kept = (rng.random((count, 30)) < 0.3).astype(np.float32)
        together = kept @ kept.T

        def worth(order: tuple[int, ...], together: np.ndarray = together) -> float:
            return sum(float(together[a, b]) for a, b in zip(order[::2], order[1::2], strict=False))

        order = pairs_of(together)
        assert sorted(order.tolist()) == list(range(count))
        best = max(worth(each) for each in itertools.permutations(range(count)))
        assert worth(tuple(order.tolist())) >= 0.85 * best


def test_more_pairs_are_kept_together_and_groups_stay_runs() -> None:
    model = network()
    mask = synthetic(model, "groups:16", 0.26)
    sketch = sketch_of(model, mask)
    orders = paired(sketch, {}, LANES)
    (order,) = [each for each in orders.values() if len(each) == 64]
    assert np.array_equal(np.sort(order), np.arange(64))
    # The four groups of the writer's rows still lie where they lay.
    assert np.array_equal(order // 16, np.arange(64) // 16)
    weight = mask["2.weight"].flatten(2).float()
    assert pairs_kept(weight, order) < 0.93 * pairs_kept(weight, np.arange(64))


def test_channels_that_are_in_pairs_already_stay_so() -> None:
    model = network()
    mask = synthetic(model, "groups:16:pairs", 0.26)
    (order,) = [each for each in paired(sketch_of(model, mask), {}, LANES).values() if len(each) == 64]
    weight = mask["2.weight"].flatten(2).float()
    assert 2 * pairs_kept(weight, order) == int(weight.count_nonzero())


def test_an_order_that_is_given_is_kept_to() -> None:
    """Its runs of rows are those of the order, wherever they begin."""
    model = network()
    mask = synthetic(model, "groups:16", 0.26)
    sketch = sketch_of(model, mask)
    (root,) = [root for root, order in paired(sketch, {}, LANES).items() if len(order) == 64]
    given = np.roll(np.arange(64), 5)
    order = paired(sketch, {root: given}, LANES)[root]
    assert np.array_equal(order // 16, given // 16)


def test_what_comes_in_and_goes_out_keeps_its_order() -> None:
    model = network()
    sketch = sketch_of(model, synthetic(model, "groups:16", 0.26))
    pinned = {sketch.storages.orders.find(one) for one in sketch.storages.pinned}
    assert pinned
    assert not pinned & set(paired(sketch, {}, LANES))
