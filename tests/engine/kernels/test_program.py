"""Programs: tables linked, blocks shared among threads, several callers at once, and nothing left behind."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from arenas import library
from probes import Constant, Mark, Round, Sum
from ticketry.errors import EngineError
from ticketry_engine.kernels.program import MappedMemory, Op, Program


def _engine_threads() -> set[threading.Thread]:
    """Those that have begun: an interruption just before leaves one in Python's list that never will."""
    return {thread for thread in threading.enumerate() if thread.name == "ticketry-engine" and thread.ident}


def _run(program: Program, batch: int = 1, threads: int = 1) -> int:
    found = np.zeros(1, np.int64)
    program.run(batch, [found.ctypes.data], threads)
    return int(found[0])


def test_operations_find_their_integers_and_tables() -> None:
    tables = [np.arange(size, dtype=np.int64) ** 2 for size in (0, 1, 7, 1000)]
    ops = [Op(Sum(), (len(table), table)) for table in tables]
    program = Program([*ops, Op(Constant(5), ())], 1, 0, library("host"))
    assert _run(program) == sum(int(table.sum()) for table in tables) + 5
    assert program.table_bytes == sum(table.nbytes for table in tables)


def test_tables_are_held_once_and_in_order() -> None:
    """As views of the linked memory, whatever their type, shape and strides were."""
    given = [np.arange(12, dtype=np.float32).reshape(3, 4).T, np.arange(9, dtype=np.int8)[::2], np.ones((), np.int32)]
    program = Program([Op(Sum(), (0, *given))], 1, 0, library("host"))
    for table, wanted in zip(program.ops[0].args[1:], given, strict=True):
        assert np.array_equal(table, wanted)
        assert table.dtype == wanted.dtype
        assert table.base is not None
        assert not np.shares_memory(table, wanted)
        assert table.ctypes.data % 64 == 0


def test_a_tables_end_may_be_read_over_by_a_vector() -> None:
    program = Program([Op(Sum(), (8, np.ones(8, np.int64)))], 1, 0, library("host"))
    memory = program._memory
    table = program.ops[0].args[1]
    assert table.ctypes.data + table.nbytes + 64 <= memory.address + len(memory.bytes)


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


def test_threads_end_with_their_program() -> None:
    gc.collect()
    before = _engine_threads()
    program = Program([Op(Mark(), (1,))], 1, 64, library("host"), "parts")
    found = torch.zeros(4, dtype=torch.int64)
    program.run(4, [found.data_ptr()], 3)
    mine = _engine_threads() - before
    assert len(mine) == 2
    gone = weakref.ref(program)
    del program
    gc.collect()
    assert gone() is None
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()


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
    found, delays = np.zeros(3, np.int64), np.random.default_rng(0).integers(1, 4000, 100)
    program.run(1, [found.ctypes.data], 3)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupting(seconds: float, thread: int, caught: threading.Event) -> None:
        time.sleep(seconds)
        signal.pthread_kill(thread, signal.SIGUSR1)
        while not caught.wait(
            2
        ):  # once more: it came while a function of Python's collector ran, where errors are lost
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
    assert inside > 20
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
    program = Program([Op(Sum(), (100_000, np.ones(100_000, np.int64))), Op(Constant(1), ())], 4, 0, library("host"))
    found = np.zeros(1, np.int64)
    long, short = program.profile(9, [found.ctypes.data])
    assert found[0] == 3 * 100_001
    assert 0 < short < long


def test_too_many_tensors_are_told() -> None:
    program = Program([Op(Constant(1), ())], 1, 0, library("host"))
    with pytest.raises(EngineError, match="57 tensors"):
        program.run(1, [0] * 57)


def test_memory_is_zeroed_and_begins_at_a_large_page() -> None:
    for size in (0, 1, 1 << 21, (1 << 21) + 1):
        memory = MappedMemory(size)
        assert len(memory.bytes) == size
        assert memory.address % (1 << 21) == 0
        assert not memory.bytes.any()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only there does the system tell")
def test_memory_is_private() -> None:
    """Shared memory has no large pages, and goes on to be shared with processes that are forked."""
    memory = MappedMemory(3 * mmap.PAGESIZE)
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(bound, 16) for bound in line.split()[0].split("-"))
        if low <= memory.address < high:
            assert line.split()[1] == "rw-p"
            return
    pytest.fail("the memory is not mapped")
