"""Link operations and their tables into a native program, and run the program over a batch with one or more threads.

    batch:   | block 0 | block 1 | ... |       a block has `images` images
    block:   op 0 -> op 1 -> op 2 -> ...       all operations, one block at a time, in one arena

Blocks are small enough for their activations to stay in the cache from one operation to the next. A whole run is one
native call of the function `Driver`, so no time is spent in Python between operations.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from operator import methodcaller
from queue import SimpleQueue
from typing import Any

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.emitter import StateSlot
from ticketry_engine.kernels.jit import Kernel, Library
from ticketry_engine.kernels.target import Target

_EMPTY_CALLS = 8
"""Number of native calls without operations that are timed before a profile; the shortest time is subtracted."""

_SLOTS = 64
"""Length of the state array of `StateSlot`: 8 reserved entries, then up to 56 addresses of tensors."""


@dataclass(frozen=True)
class Op:
    """One operation: a kernel and its arguments, which the kernel reads with `Emitter.arg` and `Emitter.table`."""

    kernel: Kernel
    args: tuple[int | np.ndarray[Any, Any], ...]
    label: str = ""


@dataclass(frozen=True)
class Bias:
    """A table that is added to attention scores; several layers may share it under one name."""

    name: str
    values: np.ndarray[Any, Any]
    """float32 [tables, queries, keys]; a table may serve several heads and windows, and -inf hides a key."""
    by_head: int
    """Distance between the tables of two consecutive heads: 1 table, or 0 if all heads share a table."""
    by_window: int = 0
    """Distance between the tables of two consecutive windows, in tables; 0 if all windows share their tables."""

    @classmethod
    def from_array(cls, name: str, values: np.ndarray[Any, Any]) -> Bias:
        """Build a bias from an array [heads, queries, keys] or [windows, heads, queries, keys].

        A size of 1 in place of windows or heads means that all of them share a table.
        """
        heads = values.shape[-3]
        several = values.ndim == 4 and len(values) > 1
        return cls(name, values.reshape(-1, *values.shape[-2:]), int(heads > 1), heads if several else 0)


@dataclass(frozen=True)
class BlockSpec:
    """Settings for functions that build operations: the processor, the images per block and the scratch memory."""

    target: Target
    images: int = 1
    """Images per block (the last block of a batch may have fewer)."""
    reserve: Callable[[int], int] | None = None
    """Function that reserves scratch bytes for one operation and returns their arena offset, a multiple of 64; None if
    there is no scratch memory."""
    tables: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict, compare=False, repr=False)
    """Tables that several operations share, by name."""


@dataclass
class _Workspace:
    """What one call of a program needs: a state array per thread, working memory, a barrier and worker threads."""

    states: list[np.ndarray[Any, Any]]
    starts: list[int]
    arenas: list[MappedMemory]
    barrier: np.ndarray[Any, Any]
    workers: Workers


MARGIN = 1 << 20
"""Bytes before and after working memory that kernels may read, though results never depend on them."""


class MappedMemory:
    """Zeroed, page-aligned working memory, in huge pages if the system provides them.

    The mapping also contains `MARGIN` bytes before and after the memory; kernels may read them but never write to them.
    """

    def __init__(self, size: int) -> None:
        large = 1 << 21
        # Private: shared mappings get no huge pages, and a forked child would write into the parent's memory.
        private: dict[str, Any] = (
            {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        )
        self._map = mmap.mmap(-1, -(-(max(size, 1) + MARGIN) // large) * large + 2 * large, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        base = np.frombuffer(self._map, dtype=np.uint8)
        start = large + int(-base.ctypes.data % large)
        self.bytes: np.ndarray[Any, Any] = base[start : start + size]
        self.address = int(base.ctypes.data) + start


@dataclass
class Program:
    """Operations that are linked with machine code and tables, and ready to run on blocks of images.

    Args:
        ops: the operations, in the order in which each block passes through them.
        images: images per block.
        arena: bytes of working memory per thread.
        library: compiles and holds the kernels.
        split: how threads divide the work. With "batch", each thread runs whole blocks in its own working memory. With
            "parts", all threads share each operation of each block, and one working memory.
        denormals: whether to keep denormal numbers; flushing them to zero is faster (see `Driver`).
    """

    ops: Sequence[Op]
    images: int
    arena: int
    library: Library
    split: str = "batch"
    denormals: bool = True
    _memory: MappedMemory = field(init=False)
    _entries: Any = field(init=False)
    _free: dict[tuple[int, int], list[_Workspace]] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        addresses = self.library.addresses([Driver(self.denormals), *(op.kernel for op in self.ops)])
        self._drive = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 5)(addresses[0])
        self._copy_to_native_memory(addresses[1:])

    @property
    def table_bytes(self) -> int:
        """Total bytes of all tables (weights, biases, offsets); a shared table counts once."""
        tables = [arg for op in self.ops for arg in op.args if isinstance(arg, np.ndarray)]
        return sum({table.ctypes.data: table.nbytes for table in tables}.values())

    def _copy_to_native_memory(self, addresses: Sequence[int]) -> None:
        """Copy all tables, the list of operations and their arguments into one memory, as native code reads them.

        The tables in `ops` become views of this memory, so that no table is stored twice.
        """
        # Shared tables are stored once. A vector load at a table's end may read a cache line after it.
        tables = {id(arg): arg for op in self.ops for arg in op.args if isinstance(arg, np.ndarray)}
        ends = list(itertools.accumulate(-(-table.nbytes // 64) * 64 + 64 for table in tables.values()))
        begins = dict(zip(tables, [0, *ends], strict=False))
        size = ends[-1] if ends else 0
        arguments = sum(len(op.args) + 1 for op in self.ops)
        self._memory = MappedMemory(size + 8 * (arguments + len(self.ops)))
        words = self._memory.bytes[size:].view(np.int64)
        self._entries, at = words[: len(self.ops)], len(self.ops)
        base = self._memory.address + size
        ops: list[Op] = []
        views: dict[int, np.ndarray[Any, Any]] = {}
        for index, (op, kernel) in enumerate(zip(self.ops, addresses, strict=True)):
            self._entries[index] = base + 8 * at
            words[at] = kernel
            args: list[int | np.ndarray[Any, Any]] = []
            for position, arg in enumerate(op.args, start=at + 1):
                if isinstance(arg, np.ndarray):
                    words[position] = self._memory.address + begins[id(arg)]
                    view = views.get(id(arg))
                    if view is None:
                        raw = self._memory.bytes[begins[id(arg)] :][: arg.nbytes]
                        raw[:] = np.ascontiguousarray(arg).reshape(-1).view(np.uint8)
                        view = views[id(arg)] = raw.view(arg.dtype).reshape(arg.shape)
                    args.append(view)
                else:
                    words[position] = int(arg)
                    args.append(arg)
            at += len(op.args) + 1
            ops.append(replace(op, args=tuple(args)))
        self._first_entry = int(self._entries.ctypes.data)
        self.ops = ops

    def run(self, batch: int, external: Sequence[int], threads: int = 1, holding: object = None) -> None:
        """Run all operations on a batch.

        `external` are the addresses of the input and output tensors, in the order of their numbers. `holding` is an
        object that owns the tensors; it is kept alive until no thread uses them, even after an interrupt.
        """
        if len(external) > _SLOTS - StateSlot.EXTERNAL:
            raise EngineError(
                f"{len(external)} tensors go in and out of one program: {_SLOTS - StateSlot.EXTERNAL} may"
            )
        blocks = -(-batch // self.images)
        threads = max(1, min(threads, blocks if self.split == "batch" else threads))
        workspace = self._take_workspace(threads)
        for state in workspace.states:
            state[StateSlot.EXTERNAL : StateSlot.EXTERNAL + len(external)] = external
        count, images, starts = len(self.ops), self.images, workspace.starts
        if threads == 1:
            self._drive(starts[0], self._first_entry, count, 0, blocks, images, batch)
        else:
            jobs = []
            for part, start in enumerate(starts):
                first, last = 0, blocks
                if self.split == "batch":
                    first, last = blocks * part // threads, blocks * (part + 1) // threads
                jobs.append((self._drive, (start, self._first_entry, count, first, last, images, batch)))
            used = (self._memory, self.library, workspace.states, workspace.arenas, workspace.barrier, holding)
            workspace.workers.run(jobs, used)
        self._return_workspace(workspace)  # not after an error, which leaves the state unknown

    def profile(
        self, batch: int, external: Sequence[int], clock: Callable[[], float] = time.perf_counter
    ) -> list[float]:
        """Run the batch on one thread, and return the seconds of each operation, without the time for measuring."""
        workspace = self._take_workspace(1)
        state = workspace.states[0]
        state[StateSlot.EXTERNAL : StateSlot.EXTERNAL + len(external)] = external
        seconds = [0.0] * len(self.ops)
        nothing = min(self._time_empty_call(workspace.starts[0], batch, clock) for _ in range(_EMPTY_CALLS))
        for block in range(-(-batch // self.images)):
            for index in range(len(self.ops)):
                begin = clock()
                entry = self._first_entry + 8 * index
                self._drive(workspace.starts[0], entry, 1, block, block + 1, self.images, batch)
                seconds[index] += max(0.0, clock() - begin - nothing)
        self._return_workspace(workspace)
        return seconds

    def _time_empty_call(self, start: int, batch: int, clock: Callable[[], float]) -> float:
        """Measure how many seconds a native call without operations takes."""
        begin = clock()
        self._drive(start, self._first_entry, 0, 0, 1, self.images, batch)
        return clock() - begin

    def open_session(self, threads: int = 1) -> ProgramSession:
        """Return a new `ProgramSession`; more than one thread requires a program with ``split="parts"``."""
        return ProgramSession(self, self._take_workspace(threads))

    def _take_workspace(self, threads: int) -> _Workspace:
        """Return an unused workspace that this process created, or a new one; threads do not survive a fork."""
        with self._lock:
            free = self._free.get((os.getpid(), threads))
            if free:
                return free.pop()
        shared = self.split == "parts"
        arenas = [MappedMemory(self.arena) for _ in range(1 if shared else threads)]
        barrier = np.zeros(BARRIER_BYTES // 8 + 8, dtype=np.int64)
        barrier = barrier[(-(barrier.ctypes.data // 8)) % 8 :]
        states = [np.zeros(_SLOTS, dtype=np.int64) for _ in range(threads)]
        for part, state in enumerate(states):
            state[StateSlot.ARENA] = arenas[0 if shared else part].address
            state[StateSlot.PART], state[StateSlot.PARTS] = (part, threads) if shared else (0, 1)
            state[StateSlot.BARRIER] = int(barrier.ctypes.data)
        starts = [int(state.ctypes.data) for state in states]
        return _Workspace(states, starts, arenas, barrier, Workers(threads - 1))

    def _return_workspace(self, workspace: _Workspace) -> None:
        with self._lock:
            self._free.setdefault((os.getpid(), len(workspace.states)), []).append(workspace)


class ProgramSession:
    """Runs ranges of a program's operations one after the other, and keeps the working memory between them."""

    def __init__(self, program: Program, workspace: _Workspace) -> None:
        self._program, self._workspace = program, workspace
        self._whole = True
        """Whether the workspace can be reused; after an error, the state of its memory and threads is unknown."""
        self.seconds: dict[str, float] | None = None
        """If not None, operations run one by one on one thread, and this dict collects their seconds by `Op.label`."""
        self.arena = workspace.arenas[0].bytes

    def run(
        self,
        first: int,
        last: int,
        external: Sequence[int] = (),
        images: int | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Run the operations ``first`` to ``last - 1`` on one block of images.

        `external` are the addresses of the input and output tensors; if it is empty, those of the previous call are
        used. `images` is the number of images in the block; None: the block is full. If `shared`, all threads share
        each operation, which is faster only if an operation takes longer than waking up a thread.
        """
        states = self._workspace.states if shared else self._workspace.states[:1]
        for state in states if external else ():
            state[StateSlot.EXTERNAL : StateSlot.EXTERNAL + len(external)] = external
        self._run([(first, last)] * len(states), images, apart=False)

    def run_ranges_in_parallel(self, bounds: Sequence[int]) -> None:
        """Run independent ranges of operations in parallel: thread i runs ``bounds[i]`` to ``bounds[i + 1] - 1``."""
        if len(self._workspace.states) == 1:
            self.run(bounds[0], bounds[-1])
        else:
            self._run(list(itertools.pairwise(bounds)), None, apart=True)

    def _run_timed(self, first: int, last: int, images: int, seconds: dict[str, float]) -> None:
        state, program = self._workspace.states[0], self._program
        state[StateSlot.PART], state[StateSlot.PARTS] = 0, 1
        for number in range(first, last):
            began = time.perf_counter()
            program._drive(self._workspace.starts[0], program._first_entry + 8 * number, 1, 0, 1, images, images)
            label = program.ops[number].label
            seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - began

    def _run(self, ranges: Sequence[tuple[int, int]], images: int | None, *, apart: bool) -> None:
        program, workspace = self._program, self._workspace
        images = program.images if images is None else images
        if len(ranges) == 1 and self.seconds is None:  # fast path of small steps
            (first, last), state = ranges[0], workspace.states[0]
            state[StateSlot.PART], state[StateSlot.PARTS] = 0, 1
            program._drive(workspace.starts[0], program._first_entry + 8 * first, last - first, 0, 1, images, images)
            return
        if self.seconds is not None:
            for low, high in ranges if apart else ranges[:1]:
                self._run_timed(low, high, images, self.seconds)
            return
        jobs: list[Job] = []
        for part, (first, last) in enumerate(ranges):
            state = workspace.states[part]
            state[StateSlot.PART], state[StateSlot.PARTS] = (0, 1) if apart else (part, len(ranges))
            given = (program._first_entry + 8 * first, last - first, 0, 1, images, images)
            jobs.append((program._drive, (workspace.starts[part], *given)))
        self._whole = False
        holding = (program._memory, program.library, workspace.states, workspace.arenas, workspace.barrier)
        workspace.workers.run(jobs, holding)
        self._whole = True

    def kernel(self, number: int) -> Kernel:
        """Return the kernel of operation `number`."""
        return self._program.ops[number].kernel

    def close(self) -> None:
        """Give the working memory back to the program for reuse; its contents are lost."""
        if self._whole:
            self._program._return_workspace(self._workspace)


# -- the native loop that runs all operations of a network on all blocks of a batch, in one call -----------------------

#     drive(state, ops, n_ops, first block, last block, images per block, images in total)
#
#     for block in first ... last:
#         for op in ops:
#             op.kernel(state, op)
#             if PARTS > 1: wait at the barrier
#
# PARTS is the number of threads that share each operation. Unless `Driver.denormals` is set, denormal numbers (below
# 1.2e-38) are flushed to zero. SiLU, GELU and softmax produce such numbers for very negative inputs, and multiplying by
# a denormal number costs more than a hundred cycles on Intel. The processor's flush flag is set during the call only.


BARRIER_BYTES = 128
"""Bytes of a barrier, which holds the number of waiting threads and, a cache line later, how often it has opened."""

_PATIENCE = 100
"""How often a waiting thread checks the barrier before it calls ``sched_yield``: a few microseconds.

The number is small because the thread that is still missing may need this core on a busy machine."""

_PAUSES = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}
"""LLVM code per processor that pauses a waiting loop for a moment: (declaration, call)."""

_FLUSHES = {
    "x86_64": (
        "declare void @llvm.x86.sse.stmxcsr(ptr)\ndeclare void @llvm.x86.sse.ldmxcsr(ptr)",
        """%before = alloca i32
  %during = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %before)
  %flags = load i32, ptr %before
  %flushing = or i32 %flags, 32832
  store i32 %flushing, ptr %during
  call void @llvm.x86.sse.ldmxcsr(ptr %during)""",
        "call void @llvm.x86.sse.ldmxcsr(ptr %before)",
    ),
    "aarch64": (
        "declare i64 @llvm.aarch64.get.fpcr()\ndeclare void @llvm.aarch64.set.fpcr(i64)",
        """%before = call i64 @llvm.aarch64.get.fpcr()
  %flushing = or i64 %before, 16777216
  call void @llvm.aarch64.set.fpcr(i64 %flushing)""",
        "call void @llvm.aarch64.set.fpcr(i64 %before)",
    ),
}
"""LLVM code per processor that flushes denormal numbers to zero: (declarations, code at entry, code at exit).

On x86 the entry code sets bits 15 (flush results) and 6 (treat inputs as zero) of the register MXCSR. The exit code
restores the register's old value."""

_DRIVE = """
target triple = "{triple}"

declare i32 @sched_yield()
{declaration}

define void @{name}(ptr noalias %state, ptr %ops, i64 %count, i64 %from, i64 %to, i64 %images, i64 %total) {{
entry:
  %parts.at = getelementptr i64, ptr %state, i64 {parts}
  %barrier.at = getelementptr i64, ptr %state, i64 {barrier}
  %first.at = getelementptr i64, ptr %state, i64 {first}
  %images.at = getelementptr i64, ptr %state, i64 {images}
  %parts = load i64, ptr %parts.at
  %barrier = load ptr, ptr %barrier.at
  %shared = icmp sgt i64 %parts, 1
  {flush}
  br label %block

block:
  %n = phi i64 [ %from, %entry ], [ %n.next, %block.done ]
  %more = icmp slt i64 %n, %to
  br i1 %more, label %begin, label %end

begin:
  %start = mul i64 %n, %images
  %left = sub i64 %total, %start
  %partial = icmp slt i64 %left, %images
  %here = select i1 %partial, i64 %left, i64 %images
  store i64 %start, ptr %first.at
  store i64 %here, ptr %images.at
  br label %operation

operation:
  %i = phi i64 [ 0, %begin ], [ %i.next, %operation.done ]
  %some = icmp slt i64 %i, %count
  br i1 %some, label %perform, label %block.done

perform:
  %op.at = getelementptr ptr, ptr %ops, i64 %i
  %op = load ptr, ptr %op.at
  %kernel = load ptr, ptr %op
  call void %kernel(ptr %state, ptr %op)
  br i1 %shared, label %meet, label %operation.done

meet:
  call void @meet.{name}(ptr %barrier, i64 %parts)
  br label %operation.done

operation.done:
  %i.next = add nsw i64 %i, 1
  br label %operation

block.done:
  %n.next = add nsw i64 %n, 1
  br label %block

end:
  {unflush}
  ret void
}}

define internal void @meet.{name}(ptr %barrier, i64 %parts) noinline {{
entry:
  %meeting.at = getelementptr i8, ptr %barrier, i64 64
  %meeting = load atomic i64, ptr %meeting.at acquire, align 8
  %before = atomicrmw add ptr %barrier, i64 1 acq_rel
  %come = add i64 %before, 1
  %all = icmp eq i64 %come, %parts
  br i1 %all, label %open, label %wait

open:
  store atomic i64 0, ptr %barrier monotonic, align 8
  %next = add i64 %meeting, 1
  store atomic i64 %next, ptr %meeting.at release, align 8
  ret void

wait:
  %turn = phi i64 [ 0, %entry ], [ %turn.next, %again ]
  %now = load atomic i64, ptr %meeting.at acquire, align 8
  %opened = icmp ne i64 %now, %meeting
  br i1 %opened, label %done, label %patience

patience:
  %turn.next = add i64 %turn, 1
  %tired = icmp sgt i64 %turn, {patience}
  br i1 %tired, label %yield, label %pause

yield:
  call i32 @sched_yield()
  br label %again

pause:
  {pause}
  br label %again

again:
  br label %wait

done:
  ret void
}}
"""


@dataclass(frozen=True)
class Driver:
    """A compiled function, ``drive``, which calls the kernels of all operations on all blocks of images."""

    denormals: bool = True
    """Whether denormal numbers are kept, as in torch, or flushed to zero."""

    def emit(self, name: str, target: Target) -> str:
        processor = target.triple.split("-")[0]
        declaration, pause = _PAUSES.get(processor, ("", ""))
        flush = unflush = ""
        if not self.denormals and processor in _FLUSHES:
            more, flush, unflush = _FLUSHES[processor]
            declaration = f"{declaration}\n{more}"
        slots = {slot.name.lower(): int(slot) for slot in StateSlot}
        words = {"declaration": declaration, "pause": pause, "flush": flush, "unflush": unflush}
        return _DRIVE.format(name=name, triple=target.triple, patience=_PATIENCE, **words, **slots)


# -- persistent threads, each fed by a queue, that run native calls without holding the GIL ----------------------------

# Jobs may wait for each other natively, so either all of them must start or none, wherever the caller is interrupted.
# Python runs signal handlers between its own instructions, never inside a C function. Therefore filling all queues and
# running the caller's own job is a single call of a C function (``list.extend`` over ``map``).


Job = tuple[Callable[..., Any], tuple[Any, ...]]

_CALL = methodcaller("__call__")


def count_cores() -> int:
    """Return the number of cores that the calling thread may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _JobBatch:
    """State that the jobs of one call of `Workers.run` share."""

    holding: object
    """Objects that the jobs use; each thread keeps a reference until its job ends, even if the caller does not."""
    threads: int
    """Number of worker threads that run a job; the caller's own thread is not counted."""
    ended: list[BaseException | None] = field(default_factory=list)
    """For each job that a worker thread has finished, in order: the error that the job raised, or None."""
    signal: SimpleQueue[None] = field(default_factory=SimpleQueue)


_Queue = SimpleQueue["tuple[Job, _JobBatch] | weakref.ref[Workers]"]


class Workers:
    """Worker threads, whose number does not change, for one caller at a time.

    The threads end when this object is garbage-collected.
    """

    def __init__(self, count: int) -> None:
        self._queues: list[_Queue] = [SimpleQueue() for _ in range(count)]
        for queue in self._queues:
            # The weak reference's callback is a C function, so no signal handler can raise inside it. The reference
            # is created before the thread starts, so that an interrupted caller leaves no waiting thread behind.
            gone = weakref.ref(self, queue.put)
            threading.Thread(target=_run_queued_jobs, args=(queue, gone), daemon=True, name="ticketry-engine").start()

    def run(self, jobs: Sequence[Job], holding: object = None) -> None:
        """Run the first job on the calling thread and each other job on a worker; return when all jobs have finished.

        There is at most one job more than workers. Either all jobs start or none. If a job or a signal handler raises
        an error, the first error is raised after all jobs have ended; do not use these workers again after that. The
        objects in `holding` are kept alive until the last job ends.
        """
        queues = self._queues[: len(jobs) - 1]
        if len(queues) < len(jobs) - 1:
            raise ValueError(f"{len(jobs)} jobs for {len(self._queues) + 1} threads")
        call = _JobBatch(holding, len(queues))
        steps: list[Callable[[], Any]] = [
            partial(queue.put, (job, call)) for queue, job in zip(queues, jobs[1:], strict=True)
        ]
        function, arguments = jobs[0]
        steps.append(partial(function, *arguments))
        begun: list[Any] = []
        errors: list[BaseException] = []
        try:
            begun.extend(map(_CALL, steps))
            if queues:
                call.signal.get()
        except BaseException as error:
            errors.append(error)
            while begun and len(call.ended) < len(queues):  # wait even if interrupted again
                with suppress(KeyboardInterrupt):
                    time.sleep(0.001)
        errors += [error for error in call.ended if error is not None]
        if errors:
            raise errors[0]


def _run_queued_jobs(queue: _Queue, gone: weakref.ref[Workers]) -> None:
    """Run jobs from `queue` until the queue delivers `gone`, the weak reference to a deleted `Workers` object."""
    while not isinstance(given := queue.get(), weakref.ref):
        (function, arguments), call = given
        error: BaseException | None = None
        try:
            function(*arguments)
        except BaseException as raised:
            error = raised
        call.ended.append(error)
        if len(call.ended) == call.threads:
            call.signal.put(None)
        del given, function, arguments, call, error
