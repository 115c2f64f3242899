"""The gates of an LSTM, forward and backward: what happens to each unit between two products with its weights.

Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), with forget gates (Gers et al. 2000), as torch has it: of
four sums of products i, f, g, o

    c' = sigmoid(f) * c + sigmoid(i) * tanh(g),    h' = sigmoid(o) * tanh(c')

The gates are written over their sums, and their gradients over the gates: nothing else is kept for the way back but the
cells.
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
"""Of a unit, in torch's order: input, forget, cell, output."""

_PLANE = IMAGES * FLOAT
"""Bytes of a unit of a block."""


@dataclass(frozen=True)
class _OfUnits(Written):
    """Goes over all units of some blocks."""

    finished: ClassVar[bool] = True

    @contextmanager
    def vectors(self, e: Emitter, states: int) -> Iterator[tuple[list[Any], list[Any]]]:
        """The places of a vector of each gate, and in so many states. Arguments: units, blocks, where each begins."""
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
    """One word forth. Arguments: units, blocks; where the sums begin, the cells before, the cells, the states."""

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
    """One word back. Arguments: units, blocks; where gates begin, cells before, cells, gradients of states, of cells.

    Gradients of cells become those of the cells before.
    """

    def write(self, e: Emitter) -> None:
        with self.vectors(e, 4) as (places, (before, after, state, carried)):
            b = e.b
            i, f, g, o = (e.load(place) for place in places)
            tanh, dh = activate(e, "tanh", e.load(after)), e.load(state)
            dc = e.fma(b.fmul(dh, o), self._rest(e, tanh), e.load(carried))
            found = (
                self._sigmoid(e, b.fmul(dc, g), i),
                self._sigmoid(e, b.fmul(dc, e.load(before)), f),
                b.fmul(b.fmul(dc, i), self._rest(e, g)),
                self._sigmoid(e, b.fmul(dh, tanh), o),
            )
            e.store(b.fmul(dc, f), carried)
            for value, place in zip(found, places, strict=True):
                e.store(value, place)

    @staticmethod
    def _rest(e: Emitter, tanh: Any) -> Any:
        """1 - tanh²"""
        return e.b.fsub(e.splat(1.0), e.b.fmul(tanh, tanh))

    @staticmethod
    def _sigmoid(e: Emitter, gradient: Any, gate: Any) -> Any:
        """By what came into a gate."""
        return e.b.fmul(gradient, e.b.fmul(gate, e.b.fsub(e.splat(1.0), gate)))
