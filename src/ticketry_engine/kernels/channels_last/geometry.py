"""Memory layout of channels-last values: an image is a sequence of pixels, row by row, and a pixel holds its channels.

A halo of zeros surrounds each image. Here an image of 2 x 3 pixels with ``halo`` 1 (h: zeros, p: a pixel with all its
channels):

    h h h h          row above; the halo to the right of a row is also the halo to the left of the next row
    h p p p
    h p p p
    h h h h h        row below, and the right halo of the last row

A tap of a convolution therefore reads at a constant byte offset from the output's pixel, also at the border, and needs
no test for padding. The images of a block follow one another. Channels are padded to whole cache lines. Halo and
padding are zero from the start, and no kernel writes to them.

An input image with few channels that only convolutions read may be stored as one plane of pixels for each channel
(`ChannelsLastGeometry.build_channel_planes`), because padding three channels to a cache line would waste most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ticketry_engine.kernels.window import Array

FLOAT = 4
"""Bytes of a float32."""

HALF = 2
"""Bytes of a bfloat16."""

LINE = 64
"""Bytes of a cache line, and of the widest vector."""

SLACK = 64
"""Bytes after the last image that a vector load at the last pixel may touch."""


@dataclass(frozen=True)
class ChannelsLastGeometry:
    """Shape and strides of a value.

    Values of the same geometry may reuse the same memory one after another, because kernels never write to the zeros of
    halo and padding. A sequence of tokens is an image of one row; a feature vector is an image of one pixel.
    """

    height: int
    width: int
    channels: int
    halo: int
    pixel: int
    """Bytes from one pixel to the next."""
    image: int
    """Bytes from one image to the next."""
    item: int = FLOAT
    """Bytes of one number: 4 for float32, 2 for bfloat16."""
    channel_stride: int = 0
    """Bytes from one channel to the next where each channel is a separate plane; 0 where channels are innermost."""

    @classmethod
    def build_channel_planes(cls, height: int, width: int, channels: int, halo: int = 0) -> ChannelsLastGeometry:
        """Return the geometry of a float32 image with one plane for each channel, which only convolutions read."""
        plane = _round_to_odd_lines(_count_positions(height, width, halo) * FLOAT)
        return cls(height, width, channels, halo, FLOAT, _round_to_odd_lines(channels * plane), channel_stride=plane)

    @classmethod
    def build(cls, height: int, width: int, channels: int, halo: int = 0, item: int = FLOAT) -> ChannelsLastGeometry:
        """Return a geometry whose pixel and image strides are odd numbers of cache lines.

        Strides that are powers of two would map all pixels to a few sets of the L1 cache.
        """
        pixel = _round_to_odd_lines(item * channels)
        return cls(
            height,
            width,
            channels,
            halo,
            pixel,
            _round_to_odd_lines(_count_positions(height, width, halo) * pixel),
            item,
        )

    @property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return (self.width + self.halo) * self.pixel

    def pixel_offset(self, y: int, x: int) -> int:
        """Return the bytes from an image's start to a pixel; y and x may be up to ``halo`` outside the image."""
        return (y + self.halo) * self.row + (x + self.halo) * self.pixel

    def bytes(self, images: int) -> int:
        """Return the bytes of a value of this many images: a multiple of 64."""
        return images * self.image + SLACK


def _count_positions(height: int, width: int, halo: int) -> int:
    """Return the number of pixels of an image with its halo."""
    return (height + 2 * halo) * (width + halo) + halo


def _round_to_odd_lines(size: int) -> int:
    """Round bytes up to an odd number of cache lines."""
    return (-(-size // LINE) | 1) * LINE


@dataclass(frozen=True)
class ChannelsLastValue:
    """A value in the arena: its geometry, its offset, and the range of channels it uses.

    Values that share a geometry and offset with different channel ranges form a concatenation without copying.
    """

    geometry: ChannelsLastGeometry
    offset: int
    first: int = 0
    """The first channel."""
    channels: int = -1
    """Number of channels; -1 means all from ``first`` on."""

    def __post_init__(self) -> None:
        if self.channels < 0:
            object.__setattr__(self, "channels", self.geometry.channels - self.first)
        if self.first + self.channels > self.geometry.channels:
            raise ValueError(f"channels {self.first} … {self.first + self.channels} of {self.geometry.channels}")

    def part(self, first: int, channels: int) -> ChannelsLastValue:
        """Return a view of some channels, counted from this value's first."""
        return ChannelsLastValue(self.geometry, self.offset, self.first + first, channels)

    def take(self, channels: Sequence[int] | Array) -> ChannelsLastValue:
        """Return a view of consecutive channels.

        Raises:
            ValueError: if the channels are not consecutive.
        """
        if list(channels) != list(range(int(channels[0]), int(channels[0]) + len(channels))):
            raise ValueError("channels of a channels-last value have to be consecutive")
        return self.part(int(channels[0]), len(channels))

    @property
    def start(self) -> int:
        """Offset in the arena, in bytes, of the first channel of the first image's first pixel (halo included)."""
        return self.offset + (self.geometry.channel_stride or self.geometry.item) * self.first

    def like(self, other: ChannelsLastValue) -> bool:
        """Return whether both values have the same height, width and channels; halo and offset may differ."""
        mine, its = self.geometry, other.geometry
        return (mine.height, mine.width, self.channels) == (its.height, its.width, other.channels)
