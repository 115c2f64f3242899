"""The sliding window of a convolution or pooling layer, independent of the layout.

    input row read by output row p and tap t:   p * stride + t * dilation - padding

Pairs are (vertical, horizontal). A tap is one position of the window. The halo is a border of zeros that is stored
around each image, so that taps can read outside of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ticketry_engine.kernels.activations import Activation

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]


class PixelGeometry(Protocol):
    """Height and width of a value's images, and the width of their zero border (`halo`), in pixels."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def halo(self) -> int: ...


@dataclass(frozen=True)
class Axis:
    """A convolution or pooling window along one axis: ``size`` kernel positions (taps) slide over ``extent`` inputs."""

    extent: int
    size: int
    stride: int
    padding: int
    dilation: int

    @property
    def outputs(self) -> int:
        return (self.extent + 2 * self.padding - self.dilation * (self.size - 1) - 1) // self.stride + 1

    def first_inputs(self, outputs: int) -> Array:
        """Return, for each of `outputs` outputs, the index of the input that the first tap reads; negative: padding."""
        return np.arange(outputs) * self.stride - self.padding

    def count_padded_taps(self, outputs: int) -> Array:
        """Return, for each of `outputs` windows, how many taps read inputs or padding; the dilation must be 1."""
        counts: Array = np.minimum(self.size, self.extent + self.padding - self.first_inputs(outputs))
        return counts

    def input_span(self, length: int) -> int:
        """Return the number of inputs from the first to the last input that `length` consecutive outputs read."""
        return (length - 1) * self.stride + (self.size - 1) * self.dilation + 1

    def tile_starts(self, length: int) -> Array:
        """Return the first output of each tile of `length` outputs; the last tile ends at the last output."""
        return np.minimum(np.arange(0, self.outputs, length), self.outputs - length)

    def live_taps(self, length: int) -> Array:
        """Return a bool array [tiles, size]: whether a tap reads any input for a tile of `length` outputs."""
        outputs = self.tile_starts(length)[:, None] + np.arange(length)
        inputs = outputs[:, :, None] * self.stride - self.padding + np.arange(self.size) * self.dilation
        seen = (inputs >= 0) & (inputs < self.extent)
        found: Array = np.asarray(seen.any(axis=1))
        return found


@dataclass(frozen=True)
class Window:
    """Size, stride, padding and dilation of the window of a convolution or pooling layer."""

    size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def taps(self) -> list[Pair]:
        return [(row, column) for row in range(self.size[0]) for column in range(self.size[1])]

    def axes(self, x: PixelGeometry) -> tuple[Axis, Axis]:
        """Return the window along the rows of x and the window along its columns."""
        sizes = zip((x.height, x.width), self.size, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = (Axis(*axis) for axis in sizes)
        return rows, columns

    def input_position(self, position: int, tap: int, axis: int) -> int:
        """Return the row (axis 0) or column (axis 1) of x that tap `tap` reads for row or column `position` of y."""
        return position * self.stride[axis] + tap * self.dilation[axis] - self.padding[axis]

    def tap_offset(self, tap: Pair) -> Pair:
        """Return (rows, columns) from pixel ``p * stride`` of x to the pixel of x that `tap` reads for pixel p of y."""
        return self.input_position(0, tap[0], 0), self.input_position(0, tap[1], 1)

    def reads_any_pixel(self, x: PixelGeometry, y: PixelGeometry, tap: Pair) -> bool:
        """Return whether the kernel position `tap` reads a pixel of x for any pixel of y, and not only padding."""
        return all(
            any(0 <= self.input_position(position, tap[axis], axis) < size for position in range(extent))
            for axis, (extent, size) in enumerate(((y.height, x.height), (y.width, x.width)))
        )

    def reads_within_halo(self, x: PixelGeometry, y: PixelGeometry) -> bool:
        """Return whether no kernel position (tap) reads beyond the zero border (halo) of x.

        Kernel positions that read only zeros are ignored.
        """
        for axis, (extent, size) in enumerate(((y.height, x.height), (y.width, x.width))):
            taps = [tap[axis] for tap in self.taps if self.reads_any_pixel(x, y, tap)]
            low = min((self.input_position(0, tap, axis) for tap in taps), default=0)
            high = max((self.input_position(extent - 1, tap, axis) for tap in taps), default=0)
            if low < -x.halo or high >= size + x.halo:
                return False
        return True


@dataclass(frozen=True, eq=False)
class Convolution:
    """Weights, bias, window and activation of a convolution. A linear layer is a convolution of images of one pixel."""

    weight: Array
    """float32 [O, I / groups, kh, kw]; row i computes channel i of the output. A pruned weight is exactly 0."""
    bias: Array | None = None
    """float32 [O]; None without a bias."""
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    act: Activation = None

    @property
    def window(self) -> Window:
        height, width = self.weight.shape[2:]
        return Window((height, width), self.stride, self.padding, self.dilation)

    @property
    def biases(self) -> Array:
        """The bias of each output channel as float32; zeros if the layer has no bias."""
        return np.zeros(len(self.weight), np.float32) if self.bias is None else np.asarray(self.bias, np.float32)
