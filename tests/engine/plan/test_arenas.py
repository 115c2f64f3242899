"""Pictures whose channels lie apart; channels in pairs, by an order that keeps to its runs and more pairs together."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.synthetic_masks import synthetic
from ticketry_engine.capture import capture
from ticketry_engine.ir import Region
from ticketry_engine.plan import region_programs
from ticketry_engine.plan.arenas import PixelsArena, order_by_best_pairs, pair_channels
from ticketry_engine.plan.region_programs import partition_graph, sketch_region
from ticketry_engine.plan.sketch import Sketch

LANES = 16


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 1)
    )


def sketch_of(model: nn.Module, mask: tk.Mask) -> Sketch:
    graph = capture(model, mask, torch.randn(2, 4, 8, 8))
    ((region,), _) = partition_graph(graph)
    assert isinstance(region, Region)
    return sketch_region(graph, region)


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
    sketch = sketch_of(model, mask)
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


class Seen(nn.Module):
    """A picture that goes into a convolution, and perhaps elsewhere."""

    def __init__(self, channels: int, groups: int = 1, also: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels, 12 // groups * groups, 3, stride=2, padding=1, groups=groups)
        self.same = nn.Conv2d(channels, channels, 3, padding=1)
        self.also = also

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.also == "residual":
            return self.first(self.same(x) + x)
        if self.also == "relu":
            return self.first(x) + self.first(torch.relu(x))
        return self.first(x)


@pytest.mark.parametrize(
    ("model", "pixels", "apart"),
    [
        (Seen(3), 16, True),
        (Seen(40), 16, False),  # as many numbers side by side
        (Seen(3, groups=3), 16, False),  # each channel by itself
        (Seen(3, also="relu"), 16, False),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 32)), 28, True),
    ],
)
def test_pictures_that_only_convolutions_read_have_their_channels_apart(
    model: nn.Module, pixels: int, tmp_path: Path, *, apart: bool
) -> None:
    channels = model.first.in_channels if isinstance(model, Seen) else 1
    x = torch.randn(3, channels, pixels, pixels)
    graph = capture(model.eval(), None, x)
    ((region,), _) = partition_graph(graph)
    assert isinstance(region, Region)
    sketch = sketch_region(graph, region)
    arena = PixelsArena(sketch, 2, LANES)
    (loaded,) = [task for task in sketch.tasks if task.kind == "load"]
    assert bool(arena.value_memory(loaded.output).geometry.channel_stride) == apart
    assert not PixelsArena(sketch, 2, LANES, 2).value_memory(loaded.output).geometry.channel_stride, (
        "bfloat16 multiplies pairs"
    )
    if not apart:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_programs, "choose_layout", lambda *_: "pixels")
        patch.setenv("TICKETRY_CACHE", str(tmp_path))  # where no choice is kept
        compiled = tk.compile(model, None, x)
    for given in (x, x.contiguous(memory_format=torch.channels_last), torch.randn(5, *x.shape[1:])):
        torch.testing.assert_close(compiled(given), model(given), rtol=1e-4, atol=1e-5)


def test_channels_that_are_in_pairs_already_stay_so() -> None:
    model = network()
    mask = synthetic(model, "groups:16:pairs", 0.26)
    (order,) = [each for each in pair_channels(sketch_of(model, mask), {}, LANES).values() if len(each) == 64]
    weight = mask["2.weight"].flatten(2).float()
    assert 2 * pairs_kept(weight, order) == int(weight.count_nonzero())
