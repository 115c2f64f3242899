"""Instructions of Intel's AMX: matrix tiles in dedicated registers, and their product.

    sums [16, 16] float32  +=  left [16, 32] bfloat16  @  right [32, 16] bfloat16

A tile has up to 16 rows of 64 bytes. The right matrix is stored in pairs: its row ``k`` holds elements ``2k`` and
``2k + 1`` of each column side by side. One `multiply` takes as long as AVX-512 needs for a sixteenth of it. A kernel
configures the tiles when it begins and releases them when it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ticketry_engine.kernels.emitter import I8, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.window import Array

ROWS = 16
"""Rows of a tile."""

ROW_BYTES = 64

TILE_BYTES = ROWS * ROW_BYTES

DEPTH = 32
"""bfloat16 values per row of a tile: the terms that one product adds to each sum."""


def configuration(tiles: Sequence[tuple[int, int]]) -> Array:
    """Return the configuration table for `configure`, from the (rows, bytes per row) of each tile."""
    table = np.zeros(64, dtype=np.uint8)
    table[0] = 1
    for number, (rows, size) in enumerate(tiles):
        table[16 + 2 * number], table[48 + number] = size, rows
    return table


def configure(e: Emitter, table: Any) -> None:
    """Configure the tiles before use."""
    e.call("llvm.x86.ldtilecfg", ir.VoidType(), [table])


def release(e: Emitter) -> None:
    """Release the tiles."""
    e.call("llvm.x86.tilerelease", ir.VoidType(), [])


def zero(e: Emitter, tile: int) -> None:
    e.call("llvm.x86.tilezero", ir.VoidType(), [_number(tile)])


def load(e: Emitter, tile: int, pointer: Any, stride: int = ROW_BYTES) -> None:
    """Load a tile whose rows are `stride` bytes apart."""
    e.call("llvm.x86.tileloadd64", ir.VoidType(), [_number(tile), pointer, e.i64(stride)])


def store(e: Emitter, tile: int, pointer: Any) -> None:
    e.call("llvm.x86.tilestored64", ir.VoidType(), [_number(tile), pointer, e.i64(ROW_BYTES)])


def multiply(e: Emitter, sums: int, left: int, right: int) -> None:
    """Write ``sums += left @ right``: bfloat16 pairs, float32 sums; denormal numbers count as zero."""
    e.call("llvm.x86.tdpbf16ps", ir.VoidType(), [_number(sums), _number(left), _number(right)])


def _number(tile: int) -> Any:
    return ir.Constant(I8, tile)


def least(e: Emitter, one: Any, other: Any) -> Any:
    """Return the smaller of two integers."""
    return e.select(e.b.icmp_signed("<", one, other), one, other)
