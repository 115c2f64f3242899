"""Plan convolutions and linear layers: group weight rows into blocks, build the kernel's tables, estimate the time.

A weight [O, I, kh, kw] is a matrix [rows = O, columns = (tap, input channel)]; a linear layer has one tap. A group of
rows computes only the columns that any of its rows retains:

              columns           0 1 2 3 4 5 6 7
    group A:  rows 0-31         x . x x . . x .     retained columns 0 2 3 6  -> dense [4 columns, 32 rows]
    group B:  rows 32-47        . x . . x . . x     retained columns 1 4 7    -> dense [3 columns, 16 rows]

1. `flatten_by_tap` brings the weight into this form. With bfloat16, a column is a pair of channels (`pair_channels`).
2. `group_rows` and `join_groups` form groups. A joined group computes some zeros but needs fewer vectors.
3. `split_into_blocks` splits groups into blocks of one to four vectors of rows.
4. `group_conv.choose_block_shape` chooses the tiles of output pixels.
5. `_build_op` packs the tables that `group_conv` explains.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.bfloat import round_to_bfloat16
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF, ChannelsLastValue, Strides
from ticketry_engine.kernels.channels_last.group_conv import (
    CYCLES_A_NANOSECOND,
    WEIGHTS_KEPT,
    BlockShape,
    ConvAxes,
    ConvWork,
    GroupConv,
    Tile,
    Tiling,
    block_sizes,
    choose_block_shape,
)
from ticketry_engine.kernels.program import BlockSpec, Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array, Convolution, Window

_BY_CHANNEL = 2.0
"""Correction factor of the estimated time of depthwise convolutions with 32 vector registers (AVX-512).

The factor was fitted to timings of three networks; AVX2 needs no correction."""


def conv(
    x: ChannelsLastValue, y: ChannelsLastValue, layer: Convolution, residual: ChannelsLastValue | None, spec: BlockSpec
) -> list[Op]:
    """Return the operations of ``y = act(convolution(x) + bias + residual)``.

    If x is bfloat16, weights are rounded to bfloat16 and products are added in float32; but the weights of depthwise
    convolutions stay float32. The halo (zero border) of x must be at least as wide as the padding. y must not overlap x
    or the residual.
    """
    shape = ConvShape(x, y, residual, layer.window)
    weights, parts = _plan_parts(shape, layer, spec.images, spec.target)
    return [_build_op(shape, part, weights, layer, spec.target) for part in parts]


def estimate_cost(x: ChannelsLastValue, y: ChannelsLastValue, layer: Convolution, spec: BlockSpec) -> float:
    """Estimate the nanoseconds that `conv` takes for one image on one thread with warm caches."""
    _, parts = _plan_parts(ConvShape(x, y, None, layer.window), layer, spec.images, spec.target)
    return sum(part.cycles for part in parts) / CYCLES_A_NANOSECOND


def _plan_parts(shape: ConvShape, layer: Convolution, images: int, target: Target) -> tuple[Array, list[ConvPart]]:
    """Return the weights [rows, columns], or [rows, columns, 2] for bfloat16, and the layer's parts."""
    weight, groups = layer.weight, layer.groups
    shape.check_channel_counts(len(weight), weight.shape[1] * groups)
    if shape.uses_pairs and not target.bf16:
        raise EngineError(f"the target {target.name} ({target.cpu}) cannot multiply bfloat16 (vdpbf16ps)")
    if groups == len(weight) == shape.x.channels > 1:
        if shape.x.geometry.channel_stride:
            raise EngineError("a depthwise convolution needs an input with innermost channels")
        weights = np.ascontiguousarray(weight.reshape(groups, -1), dtype=np.float32)
        return weights, [_plan_depthwise(shape, weights, images, target)]
    weights = flatten_by_tap(weight, groups)
    if not shape.uses_pairs:
        return weights, _plan_grouped(shape, weights != 0, images, target)
    pairs = pair_channels(weights, shape.x.channels)
    return pairs, _plan_grouped(shape, (pairs != 0).any(axis=2), images, target)


def _plan_depthwise(shape: ConvShape, weights: Array, images: int, target: Target) -> ConvPart:
    """Plan a depthwise convolution: for each tap, a vector of output channels reads a vector of input channels."""
    groups = [np.arange(at, min(at + target.lanes, len(weights))) for at in range(0, len(weights), target.lanes)]
    blocks = split_into_blocks(weights != 0, groups, target.lanes, {1: 1.0})
    work = ConvWork(shape.plane, target.lanes, images, len(blocks), float(weights.shape[1]))
    best, price = choose_block_shape(work, 1, target)
    return ConvPart(best, blocks, True, price * len(blocks) * (_BY_CHANNEL if target.registers >= 32 else 1.0))


def _plan_grouped(shape: ConvShape, support: Array, images: int, target: Target) -> list[ConvPart]:
    """Plan a convolution that is not depthwise; `support`, bool [rows, columns], is True for retained weights."""
    groups = group_rows(support, target.lanes)
    retained = sum(float(support[group].any(axis=0).sum()) for group in groups)
    work = ConvWork(shape.plane, shape.columns, images, len(groups), retained / max(1, len(groups)))
    most = max(1, -(-len(support) // target.lanes))
    prices = {size: choose_block_shape(work, size, target)[1] for size in block_sizes(target) if size <= most}
    groups = join_groups(support, groups, target.lanes, prices)
    found: dict[int, list[RowBlock]] = {}
    for block in split_into_blocks(support, groups, target.lanes, prices):
        found.setdefault(block.vectors, []).append(block)
    parts = []
    for vectors, blocks in found.items():
        columns = sum(len(block.columns) for block in blocks) / len(blocks)
        work = ConvWork(shape.plane, shape.columns, images, len(blocks), columns)
        best, price = choose_block_shape(work, vectors, target)
        parts.append(ConvPart(best, blocks, False, price * len(blocks)))
    return parts


@dataclass(frozen=True)
class ConvShape:
    """The values that a convolution reads and writes (input, output, residual), and its window."""

    x: ChannelsLastValue
    y: ChannelsLastValue
    residual: ChannelsLastValue | None
    window: Window

    @property
    def plane(self) -> ConvAxes:
        return ConvAxes(*self.window.axes(self.x.geometry))

    @property
    def uses_pairs(self) -> bool:
        """Whether the input is bfloat16; then each column is a pair of neighbouring channels at a kernel position."""
        return self.x.geometry.item == HALF

    @property
    def columns(self) -> int:
        """Number of columns (channels, or pairs of channels) per tap (kernel position)."""
        return -(-self.x.channels // 2) if self.uses_pairs else self.x.channels

    def check_channel_counts(self, outputs: int, inputs: int) -> None:
        """Raise EngineError unless x, y and residual fit a convolution of `inputs` to `outputs` channels."""
        if inputs != self.x.channels:
            raise EngineError(f"a convolution of {inputs} channels cannot read an input of {self.x.channels}")
        shape = (outputs, self.plane.rows.outputs, self.plane.columns.outputs)
        mine = (self.y.channels, self.y.geometry.height, self.y.geometry.width)
        if shape != mine:
            raise EngineError(f"a convolution has outputs of shape {shape}, but its output value has {mine}")
        if max(self.window.padding) > self.x.geometry.halo:
            raise EngineError(
                f"a padding of {self.window.padding} needs an input with that halo, not {self.x.geometry.halo}"
            )
        if self.residual is not None and not self.residual.has_shape_of(self.y):
            raise EngineError("a residual has to have the shape of the output")

    def column_offsets(self, columns: int) -> Array:
        """Return where each column's input is, in 4-byte words from the input of tap 0 and channel 0.

        A tap has `columns` columns.
        """
        geometry = self.x.geometry
        (height, width), (down, right) = self.window.size, self.window.dilation
        rows, places = np.arange(height) * down * geometry.row_bytes, np.arange(width) * right * geometry.pixel
        taps = (rows[:, None] + places).reshape(-1, 1) // FLOAT
        found: Array = (taps + np.arange(columns) * (geometry.channel_stride // FLOAT or 1)).reshape(-1)
        return found


@dataclass(frozen=True, eq=False)
class ConvPart:
    """All blocks of rows of a layer that have the same shape, so that one operation computes them."""

    shape: BlockShape
    blocks: list[RowBlock]
    depthwise: bool
    cycles: float
    """Estimated cycles for one image."""


def _build_op(shape: ConvShape, part: ConvPart, weights: Array, layer: Convolution, target: Target) -> Op:
    """Return the operation that computes the blocks of a part.

    The arguments are in the order that the indices in `group_conv.ConvArg` define.
    """
    blocks, best, row_count = part.blocks, part.shape, part.shape.vectors * target.lanes
    x, (down, right) = Strides.from_value(shape.x), shape.window.stride
    wide_offsets = int(shape.column_offsets(shape.columns).max(initial=0)) >= 1 << 16
    kernel = GroupConv(
        vectors=best.vectors,
        tile=best.tile,
        rest=best.rest,
        x=replace(x, row=x.row * down, pixel=x.pixel * right),
        y=Strides.from_value(shape.y),
        residual=Strides.from_value(shape.residual) if shape.residual else None,
        act=layer.act,
        partial_vector=any(len(block.rows) % target.lanes for block in blocks),
        wide_offsets=wide_offsets,
        depthwise=part.depthwise,
    )
    channels = 1 if part.depthwise else shape.columns  # columns per tap; a depthwise row reads one input channel
    # The last row of a block is repeated until its vectors are full.
    rows = [np.pad(block.rows, (0, row_count - len(block.rows)), mode="edge") for block in blocks]
    packed = [weights[some[:, None], block.columns].swapaxes(0, 1) for some, block in zip(rows, blocks, strict=True)]
    packed_weights = np.ascontiguousarray(np.concatenate(packed))  # [columns, row_count], with bfloat16 [..., 2]
    if packed_weights.ndim == 3:
        packed_weights = round_to_bfloat16(packed_weights)
    columns = np.concatenate([block.columns for block in blocks])
    shapes = [best.tile] + ([best.rest] if best.rest else [])
    args = (
        shape.x.first_channel_offset,
        shape.y.first_channel_offset,
        shape.residual.first_channel_offset if shape.residual else 0,
        len(blocks),
        max(1, WEIGHTS_KEPT // max(1, packed_weights.nbytes // len(blocks))),
        np.array([(block.rows[0], (len(block.rows) - 1) % target.lanes + 1) for block in blocks], np.int32),
        np.stack([layer.biases[some] for some in rows]),
        shape.column_offsets(channels)[columns].astype(np.int32 if wide_offsets else np.uint16),
        packed_weights,
        *(arg for tile in shapes for arg in _tile_tables(shape, tile, blocks, channels)),
    )
    return Op(kernel, args)


def _tile_tables(shape: ConvShape, tile: Tile, blocks: Sequence[RowBlock], channels: int) -> tuple[int | Array, ...]:
    """Return the arguments that describe the tiles of one shape, in the order of `group_conv.ConvArg.TILES`."""
    tiling = Tiling.from_axes(shape.plane, tile)
    x, y = shape.x.geometry, shape.y.geometry
    residual = shape.residual.geometry if shape.residual else y
    stride, padding = shape.window.stride, shape.window.padding
    top, left = tiling.row * stride[0] - padding[0], tiling.column * stride[1] - padding[1]
    outputs = (geometry.pixel_offset(tiling.row, tiling.column) for geometry in (y, residual))
    entries = np.stack([x.pixel_offset(top, left), *outputs, tiling.kind], axis=1).astype(np.int32)
    begins, runs = _run_tables(blocks, tiling.spans, channels)
    return len(entries), entries, len(tiling.spans), begins, runs


def _run_tables(
    blocks: Sequence[RowBlock], spans: Sequence[list[tuple[int, int]]], channels: int
) -> tuple[Array, Array]:
    """Return two tables: the first run for each block and tile class, and (first column, end) of each run.

    A run is a range of a block's columns that a class of tiles computes. The columns of all blocks are numbered
    consecutively.

    `spans` holds, for each tile class, the ranges of kernel positions (taps) that read the image and not only padding.
    A tap has `channels` columns.
    """
    starts = np.cumsum([0, *(len(block.columns) for block in blocks)])
    longest = max(len(each) for each in spans)
    taps = np.array([[*each, *[(0, 0)] * (longest - len(each))] for each in spans])  # [classes, spans, 2]
    taps = taps.reshape(len(spans), longest, 2)
    found = np.stack(
        [start + np.searchsorted(block.columns, taps * channels) for start, block in zip(starts, blocks, strict=False)]
    )
    filled = found[..., 1] > found[..., 0]  # [blocks, classes, spans]
    begins = np.concatenate(([0], np.cumsum(filled.sum(axis=2))))
    return begins.astype(np.int32), found[filled].astype(np.int32)


# -- blocks of rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Rows with the same columns that a kernel computes together: one to four vectors of rows."""

    rows: Array
    columns: Array
    """Columns that any of the rows retains, ascending."""
    vectors: int


def flatten_by_tap(weight: Array, groups: int) -> Array:
    """Reshape a weight [O, I / groups, kh, kw] to [O, kh * kw * I], with zeros for inputs of other groups."""
    outputs, inputs, height, width = weight.shape
    flat = weight.transpose(0, 2, 3, 1).reshape(outputs, height * width, inputs)
    if groups > 1:
        whole = np.zeros((outputs, height * width, groups, inputs), dtype=np.float32)
        whole[np.arange(outputs), :, np.arange(outputs) * groups // outputs] = flat
        flat = whole
    return np.ascontiguousarray(flat.reshape(outputs, -1), dtype=np.float32)


def pair_channels(weights: Array, channels: int) -> Array:
    """Reshape weights [rows, taps * channels] to [rows, taps * pairs, 2]; a zero follows an odd last channel."""
    rows = len(weights)
    taps = np.pad(weights.reshape(rows, -1, channels), ((0, 0), (0, 0), (0, channels % 2)))
    return taps.reshape(rows, -1, 2)


def group_rows(support: Array, lanes: int) -> list[Array]:
    """Return groups of neighbouring rows with equal columns, joined where a joined group needs less work.

    The work of a group is its number of vectors times its number of columns.

    `support` [rows, columns] is True where a row retains a column. A vector holds `lanes` rows.
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


def join_groups(support: Array, groups: Sequence[Array], lanes: int, cost: dict[int, float]) -> list[Array]:
    """Join neighbouring groups of rows if the estimated cost of the joined group, with all columns of both, is lower.

    Rows with few pruned weights are thus computed as in the dense layer, and take no more time than there.

    `cost` is, by number of vectors in a block, the cost of one column of such a block; `support` and `lanes` have the
    same meaning as in `group_rows`.
    """
    splits = _cheapest_splits(-(-len(support) // lanes), cost)
    prices = [sum(cost[size] for size in split) for split in splits]
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


def split_into_blocks(support: Array, groups: Sequence[Array], lanes: int, cost: dict[int, float]) -> list[RowBlock]:
    """Split groups of rows into blocks so that the total cost is least.

    `support` [rows, columns] is True where a row retains a column. A vector holds `lanes` rows. `cost` is, by number of
    vectors in a block, the cost of one column of such a block.
    """
    best = _cheapest_splits(max((-(-len(group) // lanes) for group in groups), default=0), cost)
    blocks = []
    for group in groups:
        columns = np.flatnonzero(support[group].any(axis=0))
        at = 0
        for vectors in best[-(-len(group) // lanes)]:
            blocks.append(RowBlock(group[at : at + vectors * lanes], columns, vectors))
            at += vectors * lanes
    return blocks


def _cheapest_splits(most: int, cost: dict[int, float]) -> list[tuple[int, ...]]:
    """Return, for each number of vectors from 0 to `most`, the cheapest block sizes that add up to the number."""
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
