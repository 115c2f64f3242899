"""Lane operations of planar kernels: masks, partial vectors, transposes, repeated images.

images < lanes:   a vector holds several positions      [p0 i0, p0 i1, p1 i0, p1 i1, ...]
images >= lanes:  a position takes several vectors
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ticketry_engine.kernels.emitter import F32, I1, I8, I16, I32, Emitter
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.planar.geometry import FLOAT, Geometry
from ticketry_engine.kernels.target import Target

MOST = 16
"""Maximum number of lanes of any target."""


def vector(lanes: int) -> ir.VectorType:
    """Return the type of a vector of float32."""
    return ir.VectorType(F32, lanes)


def shuffle(e: Emitter, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """Return the selected lanes of two vectors; indices of ``b`` follow those of ``a``."""
    return e.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def splat(e: Emitter, scalar: ir.Value, lanes: int) -> ir.Value:
    """Return a vector of `lanes` lanes that all hold `scalar`."""
    one = e.b.insert_element(ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined), scalar, ir.Constant(I32, 0))
    return shuffle(e, one, one, [0] * lanes)


def first_lanes_mask(e: Emitter, count: ir.Value) -> ir.Value:
    """Return the mask of the first ``count`` lanes (empty if negative)."""
    lanes = e.target.lanes
    most = e.i64(lanes)
    few = e.b.trunc(e.select(e.b.icmp_signed("<", count, most), count, most), I32)
    return e.b.icmp_signed("<", ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))), splat(e, few, lanes))


def from_bits(e: Emitter, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
    """Load a mask stored as one bit per lane, in `mask_type`."""
    lanes = e.target.lanes
    bits = e.b.load(e.at(pointer, byte), typ=I16 if lanes == 16 else I8, align=1)
    if lanes < 8:
        bits = e.b.trunc(bits, ir.IntType(lanes))
    return e.b.bitcast(bits, ir.VectorType(I1, lanes))


def mask_type(target: Target) -> np.dtype[Any]:
    """Return the element type of a mask table, one element per vector."""
    return np.dtype(np.uint16 if target.lanes == 16 else np.uint8)


def constant_mask(e: Emitter, count: int) -> ir.Value | None:
    """Return the constant mask of the first ``count`` lanes; None if that is all of them."""
    lanes = e.target.lanes
    return None if count >= lanes else ir.Constant(ir.VectorType(I1, lanes), [lane < count for lane in range(lanes)])


def load(
    e: Emitter,
    pointer: ir.Value,
    byte: ir.Value | int = 0,
    mask: ir.Value | None = None,
    otherwise: ir.Value | None = None,
) -> ir.Value:
    """Load a vector. Lanes outside the mask are not read and become zero, or those of ``otherwise``."""
    if mask is None:
        return e.load(pointer, byte)
    given = [e.at(pointer, byte), ir.Constant(I32, FLOAT), mask, otherwise or ir.Constant(e.vector, None)]
    return e.call(f"llvm.masked.load.v{e.target.lanes}f32.p0", e.vector, given)


def store(
    e: Emitter, value: ir.Value, pointer: ir.Value, byte: ir.Value | int = 0, mask: ir.Value | None = None
) -> None:
    """Store the lanes of a vector that are in the mask."""
    if mask is None:
        e.store(value, pointer, byte)
        return
    given = [value, e.at(pointer, byte), ir.Constant(I32, FLOAT), mask]
    e.call(f"llvm.masked.store.v{e.target.lanes}f32.p0", ir.VoidType(), given)


def store_first(e: Emitter, value: ir.Value, pointer: ir.Value, byte: int, count: int) -> None:
    """Store the first ``count`` lanes, a constant; in power-of-two pieces where masked stores are slow."""
    if e.target.masks or count >= e.target.lanes:
        store(e, value, pointer, byte, constant_mask(e, count))
        return
    done = 0
    while done < count:
        size = 1 << ((count - done).bit_length() - 1)
        piece = shuffle(e, value, value, range(done, done + size))
        e.store(piece, pointer, byte + done * FLOAT)
        done += size


def clear_lanes(e: Emitter, value: ir.Value, mask: ir.Value) -> ir.Value:
    """Zero the lanes whose entry in a mask in memory (int32, 0 or -1 per lane) is 0."""
    whole = ir.VectorType(I32, e.target.lanes)
    kept = e.b.and_(e.b.bitcast(value, whole), e.b.load(mask, typ=whole, align=4))
    return e.b.bitcast(kept, e.vector)


def interleave(e: Emitter, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """Return lane 0 of each row, then lane 1 of each, and so on, as many vectors as rows (a power of two).

    With as many rows as lanes this is a transpose.
    """
    if len(rows) == 1:
        return list(rows)
    lanes, found = rows[0].type.count, []
    for a, b in zip(interleave(e, rows[::2]), interleave(e, rows[1::2]), strict=True):
        for start in (0, lanes // 2):
            found.append(shuffle(e, a, b, [k for i in range(start, start + lanes // 2) for k in (i, lanes + i)]))
    return found


def deinterleave(e: Emitter, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """Invert `interleave`."""
    if len(vectors) == 1:
        return list(vectors)
    lanes, halves = vectors[0].type.count, []
    for odd in (0, 1):
        picked = [shuffle(e, a, b, range(odd, 2 * lanes, 2)) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        halves.append(deinterleave(e, picked))
    return [row for pair in zip(*halves, strict=True) for row in pair]


def load_repeated(e: Emitter, pointer: ir.Value, images: int, byte: ir.Value | int = 0) -> ir.Value:
    """Load the values of ``images`` images, repeated to fill a vector (the first lanes, if there are more images)."""
    lanes = e.target.lanes
    if images >= lanes:
        return e.load(pointer, byte)
    if images == 1:
        return e.splat(e.load_f32(pointer, byte))
    few = e.b.load(e.at(pointer, byte), typ=vector(images), align=FLOAT)
    return shuffle(e, few, few, [lane % images for lane in range(lanes)])


def sum_positions(e: Emitter, value: ir.Value, images: int) -> ir.Value:
    """Sum the positions of a vector; the result has ``images`` lanes."""
    count = value.type.count
    while count > images:
        count //= 2
        low, high = (shuffle(e, value, value, range(start, start + count)) for start in (0, count))
        value = e.b.fadd(low, high)
    return value


def pick_positions(e: Emitter, vectors: Sequence[ir.Value], images: int, phase: int = 0) -> ir.Value:
    """Pick one of every ``len(vectors)`` positions of neighbouring vectors, from ``phase`` on, as one vector."""
    width = e.target.lanes
    position, lane = np.divmod(np.arange(width), images)
    wanted = [int(place) for place in (position * len(vectors) + phase) * images + lane]
    found = vectors[0]
    for part in range(1, len(vectors)):
        # Lanes from earlier vectors are already in place.
        taken = [place % width + width if place // width == part else k for k, place in enumerate(wanted)]
        if part == 1:
            taken = [place if place < 2 * width else 0 for place in wanted]
        found = shuffle(e, found, vectors[part], taken)
    return found


def runs(geometries: Sequence[Geometry], halos: bool = False) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Return how the pixels of values of equal size form runs of consecutive floats.

    Args:
        geometries: of one height, width and number of images.
        halos: whether the halo between pixels may be processed too, which makes longer runs if all rows have one
        length.

    Returns:
        The number of runs, the floats of each, and for each geometry the byte of the first run and the bytes between
        two.
    """
    first = geometries[0]
    places = tuple((g.position(0, 0) * g.step, g.row * g.step) for g in geometries)
    if len({g.row for g in geometries}) == 1 and (halos or first.row == first.width or first.height == 1):
        return 1, ((first.height - 1) * first.row + first.width) * first.images, places
    return first.height, first.width * first.images, places
