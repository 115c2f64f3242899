"""Convolutions and linear layers over pixels: which blocks of rows, which tables for their kernels, at what cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import Activation
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF, Geometry, Pixels
from ticketry_engine.kernels.channels_last.group_conv import GroupConv
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.channels_last.number_formats import rounded
from ticketry_engine.kernels.channels_last.tiles import (
    CYCLES_A_NANOSECOND,
    WEIGHTS_KEPT,
    Plane,
    Shape,
    Tile,
    Tiling,
    Work,
    best_shape,
    sizes,
)
from ticketry_engine.kernels.program import BlockSpec, Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array, Convolution, Window

_BY_CHANNEL = 2.0
"""By how much more depthwise convolutions take than is estimated, with AVX-512 (EfficientNet-B0, MobileNetV3 and
ConvNeXt-atto at batch 1 and 8: 1.3 to 2.7; a Zen 5). With AVX2 regions are chosen right without it."""


def conv(x: Pixels, y: Pixels, layer: Convolution, residual: Pixels | None, spec: BlockSpec) -> list[Op]:
    """``y = act(convolution(x) + bias + residual)``.

    Where x is stored as bfloat16 weights are rounded to it too, and sums are float32; depthwise convolutions multiply
    in float32.

    Args:
        x: the input; its halo is at least the padding.
        y: where the output goes; not the same memory as the input or the residual.

    Raises:
        EngineError: shapes that do not fit.
    """
    shape = ConvShape(x, y, residual, layer.window)
    weights, parts = _parts(shape, layer, spec.images, spec.target)
    kernels = [kernel_of(shape, part, layer.act, spec.target) for part in parts]
    return [
        Op(kernel, arguments(shape, part, weights, layer.biases, kernel, spec.target))
        for kernel, part in zip(kernels, parts, strict=True)
    ]


def cost(x: Pixels, y: Pixels, layer: Convolution, spec: BlockSpec) -> float:
    """About how many nanoseconds `conv` takes for one image on one thread, caches warm."""
    _, parts = _parts(ConvShape(x, y, None, layer.window), layer, spec.images, spec.target)
    return sum(part.cycles for part in parts) / CYCLES_A_NANOSECOND


def _parts(shape: ConvShape, layer: Convolution, images: int, target: Target) -> tuple[Array, list[Part]]:
    """The weights [rows, columns] (and 2 where columns are pairs), and the layer's blocks of rows by their shape.

    Raises:
        EngineError: shapes that do not fit, or pairs where the target has no way to multiply them.
    """
    weight, groups = layer.weight, layer.groups
    shape.check(len(weight), weight.shape[1] * groups)
    if shape.pairs and not target.bf16:
        raise EngineError(f"the target {target.name} ({target.cpu}) multiplies no bfloat16 (vdpbf16ps)")
    if groups == len(weight) == shape.x.channels > 1:
        if shape.x.geometry.apart:
            raise EngineError("a convolution of each channel by itself reads channels side by side")
        weights = np.ascontiguousarray(weight.reshape(groups, -1), dtype=np.float32)
        return weights, [_depthwise(shape, weights, images, target)]
    weights = columns_by_tap(weight, groups)
    if not shape.pairs:
        return weights, _grouped(shape, weights != 0, images, target)
    pairs = paired(weights, shape.x.channels)
    return pairs, _grouped(shape, (pairs != 0).any(axis=2), images, target)


def _depthwise(shape: ConvShape, weights: Array, images: int, target: Target) -> Part:
    """Each row has inputs of its own, a vector of rows a vector of inputs: columns are taps."""
    groups = [np.arange(at, min(at + target.lanes, len(weights))) for at in range(0, len(weights), target.lanes)]
    blocks = blocks_of(weights != 0, groups, target.lanes, {1: 1.0})
    work = Work(shape.plane, target.lanes, images, len(blocks), float(weights.shape[1]))
    best, price = best_shape(work, 1, target)
    return Part(best, blocks, True, price * len(blocks) * (_BY_CHANNEL if target.registers >= 32 else 1.0))


def _grouped(shape: ConvShape, support: Array, images: int, target: Target) -> list[Part]:
    """Groups of rows that share their columns; ``support``, bool [rows, columns], tells which each row keeps."""
    groups = groups_of(support, target.lanes)
    kept = sum(float(support[group].any(axis=0).sum()) for group in groups)
    work = Work(shape.plane, shape.columns, images, len(groups), kept / max(1, len(groups)))
    most = max(1, -(-len(support) // target.lanes))
    prices = {size: best_shape(work, size, target)[1] for size in sizes(target) if size <= most}
    groups = joined(support, groups, target.lanes, prices)
    found: dict[int, list[Block]] = {}
    for block in blocks_of(support, groups, target.lanes, prices):
        found.setdefault(block.vectors, []).append(block)
    parts = []
    for vectors, blocks in found.items():
        columns = sum(len(block.columns) for block in blocks) / len(blocks)
        work = Work(shape.plane, shape.columns, images, len(blocks), columns)
        best, price = best_shape(work, vectors, target)
        parts.append(Part(best, blocks, False, price * len(blocks)))
    return parts


@dataclass(frozen=True)
class ConvShape:
    """A convolution's shape."""

    x: Pixels
    y: Pixels
    residual: Pixels | None
    window: Window

    @property
    def plane(self) -> Plane:
        return Plane(*self.window.axes(self.x.geometry))

    @property
    def pairs(self) -> bool:
        """Whether inputs are bfloat16, which are multiplied two at a time: a column is then two neighbouring channels
        of a tap, the last of an odd number of channels with nothing."""
        return self.x.geometry.item == HALF

    @property
    def columns(self) -> int:
        """Columns of a tap."""
        return -(-self.x.channels // 2) if self.pairs else self.x.channels

    @property
    def reach(self) -> int:
        """Words from the input of the first column to that of the last."""
        return int(self.offsets(self.columns).max(initial=0))

    def check(self, outputs: int, inputs: int) -> None:
        """Raises EngineError where the values do not fit a convolution of so many channels."""
        if inputs != self.x.channels:
            raise EngineError(f"a convolution of {inputs} channels, its input has {self.x.channels}")
        shape = (outputs, self.plane.rows.outputs, self.plane.columns.outputs)
        mine = (self.y.channels, self.y.geometry.height, self.y.geometry.width)
        if shape != mine:
            raise EngineError(f"a convolution has outputs of shape {shape}, its place holds {mine}")
        if max(self.window.padding) > self.x.geometry.halo:
            raise EngineError(
                f"a padding of {self.window.padding} needs an input with such a halo, not {self.x.geometry.halo}"
            )
        if self.residual is not None and not self.residual.like(self.y):
            raise EngineError("a residual has the shape of the output")

    def offsets(self, columns: int) -> Array:
        """Of each column [taps * columns]: words of 4 bytes from the input of tap 0, channel 0."""
        geometry = self.x.geometry
        (height, width), (down, right) = self.window.size, self.window.dilation
        rows, places = np.arange(height) * down * geometry.row, np.arange(width) * right * geometry.pixel
        taps = (rows[:, None] + places).reshape(-1, 1) // FLOAT
        found: Array = (taps + np.arange(columns) * (geometry.apart // FLOAT or 1)).reshape(-1)
        return found


@dataclass(frozen=True, eq=False)
class Part:
    """Blocks of one shape, which one operation does."""

    shape: Shape
    blocks: list[Block]
    depthwise: bool
    cycles: float
    """Estimated, for one image."""


def kernel_of(shape: ConvShape, part: Part, act: Activation, target: Target) -> GroupConv:
    x, best, (down, right) = Strides.of(shape.x), part.shape, shape.window.stride
    return GroupConv(
        vectors=best.vectors,
        tile=best.tile,
        rest=best.rest,
        x=replace(x, row=x.row * down, pixel=x.pixel * right),
        y=Strides.of(shape.y),
        residual=Strides.of(shape.residual) if shape.residual else None,
        act=act,
        partial=any(len(block.rows) % target.lanes for block in part.blocks),
        wide=shape.reach >= 1 << 16,
        depthwise=part.depthwise,
    )


def arguments(
    shape: ConvShape, part: Part, weights: Array, bias: Array, kernel: GroupConv, target: Target
) -> tuple[int | Array, ...]:
    """The kernel's arguments (`group_conv.Arg`)."""
    blocks, row_count = part.blocks, part.shape.vectors * target.lanes
    channels = 1 if part.depthwise else shape.columns  # columns that a tap has: of a depthwise convolution a row's own
    packed = np.concatenate([_packed(weights, block, row_count) for block in blocks])
    columns = np.concatenate([block.columns for block in blocks])
    shapes = [part.shape.tile] + ([part.shape.rest] if part.shape.rest else [])
    return (
        shape.x.start,
        shape.y.start,
        shape.residual.start if shape.residual else 0,
        len(blocks),
        max(1, WEIGHTS_KEPT // max(1, packed.nbytes // len(blocks))),
        np.array([(block.rows[0], (len(block.rows) - 1) % target.lanes + 1) for block in blocks], np.int32),
        np.stack([bias[_filled(block, row_count)] for block in blocks]),
        shape.offsets(channels)[columns].astype(np.int32 if kernel.wide else np.uint16),
        packed,
        *(arg for tile in shapes for arg in _tiles(shape, tile, blocks, channels)),
    )


def _filled(block: Block, row_count: int) -> Array:
    """A block's rows, the last one repeated up to whole vectors."""
    return np.pad(block.rows, (0, row_count - len(block.rows)), mode="edge")


def _packed(weights: Array, block: Block, row_count: int) -> Array:
    """A block's weights [columns, rows] (and 2 where columns are pairs)."""
    packed = np.ascontiguousarray(weights[_filled(block, row_count)[:, None], block.columns].swapaxes(0, 1))
    return packed if packed.ndim == 2 else rounded(packed)


def _tiles(shape: ConvShape, tile: Tile, blocks: Sequence[Block], channels: int) -> tuple[int | Array, ...]:
    """What the kernel reads of one tile shape (`group_conv.Arg.TILES`)."""
    tiling = Tiling.of(shape.plane, tile)
    x, y = shape.x.geometry, shape.y.geometry
    residual = shape.residual.geometry if shape.residual else y
    stride, padding = shape.window.stride, shape.window.padding
    top, left = tiling.row * stride[0] - padding[0], tiling.column * stride[1] - padding[1]
    outputs = (_bytes(geometry, tiling.row, tiling.column) for geometry in (y, residual))
    entries = np.stack([_bytes(x, top, left), *outputs, tiling.kind], axis=1).astype(np.int32)
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


# -- blocks of rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Block:
    """Rows done together, in so many vectors: some of one group's."""

    rows: Array
    columns: Array
    """Sorted."""
    vectors: int


def columns_by_tap(weight: Array, groups: int) -> Array:
    """A convolution's weights as [rows, taps * input channels]: a tap's channels are neighbours.

    Weights [O, I / groups, kh, kw] of a grouped convolution become those of a plain one with zeros.
    """
    outputs, inputs, height, width = weight.shape
    flat = weight.transpose(0, 2, 3, 1).reshape(outputs, height * width, inputs)
    if groups > 1:
        whole = np.zeros((outputs, height * width, groups, inputs), dtype=np.float32)
        whole[np.arange(outputs), :, np.arange(outputs) * groups // outputs] = flat
        flat = whole
    return np.ascontiguousarray(flat.reshape(outputs, -1), dtype=np.float32)


def paired(weights: Array, channels: int) -> Array:
    """Weights [rows, taps * channels] as [rows, taps * pairs of channels, 2], an odd last channel with a zero."""
    rows = len(weights)
    taps = np.pad(weights.reshape(rows, -1, channels), ((0, 0), (0, 0), (0, channels % 2)))
    return taps.reshape(rows, -1, 2)


def groups_of(support: Array, lanes: int) -> list[Array]:
    """Neighbouring rows with the same columns, joined further where a vector of both does less than two vectors would.

    Args:
        support: bool [rows, columns], which columns each row keeps.
        lanes: rows a vector holds.
    """
    new = (support[1:] != support[:-1]).any(axis=1)
    bounds = [0, *(np.flatnonzero(new) + 1).tolist(), len(support)]
    groups: list[list[int]] = []
    columns: list[Array] = []
    for first, last in itertools.pairwise(bounds):
        mine = support[first]
        if groups:
            size, more = groups[-1][1] - groups[-1][0], last - first
            union = columns[-1] | mine
            apart = -(-size // lanes) * columns[-1].sum() + -(-more // lanes) * mine.sum()
            if -(-(size + more) // lanes) * union.sum() <= apart:
                groups[-1][1], columns[-1] = last, union
                continue
        groups.append([first, last])
        columns.append(mine)
    return [np.arange(first, last) for first, last in groups]


def joined(support: Array, groups: Sequence[Array], lanes: int, cost: dict[int, float]) -> list[Array]:
    """Neighbouring groups joined where blocks of more vectors, with the columns of both, cost less.

    So rows of single weights that keep most columns are done as the dense layer's are, and take no longer.

    Args:
        support: bool [rows, columns].
        groups: rows of each, as of `groups_of`.
        lanes: rows a vector holds.
        cost: of one column of a block, by how many vectors the block has.
    """
    cuts = _cuts(-(-len(support) // lanes), cost)
    prices = [sum(cost[size] for size in cut) for cut in cuts]
    found: list[tuple[Array, Array]] = []
    for group in groups:
        mine: Array = np.logical_or.reduce(support[group], axis=0)
        if found:
            last, theirs = found[-1]
            both, union = np.concatenate([last, group]), theirs | mine
            apart = prices[-(-len(last) // lanes)] * theirs.sum() + prices[-(-len(group) // lanes)] * mine.sum()
            if prices[-(-len(both) // lanes)] * union.sum() <= apart:
                found[-1] = both, union
                continue
        found.append((group, mine))
    return [group for group, _ in found]


def blocks_of(support: Array, groups: Sequence[Array], lanes: int, cost: dict[int, float]) -> list[Block]:
    """Groups cut into blocks.

    Args:
        support: bool [rows, columns].
        groups: rows of each.
        lanes: rows a vector holds.
        cost: of one column of a block, by how many vectors the block has.
    """
    best = _cuts(max((-(-len(group) // lanes) for group in groups), default=0), cost)
    blocks = []
    for group in groups:
        columns = np.flatnonzero(support[group].any(axis=0))
        at = 0
        for vectors in best[-(-len(group) // lanes)]:
            blocks.append(Block(group[at : at + vectors * lanes], columns, vectors))
            at += vectors * lanes
    return blocks


def _cuts(most: int, cost: dict[int, float]) -> list[tuple[int, ...]]:
    """For 0 … most vectors, the cheapest way to cut them."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for count in range(1, most + 1):
        best.append(
            min(
                (best[count - size][0] + price, (*best[count - size][1], size))
                for size, price in cost.items()
                if size <= count
            )
        )
    return [tuple(sorted(cut, reverse=True)) for _, cut in best]
