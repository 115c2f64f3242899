"""The planar layout: how a value is stored as one plane per channel.

    plane of a channel, halo 1:      . . . . . .        each position holds `images` floats
                                     . p p p p .        p: pixel   .: halo (zeros)
                                     . p p p p .        row: positions between two rows
                                     . . . . . .

A halo of zeros surrounds the pixels: ``halo`` rows above and below, and ``halo`` positions between two rows, shared as
the right border of one row and the left border of the next. So a tap of a convolution is one constant shift of the
address at every pixel, with no bounds checks.

A value is a list of planes at arbitrary arena offsets: concatenating, splitting and shuffling channels only permutes
that list and moves no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOAT = 4
"""Bytes of a float32."""

LINE = 64
"""Bytes of a cache line."""

SLACK = 256
"""Bytes after a plane that a kernel's last tile may read, and overwrite with zeros or the value's own data."""


@dataclass(frozen=True)
class Geometry:
    """The shape of one plane. Values of equal geometry may reuse the same memory, since all keep the halo zero."""

    height: int
    width: int
    halo: int
    images: int
    row: int
    """Positions between the starts of two rows: at least ``width + halo``."""

    @classmethod
    def of(cls, height: int, width: int, halo: int, images: int, row: int | None = None) -> Geometry:
        """Build a geometry with the given row length, or the shortest possible."""
        return cls(height, width, halo, images, width + halo if row is None else row)

    def position(self, y: int, x: int) -> int:
        """Return the position of a pixel in its plane; y and x may be up to ``halo`` outside."""
        return (y + self.halo) * self.row + x + self.halo

    def shift(self, rows: int, columns: int) -> int:
        """Return the bytes from a pixel to the one ``rows`` below and ``columns`` to the right."""
        return (rows * self.row + columns) * self.step

    @property
    def positions(self) -> int:
        """Positions of a plane, halo included."""
        return (self.height + 2 * self.halo) * self.row + self.halo

    @property
    def step(self) -> int:
        """Bytes between two positions."""
        return FLOAT * self.images

    @property
    def bytes(self) -> int:
        """Bytes of a plane with its slack: a multiple of 64."""
        return -(-self.positions * self.step // 64) * 64 + SLACK


@dataclass(frozen=True)
class Bare(Geometry):
    """A geometry without slack, for tiles that end exactly where planes end."""

    @property
    def bytes(self) -> int:
        return self.positions * self.step


@dataclass(frozen=True, eq=False)
class Planes:
    """A value: the geometry of its planes and the arena byte where each channel's plane begins."""

    geometry: Geometry
    offsets: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def at(cls, geometry: Geometry, channels: int, offset: int) -> Planes:
        """Place planes one after the other from `offset` on (a multiple of 64)."""
        return cls(geometry, offset + geometry.bytes * np.arange(channels, dtype=np.int64))

    @property
    def channels(self) -> int:
        return len(self.offsets)

    def take(self, channels: Sequence[int] | np.ndarray[Any, Any]) -> Planes:
        """Return the value with these channels, in this order."""
        return Planes(self.geometry, self.offsets[np.asarray(channels, dtype=np.int64)])

    def part(self, first: int, channels: int) -> Planes:
        """Return the value with ``channels`` channels from ``first`` on."""
        return Planes(self.geometry, self.offsets[first : first + channels])
