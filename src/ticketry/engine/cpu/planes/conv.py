"""Convolutions over planes (and linear layers, as 1x1 ones): a layer and its weights -> operations with their
tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.engine.cpu.activations import activation
from ticketry.engine.cpu.planes import tables
from ticketry.engine.cpu.planes.geometry import FLOAT, Geometry, Planes
from ticketry.engine.cpu.planes.sums import Sums, mask_bytes
from ticketry.engine.cpu.planes.tiles import Tiles, cut
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target

Pair = tuple[int, int]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Window:
    """How the kernel slides: (vertical, horizontal) each."""

    size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def input(self, position: int, tap: int, axis: int) -> int:
        """The row (axis 0) or column of x that a tap reads for a row or column of y."""
        return position * self.stride[axis] + tap * self.dilation[axis] - self.padding[axis]


def conv(
    x: Planes,
    y: Planes,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    act: str | Mapping[str, float] | tuple[str, float] | None = None,
    residual: Planes | None = None,
    target: Target,
    label: str = "",
) -> list[Op]:
    """Operations for ``y = act(conv(x) + bias + residual)``.

    Args:
        weight: O x I/groups x height x width, float32; zeros are pruned and cost nothing.
        residual: has y's channels; may be y itself.
        target: whose kernels.

    Raises:
        ValueError: shapes do not fit, or the halo of x is smaller than the layer needs.
    """
    window = Window(weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation))
    _fits(x, y, weight, residual, window, groups)
    matrix, values = _matrix(x, y, weight, bias, residual, window, groups)
    ops = []
    tiles_of = _Cutter(x.geometry, y.geometry, None if residual is None else residual.geometry, window, target)
    for rows, sets in tables.groups_by_size(matrix, _sizes(target)).items():
        tiles = tiles_of(rows)
        blocked = False
        if rows == 1:
            block = _block(matrix, tiles)
            blocked = block < matrix.inputs
            made = tables.single(matrix, np.concatenate(sets), block=block, chunks=1)
        else:
            made = tables.shared(matrix, sets, chunks=1)
        spec = Sums(
            rows,
            tuple(t.shape for t in tiles),
            tuple(t.masks is not None for t in tiles),
            residual is not None,
            activation(act),
            blocked,
            tiles_inside=rows > 1,
        )
        ops.append(_op(spec, made, tiles, values, target, label))
    return ops


def _sizes(target: Target) -> tuple[int, ...]:
    """Rows that a kernel may do together."""
    return (12, 8, 6, 4, 1) if target.registers >= 32 else (6, 4, 1)


def _vectors(rows: int, target: Target) -> int:
    """Vectors a tile may have: sums, the inputs of one column and one weight stay in registers."""
    if target.registers >= 32:
        return {12: 2, 8: 2, 6: 4, 4: 4, 1: 16}[rows]
    return {6: 2, 4: 2, 1: 12}[rows]


@dataclass(frozen=True)
class _Cutter:
    x: Geometry
    y: Geometry
    residual: Geometry | None
    window: Window
    target: Target

    def __call__(self, rows: int) -> list[Tiles]:
        return cut(
            self.x,
            self.y,
            self.residual,
            stride=self.window.stride,
            lanes=self.target.lanes,
            most=_vectors(rows, self.target),
            taps=max(self.window.size),
        )


def _op(
    spec: Sums, made: tables.Tables, tiles: Sequence[Tiles], values: Sequence[Planes], target: Target, label: str
) -> Op:
    args: list[int | Array] = [made.segments, made.entries, made.chunks, len(made.chunks)]
    args.append(12 if spec.tiles_inside else 1)
    width = target.lanes * FLOAT
    for t in tiles:
        tables.check(made, spec.rows, values, t.places, (min(t.shape.x), max(t.shape.x) + width))
        masks = t.masks if t.masks is not None else np.zeros(1)
        args += [t.places, len(t.places), masks.astype(f"<u{mask_bytes(target)}")]
    return Op(spec, tuple(args), label)


def _block(matrix: tables.Matrix, tiles: Sequence[Tiles]) -> int:
    """Inputs whose part of a tile stays in the nearest cache."""
    return 16


def _matrix(
    x: Planes, y: Planes, weight: Array, bias: Array | None, residual: Planes | None, window: Window, groups: int
) -> tuple[tables.Matrix, list[Planes]]:
    taps = [(row, column) for row in range(window.size[0]) for column in range(window.size[1])]
    shifts = [tables.shift(x.geometry, window.input(0, row, 0), window.input(0, column, 1)) for row, column in taps]
    inside = np.array([_meets(x.geometry, y.geometry, window, tap) for tap in taps])
    for tap, there in zip(taps, inside, strict=True):
        if there and not _held(x.geometry, y.geometry, window, tap):
            raise ValueError(f"{window} reads beyond the halo of {x.geometry}")
    outputs, inputs = weight.shape[:2]
    flat = np.ascontiguousarray(weight, dtype=np.float32).reshape(outputs, inputs, len(taps))
    if not inside.all():  # taps that only ever see the halo
        flat = flat * inside.astype(np.float32)
    matrix = tables.Matrix(
        flat.reshape(outputs, -1),
        tables.columns([x] * len(taps), np.array(shifts), groups),
        inputs,
        y.offsets,
        None if residual is None else residual.offsets,
        np.zeros(outputs, dtype=np.float32) if bias is None else np.ascontiguousarray(bias, dtype=np.float32),
    )
    return matrix, [x]


def _meets(x: Geometry, y: Geometry, window: Window, tap: Pair) -> bool:
    """Whether a tap reads a pixel of x for any pixel of y."""
    return all(
        any(0 <= window.input(position, tap[axis], axis) < size for position in range(extent))
        for axis, (extent, size) in enumerate(((y.height, x.height), (y.width, x.width)))
    )


def _held(x: Geometry, y: Geometry, window: Window, tap: Pair) -> bool:
    """Whether all that a tap reads are pixels and halo of x."""
    return all(
        -x.halo <= window.input(0, tap[axis], axis) and window.input(extent - 1, tap[axis], axis) < size + x.halo
        for axis, (extent, size) in enumerate(((y.height, x.height), (y.width, x.width)))
    )


def _fits(x: Planes, y: Planes, weight: Array, residual: Planes | None, window: Window, groups: int) -> None:
    outputs, inputs = weight.shape[:2]
    if x.channels != inputs * groups or y.channels != outputs or outputs % groups:
        raise ValueError(f"weights {weight.shape} in {groups} groups for {x.channels} -> {y.channels} channels")
    if residual is not None and residual.channels != outputs:
        raise ValueError(f"a residual of {residual.channels} channels for {outputs}")
    sizes = zip((x.geometry.height, x.geometry.width), (y.geometry.height, y.geometry.width), strict=True)
    for axis, (size, extent) in enumerate(sizes):
        reach = window.dilation[axis] * (window.size[axis] - 1) + 1
        expected = (size + 2 * window.padding[axis] - reach) // window.stride[axis] + 1
        if extent != expected:
            raise ValueError(f"{window} over {size} gives {expected} rows or columns, not {extent}")


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
