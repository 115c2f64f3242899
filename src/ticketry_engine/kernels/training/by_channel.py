"""Kernels that process values channel by channel: batch norm, ReLU, activations, sums, and their gradients.

    forward    y  = scale[c] * x + shift[c] (+ residual, ReLU)
    backward   dx = a[c] * g + b[c] * x + c[c],    g = dy where the ReLU was positive, else 0

(Ioffe and Szegedy, "Batch Normalization", 2015, section 3.) Each kernel reads and writes the same pixels of several
values and uses a few numbers per channel. Some kernels also sum over all pixels and images of a channel, in one lane
per image; the caller adds the lanes in float64. Because the values exceed the L2 cache, each kernel computes everything
that is possible in one pass, and prefetches.

Table of an operation: float32 numbers [channels, numbers], then sums [parts, channels, sums, lanes]; a part is the
blocks of one operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.activations import activate, emit_slope
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.planar.geometry import FLOAT, LINE, first_lanes_mask
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.training.layer import IMAGES, Batch, images_per_block, operation_blocks
from ticketry_engine.kernels.window import Array

_HEAD = 7
"""Number of arguments before those of the values: channels, first block, block after the last, rows of a plane,
existing images, byte offset of the operation's sums in the table, table."""

_CHAINS = 4
"""Number of independent partial sums, which keep the adders busy."""

_AHEAD = 4096
"""Prefetch distance in bytes, for targets with sixteen lanes; hardware prefetching alone is too slow.

Measured on ResNet-18 and ResNet-20; half and twice the distance are as fast.
"""


@dataclass(frozen=True)
class ByChannel(EmittedKernel):
    """Base class of kernels that process values channel by channel.

    Args:
        vectors: number of vectors per row of pixels.
        item: bytes of a stored value. Arithmetic and sums are always float32.
        masked: whether the last block has room for more images than exist. Lanes of missing images are written as 0 and
            do not change sums.
    """

    finished: ClassVar[bool] = True
    numbers: ClassVar[int] = 0
    """Count of numbers per channel in the table."""
    sums: ClassVar[int] = 0
    """Count of sums per channel; each takes one vector in the table, after the numbers of all channels."""
    value_count: ClassVar[int] = 1
    near: ClassVar[bool] = False
    """Whether the kernel shifts by the channel's first value, and stores it after the sums in all lanes of a vector."""

    vectors: int
    item: int
    masked: bool

    @property
    def vectors_per_channel(self) -> int:
        """Number of vectors that a channel takes in the table."""
        return self.sums + self.near

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        """Emit code that reads, computes and writes one vector; return the terms to add to the channel's sums.

        Args:
            at: for each input and output, a pointer to the vector.
            numbers: the constants of the channel, each repeated in all lanes. If `near`, the first is the shift.
            there: mask of the lanes that belong to images of the batch; None if all lanes do.
        """
        raise NotImplementedError

    def load(self, e: Emitter, at: Any) -> Any:
        return bfloat.load(e, at, 0, self.item)

    def store(self, e: Emitter, value: Any, at: Any) -> None:
        bfloat.store(e, value, at, 0, self.item)

    def write(self, e: Emitter) -> None:
        b, width, step = e.b, FLOAT * e.target.lanes, self.item * e.target.lanes
        channels, begin, end, rows, images, place = (e.arg(number) for number in range(_HEAD - 1))
        table, unroll = e.table(_HEAD - 1), math.gcd(self.vectors, 8)
        places = [[e.arg(_HEAD + 4 * side + word) for word in range(4)] for side in range(self.value_count)]
        with e.loop(*e.thread_share(channels)) as channel:
            given = e.offset_pointer(table, b.mul(channel.index, e.i64(FLOAT * self.numbers)))
            first = [e.offset_pointer(e.arena_pointer(place[0]), b.mul(channel.index, place[1])) for place in places]
            numbers = [e.splat(e.load_f32(given, FLOAT * number)) for number in range(self.numbers)]
            if self.near:
                numbers.insert(
                    0, e.splat(bfloat.load_scalar(e, e.offset_pointer(first[0], b.mul(begin, places[0][2])), self.item))
                )
            sums = e.offset_pointer(table, b.add(place, b.mul(channel.index, e.i64(width * self.vectors_per_channel))))
            totals = [e.splat(0.0)] * (self.sums * _CHAINS)
            with e.loop(begin, end, carried=totals) as block:
                there = self._image_masks(e, b.sub(images, b.mul(block.index, e.i64(images_per_block(self.item)))))
                planes = [
                    e.offset_pointer(at, b.mul(block.index, place[2])) for at, place in zip(first, places, strict=True)
                ]
                with e.loop(0, rows, carried=block.carried) as row:
                    lines = [
                        e.offset_pointer(at, b.mul(row.index, place[3]))
                        for at, place in zip(planes, places, strict=True)
                    ]
                    with e.loop(0, self.vectors * step, unroll * step, carried=row.carried) as vector:
                        totals = list(vector.carried)
                        for line in lines if e.target.lanes == IMAGES else ():
                            for further in range(_AHEAD, _AHEAD + unroll * step, LINE):
                                e.prefetch(line, b.add(vector.index, e.i64(further)))
                        for part in range(unroll):
                            byte = b.add(vector.index, e.i64(part * step))
                            mask = None if there is None else there[part % len(there)]
                            found = self.write_vector(
                                e, [e.offset_pointer(line, byte) for line in lines], numbers, mask
                            )
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
        """Return a mask of the images that exist for each vector of a position; None if all images exist."""
        if not self.masked:
            return None
        firsts = range(0, images_per_block(self.item), e.target.lanes)
        return [first_lanes_mask(e, e.b.sub(images, e.i64(first))) for first in firsts]


def _mask_images(e: Emitter, there: Any, value: Any) -> Any:
    return value if there is None else e.select(there, value, e.splat(0.0))


@dataclass(frozen=True)
class Moments(ByChannel):
    """Sum ``x - shift`` and ``(x - shift)²`` per channel, for means and variances. Value: x.

    `read_moments` computes means and variances from the sums.
    """

    near: ClassVar[bool] = True
    sums: ClassVar[int] = 2

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        value = _mask_images(e, there, e.b.fsub(self.load(e, at[0]), numbers[0]))
        return [value, e.b.fmul(value, value)]


@dataclass(frozen=True)
class Total(ByChannel):
    """Sum x per channel. Value: x."""

    sums: ClassVar[int] = 1

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        return [_mask_images(e, there, self.load(e, at[0]))]


@dataclass(frozen=True)
class ScaleShift(ByChannel):
    """Compute ``y = scale * x + shift``; add r if `residual`, and apply ReLU if `relu`. Values: x, y, r."""

    numbers: ClassVar[int] = 2

    relu: bool
    residual: bool

    @property
    def value_count(self) -> int:  # type: ignore[override]
        return 3 if self.residual else 2

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        value = e.fma(self.load(e, at[0]), numbers[0], numbers[1])
        if self.residual:
            value = e.b.fadd(value, self.load(e, at[2]))
        if self.relu:  # NaN is preserved
            value = e.select(e.b.fcmp_unordered(">", value, e.splat(0.0)), value, e.splat(0.0))
        self.store(e, _mask_images(e, there, value), at[1])
        return []


@dataclass(frozen=True)
class NormSums(ByChannel):
    """Sum ``g`` and ``g * (x - mean)`` per channel, where g is dy with zeros where the ReLU gave 0.

    Values: dy, x; with ReLU and residual also y. Numbers: mean, scale, shift. Without a residual, the sign of y is
    computed from x. With ReLU and residual, the sign is read from y, and dy is overwritten by g.
    """

    numbers: ClassVar[int] = 3
    sums: ClassVar[int] = 2

    relu: bool
    residual: bool

    @property
    def value_count(self) -> int:  # type: ignore[override]
        return 3 if self.relu and self.residual else 2

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
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
    """Compute ``dx = a * g + b * x + c``, where g is dy with zeros where the ReLU gave 0. Values: dy, x, dx.

    Numbers: a, b, c, scale, shift. The sign of the ReLU's input is computed from scale and shift.
    """

    numbers: ClassVar[int] = 5
    value_count: ClassVar[int] = 3

    relu: bool

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        x, gradient = self.load(e, at[1]), self.load(e, at[0])
        if self.relu:
            given = e.fma(x, numbers[3], numbers[4])
            gradient = e.select(e.b.fcmp_ordered(">", given, e.splat(0.0)), gradient, e.splat(0.0))
        rest = e.fma(x, numbers[1], numbers[2])
        self.store(e, _mask_images(e, there, e.fma(gradient, numbers[0], rest)), at[2])
        return []


@dataclass(frozen=True)
class Add(ByChannel):
    """Compute ``out = g + r`` if `residual`, else ``out = g``; g is dy with zeros where the ReLU gave 0.

    Values: dy; y if `relu`; out; r if `residual`.
    """

    relu: bool
    residual: bool

    @property
    def value_count(self) -> int:  # type: ignore[override]
        return 2 + self.relu + self.residual

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        value, (_, *others) = self.load(e, at[0]), at
        if self.relu:
            kept = e.b.fcmp_ordered(">", self.load(e, others.pop(0)), e.splat(0.0))
            value = e.select(kept, value, e.splat(0.0))
        self.store(e, e.b.fadd(value, self.load(e, others[1])) if self.residual else value, others[0])
        return []


@dataclass(frozen=True)
class Activated(ByChannel):
    """Compute ``y = act(x)``. Values: x, y."""

    value_count: ClassVar[int] = 2

    act: str

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        self.store(e, _mask_images(e, there, activate(e, self.act, self.load(e, at[0]))), at[1])
        return []


@dataclass(frozen=True)
class ActivationGradient(ByChannel):
    """Compute ``dx = dy * act'(x)``. Values: dy, x, dx."""

    value_count: ClassVar[int] = 3

    act: str

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        self.store(e, e.b.fmul(self.load(e, at[0]), emit_slope(e, self.act, self.load(e, at[1]))), at[2])
        return []


def build_channel_ops(
    kind: type[ByChannel], values: Sequence[Batch], images: int, target: Target, **flags: Any
) -> list[Op]:
    """Return one operation of the kernel class `kind` for each range of image blocks.

    All values have the same numbers of images, rows and columns.

    A value with only one channel is used for all channels. The operations share one table.

    Args:
        images: number of existing images; the last block may have room for more.
        flags: further fields of the kernel.
    """
    first = values[0]
    height, width = first.geometry.height, first.geometry.width
    for value in values[1:]:
        size = value.geometry.height, value.geometry.width, value.blocks
        if size != (height, width, first.blocks) or value.channels not in (1, first.channels):
            raise ValueError(f"values of different pixels: {first} and {value}")
    kernel = kind(width * first.images // target.lanes, first.item, images < first.blocks * first.images, **flags)
    if len(values) != kernel.value_count:
        raise ValueError(f"{kernel} over {len(values)} values")
    cut = operation_blocks(first.blocks, (height, width))
    begin, each = first.channels * kernel.numbers, first.channels * kernel.vectors_per_channel * target.lanes
    table = np.zeros(begin + len(cut) * each + 1, dtype=np.float32)
    places: list[int] = []
    for value in values:
        g = value.geometry
        apart = g.bytes if value.channels > 1 else 0
        places += [
            value.offset + g.pixel_position(0, 0) * g.position_bytes,
            apart,
            value.block_bytes,
            g.row * g.position_bytes,
        ]
    return [
        Op(
            kernel,
            (first.channels, part.start, part.stop, height, images, (begin + number * each) * FLOAT, table, *places),
        )
        for number, part in enumerate(cut)
    ]


def channel_number_table(op: Op) -> Array:
    """Return a view [channels, numbers] of the numbers in an operation's table."""
    kernel, table = find_channel_table(op)
    return table[: int(op.args[0]) * kernel.numbers].reshape(-1, kernel.numbers)


def read_sums(op: Op, target: Target) -> Array:
    """Return the totals [channels, sums], float64, of what all operations with the table of `op` summed."""
    return np.asarray(_read_stored_sums(op, target).sum(axis=(0, 3), dtype=np.float64))


def read_moments(op: Op, counts: Sequence[int], target: Target) -> tuple[Array, Array]:
    """Return the mean and the variance of each channel in float64, from the sums of all operations of `Moments`.

    `counts` has the number of values per channel that each operation summed. The sums are combined as in Chan, Golub
    and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
    """
    stored = _read_stored_sums(op, target)
    sums, near = stored[:, :, :2].sum(axis=3, dtype=np.float64), stored[:, :, 2, 0].astype(np.float64)
    numbers = np.array(counts, dtype=np.float64)[:, None]
    means = near + sums[:, :, 0] / numbers
    mean = (numbers * means).sum(axis=0) / numbers.sum()
    squares = sums[:, :, 1] - sums[:, :, 0] ** 2 / numbers + numbers * (means - mean) ** 2
    return mean, np.maximum(squares.sum(axis=0) / numbers.sum(), 0)


def _read_stored_sums(op: Op, target: Target) -> Array:
    """Return the sums in the table of `op` as an array [operations, channels, vectors, lanes]."""
    kernel, table = find_channel_table(op)
    channels = int(op.args[0])
    return table[channels * kernel.numbers : -1].reshape(-1, channels, kernel.vectors_per_channel, target.lanes)


def find_channel_table(op: Op) -> tuple[ByChannel, Array]:
    kernel, table = op.kernel, op.args[_HEAD - 1]
    assert isinstance(kernel, ByChannel)
    assert isinstance(table, np.ndarray)
    return kernel, table


# -- Layer norm over tokens and its gradient ---------------------------------------------------------------------------

#     n  = (x - mean) / deviation,   y = n * scale + shift
#     dx = (g - mean(g) - n * mean(g * n)) / deviation,   g = dy * scale       (means over features)
#
# (Ba, Kiros and Hinton, "Layer Normalization", 2016, section 3.) Values are planes of features and vectors run over
# tokens, so each lane sums its own token's features without exchanging lanes. First `ByToken` kernels compute the
# statistics of each token, then `ByChannel` kernels process feature by feature.
#
# Table of an operation: float32 [1 / features, epsilon, factor of each feature].


_TOKEN_HEAD = 4
"""Number of arguments before those of the values: features, first block, block after the last, table."""

_FACTORS = 2
"""Count of numbers in the table that precede the features' factors: 1 / features and epsilon."""


@dataclass(frozen=True)
class ByToken(EmittedKernel):
    """Base class of kernels that compute statistics of each token over its features.

    Args:
        vectors: number of vectors per plane.
    """

    finished: ClassVar[bool] = True
    value_count: ClassVar[int]
    """Number of input values; the two results follow them, with a single plane each."""
    sums: ClassVar[int] = 2

    vectors: int

    def load_token_values(self, e: Emitter, at: Sequence[Any]) -> Any:
        """Load the numbers per token that all features need; `at` has a pointer to the tokens for each value."""
        raise NotImplementedError

    def sum_terms(self, e: Emitter, at: Sequence[Any], loaded: Any, factor: Any) -> list[Any]:
        """Return what a feature adds to each sum over features; `loaded` is the result of `load_token_values`."""
        raise NotImplementedError

    def store_means(self, e: Emitter, at: Sequence[Any], loaded: Any, means: Sequence[Any], epsilon: Any) -> None:
        """Compute the results per token from `means`, the sums divided by the number of features, and store them."""
        raise NotImplementedError

    def write(self, e: Emitter) -> None:
        b, width = e.b, FLOAT * e.target.lanes
        features, begin, end, table = e.arg(0), e.arg(1), e.arg(2), e.table(3)
        places = [[e.arg(_TOKEN_HEAD + 3 * side + word) for word in range(3)] for side in range(self.value_count + 2)]
        share, epsilon = (e.splat(e.load_f32(table, FLOAT * number)) for number in range(_FACTORS))
        unroll = math.gcd(self.vectors, 2)
        with e.loop(begin, end) as block:
            planes = [e.offset_pointer(e.arena_pointer(offset), b.mul(block.index, step)) for offset, _, step in places]
            with e.loop(*e.thread_share(self.vectors // unroll)) as turn:
                byte = b.mul(turn.index, e.i64(unroll * width))
                ats = [
                    [e.offset_pointer(plane, b.add(byte, e.i64(part * width))) for plane in planes]
                    for part in range(unroll)
                ]
                loaded = [self.load_token_values(e, at) for at in ats]
                with e.loop(0, features, carried=[e.splat(0.0)] * (self.sums * unroll)) as feature:
                    factor = e.splat(
                        e.load_f32(table, b.add(e.i64(FLOAT * _FACTORS), b.mul(feature.index, e.i64(FLOAT))))
                    )
                    found: list[Any] = []
                    for at, known in zip(ats, loaded, strict=True):
                        here = [
                            e.offset_pointer(place, b.mul(feature.index, step))
                            for place, (_, step, _) in zip(at[: self.value_count], places, strict=False)
                        ]
                        found += self.sum_terms(e, here, known, factor)
                    feature.next = [b.fadd(*pair) for pair in zip(feature.carried, found, strict=True)]
                for part, at in enumerate(ats):
                    totals = feature.results[self.sums * part : self.sums * (part + 1)]
                    self.store_means(e, at, loaded[part], [b.fmul(total, share) for total in totals], epsilon)


@dataclass(frozen=True)
class TokenMoments(ByToken):
    """Compute the mean and 1 / (standard deviation) of each token. Values: x, then the two results."""

    value_count: ClassVar[int] = 1

    def load_token_values(self, e: Emitter, at: Sequence[Any]) -> Any:
        return e.load(at[0])  # shift near the mean, against cancellation

    def sum_terms(self, e: Emitter, at: Sequence[Any], loaded: Any, factor: Any) -> list[Any]:
        apart = e.b.fsub(e.load(at[0]), loaded)
        return [apart, e.b.fmul(apart, apart)]

    def store_means(self, e: Emitter, at: Sequence[Any], loaded: Any, means: Sequence[Any], epsilon: Any) -> None:
        b, (shift, squares) = e.b, means
        e.store(b.fadd(loaded, shift), at[1])
        variance = b.fsub(squares, b.fmul(shift, shift))
        variance = e.select(b.fcmp_ordered("<", variance, e.splat(0.0)), e.splat(0.0), variance)
        root = e.intrinsic("llvm.sqrt", b.fadd(variance, epsilon))
        e.store(b.fdiv(e.splat(1.0), root), at[2])


@dataclass(frozen=True)
class TokenSums(ByToken):
    """Compute, for each token, the means of g and of g * n over the features, where g is dy * scale.

    n is the normalised input. Values: dy, x, mean, 1 / (standard deviation), then the two results.
    """

    value_count: ClassVar[int] = 4

    def load_token_values(self, e: Emitter, at: Sequence[Any]) -> Any:
        return e.load(at[2]), e.load(at[3])

    def sum_terms(self, e: Emitter, at: Sequence[Any], loaded: Any, factor: Any) -> list[Any]:
        gradient = e.b.fmul(e.load(at[0]), factor)
        return [gradient, e.b.fmul(gradient, e.b.fsub(e.load(at[1]), loaded[0]))]

    def store_means(self, e: Emitter, at: Sequence[Any], loaded: Any, means: Sequence[Any], epsilon: Any) -> None:
        e.store(means[0], at[4])
        e.store(e.b.fmul(means[1], loaded[1]), at[5])


@dataclass(frozen=True)
class TokenLayerNorm(ByChannel):
    """Compute ``y = (x - mean) * inverse * scale + shift``. Values: x, y; mean, inverse. Numbers: scale, shift."""

    numbers: ClassVar[int] = 2
    value_count: ClassVar[int] = 4

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        normal = e.b.fmul(e.b.fsub(e.load(at[0]), e.load(at[2])), e.load(at[3]))
        e.store(e.fma(normal, numbers[0], numbers[1]), at[1])
        return []


@dataclass(frozen=True)
class LayerNormGradient(ByChannel):
    """Compute the gradient dx of layer norm, and sum dy * n and dy per feature, where n is the normalised input.

    Values: dy, x, dx; per token: mean, 1 / (standard deviation), the two results of `TokenSums`. Number: scale.
    """

    numbers: ClassVar[int] = 1
    sums: ClassVar[int] = 2
    value_count: ClassVar[int] = 7

    def write_vector(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        b = e.b
        gradient, inverse = e.load(at[0]), e.load(at[4])
        normal = b.fmul(b.fsub(e.load(at[1]), e.load(at[3])), inverse)
        inner = b.fsub(b.fsub(b.fmul(gradient, numbers[0]), e.load(at[5])), b.fmul(normal, e.load(at[6])))
        e.store(b.fmul(inner, inverse), at[2])
        return [b.fmul(gradient, normal), gradient]


def build_token_ops(kind: type[ByToken], values: Sequence[Batch], epsilon: float, target: Target) -> list[Op]:
    """Return the operations of the kernel class `kind` on `values`, which have the same tokens.

    `feature_factor_table` sets the factors of features, which are 1 initially.
    """
    first = values[0]
    if first.geometry.height != 1 or any(value.geometry.halo for value in values):
        raise ValueError(f"not tokens: {first}")
    table = np.ones(_FACTORS + first.channels, dtype=np.float32)
    table[:_FACTORS] = 1 / first.channels, epsilon
    places: list[int] = []
    for value in values:
        places += [value.offset, value.geometry.bytes if value.channels > 1 else 0, value.block_bytes]
    kernel = kind(first.geometry.width * IMAGES // target.lanes)
    size = first.geometry.height, first.geometry.width
    return [
        Op(kernel, (first.channels, part.start, part.stop, table, *places))
        for part in operation_blocks(first.blocks, size)
    ]


def feature_factor_table(op: Op) -> Array:
    """Return a view of the factors of all features in an operation's table."""
    table = op.args[_TOKEN_HEAD - 1]
    assert isinstance(table, np.ndarray)
    return table[_FACTORS:]


# -- LSTM gates, forward and backward: the elementwise part between two products with the weights ----------------------

#     c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
#     h' = sigmoid(o) * tanh(c')
#
# (Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; forget gates by Gers et al., 2000.) Inputs are the four
# sums of products i, f, g, o, in torch's order: [blocks, 4, units, images]. The gates overwrite their sums and the
# gradients overwrite the gates; besides them only the cells are stored for the backward pass. One pass over memory
# computes all gates of a unit.


GATES = 4
"""Number of gates per unit, in torch's order: input, forget, cell, output."""

_PLANE = IMAGES * FLOAT
"""Bytes that a unit takes in a block of images."""


@dataclass(frozen=True)
class _UnitKernel(EmittedKernel):
    """Base class of kernels that process all LSTM units of some blocks of examples."""

    finished: ClassVar[bool] = True

    @contextmanager
    def loop_vectors(self, e: Emitter, states: int) -> Iterator[tuple[list[Any], list[Any]]]:
        """Loop over all vectors; yield a pointer to the vector in each gate, and in each of `states` other values."""
        b, units, blocks = e.b, e.arg(0), e.arg(1)
        parts = e.i64(IMAGES // e.target.lanes)
        with e.loop_share_of_pairs(blocks, b.mul(units, parts)) as (block, turn):
            byte = b.mul(turn, e.i64(FLOAT * e.target.lanes))
            whole = b.mul(units, e.i64(_PLANE))
            state = b.add(byte, b.mul(block, whole))
            first = b.add(byte, b.mul(block, b.mul(whole, e.i64(GATES))))
            gates = [
                e.offset_pointer(e.arena_pointer(e.arg(2)), b.add(first, b.mul(whole, e.i64(gate))))
                for gate in range(GATES)
            ]
            yield gates, [e.offset_pointer(e.arena_pointer(e.arg(3 + number)), state) for number in range(states)]


@dataclass(frozen=True)
class LstmGates(_UnitKernel):
    """Compute the gates, cells and states of an LSTM for one time step; the gates overwrite their inputs (sums).

    Arguments: number of units, number of blocks; arena offsets in bytes of sums, previous cells, cells and states.
    """

    def write(self, e: Emitter) -> None:
        with self.loop_vectors(e, 3) as (places, (before, after, state)):
            b, acts = e.b, ("sigmoid", "sigmoid", "tanh", "sigmoid")
            i, f, g, o = (activate(e, act, e.load(place)) for act, place in zip(acts, places, strict=True))
            cell = e.fma(f, e.load(before), b.fmul(i, g))
            for value, place in zip((i, f, g, o), places, strict=True):
                e.store(value, place)
            e.store(cell, after)
            e.store(b.fmul(o, activate(e, "tanh", cell)), state)


@dataclass(frozen=True)
class LstmGatesGradient(_UnitKernel):
    """Compute the gradients of an LSTM for one time step.

    Arguments: number of units, number of blocks; arena offsets in bytes of gates, previous cells, cells, state
    gradients and cell gradients. The gates are overwritten by their gradients, the cell gradients by those of the
    previous cells.
    """

    def write(self, e: Emitter) -> None:
        with self.loop_vectors(e, 4) as (places, (before, after, state, carried)):
            b = e.b
            i, f, g, o = (e.load(place) for place in places)
            tanh, dh = activate(e, "tanh", e.load(after)), e.load(state)
            dc = e.fma(b.fmul(dh, o), self._tanh_derivative(e, tanh), e.load(carried))
            found = (
                self._sigmoid_gradient(e, b.fmul(dc, g), i),
                self._sigmoid_gradient(e, b.fmul(dc, e.load(before)), f),
                b.fmul(b.fmul(dc, i), self._tanh_derivative(e, g)),
                self._sigmoid_gradient(e, b.fmul(dh, tanh), o),
            )
            e.store(b.fmul(dc, f), carried)
            for value, place in zip(found, places, strict=True):
                e.store(value, place)

    @staticmethod
    def _tanh_derivative(e: Emitter, tanh: Any) -> Any:
        """Return ``1 - tanh²``, the derivative of the hyperbolic tangent."""
        return e.b.fsub(e.splat(1.0), e.b.fmul(tanh, tanh))

    @staticmethod
    def _sigmoid_gradient(e: Emitter, gradient: Any, gate: Any) -> Any:
        """Return the gradient of a sigmoid's input, from `gradient`, the gradient of its output `gate`."""
        return e.b.fmul(gradient, e.b.fmul(gate, e.b.fsub(e.splat(1.0), gate)))
