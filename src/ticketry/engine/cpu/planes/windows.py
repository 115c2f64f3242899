"""The kernels of pooling: windows position by position or many positions at once, and the mean of a whole plane."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from ticketry.engine.cpu.emit import Emitter
from ticketry.engine.cpu.planes import lanes
from ticketry.engine.cpu.planes.geometry import FLOAT
from ticketry.engine.cpu.target import Target


class _Line:
    """A row of the output, and the rows of the input that its windows have taps in."""

    def __init__(self, e: Emitter, turn: ir.Value) -> None:
        b = e.b
        height, self.width, self.down, self.right, start, step = (e.arg(i) for i in range(1, 7))
        channel, row = b.udiv(turn, height), b.urem(turn, height)
        x, y = (e.arena(e.load_i64(e.table(i), b.mul(channel, e.i64(8)))) for i in (9, 10))
        entry = e.at(e.table(7), b.mul(row, e.i64(16)))
        self.x, self.rows = e.at(x, e.load_i64(entry)), e.load_i64(entry, 8)
        self.y = e.at(y, b.add(start, b.mul(row, step)))
        self._e, self._row = e, row

    def share(self) -> ir.Value:
        """By what the sums of this row are multiplied."""
        return self._e.load_f32(self._e.table(8), self._e.b.mul(self._row, self._e.i64(FLOAT)))


@contextmanager
def _lines(e: Emitter) -> Iterator[_Line]:
    low, high = e.share(e.b.mul(e.arg(0), e.arg(1)))
    with e.loop(low, high) as turn:
        yield _Line(e, turn.index)


def _nothing(kind: str) -> float:
    return 0.0 if kind == "mean" else float("-inf")


def _added(e: Emitter, kind: str, old: ir.Value, new: ir.Value) -> ir.Value:
    return e.b.fadd(old, new) if kind == "mean" else e.select(e.b.fcmp_ordered(">", old, new), old, new)


@dataclass(frozen=True)
class Windows:
    """The largest (``"max"``) or mean (``"mean"``) value of windows of any shape, position by position.

    A vector holds the images of one position. The last arguments are the shares by which columns' sums are multiplied,
    and for each column where its windows begin and how many taps they have.
    """

    kind: str
    images: int

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b = e.b
        shares, columns = e.table(11), e.table(12)
        with _lines(e) as line, e.loop(0, line.width) as column:
            entry = e.at(columns, b.mul(column.index, e.i64(16)))
            found = self._window(e, line, e.at(line.x, e.load_i64(entry)), e.load_i64(entry, 8))
            here = e.at(line.y, b.mul(column.index, e.i64(FLOAT * self.images)))
            if self.kind == "mean":
                share = b.fmul(line.share(), e.load_f32(shares, b.mul(column.index, e.i64(FLOAT))))
                found = [b.fmul(value, lanes.splat(e, share, value.type.count)) for value in found]
            for part, value in enumerate(found):
                b.store(value, e.at(here, FLOAT * target.lanes * part), align=FLOAT)
        return e.text()

    def _window(self, e: Emitter, line: _Line, first: ir.Value, count: ir.Value) -> list[ir.Value]:
        """What the taps inside come to, as many vectors as a position's images take."""
        b = e.b
        kind = lanes.vector(min(self.images, e.target.lanes))
        begin = ir.Constant(kind, [_nothing(self.kind)] * kind.count)
        parts = range(self.images // kind.count)
        with e.loop(0, line.rows, carried=[begin for _ in parts]) as row:
            taps = e.at(first, b.mul(row.index, line.down))
            with e.loop(0, count, carried=row.carried) as tap:
                place = e.at(taps, b.mul(tap.index, line.right))
                values = [b.load(e.at(place, FLOAT * kind.count * part), typ=kind, align=FLOAT) for part in parts]
                tap.next = [_added(e, self.kind, *pair) for pair in zip(tap.carried, values, strict=True)]
            row.next = tap.results
        return row.results


@dataclass(frozen=True)
class Spans:
    """As `Windows`, for few images: vectors run over positions.

    With a stride, positions between those wanted are worked out too and left out at the end. Positions outside the
    input are read as the halo's zeros (means), or `bounded`. The last arguments are the shares of each float of a row's
    sums, or what each float of a row of the input counts at most; and the byte at which a row's first window begins.
    """

    kind: str
    images: int
    taps: int
    """Columns of a window."""
    stride: int
    """From one window to the next along a row."""
    bounded: bool
    """Whether windows reach over the ends of a row and their largest values are wanted."""

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b, width = e.b, target.lanes
        with _lines(e) as line:
            line.x = e.at(line.x, e.arg(12))
            floats = b.mul(line.width, e.i64(self.images))
            whole = b.and_(floats, e.i64(-width))
            with e.loop(0, whole, width) as loop:
                self._vector(e, line, loop.index, None)
            rest = b.sub(floats, whole)
            with e.when(b.icmp_signed(">", rest, e.i64(0))):
                self._vector(e, line, whole, lanes.within(e, rest))
        return e.text()

    def _vector(self, e: Emitter, line: _Line, first: ir.Value, mask: ir.Value | None) -> None:
        """A vector of a row of the output, from a float on."""
        byte = e.b.mul(first, e.i64(FLOAT))
        value = lanes.every(e, self._sums(e, line, e.b.mul(byte, e.i64(self.stride))), self.images)
        if self.kind == "mean":
            value = e.b.fmul(value, e.b.fmul(e.splat(line.share()), e.load(e.table(11), byte)))
        lanes.store(e, value, line.y, byte, mask)

    def _sums(self, e: Emitter, line: _Line, byte: ir.Value) -> list[ir.Value]:
        """What windows that begin at each of so many neighbouring positions come to."""
        b = e.b
        vectors = [FLOAT * e.target.lanes * part for part in range(self.stride)]
        with e.loop(0, line.rows, carried=[e.splat(_nothing(self.kind))] * self.stride) as row:
            start = e.at(line.x, b.add(byte, b.mul(row.index, line.down)))
            row.next = list(row.carried)
            for tap in range(self.taps):
                along = b.mul(line.right, e.i64(tap))
                for part, further in enumerate(vectors):
                    value = e.load(e.at(start, along), further)
                    if self.bounded:
                        most = e.load(e.at(e.table(11), b.add(byte, along)), further)
                        value = e.select(b.fcmp_ordered("<", most, value), most, value)
                    row.next[part] = _added(e, self.kind, row.next[part], value)
        return row.results


@dataclass(frozen=True)
class Mean:
    """The mean of each plane, whose halo of zeros between the rows is added too."""

    images: int

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        b, width = e.b, target.lanes
        channels, start, floats, place = (e.arg(i) for i in range(4))
        share, xs, ys = (e.table(i) for i in range(4, 7))
        sums = 4 if self.images <= 4 * width else self.images // width
        low, high = e.share(channels)
        with e.loop(low, high) as turn:
            x, y = (e.arena(e.load_i64(table, b.mul(turn.index, e.i64(8)))) for table in (xs, ys))
            x, y = e.at(x, start), e.at(y, place)
            zero = e.splat(0.0)
            whole = b.mul(b.udiv(floats, e.i64(sums * width)), e.i64(sums * width))
            with e.loop(0, whole, sums * width, carried=[zero] * sums) as loop:
                here = e.at(x, b.mul(loop.index, e.i64(FLOAT)))
                loop.next = [b.fadd(old, e.load(here, FLOAT * width * k)) for k, old in enumerate(loop.carried)]
            rest, here = b.sub(floats, whole), e.at(x, b.mul(whole, e.i64(FLOAT)))
            found = [
                b.fadd(old, lanes.load(e, here, FLOAT * width * k, lanes.within(e, b.sub(rest, e.i64(k * width)))))
                for k, old in enumerate(loop.results)
            ]
            apart = max(1, self.images // width)
            for part in range(apart):
                value = found[part]
                for other in found[part + apart :: apart]:
                    value = b.fadd(value, other)
                value = lanes.folded(e, value, min(self.images, width))
                value = b.fmul(value, lanes.splat(e, e.load_f32(share), value.type.count))
                b.store(value, e.at(y, FLOAT * width * part), align=FLOAT)
        return e.text()
