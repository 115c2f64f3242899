"""Small kernels by which tests see what the engine's runtime hands to kernels."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry_engine.kernels.emitter import I64, Emitter, StateSlot
from ticketry_engine.kernels.target import Target


@dataclass(frozen=True)
class Mark:
    """Writes to the first external tensor, at the image's number, its first argument added to what stands there."""

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        first = e.state(StateSlot.FIRST)
        low, high = e.thread_share(e.state(StateSlot.IMAGES))
        with e.loop(low, high) as image:
            place = e.offset_pointer(e.tensor_pointer(e.i64(0)), e.b.mul(e.b.add(first, image.index), e.i64(8)))
            e.b.store(e.b.add(e.load_i64(place), e.arg(0)), place, align=8)
        return e.text()


@dataclass(frozen=True)
class Sum:
    """Adds up its table (of int64, as many as its first argument) to the first external tensor's first number."""

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        with e.loop(0, e.arg(0), carried=[e.i64(0)]) as loop:
            loop.next = [e.b.add(loop.carried[0], e.load_i64(e.table(1), e.b.mul(loop.index, e.i64(8))))]
        place = e.tensor_pointer(e.i64(0))
        e.b.store(e.b.add(e.load_i64(place), loop.results[0]), place, align=8)
        return e.text()


@dataclass(frozen=True)
class Round:
    """One round of a chain over the slots of all threads: a slot gets one more than its neighbour had before.

    Right only if no thread begins a round before all have ended the last one. Arguments: which half of the slots is
    read, which is written. The final values go to the external tensor.
    """

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b = e.b
        part, parts = e.state(StateSlot.PART), e.state(StateSlot.PARTS)
        neighbour = b.urem(b.add(part, e.i64(1)), parts)
        old, new = (e.offset_pointer(e.arena_pointer(), b.mul(e.arg(k), e.i64(64 * 64))) for k in (0, 1))
        value = b.add(e.load_i64(old, b.mul(neighbour, e.i64(64))), e.i64(1))
        b.store(value, e.offset_pointer(new, b.mul(part, e.i64(64))), align=8)
        b.store(value, e.offset_pointer(e.tensor_pointer(e.i64(0)), b.mul(part, e.i64(8))), align=8)
        return e.text()


@dataclass(frozen=True)
class Constant:
    """Adds a number to the first element of the first external tensor."""

    number: int

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        place = e.tensor_pointer(e.i64(0))
        value = e.b.load(place, typ=I64, align=8)
        e.b.store(e.b.add(value, e.i64(self.number)), place, align=8)
        return e.text()
