"""Tiles of matrices in registers of their own, and their products (Intel's AMX): what kernels write of it.

A tile has up to 16 rows of 64 bytes. ``multiply`` adds to 16 x 16 sums in float32 the product of 16 rows of 32 bfloat16
with 16 columns of as many, in the time that AVX-512 takes for a sixteenth of it. The right matrix lies as pairs: its
row ``k`` has the numbers ``2k`` and ``2k + 1`` of each column side by side.

Each kernel configures the tiles when it begins, and gives them back when it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ticketry_engine.kernels.emitter import I8, Emitter
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.window import Array

ROWS = 16
"""Of a tile."""

ROW_BYTES = 64

TILE_BYTES = ROWS * ROW_BYTES

DEPTH = 32
"""bfloat16 in a row of a tile: the terms that one product adds to a sum."""


def configuration(tiles: Sequence[tuple[int, int]]) -> Array:
    """The table that `configure` is given: rows of each tile, and bytes of a row."""
    table = np.zeros(64, dtype=np.uint8)
    table[0] = 1
    for number, (rows, size) in enumerate(tiles):
        table[16 + 2 * number], table[48 + number] = size, rows
    return table


def configure(e: Emitter, table: Any) -> None:
    """Begin to use tiles."""
    e.call("llvm.x86.ldtilecfg", ir.VoidType(), [table])


def release(e: Emitter) -> None:
    """Use them no longer."""
    e.call("llvm.x86.tilerelease", ir.VoidType(), [])


def zero(e: Emitter, tile: int) -> None:
    e.call("llvm.x86.tilezero", ir.VoidType(), [_number(tile)])


def load(e: Emitter, tile: int, pointer: Any, stride: int = ROW_BYTES) -> None:
    """Rows of a tile that lie so many bytes apart."""
    e.call("llvm.x86.tileloadd64", ir.VoidType(), [_number(tile), pointer, e.i64(stride)])


def store(e: Emitter, tile: int, pointer: Any) -> None:
    e.call("llvm.x86.tilestored64", ir.VoidType(), [_number(tile), pointer, e.i64(ROW_BYTES)])


def multiply(e: Emitter, sums: int, left: int, right: int) -> None:
    """``sums += left @ right``: bfloat16 in pairs, sums in float32; denormal numbers count as zero."""
    e.call("llvm.x86.tdpbf16ps", ir.VoidType(), [_number(sums), _number(left), _number(right)])


def _number(tile: int) -> Any:
    return ir.Constant(I8, tile)


def least(e: Emitter, one: Any, other: Any) -> Any:
    """The smaller of two integers."""
    return e.select(e.b.icmp_signed("<", one, other), one, other)
