"""Vectors of float32 in registers: masked loads and stores, gathers and scatters, sums over lanes, transposes.

A lane is one float32 of a vector register; a register has `Target.lanes` lanes (16 with AVX-512). Masked instructions
touch only the memory of the lanes that are set in the mask, so that a kernel never reads past the end of a value. The
argument ``item`` is the size of a number in memory: `FLOAT` bytes, or `HALF` bytes for bfloat16, which is converted.
"""

from __future__ import annotations

from ticketry_engine.kernels import bfloat
from ticketry_engine.kernels.bfloat import FLOAT, HALF
from ticketry_engine.kernels.emitter import F32, I1, I16, I32, I64, PTR, Emitter
from ticketry_engine.kernels.jit import ir


def load_first(e: Emitter, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> ir.Value:
    """Load `count` numbers into the first lanes of a float32 vector; the other lanes are zero and not read."""
    if item == FLOAT:
        return _load_lanes(e, pointer, count)
    return bfloat.widen(e, _load_lanes(e, pointer, count, HALF, I16))


def store_first(e: Emitter, vector: ir.Value, pointer: ir.Value, count: ir.Value | int, item: int = FLOAT) -> None:
    """Store the first `count` lanes of a float32 vector; the memory of the other lanes is not written."""
    if item == FLOAT:
        _store_lanes(e, vector, pointer, count)
    else:
        _store_lanes(e, bfloat.narrow(e, vector), pointer, count, HALF)


def load_vector(e: Emitter, pointer: ir.Value, count: int, item: int = FLOAT) -> ir.Value:
    """Load `count` numbers, known when the kernel is written, as a float32 vector; the other lanes are zero."""
    return bfloat.load(e, pointer, 0, item) if count == e.target.lanes else load_first(e, pointer, count, item)


def store_vector(e: Emitter, vector: ir.Value, pointer: ir.Value, count: int, item: int = FLOAT) -> None:
    """Store the first `count` lanes of a float32 vector, where `count` is known when the kernel is written."""
    if count == e.target.lanes:
        bfloat.store(e, vector, pointer, 0, item)
    else:
        store_first(e, vector, pointer, count, item)


def first_lanes_mask(e: Emitter, count: ir.Value | int) -> ir.Value:
    """Return a mask with the first `count` lanes set."""
    lanes = e.target.lanes
    if isinstance(count, int):
        return ir.Constant(ir.VectorType(I1, lanes), [int(lane < count) for lane in range(lanes)])
    everywhere = e.splat(e.b.trunc(count, I32))
    return e.b.icmp_signed("<", ir.Constant(everywhere.type, list(range(lanes))), everywhere)


def _load_lanes(e: Emitter, pointer: ir.Value, count: ir.Value | int, align: int = 4, kind: ir.Type = F32) -> ir.Value:
    """Load `count` values of type `kind` into the first lanes of a vector; the other lanes are zero and not read."""
    vector = ir.VectorType(kind, e.target.lanes)
    given = [pointer, ir.Constant(I32, align), first_lanes_mask(e, count), ir.Constant(vector, None)]
    return e.call(f"llvm.masked.load.{_suffix(vector)}.p0", vector, given)


def _store_lanes(e: Emitter, value: ir.Value, pointer: ir.Value, count: ir.Value | int, align: int = 4) -> None:
    """Store the first `count` lanes of `value`; the memory of the other lanes is not written."""
    given = [value, pointer, ir.Constant(I32, align), first_lanes_mask(e, count)]
    e.call(f"llvm.masked.store.{_suffix(value.type)}.p0", ir.VoidType(), given)


def lane_addresses(e: Emitter, base: ir.Value, offsets: ir.Value) -> ir.Value:
    """Return a vector of pointers, ``base + offsets[lane]`` for each lane; `offsets` is a vector of int64, in bytes."""
    everywhere = e.splat(e.b.ptrtoint(base, I64))
    return e.b.inttoptr(e.b.add(everywhere, offsets), ir.VectorType(PTR, e.target.lanes))


def gather(e: Emitter, pointers: ir.Value, mask: ir.Value) -> ir.Value:
    """Load one float32 per lane from the lane's pointer; lanes not in `mask` are zero and not read."""
    name = f"llvm.masked.gather.{_suffix(e.vector)}.v{e.target.lanes}p0"
    return e.call(name, e.vector, [pointers, ir.Constant(I32, 4), mask, e.splat(0.0)])


def scatter(e: Emitter, value: ir.Value, pointers: ir.Value, mask: ir.Value) -> None:
    """Store each lane that is set in `mask` to the lane's pointer."""
    name = f"llvm.masked.scatter.{_suffix(e.vector)}.v{e.target.lanes}p0"
    e.call(name, ir.VoidType(), [value, pointers, ir.Constant(I32, 4), mask])


def sum_lanes(e: Emitter, vector: ir.Value) -> ir.Value:
    """Return the sum of all lanes of a vector, added pairwise."""
    return _reduce(e, vector, e.b.fadd)


def max_lane(e: Emitter, vector: ir.Value) -> ir.Value:
    """Return the largest lane of a vector."""
    return _reduce(e, vector, lambda a, b: e.intrinsic("llvm.maxnum", a, b))


def _reduce(e: Emitter, vector: ir.Value, combine: object) -> ir.Value:
    """Return one number: all lanes of `vector`, combined in pairs by the function `combine` until one is left."""
    lanes = e.target.lanes
    while lanes > 1:
        lanes //= 2
        order = [(lane + lanes) % e.target.lanes for lane in range(e.target.lanes)]
        turned = _shuffle(e, vector, ir.Constant(vector.type, ir.Undefined), order)
        vector = combine(vector, turned)  # type: ignore[operator]
    return e.b.extract_element(vector, ir.Constant(I32, 0))


def transpose(e: Emitter, rows: list[ir.Value]) -> list[ir.Value]:
    """Transpose a square block: `rows` are as many vectors as a vector has lanes; the result are its columns."""
    lanes = e.target.lanes
    half = 1
    while half < lanes:
        # Exchange blocks of `half` lanes between vectors `half` apart.
        low = [lane if not lane & half else lanes + lane - half for lane in range(lanes)]
        high = [lane + half if not lane & half else lanes + lane for lane in range(lanes)]
        done = list(rows)
        for index in range(lanes):
            if not index & half:
                done[index] = _shuffle(e, rows[index], rows[index + half], low)
                done[index + half] = _shuffle(e, rows[index], rows[index + half], high)
        rows, half = done, half * 2
    return rows


def _shuffle(e: Emitter, a: ir.Value, b: ir.Value, order: list[int]) -> ir.Value:
    return e.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def _suffix(vector: ir.VectorType) -> str:
    """Return how the names of LLVM intrinsics spell a vector type, such as ``v16f32``."""
    return f"v{vector.count}{'f32' if vector.element == F32 else vector.element}"
