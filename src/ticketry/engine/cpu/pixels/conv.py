"""Convolutions and linear layers over pixels: their tiles and tables, and what they will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.engine.cpu.activations import Activation
from ticketry.engine.cpu.pixels.choice import CYCLES_A_NANOSECOND, WEIGHTS_KEPT, Shape, Work, best_shape, sizes
from ticketry.engine.cpu.pixels.geometry import FLOAT, Geometry, Pixels
from ticketry.engine.cpu.pixels.group import GroupConv, Step
from ticketry.engine.cpu.pixels.support import Block, blocks_of, checked, columns_by_tap, groups_of
from ticketry.engine.cpu.pixels.tiles import Plane, Tile, Tiling, Window
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target
from ticketry.errors import EngineError

Array = np.ndarray[Any, Any]
Pair = int | tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A convolution's shape."""

    x: Pixels
    y: Pixels
    residual: Pixels | None
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def plane(self) -> Plane:
        sizes = (self.x.geometry.height, self.x.geometry.width)
        rows, columns = (
            Window(*axis) for axis in zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return Plane(rows, columns)

    @property
    def reach(self) -> int:
        """float32 values from the input of the first column to that of the last."""
        return int(self.offsets(self.x.channels).max(initial=0))

    def check(self, outputs: int, columns: int) -> None:
        """Raises EngineError where the values do not fit the convolution's rows and columns."""
        if columns != self.x.channels * self.kernel[0] * self.kernel[1]:
            raise EngineError(f"weights of {columns} columns for an input of {self.x.channels} channels")
        shape = (outputs, self.plane.rows.outputs, self.plane.columns.outputs)
        mine = (self.y.channels, self.y.geometry.height, self.y.geometry.width)
        if shape != mine:
            raise EngineError(f"a convolution has outputs of shape {shape}, its place holds {mine}")
        if max(self.padding) > self.x.geometry.halo:
            raise EngineError(
                f"a padding of {self.padding} needs an input with such a halo, not {self.x.geometry.halo}"
            )
        if self.residual is not None and not self.residual.like(self.y):
            raise EngineError("a residual has the shape of the output")

    def offsets(self, channels: int) -> Array:
        """Of each column [taps * channels]: float32 values from the input of tap 0, channel 0."""
        geometry = self.x.geometry
        rows = np.arange(self.kernel[0]) * self.dilation[0] * geometry.row
        columns = np.arange(self.kernel[1]) * self.dilation[1] * geometry.pixel
        taps = (rows[:, None] + columns).reshape(-1, 1) // FLOAT
        found: Array = (taps + np.arange(channels)).reshape(-1)
        return found


def conv(
    x: Pixels,
    y: Pixels,
    weight: Array,
    bias: Array | None = None,
    *,
    target: Target,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    act: Activation = None,
    residual: Pixels | None = None,
    rows: Sequence[Array] | None = None,
    images: int = 1,
    label: str = "",
) -> list[Op]:
    """``y = act(convolution(x) + bias + residual)``.

    Args:
        x: the input; its halo is at least the padding.
        y: where the output goes; not the same memory as the input or the residual.
        weight: float32 [O, I / groups, kh, kw], or [O, I] of a linear layer; a pruned weight is exactly 0. Rows in the
            order of y's channels.
        bias: float32 [O].
        target: what the kernels are made for.
        rows: which rows share their columns: groups of row numbers. A group whose rows are not neighbours is written
            value by value, which is slower. Found from the weights unless given.
        images: how many images a block mostly has.
        label: the layer's name.

    Raises:
        EngineError: shapes that do not fit, or rows that are in no group or in several.
    """
    layer = _layer(x, y, weight, stride, padding, dilation, residual)
    weights = columns_by_tap(_four(weight), groups)
    layer.check(*weights.shape)
    bias = np.zeros(len(weights), np.float32) if bias is None else np.asarray(bias, np.float32)
    ops = []
    for part in _plan(layer, weights, rows, images, target):
        kernel = _kernel(layer, part, act, target)
        ops.append(Op(kernel, _arguments(layer, part, weights, bias, kernel, target), label))
    return ops


def cost(
    x: Pixels,
    y: Pixels,
    weight: Array,
    *,
    target: Target,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    rows: Sequence[Array] | None = None,
    images: int = 1,
) -> float:
    """About how many nanoseconds `conv` takes for one image on one thread, caches warm."""
    layer = _layer(x, y, weight, stride, padding, dilation, None)
    weights = columns_by_tap(_four(weight), groups)
    layer.check(*weights.shape)
    return sum(part.cycles for part in _plan(layer, weights, rows, images, target)) / CYCLES_A_NANOSECOND


def _four(weight: Array) -> Array:
    """A linear layer's weights as those of a convolution with one tap."""
    return weight.reshape(*weight.shape, 1, 1) if weight.ndim == 2 else weight


def _layer(
    x: Pixels, y: Pixels, weight: Array, stride: Pair, padding: Pair, dilation: Pair, residual: Pixels | None
) -> Layer:
    pairs = [(value, value) if isinstance(value, int) else value for value in (stride, padding, dilation)]
    height, width = _four(weight).shape[2:]
    return Layer(x, y, residual, (height, width), *pairs)


@dataclass(frozen=True, eq=False)
class _Part:
    """Blocks of one shape, which one operation does."""

    shape: Shape
    blocks: list[Block]
    scatter: bool
    cycles: float
    """Estimated, for one image."""


def _plan(layer: Layer, weights: Array, rows: Sequence[Array] | None, images: int, target: Target) -> list[_Part]:
    """The layer's blocks by shape."""
    groups = groups_of(weights, target.lanes) if rows is None else checked(rows, len(weights))
    kept = sum(float((weights[group] != 0).any(axis=0).sum()) for group in groups)
    work = Work(layer.plane, layer.x.channels, images, len(groups), kept / max(1, len(groups)))
    prices = {size: best_shape(work, size, target)[1] for size in sizes(target)}
    found: dict[tuple[int, bool], list[Block]] = {}
    for block in blocks_of(weights, groups, target.lanes, prices):
        neighbours = bool((np.diff(block.rows) == 1).all())
        found.setdefault((block.vectors, not neighbours), []).append(block)
    parts = []
    for (vectors, scatter), blocks in found.items():
        columns = sum(len(block.columns) for block in blocks) / len(blocks)
        work = Work(layer.plane, layer.x.channels, images, len(blocks), columns)
        shape, price = best_shape(work, vectors, target)
        parts.append(_Part(shape, blocks, scatter, price * len(blocks)))
    return parts


def _kernel(layer: Layer, part: _Part, act: Activation, target: Target) -> GroupConv:
    x, y, shape = layer.x.geometry, layer.y.geometry, part.shape
    down, right = layer.stride
    residual = layer.residual.geometry if layer.residual else None
    return GroupConv(
        vectors=shape.vectors,
        tile=shape.tile,
        rest=shape.rest,
        x=Step(x.image, x.row * down, x.pixel * right),
        y=Step(y.image, y.row, y.pixel),
        residual=Step(residual.image, residual.row, residual.pixel) if residual else None,
        act=act,
        partial=any(len(block.rows) % target.lanes for block in part.blocks),
        scatter=part.scatter,
        wide=layer.reach >= 1 << 16,
    )


def _arguments(
    layer: Layer, part: _Part, weights: Array, bias: Array, kernel: GroupConv, target: Target
) -> tuple[int | Array, ...]:
    """The kernel's arguments (`group.Arg`)."""
    blocks, row_count = part.blocks, part.shape.vectors * target.lanes
    channels = weights.shape[1] // (layer.kernel[0] * layer.kernel[1])
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
    """A block's weights [columns, rows], with zeros or (to be written twice) its last row behind."""
    packed = np.zeros((len(block.columns), row_count), np.float32)
    packed[:, : len(block.rows)] = weights[block.rows[:, None], block.columns].T
    packed[:, len(block.rows) :] = packed[:, len(block.rows) - 1 : len(block.rows)]
    return packed


def _filled(values: Array, rows: Array, row_count: int) -> Array:
    """A block's values, its last one repeated up to whole vectors."""
    return np.asarray(values[np.pad(rows, (0, row_count - len(rows)), mode="edge")], np.float32)


def _places(blocks: Sequence[Block], scatter: bool, row_count: int, lanes: int) -> Array:
    if scatter:
        padded = [np.pad(block.rows, (0, row_count - len(block.rows)), mode="edge") for block in blocks]
        return (FLOAT * np.stack(padded)).astype(np.int32)
    return np.array([(FLOAT * block.rows[0], (len(block.rows) - 1) % lanes + 1) for block in blocks], np.int32)


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
