"""Values in memory as float32 or as bfloat16. In registers they are float32, but for the pairs that are multiplied.

``item`` is the size of a value in memory: `FLOAT` or `HALF` bytes.
"""

from __future__ import annotations

from ticketry_engine.kernels.bfloat import (
    BFLOAT,
    load,
    load_one,
    load_pairs,
    multiply_pairs,
    narrowed,
    rounded,
    splat_pair,
    store,
    widened,
)
from ticketry_engine.kernels.channels_last import lanes as lane
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.emitter import I16, Emitter
from ticketry_engine.kernels.llvm import ir

__all__ = [
    "BFLOAT",
    "get",
    "load",
    "load_first",
    "load_one",
    "load_pairs",
    "multiply_pairs",
    "put",
    "rounded",
    "splat_pair",
    "store",
    "store_first",
]


def load_first(e: Emitter, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> ir.Value:
    """The first ``count`` values, zeros behind; nothing else is read."""
    if item == FLOAT:
        return lane.load_first(e, pointer, count)
    return widened(e, lane.load_first(e, pointer, count, HALF, I16))


def store_first(e: Emitter, vector: ir.Value, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> None:
    """Write the first ``count`` values; nothing else is written."""
    if item == FLOAT:
        lane.store_first(e, vector, pointer, count)
    else:
        lane.store_first(e, narrowed(e, vector), pointer, count, HALF)


def get(e: Emitter, pointer: ir.Value, count: int, item: int = FLOAT) -> ir.Value:
    """The first ``count`` values, known as the kernel is written, with zeros behind."""
    return load(e, pointer, 0, item) if count == e.target.lanes else load_first(e, pointer, count, item)


def put(e: Emitter, vector: ir.Value, pointer: ir.Value, count: int, item: int = FLOAT) -> None:
    """Write the first ``count`` values, as of `get`."""
    if count == e.target.lanes:
        store(e, vector, pointer, 0, item)
    else:
        store_first(e, vector, pointer, count, item)
