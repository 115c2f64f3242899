"""What the emitter writes does what it says: loops, shares, vectors, conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir

from arenas import library, targets
from ticketry_engine.kernels.emitter import F32, Emitter
from ticketry_engine.kernels.program import Op, Program
from ticketry_engine.kernels.target import Target

Body = Callable[[Emitter], None]


@dataclass(frozen=True)
class Probe:
    """The kernel that a test writes; ``body`` is told apart by a name of its own."""

    name: str
    body: Body

    def __repr__(self) -> str:
        return self.name

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        self.body(e)
        return e.text()


def _run(name: str, body: Body, args: list, out: np.ndarray, target: str = "host", threads: int = 1) -> np.ndarray:
    program = Program([Op(Probe(name, body), tuple(args))], 1, 4096, library(target), "parts")
    program.run(1, [out.ctypes.data], threads)
    return out


@given(st.integers(-5, 20), st.integers(-5, 20), st.integers(1, 7))
def test_a_loop_is_pythons_range(start: int, stop: int, step: int) -> None:
    def body(e: Emitter) -> None:
        bounds = [e.arg(i) for i in range(3)]
        with e.loop(*bounds, carried=[e.i64(0), e.i64(-1)]) as loop:
            loop.next = [e.b.add(loop.carried[0], e.i64(1)), loop.index]
        for place, value in enumerate(loop.results):
            e.b.store(value, e.offset_pointer(e.tensor_pointer(e.i64(0)), 8 * place), align=8)

    turns = range(start, stop, step)
    found = _run("range", body, [start, stop, step], np.zeros(2, np.int64))
    assert found.tolist() == [len(turns), turns[-1] if turns else -1]


def test_loops_within_loops_carry_on() -> None:
    def body(e: Emitter) -> None:
        with e.loop(0, e.arg(0), carried=[e.i64(0)]) as outer:
            with e.loop(0, outer.index, carried=outer.carried) as inner:
                inner.next = [e.b.add(inner.carried[0], e.b.mul(outer.index, inner.index))]
            outer.next = inner.results
        e.b.store(outer.results[0], e.tensor_pointer(e.i64(0)), align=8)

    wanted = sum(i * j for i in range(9) for j in range(i))
    assert _run("nested", body, [9], np.zeros(1, np.int64)).tolist() == [wanted]


def test_values_that_a_loop_forgets_are_told() -> None:
    e = Emitter("forgets", library("host").target)
    with pytest.raises(AssertionError, match="next values"), e.loop(0, 3, carried=[e.i64(0)]):
        pass


@given(st.integers(0, 50), st.integers(1, 4))
def test_shares_cover_all_turns_once(count: int, threads: int) -> None:
    def body(e: Emitter) -> None:
        low, high = e.thread_share(e.arg(0))
        with e.loop(low, high) as loop:
            place = e.offset_pointer(e.tensor_pointer(e.i64(0)), e.b.mul(loop.index, e.i64(8)))
            e.b.store(e.b.add(e.load_i64(place), e.i64(1)), place, align=8)

    found = _run("share", body, [count], np.zeros(count + 1, np.int64), threads=threads)
    assert found.tolist() == [1] * count + [0]


@pytest.mark.parametrize("name", targets())
def test_vectors(name: str) -> None:
    width = library(name).target.lanes

    def body(e: Emitter) -> None:
        table, out = e.table(0), e.tensor_pointer(e.i64(0))
        x = e.load(table)
        e.store(e.fma(x, e.splat(e.load_f32(table, 8)), e.splat(0.5)), out)
        e.store(e.intrinsic("llvm.fabs", x), out, 4 * width)
        e.store(e.select(e.b.fcmp_ordered("<", x, e.splat(0.0)), e.splat(0.0), x), out, 8 * width)

    values = np.random.default_rng(0).normal(size=width).astype(np.float32)
    found = _run("vectors", body, [values], np.zeros(3 * width, np.float32), name).reshape(3, width)
    np.testing.assert_allclose(found[0], values * values[2] + 0.5, rtol=1e-6, atol=1e-6)
    assert np.array_equal(found[1], np.abs(values))
    assert np.array_equal(found[2], np.maximum(values, 0))


@pytest.mark.parametrize("value", [-9, 0, 1])
def test_a_condition_without_else_and_small_integers_keep_their_sign(value: int) -> None:
    def body(e: Emitter) -> None:
        read = e.load_i32(e.table(0), 4)
        with e.when(e.b.icmp_signed(">", read, e.i64(0))):
            e.b.store(read, e.tensor_pointer(e.i64(0)), align=8)
        e.b.store(read, e.offset_pointer(e.tensor_pointer(e.i64(0)), 8), align=8)

    table = np.array([7, value], np.int32)
    assert _run("when", body, [table], np.zeros(2, np.int64)).tolist() == [max(value, 0), value]


@pytest.mark.parametrize("lanes", [4, 16])
@pytest.mark.parametrize("name", targets())
def test_opaque_values_are_the_same(name: str, lanes: int) -> None:
    """Also vectors wider than the target's registers, on which inline assembly would end the process."""

    def body(e: Emitter) -> None:
        wide = ir.VectorType(F32, lanes)
        e.b.store(e.hide_from_optimiser(e.b.load(e.table(0), typ=wide, align=4)), e.tensor_pointer(e.i64(0)), align=4)
        e.b.store(
            e.hide_from_optimiser(e.load_i64(e.table(0), 4 * lanes)),
            e.offset_pointer(e.tensor_pointer(e.i64(0)), 4 * lanes),
            align=8,
        )

    values = np.random.default_rng(0).normal(size=lanes + 2).astype(np.float32)
    assert np.array_equal(_run(f"opaque {lanes}", body, [values], np.zeros(lanes + 2, np.float32), name), values)
