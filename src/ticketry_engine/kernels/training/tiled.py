"""bfloat16 layers on AMX tiles: whether a layer's mask allows them, and its operations.

sixteen rows with equal columns  ->  forward: tile_sums,  input gradient: tile_spread,  weight gradient:
tile_products
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import ticketry_engine.kernels.amx as amx
from ticketry_engine.kernels.bfloat import HALF
from ticketry_engine.kernels.planar.conv import Matrix, SumTables, check
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.training import tile_products, tile_spread, tile_sums
from ticketry_engine.kernels.training.layer import Gathered
from ticketry_engine.kernels.training.layout import Batch, TileSide, parts, tiles
from ticketry_engine.kernels.training.tile_products import TileProducts
from ticketry_engine.kernels.training.tile_spread import TileSpread
from ticketry_engine.kernels.training.tile_sums import TileSums
from ticketry_engine.kernels.window import Array, Pair
from ticketry_engine.support.row_groups import row_groups


def row_sets(weight: Array, groups: int, value: Batch, target: Target) -> list[Array]:
    """Return sets of sixteen rows with equal (possibly no) columns; empty if rows do not divide into them or AMX is
    missing.

    Args:
        weight: rows x columns; 0 is pruned.
        groups: number of convolution groups.
        value: the value to read.
    """
    if not target.tiles or value.item != HALF or len(weight) % (groups * amx.ROWS):
        return []
    kept = np.packbits(weight != 0, axis=1)
    if amx.ROWS * len({row.tobytes() for row in kept}) > len(kept):
        return []
    found, per = [], len(weight) // groups
    for group in range(groups):
        for same in row_groups(weight[group * per : (group + 1) * per]):
            if len(same.rows) % amx.ROWS:
                return []
            found += list(same.rows.reshape(-1, amx.ROWS) + group * per)
    return found


def sums(
    matrix: Matrix, sets: Sequence[Array], sides: Sequence[TileSide], size: Pair, target: Target, chunks: int
) -> Gathered:
    """Return the operations of a matrix on a value: a forward pass, or a gradient whose rows also share columns."""
    x = sides[0].value
    made = tile_sums.tables(matrix, sets, chunks)
    index, ops = made.weights - 1, []
    weights = np.zeros(len(index), dtype=np.uint16)
    for part in parts(x.blocks, size):
        cut = tiles(sides, size, target.lanes, tile_sums.POSITIONS, part)
        args: list[int | Array] = [made.segments, made.columns, weights, made.chunks, len(made.chunks), tile_sums.TILES]
        for t in cut:
            check(made, x.planes, t.places, (min(t.shape.x), max(t.shape.x) + amx.ROW_BYTES))
            args += [t.places, len(t.places)]
        spec = TileSums(tuple(t.shape for t in cut), matrix.residual is not None)
        ops.append(Op(spec, tuple(args)))
    return Gathered(ops, index)


def spread(
    places: Array, shifts: Array, sets: Sequence[Array], sides: Sequence[TileSide], size: Pair, target: Target
) -> Gathered:
    """Return the operations of the input gradient, in one phase of the stride.

    Args:
        places: conv groups x outputs x inputs x taps of the phase.
        shifts: byte shifts of these taps.
        sides: the output's gradient, the input's, and optionally a value to add.
    """
    dy, dx = (side.value for side in sides[:2])
    made = tile_spread.tables(places, dy.channel_bytes, shifts, sets)
    index, ops = made.weights - 1, []
    weights = np.zeros(max(1, len(index)), dtype=np.uint16)
    beside = sides[2].value.geometry.bytes if len(sides) > 2 else 0
    for part in parts(dy.blocks, size):
        cut = tiles(sides, size, target.lanes, tile_spread.positions(dx.channels), part)
        args: list[int | Array] = [made.sets, made.blocks, weights, made.inputs]
        args += [len(made.blocks), dx.geometry.bytes, beside, tile_spread.TILES]
        for t in cut:
            check(made, dy.planes, t.places, (min(t.shape.x), max(t.shape.x) + amx.ROW_BYTES))
            args += [t.places, len(t.places)]
        spec = TileSpread(tuple(t.shape for t in cut), dx.channels, len(sides) > 2)
        ops.append(Op(spec, tuple(args)))
    return Gathered(ops, index)


def products(
    made: SumTables,
    x: Batch,
    sides: Sequence[TileSide],
    size: Pair,
    target: Target,
    chunks: Array,
    sums: int,
    part: range,
) -> Op:
    """Return the operation of the gradients of retained weights, for some blocks."""
    args: list[int | Array] = [made.segments, made.columns, sums, chunks, len(chunks), tile_products.TILES]
    cut = tiles(sides, size, target.lanes, tile_products.POSITIONS, part)
    for t in cut:
        check(made, x.planes, t.places, (min(t.shape.x), max(t.shape.x) + amx.ROW_BYTES))
        args += [t.places, len(t.places), tile_products.reach(t.shape), len(t.shape.x)]
    return Op(TileProducts(len(cut)), tuple(args))
