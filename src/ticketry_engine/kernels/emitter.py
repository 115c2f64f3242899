"""Write the LLVM IR of one kernel: read its arguments, emit loops, compute with float32 vectors.

A kernel is a function ``void (i64* state, i64* op)``:

    state   one int64 per member of `StateSlot`: working memory, images of the block, thread number, external tensors
    op      [kernel address, args[0], args[1], ...]: integers and table addresses of one operation (`program.Op`)

Tile shapes and activations are fixed when the kernel is written, so the loops contain no branches on them.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.target import Target

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
PTR = ir.PointerType()


def splat_constant(kind: ir.Type, value: Any) -> ir.Constant:
    """Return the LLVM constant `value` of type `kind`, cached; if `kind` is a vector type, every lane holds `value`."""
    return _cached_constant(kind, value, repr(value))


@functools.lru_cache(maxsize=1024)
def _cached_constant(kind: ir.Type, value: Any, text: str) -> ir.Constant:
    """Build the constant for `same`; `text` serves only to tell 0.0 from -0.0 in the cache."""
    listed = isinstance(kind, ir.VectorType) and value is not ir.Undefined
    return ir.Constant(kind, [value] * kind.count if listed else value)


_REGISTERS = {"x86_64": ("r", "v"), "aarch64": ("r", "w")}
"""Per processor: how inline assembly names (an integer register, a vector register)."""


class StateSlot(enum.IntEnum):
    """Indices into the runtime state, an array of int64 that every kernel receives."""

    ARENA = 0
    """Address of this thread's working memory."""
    FIRST = 1
    """Number of the block's first image, counted from the start of the batch."""
    IMAGES = 2
    """Number of images in this block; only the last block may have fewer images than the program was built for."""
    PART = 3
    """Number of this thread among the threads that share each operation: 0 … PARTS - 1."""
    PARTS = 4
    """Number of threads that share each operation; 1 if each thread runs whole blocks of the batch instead."""
    BARRIER = 5
    """Address of the barrier where the threads that share operations wait for each other after each operation."""
    EXTERNAL = 8
    """Index of the first input or output tensor's address; the addresses of the other tensors follow."""


@dataclass
class EmittedLoop:
    """A loop whose body is being written.

    `index` is the loop variable, and `carried` holds values that each iteration receives from the iteration before. The
    body must set `next` to the values for the next iteration.
    """

    index: ir.Value
    carried: list[ir.Value]
    next: list[ir.Value] = field(default_factory=list)
    results: list[ir.Value] = field(default_factory=list)
    """Values of `carried` after the last iteration; the initial values if the loop runs zero times."""


class Emitter:
    """Builder of one kernel for one target; its attribute `b` is llvmlite's IRBuilder, for all other instructions."""

    def __init__(self, name: str, target: Target) -> None:
        self.target = target
        self.module = ir.Module(name)
        self.module.triple = target.triple
        signature = ir.FunctionType(ir.VoidType(), [PTR, PTR])
        self.function = ir.Function(self.module, signature, name)
        self._state, self._op = self.function.args
        for argument in self.function.args:
            argument.add_attribute("noalias")
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.vector = ir.VectorType(F32, target.lanes)

    def text(self) -> str:
        """Close the function and return the module's IR."""
        self.b.ret_void()
        return str(self.module)

    # Arguments

    def state(self, slot: int) -> ir.Value:
        """Load the integer of the runtime state at index `slot` (see `StateSlot`)."""
        return self.load_i64(self._state, 8 * slot)

    def arg(self, index: int) -> ir.Value:
        """Load ``Op.args[index]`` of the operation: an integer, or the address of a table as an integer."""
        return self.load_i64(self._op, 8 * (index + 1))  # word 0 is the kernel's address

    def table(self, index: int) -> ir.Value:
        """Return a pointer to the table ``Op.args[index]`` of the operation."""
        return self.b.inttoptr(self.arg(index), PTR)

    def arena_pointer(self, offset: ir.Value | int = 0) -> ir.Value:
        """Return a pointer to byte `offset` of the arena, which is this thread's working memory."""
        return self.offset_pointer(self.b.inttoptr(self.state(StateSlot.ARENA), PTR), offset)

    def tensor_pointer(self, number: ir.Value) -> ir.Value:
        """Return a pointer to the data of input or output tensor `number`."""
        slot = self.offset_pointer(
            self._state, self.b.mul(self.b.add(number, self.i64(StateSlot.EXTERNAL)), self.i64(8))
        )
        return self.b.inttoptr(self.load_i64(slot), PTR)

    def thread_share(self, count: ir.Value | int) -> tuple[ir.Value, ir.Value]:
        """Return (first, end) of this thread's share of `count` iterations."""
        count = self.i64(count)
        part, parts = self.state(StateSlot.PART), self.state(StateSlot.PARTS)
        low = self.b.udiv(self.b.mul(count, part), parts)
        high = self.b.udiv(self.b.mul(count, self.b.add(part, self.i64(1))), parts)
        return low, high

    # Numbers and memory

    def i64(self, value: ir.Value | int) -> ir.Value:
        return ir.Constant(I64, int(value)) if isinstance(value, int) else value

    def offset_pointer(self, pointer: ir.Value, byte: ir.Value | int) -> ir.Value:
        """Return `pointer` moved forward by `byte` bytes."""
        return self.b.gep(pointer, [self.i64(byte)], source_etype=I8)

    def load_i64(self, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
        return self.b.load(self.offset_pointer(pointer, byte), typ=I64, align=8)

    def load_i32(self, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
        """Load a signed 32-bit integer, widened to 64 bits."""
        return self.b.sext(self.b.load(self.offset_pointer(pointer, byte), typ=I32, align=4), I64)

    def load_u16(self, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
        """Load an unsigned 16-bit integer, widened to 64 bits."""
        return self.b.zext(self.b.load(self.offset_pointer(pointer, byte), typ=I16, align=2), I64)

    def load_f32(self, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
        return self.b.load(self.offset_pointer(pointer, byte), typ=F32, align=4)

    def load(self, pointer: ir.Value, byte: ir.Value | int = 0, align: int = 4) -> ir.Value:
        """Load a float32 vector of the target's width."""
        return self.b.load(self.offset_pointer(pointer, byte), typ=self.vector, align=align)

    def store(self, value: ir.Value, pointer: ir.Value, byte: ir.Value | int = 0, align: int = 4) -> None:
        self.b.store(value, self.offset_pointer(pointer, byte), align=align)

    def prefetch(self, pointer: ir.Value, byte: ir.Value | int) -> None:
        """Prefetch the cache line at `pointer` + `byte` into the L1 cache."""
        reading, nearest, data = (ir.Constant(I32, value) for value in (0, 3, 1))
        self.call("llvm.prefetch.p0", ir.VoidType(), [self.offset_pointer(pointer, byte), reading, nearest, data])

    def f32(self, value: float) -> ir.Value:
        return ir.Constant(F32, value)

    def splat(self, scalar: ir.Value | float) -> ir.Value:
        """Return a vector with `scalar` in every lane; a Python number becomes float32."""
        if isinstance(scalar, (int, float)):
            return splat_constant(self.vector, float(scalar))
        nothing = splat_constant(ir.VectorType(scalar.type, self.target.lanes), ir.Undefined)
        one = self.b.insert_element(nothing, scalar, splat_constant(I32, 0))
        return self.b.shuffle_vector(one, nothing, splat_constant(ir.VectorType(I32, self.target.lanes), 0))

    def fma(self, a: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        """Return ``a * x + y``, rounded only once if the processor has a fused multiply-add."""
        return self.intrinsic("llvm.fma" if self.target.fused else "llvm.fmuladd", a, x, y)

    def intrinsic(self, name: str, *values: ir.Value) -> ir.Value:
        """Call the LLVM intrinsic `name`, such as ``llvm.maxnum``, on float32 values or vectors of one type."""
        kind = values[0].type
        suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
        return self.call(f"{name}.{suffix}", kind, values)

    def call(self, name: str, result: ir.Type, values: Sequence[ir.Value]) -> ir.Value:
        """Call the external function or intrinsic with the full name `name`, and declare it on first use."""
        if name not in self.module.globals:
            ir.Function(self.module, ir.FunctionType(result, [value.type for value in values]), name)
        return self.b.call(self.module.globals[name], values)

    def hide_from_optimiser(self, value: ir.Value) -> ir.Value:
        """Pass `value` through empty inline assembly, so that the optimiser neither moves nor rewrites the result."""
        register = _REGISTERS.get(self.target.triple.split("-")[0])
        if register is None or (isinstance(value.type, ir.VectorType) and value.type.count > self.target.lanes):
            return value
        kind = register[1] if isinstance(value.type, ir.VectorType) else register[0]
        signature = ir.FunctionType(value.type, [value.type])
        return self.b.asm(signature, "", f"={kind},0", [value], False)

    def scratch(self, vectors: int) -> ir.Value:
        """Allocate memory for `vectors` float32 vectors on the stack, and return a pointer to it."""
        with self.b.goto_entry_block():
            # llvmlite gives a new pointer the type of an array pointer; conversion to an integer and back removes it.
            place = self.b.alloca(ir.ArrayType(self.vector, vectors))
            return self.b.inttoptr(self.b.ptrtoint(place, I64), PTR)

    # Control

    @contextmanager
    def loop(
        self, start: ir.Value | int, stop: ir.Value | int, step: ir.Value | int = 1, carried: Sequence[ir.Value] = ()
    ) -> Iterator[EmittedLoop]:
        """Emit ``for index in range(start, stop, step)``, where each iteration passes values on to the next.

        `carried` are the values for the first iteration; they stay in registers. In the ``with`` block, set
        ``loop.next`` to the values for the next iteration. After the block, read the last values from ``loop.results``.
        """
        b, start, stop = self.b, self.i64(start), self.i64(stop)
        before = b.block
        body = self.function.append_basic_block("loop")
        after = self.function.append_basic_block("after")
        b.cbranch(b.icmp_signed("<", start, stop), body, after)
        b.position_at_end(body)
        index = b.phi(I64)
        phis = [b.phi(value.type) for value in carried]
        index.add_incoming(start, before)
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        loop = EmittedLoop(index, phis)
        yield loop
        if len(loop.next) != len(phis):
            raise AssertionError("a loop's next values are as many as those it carries")
        following = b.add(index, self.i64(step), flags=["nsw"])
        last = b.block
        b.cbranch(b.icmp_signed("<", following, stop), body, after)
        index.add_incoming(following, last)
        b.position_at_end(after)
        for phi, value, initial in zip(phis, loop.next, carried, strict=True):
            phi.add_incoming(value, last)
            result = b.phi(value.type)
            result.add_incoming(initial, before)
            result.add_incoming(value, last)
            loop.results.append(result)

    @contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        """Emit ``if condition:`` around the code that the ``with`` block emits."""
        with self.b.if_then(condition):
            yield

    @contextmanager
    def loop_share_of_pairs(self, outer: ir.Value, inner: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Emit a loop over this thread's share of all pairs (i, j) with i < `outer` and j < `inner`; yield i and j."""
        low, high = self.thread_share(self.b.mul(outer, inner))
        with self.loop(low, high) as turn:
            yield self.b.udiv(turn.index, inner), self.b.urem(turn.index, inner)

    def select(self, condition: ir.Value, yes: Any, no: Any) -> ir.Value:
        return self.b.select(condition, yes, no)


def minimum(e: Emitter, one: ir.Value, other: ir.Value) -> ir.Value:
    """Emit the minimum of two signed integers."""
    return e.select(e.b.icmp_signed("<", one, other), one, other)


class EmittedKernel:
    """Base class of kernels whose `write` emits the code with an `Emitter`."""

    def emit(self, name: str, target: Target) -> str:
        """Return the LLVM IR of a module that contains the kernel as a function called `name`."""
        e = Emitter(name, target)
        self.write(e)
        return e.text()

    def write(self, e: Emitter) -> None:
        """Emit the body of the kernel with `e`."""
        raise NotImplementedError
