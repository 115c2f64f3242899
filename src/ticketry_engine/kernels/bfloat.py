"""Load, store and multiply values stored as float32 or bfloat16.

Registers hold float32, except for the pairs of bfloat16 that the instruction ``vdpbf16ps`` multiplies:

    sum[lane] += a[2 * lane] * x[2 * lane] + a[2 * lane + 1] * x[2 * lane + 1]

The argument ``item`` is the size of a value in memory: `FLOAT` bytes for float32 or `HALF` bytes for bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ticketry_engine.kernels.emitter import F32, I8, I16, I32, Emitter, splat_constant
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.window import Array

FLOAT = 4
"""Bytes of a float32."""

HALF = 2
"""Bytes of a bfloat16."""


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat type, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOAT = _BFloat()


def round_to_bfloat16(values: Array) -> Array:
    """Return the bits of the bfloat16 nearest to each float32 (ties to even), as uint16 of the same shape."""
    import torch

    nearest = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(torch.bfloat16)
    bits: Array = nearest.view(torch.int16).numpy().view(np.uint16)
    return bits


def load(e: Emitter, pointer: ir.Value, byte: ir.Value | int = 0, item: int = FLOAT) -> ir.Value:
    """Load a vector of float32 or bfloat16 values of `item` bytes, and return the vector as float32."""
    if item == FLOAT:
        return e.load(pointer, byte)
    return widen(e, e.b.load(e.offset_pointer(pointer, byte), typ=half_vector_type(e), align=HALF))


def store(e: Emitter, vector: ir.Value, pointer: ir.Value, byte: ir.Value | int = 0, item: int = FLOAT) -> None:
    """Store a float32 vector; if `item` (bytes of a stored value) is 2, round the vector to bfloat16."""
    if item == FLOAT:
        e.store(vector, pointer, byte)
    else:
        e.b.store(narrow(e, vector), e.offset_pointer(pointer, byte), align=HALF)


def load_scalar(e: Emitter, pointer: ir.Value, item: int = FLOAT) -> ir.Value:
    """Load one float32 or bfloat16 value of `item` bytes, and return the value as float32."""
    if item == FLOAT:
        return e.load_f32(pointer)
    half = e.b.zext(e.b.load(pointer, typ=I16, align=HALF), I32)
    return e.b.bitcast(e.b.shl(half, ir.Constant(I32, 16)), F32)


def store_scalar(e: Emitter, value: ir.Value, pointer: ir.Value, item: int = FLOAT) -> None:
    """Store one float32 value; if `item` (bytes of a stored value) is 2, round the value to bfloat16."""
    if item == FLOAT:
        e.b.store(value, pointer, align=FLOAT)
    else:
        e.b.store(e.b.bitcast(e.b.fptrunc(value, BFLOAT), I16), pointer, align=HALF)


def half_vector_type(e: Emitter) -> ir.VectorType:
    """Return the type of a vector of bfloat16 bits that has as many lanes as a float32 vector."""
    return ir.VectorType(I16, e.target.lanes)


def widen(e: Emitter, values: ir.Value) -> ir.Value:
    """Convert a vector of bfloat16 bits (of `half_vector_type`) to a float32 vector."""
    words = ir.VectorType(I32, e.target.lanes)
    return e.b.bitcast(e.b.shl(e.b.zext(values, words), splat_constant(words, 16)), e.vector)


def narrow(e: Emitter, vector: ir.Value) -> ir.Value:
    """Round a float32 vector to bfloat16 (ties to even), and return its bits as `half_vector_type`."""
    return e.b.bitcast(e.b.fptrunc(vector, ir.VectorType(BFLOAT, e.target.lanes)), half_vector_type(e))


def pair_vector_type(e: Emitter) -> ir.VectorType:
    """Return the type of a vector that has the size of a float32 vector and holds two bfloat16 per lane."""
    return ir.VectorType(BFLOAT, 2 * e.target.lanes)


def splat_pair(e: Emitter, pointer: ir.Value, byte: ir.Value | int) -> ir.Value:
    """Load two consecutive bfloat16 and return a vector with this pair in every lane."""
    word = e.b.load(e.offset_pointer(pointer, byte), typ=I32, align=HALF)
    return e.b.bitcast(e.splat(word), pair_vector_type(e))


def multiply_pairs(e: Emitter, a: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """Return ``a[0] * x[0] + a[1] * x[1] + y`` in each lane; a and x are bfloat16 pairs, y and the result float32."""
    return e.call(f"llvm.x86.avx512bf16.dpbf16ps.{32 * e.target.lanes}", e.vector, [y, a, x])


def load_pairs(e: Emitter, pointer: ir.Value, byte: ir.Value | int, align: int = HALF) -> ir.Value:
    """Load consecutive bfloat16 values as a vector of pairs, of the type `pair_vector_type`."""
    return e.b.load(e.offset_pointer(pointer, byte), typ=pair_vector_type(e), align=align)


def interleave_pairs(e: Emitter, one: ir.Value, other: ir.Value) -> list[ir.Value]:
    """Return the pairs (one[i], other[i]) of two bfloat16 vectors, as two vectors of pairs.

    For each 128-bit piece of the two vectors, the first result holds the pairs from the first half of the piece, and
    the second result the pairs from the second half. In this order, each result takes one instruction.
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
        found.append(e.b.bitcast(mixed, pair_vector_type(e)))
    return found


def split_to_float32(e: Emitter, values: ir.Value) -> list[ir.Value]:
    """Convert a vector of 2n bfloat16 values to two vectors of n float32 values, in the order of `interleave_pairs`."""
    nothing = splat_constant(ir.VectorType(I16, 2 * e.target.lanes), 0)
    return [e.b.bitcast(one, e.vector) for one in interleave_pairs(e, nothing, values)]


def store_rounded(e: Emitter, vectors: Sequence[ir.Value], pointer: ir.Value, byte: ir.Value | int) -> None:
    """Round two float32 vectors to bfloat16 and store them as one vector; this inverts `split_to_float32`."""
    lanes = e.target.lanes
    first, second = vectors
    both = e.call(f"llvm.x86.avx512bf16.cvtne2ps2bf16.{32 * lanes}", pair_vector_type(e), [second, first])
    words = e.b.bitcast(both, ir.VectorType(I16, 2 * lanes))
    order = [start + k for piece in range(0, lanes, 4) for start in (0, lanes) for k in range(piece, piece + 4)]
    mixed = e.b.shuffle_vector(words, words, ir.Constant(ir.VectorType(I32, 2 * lanes), order))
    e.b.store(mixed, e.offset_pointer(pointer, byte), align=HALF)


# -- tiles (Intel's AMX) ----------------------------------------------------------------------------------------------

#     sums [16, 16] float32  +=  left [16, 32] bfloat16  @  right [32, 16] bfloat16
#
# A tile has up to 16 rows of 64 bytes, in separate registers. The right matrix is stored in pairs: its row ``k`` holds
# elements ``2k`` and ``2k + 1`` of each column side by side. `multiply_tiles` is 16 times as fast as AVX-512
# instructions. A kernel configures the tiles when it begins and releases them when it ends.

TILE_ROWS = 16
"""Greatest number of rows of a tile."""

TILE_ROW_BYTES = 64

TILE_BYTES = TILE_ROWS * TILE_ROW_BYTES

TILE_DEPTH = 32
"""Number of bfloat16 values in a row of a tile, and of products that one `multiply_tiles` adds to each sum."""


def build_configuration(tiles: Sequence[tuple[int, int]]) -> Array:
    """Return the table for `configure_tiles`; `tiles` holds (rows, bytes per row) of each AMX tile register."""
    table = np.zeros(64, dtype=np.uint8)
    table[0] = 1
    for number, (rows, size) in enumerate(tiles):
        table[16 + 2 * number], table[48 + number] = size, rows
    return table


def configure_tiles(e: Emitter, table: Any) -> None:
    """Emit the instruction that sets the shapes of the AMX tile registers from a table of `build_configuration`."""
    e.call("llvm.x86.ldtilecfg", ir.VoidType(), [table])


def release_tiles(e: Emitter) -> None:
    """Emit the instruction that frees the AMX tile registers."""
    e.call("llvm.x86.tilerelease", ir.VoidType(), [])


def zero_tile(e: Emitter, tile: int) -> None:
    e.call("llvm.x86.tilezero", ir.VoidType(), [_tile_number(tile)])


def load_tile(e: Emitter, tile: int, pointer: Any, stride: int = TILE_ROW_BYTES) -> None:
    """Emit a load of AMX tile register number `tile` from memory, where rows are `stride` bytes apart."""
    e.call("llvm.x86.tileloadd64", ir.VoidType(), [_tile_number(tile), pointer, e.i64(stride)])


def store_tile(e: Emitter, tile: int, pointer: Any) -> None:
    e.call("llvm.x86.tilestored64", ir.VoidType(), [_tile_number(tile), pointer, e.i64(TILE_ROW_BYTES)])


def multiply_tiles(e: Emitter, sums: int, left: int, right: int) -> None:
    """Emit ``sums += left @ right`` for three AMX tile registers; bfloat16 products are summed in float32."""
    e.call("llvm.x86.tdpbf16ps", ir.VoidType(), [_tile_number(sums), _tile_number(left), _tile_number(right)])


def _tile_number(tile: int) -> Any:
    return ir.Constant(I8, tile)
