"""Programs: tables linked, each operation on every block, threads, several callers at once, and nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arenas import library
from probes import Constant, Mark, Round, Sum
from ticketry.errors import EngineError
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter, StateSlot
from ticketry_engine.kernels.program import MappedMemory, Op, Program


def _engine_threads() -> set[threading.Thread]:
    """Those that have begun: an interruption just before leaves one in Python's list that never will."""
    return {thread for thread in threading.enumerate() if thread.name == "ticketry-engine" and thread.ident}


def _run(program: Program, batch: int = 1, threads: int = 1) -> int:
    found = np.zeros(1, np.int64)
    program.run(batch, [found.ctypes.data], threads)
    return int(found[0])


@given(
    images=st.sampled_from([1, 2, 8, 16]),
    batch=st.integers(0, 70),
    threads=st.integers(1, 4),
    split=st.sampled_from(["batch", "parts"]),
    marks=st.lists(st.integers(1, 1000), max_size=4),
)
def test_each_operation_sees_each_image_once(images: int, batch: int, threads: int, split: str, marks: list) -> None:
    """Also with more threads than blocks or images, a last block that is not full, and nothing to do."""
    program = Program([Op(Mark(), (mark,)) for mark in marks], images, 64, library("host"), split)
    found = torch.zeros(batch + 1, dtype=torch.int64)
    program.run(batch, [found.data_ptr()], threads)
    assert found[:batch].tolist() == [sum(marks)] * batch
    assert found[batch] == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_meet_after_each_operation(threads: int) -> None:
    """Thousands of rounds, in each of which a thread needs what its neighbour wrote in the last one."""
    rounds, blocks = (300, 10) if threads < 3 else (40, 3)  # where others work too, threads wait for their turn
    ops = [Op(Round(), (number % 2, 1 - number % 2)) for number in range(rounds)]
    program = Program(ops, 1, 2 * 64 * 64, library("host"), "parts")
    found = np.zeros(threads, np.int64)
    for call in range(1, 4):
        program.run(blocks, [found.ctypes.data], threads)
        assert found.tolist() == [call * rounds * blocks] * threads


class _Halve(EmittedKernel):
    """Half of each of the batch's float32, from the first tensor to the second."""

    def write(self, e: Emitter) -> None:
        first = e.state(StateSlot.FIRST)
        with e.loop(first, e.b.add(first, e.state(StateSlot.IMAGES))) as image:
            at = e.b.mul(image.index, e.i64(4))
            half = e.b.fmul(e.load_f32(e.tensor_pointer(e.i64(0)), at), e.f32(0.5))
            e.b.store(half, e.offset_pointer(e.tensor_pointer(e.i64(1)), at), align=4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("denormals", [True, False])
def test_denormal_numbers_are_kept_or_count_as_zero_for_the_time_of_a_call(denormals: bool, threads: int) -> None:
    values = torch.tensor([1.0, -3e38, 2e-38, 1e-38, 1e-44, 0.0, 1.5e-38] * 4)  # the third has a denormal half
    found, outside = torch.empty_like(values), torch.tensor([1e-38])
    program = Program([Op(_Halve(), ())], 2, 64, library("host"), "batch", denormals)
    program.run(len(values), [values.data_ptr(), found.data_ptr()], threads)
    expected = values.double() / 2
    flushed = torch.where(expected.abs() < torch.finfo(torch.float32).tiny, 0.0, expected)
    assert torch.equal(found, (expected if denormals else flushed).float())
    assert float(outside / 2) > 0, "torch computes as before"


def test_operations_find_their_integers_and_tables() -> None:
    """Tables are held once, as views of the linked memory, whatever their type, shape and strides were."""
    tables = [np.arange(size, dtype=np.int64) ** 2 for size in (0, 1, 7, 1000)]
    others = [np.arange(12, dtype=np.float32).reshape(3, 4).T, np.arange(9, dtype=np.int8)[::2], np.ones((), np.int32)]
    ops = [*(Op(Sum(), (len(table), table)) for table in tables), Op(Sum(), (0, *others)), Op(Constant(5), ())]
    program = Program(ops, 1, 0, library("host"))
    assert _run(program) == sum(int(table.sum()) for table in tables) + 5
    assert program.table_bytes == sum(table.nbytes for table in [*tables, *others])
    for table, wanted in zip(program.ops[-2].args[1:], others, strict=True):
        assert np.array_equal(table, wanted)
        assert table.dtype == wanted.dtype
        assert not np.shares_memory(table, wanted)
        assert table.ctypes.data % 64 == 0
        end = program._memory.address + len(program._memory.bytes)
        assert table.ctypes.data + table.nbytes + 64 <= end, "a vector may read over a table's end"


@pytest.mark.parametrize("split", ["batch", "parts"])
def test_several_python_threads_may_call_one_program(split: str) -> None:
    """Each with memory of its own: a chain through the working memory stays right."""
    ops = [Op(Round(), (number % 2, 1 - number % 2)) for number in range(200)]
    program = Program(ops, 1, 2 * 64 * 64, library("host"), "parts") if split == "parts" else None
    marks = Program([Op(Mark(), (1,))] * 20, 4, 64, library("host"), "batch")

    def call(_: int) -> bool:
        if program is None:
            found = torch.zeros(37, dtype=torch.int64)
            marks.run(37, [found.data_ptr()], 2)
            return found.tolist() == [20] * 37
        first, second = np.zeros(2, np.int64), np.zeros(2, np.int64)
        program.run(3, [first.ctypes.data], 2)
        program.run(3, [second.ctypes.data], 2)
        # the memory is that of an earlier call, where it stopped at a multiple of the rounds of a call
        return first[0] == first[1] and first[0] % 600 == 0 and second[0] % 600 == 0 and second[0] >= 600

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(40)))
    made = program or marks
    assert 1 <= len(made._free[os.getpid(), 2]) <= 4


def test_no_more_threads_than_blocks_work_on_a_batch() -> None:
    program = Program([Op(Mark(), (1,))], 16, 64, library("host"), "batch")
    found = torch.zeros(20, dtype=torch.int64)
    program.run(20, [found.data_ptr()], 4)
    assert found.tolist() == [1] * 20
    assert [threads for _, threads in program._free] == [2]


def test_a_workspace_is_not_used_again_after_an_error() -> None:
    program = Program([Op(Constant(1), ())], 1, 0, library("host"))
    assert _run(program) == 1
    drive, taken = program._drive, program._free[os.getpid(), 1][0]

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    program._drive = fails
    with pytest.raises(KeyboardInterrupt):
        _run(program)
    program._drive = drive
    assert _run(program) == 1
    assert program._free[os.getpid(), 1][0] is not taken


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no signals of the user's own")
@pytest.mark.skipif("coverage" in sys.modules, reason="interrupted while it holds its lock, coverage waits forever")
def test_interrupted_calls_leave_no_thread_waiting() -> None:
    """For others that never began: threads share every operation here."""
    gc.collect()
    before = _engine_threads()
    rounds = 4
    program = Program(
        [Op(Round(), (n % 2, 1 - n % 2)) for n in range(rounds)], 1, 2 * 64 * 64, library("host"), "parts"
    )
    found, delays = np.zeros(3, np.int64), np.random.default_rng(0).integers(1, 4000, 60)
    program.run(1, [found.ctypes.data], 3)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupting(seconds: float, thread: int, caught: threading.Event) -> None:
        time.sleep(seconds)
        signal.pthread_kill(thread, signal.SIGUSR1)
        while not caught.wait(2):  # again: it came in a function of Python's collector, where errors are lost
            signal.pthread_kill(thread, signal.SIGUSR1)

    def forever(program: Program, seconds: float, caught: threading.Event) -> None:
        threading.Thread(target=interrupting, args=(seconds, threading.get_ident(), caught)).start()
        while True:
            program.run(1, [found.ctypes.data], 3)

    handler = signal.signal(signal.SIGUSR1, interrupt)
    inside = 0
    # An interruption inside a callback of the collector (Hypothesis adds one) is handed to pytest, which keeps it, and
    # by its frames the program and its threads, until the test has ended.
    gc.disable()
    try:
        for delay in delays.tolist():
            # interrupted while it starts a thread, Python's own `Thread.start` may release a lock that it has not
            stopped = threading.Event()
            with pytest.raises((KeyboardInterrupt, RuntimeError)) as caught:
                forever(program, 1e-6 * delay, stopped)
            stopped.set()
            inside += any(entry.name == "run" for entry in caught.traceback)
            del caught
    finally:
        gc.enable()
        signal.signal(signal.SIGUSR1, handler)
    assert inside > 10
    program = Program(program.ops, 1, program.arena, library("host"), "parts")
    found[:] = 0
    program.run(1, [found.ctypes.data], 3)
    assert found.tolist() == [rounds] * 3
    del program
    gc.collect()
    for thread in _engine_threads() - before:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_and_memory_of_its_own() -> None:
    rounds = [Op(Round(), (number % 2, 1 - number % 2)) for number in range(10)]
    program = Program(rounds, 1, 2 * 64 * 64, library("host"), "parts")
    found = np.zeros(2, np.int64)
    program.run(1, [found.ctypes.data], 2)
    assert found.tolist() == [10, 10]
    child = os.fork()
    if child == 0:  # nothing of the test's own may run on in the child
        try:
            program.run(1, [found.ctypes.data], 2)
            os._exit(0 if found.tolist() == [10, 10] else 1)
        finally:
            os._exit(2)
    program.run(1, [found.ctypes.data], 2)
    assert found.tolist() == [20, 20]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_seconds_of_each_operation() -> None:
    program = Program(
        [Op(Sum(), (2_000_000, np.ones(2_000_000, np.int64))), Op(Constant(1), ())], 4, 0, library("host")
    )
    found = np.zeros(1, np.int64)
    long, short = program.profile(9, [found.ctypes.data])
    assert found[0] == 3 * 2_000_001
    assert 0 < short < long


def test_too_many_tensors_are_told() -> None:
    program = Program([Op(Constant(1), ())], 1, 0, library("host"))
    with pytest.raises(EngineError, match="57 tensors"):
        program.run(1, [0] * 57)


def test_memory_is_zeroed_begins_at_a_large_page_and_is_private() -> None:
    """Shared memory has no large pages, and goes on to be shared with processes that are forked."""
    for size in (0, 1, 1 << 21, (1 << 21) + 1):
        memory = MappedMemory(size)
        assert len(memory.bytes) == size
        assert memory.address % (1 << 21) == 0
        assert not memory.bytes.any()
    if os.path.exists("/proc/self/maps"):
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        bounds = [([int(bound, 16) for bound in line[0].split("-")], line[1]) for line in lines]
        assert [mode for (low, high), mode in bounds if low <= memory.address < high] == ["rw-p"]
