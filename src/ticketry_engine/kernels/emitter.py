"""Writes the LLVM IR of one kernel: arguments, loops whose values stay in registers, vectors of float32.

A kernel is a function ``void (i64* state, i64* op)``. `State` names what the runtime tells every kernel of the moment
(which images, which share of the work); ``op`` holds the integers and table addresses of one operation.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.target import Target

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
PTR = ir.PointerType()


def same(kind: ir.Type, value: Any) -> ir.Constant:
    """A constant of a type; of a vector, the value in all lanes.

    Each is made and put into words once: lists of numbers otherwise take half the time of writing a kernel.
    """
    return _same(kind, value, repr(value))


@functools.lru_cache(maxsize=1024)
def _same(kind: ir.Type, value: Any, text: str) -> ir.Constant:
    """``text`` tells -0.0 from 0.0."""
    listed = isinstance(kind, ir.VectorType) and value is not ir.Undefined
    return ir.Constant(kind, [value] * kind.count if listed else value)


_REGISTERS = {"x86_64": ("r", "v"), "aarch64": ("r", "w")}
"""Processor -> how inline assembly names a register of integers, and one of vectors."""


class State(enum.IntEnum):
    """Slots of the state that the runtime hands to every kernel, each an int64."""

    ARENA = 0
    """Address of this thread's working memory."""
    FIRST = 1
    """The first image of the block at hand, counted in the whole batch."""
    IMAGES = 2
    """How many images the block has: at most what the program was made for; fewer in the last block."""
    PART = 3
    """Which share of each operation this thread does, 0 … parts - 1."""
    PARTS = 4
    """How many threads share each operation; 1 where threads share the batch instead."""
    BARRIER = 5
    """Address of what those threads meet at after each operation."""
    EXTERNAL = 8
    """Here and after: addresses of the tensors that come in and go out."""


@dataclass
class Loop:
    """A loop being written: `index`, the values `carried` into a turn, and `next`, to be set to those of the next."""

    index: ir.Value
    carried: list[ir.Value]
    next: list[ir.Value] = field(default_factory=list)
    results: list[ir.Value] = field(default_factory=list)
    """After the loop: the values it ends with (those it began with, if it had no turn)."""


class Emitter:
    """One kernel being written for a target. `b` is llvmlite's builder, for what is not here."""

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
        """The finished module."""
        self.b.ret_void()
        return str(self.module)

    # Arguments

    def state(self, slot: int) -> ir.Value:
        """An integer of the state (see `State`)."""
        return self.load_i64(self._state, 8 * slot)

    def arg(self, index: int) -> ir.Value:
        """An integer, or a table's address as one, of this operation: ``Op.args[index]``."""
        return self.load_i64(self._op, 8 * (index + 1))  # the first is the kernel itself

    def table(self, index: int) -> ir.Value:
        """The pointer to a table of this operation: ``Op.args[index]``."""
        return self.b.inttoptr(self.arg(index), PTR)

    def arena(self, offset: ir.Value | int = 0) -> ir.Value:
        """A pointer into this thread's working memory."""
        return self.at(self.b.inttoptr(self.state(State.ARENA), PTR), offset)

    def external(self, number: ir.Value) -> ir.Value:
        """The pointer to a tensor that comes in or goes out, by its number."""
        slot = self.at(self._state, self.b.mul(self.b.add(number, self.i64(State.EXTERNAL)), self.i64(8)))
        return self.b.inttoptr(self.load_i64(slot), PTR)

    def share(self, count: ir.Value | int) -> tuple[ir.Value, ir.Value]:
        """The turns (from, to) of ``count`` that this thread does."""
        count = self.i64(count)
        part, parts = self.state(State.PART), self.state(State.PARTS)
        low = self.b.udiv(self.b.mul(count, part), parts)
        high = self.b.udiv(self.b.mul(count, self.b.add(part, self.i64(1))), parts)
        return low, high

    # Numbers and memory

    def i64(self, value: ir.Value | int) -> ir.Value:
        return ir.Constant(I64, int(value)) if isinstance(value, int) else value

    def at(self, pointer: ir.Value, byte: ir.Value | int) -> ir.Value:
        """The pointer so many bytes further."""
        return self.b.gep(pointer, [self.i64(byte)], source_etype=I8)

    def load_i64(self, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
        return self.b.load(self.at(pointer, byte), typ=I64, align=8)

    def load_i32(self, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
        """A signed 32-bit integer, widened to 64."""
        return self.b.sext(self.b.load(self.at(pointer, byte), typ=I32, align=4), I64)

    def load_u16(self, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
        """An unsigned 16-bit integer, widened to 64."""
        return self.b.zext(self.b.load(self.at(pointer, byte), typ=I16, align=2), I64)

    def load_f32(self, pointer: ir.Value, byte: ir.Value | int = 0) -> ir.Value:
        return self.b.load(self.at(pointer, byte), typ=F32, align=4)

    def load(self, pointer: ir.Value, byte: ir.Value | int = 0, align: int = 4) -> ir.Value:
        """A vector of float32."""
        return self.b.load(self.at(pointer, byte), typ=self.vector, align=align)

    def store(self, value: ir.Value, pointer: ir.Value, byte: ir.Value | int = 0, align: int = 4) -> None:
        self.b.store(value, self.at(pointer, byte), align=align)

    def fetch(self, pointer: ir.Value, byte: ir.Value | int) -> None:
        """Have a line of memory in the nearest cache before its turn comes."""
        reading, nearest, data = (ir.Constant(I32, value) for value in (0, 3, 1))
        self.call("llvm.prefetch.p0", ir.VoidType(), [self.at(pointer, byte), reading, nearest, data])

    def f32(self, value: float) -> ir.Value:
        return ir.Constant(F32, value)

    def splat(self, scalar: ir.Value | float) -> ir.Value:
        """A vector with one value in all lanes: of float32, or of the value's own type."""
        if isinstance(scalar, (int, float)):
            return same(self.vector, float(scalar))
        nothing = same(ir.VectorType(scalar.type, self.target.lanes), ir.Undefined)
        one = self.b.insert_element(nothing, scalar, same(I32, 0))
        return self.b.shuffle_vector(one, nothing, same(ir.VectorType(I32, self.target.lanes), 0))

    def fma(self, a: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        """``a * x + y``, in one rounding on all processors that have an instruction for it."""
        return self.intrinsic("llvm.fma" if self.target.fused else "llvm.fmuladd", a, x, y)

    def intrinsic(self, name: str, *values: ir.Value) -> ir.Value:
        """An LLVM intrinsic over values of one type, such as ``llvm.maxnum``."""
        kind = values[0].type
        suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
        return self.call(f"{name}.{suffix}", kind, values)

    def call(self, name: str, result: ir.Type, values: Sequence[ir.Value]) -> ir.Value:
        """A function from outside the module, such as an intrinsic by its whole name."""
        if name not in self.module.globals:
            ir.Function(self.module, ir.FunctionType(result, [value.type for value in values]), name)
        return self.b.call(self.module.globals[name], values)

    def opaque(self, value: ir.Value) -> ir.Value:
        """The same value, of which the optimiser knows nothing: so that it stays where and what it is.

        Not so for a vector that is wider than the target's registers: LLVM would end the process.
        """
        register = _REGISTERS.get(self.target.triple.split("-")[0])
        if register is None or (isinstance(value.type, ir.VectorType) and value.type.count > self.target.lanes):
            return value
        kind = register[1] if isinstance(value.type, ir.VectorType) else register[0]
        signature = ir.FunctionType(value.type, [value.type])
        return self.b.asm(signature, "", f"={kind},0", [value], False)

    def scratch(self, vectors: int) -> ir.Value:
        """The pointer to memory for so many vectors on the stack."""
        with self.b.goto_entry_block():
            # By way of an integer: llvmlite takes a fresh pointer for one to an array.
            place = self.b.alloca(ir.ArrayType(self.vector, vectors))
            return self.b.inttoptr(self.b.ptrtoint(place, I64), PTR)

    # Control

    @contextmanager
    def loop(
        self, start: ir.Value | int, stop: ir.Value | int, step: ir.Value | int = 1, carried: Sequence[ir.Value] = ()
    ) -> Iterator[Loop]:
        """``for index in range(start, stop, step)``; ``carried`` values live in registers from turn to turn.

        Inside, set ``loop.next`` to what the next turn gets; after, read ``loop.results``.
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
        loop = Loop(index, phis)
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
        """``if condition:`` without an else and without results."""
        with self.b.if_then(condition):
            yield

    @contextmanager
    def turns(self, outer: ir.Value, inner: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
        """This thread's share of the turns of two nested loops: the number of the outer one's turn, the inner one's."""
        low, high = self.share(self.b.mul(outer, inner))
        with self.loop(low, high) as turn:
            yield self.b.udiv(turn.index, inner), self.b.urem(turn.index, inner)

    def select(self, condition: ir.Value, yes: Any, no: Any) -> ir.Value:
        return self.b.select(condition, yes, no)


class Written:
    """A kernel that is written with an `Emitter`."""

    def emit(self, name: str, target: Target) -> str:
        """LLVM IR of a module with the kernel as a function of this name."""
        e = Emitter(name, target)
        self.write(e)
        return e.text()

    def write(self, e: Emitter) -> None:
        """The kernel's body."""
        raise NotImplementedError
