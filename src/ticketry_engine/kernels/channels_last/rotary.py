"""Rotary position embeddings: rotate pairs of a head's channels by an angle that depends on the token.

    y[token, c] = x[token, c] * cos[token, c] + x[token, partner(c)] * sin[token, c]

    channels of a head:   0 ... half - 1 | half ... 2 half - 1 | 2 half ... size - 1
    partner(c):           c + half       | c - half            | c

Each of the three ranges is a run of consecutive channels with a constant distance to its partners, so the kernel loads
whole vectors of both and multiplies them without shuffles.
"""

from __future__ import annotations

from dataclasses import dataclass

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.channels_last import loops
from ticketry_engine.kernels.channels_last.geometry import FLOAT, ChannelsLastValue
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Op

_X, _COS, _SIN, _Y = range(4)
"""Arguments: offsets of the values' first pixels."""


def rotary(
    x: ChannelsLastValue, cos: ChannelsLastValue, sin: ChannelsLastValue, y: ChannelsLastValue, half: int
) -> list[Op]:
    """Return operations for ``y = x * cos + partner(x) * sin``, head by head; the partners are drawn above.

    Args:
        x: its channels are several heads, each with as many channels as ``cos`` and ``sin``.
        y: the result; it must not overlap the inputs.

    Raises:
        EngineError: if x does not consist of such heads, or ``2 * half`` exceeds a head's channels.
    """
    loops.check_same_shape(x, y)
    loops.check_same_shape(cos, sin)
    size = cos.channels
    if x.channels % size or not x.part(0, size).like(cos) or 2 * half > size:
        raise EngineError(f"{x.channels} channels cannot be split into heads of {size} with two halves of {half}")
    strides = tuple(Strides.from_value(one) for one in (x, cos, sin, y))
    kernel = Rotary(x.geometry.height, x.geometry.width, x.channels // size, size, half, *strides)
    return [Op(kernel, tuple(loops.first_pixel(one) for one in (x, cos, sin, y)))]


@dataclass(frozen=True)
class Rotary(Written):
    """Kernel of rotary embeddings; `rotary` explains it."""

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
        with loops.loop_pixels(e, self.height, self.width, values) as (_, _, pixel), e.loop(0, self.heads) as head:
            x, cos, sin, y = pixel
            x, y = (
                e.at(place, e.b.mul(head.index, e.i64(self.size * steps.item)))
                for place, steps in ((x, self.x), (y, self.y))
            )
            for first, partner, count in self._channel_runs():
                self._write_run(e, (x, cos, sin, y), first, partner, count)

    def _channel_runs(self) -> list[tuple[int, int, int]]:
        """Return runs of channels with a constant distance to their partners: (first, first partner, count)."""
        rest = self.size - 2 * self.half
        runs = [(0, self.half, self.half), (self.half, 0, self.half), (2 * self.half, 2 * self.half, rest)]
        return [run for run in runs if run[2]]

    def _write_run(self, e: Emitter, places: tuple[ir.Value, ...], first: int, partner: int, count: int) -> None:
        x, cos, sin, y = places

        def write_vectors(byte: ir.Value, counts: list[int]) -> None:
            for number, lanes in enumerate(counts):
                at = loops.vector_offset(e, byte, number)
                mine, its = (e.b.add(at, e.i64(FLOAT * channel)) for channel in (first, partner))
                straight = e.b.fmul(
                    loops.load_vector(e, x, mine, lanes, self.x.item),
                    loops.load_vector(e, cos, mine, lanes, self.cos.item),
                )
                crossed = loops.load_vector(e, x, its, lanes, self.x.item)
                turned = e.fma(crossed, loops.load_vector(e, sin, mine, lanes, self.sin.item), straight)
                loops.store_vector(e, turned, y, mine, lanes, self.y.item)

        loops.loop_vectors(e, count, 2, write_vectors)
