"""Loads and stores of float32 or bfloat16 memory as float32 vectors.

Registers hold float32, except for the pairs of bfloat16 that ``vdpbf16ps`` multiplies. ``item`` is the size of a number
in memory: `FLOAT` or `HALF` bytes.
"""

from __future__ import annotations

from ticketry_engine.kernels.bfloat import (
    BFLOAT,
    FLOAT,
    HALF,
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
from ticketry_engine.kernels.emitter import I16, Emitter
from ticketry_engine.kernels.jit import ir

__all__ = [
    "BFLOAT",
    "load",
    "load_first",
    "load_one",
    "load_pairs",
    "load_vector",
    "multiply_pairs",
    "rounded",
    "splat_pair",
    "store",
    "store_first",
    "store_vector",
]


def load_first(e: Emitter, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> ir.Value:
    """Load the first ``count`` numbers, zeros in the other lanes; no other memory is read."""
    if item == FLOAT:
        return lane.load_first(e, pointer, count)
    return widened(e, lane.load_first(e, pointer, count, HALF, I16))


def store_first(e: Emitter, vector: ir.Value, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> None:
    """Store the first ``count`` lanes; no other memory is written."""
    if item == FLOAT:
        lane.store_first(e, vector, pointer, count)
    else:
        lane.store_first(e, narrowed(e, vector), pointer, count, HALF)


def load_vector(e: Emitter, pointer: ir.Value, count: int, item: int = FLOAT) -> ir.Value:
    """Load ``count`` numbers, a constant of the kernel, with zeros in the other lanes."""
    return load(e, pointer, 0, item) if count == e.target.lanes else load_first(e, pointer, count, item)


def store_vector(e: Emitter, vector: ir.Value, pointer: ir.Value, count: int, item: int = FLOAT) -> None:
    """Store the first ``count`` lanes, a constant of the kernel."""
    if count == e.target.lanes:
        store(e, vector, pointer, 0, item)
    else:
        store_first(e, vector, pointer, count, item)
