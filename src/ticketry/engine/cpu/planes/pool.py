"""Pooling over planes: the largest or the mean value of windows, and the mean of a whole plane.

Tables tell for each row and column of the output where its window begins in the input, and how many of its taps are
inside: a halo's zeros never count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.engine.cpu.planes import lanes
from ticketry.engine.cpu.planes.geometry import Planes
from ticketry.engine.cpu.planes.windows import Mean, Spans, Windows
from ticketry.engine.cpu.program import Op

Pair = tuple[int, int]
Array = np.ndarray[Any, Any]


def max_pool(
    x: Planes, y: Planes, kernel: Pair, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)
) -> list[Op]:
    """The largest value of each window; NaN does not count.

    All pairs are (rows, columns). The size of ``y`` tells how many windows there are.
    """
    return [_Pool("max", x, y, kernel, stride, padding, dilation).op(np.ones(1), np.ones(1))]


def avg_pool(
    x: Planes,
    y: Planes,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> list[Op]:
    """The mean of each window, as of `max_pool`.

    Args:
        count_include_pad: whether the padding counts as zeros rather than not at all.
        divisor: by what each window's sum is divided instead of its size.
    """
    pool = _Pool("mean", x, y, kernel, stride, padding, (1, 1))
    counts = [pool.padded(axis) if count_include_pad else pool.inside(axis)[:, 1] for axis in (0, 1)]
    if divisor is not None:
        counts = [np.full(len(count), number) for count, number in zip(counts, (divisor, 1), strict=True)]
    return [pool.op(*(1 / np.maximum(count, 1) for count in counts))]


def global_mean(x: Planes, y: Planes) -> list[Op]:
    """The mean of each plane; ``y`` has one position."""
    g = x.geometry
    _, floats, ((start, _),) = lanes.runs([g], halos=True)
    share = np.array([1 / (g.height * g.width)], np.float32)
    place = y.geometry.position(0, 0) * y.geometry.step
    return [Op(Mean(g.images), (x.channels, start, floats, place, share, x.offsets, y.offsets), "mean")]


@dataclass(frozen=True)
class _Pool:
    """Which windows of ``x`` become which positions of ``y``."""

    kind: str
    x: Planes
    y: Planes
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def begin(self, axis: int) -> Array:
        """In which row (axis 0) or column (1) of the input each window begins: before the first, perhaps."""
        g = self.y.geometry
        return np.arange((g.height, g.width)[axis]) * self.stride[axis] - self.padding[axis]

    def inside(self, axis: int) -> Array:
        """Of each window: the first row or column inside the input, and how many of its taps are."""
        size = (self.x.geometry.height, self.x.geometry.width)[axis]
        begin, step = self.begin(axis), self.dilation[axis]
        first = np.maximum(0, -(begin // step))
        last = np.minimum(self.kernel[axis], -(-(size - begin) // step))
        return np.stack([begin + first * step, np.maximum(last - first, 0)], 1).astype(np.int64)

    def padded(self, axis: int) -> Array:
        """How many taps of each window are inside the input or its padding."""
        size = (self.x.geometry.height, self.x.geometry.width)[axis]
        counts: Array = np.minimum(self.kernel[axis], size + self.padding[axis] - self.begin(axis))
        return counts

    def op(self, share_rows: Array, share_columns: Array) -> Op:
        """The operation. A mean is the sum times the shares of its row and column."""
        g, h = self.x.geometry, self.y.geometry
        rows, columns = self.inside(0), self.inside(1)
        rows[:, 0] = (rows[:, 0] * g.row + g.position(0, 0)) * g.step
        columns[:, 0] *= g.step
        taps = (self.dilation[0] * g.row * g.step, self.dilation[1] * g.step)
        args: tuple[int | Array, ...] = (self.x.channels, h.height, h.width, *taps, h.position(0, 0) * h.step)
        args += (h.row * h.step, rows, share_rows.astype(np.float32), self.x.offsets, self.y.offsets)
        label = f"{self.kind} pool"
        if not self._spanned():
            return Op(Windows(self.kind, g.images), (*args, share_columns.astype(np.float32), columns), label)
        over = self.padding[1] > 0 or self._last >= g.width
        kernel = Spans(self.kind, g.images, self.kernel[1], self.stride[1], over and self.kind == "max")
        table = self._bounds() if self.kind == "max" else self._repeated(share_columns)
        return Op(kernel, (*args, table, -self.padding[1] * g.step), label)

    def _spanned(self) -> bool:
        """Whether vectors over positions save time, and all they read is in the plane (and its halo wide enough)."""
        g = self.x.geometry
        saved = self.stride[1] * g.images <= 8 and self.stride[1] <= 4 and self.kernel[1] <= 7
        return saved and self.padding[1] <= g.halo and self._last < g.width + g.halo

    @property
    def _last(self) -> int:
        """The last column that a window reaches."""
        return int(self.begin(1)[-1]) + (self.kernel[1] - 1) * self.dilation[1]

    def _bounds(self) -> Array:
        """What values of a row count at most, from the first window's begin on: those outside, as nothing."""
        g, h = self.x.geometry, self.y.geometry
        count = (_rounded(h.width * g.images) * self.stride[1]) // g.images + self.kernel[1] * self.dilation[1]
        columns = np.arange(count) - self.padding[1]
        bounds = np.where((columns >= 0) & (columns < g.width), np.inf, -np.inf)
        return np.repeat(bounds, g.images).astype(np.float32)

    def _repeated(self, shares: Array) -> Array:
        """The share of each column, as often as there are images."""
        values = np.zeros(_rounded(len(shares) * self.x.geometry.images), np.float32)
        values[: len(shares) * self.x.geometry.images] = np.repeat(shares, self.x.geometry.images)
        return values


def _rounded(floats: int) -> int:
    """Floats that vectors of any target take to hold so many."""
    return -(-floats // lanes.MOST) * lanes.MOST
