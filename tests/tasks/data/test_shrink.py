"""Averaged images against a loop over squares in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketry.tasks import data
from ticketry.tasks.data.splits import averaged


@given(factor=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_each_pixel_is_the_rounded_mean_of_its_square(factor: int, rows: int, columns: int, seed: int) -> None:
    shape = (2, 3, rows * factor, columns * factor)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    found = averaged(images, factor)
    assert found.shape == (2, 3, rows, columns)
    assert found.dtype == torch.uint8
    for i in range(rows):
        for j in range(columns):
            square = images[:, :, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].reshape(2, 3, -1)
            for n in range(2):
                for c in range(3):
                    mean = Fraction(sum(square[n, c].tolist()), factor * factor)
                    assert int(found[n, c, i, j]) == math.floor(mean + Fraction(1, 2))


def test_all_three_splits_of_a_data_set_are_averaged_and_their_classes_are_left_alone() -> None:
    whole, small = data.load("digits", train=300), data.load("digits", train=300, factor=2)
    for part in ("train", "validation", "test"):
        before, after = getattr(whole, part), getattr(small, part)
        assert after.inputs.shape == (len(before), 1, 4, 4)
        assert torch.equal(after.targets, before.targets)
        assert torch.equal(after.inputs, averaged(before.inputs, 2))
