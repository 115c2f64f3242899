"""Max and average pooling with their gradients.

    forward    y = max or mean of x over the window
    backward   mean: dx = dy / taps;      max: dx = dy at the first largest input, 0 at the others

`AdjacentPool` handles windows that adjoin each other and windows of a whole plane: each input is in one window, so its
gradient is stored. `Overlapping` handles overlapping max windows and adds to dx. A vector holds the images of one
position, so lanes are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.training.layer import IMAGES, Batch
from ticketry_engine.kernels.window import Pair, Window


@dataclass(frozen=True)
class AdjacentPool(EmittedKernel):
    """Kernel of pooling with windows that adjoin each other without overlap.

    Args:
        size: rows and columns of a window.
        steps: bytes between two rows and between two pixels, first in the value that windows cover (x or dx), then in
            x.
        largest: whether to compute the maximum rather than the mean.
        backward: whether to compute gradients; the values are then dy, dx and, for max pooling, x.
        item: bytes of a stored value.
    """

    size: Pair
    steps: tuple[Pair, ...]
    largest: bool
    backward: bool
    item: int

    def write(self, e: Emitter) -> None:
        b = e.b
        planes, rows, columns = (e.arg(number) for number in range(3))
        small, large, other = (
            (e.arena_pointer(e.arg(3 + 4 * side)), *(e.arg(4 + 4 * side + w) for w in range(3))) for side in range(3)
        )
        with e.loop(*e.thread_share(planes)) as plane, e.loop(0, rows) as row, e.loop(0, columns) as column:
            turn = (plane.index, row.index, column.index)

            def advance_pointer(side: tuple[Any, ...]) -> Any:
                at = side[0]
                for index, step in zip(turn, side[1:], strict=True):
                    at = e.offset_pointer(at, b.mul(index, step))
                return at

            places = [advance_pointer(side) for side in (small, large, other)]
            for part in range(0, IMAGES * FLOAT, e.target.lanes * self.item):
                at = [e.offset_pointer(one, part) for one in places]
                (self._backward if self.backward else self._forward)(e, *at)

    def _tap_bytes(self, side: int) -> list[int]:
        """Return the byte offset of each tap of a window, in x or dx if `side` is 0, in x if `side` is 1."""
        by_row, by_column = self.steps[side]
        return [r * by_row + c * by_column for r in range(self.size[0]) for c in range(self.size[1])]

    def _forward(self, e: Emitter, y: Any, x: Any, _: Any) -> None:
        first, *others = [bfloat.load(e, x, tap, self.item) for tap in self._tap_bytes(0)]
        found = _maximum(e, [first, *others]) if self.largest else first
        for value in () if self.largest else others:
            found = e.b.fadd(found, value)
        found = found if self.largest else e.b.fmul(found, e.splat(1 / (len(others) + 1)))
        bfloat.store(e, found, y, 0, self.item)

    def _backward(self, e: Emitter, dy: Any, dx: Any, x: Any) -> None:
        gradient = bfloat.load(e, dy, 0, self.item)
        if not self.largest:
            share = e.b.fmul(gradient, e.splat(1 / len(self._tap_bytes(0))))
            for tap in self._tap_bytes(0):
                bfloat.store(e, share, dx, tap, self.item)
            return
        values = [bfloat.load(e, x, tap, self.item) for tap in self._tap_bytes(1)]
        # The first of the largest gets the gradient, as in torch; `gradient` is zeroed once it is used.
        largest = values[0]
        for value in values[1:]:
            largest = e.select(e.b.fcmp_ordered(">", value, largest), value, largest)
        for tap, value in zip(self._tap_bytes(0), values, strict=True):
            here = e.b.fcmp_unordered(">=", value, largest)
            bfloat.store(e, e.select(here, gradient, e.splat(0.0)), dx, tap, self.item)
            gradient = e.select(here, e.splat(0.0), gradient)


def build_adjacent_op(small: Batch, large: Batch, x: Batch, size: Pair, *, largest: bool, backward: bool) -> Op:
    """Return the operation of pooling over windows that adjoin each other, or of its gradient if `backward`.

    Args:
        small: the output y, or its gradient dy if `backward`.
        large: the input x, or its gradient dx if `backward`; pixels of dx outside all windows are left unchanged.
        x: the input.
        size: rows and columns of a window.
        largest: whether to compute maxima instead of means.
        backward: whether to compute the gradient.
    """
    g = small.geometry
    steps = tuple(
        (value.geometry.row * value.geometry.position_bytes, value.geometry.position_bytes) for value in (large, x)
    )
    args: list[int] = [small.channels * small.blocks, g.height, g.width]
    for value, by in ((small, (1, 1)), (large, size), (x, size)):
        at = value.geometry
        args += [
            value.offset + at.pixel_position(0, 0) * at.position_bytes,
            at.bytes,
            by[0] * at.row * at.position_bytes,
            by[1] * at.position_bytes,
        ]
    return Op(AdjacentPool(size, steps, largest, backward, small.item), tuple(args))


@dataclass(frozen=True)
class Overlapping(EmittedKernel):
    """Kernel of max pooling with overlapping or padded windows.

    A tap (position in the window) outside of the image reads the nearest pixel of the image.

    Args:
        window: size, stride and padding.
        steps: bytes between two rows and between two pixels, in x; for gradients, first in dx and then in x.
        inside: rows and columns of x.
        backward: whether to add gradients to dx (values dy, dx, x) rather than pool (values y, x).
        item: bytes of a stored value.
    """

    window: Window
    steps: tuple[Pair, ...]
    inside: Pair
    backward: bool
    item: int

    def write(self, e: Emitter) -> None:
        b = e.b
        planes, rows, columns, by_row, by_column = (e.arg(number) for number in range(5))
        places = [(e.arena_pointer(e.arg(5 + 2 * side)), e.arg(6 + 2 * side)) for side in range(3)]
        with e.loop(*e.thread_share(planes)) as plane:
            small, *large = [e.offset_pointer(at, b.mul(plane.index, step)) for at, step in places]
            with e.loop(0, rows) as row:
                down = self._clamped_positions(e, row.index, 0)
                line = e.offset_pointer(small, b.mul(row.index, by_row))
                with e.loop(0, columns) as column:
                    across = self._clamped_positions(e, column.index, 1)
                    here = e.offset_pointer(line, b.mul(column.index, by_column))
                    taps = [
                        [
                            e.offset_pointer(
                                e.offset_pointer(value, b.mul(y, e.i64(step[0]))), b.mul(x, e.i64(step[1]))
                            )
                            for y in down
                            for x in across
                        ]
                        for value, step in zip(large, self.steps, strict=False)
                    ]
                    for part in range(0, IMAGES * FLOAT, e.target.lanes * self.item):
                        if self.backward:
                            self._backward(e, here, taps[0], taps[1], part)
                        else:
                            self._forward(e, here, taps[0], part)

    def _clamped_positions(self, e: Emitter, index: Any, axis: int) -> list[Any]:
        """Return the rows (`axis` 0) or columns (`axis` 1) that window `index` reads, clamped to the image."""
        b, w = e.b, self.window
        begin = b.sub(b.mul(index, e.i64(w.stride[axis])), e.i64(w.padding[axis]))
        last, found = e.i64(self.inside[axis] - 1), []
        for tap in range(w.size[axis]):
            place = b.add(begin, e.i64(tap))
            place = e.select(b.icmp_signed("<", place, e.i64(0)), e.i64(0), place)
            found.append(e.select(b.icmp_signed("<", place, last), place, last))
        return found

    def _forward(self, e: Emitter, y: Any, taps: list[Any], part: int) -> None:
        bfloat.store(e, _maximum(e, [bfloat.load(e, tap, part, self.item) for tap in taps]), y, part, self.item)

    def _backward(self, e: Emitter, dy: Any, gradients: list[Any], taps: list[Any], part: int) -> None:
        values = [bfloat.load(e, tap, part, self.item) for tap in taps]
        largest, left = _maximum(e, values), bfloat.load(e, dy, part, self.item)
        for tap, value in zip(gradients, values, strict=True):
            # NaN counts as the largest, and compares unequal to itself.
            same = e.b.fcmp_ordered("==", value, largest)
            here = e.b.or_(same, e.b.fcmp_unordered("uno", value, value))
            added = e.b.fadd(bfloat.load(e, tap, part, self.item), e.select(here, left, e.splat(0.0)))
            bfloat.store(e, added, tap, part, self.item)
            left = e.select(here, e.splat(0.0), left)


def _maximum(e: Emitter, values: list[Any]) -> Any:
    """Return the elementwise maximum; as in torch, it is NaN if any of the values is NaN."""
    found = values[0]
    for value in values[1:]:
        larger = e.b.or_(e.b.fcmp_ordered(">", value, found), e.b.fcmp_unordered("uno", value, value))
        found = e.select(larger, value, found)
    return found


def build_overlapping_op(small: Batch, large: list[Batch], window: Window, *, backward: bool) -> Op:
    """Return the operation of max pooling with overlapping or padded windows.

    Args:
        small: the output y, or its gradient dy if `backward`.
        large: [x, x], the input twice. If `backward`, [dx, x]; the gradient is added to dx.
        window: size, stride and padding of the windows.
        backward: whether to compute the gradient.
    """
    steps = tuple(
        (value.geometry.row * value.geometry.position_bytes, value.geometry.position_bytes) for value in large
    )
    g, inside = small.geometry, (large[0].geometry.height, large[0].geometry.width)
    args = [small.channels * small.blocks, g.height, g.width, g.row * g.position_bytes, g.position_bytes]
    for value in (small, *large):
        at = value.geometry
        args += [value.offset + at.pixel_position(0, 0) * at.position_bytes, at.bytes]
    return Op(Overlapping(window, steps, inside, backward, small.item), tuple(args))
