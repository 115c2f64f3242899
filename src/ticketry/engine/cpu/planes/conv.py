"""Convolutions over planes (and linear layers, as 1x1 ones): a layer and its weights -> operations with their
tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.engine.cpu.activations import Activation, activation
from ticketry.engine.cpu.planes import choice, tables
from ticketry.engine.cpu.planes.geometry import FLOAT, Geometry, Planes
from ticketry.engine.cpu.planes.lanes import mask_type
from ticketry.engine.cpu.planes.sums import Sums
from ticketry.engine.cpu.planes.tables import Matrix
from ticketry.engine.cpu.planes.window import Pair, Window
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target

Array = np.ndarray[Any, Any]


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
    scratch: int | Callable[[int], int] | None = None,
) -> list[Op]:
    """Operations for ``y = act(conv(x) + bias + residual)``.

    Args:
        weight: O x I/groups x height x width, float32; zeros are pruned and cost nothing.
        residual: has y's channels; may be y itself.
        target: whose kernels.
        scratch: where in the arena `scratch_bytes` may be used (a multiple of 64), or a function that gives so many
            bytes and says where they begin; without it x is read as it is, also where it would be faster not to.

    Raises:
        ValueError: shapes do not fit; or x cannot be read as it is, and there is no scratch.
    """
    window = Window.of(weight.shape[2:], stride, padding, dilation)
    _fits(x, y, weight, residual, window, groups)
    weight = np.ascontiguousarray(weight, dtype=np.float32).reshape(*weight.shape[:2], -1)
    weight = _inside(weight, x.geometry, y.geometry, window)
    beside = None if residual is None else residual.geometry
    way = choice.best(x.geometry, y.geometry, beside, weight, window, groups, target, unfold=scratch is not None)
    ops: list[Op] = []
    if way.folds is None:
        shifts = [window.shift(tap, x.geometry) for tap in window.taps]
        columns, value = x.offsets[:, None] + np.array(shifts), x
    else:
        assert scratch is not None
        scratch = scratch(way.folds.bytes) if callable(scratch) else scratch
        ops += way.folds.ops(x, scratch, label) if way.folds.copies else []
        columns, value = way.folds.columns(scratch), way.folds.value(scratch)
    matrix = Matrix(
        weight.reshape(len(weight), -1),
        columns.reshape(groups, -1),
        len(window.taps),
        y.offsets,
        None if residual is None else residual.offsets,
        np.zeros(len(weight), dtype=np.float32) if bias is None else np.ascontiguousarray(bias, dtype=np.float32),
    )
    layer = _Layer(matrix, value, activation(act), target, label)
    return [*ops, *(layer.op(kind) for kind in way.kinds)]


def scratch_bytes(
    x: Geometry,
    y: Geometry,
    weight: Array,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    target: Target,
) -> int:
    """Bytes of scratch memory that `conv` needs; 0 where it reads x as it is."""
    way = _way(x, y, weight, Window.of(weight.shape[2:], stride, padding, dilation), groups, target)
    return 0 if way.folds is None else way.folds.bytes


def cost(
    x: Geometry,
    y: Geometry,
    weight: Array,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    target: Target,
) -> float:
    """An estimate of the time that `conv` takes for a block of images on one thread, in nanoseconds.

    For choosing between ways to do the same work: see `choice`.
    """
    return _way(x, y, weight, Window.of(weight.shape[2:], stride, padding, dilation), groups, target).nanoseconds


def _way(x: Geometry, y: Geometry, weight: Array, window: Window, groups: int, target: Target) -> choice.Way:
    weight = _inside(weight.reshape(*weight.shape[:2], -1), x, y, window)
    return choice.best(x, y, None, weight, window, groups, target)


def _inside(weight: Array, x: Geometry, y: Geometry, window: Window) -> Array:
    """Weights (O x I x taps) without the taps that only ever see the halo."""
    inside = np.array([window.meets(x, y, tap) for tap in window.taps])
    return weight if inside.all() else weight * inside.astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer over what it reads, be it x or its copies."""

    matrix: Matrix
    x: Planes
    act: Activation
    target: Target
    label: str

    def op(self, kind: choice.Kind) -> Op:
        """The operation for the rows of a kind."""
        made = self._tables(kind)
        spec = Sums(
            kind.rows,
            tuple(t.shape for t in kind.tiles),
            tuple(t.masks is not None for t in kind.tiles),
            self.matrix.residual is not None,
            self.act,
            made.blocked,
            made.unit,
            made.wide,
            kind.sets,
        )
        args: list[int | Array] = [made.segments, made.columns, made.weights, made.chunks, len(made.chunks)]
        for t in kind.tiles:
            tables.check(made, self.x, t.places, (min(t.shape.x), max(t.shape.x) + self.target.lanes * FLOAT))
            masks = np.zeros(1) if t.masks is None else t.masks
            args += [t.places, len(t.places), masks.astype(mask_type(self.target))]
        return Op(spec, tuple(args), self.label)

    def _tables(self, kind: choice.Kind) -> tables.Tables:
        if kind.rows > 1:
            return tables.shared(self.matrix, kind.groups, chunks=kind.chunks)
        rows = np.sort(np.concatenate([rows for group in kind.groups for rows in group]))
        return tables.single(self.matrix, rows, block=kind.block, chunks=kind.chunks)


def _fits(x: Planes, y: Planes, weight: Array, residual: Planes | None, window: Window, groups: int) -> None:
    outputs, inputs = weight.shape[:2]
    if x.channels != inputs * groups or y.channels != outputs or outputs % groups:
        raise ValueError(f"weights {weight.shape} in {groups} groups for {x.channels} -> {y.channels} channels")
    if residual is not None and residual.channels != outputs:
        raise ValueError(f"a residual of {residual.channels} channels for {outputs}")
    if x.geometry.images != y.geometry.images:
        raise ValueError(f"{x.geometry.images} images, then {y.geometry.images}")
    sizes = zip((x.geometry.height, x.geometry.width), (y.geometry.height, y.geometry.width), strict=True)
    for axis, (size, extent) in enumerate(sizes):
        if window.output(size, axis) != extent:
            raise ValueError(f"{window} over {size} gives {window.output(size, axis)} rows or columns, not {extent}")
