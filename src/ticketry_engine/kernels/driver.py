"""The native loop over blocks and operations: a whole network is one call into it.

    drive(state, ops, n_ops, first block, last block, images per block, images in total)

    for block in first ... last:
        for op in ops:
            op.kernel(state, op)
            if PARTS > 1: wait at the barrier

Inference flushes denormal numbers (below 1.2e-38) to zero (`Driver.denormals`). SiLU, GELU and softmax produce them for
very negative inputs, and multiplying with one costs more than a hundred cycles on Intel. The processor's flag is set
during the call only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ticketry_engine.kernels.emitter import State
from ticketry_engine.kernels.target import Target

BARRIER_BYTES = 128
"""Size of a barrier: the arrival counter and, on its own cache line, the generation number."""

_PATIENCE = 100
"""Spins before a waiting thread calls ``sched_yield``: a few microseconds.

A small number matters on busy machines, where the awaited thread may need this core."""

_PAUSES = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}
"""Spin-wait hint per processor: (declaration, call)."""

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
"""Code that flushes denormals per processor: (declarations, code at entry, code at exit).

On x86 it sets bits 15 (flush results) and 6 (treat inputs as zero) of MXCSR; the exit code restores the old state."""

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
    """The function that calls the kernels; its signature differs from theirs (see the module docstring)."""

    denormals: bool = True
    """Whether denormal numbers are preserved, as in torch."""

    def emit(self, name: str, target: Target) -> str:
        processor = target.triple.split("-")[0]
        declaration, pause = _PAUSES.get(processor, ("", ""))
        flush = unflush = ""
        if not self.denormals and processor in _FLUSHES:
            more, flush, unflush = _FLUSHES[processor]
            declaration = f"{declaration}\n{more}"
        slots = {slot.name.lower(): int(slot) for slot in State}
        words = {"declaration": declaration, "pause": pause, "flush": flush, "unflush": unflush}
        return _DRIVE.format(name=name, triple=target.triple, patience=_PATIENCE, **words, **slots)
