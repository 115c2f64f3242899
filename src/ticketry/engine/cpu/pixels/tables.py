"""What the kernel of groups of rows is given for one layer: its shape, and the tables of kept columns and tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.engine.cpu.activations import Activation
from ticketry.engine.cpu.pixels.choice import WEIGHTS_KEPT, Shape
from ticketry.engine.cpu.pixels.geometry import Geometry
from ticketry.engine.cpu.pixels.group import GroupConv, Step
from ticketry.engine.cpu.pixels.layer import Layer
from ticketry.engine.cpu.pixels.support import Block
from ticketry.engine.cpu.pixels.tiles import Tile, Tiling
from ticketry.engine.cpu.pixels.values import rounded
from ticketry.engine.cpu.target import Target

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Part:
    """Blocks of one shape, which one operation does."""

    shape: Shape
    blocks: list[Block]
    scatter: bool
    depthwise: bool
    cycles: float
    """Estimated, for one image."""

    def channels(self, layer: Layer) -> int:
        """Columns that a tap has: of a depthwise convolution each row's own."""
        return 1 if self.depthwise else layer.columns


def kernel_of(layer: Layer, part: Part, act: Activation, target: Target) -> GroupConv:
    x, y, shape = layer.x.geometry, layer.y.geometry, part.shape
    down, right = layer.stride
    residual = layer.residual.geometry if layer.residual else None
    return GroupConv(
        vectors=shape.vectors,
        tile=shape.tile,
        rest=shape.rest,
        x=Step(x.image, x.row * down, x.pixel * right, x.item),
        y=Step(y.image, y.row, y.pixel, y.item),
        residual=Step(residual.image, residual.row, residual.pixel, residual.item) if residual else None,
        act=act,
        partial=any(len(block.rows) % target.lanes for block in part.blocks),
        scatter=part.scatter,
        wide=layer.reach >= 1 << 16,
        depthwise=part.depthwise,
    )


def arguments(
    layer: Layer, part: Part, weights: Array, bias: Array, kernel: GroupConv, target: Target
) -> tuple[int | Array, ...]:
    """The kernel's arguments (`group.Arg`)."""
    blocks, row_count = part.blocks, part.shape.vectors * target.lanes
    channels = part.channels(layer)
    packed = np.concatenate([_packed(weights, block, row_count) for block in blocks])
    each = max(1, packed.nbytes // len(blocks))
    columns = np.concatenate([block.columns for block in blocks])
    shapes = [part.shape.tile] + ([part.shape.rest] if part.shape.rest else [])
    return (
        layer.x.start,
        layer.y.start,
        layer.residual.start if layer.residual else 0,
        len(blocks),
        max(1, WEIGHTS_KEPT // each),
        _places(blocks, part.scatter, row_count, target.lanes),
        np.stack([_filled(bias, block.rows, row_count) for block in blocks]),
        layer.offsets(channels)[columns].astype(np.int32 if kernel.wide else np.uint16),
        packed,
        *(arg for tile in shapes for arg in _tiles(layer, tile, blocks, channels)),
    )


def _packed(weights: Array, block: Block, row_count: int) -> Array:
    """A block's weights [columns, rows] (and 2 where columns are pairs), its last row repeated up to whole vectors."""
    rows = np.pad(block.rows, (0, row_count - len(block.rows)), mode="edge")
    packed = np.ascontiguousarray(weights[rows[:, None], block.columns].swapaxes(0, 1))
    return packed if packed.ndim == 2 else rounded(packed)


def _filled(values: Array, rows: Array, row_count: int) -> Array:
    """A block's values, its last one repeated up to whole vectors."""
    return np.asarray(values[np.pad(rows, (0, row_count - len(rows)), mode="edge")], np.float32)


def _places(blocks: Sequence[Block], scatter: bool, row_count: int, lanes: int) -> Array:
    if scatter:
        padded = [np.pad(block.rows, (0, row_count - len(block.rows)), mode="edge") for block in blocks]
        return np.stack(padded).astype(np.int32)
    return np.array([(block.rows[0], (len(block.rows) - 1) % lanes + 1) for block in blocks], np.int32)


def _tiles(layer: Layer, tile: Tile, blocks: Sequence[Block], channels: int) -> tuple[int | Array, ...]:
    """What the kernel reads of one tile shape (`group.Arg.TILES`)."""
    tiling = Tiling.of(layer.plane, tile)
    x, y = layer.x.geometry, layer.y.geometry
    residual = layer.residual.geometry if layer.residual else y
    top, left = tiling.row * layer.stride[0] - layer.padding[0], tiling.column * layer.stride[1] - layer.padding[1]
    entries = np.stack(
        [
            _bytes(x, top, left),
            _bytes(y, tiling.row, tiling.column),
            _bytes(residual, tiling.row, tiling.column),
            tiling.kind,
        ],
        axis=1,
    ).astype(np.int32)
    begins, runs = _runs(blocks, tiling.spans, channels)
    return len(entries), entries, len(tiling.spans), begins, runs


def _bytes(geometry: Geometry, rows: Array, columns: Array) -> Array:
    found: Array = (rows + geometry.halo) * geometry.row + (columns + geometry.halo) * geometry.pixel
    return found


def _runs(blocks: Sequence[Block], spans: Sequence[list[tuple[int, int]]], channels: int) -> tuple[Array, Array]:
    """Where the runs of each block and class begin, and each run's kept columns, counted through all blocks."""
    starts = np.cumsum([0, *(len(block.columns) for block in blocks)])
    longest = max(len(each) for each in spans)
    taps = np.array([[*each, *[(0, 0)] * (longest - len(each))] for each in spans])  # [classes, spans, 2]
    taps = taps.reshape(len(spans), longest, 2)
    found = np.stack(
        [start + np.searchsorted(block.columns, taps * channels) for start, block in zip(starts, blocks, strict=False)]
    )
    kept = found[..., 1] > found[..., 0]  # [blocks, classes, spans]
    begins = np.concatenate(([0], np.cumsum(kept.sum(axis=2))))
    return begins.astype(np.int32), found[kept].astype(np.int32)
