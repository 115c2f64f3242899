"""Layer norm, RMS norm and softmax over channels, written once for both layouts.

    layernorm   y = (x - mean) / sqrt(variance + eps) * weight + bias
    rmsnorm     y = x / sqrt(mean(x^2) + eps) * weight
    softmax     y = exp(x - max(x)) / sum(exp(x - max(x)))

A kernel makes a few passes over the channels of a position: one for each statistic, and one that writes the result.
Each layout has a `ChannelCursor` that steps through the channels:

    planar          a step loads one channel of several vectors of positions; each lane has its own statistics
    channels last   a step loads a vector of channels of one pixel; the lanes are combined after the last step
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ticketry_engine.kernels.activations import exp
from ticketry_engine.kernels.emitter import Emitter
from ticketry_engine.kernels.jit import ir

Vectors = Sequence[ir.Value]
Step = Callable[[Vectors, Vectors], Vectors]
"""Function (values of x, totals before the step) -> totals after the step."""
Weights = Sequence[Callable[[], ir.Value]]
"""Functions that load the current channels' weights: (weight,) or (weight, bias)."""
LastStep = Callable[[Vectors, Weights], Vectors]
"""Function (values of x, weights) -> values of y."""


class ChannelCursor(Protocol):
    """Interface of objects that emit loops over channels, for norms and softmax.

    Each memory layout has an implementation.
    """

    e: Emitter
    compensated: bool
    """Whether layer norm corrects the rounding error of the mean, so that a mean far from 0 loses no digits (Chan,
    Golub and LeVeque, "Algorithms for computing the sample variance", 1983)."""

    def load_settings(self) -> tuple[ir.Value, ir.Value]:
        """Return (1 / channels, epsilon), as numbers of the type that `reduce` returns."""

    def reduce(self, step: Step, start: float = 0.0, sums: int = 1, *, largest: bool = False) -> Vectors:
        """Emit a loop that calls `step` for all channels of x, and return the final totals.

        The function `step` adds the values of some channels to the totals. There are `sums` totals per position, and
        each begins as `start`. If `largest`, totals are maxima instead of sums.
        """

    def write(self, step: LastStep, *, weights: int = 0) -> None:
        """Emit a loop that calls `step` for all channels, and store what `step` returns in y.

        The function `step` gets the values of x and `weights` weights per channel. If `weights` is 0, `step` gets the
        values of y instead of x.
        """

    def store(self, values: Vectors) -> None:
        """Store `values` in y, at the channels of the current step."""

    def fill_padding(self, values: Vectors, number: float) -> Vectors:
        """Return `values` with `number` in the lanes after the last channel."""

    def broadcast_totals(self, totals: Vectors) -> Vectors:
        """Return totals as vectors that can be combined with the channel values that a step gets."""

    def elementwise_maximum(self, one: ir.Value, other: ir.Value) -> ir.Value: ...

    def scalar_one(self) -> ir.Value:
        """Return 1 as a number of the type that `reduce` returns."""

    def mean_plus_constant(self, total: ir.Value, share: ir.Value, number: ir.Value) -> ir.Value:
        """Return ``total * share + number``, which for RMS norm is the mean of squares plus epsilon."""


def write_layer_norm(c: ChannelCursor) -> None:
    e, b = c.e, c.e.b
    share, eps = c.load_settings()

    def add(values: Vectors, totals: Vectors) -> Vectors:
        return [b.fadd(total, value) for total, value in zip(totals, values, strict=True)]

    means = c.broadcast_totals([b.fmul(total, share) for total in c.reduce(add)])

    def add_squares(values: Vectors, totals: Vectors) -> Vectors:
        apart = c.fill_padding([b.fsub(value, mean) for value, mean in zip(values, means, strict=True)], 0.0)
        sums = [b.fadd(total, value) for total, value in zip(totals, apart, strict=False)] if c.compensated else []
        return sums + [e.fma(value, value, total) for value, total in zip(apart, totals[len(sums) :], strict=True)]

    shares = [b.fmul(total, share) for total in c.reduce(add_squares, sums=2 if c.compensated else 1)]
    missed, variances = (shares[: len(means)], shares[len(means) :]) if c.compensated else ([], shares)
    if missed:
        variances = [b.fsub(square, b.fmul(m, m)) for square, m in zip(variances, missed, strict=True)]
    inverse = c.broadcast_totals(
        [b.fdiv(c.scalar_one(), e.intrinsic("llvm.sqrt", b.fadd(variance, eps))) for variance in variances]
    )

    def normalise(values: Vectors, weights: Weights) -> Vectors:
        apart = [b.fsub(value, mean) for value, mean in zip(values, means, strict=True)]
        if missed:
            apart = [b.fsub(value, m) for value, m in zip(apart, missed, strict=True)]
        weight, bias = weights
        return [e.fma(b.fmul(value, i), weight(), bias()) for value, i in zip(apart, inverse, strict=True)]

    c.write(normalise, weights=2)


def write_rms_norm(c: ChannelCursor) -> None:
    e, b = c.e, c.e.b
    share, eps = c.load_settings()

    def add_squares(values: Vectors, totals: Vectors) -> Vectors:
        return [e.fma(value, value, total) for total, value in zip(totals, values, strict=True)]

    roots = [e.intrinsic("llvm.sqrt", c.mean_plus_constant(total, share, eps)) for total in c.reduce(add_squares)]
    inverse = c.broadcast_totals([b.fdiv(c.scalar_one(), root) for root in roots])

    def normalise(values: Vectors, weights: Weights) -> Vectors:
        scaled = zip(values, inverse, strict=True)
        return [b.fmul(b.fmul(value, i), weights[0]()) for value, i in scaled]

    c.write(normalise, weights=1)


def write_softmax(c: ChannelCursor) -> None:
    e, b = c.e, c.e.b

    def take_larger(values: Vectors, totals: Vectors) -> Vectors:
        values = c.fill_padding(values, float("-inf"))
        return [c.elementwise_maximum(total, value) for total, value in zip(totals, values, strict=True)]

    largest = c.broadcast_totals(c.reduce(take_larger, float("-inf"), largest=True))

    def add_powers(values: Vectors, totals: Vectors) -> Vectors:
        powers = [exp(e, b.fsub(value, most)) for value, most in zip(values, largest, strict=True)]
        c.store(powers)
        return [b.fadd(total, power) for total, power in zip(totals, c.fill_padding(powers, 0.0), strict=True)]

    inverse = c.broadcast_totals([b.fdiv(c.scalar_one(), total) for total in c.reduce(add_powers)])
    c.write(lambda values, _: [b.fmul(value, i) for value, i in zip(values, inverse, strict=True)])


NORMS: dict[str, Callable[[ChannelCursor], None]] = {
    "layernorm": write_layer_norm,
    "rmsnorm": write_rms_norm,
    "softmax": write_softmax,
}
"""By title of a norm: the function that writes its kernel."""
