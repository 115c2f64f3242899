"""Over how many inputs a segment of a row's sum ranges: as many as the nearest cache keeps, more where few are kept."""

from __future__ import annotations

import numpy as np
import pytest

from ticketry_engine.kernels.planar.row_sums import FLAG_BITS
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.training.convolution import FEWEST, forward
from ticketry_engine.kernels.training.layer import MaskedLayer
from ticketry_engine.kernels.training.layout import Batch
from ticketry_engine.kernels.window import Window

CHANNELS = 96


def _weights_of_segments(density: float) -> np.ndarray:
    """Of the forward pass of a 3x3 convolution on 16 x 16 pixels, the weights of each segment."""
    kept = np.random.default_rng(0).random((CHANNELS, CHANNELS, 3, 3)) < density
    x, y = (Batch.of(CHANNELS, (16, 16), halo, 2) for halo in (1, 0))
    layer = MaskedLayer(kept, Window((3, 3), (1, 1), (1, 1), (1, 1)))
    (made,) = forward(x, y, layer, target())
    segments = made.ops[0].args[0]
    assert isinstance(segments, np.ndarray)
    counts = segments[:, 0].astype(np.int64) >> FLAG_BITS
    assert counts.sum() == kept.sum()
    return counts


@pytest.mark.parametrize("density", [0.01, 0.02, 0.05])
def test_segments_of_rows_that_keep_little_are_long(density: float) -> None:
    counts = _weights_of_segments(density)
    per_row = CHANNELS * 9 * density
    expected = min(FEWEST, per_row)
    assert 0.6 * expected <= counts[counts > 0].mean()
    assert len(counts) <= CHANNELS * max(1, np.ceil(per_row / FEWEST))


def test_others_range_over_what_a_cache_keeps() -> None:
    counts = _weights_of_segments(0.5)
    columns = counts.mean() / 0.5
    assert len(counts) >= 4 * CHANNELS
    assert 9 * 2 <= columns <= 9 * 24, "some ten inputs, by the lines of a tile that they touch"
