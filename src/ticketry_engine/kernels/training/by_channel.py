"""Kernels that process values channel by channel: batch norm, ReLU, activations, sums, and their gradients.

    forward    y  = scale[c] * x + shift[c] (+ residual, ReLU)
    backward   dx = a[c] * g + b[c] * x + c[c],    g = dy where the ReLU was positive, else 0

(Ioffe and Szegedy, "Batch Normalization", 2015, section 3.) Each kernel reads and writes the same pixels of some values
and uses a few numbers per channel. Some also sum over all pixels and images of a channel, in one lane per image; the
caller adds the lanes in float64. The values exceed the L2 cache, so each kernel fuses what can be computed in one pass,
and prefetches.

Table of an operation: float32 numbers [channels, numbers], then sums [parts, channels, sums, lanes].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.activations import activate, slope
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar import lanes
from ticketry_engine.kernels.planar.geometry import FLOAT, LINE
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.training.layout import IMAGES, Batch, images_of, parts
from ticketry_engine.kernels.window import Array

_HEAD = 7
"""Number of arguments before those of the values: channels, first and past-the-end block, rows, existing images, byte
of
the operation's sums in the table, and the table."""

_CHAINS = 4
"""Independent partial sums, which keep the adders busy."""

_AHEAD = 4096
"""Prefetch distance in bytes, for targets of sixteen lanes.

The values exceed the L2 cache, and hardware prefetching is not enough. Chosen by measurement on ResNet-18 and
ResNet-20; half and twice the distance perform alike."""


@dataclass(frozen=True)
class ByChannel(Written):
    """Base class of kernels that process values channel by channel.

    Args:
        vectors: vectors per row of pixels.
        item: bytes of a stored value. Arithmetic and sums are float32 in any case.
        masked: whether the last block has fewer images than planes: its remaining lanes are written as 0 and add
        nothing.
    """

    finished: ClassVar[bool] = True
    numbers: ClassVar[int] = 0
    """Numbers per channel in the table."""
    sums: ClassVar[int] = 0
    """Sums per channel, one vector each in the table, after the numbers of all channels."""
    sides: ClassVar[int] = 1
    near: ClassVar[bool] = False
    """Whether the first number is the channel's first value, used as a shift; it is stored after the sums, in all
    lanes."""

    vectors: int
    item: int
    masked: bool

    @property
    def stored(self) -> int:
        """Vectors per channel in the table."""
        return self.sums + self.near

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        """Write one vector and return its addend of each sum.

        Args:
            at: the vector's pointer in each value.
            numbers: the channel's numbers, in all lanes.
            there: mask of the existing images, or None.
        """
        raise NotImplementedError

    def load(self, e: Emitter, at: Any) -> Any:
        """Load a vector of a value."""
        return bfloat.load(e, at, 0, self.item)

    def store(self, e: Emitter, value: Any, at: Any) -> None:
        """Store a vector of a value."""
        bfloat.store(e, value, at, 0, self.item)

    def write(self, e: Emitter) -> None:
        b, width, step = e.b, FLOAT * e.target.lanes, self.item * e.target.lanes
        channels, begin, end, rows, images, place = (e.arg(number) for number in range(_HEAD - 1))
        table, unroll = e.table(_HEAD - 1), math.gcd(self.vectors, 8)
        places = [[e.arg(_HEAD + 4 * side + word) for word in range(4)] for side in range(self.sides)]
        with e.loop(*e.share(channels)) as channel:
            given = e.at(table, b.mul(channel.index, e.i64(FLOAT * self.numbers)))
            first = [e.at(e.arena(place[0]), b.mul(channel.index, place[1])) for place in places]
            numbers = [e.splat(e.load_f32(given, FLOAT * number)) for number in range(self.numbers)]
            if self.near:
                numbers.insert(0, e.splat(bfloat.load_one(e, e.at(first[0], b.mul(begin, places[0][2])), self.item)))
            sums = e.at(table, b.add(place, b.mul(channel.index, e.i64(width * self.stored))))
            totals = [e.splat(0.0)] * (self.sums * _CHAINS)
            with e.loop(begin, end, carried=totals) as block:
                there = self._image_masks(e, b.sub(images, b.mul(block.index, e.i64(images_of(self.item)))))
                planes = [e.at(at, b.mul(block.index, place[2])) for at, place in zip(first, places, strict=True)]
                with e.loop(0, rows, carried=block.carried) as row:
                    lines = [e.at(at, b.mul(row.index, place[3])) for at, place in zip(planes, places, strict=True)]
                    with e.loop(0, self.vectors * step, unroll * step, carried=row.carried) as vector:
                        totals = list(vector.carried)
                        for line in lines if e.target.lanes == IMAGES else ():
                            for further in range(_AHEAD, _AHEAD + unroll * step, LINE):
                                e.fetch(line, b.add(vector.index, e.i64(further)))
                        for part in range(unroll):
                            byte = b.add(vector.index, e.i64(part * step))
                            mask = None if there is None else there[part % len(there)]
                            found = self.body(e, [e.at(line, byte) for line in lines], numbers, mask)
                            for number, value in enumerate(found):
                                place = number * _CHAINS + part % _CHAINS
                                totals[place] = b.fadd(totals[place], value)
                        vector.next = totals
                    row.next = vector.results
                block.next = row.results
            for number in range(self.sums):
                total = block.results[number * _CHAINS]
                for part in block.results[number * _CHAINS + 1 : (number + 1) * _CHAINS]:
                    total = b.fadd(total, part)
                e.store(total, sums, width * number)
            if self.near:
                e.store(numbers[0], sums, width * self.sums)

    def _image_masks(self, e: Emitter, images: Any) -> list[Any] | None:
        """Return the masks of a position's vectors."""
        if not self.masked:
            return None
        firsts = range(0, images_of(self.item), e.target.lanes)
        return [lanes.first_lanes_mask(e, e.b.sub(images, e.i64(first))) for first in firsts]


def _mask_images(e: Emitter, there: Any, value: Any) -> Any:
    return value if there is None else e.select(there, value, e.splat(0.0))


@dataclass(frozen=True)
class Moments(ByChannel):
    """Sums of ``x - shift`` and of its square, with a shift near the mean: see `moments_of`. Value: x."""

    near: ClassVar[bool] = True
    sums: ClassVar[int] = 2

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        value = _mask_images(e, there, e.b.fsub(self.load(e, at[0]), numbers[0]))
        return [value, e.b.fmul(value, value)]


@dataclass(frozen=True)
class Total(ByChannel):
    """The sum of a value. Value: x."""

    sums: ClassVar[int] = 1

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        return [_mask_images(e, there, self.load(e, at[0]))]


@dataclass(frozen=True)
class Scale(ByChannel):
    """``y = scale * x + shift``, optionally plus r, optionally ReLU. Values: x, y, r."""

    numbers: ClassVar[int] = 2

    relu: bool
    residual: bool

    @property
    def sides(self) -> int:  # type: ignore[override]
        return 3 if self.residual else 2

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        value = e.fma(self.load(e, at[0]), numbers[0], numbers[1])
        if self.residual:
            value = e.b.fadd(value, self.load(e, at[2]))
        if self.relu:  # NaN is preserved
            value = e.select(e.b.fcmp_unordered(">", value, e.splat(0.0)), value, e.splat(0.0))
        self.store(e, _mask_images(e, there, value), at[1])
        return []


@dataclass(frozen=True)
class NormSums(ByChannel):
    """Sums of ``g`` and of ``g * (x - mean)``, where g is dy, or 0 where the ReLU gave 0. Values: dy, x, y if residual.

    Numbers: mean, scale, shift. Without a residual, the sign of y follows from x, so y is not read; with one, dy is
    overwritten by g.
    """

    numbers: ClassVar[int] = 3
    sums: ClassVar[int] = 2

    relu: bool
    residual: bool

    @property
    def sides(self) -> int:  # type: ignore[override]
        return 3 if self.relu and self.residual else 2

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        x, gradient = self.load(e, at[1]), self.load(e, at[0])
        if self.relu:
            given = self.load(e, at[2]) if self.residual else e.fma(x, numbers[1], numbers[2])
            gradient = e.select(e.b.fcmp_ordered(">", given, e.splat(0.0)), gradient, e.splat(0.0))
        if self.relu and self.residual:
            self.store(e, gradient, at[0])
        gradient = _mask_images(e, there, gradient)
        return [gradient, e.b.fmul(gradient, e.b.fsub(x, numbers[0]))]


@dataclass(frozen=True)
class NormGradient(ByChannel):
    """``dx = a * g + b * x + c``, where g is dy, or 0 where the ReLU gave 0. Values: dy, x, dx.

    Numbers: a, b, c; scale, shift.
    """

    numbers: ClassVar[int] = 5
    sides: ClassVar[int] = 3

    relu: bool

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        x, gradient = self.load(e, at[1]), self.load(e, at[0])
        if self.relu:
            given = e.fma(x, numbers[3], numbers[4])
            gradient = e.select(e.b.fcmp_ordered(">", given, e.splat(0.0)), gradient, e.splat(0.0))
        rest = e.fma(x, numbers[1], numbers[2])
        self.store(e, _mask_images(e, there, e.fma(gradient, numbers[0], rest)), at[2])
        return []


@dataclass(frozen=True)
class Add(ByChannel):
    """``out = g + r``, where g is dy, masked by the ReLU if there is one. Values: dy, y if ReLU, out, r if added."""

    relu: bool
    residual: bool

    @property
    def sides(self) -> int:  # type: ignore[override]
        return 2 + self.relu + self.residual

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        value, (_, *others) = self.load(e, at[0]), at
        if self.relu:
            kept = e.b.fcmp_ordered(">", self.load(e, others.pop(0)), e.splat(0.0))
            value = e.select(kept, value, e.splat(0.0))
        self.store(e, e.b.fadd(value, self.load(e, others[1])) if self.residual else value, others[0])
        return []


@dataclass(frozen=True)
class Activated(ByChannel):
    """``y = act(x)``. Values: x, y."""

    sides: ClassVar[int] = 2

    act: str

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        self.store(e, _mask_images(e, there, activate(e, self.act, self.load(e, at[0]))), at[1])
        return []


@dataclass(frozen=True)
class ActivationGradient(ByChannel):
    """``dx = dy * act'(x)``. Values: dy, x, dx."""

    sides: ClassVar[int] = 3

    act: str

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        self.store(e, e.b.fmul(self.load(e, at[0]), slope(e, self.act, self.load(e, at[1]))), at[2])
        return []


def operations(kind: type[ByChannel], values: Sequence[Batch], images: int, target: Target, **flags: Any) -> list[Op]:
    """Return the operations of a kernel on values of the same pixels, block by block or over all blocks (see `parts`).

    A value with one channel is broadcast to all channels. The operations share one table: the numbers of each channel,
    then the sums of each operation (see `sums_of`).

    Args:
        images: number of existing images; may be less than the blocks hold.
    """
    first = values[0]
    height, width = first.geometry.height, first.geometry.width
    for value in values[1:]:
        size = value.geometry.height, value.geometry.width, value.blocks
        if size != (height, width, first.blocks) or value.channels not in (1, first.channels):
            raise ValueError(f"values of different pixels: {first} and {value}")
    kernel = kind(width * first.images // target.lanes, first.item, images < first.blocks * first.images, **flags)
    if len(values) != kernel.sides:
        raise ValueError(f"{kernel} over {len(values)} values")
    cut = parts(first.blocks, (height, width))
    begin, each = first.channels * kernel.numbers, first.channels * kernel.stored * target.lanes
    table = np.zeros(begin + len(cut) * each + 1, dtype=np.float32)
    places: list[int] = []
    for value in values:
        g = value.geometry
        apart = g.bytes if value.channels > 1 else 0
        places += [value.offset + g.position(0, 0) * g.step, apart, value.block_bytes, g.row * g.step]
    return [
        Op(
            kernel,
            (first.channels, part.start, part.stop, height, images, (begin + number * each) * FLOAT, table, *places),
        )
        for number, part in enumerate(cut)
    ]


def numbers_of(op: Op) -> Array:
    """Return the numbers of each channel in an operation's table: channels x numbers."""
    kernel, table = _table(op)
    return table[: int(op.args[0]) * kernel.numbers].reshape(-1, kernel.numbers)


def sums_of(op: Op, target: Target) -> Array:
    """Return the sums of all operations that share a table: channels x sums, float64."""
    return np.asarray(_stored_sums(op, target).sum(axis=(0, 3), dtype=np.float64))


def moments_of(op: Op, counts: Sequence[int], target: Target) -> tuple[Array, Array]:
    """Return mean and variance of each channel, float64, combined from the parts of `Moments` operations.

    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).

    Args:
        counts: number of values per channel in each part.
    """
    stored = _stored_sums(op, target)
    sums, near = stored[:, :, :2].sum(axis=3, dtype=np.float64), stored[:, :, 2, 0].astype(np.float64)
    numbers = np.array(counts, dtype=np.float64)[:, None]
    means = near + sums[:, :, 0] / numbers
    mean = (numbers * means).sum(axis=0) / numbers.sum()
    squares = sums[:, :, 1] - sums[:, :, 0] ** 2 / numbers + numbers * (means - mean) ** 2
    return mean, np.maximum(squares.sum(axis=0) / numbers.sum(), 0)


def _stored_sums(op: Op, target: Target) -> Array:
    """Return the stored vectors: parts x channels x vectors x lanes."""
    kernel, table = _table(op)
    channels = int(op.args[0])
    return table[channels * kernel.numbers : -1].reshape(-1, channels, kernel.stored, target.lanes)


def _table(op: Op) -> tuple[ByChannel, Array]:
    kernel, table = op.kernel, op.args[_HEAD - 1]
    assert isinstance(kernel, ByChannel)
    assert isinstance(table, np.ndarray)
    return kernel, table
