"""Vectors of which only some lanes are meant, or whose lanes lie apart in memory."""

from __future__ import annotations

from ticketry_engine.kernels.emitter import F32, I1, I32, I64, PTR, Emitter
from ticketry_engine.kernels.llvm import ir


def first_lanes(e: Emitter, count: ir.Value | int) -> ir.Value:
    """A mask of the first ``count`` lanes."""
    lanes = e.target.lanes
    if isinstance(count, int):
        return ir.Constant(ir.VectorType(I1, lanes), [int(lane < count) for lane in range(lanes)])
    everywhere = e.splat(e.b.trunc(count, I32))
    return e.b.icmp_signed("<", ir.Constant(everywhere.type, list(range(lanes))), everywhere)


def load_first(e: Emitter, pointer: ir.Value, count: ir.Value | int, align: int = 4, kind: ir.Type = F32) -> ir.Value:
    """The first ``count`` values from memory, zeros behind; nothing else is read."""
    vector = ir.VectorType(kind, e.target.lanes)
    given = [pointer, ir.Constant(I32, align), first_lanes(e, count), ir.Constant(vector, None)]
    return e.call(f"llvm.masked.load.{_suffix(vector)}.p0", vector, given)


def store_first(e: Emitter, value: ir.Value, pointer: ir.Value, count: ir.Value | int, align: int = 4) -> None:
    """Write the first ``count`` values; nothing else is written."""
    given = [value, pointer, ir.Constant(I32, align), first_lanes(e, count)]
    e.call(f"llvm.masked.store.{_suffix(value.type)}.p0", ir.VoidType(), given)


def addresses(e: Emitter, base: ir.Value, offsets: ir.Value) -> ir.Value:
    """Pointers ``base + offsets[lane]`` (int64, bytes)."""
    everywhere = e.splat(e.b.ptrtoint(base, I64))
    return e.b.inttoptr(e.b.add(everywhere, offsets), ir.VectorType(PTR, e.target.lanes))


def gather(e: Emitter, pointers: ir.Value, mask: ir.Value) -> ir.Value:
    """The values at pointers (zeros where the mask has none)."""
    name = f"llvm.masked.gather.{_suffix(e.vector)}.v{e.target.lanes}p0"
    return e.call(name, e.vector, [pointers, ir.Constant(I32, 4), mask, e.splat(0.0)])


def scatter(e: Emitter, value: ir.Value, pointers: ir.Value, mask: ir.Value) -> None:
    """Write values to pointers, lane by lane."""
    name = f"llvm.masked.scatter.{_suffix(e.vector)}.v{e.target.lanes}p0"
    e.call(name, ir.VoidType(), [value, pointers, ir.Constant(I32, 4), mask])


def total(e: Emitter, vector: ir.Value) -> ir.Value:
    """The sum of the lanes, pairwise."""
    return _reduced(e, vector, e.b.fadd)


def largest(e: Emitter, vector: ir.Value) -> ir.Value:
    """The largest of the lanes."""
    return _reduced(e, vector, lambda a, b: e.intrinsic("llvm.maxnum", a, b))


def _reduced(e: Emitter, vector: ir.Value, combine: object) -> ir.Value:
    lanes = e.target.lanes
    while lanes > 1:
        lanes //= 2
        order = [(lane + lanes) % e.target.lanes for lane in range(e.target.lanes)]
        turned = _shuffled(e, vector, ir.Constant(vector.type, ir.Undefined), order)
        vector = combine(vector, turned)  # type: ignore[operator]
    return e.b.extract_element(vector, ir.Constant(I32, 0))


def transposed(e: Emitter, rows: list[ir.Value]) -> list[ir.Value]:
    """As many vectors as a vector has lanes, with lanes and vectors exchanged."""
    lanes = e.target.lanes
    half = 1
    while half < lanes:
        # Exchange blocks of `half` lanes between vectors `half` apart.
        low = [lane if not lane & half else lanes + lane - half for lane in range(lanes)]
        high = [lane + half if not lane & half else lanes + lane for lane in range(lanes)]
        done = list(rows)
        for index in range(lanes):
            if not index & half:
                done[index] = _shuffled(e, rows[index], rows[index + half], low)
                done[index + half] = _shuffled(e, rows[index], rows[index + half], high)
        rows, half = done, half * 2
    return rows


def _shuffled(e: Emitter, a: ir.Value, b: ir.Value, order: list[int]) -> ir.Value:
    return e.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def _suffix(vector: ir.VectorType) -> str:
    """The type in the name of an intrinsic."""
    return f"v{vector.count}{'f32' if vector.element == F32 else vector.element}"
