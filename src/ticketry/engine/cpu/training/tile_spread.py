"""The kernel: input gradients in bfloat16 by tiles (AMX), where sixteen outputs share the columns that they keep.

Rows of the transposed weights share nothing then. But for a set of sixteen outputs and a tap, some inputs keep all
sixteen weights, and others none. So sets and taps come one after the other: the gradients of the outputs at a position are
interleaved in pairs, multiplied with the weights of sixteen such inputs at a time, and what comes out is added to the sums
of these inputs, which lie in memory in float32 and are rounded once, when all sets are through.

Tables:
    sets (int32): of each set of outputs where their planes begin, how many runs it has, and the first of them
    runs (int32): of each tap of a set the byte that it is shifted by, how many inputs it has, the first of them, and the
        first of its blocks of weights
    weights (bfloat16): blocks of sixteen inputs x sixteen outputs, filled up with zeros
    inputs (int32)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import ticketry.engine.cpu.bfloat as bfloat
from ticketry.engine.cpu import amx
from ticketry.engine.cpu.emitter import Emitter, Written
from ticketry.engine.cpu.planes.kernel_choice import Shape
from ticketry.engine.cpu.window import Array

SETS, RUNS, WEIGHTS, INPUTS, SET_COUNT, PLANE, BESIDE, CONFIGURATION, SHAPES = range(9)
"""Arguments: tables, the number of sets, bytes from a plane of the gradient to the next, the same of what is added, the
tiles; then for each shape its places, and their number."""

SET_WORDS, RUN_WORDS = amx.ROWS + 2, 4

BLOCK_BYTES = amx.ROWS * amx.ROWS * bfloat.HALF

SUMS_BYTES = 32_000
"""Of sums that stay in the nearest cache."""

SUM, LEFT, RIGHT = 0, 4, 5
"""Tiles: four of sums, which take turns; a block of weights; pairs of outputs."""

TILES = amx.configuration(
    [(amx.ROWS, amx.ROW_BYTES)] * LEFT + [(amx.ROWS, amx.ROW_BYTES // 2), (amx.ROWS // 2, amx.ROW_BYTES)]
)


def positions(inputs: int) -> int:
    """Of a tile of planes."""
    return max(1, min(2, SUMS_BYTES // (2 * amx.ROW_BYTES * inputs)))


@dataclass(frozen=True)
class TileSpread(Written):
    """Args:
    shapes: of the tiles of planes, each with its own code: of the output's gradient, and of the input's.
    inputs: planes of the input's gradient.
    residual: whether it begins with another value.
    """

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    inputs: int
    residual: bool

    def write(self, e: Emitter) -> None:
        amx.configure(e, e.table(CONFIGURATION))
        for number in range(len(self.shapes)):
            _Body(e, self, number).emit()
        amx.release(e)


class _Body:
    """The loops of one shape."""

    def __init__(self, e: Emitter, spec: TileSpread, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.arena = e.arena()
        self.sets, self.runs, self.weights, self.inputs = (e.table(table) for table in (SETS, RUNS, WEIGHTS, INPUTS))
        self.places, self.count = e.table(SHAPES + 2 * number), e.arg(SHAPES + 2 * number + 1)
        self.tiles = range(2 * len(self.shape.x))
        self.width = amx.ROW_BYTES * len(self.tiles)
        self.sums = e.scratch(spec.inputs * len(self.tiles))
        self.pairs = e.scratch(len(self.tiles) * amx.ROWS // 2)
        self.made = e.scratch(len(self.tiles) * amx.ROWS)

    def emit(self) -> None:
        """Units of work, for threads to share: a tile of planes each."""
        e, b = self.e, self.e.b
        with e.loop(*e.share(self.count)) as unit:
            place = e.at(self.places, b.mul(unit.index, e.i64(12)))
            x, y, residual = (e.at(self.arena, e.load_i32(place, 4 * word)) for word in range(3))
            self._begin(residual)
            with e.loop(0, e.arg(SET_COUNT)) as loop:
                one = e.at(self.sets, b.mul(loop.index, e.i64(4 * SET_WORDS)))
                first = e.load_i32(one, 4 * (amx.ROWS + 1))
                with e.loop(first, b.add(first, e.load_i32(one, 4 * amx.ROWS))) as turn:
                    self._run(x, one, e.at(self.runs, b.mul(turn.index, e.i64(4 * RUN_WORDS))))
            self._end(y)

    def _begin(self, residual: Any) -> None:
        e, b = self.e, self.e.b
        with e.loop(0, self.spec.inputs) as loop:
            here = e.at(self.sums, b.mul(loop.index, e.i64(self.width)))
            plane = e.at(residual, b.mul(loop.index, e.arg(BESIDE)))
            for t, at in enumerate(self.shape.residual):
                values = [e.splat(0.0)] * 2
                if self.spec.residual:
                    values = bfloat.apart(e, bfloat.load_pairs(e, plane, at))
                for part, value in enumerate(values):
                    e.store(value, here, (2 * t + part) * amx.ROW_BYTES, align=amx.ROW_BYTES)

    def _run(self, x: Any, one: Any, run: Any) -> None:
        """A tap of a set: all its inputs."""
        e, b = self.e, self.e.b
        shifted, count = e.at(x, e.load_i32(run)), e.load_i32(run, 4)
        inputs = e.at(self.inputs, b.mul(e.load_i32(run, 8), e.i64(4)))
        weights = e.at(self.weights, b.mul(e.load_i32(run, 12), e.i64(BLOCK_BYTES)))
        self._interleave(shifted, one)
        with e.loop(0, count, amx.ROWS, [weights]) as block:
            amx.load(e, LEFT, block.carried[0], BLOCK_BYTES // amx.ROWS)
            for tile in self.tiles:
                amx.zero(e, SUM + tile)
                amx.load(e, RIGHT, e.at(self.pairs, tile * amx.TILE_BYTES // 2))
                amx.multiply(e, SUM + tile, LEFT, RIGHT)
                amx.store(e, SUM + tile, e.at(self.made, tile * amx.TILE_BYTES))
            block.next = [e.at(block.carried[0], BLOCK_BYTES)]
            end = amx.least(e, b.add(block.index, e.i64(amx.ROWS)), count)
            with e.loop(block.index, end, 1, [self.made]) as loop:
                number = e.load_i32(inputs, b.mul(loop.index, e.i64(4)))
                here = e.at(self.sums, b.mul(number, e.i64(self.width)))
                for tile in self.tiles:
                    value = e.load(loop.carried[0], tile * amx.TILE_BYTES)
                    sums = b.fadd(e.load(here, tile * amx.ROW_BYTES), value)
                    e.store(sums, here, tile * amx.ROW_BYTES, align=amx.ROW_BYTES)
                loop.next = [e.at(loop.carried[0], amx.ROW_BYTES)]

    def _interleave(self, shifted: Any, one: Any) -> None:
        e, b = self.e, self.e.b
        for pair in range(amx.ROWS // 2):
            outputs = [e.at(shifted, e.load_i32(one, 4 * (2 * pair + further))) for further in range(2)]
            for t, at in enumerate(self.shape.x):
                values = [bfloat.load_pairs(e, output, at) for output in outputs]
                for part, pairs in enumerate(bfloat.interleaved(e, *values)):
                    place = (2 * t + part) * amx.TILE_BYTES // 2 + pair * amx.ROW_BYTES
                    b.store(pairs, e.at(self.pairs, place), align=amx.ROW_BYTES)

    def _end(self, y: Any) -> None:
        e, b = self.e, self.e.b
        with e.loop(0, self.spec.inputs) as loop:
            here = e.at(self.sums, b.mul(loop.index, e.i64(self.width)))
            plane = e.at(y, b.mul(loop.index, e.arg(PLANE)))
            for t, at in enumerate(self.shape.y):
                values = [e.load(here, (2 * t + part) * amx.ROW_BYTES) for part in range(2)]
                bfloat.store_together(e, values, plane, at)


@dataclass(frozen=True, eq=False)
class Spread:
    """The tables of a phase of the stride."""

    sets: Array
    runs: Array
    weights: Array
    """1 + the place in the dense tensor of each weight, 0 where there is none."""
    inputs: Array
    reach: tuple[int, int]
    """The least and the greatest byte at which an output is read, from a tile's place."""


def tables(places: Array, planes: Array, shifts: Array, sets: Sequence[Array]) -> Spread:
    """Those of a phase.

    Args:
        places: conv groups x outputs of a group x inputs of a group x taps of the phase.
        planes: the byte where the plane of each output begins.
        shifts: the byte that each tap is shifted by.
        sets: of outputs.
    """
    _, per, each, taps = places.shape
    found: list[list[int]] = []
    runs: list[tuple[int, int, int, int]] = []
    inputs: list[Array] = []
    blocks: list[Array] = []
    first = done = 0
    for rows in sets:
        group, before = int(rows[0]) // per, len(runs)
        for tap in range(taps):
            mine = places[group, rows % per, :, tap]
            kept = np.flatnonzero(mine[0])
            if not len(kept):
                continue
            several = -(-len(kept) // amx.ROWS)
            block = np.zeros((several * amx.ROWS, amx.ROWS), dtype=places.dtype)
            block[: len(kept)] = mine[:, kept].T
            runs.append((int(shifts[tap]), len(kept), first, done))
            inputs.append(kept + group * each)
            blocks.append(block)
            first, done = first + len(kept), done + several
        found.append([*(int(at) for at in planes[rows]), len(runs) - before, before])
    made = np.array(runs, dtype=np.int32).reshape(-1, RUN_WORDS)
    bounds = (int(planes.min() + shifts.min()), int(planes.max() + shifts.max()))
    nothing = np.zeros(0, dtype=places.dtype)
    return Spread(
        np.array(found, dtype=np.int32),
        made,
        np.concatenate([nothing, *(block.reshape(-1) for block in blocks)]),
        np.concatenate([np.zeros(0, dtype=np.int32), *inputs]).astype(np.int32),
        bounds,
    )
