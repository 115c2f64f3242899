"""Values in memory as float32 or as bfloat16. In registers they are float32, but for the pairs that are multiplied.

``item`` is the size of a value in memory: `FLOAT` or `HALF` bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from ticketry.engine.cpu.emit import F32, I16, I32, Emitter
from ticketry.engine.cpu.pixels import lanes as lane
from ticketry.engine.cpu.pixels.geometry import FLOAT, HALF

Array = np.ndarray[Any, Any]


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
        lane.store_first(e, _narrowed(e, vector), pointer, count, HALF, I16)


def load_one(e: Emitter, pointer: ir.Value, item: int = FLOAT) -> ir.Value:
    """One value."""
    if item == FLOAT:
        return e.load_f32(pointer)
    half = e.b.zext(e.b.load(pointer, typ=I16, align=HALF), I32)
    return e.b.bitcast(e.b.shl(half, ir.Constant(I32, 16)), F32)


def gather(e: Emitter, pointers: ir.Value, mask: ir.Value | None = None, item: int = FLOAT) -> ir.Value:
    """The values at pointers, zeros where the mask has none. Of bfloat16, two bytes behind each are read as well."""
    if item == FLOAT:
        return lane.gather(e, pointers, mask)
    words = ir.VectorType(I32, e.target.lanes)
    found = e.b.bitcast(lane.gather(e, pointers, mask), words)
    return e.b.bitcast(e.b.shl(found, _sixteen(words)), e.vector)


def scatter(e: Emitter, vector: ir.Value, pointers: ir.Value, mask: ir.Value | None = None, item: int = FLOAT) -> None:
    """Write values to pointers, lane by lane."""
    if item == FLOAT:
        lane.scatter(e, vector, pointers, mask)
    else:
        lane.scatter(e, _narrowed(e, vector), pointers, mask, HALF, I16)


def load_pairs(e: Emitter, pointer: ir.Value, byte: ir.Value | int) -> ir.Value:
    """A vector of pairs of bfloat16, as they are; it begins at a multiple of its size."""
    return e.b.load(e.at(pointer, byte), typ=_pairs(e), align=e.target.lanes * FLOAT)


def splat_pair(e: Emitter, pointer: ir.Value, byte: ir.Value | int) -> ir.Value:
    """Two neighbouring bfloat16 in memory, in every lane."""
    word = e.b.load(e.at(pointer, byte), typ=I32, align=HALF)
    words = ir.VectorType(I32, e.target.lanes)
    one = e.b.insert_element(ir.Constant(words, ir.Undefined), word, ir.Constant(I32, 0))
    every = e.b.shuffle_vector(one, ir.Constant(words, ir.Undefined), ir.Constant(words, [0] * e.target.lanes))
    return e.b.bitcast(every, _pairs(e))


def multiply_pairs(e: Emitter, a: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """``a[0] * x[0] + a[1] * x[1] + y`` in each lane: pairs of bfloat16, a sum in float32.

    Each product is added with a rounding of its own; denormal numbers count as zero.
    """
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * e.target.lanes}"
    if name not in e.module.globals:
        ir.Function(e.module, ir.FunctionType(e.vector, [e.vector, _pairs(e), _pairs(e)]), name)
    return e.b.call(e.module.globals[name], [y, a, x])


def _widened(e: Emitter, halves: ir.Value) -> ir.Value:
    words = ir.VectorType(I32, e.target.lanes)
    return e.b.bitcast(e.b.shl(e.b.zext(halves, words), _sixteen(words)), e.vector)


def _narrowed(e: Emitter, vector: ir.Value) -> ir.Value:
    """To the nearest bfloat16, ties to even."""
    return e.b.bitcast(e.b.fptrunc(vector, ir.VectorType(BFLOAT, e.target.lanes)), _halves(e))


def _sixteen(words: ir.VectorType) -> ir.Constant:
    return ir.Constant(words, [16] * words.count)


def _halves(e: Emitter) -> ir.VectorType:
    return ir.VectorType(I16, e.target.lanes)


def _pairs(e: Emitter) -> ir.VectorType:
    return ir.VectorType(BFLOAT, 2 * e.target.lanes)
