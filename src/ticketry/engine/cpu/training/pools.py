"""Pooling with its gradient: windows that lie side by side, or the whole plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ticketry.engine.cpu.emitter import Emitter, Written
from ticketry.engine.cpu.planes.geometry import FLOAT
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.training.layout import IMAGES, Batch
from ticketry.engine.cpu.window import Pair


@dataclass(frozen=True)
class Pool(Written):
    """Args:
    size: rows and columns of a window; windows lie side by side.
    steps: bytes from one row, and from one position, to the next, in x and in what has its pixels.
    largest: whether the largest input counts, or their mean.
    backward: whether gradients go back: values are dy, dx and, where the largest counts, x.
    """

    size: Pair
    steps: tuple[Pair, ...]
    largest: bool
    backward: bool

    def write(self, e: Emitter) -> None:
        b = e.b
        planes, rows, columns = (e.arg(number) for number in range(3))
        small, large, other = (
            (e.arena(e.arg(3 + 4 * side)), *(e.arg(4 + 4 * side + w) for w in range(3))) for side in range(3)
        )
        with e.loop(*e.share(planes)) as plane, e.loop(0, rows) as row, e.loop(0, columns) as column:
            turn = (plane.index, row.index, column.index)

            def place(side: tuple[Any, ...]) -> Any:
                at = side[0]
                for index, step in zip(turn, side[1:], strict=True):
                    at = e.at(at, b.mul(index, step))
                return at

            places = [place(side) for side in (small, large, other)]
            for part in range(0, IMAGES, e.target.lanes):
                at = [e.at(one, part * FLOAT) for one in places]
                (self._back if self.backward else self._forth)(e, *at)

    def _taps(self, side: int) -> list[int]:
        """The byte of each tap of a window, in the large value or the other one."""
        by_row, by_column = self.steps[side]
        return [r * by_row + c * by_column for r in range(self.size[0]) for c in range(self.size[1])]

    def _forth(self, e: Emitter, y: Any, x: Any, _: Any) -> None:
        first, *others = [e.load(x, tap) for tap in self._taps(0)]
        found = first
        for value in others:
            if self.largest:  # NaN wins, as in torch
                larger = e.b.or_(e.b.fcmp_ordered(">", value, found), e.b.fcmp_unordered("uno", value, value))
                found = e.select(larger, value, found)
            else:
                found = e.b.fadd(found, value)
        e.store(found if self.largest else e.b.fmul(found, e.splat(1 / (len(others) + 1))), y)

    def _back(self, e: Emitter, dy: Any, dx: Any, x: Any) -> None:
        gradient = e.load(dy)
        if not self.largest:
            share = e.b.fmul(gradient, e.splat(1 / len(self._taps(0))))
            for tap in self._taps(0):
                e.store(share, dx, tap)
            return
        values = [e.load(x, tap) for tap in self._taps(1)]
        # To the first of the largest, as in torch: what is left goes from tap to tap.
        largest = values[0]
        for value in values[1:]:
            largest = e.select(e.b.fcmp_ordered(">", value, largest), value, largest)
        for tap, value in zip(self._taps(0), values, strict=True):
            here = e.b.fcmp_unordered(">=", value, largest)
            e.store(e.select(here, gradient, e.splat(0.0)), dx, tap)
            gradient = e.select(here, e.splat(0.0), gradient)


def forth(x: Batch, y: Batch, size: Pair, *, largest: bool) -> Op:
    """``y`` from windows of x that lie side by side."""
    return _op(y, x, x, size, largest, False)


def back(dy: Batch, dx: Batch, x: Batch, size: Pair, *, largest: bool) -> Op:
    """The gradient of x, in windows: what no window covers is left as it is."""
    return _op(dy, dx, x, size, largest, True)


def _op(small: Batch, large: Batch, other: Batch, size: Pair, largest: bool, backward: bool) -> Op:
    g = small.geometry
    steps = tuple((value.geometry.row * value.geometry.step, value.geometry.step) for value in (large, other))
    args: list[int] = [small.channels * small.blocks, g.height, g.width]
    for value, by in ((small, (1, 1)), (large, size), (other, size)):
        at = value.geometry
        args += [value.offset + at.position(0, 0) * at.step, at.bytes, by[0] * at.row * at.step, by[1] * at.step]
    return Op(Pool(size, steps, largest, backward), tuple(args))
