"""What a layer costs on a GPU, in the group kernel, as 2:4, and dense: the rule by which a plan chooses.

    time = launch + max(arithmetic / its rate, bytes / bandwidth [, steps of the longest tile x time of a step])

The constants below were measured on an H100 SXM (80 GB HBM3, torch 2.11, cuDNN 9.19, Triton 3.6) by ``python
benchmarks/engine_gpu.py --calibrate``, each with a layer that it decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

TILES = (16, 32, 64, 128)
"""Rows of a tile that the group kernel can have."""

MARGIN = 0.95
"""A sparse kernel has to be estimated at less than this share of the dense time: the estimate is not exact."""

FEWEST_IMAGES = 4
"""Runs of fewer images (or tokens) are mostly padding to whole vectors of 8: such layers stay dense."""


LEAST_FILLED = 0.5
"""Share of tiles of 16 rows, the smallest there are, that a layer's groups have to fill. Unstructured masks fill 1/16:
for them cuDNN and cuBLAS are taken to be faster at any density, which has not been measured either."""


@dataclass(frozen=True)
class Rates:
    """What a device reaches with one number format."""

    conv: float
    """FLOP/s of cuDNN on a large convolution."""
    linear: float
    """FLOP/s of cuBLAS on a large linear layer."""
    group: Mapping[int, float]
    """FLOP/s of the group kernel by the rows of a tile, padding counted. What is gathered comes from the L2 cache, and
    is multiplied by the rows of one tile only: 64 rows are at most 64 FLOP for each byte of it."""
    two_four: float
    """FLOP/s, of the dense layer's, of torch's semi-structured product."""
    bandwidth: float
    """Bytes/s of a kernel that copies."""
    turned: float
    """Bytes/s, read and written, of a change of layout."""
    launch: float
    """Seconds from one kernel of a CUDA graph to the next, besides its work."""
    step: float
    """Seconds that a program takes for 64 columns when it is alone on its multiprocessor."""
    program: float
    """Seconds that a program takes besides its arithmetic, all multiprocessors sharing them …"""
    row: float
    """… and for each row of its tile. Both fitted to timings of layers and networks (docs/engine-gpu.md)."""
    bytes: int
    """Of a number."""


_H100 = Rates(
    conv=750e12,
    linear=720e12,
    group={16: 94e12, 32: 175e12, 64: 287e12, 128: 373e12},
    two_four=820e12,
    bandwidth=2.75e12,
    turned=2.55e12,
    launch=1.25e-6,
    step=0.31e-6,
    program=0.33e-6 / 132,
    row=1.01e-6 / 64 / 132,
    bytes=2,
)

RATES: Mapping[torch.dtype, Rates] = {
    torch.bfloat16: _H100,
    torch.float16: _H100,
    # TF32's gather has to be transposed element by element on its way into shared memory.
    torch.float32: replace(
        _H100,
        conv=420e12,
        linear=410e12,
        group={16: 10e12, 32: 19e12, 64: 34e12, 128: 69e12},
        two_four=0.0,
        bandwidth=2.9e12,
        turned=2.75e12,
        step=0.61e-6,
        bytes=4,
    ),
}


@dataclass(frozen=True)
class Work:
    """One layer at one input shape."""

    pixels: int
    """Outputs of one channel: images x height x width, or tokens."""
    run: int
    """Images, or tokens: what lies innermost."""
    rows: int
    columns: int
    """Of the dense weight: input channels of one output x taps."""
    groups: Sequence[tuple[int, int]]
    """(rows, kept columns) of each set of rows that share their columns."""
    inputs: int
    """Numbers that are read."""
    outputs: int
    """Numbers that are written."""
    residual: bool
    act: bool
    linear: bool = False

    @property
    def padded(self) -> int:
        """Pixels with the runs padded to whole vectors."""
        return self.pixels // self.run * -(-self.run // 8) * 8


def dense_seconds(work: Work, rates: Rates) -> float:
    """In cuDNN or cuBLAS, and the passes over its output that torch adds for a residual and an activation."""
    return _whole_seconds(work, rates, rates.linear if work.linear else rates.conv, 1.0)


def two_four_seconds(work: Work, rates: Rates) -> float:
    """As torch's semi-structured product."""
    return _whole_seconds(work, rates, rates.two_four, 0.6)


def _whole_seconds(work: Work, rates: Rates, rate: float, stored: float) -> float:
    """A product at so many FLOP/s counted as of the dense weight, of which this share is read; then torch's passes."""
    product = 2.0 * work.pixels * work.rows * work.columns / rate
    bytes_ = rates.bytes * (work.inputs + work.outputs + stored * work.rows * work.columns)
    return rates.launch + max(product, bytes_ / rates.bandwidth) + _passes(work, rates)


def _passes(work: Work, rates: Rates) -> float:
    made = rates.bytes * work.outputs / rates.bandwidth
    return (rates.launch + 3 * made) * work.residual + (rates.launch + 2 * made) * work.act


def group_seconds(work: Work, tile: int, rates: Rates) -> float:
    """In the group kernel, bias, residual and activation included."""
    product, weights = group_product_seconds(work, tile, rates), _padded_weights(work, tile)
    moved = work.inputs + work.outputs * (1 + work.residual) + weights
    longest = max((columns for _, columns in work.groups), default=0)
    return rates.launch + max(product, rates.bytes * moved / rates.bandwidth, -(-longest // 64) * rates.step)


def group_product_seconds(work: Work, tile: int, rates: Rates) -> float:
    """Of the group kernel's arithmetic alone, padding counted."""
    return 2.0 * work.padded * _padded_weights(work, tile) / rates.group[tile]


def _padded_weights(work: Work, tile: int) -> int:
    return sum(-(-rows // tile) * tile * -(-columns // 64) * 64 for rows, columns in work.groups)


def filled(work: Work) -> float:
    """Kept weights / weights of the smallest tiles that hold them; 1 for a layer without any."""
    tiles = sum(-(-rows // TILES[0]) * TILES[0] * columns for rows, columns in work.groups)
    return sum(rows * columns for rows, columns in work.groups) / tiles if tiles else 1.0


def turn_seconds(numbers: int, rates: Rates) -> float:
    """To bring a tensor from one layout into the other."""
    return rates.launch + 2.0 * rates.bytes * numbers / rates.turned


def best_tile(work: Work, rates: Rates) -> int:
    """The tile with the least time of arithmetic and programs.

    Not by the whole estimate: where bytes bound it all tiles are alike, but smaller ones are more programs, each of
    which gathers its inputs anew.
    """
    return min(TILES, key=lambda tile: group_product_seconds(work, tile, rates) + programs_seconds(work, tile, rates))


_PIXELS = 128
"""Outputs of a channel that a program makes, or twice as many."""


def programs_seconds(work: Work, tile: int, rates: Rates) -> float:
    """What the group kernel's programs take besides their arithmetic."""
    count = sum(-(-rows // tile) for rows, _ in work.groups) * -(-work.padded // _PIXELS)
    return count * (rates.program + tile * rates.row)
