"""AMX kernel of the bfloat16 input gradient, for layers whose outputs share their columns in groups of sixteen.

    dx[inputs of a block] += W[16 outputs, inputs of a block]^T @ dy[16 outputs, images]        for each block

The rows of the transposed weights do not share columns. But for one group of sixteen outputs and one tap, an input
retains either all sixteen weights or none. A block consists of at most sixteen such inputs of one group and one tap.
The gradients of the sixteen outputs at a position are interleaved in pairs and multiplied by the block's weights. The
result is added to float32 sums in memory, which are rounded once after all blocks.

Three stages overlap, because a load stalls if it follows the store of the same data by a tile instruction or vice
versa:

    block n: interleave     block n - 1: multiply     block n - 2: add to the sums

Tables:
    sets (int32): for each group of sixteen outputs, the byte offsets of their planes
    blocks (int32): six words per block: byte offset of the block's group in `sets`; byte shift of its tap; number of
        inputs; index of the first input in `inputs`; whether to interleave (1 if the group or the tap differs from
        the previous block); which half of the buffer to use
    weights (bfloat16): sixteen inputs x sixteen outputs per block, padded with zeros
    inputs (int32): the input channels of all blocks
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import ticketry_engine.kernels.bfloat as bfloat
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter
from ticketry_engine.kernels.planar.geometry import Shape
from ticketry_engine.kernels.window import Array

SETS, BLOCKS, WEIGHTS, INPUTS, BLOCK_COUNT, PLANE, BESIDE, CONFIGURATION, SHAPES = range(9)
"""Numbers of the kernel's arguments.

These are tables, number of blocks, bytes between two planes of the input gradient and of the added value, tile
configuration; then, per shape, the tiles' offsets and their number.
"""

SET, SHIFT, COUNT, FIRST, FRESH, HALF = range(6)
"""Numbers of the 4-byte words of a block in the table `blocks`."""

BLOCK_BYTES = bfloat.TILE_ROWS * bfloat.TILE_ROWS * bfloat.HALF

SUMS_BYTES = 32_000
"""Number of bytes of sums that stay in the L1 cache."""

SUM, LEFT, RIGHT = 0, 4, 5
"""Numbers of tile registers: the first of four for sums; one for a block's weights; one for pairs of outputs."""

TILES = bfloat.build_configuration(
    [(bfloat.TILE_ROWS, bfloat.TILE_ROW_BYTES)] * LEFT
    + [(bfloat.TILE_ROWS, bfloat.TILE_ROW_BYTES // 2), (bfloat.TILE_ROWS // 2, bfloat.TILE_ROW_BYTES)]
)


def positions_per_tile(inputs: int) -> int:
    """Return the positions of a tile (1 or 2), so that the sums of `inputs` channels stay in the L1 cache."""
    return max(1, min(2, SUMS_BYTES // (2 * bfloat.TILE_ROW_BYTES * inputs)))


@dataclass(frozen=True)
class TileSpread(EmittedKernel):
    """AMX kernel of the input gradient in bfloat16.

    Args:
        shapes: shapes of the tiles of planes of the output's gradient and of the input's; each gets separate code.
        inputs: number of planes of the input's gradient.
        residual: whether a residual value is added to the input's gradient.
    """

    finished: ClassVar[bool] = True

    shapes: tuple[Shape, ...]
    inputs: int
    residual: bool

    def write(self, e: Emitter) -> None:
        bfloat.configure_tiles(e, e.table(CONFIGURATION))
        for number in range(len(self.shapes)):
            _TileSpreadBody(e, self, number).emit()
        bfloat.release_tiles(e)


class _TileSpreadBody:
    """Emits the loops of a `TileSpread` kernel for one tile shape."""

    def __init__(self, e: Emitter, spec: TileSpread, number: int) -> None:
        self.e, self.spec, self.shape = e, spec, spec.shapes[number]
        self.arena = e.arena_pointer()
        self.sets, self.blocks, self.weights, self.inputs = (e.table(n) for n in (SETS, BLOCKS, WEIGHTS, INPUTS))
        self.places, self.count = e.table(SHAPES + 2 * number), e.arg(SHAPES + 2 * number + 1)
        self.tiles = range(2 * len(self.shape.x))
        self.width = bfloat.TILE_ROW_BYTES * len(self.tiles)
        self.sums = e.scratch(spec.inputs * len(self.tiles))
        self.pair_bytes, self.made_bytes = (
            len(self.tiles) * size for size in (bfloat.TILE_BYTES // 2, bfloat.TILE_BYTES)
        )
        self.pairs = e.scratch(2 * self.pair_bytes // bfloat.TILE_ROW_BYTES)
        self.made = e.scratch(2 * self.made_bytes // bfloat.TILE_ROW_BYTES)

    def emit(self) -> None:
        """Emit the loop over this thread's tiles of planes."""
        e, b, blocks = self.e, self.e.b, self.e.arg(BLOCK_COUNT)
        with e.loop(*e.thread_share(self.count)) as unit:
            place = e.at(self.places, b.mul(unit.index, e.i64(12)))
            x, y, residual = (e.at(self.arena, e.load_i32(place, 4 * word)) for word in range(3))
            self._load_residual(residual)
            with e.loop(0, b.add(blocks, e.i64(2))) as loop:
                for behind, stage in enumerate((self._interleave, self._multiply, self._add_products)):
                    number = b.sub(loop.index, e.i64(behind))
                    there = b.and_(b.icmp_signed(">=", number, e.i64(0)), b.icmp_signed("<", number, blocks))
                    with e.when(there):
                        stage(number, x)
            self._store_rounded_tile(y)

    def _load_residual(self, residual: Any) -> None:
        e, b = self.e, self.e.b
        with e.loop(0, self.spec.inputs) as loop:
            here = e.at(self.sums, b.mul(loop.index, e.i64(self.width)))
            plane = e.at(residual, b.mul(loop.index, e.arg(BESIDE)))
            for t, at in enumerate(self.shape.residual):
                values = [e.splat(0.0)] * 2
                if self.spec.residual:
                    values = bfloat.split_to_float32(e, bfloat.load_pairs(e, plane, at))
                for part, value in enumerate(values):
                    e.store(value, here, (2 * t + part) * bfloat.TILE_ROW_BYTES, align=bfloat.TILE_ROW_BYTES)

    def _load_word(self, block: Any, word: int) -> Any:
        return self.e.load_i32(self.blocks, self.e.b.add(self.e.b.mul(block, self.e.i64(24)), self.e.i64(4 * word)))

    def _interleave(self, block: Any, x: Any) -> None:
        """Emit code that interleaves a block's outputs in pairs, unless the previous block has the same outputs."""
        e, b = self.e, self.e.b
        with e.when(b.icmp_signed("!=", self._load_word(block, FRESH), e.i64(0))):
            one, shifted = e.at(self.sets, self._load_word(block, SET)), e.at(x, self._load_word(block, SHIFT))
            goal = e.at(self.pairs, b.mul(self._load_word(block, HALF), e.i64(self.pair_bytes)))
            for pair in range(bfloat.TILE_ROWS // 2):
                outputs = [e.at(shifted, e.load_i32(one, 4 * (2 * pair + further))) for further in range(2)]
                for t, at in enumerate(self.shape.x):
                    values = [bfloat.load_pairs(e, output, at) for output in outputs]
                    for output in outputs:
                        e.prefetch(output, at + len(self.shape.x) * bfloat.TILE_ROW_BYTES)
                    for part, pairs in enumerate(bfloat.interleave_pairs(e, *values)):
                        place = (2 * t + part) * bfloat.TILE_BYTES // 2 + pair * bfloat.TILE_ROW_BYTES
                        b.store(pairs, e.at(goal, place), align=bfloat.TILE_ROW_BYTES)

    def _multiply(self, block: Any, _: Any) -> None:
        e, b = self.e, self.e.b
        weights = e.at(self.weights, b.mul(block, e.i64(BLOCK_BYTES)))
        bfloat.load_tile(e, LEFT, weights, BLOCK_BYTES // bfloat.TILE_ROWS)
        pairs = e.at(self.pairs, b.mul(self._load_word(block, HALF), e.i64(self.pair_bytes)))
        made = self._product_buffer(block)
        for tile in self.tiles:
            bfloat.zero_tile(e, SUM + tile)
            bfloat.load_tile(e, RIGHT, e.at(pairs, tile * bfloat.TILE_BYTES // 2))
            bfloat.multiply_tiles(e, SUM + tile, LEFT, RIGHT)
        for tile in self.tiles:
            bfloat.store_tile(e, SUM + tile, e.at(made, tile * bfloat.TILE_BYTES))

    def _product_buffer(self, block: Any) -> Any:
        e, b = self.e, self.e.b
        return e.at(self.made, b.mul(b.and_(block, e.i64(1)), e.i64(self.made_bytes)))

    def _add_products(self, block: Any, _: Any) -> None:
        e, b = self.e, self.e.b
        inputs = e.at(self.inputs, b.mul(self._load_word(block, FIRST), e.i64(4)))
        with e.loop(0, self._load_word(block, COUNT), 1, [self._product_buffer(block)]) as loop:
            number = e.load_i32(inputs, b.mul(loop.index, e.i64(4)))
            here = e.at(self.sums, b.mul(number, e.i64(self.width)))
            for tile in self.tiles:
                value = e.load(loop.carried[0], tile * bfloat.TILE_BYTES)
                sums = b.fadd(e.load(here, tile * bfloat.TILE_ROW_BYTES), value)
                e.store(sums, here, tile * bfloat.TILE_ROW_BYTES, align=bfloat.TILE_ROW_BYTES)
            loop.next = [e.at(loop.carried[0], bfloat.TILE_ROW_BYTES)]

    def _store_rounded_tile(self, y: Any) -> None:
        e, b = self.e, self.e.b
        with e.loop(0, self.spec.inputs) as loop:
            here = e.at(self.sums, b.mul(loop.index, e.i64(self.width)))
            plane = e.at(y, b.mul(loop.index, e.arg(PLANE)))
            for t, at in enumerate(self.shape.y):
                values = [e.load(here, (2 * t + part) * bfloat.TILE_ROW_BYTES) for part in range(2)]
                bfloat.store_rounded(e, values, plane, at)


@dataclass(frozen=True, eq=False)
class Spread:
    """Tables of `TileSpread` for one phase of the stride."""

    sets: Array
    blocks: Array
    weights: Array
    """For each weight, 1 + its index in the dense tensor; 0 for padding."""
    inputs: Array
    reach: tuple[int, int]
    """Least and greatest byte, relative to the offset of a tile, at which the output's gradient is read."""


def build_tables(places: Array, planes: Array, shifts: Array, sets: Sequence[Array]) -> Spread:
    """Return the tables of one phase of the stride, the input pixels that the same taps reach.

    Args:
        places: weights (see `MaskedLayer.places`), convolution groups x outputs x inputs of a group x taps of the
            phase.
        planes: byte offset of each output's plane.
        shifts: byte shift of each tap.
        sets: groups of sixteen outputs with equal columns.
    """
    _, per, each, taps = places.shape
    blocks: list[tuple[int, ...]] = []
    inputs, weights = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=places.dtype)]
    first = half = 0
    for (number, rows), tap in itertools.product(enumerate(sets), range(taps)):
        mine = places[int(rows[0]) // per, rows % per, :, tap]
        kept = np.flatnonzero(mine[0])
        for begin in range(0, len(kept), bfloat.TILE_ROWS):
            some = kept[begin : begin + bfloat.TILE_ROWS]
            block = np.zeros((bfloat.TILE_ROWS, bfloat.TILE_ROWS), dtype=places.dtype)
            block[: len(some)] = mine[:, some].T
            half = half if begin else 1 - half
            blocks.append((4 * bfloat.TILE_ROWS * number, int(shifts[tap]), len(some), first, int(not begin), half))
            weights.append(block.reshape(-1))
            first += len(some)
        inputs.append((kept + int(rows[0]) // per * each).astype(np.int32))
    return Spread(
        planes[np.stack(list(sets))].astype(np.int32),
        np.array(blocks, dtype=np.int32).reshape(-1, 6),
        np.concatenate(weights),
        np.concatenate(inputs),
        (int(planes.min() + shifts.min()), int(planes.max() + shifts.max())),
    )
