"""Values in memory as float32 or as bfloat16. In registers they are float32, but for the pairs that are multiplied.

``item`` is the size of a value in memory: `FLOAT` or `HALF` bytes.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from ticketry.engine.cpu.emitter import F32, I16, I32, Emitter, same
from ticketry.engine.cpu.pixels import lanes as lane
from ticketry.engine.cpu.pixels.geometry import FLOAT, HALF
from ticketry.engine.cpu.window import Array


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOAT = _BFloat()


def rounded(values: Array) -> Array:
    """float32 as the bits of the nearest bfloat16 (ties to even): uint16 of the same shape."""
    import torch

    nearest = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(torch.bfloat16)
    bits: Array = nearest.view(torch.int16).numpy().view(np.uint16)
    return bits


def load(e: Emitter, pointer: ir.Value, byte: ir.Value | int = 0, item: int = FLOAT) -> ir.Value:
    """A vector."""
    if item == FLOAT:
        return e.load(pointer, byte)
    return _widened(e, e.b.load(e.at(pointer, byte), typ=_halves(e), align=HALF))


def store(e: Emitter, vector: ir.Value, pointer: ir.Value, byte: ir.Value | int = 0, item: int = FLOAT) -> None:
    """Write a vector."""
    if item == FLOAT:
        e.store(vector, pointer, byte)
    else:
        e.b.store(_narrowed(e, vector), e.at(pointer, byte), align=HALF)


def load_first(e: Emitter, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> ir.Value:
    """The first ``count`` values, zeros behind; nothing else is read."""
    if item == FLOAT:
        return lane.load_first(e, pointer, count)
    return _widened(e, lane.load_first(e, pointer, count, HALF, I16))


def store_first(e: Emitter, vector: ir.Value, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> None:
    """Write the first ``count`` values; nothing else is written."""
    if item == FLOAT:
        lane.store_first(e, vector, pointer, count)
    else:
        lane.store_first(e, _narrowed(e, vector), pointer, count, HALF)


def get(e: Emitter, pointer: ir.Value, count: int, item: int = FLOAT) -> ir.Value:
    """The first ``count`` values, known as the kernel is written, with zeros behind."""
    return load(e, pointer, 0, item) if count == e.target.lanes else load_first(e, pointer, count, item)


def put(e: Emitter, vector: ir.Value, pointer: ir.Value, count: int, item: int = FLOAT) -> None:
    """Write the first ``count`` values, as of `get`."""
    if count == e.target.lanes:
        store(e, vector, pointer, 0, item)
    else:
        store_first(e, vector, pointer, count, item)


def load_one(e: Emitter, pointer: ir.Value, item: int = FLOAT) -> ir.Value:
    """One value."""
    if item == FLOAT:
        return e.load_f32(pointer)
    half = e.b.zext(e.b.load(pointer, typ=I16, align=HALF), I32)
    return e.b.bitcast(e.b.shl(half, ir.Constant(I32, 16)), F32)


def load_pairs(e: Emitter, pointer: ir.Value, byte: ir.Value | int) -> ir.Value:
    """A vector of pairs of bfloat16, as they are; it begins at a multiple of its size."""
    return e.b.load(e.at(pointer, byte), typ=_pairs(e), align=e.target.lanes * FLOAT)


def splat_pair(e: Emitter, pointer: ir.Value, byte: ir.Value | int) -> ir.Value:
    """Two neighbouring bfloat16 in memory, in every lane."""
    word = e.b.load(e.at(pointer, byte), typ=I32, align=HALF)
    return e.b.bitcast(e.splat(word), _pairs(e))


def multiply_pairs(e: Emitter, a: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """``a[0] * x[0] + a[1] * x[1] + y`` in each lane: pairs of bfloat16, a sum in float32.

    Each product is added with a rounding of its own; denormal numbers count as zero.
    """
    return e.call(f"llvm.x86.avx512bf16.dpbf16ps.{32 * e.target.lanes}", e.vector, [y, a, x])


def _widened(e: Emitter, halves: ir.Value) -> ir.Value:
    words = ir.VectorType(I32, e.target.lanes)
    return e.b.bitcast(e.b.shl(e.b.zext(halves, words), same(words, 16)), e.vector)


def _narrowed(e: Emitter, vector: ir.Value) -> ir.Value:
    """To the nearest bfloat16, ties to even."""
    return e.b.bitcast(e.b.fptrunc(vector, ir.VectorType(BFLOAT, e.target.lanes)), _halves(e))


def _halves(e: Emitter) -> ir.VectorType:
    return ir.VectorType(I16, e.target.lanes)


def _pairs(e: Emitter) -> ir.VectorType:
    return ir.VectorType(BFLOAT, 2 * e.target.lanes)
