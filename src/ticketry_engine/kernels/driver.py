"""The native loop that runs all operations of a network on all blocks of a batch, in one call.

    drive(state, ops, n_ops, first block, last block, images per block, images in total)

    for block in first ... last:
        for op in ops:
            op.kernel(state, op)
            if PARTS > 1: wait at the barrier

A block is a few images of the batch; PARTS is the number of threads that share each operation.

Unless `Driver.denormals` is set, denormal numbers (below 1.2e-38) are flushed to zero. SiLU, GELU and softmax produce
such numbers for very negative inputs, and multiplying by a denormal number costs more than a hundred cycles on Intel.
The processor's flush flag is set during the call only.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from queue import SimpleQueue
from typing import Any

from ticketry_engine.kernels.emitter import StateSlot
from ticketry_engine.kernels.target import Target

BARRIER_BYTES = 128
"""Bytes of a barrier: the number of threads that arrived and, a cache line later, how often the barrier opened."""

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
    """Description of the function ``drive`` that calls the kernels: see the module docstring."""

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


# -- Persistent threads, each fed by a queue, that run native calls without holding the GIL ----------------------------

# Jobs may wait for each other natively, so either all of them must start or none, wherever the caller is interrupted.
# Python runs signal handlers between its own instructions, never inside a C function. Therefore filling all queues and
# running the caller's own job is a single call of a C function (``list.extend`` over ``map``).


Job = tuple[Callable[..., Any], tuple[Any, ...]]

_CALL = methodcaller("__call__")


def cores() -> int:
    """Return the number of cores that the calling thread may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _JobBatch:
    """State shared by the jobs of one call of `Workers.run`."""

    holding: object
    """Objects that the jobs use; each thread keeps a reference until its job ends, even if the caller does not."""
    threads: int
    """Number of worker threads that run a job; the caller's own thread is not counted."""
    ended: list[BaseException | None] = field(default_factory=list)
    """For each job that a worker thread has finished, in order: the error that the job raised, or None."""
    signal: SimpleQueue[None] = field(default_factory=SimpleQueue)
    """Receives an entry when the worker threads have finished all their jobs."""


_Queue = SimpleQueue["tuple[Job, _JobBatch] | weakref.ref[Workers]"]


class Workers:
    """A fixed number of worker threads for one caller at a time; they end when this object is garbage-collected."""

    def __init__(self, count: int) -> None:
        self._queues: list[_Queue] = [SimpleQueue() for _ in range(count)]
        for queue in self._queues:
            # The weak reference's callback is a C function, so no signal handler can raise inside it. The reference
            # is created before the thread starts, so that an interrupted caller leaves no waiting thread behind.
            gone = weakref.ref(self, queue.put)
            threading.Thread(target=_run_queued_jobs, args=(queue, gone), daemon=True, name="ticketry-engine").start()

    def run(self, jobs: Sequence[Job], holding: object = None) -> None:
        """Run the first job on the calling thread and each other job on a worker; return when all jobs have finished.

        Args:
            jobs: functions with their arguments, at most one job more than there are workers. All jobs start or none.
            holding: objects that the jobs use; they are kept alive until the last job ends.

        Raises:
            BaseException: the first error of a job or a signal handler, raised after all jobs have ended. Do not use
                these workers again afterwards.
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
    """Run jobs from `queue` until it delivers `gone`, a weak reference to the garbage-collected `Workers`."""
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
