"""Detectors of the moment to prune, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import ticketry as tk
from ticketry.core.sparse_training.mask_dynamics import (
    first_slow_checkpoint,
    first_stable_checkpoint,
    relative_distance,
)
from ticketry.errors import MaskError, UsageError


def test_distance_is_of_all_tensors_together() -> None:
    before = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "bias": torch.tensor([100.0])}
    after = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[2.0]]), "bias": torch.tensor([0.0])}
    assert relative_distance(after, before, ["a", "b"]) == pytest.approx(math.sqrt(5) / 5, rel=1e-12)
    assert relative_distance(before, before, ["a", "b"]) == 0


def test_distance_is_in_double_precision() -> None:
    before = {"a": torch.full((1000,), 1.0)}
    after = {"a": torch.nextafter(before["a"], torch.tensor(2.0))}
    assert relative_distance(after, before, ["a"]) == pytest.approx(2**-23, rel=1e-9)


def test_distance_names_what_is_wrong() -> None:
    with pytest.raises(MaskError, match="'b' is in the scope"):
        relative_distance({"a": torch.ones(1)}, {"a": torch.ones(1)}, ["b"])
    with pytest.raises(UsageError, match="all 0"):
        relative_distance({"a": torch.ones(1)}, {"a": torch.zeros(1)}, ["a"])


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


def test_a_threshold_is_a_share() -> None:
    with pytest.raises(UsageError, match="above 0"):
        first_slow_checkpoint([1.0, 1.1], 0.0)


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
