"""Where columns of a layer begin, as tables tell it."""

from __future__ import annotations

from typing import Any

from ticketry.engine.cpu.emitter import I16, I32, I64, Emitter


def column(e: Emitter, table: Any, index: Any, further: int, unit: int, *, wide: bool) -> Any:
    """The byte where the column so many behind that of an index begins.

    Args:
        unit: bytes that columns are counted in.
        wide: whether they take 32 bits (signed) instead of 16.
    """
    kind, widen, size = (I32, e.b.sext, 4) if wide else (I16, e.b.zext, 2)
    at = e.at(table, e.b.add(e.b.mul(index, e.i64(size)), e.i64(further * size)))
    return e.b.mul(widen(e.b.load(at, typ=kind, align=size), I64), e.i64(unit))
