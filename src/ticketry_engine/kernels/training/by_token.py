"""Layer norm over tokens and its gradient.

    n  = (x - mean) / deviation,   y = n * scale + shift
    dx = (g - mean(g) - n * mean(g * n)) / deviation,   g = dy * scale       (means over features)

(Ba, Kiros and Hinton, "Layer Normalization", 2016, section 3.) Values are planes of features and vectors run over
tokens, so each lane sums its own token's features without exchanging lanes. First `ByToken` kernels compute the
statistics of each token, then `ByChannel` kernels process feature by feature.

Table of an operation: float32 [1 / features, epsilon, factor of each feature].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.training.by_channel import ByChannel
from ticketry_engine.kernels.training.layout import IMAGES, Batch, parts
from ticketry_engine.kernels.window import Array

_HEAD = 4
"""Number of arguments before those of the values: features, first and past-the-end block, and the table."""

_FACTORS = 2
"""Numbers in the table before those of the features: 1 / features and epsilon."""


@dataclass(frozen=True)
class ByToken(Written):
    """Base class of kernels that compute statistics of each token.

    Args:
        vectors: vectors per plane.
    """

    finished: ClassVar[bool] = True
    sides: ClassVar[int]
    """Number of values with a plane per feature; those with a single plane follow."""
    sums: ClassVar[int] = 2

    vectors: int

    def begin(self, e: Emitter, at: Sequence[Any]) -> Any:
        """Return what the terms of a vector need, loaded once; ``at`` is its pointer in each value."""
        raise NotImplementedError

    def terms(self, e: Emitter, at: Sequence[Any], begun: Any, factor: Any) -> list[Any]:
        """Return the addends of a feature for each sum."""
        raise NotImplementedError

    def end(self, e: Emitter, at: Sequence[Any], begun: Any, means: Sequence[Any], epsilon: Any) -> None:
        """Store the results, computed from the means over features."""
        raise NotImplementedError

    def write(self, e: Emitter) -> None:
        b, width = e.b, FLOAT * e.target.lanes
        features, begin, end, table = e.arg(0), e.arg(1), e.arg(2), e.table(3)
        places = [[e.arg(_HEAD + 3 * side + word) for word in range(3)] for side in range(self.sides + 2)]
        share, epsilon = (e.splat(e.load_f32(table, FLOAT * number)) for number in range(_FACTORS))
        unroll = math.gcd(self.vectors, 2)
        with e.loop(begin, end) as block:
            planes = [e.at(e.arena(offset), b.mul(block.index, step)) for offset, _, step in places]
            with e.loop(*e.share(self.vectors // unroll)) as turn:
                byte = b.mul(turn.index, e.i64(unroll * width))
                ats = [[e.at(plane, b.add(byte, e.i64(part * width))) for plane in planes] for part in range(unroll)]
                begun = [self.begin(e, at) for at in ats]
                with e.loop(0, features, carried=[e.splat(0.0)] * (self.sums * unroll)) as feature:
                    factor = e.splat(
                        e.load_f32(table, b.add(e.i64(FLOAT * _FACTORS), b.mul(feature.index, e.i64(FLOAT))))
                    )
                    found: list[Any] = []
                    for at, known in zip(ats, begun, strict=True):
                        here = [
                            e.at(place, b.mul(feature.index, step))
                            for place, (_, step, _) in zip(at[: self.sides], places, strict=False)
                        ]
                        found += self.terms(e, here, known, factor)
                    feature.next = [b.fadd(*pair) for pair in zip(feature.carried, found, strict=True)]
                for part, at in enumerate(ats):
                    totals = feature.results[self.sums * part : self.sums * (part + 1)]
                    self.end(e, at, begun[part], [b.fmul(total, share) for total in totals], epsilon)


@dataclass(frozen=True)
class TokenMoments(ByToken):
    """Mean and 1 / deviation of each token. Values: x; mean, inverse."""

    sides: ClassVar[int] = 1

    def begin(self, e: Emitter, at: Sequence[Any]) -> Any:
        return e.load(at[0])  # shift near the mean, against cancellation

    def terms(self, e: Emitter, at: Sequence[Any], begun: Any, factor: Any) -> list[Any]:
        apart = e.b.fsub(e.load(at[0]), begun)
        return [apart, e.b.fmul(apart, apart)]

    def end(self, e: Emitter, at: Sequence[Any], begun: Any, means: Sequence[Any], epsilon: Any) -> None:
        b, (shift, squares) = e.b, means
        e.store(b.fadd(begun, shift), at[1])
        variance = b.fsub(squares, b.fmul(shift, shift))
        variance = e.select(b.fcmp_ordered("<", variance, e.splat(0.0)), e.splat(0.0), variance)
        root = e.intrinsic("llvm.sqrt", b.fadd(variance, epsilon))
        e.store(b.fdiv(e.splat(1.0), root), at[2])


@dataclass(frozen=True)
class TokenSums(ByToken):
    """Means over features of g and of g times the normalised input. Values: dy, x, mean, inverse; both means."""

    sides: ClassVar[int] = 4

    def begin(self, e: Emitter, at: Sequence[Any]) -> Any:
        return e.load(at[2]), e.load(at[3])

    def terms(self, e: Emitter, at: Sequence[Any], begun: Any, factor: Any) -> list[Any]:
        gradient = e.b.fmul(e.load(at[0]), factor)
        return [gradient, e.b.fmul(gradient, e.b.fsub(e.load(at[1]), begun[0]))]

    def end(self, e: Emitter, at: Sequence[Any], begun: Any, means: Sequence[Any], epsilon: Any) -> None:
        e.store(means[0], at[4])
        e.store(e.b.fmul(means[1], begun[1]), at[5])


@dataclass(frozen=True)
class TokenLayerNorm(ByChannel):
    """``y = (x - mean) * inverse * scale + shift``. Values: x, y; mean, inverse of tokens. Numbers: scale, shift."""

    numbers: ClassVar[int] = 2
    sides: ClassVar[int] = 4

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        normal = e.b.fmul(e.b.fsub(e.load(at[0]), e.load(at[2])), e.load(at[3]))
        e.store(e.fma(normal, numbers[0], numbers[1]), at[1])
        return []


@dataclass(frozen=True)
class LayerNormGradient(ByChannel):
    """Gradient of layer norm, with the sums of dy * n and of dy. Values: dy, x, dx; per token mean, inverse, both
    means.

    Number: scale.
    """

    numbers: ClassVar[int] = 1
    sums: ClassVar[int] = 2
    sides: ClassVar[int] = 7

    def body(self, e: Emitter, at: Sequence[Any], numbers: Sequence[Any], there: Any) -> list[Any]:
        b = e.b
        gradient, inverse = e.load(at[0]), e.load(at[4])
        normal = b.fmul(b.fsub(e.load(at[1]), e.load(at[3])), inverse)
        inner = b.fsub(b.fsub(b.fmul(gradient, numbers[0]), e.load(at[5])), b.fmul(normal, e.load(at[6])))
        e.store(b.fmul(inner, inverse), at[2])
        return [b.fmul(gradient, normal), gradient]


def token_operations(kind: type[ByToken], values: Sequence[Batch], epsilon: float, target: Target) -> list[Op]:
    """Return the operations of a kernel on values of the same tokens, those with a plane per feature first."""
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
    return [Op(kernel, (first.channels, part.start, part.stop, table, *places)) for part in parts(first.blocks, size)]


def factors_of(op: Op) -> Array:
    """Return the per-feature factors in an operation's table."""
    table = op.args[_HEAD - 1]
    assert isinstance(table, np.ndarray)
    return table[_FACTORS:]
