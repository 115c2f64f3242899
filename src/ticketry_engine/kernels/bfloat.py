"""Values in memory as float32 or as bfloat16. In registers they are float32, but for the pairs that are multiplied.

``item`` is the size of a value in memory: `FLOAT` or `HALF` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ticketry_engine.kernels.emitter import F32, I16, I32, Emitter, same
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.window import Array

FLOAT = 4
"""Bytes of a float32."""

HALF = 2
"""Bytes of a bfloat16."""


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


# -- one vector of float32 -------------------------------------------------------------------------------------------


def load(e: Emitter, pointer: ir.Value, byte: ir.Value | int = 0, item: int = FLOAT) -> ir.Value:
    """A vector."""
    if item == FLOAT:
        return e.load(pointer, byte)
    return widened(e, e.b.load(e.at(pointer, byte), typ=halves(e), align=HALF))


def store(e: Emitter, vector: ir.Value, pointer: ir.Value, byte: ir.Value | int = 0, item: int = FLOAT) -> None:
    """Write a vector."""
    if item == FLOAT:
        e.store(vector, pointer, byte)
    else:
        e.b.store(narrowed(e, vector), e.at(pointer, byte), align=HALF)


def load_one(e: Emitter, pointer: ir.Value, item: int = FLOAT) -> ir.Value:
    """One value."""
    if item == FLOAT:
        return e.load_f32(pointer)
    half = e.b.zext(e.b.load(pointer, typ=I16, align=HALF), I32)
    return e.b.bitcast(e.b.shl(half, ir.Constant(I32, 16)), F32)


def store_one(e: Emitter, value: ir.Value, pointer: ir.Value, item: int = FLOAT) -> None:
    """Write one value."""
    if item == FLOAT:
        e.b.store(value, pointer, align=FLOAT)
    else:
        e.b.store(e.b.bitcast(e.b.fptrunc(value, BFLOAT), I16), pointer, align=HALF)


def halves(e: Emitter) -> ir.VectorType:
    """The bits of as many bfloat16 as a vector has float32."""
    return ir.VectorType(I16, e.target.lanes)


def widened(e: Emitter, values: ir.Value) -> ir.Value:
    """`halves` as float32."""
    words = ir.VectorType(I32, e.target.lanes)
    return e.b.bitcast(e.b.shl(e.b.zext(values, words), same(words, 16)), e.vector)


def narrowed(e: Emitter, vector: ir.Value) -> ir.Value:
    """To the nearest bfloat16, ties to even."""
    return e.b.bitcast(e.b.fptrunc(vector, ir.VectorType(BFLOAT, e.target.lanes)), halves(e))


# -- pairs -----------------------------------------------------------------------------------------------------------


def pairs(e: Emitter) -> ir.VectorType:
    """A pair of bfloat16 in each lane."""
    return ir.VectorType(BFLOAT, 2 * e.target.lanes)


def splat_pair(e: Emitter, pointer: ir.Value, byte: ir.Value | int) -> ir.Value:
    """Two neighbouring bfloat16 in memory, in every lane."""
    word = e.b.load(e.at(pointer, byte), typ=I32, align=HALF)
    return e.b.bitcast(e.splat(word), pairs(e))


def multiply_pairs(e: Emitter, a: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """``a[0] * x[0] + a[1] * x[1] + y`` in each lane: pairs of bfloat16, a sum in float32.

    Each product is added with a rounding of its own; denormal numbers count as zero.
    """
    return e.call(f"llvm.x86.avx512bf16.dpbf16ps.{32 * e.target.lanes}", e.vector, [y, a, x])


def load_pairs(e: Emitter, pointer: ir.Value, byte: ir.Value | int, align: int = HALF) -> ir.Value:
    """A vector of pairs of neighbours."""
    return e.b.load(e.at(pointer, byte), typ=pairs(e), align=align)


def interleaved(e: Emitter, one: ir.Value, other: ir.Value) -> list[ir.Value]:
    """Pairs of a value of each of two vectors of twice as many bfloat16 as lanes: two vectors, which `apart` orders.

    Each piece of 128 bits is interleaved by itself, which takes one instruction for each vector.
    """
    width = 2 * e.target.lanes
    words = ir.VectorType(I16, width)
    one, other = e.b.bitcast(one, words), e.b.bitcast(other, words)
    found = []
    for part in (0, 4):
        order = [
            start + k
            for piece in range(0, width, 8)
            for k in range(piece + part, piece + part + 4)
            for start in (0, width)
        ]
        mixed = e.b.shuffle_vector(one, other, ir.Constant(ir.VectorType(I32, width), order))
        found.append(e.b.bitcast(mixed, pairs(e)))
    return found


def apart(e: Emitter, values: ir.Value) -> list[ir.Value]:
    """Twice as many bfloat16 as lanes, as two vectors of float32: of each 128 bits the first half, and the second."""
    nothing = same(ir.VectorType(I16, 2 * e.target.lanes), 0)
    return [e.b.bitcast(one, e.vector) for one in interleaved(e, nothing, values)]


def store_together(e: Emitter, vectors: Sequence[ir.Value], pointer: ir.Value, byte: ir.Value | int) -> None:
    """Write what is `apart` as bfloat16, the nearest ones."""
    lanes = e.target.lanes
    first, second = vectors
    both = e.call(f"llvm.x86.avx512bf16.cvtne2ps2bf16.{32 * lanes}", pairs(e), [second, first])
    words = e.b.bitcast(both, ir.VectorType(I16, 2 * lanes))
    order = [start + k for piece in range(0, lanes, 4) for start in (0, lanes) for k in range(piece, piece + 4)]
    mixed = e.b.shuffle_vector(words, words, ir.Constant(ir.VectorType(I32, 2 * lanes), order))
    e.b.store(mixed, e.at(pointer, byte), align=HALF)
