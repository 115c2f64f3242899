"""How values lie in memory as pixels.

An image is one pixel after the other, row after row, and a pixel holds its channels. A halo of zeros surrounds the
image: ``halo`` rows above and below, ``halo`` pixels before the first of a row, and as many behind the last, which are
at the same time those before the next row's first. So an input of a convolution lies at one constant distance from the
output's pixel, at every pixel. The images of a block follow one another.

Channels are padded to whole vectors. Halo and padding are zero from the start and no kernel writes to them.

Pictures of few channels that only convolutions read may have them apart: a plane of pixels for each channel, halo and
all. A pixel of three channels takes sixteen numbers otherwise, and caches hold a fifth of the picture.
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
"""Bytes behind the last image that a vector read at the last pixel may touch."""


@dataclass(frozen=True)
class Geometry:
    """The shape of a value. Values of one geometry may follow one another in the same memory: none dirties its zeros.

    Sequences of tokens are images of one row; vectors without positions are images of one pixel.
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
    """Bytes of a channel of a pixel: those of a float32 or of a bfloat16."""
    apart: int = 0
    """Bytes from a channel to the next where each is a plane of its own; 0 where a pixel has them side by side."""

    @classmethod
    def planar(cls, height: int, width: int, channels: int, halo: int = 0) -> Geometry:
        """That of float32 channels apart, which convolutions of all channels read and nothing else."""
        plane = _odd_lines(_positions(height, width, halo) * FLOAT)
        return cls(height, width, channels, halo, FLOAT, _odd_lines(channels * plane), apart=plane)

    @classmethod
    def of(cls, height: int, width: int, channels: int, halo: int = 0, item: int = FLOAT) -> Geometry:
        """The geometry kernels like best.

        Both strides are odd numbers of cache lines: pixels at a power of two of bytes would compete for few sets of the
        first cache.
        """
        pixel = _odd_lines(item * channels)
        return cls(height, width, channels, halo, pixel, _odd_lines(_positions(height, width, halo) * pixel), item)

    @property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return (self.width + self.halo) * self.pixel

    def at(self, y: int, x: int) -> int:
        """Bytes from an image's start to a pixel; y and x may lie up to ``halo`` outside."""
        return (y + self.halo) * self.row + (x + self.halo) * self.pixel

    def bytes(self, images: int) -> int:
        """Bytes of a value of so many images: a multiple of 64."""
        return images * self.image + SLACK


def _positions(height: int, width: int, halo: int) -> int:
    """Of an image with its halo."""
    return (height + 2 * halo) * (width + halo) + halo


def _odd_lines(size: int) -> int:
    return (-(-size // LINE) | 1) * LINE


@dataclass(frozen=True)
class Pixels:
    """A value: its geometry, at which byte of the arena it begins, and which channels of what lies there are its own.

    Several values side by side in the channels of a wider one are a concatenation that moves no data.
    """

    geometry: Geometry
    offset: int
    first: int = 0
    """The first channel."""
    channels: int = -1
    """How many channels; all that follow the first unless given."""

    def __post_init__(self) -> None:
        if self.channels < 0:
            object.__setattr__(self, "channels", self.geometry.channels - self.first)
        if self.first + self.channels > self.geometry.channels:
            raise ValueError(f"channels {self.first} … {self.first + self.channels} of {self.geometry.channels}")

    def part(self, first: int, channels: int) -> Pixels:
        """Some of the value's channels."""
        return Pixels(self.geometry, self.offset, self.first + first, channels)

    def take(self, channels: Sequence[int] | Array) -> Pixels:
        """Channels that follow one another."""
        if list(channels) != list(range(int(channels[0]), int(channels[0]) + len(channels))):
            raise ValueError("channels of pixels that do not lie side by side")
        return self.part(int(channels[0]), len(channels))

    @property
    def start(self) -> int:
        """The arena's byte of the first image's first pixel (the halo's, if there is one) and first channel."""
        return self.offset + (self.geometry.apart or self.geometry.item) * self.first

    def like(self, other: Pixels) -> bool:
        """Whether both have the same shape (not necessarily the same halo or place)."""
        mine, its = self.geometry, other.geometry
        return (mine.height, mine.width, self.channels) == (its.height, its.width, other.channels)
