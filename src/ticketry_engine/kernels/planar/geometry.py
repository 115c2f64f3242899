"""How values lie in memory as planes.

The plane of a channel holds its pixels row after row, and at each pixel the values of ``images`` images. A halo of
zeros surrounds the pixels: ``halo`` rows above and below, ``halo`` positions before the first pixel of a row, and as
many behind the last, which are at the same time those before the next row's first (``row`` is the distance of two
rows). So a shift of an input by one tap of a convolution is one constant, at every pixel.

A value is a list of planes, each somewhere in the arena: concatenation, splitting and shuffling of channels are other
lists of the same planes and move no data.
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
"""Bytes behind a plane that a kernel's last tile may read and, with zeros or a value's own, write."""


@dataclass(frozen=True)
class Geometry:
    """The shape of one plane. Values of one geometry may follow one another in the same memory: all keep halos zero."""

    height: int
    width: int
    halo: int
    images: int
    row: int
    """Positions from one row to the next: at least ``width + halo``."""

    @classmethod
    def of(cls, height: int, width: int, halo: int, images: int, row: int | None = None) -> Geometry:
        """The geometry with the tightest rows, or those given."""
        return cls(height, width, halo, images, width + halo if row is None else row)

    def position(self, y: int, x: int) -> int:
        """The position of a pixel in its plane; y and x may lie up to ``halo`` outside."""
        return (y + self.halo) * self.row + x + self.halo

    def shift(self, rows: int, columns: int) -> int:
        """Bytes from a pixel to the one so many rows below and columns to the right."""
        return (rows * self.row + columns) * self.step

    @property
    def positions(self) -> int:
        """Positions a plane has, halos included."""
        return (self.height + 2 * self.halo) * self.row + self.halo

    @property
    def step(self) -> int:
        """Bytes from one position to the next."""
        return FLOAT * self.images

    @property
    def bytes(self) -> int:
        """Bytes of a plane with its slack: a multiple of 64."""
        return -(-self.positions * self.step // 64) * 64 + SLACK


@dataclass(frozen=True)
class Bare(Geometry):
    """One whose planes have no slack: for tiles that end where planes end."""

    @property
    def bytes(self) -> int:
        return self.positions * self.step


@dataclass(frozen=True, eq=False)
class Planes:
    """A value: the geometry of its planes, and at which byte of the arena the plane of each channel begins."""

    geometry: Geometry
    offsets: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def at(cls, geometry: Geometry, channels: int, offset: int) -> Planes:
        """Planes one behind the other from an offset (a multiple of 64)."""
        return cls(geometry, offset + geometry.bytes * np.arange(channels, dtype=np.int64))

    @property
    def channels(self) -> int:
        return len(self.offsets)

    def take(self, channels: Sequence[int] | np.ndarray[Any, Any]) -> Planes:
        """Some of the value's channels, in any order."""
        return Planes(self.geometry, self.offsets[np.asarray(channels, dtype=np.int64)])

    def part(self, first: int, channels: int) -> Planes:
        """Some of the value's channels."""
        return Planes(self.geometry, self.offsets[first : first + channels])
