"""Kernels of linear layers for one image and one position: inner products of sparse weight rows with the input.

    y[row] = act(bias[row] + residual[row] + sum over j of weight[row, j] * packed[column[row, j]])

After a global pooling, planes hold one value, so `row_sums` would fill only one lane of a vector. Here the lanes of a
vector are columns (inputs). The kernel `Collect` first copies all inputs side by side ("packed"). Then `Dots` gathers
the inputs of each row (or of a few rows with equal columns) a vector at a time, and adds the lanes at the row's end.

Arguments:
    `Collect`: places (int32: the byte of each column); their number; the byte of the packed inputs, which end in a zero
    `Dots`: groups of rows with equal columns (int32: first chunk and end; then for each row the bytes of its planes of
        y and of the residual, and its bias); their number; the byte of the packed inputs; columns [chunks, lanes] as
        indices of packed inputs; weights [chunks, rows, lanes]. A chunk is a vector of columns; the last chunk of a
        group is filled up with the index of the zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ticketry_engine.kernels.activations import Activation, activate
from ticketry_engine.kernels.emitter import I1, I8, I16, I32, EmittedKernel, Emitter, splat_constant
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.planar.geometry import FLOAT, LINE, Geometry, sum_positions
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array

HEAD, ROW = 2, 3
"""Number of 4-byte words of a group before those of its rows, and number of words per row."""

_WIDE = 1 << 16

_MOST_ROWS = 4
"""Greatest number of rows in a group, for which a vector of inputs is gathered only once."""


def can_use_dots(x: Geometry, y: Geometry, target: Target) -> bool:
    """Return whether this module's kernels apply: one position, one image, and a processor with gather instructions."""
    return y.height * y.width * y.images == 1 == x.images and target.has_gather


def estimate_cycles(columns: int, kinds: dict[int, list[list[Array]]], kept: Array, target: Target) -> float:
    """Estimate the processor cycles that the kernels `Collect` and `Dots` take for a layer.

    `columns` is the number of its inputs; `kinds` are the sets of rows with equal columns from `conv.find_equal_rows`;
    `kept` [rows, columns] is True for retained weights.
    """
    total = 2.0 * columns
    for rows, groups in kinds.items():
        for sets in groups:
            chunks = -(-int(kept[sets[0][0]].sum()) // target.lanes)
            total += len(sets) * -(-rows // _MOST_ROWS) * chunks * target.lanes
            total += len(sets) * rows * (chunks * 1.5 + 20)
    return total


@dataclass(frozen=True)
class Collect(EmittedKernel):
    """Kernel that copies floats from any bytes of working memory to consecutive elements, followed by a zero."""

    finished: ClassVar[bool] = True

    def write(self, e: Emitter) -> None:
        places, to = e.table(0), e.arena_pointer(e.arg(2))
        low, high = e.thread_share(e.arg(1))
        with e.loop(low, high) as turn:
            at = e.b.mul(turn.index, e.i64(FLOAT))
            e.b.store(e.load_f32(e.arena_pointer(e.load_i32(places, at))), e.offset_pointer(to, at), align=FLOAT)
        e.b.store(e.f32(0.0), e.offset_pointer(to, e.b.mul(e.arg(1), e.i64(FLOAT))), align=FLOAT)


@dataclass(frozen=True)
class Dots(EmittedKernel):
    """Kernel that computes inner products of sparse weight rows with the inputs that `Collect` packed.

    `rows` rows share their columns and are computed together. An index of an input takes 32 bits if `wide`, else 16. If
    `residual`, another value is added to y.
    """

    finished: ClassVar[bool] = True

    rows: int
    wide: bool
    residual: bool
    act: Activation

    def write(self, e: Emitter) -> None:
        b, count, width = e.b, e.target.lanes, e.target.lanes * FLOAT
        groups, x, columns, weights = e.table(0), e.arena_pointer(e.arg(2)), e.table(3), e.table(4)
        size = 4 if self.wide else 2
        low, high = e.thread_share(e.arg(1))
        with e.loop(low, high) as turn:
            group = e.offset_pointer(groups, b.mul(turn.index, e.i64(4 * (HEAD + ROW * self.rows))))
            with e.loop(e.load_i32(group), e.load_i32(group, 4), carried=[e.splat(0.0)] * self.rows) as chunk:
                word = I32 if self.wide else I16
                index = b.load(
                    e.offset_pointer(columns, b.mul(chunk.index, e.i64(size * count))),
                    typ=ir.VectorType(word, count),
                    align=size,
                )
                index = index if self.wide else b.zext(index, ir.VectorType(I32, count))
                values = _gather_floats(e, x, index)
                at = e.offset_pointer(weights, b.mul(chunk.index, e.i64(width * self.rows)))
                chunk.next = [e.fma(e.load(at, row * width), values, value) for row, value in enumerate(chunk.carried)]
            for row, value in enumerate(chunk.results):
                self._write_row_end(e, e.offset_pointer(group, 4 * (HEAD + ROW * row)), value)

    def _write_row_end(self, e: Emitter, row: Any, lanes_: Any) -> None:
        b = e.b
        value = b.extract_element(sum_positions(e, lanes_, 1), splat_constant(I32, 0))
        value = b.fadd(value, e.load_f32(row, 8))
        if self.residual:
            value = b.fadd(value, e.load_f32(e.arena_pointer(e.load_i32(row, 4))))
        value = b.extract_element(activate(e, self.act, e.splat(value)), splat_constant(I32, 0))
        b.store(value, e.arena_pointer(e.load_i32(row)), align=FLOAT)


def _gather_floats(e: Emitter, x: Any, index: Any) -> Any:
    """Load floats from the array at `x`; `index`, a vector of int32, holds their indices."""
    count, scale = e.target.lanes, FLOAT
    if count == 16:
        everywhere = ir.Constant(ir.VectorType(I1, count), [1] * count)
        given = [e.splat(0.0), x, index, everywhere, ir.Constant(I32, scale)]
        return e.call("llvm.x86.avx512.mask.gather.dps.512", e.vector, given)
    ones = e.b.bitcast(ir.Constant(ir.VectorType(I32, count), [-1] * count), e.vector)
    return e.call("llvm.x86.avx2.gather.d.ps.256", e.vector, [e.splat(0.0), x, index, ones, ir.Constant(I8, scale)])


def scratch_bytes(columns: int) -> int:
    """Return the bytes of scratch memory for the packed inputs of a layer with `columns` columns."""
    return -(-(columns + 1) * FLOAT // LINE) * LINE


def build_ops(
    matrix: tuple[Array, Array],
    kinds: dict[int, list[list[Array]]],
    rows: tuple[Array, Array | None, Array],
    scratch: int,
    act: Activation,
    target: Target,
) -> list[Op]:
    """Return the operations that pack a layer's inputs (`Collect`) and compute its outputs (`Dots`).

    `matrix` is (weights [rows, columns], byte of each column's input [convolution groups, columns]). `kinds` is the
    result of `conv.find_equal_rows`. `rows` has three arrays with an entry for each row: the byte of the row's plane of
    y, the byte of its plane of the residual, and its bias. `scratch` is the byte of the packed inputs.
    """
    weight, columns = matrix
    used = (weight.reshape(*columns.shape[:1], -1, columns.shape[1]) != 0).any(axis=1)
    places = columns[used].astype(np.int32)  # unused columns may point outside the input
    number = np.cumsum(used).reshape(used.shape) - 1
    wide = len(places) >= _WIDE
    y, residual, bias = rows
    beside = np.zeros_like(y) if residual is None else residual
    words = np.stack([y, beside, bias.astype(np.float32).view(np.int32)], axis=1)
    found = [Op(Collect(), (places if places.size else np.zeros(1, np.int32), len(places), scratch))]
    for size, sets in _split_row_sets(kinds).items():
        groups: list[list[int]] = []
        # One unused vector of columns keeps the tables from being empty.
        chunks, weights = [np.full(target.lanes, len(places))], [np.zeros((size, target.lanes), np.float32)]
        # Sorted by number of chunks: branch prediction fails on loops whose length changes.
        for some in sorted(sets, key=lambda some: -(-np.count_nonzero(weight[some[0]]) // target.lanes)):
            kept = np.flatnonzero(weight[some[0]])
            begin, count = len(chunks), -(-len(kept) // target.lanes)
            filled = np.full(count * target.lanes, len(places))
            values = np.zeros((size, count * target.lanes), np.float32)
            filled[: len(kept)] = number[some[0] // (len(weight) // len(columns)), kept]
            values[:, : len(kept)] = weight[some][:, kept]
            chunks += list(filled.reshape(count, target.lanes))
            weights += list(values.reshape(size, count, target.lanes).swapaxes(0, 1))
            groups.append([begin, begin + count, *words[some].reshape(-1).tolist()])
        table = np.stack(chunks).astype(np.int32 if wide else np.uint16)
        args = (np.array(groups, np.int32), len(groups), scratch, table, np.concatenate(weights))
        found.append(Op(Dots(size, wide, residual is not None, act), args))
    return found


def _split_row_sets(kinds: dict[int, list[list[Array]]]) -> dict[int, list[Array]]:
    """Split rows with equal columns into sets of at most `_MOST_ROWS`, and return the sets by number of rows."""
    found: dict[int, list[Array]] = {}
    for groups in kinds.values():
        for rows in (rows for sets in groups for rows in sets):
            for part in np.array_split(rows, -(-len(rows) // _MOST_ROWS)):
                found.setdefault(len(part), []).append(part)
    return found
