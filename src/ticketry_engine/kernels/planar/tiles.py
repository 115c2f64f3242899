"""Tiles: sets of vectors whose sums a kernel holds in registers at once.

    rectangle   pixels of some rows and columns; used if a position fills vectors, or rows are a multiple of a vector
    run         consecutive vectors of the flattened plane, across row ends; results in the halo are masked to zero

A tile's sums reuse each weight for all its vectors, so larger tiles load fewer weights per multiply-add.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry_engine.kernels.planar.geometry import FLOAT, Geometry


@dataclass(frozen=True)
class Shape:
    """The vectors of a tile: byte offsets from the tile's place in the planes of x, y and the residual."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    residual: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tiles:
    """All tiles of one shape."""

    shape: Shape
    places: np.ndarray[Any, np.dtype[np.int32]]
    """int32 [tiles, 3]: the byte in a plane of x (of tap 0 without padding), y and the residual where a tile begins."""
    masks: np.ndarray[Any, Any] | None
    """[tiles, vectors]: one bit per lane that holds a pixel; None if all do."""


def cut(
    x: Geometry,
    y: Geometry,
    residual: Geometry | None,
    *,
    stride: tuple[int, int],
    lanes: int,
    most: int,
    taps: int = 1,
) -> list[Tiles]:
    """Return tiles that cover each pixel of y once, of at most ``most`` vectors and at most four shapes.

    Args:
        taps: rows and columns of the window on x: larger windows get squarer tiles.

    Raises:
        ValueError: if positions of x, y and the residual cannot be processed in common vectors.
    """
    residual = y if residual is None else residual
    if (residual.images, residual.height, residual.width) != (y.images, y.height, y.width) or x.images != y.images:
        raise ValueError(f"planes that do not fit each other: {x}, {residual}, {y}")
    if y.images % lanes and lanes % y.images:
        raise ValueError(f"{y.images} images neither fill vectors of {lanes} lanes nor are a part of one")
    positions = max(1, lanes // y.images)
    if positions > 1 and stride != (1, 1):
        raise ValueError("vectors of several positions need stride 1")
    if positions == 1 or y.width % positions == 0:
        return _rectangles(x, y, residual, stride, lanes, most, taps)
    if not x.row == y.row == residual.row:
        raise ValueError(f"rows of different lengths: {x}, {residual}, {y}")
    return _runs(x, y, residual, lanes, most)


def split(extent: int, most: int) -> list[tuple[int, int]]:
    """Split an extent into the fewest, nearly equal parts of at most ``most``: (start, size) of each."""
    parts = -(-extent // most)
    bounds = [extent * part // parts for part in range(parts + 1)]
    return [(low, high - low) for low, high in itertools.pairwise(bounds)]


def _rectangles(
    x: Geometry, y: Geometry, residual: Geometry, stride: tuple[int, int], lanes: int, most: int, taps: int
) -> list[Tiles]:
    positions, deep = max(1, lanes // y.images), max(1, y.images // lanes)
    columns = y.width // positions
    rows, cols = _best(y.height, columns, most // deep, positions, stride, taps)

    def offsets(geometry: Geometry, stride: tuple[int, int], height: int, width: int) -> tuple[int, ...]:
        """Bytes from a tile's place to each of its vectors."""
        return tuple(
            (row * stride[0] * geometry.row + column * positions * stride[1]) * geometry.step + part * lanes * FLOAT
            for row in range(height)
            for column in range(width)
            for part in range(deep)
        )

    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for top, height in split(y.height, rows):
        for column, width in split(columns, cols):
            left = column * positions
            from_x = x.position(top * stride[0], left * stride[1]) * x.step
            place = (from_x, y.position(top, left) * y.step, residual.position(top, left) * residual.step)
            found.setdefault((height, width), []).append(place)
    all_tiles = []
    for size, places in found.items():
        shape = Shape(offsets(x, stride, *size), offsets(y, (1, 1), *size), offsets(residual, (1, 1), *size))
        all_tiles.append(Tiles(shape, np.array(places, dtype=np.int32), None))
    return all_tiles


def _best(height: int, columns: int, most: int, positions: int, stride: tuple[int, int], taps: int) -> tuple[int, int]:
    """Return the rows and columns of a tile that minimise the time for loading weights and inputs."""
    best, least = (1, 1), math.inf
    for rows in range(1, min(height, most) + 1):
        for cols in range(1, min(columns, most // rows) + 1):
            tiles = -(-height // rows) * -(-columns // cols)
            parts = {(h, w) for _, h in split(height, rows) for _, w in split(columns, cols)}
            reads = ((rows - 1) * stride[0] + taps) * (((cols - 1) * stride[1] + (taps - 1) / positions) + 1)
            time = tiles * (2 + 0.15 * reads / taps) + 0.01 * height * columns * (len(parts) - 1)
            if time < least:
                best, least = (rows, cols), time
    return best


def _runs(x: Geometry, y: Geometry, residual: Geometry, lanes: int, most: int) -> list[Tiles]:
    positions = lanes // y.images
    pixels = np.zeros((y.height, y.row), dtype=bool)
    pixels[:, : y.width] = True
    flat = pixels.reshape(-1)[: (y.height - 1) * y.row + y.width]
    vectors = -(-len(flat) // positions)
    whole = np.zeros(vectors * positions, dtype=bool)
    whole[: len(flat)] = flat
    bits = np.repeat(whole, y.images).reshape(vectors, lanes) @ (1 << np.arange(lanes))
    found: dict[int, list[int]] = {}
    for first, size in split(vectors, most):
        found.setdefault(size, []).append(first)
    all_tiles = []
    for size, firsts in found.items():
        offsets = tuple(vector * lanes * FLOAT for vector in range(size))
        starts = [g.position(0, 0) * g.step for g in (x, y, residual)]
        places = np.array([[start + first * lanes * FLOAT for start in starts] for first in firsts], dtype=np.int32)
        masks = np.stack([bits[first : first + size] for first in firsts])
        full = bool((masks == (1 << lanes) - 1).all())
        all_tiles.append(Tiles(Shape(offsets, offsets, offsets), places, None if full else masks))
    return all_tiles
