"""LSTM gates, forward and backward: the elementwise part between two products with the weights.

    c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h' = sigmoid(o) * tanh(c')

(Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; forget gates by Gers et al., 2000.) Inputs are the four
sums of products i, f, g, o, in torch's order: [blocks, 4, units, images]. The gates overwrite their sums and the
gradients overwrite the gates; besides them only the cells are stored for the backward pass. One pass over memory
computes all gates of a unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from ticketry_engine.kernels.activations import activate
from ticketry_engine.kernels.emitter import Emitter, Written
from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.training.layout import IMAGES

GATES = 4
"""Gates per unit, in torch's order: input, forget, cell, output."""

_PLANE = IMAGES * FLOAT
"""Bytes of a unit in a block."""


@dataclass(frozen=True)
class _OfUnits(Written):
    """Base class of kernels that process all units of some blocks."""

    finished: ClassVar[bool] = True

    @contextmanager
    def vectors(self, e: Emitter, states: int) -> Iterator[tuple[list[Any], list[Any]]]:
        """Yield pointers to a vector of each gate and of each state. Arguments: units, blocks, value bytes."""
        b, units, blocks = e.b, e.arg(0), e.arg(1)
        parts = e.i64(IMAGES // e.target.lanes)
        with e.turns(blocks, b.mul(units, parts)) as (block, turn):
            byte = b.mul(turn, e.i64(FLOAT * e.target.lanes))
            whole = b.mul(units, e.i64(_PLANE))
            state = b.add(byte, b.mul(block, whole))
            first = b.add(byte, b.mul(block, b.mul(whole, e.i64(GATES))))
            gates = [e.at(e.arena(e.arg(2)), b.add(first, b.mul(whole, e.i64(gate)))) for gate in range(GATES)]
            yield gates, [e.at(e.arena(e.arg(3 + number)), state) for number in range(states)]


@dataclass(frozen=True)
class Gates(_OfUnits):
    """One time step forward. Arguments: units, blocks; bytes of the sums, previous cells, cells and states."""

    def write(self, e: Emitter) -> None:
        with self.vectors(e, 3) as (places, (before, after, state)):
            b, acts = e.b, ("sigmoid", "sigmoid", "tanh", "sigmoid")
            i, f, g, o = (activate(e, act, e.load(place)) for act, place in zip(acts, places, strict=True))
            cell = e.fma(f, e.load(before), b.fmul(i, g))
            for value, place in zip((i, f, g, o), places, strict=True):
                e.store(value, place)
            e.store(cell, after)
            e.store(b.fmul(o, activate(e, "tanh", cell)), state)


@dataclass(frozen=True)
class GatesGradient(_OfUnits):
    """One time step backward. Arguments: units, blocks; bytes of gates, previous cells, cells, state and cell
    gradients.

    The gradients of the cells are replaced by those of the previous cells.
    """

    def write(self, e: Emitter) -> None:
        with self.vectors(e, 4) as (places, (before, after, state, carried)):
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
        """Return 1 - tanh²."""
        return e.b.fsub(e.splat(1.0), e.b.fmul(tanh, tanh))

    @staticmethod
    def _sigmoid_gradient(e: Emitter, gradient: Any, gate: Any) -> Any:
        """Return the gradient by the input of a sigmoid gate."""
        return e.b.fmul(gradient, e.b.fmul(gate, e.b.fsub(e.splat(1.0), gate)))
