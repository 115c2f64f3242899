"""Convolutions and linear layers over pixels: which blocks of rows they are, and what they will take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ticketry.engine.cpu.activations import Activation
from ticketry.engine.cpu.pixels.choice import CYCLES_A_NANOSECOND, Work, best_shape, sizes
from ticketry.engine.cpu.pixels.geometry import Pixels
from ticketry.engine.cpu.pixels.layer import Layer
from ticketry.engine.cpu.pixels.support import Block, blocks_of, checked, columns_by_tap, groups_of, paired
from ticketry.engine.cpu.pixels.tables import Part, arguments, kernel_of
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target
from ticketry.errors import EngineError

Array = np.ndarray[Any, Any]
Pair = int | tuple[int, int]


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

    Where x is stored as bfloat16 weights are rounded to it too, and sums are float32; depthwise convolutions multiply
    in float32.

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
    weights, parts = _parts(layer, _four(weight), groups, rows, images, target)
    bias = np.zeros(len(weights), np.float32) if bias is None else np.asarray(bias, np.float32)
    ops = []
    for part in parts:
        kernel = kernel_of(layer, part, act, target)
        ops.append(Op(kernel, arguments(layer, part, weights, bias, kernel, target), label))
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
    _, parts = _parts(layer, _four(weight), groups, rows, images, target)
    return sum(part.cycles for part in parts) / CYCLES_A_NANOSECOND


def _four(weight: Array) -> Array:
    """A linear layer's weights as those of a convolution with one tap."""
    return weight.reshape(*weight.shape, 1, 1) if weight.ndim == 2 else weight


def _layer(
    x: Pixels, y: Pixels, weight: Array, stride: Pair, padding: Pair, dilation: Pair, residual: Pixels | None
) -> Layer:
    pairs = [(value, value) if isinstance(value, int) else value for value in (stride, padding, dilation)]
    height, width = _four(weight).shape[2:]
    return Layer(x, y, residual, (height, width), *pairs)


def _parts(
    layer: Layer, weight: Array, groups: int, rows: Sequence[Array] | None, images: int, target: Target
) -> tuple[Array, list[Part]]:
    """The weights [rows, columns] (and 2 where columns are pairs), and the layer's blocks of rows by their shape.

    Raises:
        EngineError: shapes that do not fit, or pairs where the target has no way to multiply them.
    """
    layer.check(len(weight), weight.shape[1] * groups)
    if layer.pairs and not target.bf16:
        raise EngineError(f"the target {target.name} ({target.cpu}) multiplies no bfloat16 (vdpbf16ps)")
    if groups == len(weight) == layer.x.channels > 1:
        weights = np.ascontiguousarray(weight.reshape(groups, -1), dtype=np.float32)
        return weights, [_depthwise(layer, weights, images, target)]
    weights = columns_by_tap(weight, groups)
    if not layer.pairs:
        return weights, _grouped(layer, weights != 0, rows, images, target)
    pairs = paired(weights, layer.x.channels)
    return pairs, _grouped(layer, (pairs != 0).any(axis=2), rows, images, target)


def _depthwise(layer: Layer, weights: Array, images: int, target: Target) -> Part:
    """Each row has inputs of its own, a vector of rows a vector of inputs: columns are taps."""
    groups = [np.arange(at, min(at + target.lanes, len(weights))) for at in range(0, len(weights), target.lanes)]
    blocks = blocks_of(weights != 0, groups, target.lanes, {1: 1.0})
    work = Work(layer.plane, target.lanes, images, len(blocks), float(weights.shape[1]))
    shape, price = best_shape(work, 1, target)
    return Part(shape, blocks, False, True, price * len(blocks))


def _grouped(layer: Layer, support: Array, rows: Sequence[Array] | None, images: int, target: Target) -> list[Part]:
    """Groups of rows that share their columns; ``support``, bool [rows, columns], tells which each row keeps."""
    groups = groups_of(support, target.lanes) if rows is None else checked(rows, len(support))
    kept = sum(float(support[group].any(axis=0).sum()) for group in groups)
    work = Work(layer.plane, layer.columns, images, len(groups), kept / max(1, len(groups)))
    longest = max((-(-len(group) // target.lanes) for group in groups), default=1)
    prices = {size: best_shape(work, size, target)[1] for size in sizes(target) if size <= longest}
    found: dict[tuple[int, bool], list[Block]] = {}
    for block in blocks_of(support, groups, target.lanes, prices):
        neighbours = bool((np.diff(block.rows) == 1).all())
        found.setdefault((block.vectors, not neighbours), []).append(block)
    parts = []
    for (vectors, scatter), blocks in found.items():
        columns = sum(len(block.columns) for block in blocks) / len(blocks)
        work = Work(layer.plane, layer.columns, images, len(blocks), columns)
        shape, price = best_shape(work, vectors, target)
        parts.append(Part(shape, blocks, scatter, False, price * len(blocks)))
    return parts
