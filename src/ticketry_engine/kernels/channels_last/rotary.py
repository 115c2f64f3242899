"""Rotary position embeddings: pairs of each head's channels turned by an angle of their own at each pixel."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.channels_last import loops
from ticketry_engine.kernels.channels_last.geometry import FLOAT, Pixels
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Op

_X, _COS, _SIN, _Y = range(4)
"""Arguments of the kernel: begins of the values."""


def rotary(x: Pixels, cos: Pixels, sin: Pixels, y: Pixels, half: int) -> list[Op]:
    """``y = x * cos + partner * sin`` for each head, as many channels as ``cos`` and ``sin`` have.

    The partner of a head's channel i is i + half for i < half, i - half below 2 half, and itself behind. ``y`` is none
    of the others.
    """
    loops.same_shape(x, y)
    loops.same_shape(cos, sin)
    size = cos.channels
    if x.channels % size or not x.part(0, size).like(cos) or 2 * half > size:
        raise EngineError(f"{x.channels} channels are no heads of {size} that are turned by halves of {half}")
    strides = tuple(Strides.of(one) for one in (x, cos, sin, y))
    kernel = Rotary(x.geometry.height, x.geometry.width, x.channels // size, size, half, *strides)
    return [Op(kernel, tuple(loops.begin(one) for one in (x, cos, sin, y)))]


@dataclass(frozen=True)
class Rotary(Written):
    """Head by head, each half with the other one."""

    height: int
    width: int
    heads: int
    size: int
    half: int
    x: Strides
    cos: Strides
    sin: Strides
    y: Strides

    def write(self, e: Emitter) -> None:
        values = [(_X, self.x), (_COS, self.cos), (_SIN, self.sin), (_Y, self.y)]
        with loops.pixels(e, self.height, self.width, values) as (_, _, pixel), e.loop(0, self.heads) as head:
            x, cos, sin, y = pixel
            x, y = (
                e.at(place, e.b.mul(head.index, e.i64(self.size * steps.item)))
                for place, steps in ((x, self.x), (y, self.y))
            )
            for first, partner, count in self._runs():
                self._run(e, (x, cos, sin, y), first, partner, count)

    def _runs(self) -> list[tuple[int, int, int]]:
        """Channels in a row: the first, its partner, and how many."""
        rest = self.size - 2 * self.half
        runs = [(0, self.half, self.half), (self.half, 0, self.half), (2 * self.half, 2 * self.half, rest)]
        return [run for run in runs if run[2]]

    def _run(self, e: Emitter, places: tuple[ir.Value, ...], first: int, partner: int, count: int) -> None:
        x, cos, sin, y = places

        def some(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = loops.next_vector(e, byte, number)
                mine, its = (e.b.add(at, e.i64(FLOAT * channel)) for channel in (first, partner))
                straight = e.b.fmul(
                    loops.get(e, x, mine, lanes, self.x.item), loops.get(e, cos, mine, lanes, self.cos.item)
                )
                crossed = loops.get(e, x, its, lanes, self.x.item)
                turned = e.fma(crossed, loops.get(e, sin, mine, lanes, self.sin.item), straight)
                loops.put(e, turned, y, mine, lanes, self.y.item)

        loops.vectors(e, count, 2, some)
