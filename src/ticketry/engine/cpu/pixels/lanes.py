"""Vectors of which only some lanes are meant, or whose lanes lie apart in memory."""

from __future__ import annotations

from llvmlite import ir

from ticketry.engine.cpu.emit import F32, I1, I32, I64, PTR, Emitter


def first_lanes(e: Emitter, count: ir.Value | int) -> ir.Value:
    """A mask of the first ``count`` lanes."""
    lanes = e.target.lanes
    if isinstance(count, int):
        return ir.Constant(_mask_type(e), [int(lane < count) for lane in range(lanes)])
    kind = ir.VectorType(I32, lanes)
    narrow = e.b.insert_element(ir.Constant(kind, ir.Undefined), e.b.trunc(count, I32), ir.Constant(I32, 0))
    everywhere = e.b.shuffle_vector(narrow, ir.Constant(kind, ir.Undefined), ir.Constant(kind, [0] * lanes))
    return e.b.icmp_signed("<", ir.Constant(kind, list(range(lanes))), everywhere)


def load_first(e: Emitter, pointer: ir.Value, count: ir.Value | int, align: int = 4, kind: ir.Type = F32) -> ir.Value:
    """The first ``count`` values from memory, zeros behind; nothing else is read."""
    vector, mask = ir.VectorType(kind, e.target.lanes), _mask_type(e)
    function = _declare(e, "llvm.masked.load", f"{_suffix(vector)}.p0", vector, [PTR, I32, mask, vector])
    return e.b.call(function, [pointer, ir.Constant(I32, align), first_lanes(e, count), ir.Constant(vector, None)])


def store_first(
    e: Emitter, value: ir.Value, pointer: ir.Value, count: ir.Value | int, align: int = 4, kind: ir.Type = F32
) -> None:
    """Write the first ``count`` values; nothing else is written."""
    vector = ir.VectorType(kind, e.target.lanes)
    types = [vector, PTR, I32, _mask_type(e)]
    function = _declare(e, "llvm.masked.store", f"{_suffix(vector)}.p0", ir.VoidType(), types)
    e.b.call(function, [value, pointer, ir.Constant(I32, align), first_lanes(e, count)])


def addresses(e: Emitter, base: ir.Value, offsets: ir.Value) -> ir.Value:
    """Pointers ``base + offsets[lane]`` (int32 or int64, bytes)."""
    lanes = e.target.lanes
    wide = ir.VectorType(I64, lanes)
    number = e.b.insert_element(ir.Constant(wide, ir.Undefined), e.b.ptrtoint(base, I64), ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    everywhere = e.b.shuffle_vector(number, ir.Constant(wide, ir.Undefined), zeros)
    if offsets.type != wide:
        offsets = e.b.sext(offsets, wide)
    return e.b.inttoptr(e.b.add(everywhere, offsets), ir.VectorType(PTR, lanes))


def load_offsets(e: Emitter, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
    """A vector of int32."""
    return e.b.load(e.at(pointer, byte), typ=ir.VectorType(I32, e.target.lanes), align=4)


def gather(e: Emitter, pointers: ir.Value, mask: ir.Value | None = None) -> ir.Value:
    """The values at pointers (zeros where the mask has none)."""
    types = [pointers.type, I32, _mask_type(e), e.vector]
    lanes = e.target.lanes
    function = _declare(e, "llvm.masked.gather", f"v{lanes}f32.v{lanes}p0", e.vector, types)
    return e.b.call(function, [pointers, ir.Constant(I32, 4), _mask(e, mask), e.splat(0.0)])


def scatter(
    e: Emitter,
    value: ir.Value,
    pointers: ir.Value,
    mask: ir.Value | None = None,
    align: int = 4,
    kind: ir.Type = F32,
) -> None:
    """Write values to pointers, lane by lane."""
    vector = ir.VectorType(kind, e.target.lanes)
    types = [vector, pointers.type, I32, _mask_type(e)]
    suffix = f"{_suffix(vector)}.v{e.target.lanes}p0"
    function = _declare(e, "llvm.masked.scatter", suffix, ir.VoidType(), types)
    e.b.call(function, [value, pointers, ir.Constant(I32, align), _mask(e, mask)])


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
        order = ir.Constant(
            ir.VectorType(I32, e.target.lanes), [(lane + lanes) % e.target.lanes for lane in range(e.target.lanes)]
        )
        turned = e.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), order)
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


def _mask_type(e: Emitter) -> ir.Type:
    return ir.VectorType(I1, e.target.lanes)


def _suffix(vector: ir.VectorType) -> str:
    """The type in the name of an intrinsic."""
    return f"v{vector.count}{'f32' if vector.element == F32 else vector.element}"


def _mask(e: Emitter, mask: ir.Value | None) -> ir.Value:
    return ir.Constant(_mask_type(e), [1] * e.target.lanes) if mask is None else mask


def _declare(e: Emitter, name: str, suffix: str, result: ir.Type, types: list[ir.Type]) -> ir.Function:
    full = f"{name}.{suffix}"
    if full not in e.module.globals:
        ir.Function(e.module, ir.FunctionType(result, types), full)
    return e.module.globals[full]
