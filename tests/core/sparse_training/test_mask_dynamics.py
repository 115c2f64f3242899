"""A mask that moves, against loops over single weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ticketry as tk
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.mask_dynamics import (
    drop_and_grow,
    first_slow_checkpoint,
    first_stable_checkpoint,
    relative_distance,
)
from ticketry.errors import MaskError, UsageError

SHAPES = {"one": (3, 5), "two": (4, 2, 2), "three": (7,)}


def slow(kept: list[bool], weights: list[float], growth: list[float], share: float, regrow: bool) -> list[bool]:
    """One layer, weight by weight: the worst goes, then the best place is taken, so many times."""
    now = list(kept)
    count = int(share * sum(kept) + 1e-12)
    if not regrow:
        count = min(count, kept.count(False))
    for _ in range(count):
        worst = None
        for place, there in enumerate(now):
            if there and (worst is None or abs(weights[place]) <= abs(weights[worst])):
                worst = place
        now[worst] = False
    left = list(now)
    for _ in range(count):
        best = None
        for place in range(len(now)):
            free = not now[place] and not (left if regrow else kept)[place]
            if free and (best is None or growth[place] > growth[best]):
                best = place
        now[best] = True
    return now


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]), st.booleans(), st.booleans())
def test_as_weight_by_weight(seed: int, share: float, regrow: bool, coarse: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = Mask({name: torch.rand(shape, generator=draw) < 0.6 for name, shape in SHAPES.items()})
    weights = {name: torch.randn(shape, generator=draw) * mask[name] for name, shape in SHAPES.items()}
    growth = {name: torch.rand(shape, generator=draw) for name, shape in SHAPES.items()}
    if coarse:
        weights, growth = ({name: (2 * x).round() for name, x in each.items()} for each in (weights, growth))
    after = drop_and_grow(mask, weights, growth, share, regrow=regrow)
    for name in SHAPES:
        lists = (mask[name], weights[name], growth[name])
        assert after[name].flatten().tolist() == slow(*(each.flatten().tolist() for each in lists), share, regrow)
        assert int(after[name].sum()) == int(mask[name].sum()), "each layer keeps its number of weights"


def test_a_dense_layer_stays_dense() -> None:
    mask = Mask({"w": torch.ones(8, dtype=torch.bool)})
    for regrow in (False, True):
        assert drop_and_grow(mask, {"w": torch.randn(8)}, {"w": torch.rand(8)}, 0.5, regrow=regrow) == mask


def test_what_does_not_fit_is_told() -> None:
    mask = Mask({"w": torch.tensor([True, False])})
    fine = {"w": torch.ones(2)}
    with pytest.raises(UsageError, match=r"in \[0, 1\), got 1"):
        drop_and_grow(mask, fine, fine, 1.0)
    with pytest.raises(MaskError, match="growth have no tensor 'w' of shape"):
        drop_and_grow(mask, fine, {"w": torch.ones(3)}, 0.5)
    with pytest.raises(MaskError, match="weights of 'w' are not all numbers"):
        drop_and_grow(mask, {"w": torch.tensor([1.0, float("nan")])}, fine, 0.5)


def test_distance_is_of_all_tensors_together() -> None:
    before = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "bias": torch.tensor([100.0])}
    after = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[2.0]]), "bias": torch.tensor([0.0])}
    assert relative_distance(after, before, ["a", "b"]) == pytest.approx(math.sqrt(5) / 5, rel=1e-12)
    assert relative_distance(before, before, ["a", "b"]) == 0


def test_distance_is_in_double_precision() -> None:
    before = {"a": torch.full((1000,), 1.0)}
    after = {"a": torch.nextafter(before["a"], torch.tensor(2.0))}
    assert relative_distance(after, before, ["a"]) == pytest.approx(2**-23, rel=1e-9)


def test_distances_and_thresholds_that_cannot_be() -> None:
    with pytest.raises(MaskError, match="'b' is in the scope"):
        relative_distance({"a": torch.ones(1)}, {"a": torch.ones(1)}, ["b"])
    with pytest.raises(UsageError, match="all 0"):
        relative_distance({"a": torch.ones(1)}, {"a": torch.zeros(1)}, ["a"])
    with pytest.raises(UsageError, match="above 0"):
        first_slow_checkpoint([1.0, 1.1], 0.0)


@pytest.mark.parametrize(
    ("distances", "threshold", "look"),
    [
        ([1.0, 1.6, 1.9, 2.0], 0.5, 3),  # changes 1, 0.6, 0.3, 0.1
        ([1.0, 1.6, 1.9, 2.0], 0.7, 2),
        ([1.0, 1.6, 1.9, 2.0], 0.05, None),
        ([1.0, 0.9], 0.2, 2),  # back towards the start is slow too
        ([1.0], 5.0, None),  # one look tells no change
        ([1.0, 1.5], 0.5, None),  # strictly below
        ([], 0.5, None),
    ],
)
def test_settled(distances: list[float], threshold: float, look: int | None) -> None:
    assert first_slow_checkpoint(distances, threshold) == look


def masks(*kept: int) -> list[tk.Mask]:
    """Of 100 elements, the first so many kept: two of them differ in as many hundredths as their numbers."""
    return [tk.Mask({"w": torch.arange(100) < count}) for count in kept]


@pytest.mark.parametrize(
    ("kept", "look"),
    [
        ((50, 50, 50, 50), None),  # five are needed
        ((50, 50, 50, 50, 50), 5),
        ((90, 60, 60, 55, 52, 50), 6),
        ((50, 54, 58, 62, 66, 66, 66), 7),  # each like the next, the first unlike the last
        ((40, 51, 51, 51, 51, 51), 6),
    ],
)
def test_alike(kept: tuple[int, ...], look: int | None) -> None:
    assert first_stable_checkpoint(masks(*kept)) == look
