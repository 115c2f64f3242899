"""Pictures whose channels lie apart; channels in pairs, by an order that keeps to its runs and more pairs together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from engine.models import Of, assert_exact, sketch_of
from ticketry.core.synthetic_masks import synthetic
from ticketry_engine.plan import region_programs
from ticketry_engine.plan.arenas import PixelsArena, order_by_best_pairs, pair_channels

LANES = 16
IMAGES = torch.randn(2, 4, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 1)
    )


def pairs_kept(weight: torch.Tensor, order: np.ndarray) -> int:
    """Pairs (of the last convolution's inputs, at each row and tap) of which some channel is kept."""
    kept = weight.numpy()[:, order] != 0
    return int((kept[:, ::2] | kept[:, 1::2]).sum())


@pytest.mark.parametrize("count", [2, 3, 6])
def test_pairs_are_as_good_as_any(count: int) -> None:
    """Against all ways to pair; exchanges may end in one of several good ones, so nearly."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kept = (rng.random((count, 30)) < 0.3).astype(np.float32)
        together = kept @ kept.T

        def worth(order: tuple[int, ...], together: np.ndarray = together) -> float:
            return sum(float(together[a, b]) for a, b in zip(order[::2], order[1::2], strict=False))

        order = order_by_best_pairs(together)
        assert sorted(order.tolist()) == list(range(count))
        best = max(worth(each) for each in itertools.permutations(range(count)))
        assert worth(tuple(order.tolist())) >= 0.85 * best


def test_more_pairs_are_kept_together_and_groups_stay_runs() -> None:
    model = network()
    mask = synthetic(model, "groups:16", 0.26)
    sketch = sketch_of(model, IMAGES, mask)
    orders = pair_channels(sketch, {}, LANES)
    (order,) = [each for each in orders.values() if len(each) == 64]
    assert np.array_equal(np.sort(order), np.arange(64))
    # The four groups of the writer's rows still lie where they lay.
    assert np.array_equal(order // 16, np.arange(64) // 16)
    weight = mask["2.weight"].flatten(2).float()
    assert pairs_kept(weight, order) < 0.93 * pairs_kept(weight, np.arange(64))
    (root,) = [root for root, each in orders.items() if len(each) == 64]
    given = np.roll(np.arange(64), 5)
    assert np.array_equal(pair_channels(sketch, {root: given}, LANES)[root] // 16, given // 16)
    pinned = {sketch.storages.orders.find(one) for one in sketch.storages.pinned}
    assert pinned
    assert not pinned & set(orders), "what comes in and goes out keeps its order"


def seen(channels: int, function: Callable[[Of, torch.Tensor], torch.Tensor], groups: int = 1) -> nn.Module:
    """A picture that goes into a convolution, and perhaps elsewhere."""
    return Of(function, first=nn.Conv2d(channels, 12, 3, stride=2, padding=1, groups=groups))


@pytest.mark.parametrize(
    ("model", "shape", "apart"),
    [
        (seen(3, lambda m, x: m.first(x)), (3, 16, 16), True),
        (seen(40, lambda m, x: m.first(x)), (40, 16, 16), False),  # as many numbers side by side
        (seen(3, lambda m, x: m.first(x), groups=3), (3, 16, 16), False),  # each channel by itself
        (seen(3, lambda m, x: m.first(x) + m.first(torch.relu(x))), (3, 16, 16), False),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 32)), (1, 28, 28), True),
    ],
)
def test_pictures_that_only_convolutions_read_have_their_channels_apart(
    model: nn.Module, shape: tuple[int, ...], tmp_path: Path, *, apart: bool
) -> None:
    x = torch.randn(3, *shape)
    sketch = sketch_of(model.eval(), x)
    arena = PixelsArena(sketch, 2, LANES)
    (loaded,) = [task for task in sketch.tasks if task.kind == "load"]
    assert bool(arena.value_memory(loaded.output).geometry.channel_stride) == apart
    in_bfloat16 = PixelsArena(sketch, 2, LANES, 2).value_memory(loaded.output)
    assert not in_bfloat16.geometry.channel_stride, "bfloat16 multiplies pairs"
    if not apart:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_programs, "choose_layout", lambda *_: "pixels")
        patch.setenv("TICKETRY_CACHE", str(tmp_path))  # where no choice is kept
        compiled = tk.compile(model, None, x)
    assert_exact(compiled, model, x, x.contiguous(memory_format=torch.channels_last), torch.randn(5, *shape))


def test_channels_that_are_in_pairs_already_stay_so() -> None:
    model = network()
    mask = synthetic(model, "groups:16:pairs", 0.26)
    (order,) = [each for each in pair_channels(sketch_of(model, IMAGES, mask), {}, LANES).values() if len(each) == 64]
    weight = mask["2.weight"].flatten(2).float()
    assert 2 * pairs_kept(weight, order) == int(weight.count_nonzero())
