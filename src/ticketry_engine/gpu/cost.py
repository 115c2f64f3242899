"""Estimates a layer's time on a GPU: in the group kernel, as a 2:4 product, and dense. `plan` chooses by it.

    time = launch + max(arithmetic / its rate, bytes / bandwidth [, steps of the longest tile x time of a step])

The constants below were measured on an H100 SXM by ``python benchmarks/engine_gpu.py --calibrate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

TILES = (16, 32, 64, 128)
"""Rows that a tile of the group kernel may have."""

MARGIN = 0.95
"""A sparse kernel is chosen only below this share of the dense time, because the estimate is not exact."""

FEWEST_IMAGES = 4
"""Layers with fewer images (or tokens) stay dense: their vectors of 8 would be mostly padding."""


LEAST_FILLED = 0.5
"""A layer whose groups fill less than this share of tiles of 16 rows, the smallest, stays dense.

Unstructured masks fill 1/16; they are assumed to be slower than cuDNN and cuBLAS at any density (not measured).
"""


@dataclass(frozen=True)
class Rates:
    """Measured rates of a device with one number format."""

    conv: float
    """FLOP/s of cuDNN on a large convolution."""
    linear: float
    """FLOP/s of cuBLAS on a large linear layer."""
    group: Mapping[int, float]
    """Rows of a tile -> FLOP/s of the group kernel, padding included. Small tiles are limited by gathers from L2."""
    two_four: float
    """FLOP/s of torch's semi-structured product, counted as for the dense layer."""
    bandwidth: float
    """Bytes/s of a copy."""
    turned: float
    """Bytes/s of a change of layout, reads and writes added."""
    launch: float
    """Seconds of overhead between two kernels of a CUDA graph."""
    step: float
    """Seconds that a program alone on its multiprocessor takes for 64 columns."""
    program: float
    """Seconds of overhead of a program, divided by the number of multiprocessors; fitted to timings."""
    row: float
    """Seconds of overhead for each row of a program's tile, divided likewise; fitted to timings."""
    bytes: int
    """Bytes of a number."""


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
    # With TF32 the gathered inputs are transposed element by element on the way into shared memory.
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
class LayerWork:
    """The amount of work of one layer at one input shape."""

    pixels: int
    """Outputs of one channel: images x height x width, or tokens."""
    run: int
    """Images, or tokens: the innermost axis in memory."""
    rows: int
    columns: int
    """Columns of the dense weight: input channels of one output * taps."""
    groups: Sequence[tuple[int, int]]
    """(rows, retained columns) of each group of rows that share their columns."""
    inputs: int
    """Input numbers read."""
    outputs: int
    """Output numbers written."""
    residual: bool
    act: bool
    linear: bool = False

    @property
    def padded_pixels(self) -> int:
        """Pixels, with runs padded to whole vectors."""
        return self.pixels // self.run * -(-self.run // 8) * 8


def dense_seconds(work: LayerWork, rates: Rates) -> float:
    """Estimate the seconds in cuDNN or cuBLAS, with torch's extra passes for a residual and an activation."""
    return _dense_product_seconds(work, rates, rates.linear if work.linear else rates.conv, 1.0)


def two_four_seconds(work: LayerWork, rates: Rates) -> float:
    """Estimate the seconds of torch's semi-structured (2:4) product."""
    return _dense_product_seconds(work, rates, rates.two_four, 0.6)


def _dense_product_seconds(work: LayerWork, rates: Rates, rate: float, stored: float) -> float:
    """Estimate a product at ``rate`` FLOP/s of the dense weight, of which the share ``stored`` is read."""
    product = 2.0 * work.pixels * work.rows * work.columns / rate
    bytes_ = rates.bytes * (work.inputs + work.outputs + stored * work.rows * work.columns)
    return rates.launch + max(product, bytes_ / rates.bandwidth) + _extra_pass_seconds(work, rates)


def _extra_pass_seconds(work: LayerWork, rates: Rates) -> float:
    made = rates.bytes * work.outputs / rates.bandwidth
    return (rates.launch + 3 * made) * work.residual + (rates.launch + 2 * made) * work.act


def group_seconds(work: LayerWork, tile: int, rates: Rates) -> float:
    """Estimate the seconds in the group kernel, with bias, residual and activation."""
    product, weights = group_product_seconds(work, tile, rates), _padded_weights(work, tile)
    moved = work.inputs + work.outputs * (1 + work.residual) + weights
    longest = max((columns for _, columns in work.groups), default=0)
    return rates.launch + max(product, rates.bytes * moved / rates.bandwidth, -(-longest // 64) * rates.step)


def group_product_seconds(work: LayerWork, tile: int, rates: Rates) -> float:
    """Estimate the seconds of the group kernel's arithmetic alone, padding included."""
    return 2.0 * work.padded_pixels * _padded_weights(work, tile) / rates.group[tile]


def _padded_weights(work: LayerWork, tile: int) -> int:
    return sum(-(-rows // tile) * tile * -(-columns // 64) * 64 for rows, columns in work.groups)


def tile_fill(work: LayerWork) -> float:
    """Return retained weights / weights of the smallest tiles that hold them; 1 if none is retained."""
    tiles = sum(-(-rows // TILES[0]) * TILES[0] * columns for rows, columns in work.groups)
    return sum(rows * columns for rows, columns in work.groups) / tiles if tiles else 1.0


def layout_change_seconds(numbers: int, rates: Rates) -> float:
    """Estimate the seconds to convert a tensor between the inner and the outer layout."""
    return rates.launch + 2.0 * rates.bytes * numbers / rates.turned


def best_tile(work: LayerWork, rates: Rates) -> int:
    """Return the rows of the tile with the least time for arithmetic and program overhead.

    Memory bandwidth is left out: it does not depend on the tile, but smaller tiles gather their inputs more often.
    """
    return min(TILES, key=lambda tile: group_product_seconds(work, tile, rates) + programs_seconds(work, tile, rates))


_PIXELS = 128
"""Outputs of a channel that a program computes; some programs compute twice as many."""


def programs_seconds(work: LayerWork, tile: int, rates: Rates) -> float:
    """Estimate the overhead in seconds of the group kernel's programs."""
    count = sum(-(-rows // tile) for rows, _ in work.groups) * -(-work.padded_pixels // _PIXELS)
    return count * (rates.program + tile * rates.row)
