"""Link operations and their tables into a native program, and run the program over a batch with one or more threads.

    batch:   | block 0 | block 1 | ... |       a block has `images` images
    block:   op 0 -> op 1 -> op 2 -> ...       all operations, one block at a time, in one arena

Blocks are small enough for their activations to stay in the cache from one operation to the next. A whole run is one
native call (`driver`), so no time is spent in Python between operations.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.driver import BARRIER_BYTES, Driver, Job, Workers
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
    """Name of the layer that the operation belongs to."""


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
    def of(cls, name: str, values: np.ndarray[Any, Any]) -> Bias:
        """Build a bias from an array [heads, queries, keys] or [windows, heads, queries, keys].

        A size of 1 in place of windows or heads means that all of them share a table.
        """
        heads = values.shape[-3]
        several = values.ndim == 4 and len(values) > 1
        return cls(name, values.reshape(-1, *values.shape[-2:]), int(heads > 1), heads if several else 0)


@dataclass(frozen=True)
class BlockSpec:
    """What functions that build operations need to know: the processor, the block size and the scratch memory."""

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
    """What one call of a program uses: a state array per thread, working memory, a barrier and worker threads."""

    states: list[np.ndarray[Any, Any]]
    starts: list[int]
    """Addresses of the state arrays."""
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
    """Operations that are linked and ready to run.

    Args:
        ops: the operations, in the order in which each block passes through them.
        images: images per block.
        arena: bytes of working memory per thread.
        library: compiles and holds the kernels.
        split: how threads divide the work. With "batch", each thread runs whole blocks in its own working memory. With
            "parts", all threads share each operation of each block, and one working memory.
        denormals: whether to keep denormal numbers; flushing them to zero is faster (see `driver`).
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
        self._link(addresses[1:])

    @property
    def table_bytes(self) -> int:
        """Total bytes of all tables (weights, biases, offsets); a shared table counts once."""
        tables = [arg for op in self.ops for arg in op.args if isinstance(arg, np.ndarray)]
        return sum({table.ctypes.data: table.nbytes for table in tables}.values())

    def _link(self, addresses: Sequence[int]) -> None:
        """Copy all tables, the list of operations and their arguments into one memory, as native code reads them.

        The tables of `ops` become views of that memory, so that no table is stored twice.

        Args:
            addresses: address of each operation's kernel.
        """
        # Tables shared by several operations are stored once.
        tables = {id(arg): arg for op in self.ops for arg in op.args if isinstance(arg, np.ndarray)}
        ends = list(itertools.accumulate(_padded_size(table.nbytes) for table in tables.values()))
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

        Args:
            batch: number of images.
            external: addresses of the input and output tensors, in the order of their numbers.
            threads: number of threads that share the work.
            holding: object that owns the tensors; it is kept alive until no thread uses them, even after an interrupt.
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
        """Run the batch on one thread, and return the seconds that each operation took, without the time for measuring.

        Args:
            batch: number of images.
            external: addresses of the input and output tensors.
            clock: function that returns the current time in seconds.
        """
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
        """Return the seconds that a native call without operations takes: a microsecond or two."""
        begin = clock()
        self._drive(start, self._first_entry, 0, 0, 1, self.images, batch)
        return clock() - begin

    def session(self, threads: int = 1) -> ProgramSession:
        """Return a `ProgramSession`, which runs ranges of operations and keeps the working memory between calls.

        More than one thread requires a program with ``split="parts"``, because the threads share each operation.
        """
        return ProgramSession(self, self._take_workspace(threads))

    def _take_workspace(self, threads: int) -> _Workspace:
        """Return an unused workspace for `threads` threads, or create one; each concurrent call gets its own.

        A forked process creates its own workspaces, because worker threads do not survive a fork.
        """
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
        """Whether the workspace can be reused: False after an error, which leaves memory and threads in any state."""
        self.seconds: dict[str, float] | None = None
        """None, or a dict that collects seconds by `Op.label`; then operations run one by one on one thread."""
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

        Args:
            first: number of the first operation.
            last: number after the last operation.
            external: addresses of the input and output tensors; if empty, those of the call before remain valid.
            images: number of images; None for all images of a block.
            shared: whether all threads share each operation, which is faster only if operations take longer than it
                takes to wake up a thread.
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


def _padded_size(size: int) -> int:
    """Round a table's bytes up to whole cache lines and add a line, which a vector load at the table's end may read."""
    return -(-size // 64) * 64 + 64
