"""The convolution kernel: rows that share their retained columns, a tile of output pixels at a time.

    for each group of rows, for each tile of output pixels:
        acc[v][p] = bias[v]                                 v: vectors of rows (output channels), p: pixels of the tile
        for each retained column k:
            acc[v][p] += weight[k][v] * x[tile + offset[k] + p]
        y[tile + p][v] = act(acc[v][p] + residual)

Tables (dtype and shape in `ConvArg`):

    WEIGHTS   | column 0: all rows of the group | column 1 | ...        dense, in the order in which they are read
    OFFSETS   | column 0: input offset          | column 1 | ...
    TILES     where each tile begins in input, output and residual, and its class
    runs      for each group and class: ranges of columns whose taps touch the image (border tiles skip the others)

The generated code depends only on the layer's shape; the mask is in the tables, so one kernel serves many layers.

Fast because all accumulators of a tile stay in registers, each loaded weight vector is used for every pixel of the tile
and each input for every vector of rows, and pruned columns cost nothing. Single weights have no index and no branch.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ticketry_engine.kernels import bfloat
from ticketry_engine.kernels.activations import Activation, activate_all
from ticketry_engine.kernels.channels_last import vectors
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF, LINE, Strides, is_expensive
from ticketry_engine.kernels.emitter import I16, I64, EmittedKernel, Emitter, StateSlot
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array, Axis


class ConvArg(enum.IntEnum):
    """Arguments of the kernel."""

    X = 0
    """Offset in the arena, in bytes, of the input's first image; Y and RESIDUAL likewise."""
    Y = 1
    RESIDUAL = 2
    GROUPS = 3
    """Number of groups."""
    GROUPS_PER_PASS = 4
    """Groups computed on one tile before the next tile: as many as fit their weights in the L2 cache."""
    PLACES = 5
    """int32 [groups, 2]: output channel of the group's first row; rows in its last vector."""
    BIAS = 6
    """float32 [groups, vectors * lanes]."""
    OFFSETS = 7
    """uint16 or int32 [columns of all groups]: offset from a tile's input to the column's, in units of 4 bytes."""
    WEIGHTS = 8
    """float32 [columns, vectors * lanes]; bfloat16 [columns, vectors * lanes, 2] with pairs of channels."""
    TILES = 9
    """First of `TILE_ARGS` arguments of the tile shape: tiles in an image; int32 [tiles, 4]: offsets in bytes from the
    image's start in input, output and residual, and the tile's class; number of classes; int32 [groups * classes + 1]:
    first run; int32 [runs, 2]: first column and end. The same five follow for the tile shape of remaining images."""


TILE_ARGS = 5
"""Arguments of one tile shape."""


@dataclass(frozen=True)
class GroupConv(EmittedKernel):
    """The kernel described at the top of this module; `ConvArg` lists its arguments."""

    finished: ClassVar[bool] = True

    vectors: int
    tile: Tile
    rest: Tile | None
    """Tile shape for the remaining images, if a tile covers several images."""
    x: Strides
    """Strides between the inputs of neighbouring output pixels: the convolution's stride is included."""
    y: Strides
    residual: Strides | None
    act: Activation
    partial_vector: bool
    """Whether the last vector of some group is not full."""
    wide_offsets: bool
    """Whether offsets are int32 instead of uint16."""
    depthwise: bool
    """Whether row i reads only input channel i, so that columns are taps."""

    @property
    def pairs(self) -> bool:
        """Whether columns are pairs of neighbouring channels in bfloat16."""
        return self.x.item == HALF and not self.depthwise

    def write(self, e: Emitter) -> None:
        images = e.state(StateSlot.IMAGES)
        blocks = e.b.udiv(images, e.i64(self.tile.images))
        writer = _ConvWriter(self, e, self.tile, ConvArg.TILES)
        writer.write_tiles(e.i64(0), blocks)
        if self.rest is not None:
            done = e.b.mul(blocks, e.i64(self.tile.images))
            _ConvWriter(self, e, self.rest, ConvArg.TILES + TILE_ARGS).write_tiles(done, e.b.sub(images, done))


class _ConvWriter:
    """Emits the loops over all tiles of one shape."""

    def __init__(self, kernel: GroupConv, e: Emitter, tile: Tile, first_arg: int) -> None:
        self.kernel, self.e, self.tile = kernel, e, tile
        self.accumulators = count_accumulators(kernel.vectors, tile, e.target)
        self.bytes = kernel.vectors * e.target.lanes * FLOAT
        self.per_image, self.tiles, self.classes = e.arg(first_arg), e.table(first_arg + 1), e.arg(first_arg + 2)
        self.begins, self.runs = e.table(first_arg + 3), e.table(first_arg + 4)
        self.places, self.bias = e.table(ConvArg.PLACES), e.table(ConvArg.BIAS)
        self.offsets, self.weights = e.table(ConvArg.OFFSETS), e.table(ConvArg.WEIGHTS)
        self.staged = is_expensive(kernel.act)
        if self.staged:
            self.stage = e.scratch(tile.pixels * kernel.vectors)

    def write_tiles(self, first_image: ir.Value, blocks: ir.Value) -> None:
        """Emit this thread's share of all tiles and groups, for ``blocks`` times the tile's images."""
        e, kernel = self.e, self.kernel
        count = e.b.mul(blocks, self.per_image)
        low_group, high_group, low, high = self._divide_work(e.arg(ConvArg.GROUPS), count)
        groups_per_pass = e.arg(ConvArg.GROUPS_PER_PASS)
        steps = (kernel.x, kernel.y, kernel.residual or kernel.y)
        bases = [e.arena_pointer(e.arg(arg)) for arg in (ConvArg.X, ConvArg.Y, ConvArg.RESIDUAL)]
        with e.loop(low_group, high_group, groups_per_pass) as some:
            end = e.b.add(some.index, groups_per_pass)
            end = e.select(e.b.icmp_signed("<", end, high_group), end, high_group)
            with e.loop(low, high) as turn:
                block = e.b.udiv(turn.index, self.per_image)
                number = e.b.sub(turn.index, e.b.mul(block, self.per_image))
                image = e.b.add(first_image, e.b.mul(block, e.i64(self.tile.images)))
                entry = e.at(self.tiles, e.b.mul(number, e.i64(16)))
                x, y, residual = (
                    e.at(base, e.b.add(e.b.mul(image, e.i64(step.image)), e.load_i32(entry, 4 * index)))
                    for index, (base, step) in enumerate(zip(bases, steps, strict=True))
                )
                kind = e.load_i32(entry, 12)
                with e.loop(some.index, end) as group:
                    self._write_group(group.index, kind, x, y, residual)

    def _divide_work(self, groups: ir.Value, tiles: ir.Value) -> list[ir.Value]:
        """Return first and end of this thread's groups and tiles; threads divide the more numerous of the two."""
        e = self.e
        some_groups, some_tiles = e.thread_share(groups), e.thread_share(tiles)
        by_groups = e.b.icmp_signed(">", groups, tiles)
        zero = e.i64(0)
        return [
            e.select(by_groups, some_groups[0], zero),
            e.select(by_groups, some_groups[1], groups),
            e.select(by_groups, zero, some_tiles[0]),
            e.select(by_groups, tiles, some_tiles[1]),
        ]

    def _write_group(self, group: ir.Value, kind: ir.Value, x: ir.Value, y: ir.Value, residual: ir.Value) -> None:
        e, vectors = self.e, self.kernel.vectors
        row = e.at(self.bias, e.b.mul(group, e.i64(self.bytes)))
        size = e.target.lanes * FLOAT
        biases = [e.load(row, v * size, align=size) for v in range(vectors)]
        place = e.at(self.places, e.b.mul(group, e.i64(8)))
        if self.kernel.depthwise:
            x = e.at(x, e.b.mul(e.load_i32(place), e.i64(self.kernel.x.item)))
        start = biases * self.tile.pixels
        start += [e.splat(0.0)] * (len(start) * (self.accumulators - 1))
        begin = e.at(self.begins, e.b.mul(e.b.add(e.b.mul(group, self.classes), kind), e.i64(4)))
        with e.loop(e.load_i32(begin), e.load_i32(begin, 4), carried=start) as run:
            entry = e.at(self.runs, e.b.mul(run.index, e.i64(8)))
            run.next = self._accumulate_columns(e.load_i32(entry), e.load_i32(entry, 4), run.carried, x)
        self._store_tile(self._add_accumulators(run.results), place, y, residual)

    def _accumulate_columns(self, first: ir.Value, last: ir.Value, sums: list[ir.Value], x: ir.Value) -> list[ir.Value]:
        """Add a run's columns: one column for each set of accumulators at once, then the remainder on the first set."""
        e, count = self.e, self.accumulators
        stop = last if count == 1 else e.b.sub(last, e.i64(count - 1))
        with e.loop(first, stop, count, carried=sums) as column:
            one = len(sums) // count
            for number in range(count):
                at = e.b.add(column.index, e.i64(number)) if number else column.index
                column.next += self._multiply(at, column.carried[number * one : (number + 1) * one], x)
        if count == 1:
            return column.results
        done = e.b.mul(e.b.sdiv(e.b.sub(last, first), e.i64(count)), e.i64(count))
        with e.loop(e.b.add(first, done), last, carried=column.results[:one]) as column_left:
            column_left.next = self._multiply(column_left.index, column_left.carried, x)
        return column_left.results + column.results[one:]

    def _multiply(self, column: ir.Value, sums: list[ir.Value], x: ir.Value) -> list[ir.Value]:
        e, vectors, size = self.e, self.kernel.vectors, self.e.target.lanes * FLOAT
        if self.kernel.wide_offsets:
            offset = e.load_i32(self.offsets, e.b.mul(column, e.i64(4)))
        else:
            offset = e.b.zext(e.b.load(e.at(self.offsets, e.b.mul(column, e.i64(2))), typ=I16, align=2), I64)
        source = e.at(x, e.b.mul(offset, e.i64(FLOAT)))
        row = e.at(self.weights, e.b.mul(column, e.i64(self.bytes)))
        if self.kernel.pairs:
            weights = [bfloat.load_pairs(e, row, v * size, size) for v in range(vectors)]
        else:
            weights = [e.load(row, v * size, align=size) for v in range(vectors)]
        multiply = bfloat.multiply_pairs if self.kernel.pairs else Emitter.fma
        results = []
        for index, place in enumerate(self.tile.places):
            input_ = self._load_input(source, self.kernel.x.at(place))
            results += [multiply(e, weights[v], input_, sums[index * vectors + v]) for v in range(vectors)]
        return results

    def _load_input(self, source: ir.Value, byte: int) -> ir.Value:
        """Load the input of a column at a pixel: a vector if depthwise, else one number in all lanes."""
        e, kernel = self.e, self.kernel
        if kernel.depthwise:
            return bfloat.load(e, source, byte, kernel.x.item)
        return bfloat.splat_pair(e, source, byte) if kernel.pairs else e.splat(e.load_f32(source, byte))

    def _add_accumulators(self, parts: list[ir.Value]) -> list[ir.Value]:
        one = len(parts) // self.accumulators
        sums = parts[:one]
        for number in range(1, self.accumulators):
            sums = [self.e.b.fadd(a, b) for a, b in zip(sums, parts[number * one :], strict=False)]
        return sums

    # End of a tile: residual, activation, store

    def _store_tile(self, sums: list[ir.Value], place: ir.Value, y: ir.Value, residual: ir.Value) -> None:
        e, kernel = self.e, self.kernel
        vectors, size = kernel.vectors, self.e.target.lanes * FLOAT
        lanes = e.load_i32(place, 4)
        first = e.load_i32(place)
        y = e.at(y, e.b.mul(first, e.i64(kernel.y.item)))
        residual = e.at(residual, e.b.mul(first, e.i64((kernel.residual or kernel.y).item)))
        if not self.staged:
            for index, pixel in enumerate(self.tile.places):
                self._store_pixel(
                    sums[index * vectors :][:vectors],
                    e.at(y, kernel.y.at(pixel)),
                    e.at(residual, kernel.residual.at(pixel)) if kernel.residual else None,
                    lanes,
                )
            return
        for index, value in enumerate(sums):
            e.store(value, self.stage, index * size, align=size)
        staged = Strides(self.bytes * self.tile.rows * self.tile.columns, self.bytes * self.tile.columns, self.bytes)
        with (
            e.loop(0, self.tile.images) as image,
            e.loop(0, self.tile.rows) as row,
            e.loop(0, self.tile.columns) as column,
        ):
            at = (image.index, row.index, column.index)
            source = self._pixel_pointer(self.stage, staged, at)
            self._store_pixel(
                [e.load(source, v * size, align=size) for v in range(vectors)],
                self._pixel_pointer(y, kernel.y, at),
                self._pixel_pointer(residual, kernel.residual, at) if kernel.residual else None,
                lanes,
            )

    def _pixel_pointer(self, pointer: ir.Value, step: Strides, at: tuple[ir.Value, ...]) -> ir.Value:
        e = self.e
        for index, bytes_ in zip(at, (step.image, step.row, step.pixel), strict=True):
            pointer = e.at(pointer, e.b.mul(index, e.i64(bytes_)))
        return pointer

    def _store_pixel(self, sums: list[ir.Value], y: ir.Value, residual: ir.Value | None, lanes: ir.Value) -> None:
        e, kernel, count = self.e, self.kernel, self.e.target.lanes
        if residual is not None:
            assert kernel.residual is not None
            item = kernel.residual.item
            beside = [bfloat.load(e, residual, v * count * item, item) for v in range(kernel.vectors)]
            sums = [e.b.fadd(value, other) for value, other in zip(sums, beside, strict=True)]
        for v, value in enumerate(activate_all(e, kernel.act, sums)):
            here = e.at(y, v * count * kernel.y.item)
            if kernel.partial_vector and v == kernel.vectors - 1:
                vectors.store_first(e, value, here, lanes, kernel.y.item)
            else:
                bfloat.store(e, value, here, 0, kernel.y.item)


# -- tiles -------------------------------------------------------------------------------------------------------------

# A tile is a box of output pixels (images x rows x columns) whose accumulators a kernel keeps in registers:
#
#     accumulators = vectors of rows * pixels of the tile  <=  vector registers
#
# More pixels reuse a weight vector more often, more vectors reuse an input more often. The estimate takes the slowest
# of multipliers, loads, latency and caches (`estimate_column_cycles`); its constants are fitted to measurements.


@dataclass(frozen=True)
class Tile:
    """A box of output pixels that are computed together."""

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.images * self.rows * self.columns

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """Image, row and column of each pixel relative to the tile's first."""
        return [(n, y, x) for n in range(self.images) for y in range(self.rows) for x in range(self.columns)]


@functools.lru_cache(maxsize=4096)
def _count_tiles(axis: Axis, length: int) -> tuple[int, int, float]:
    """Return the tiles of this length along an axis, the sum of their taps, and the share of tiles with every tap."""
    alive = axis.live_taps(length)
    return len(alive), int(alive.sum()), float(alive.all(axis=1).mean())


@dataclass(frozen=True)
class ConvAxes:
    """The windows of a convolution along rows and columns."""

    rows: Axis
    columns: Axis

    @property
    def taps(self) -> int:
        """Taps of the kernel window."""
        return self.rows.size * self.columns.size

    def count_taps(self, tile: Tile) -> float:
        """Return the taps computed for one image, summed over tiles; a tap counts once for all pixels of a tile."""
        return _count_tiles(self.rows, tile.rows)[1] * _count_tiles(self.columns, tile.columns)[1] / tile.images

    def tiles_per_image(self, tile: Tile) -> float:
        """Return the tiles of one image; a fraction if a tile covers several images."""
        return _count_tiles(self.rows, tile.rows)[0] * _count_tiles(self.columns, tile.columns)[0] / tile.images

    def runs_per_tile(self, tile: Tile) -> float:
        """Return the mean number of runs of a tile: one, or one for each kernel row if the side skips taps."""
        tiles, taps, _ = _count_tiles(self.rows, tile.rows)
        whole = _count_tiles(self.columns, tile.columns)[2]
        return whole + (1 - whole) * taps / tiles

    def count_input_pixels(self, tile: Tile) -> int:
        """Return the number of input pixels that a tile reads."""
        return tile.images * self.rows.input_span(tile.rows) * self.columns.input_span(tile.columns)

    def candidate_tiles(self, pixels: int, images: int) -> list[Tile]:
        """Return tiles of at most ``pixels`` pixels whose images divide ``images``, without redundant longer ones."""
        found = []
        for n in (n for n in range(1, min(images, pixels) + 1) if images % n == 0):
            for y in range(1, min(self.rows.outputs, pixels // n) + 1):
                longest = min(self.columns.outputs, pixels // (n * y))
                shortest_of_same_count = -(-self.columns.outputs // -(-self.columns.outputs // longest))
                found += [Tile(n, y, x) for x in {longest, shortest_of_same_count, 1}]
        return found


def find_runs(alive: Sequence[bool] | Array) -> list[tuple[int, int]]:
    """Return the runs of True as (first, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], np.asarray(alive, dtype=bool), [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


@dataclass(frozen=True, eq=False)
class Tiling:
    """All tiles of an image: the first pixel of each, and its class. Tiles of a class compute the same taps."""

    row: Array
    column: Array
    kind: Array
    """Class of each tile: an index into `spans`."""
    spans: list[list[tuple[int, int]]]
    """For each class the runs of taps that touch the image; taps are numbered row by row of the kernel."""

    @classmethod
    def from_axes(cls, plane: ConvAxes, tile: Tile) -> Tiling:
        """Return the tiles of an image."""
        row_starts, column_starts = plane.rows.tile_starts(tile.rows), plane.columns.tile_starts(tile.columns)
        row_kinds, row_of = np.unique(plane.rows.live_taps(tile.rows), axis=0, return_inverse=True)
        column_kinds, column_of = np.unique(plane.columns.live_taps(tile.columns), axis=0, return_inverse=True)
        kinds = [find_runs((rows[:, None] & columns).reshape(-1)) for rows in row_kinds for columns in column_kinds]
        row, column = (part.reshape(-1) for part in np.meshgrid(row_starts, column_starts, indexing="ij"))
        kind = row_of.reshape(-1)[:, None] * len(column_kinds) + column_of.reshape(-1)
        return cls(row, column, kind.reshape(-1), kinds)


# -- the choice of a tile ----------------------------------------------------------------------------------------------

CYCLES_A_NANOSECOND = 4.0
"""Clock rate that converts estimated cycles to time."""

WEIGHTS_KEPT = 1 << 19
"""Bytes of weights that stay in the L2 cache while a kernel moves from tile to tile."""

_PIXELS = {32: {1: 28, 2: 12, 3: 8, 4: 6}, 16: {1: 12, 2: 6, 3: 4}}
"""Vector registers of the target -> vectors of a block -> most pixels of a tile without register spills."""

_LATENCY = 4
"""Latency of a fused multiply-add in cycles."""

_MULTIPLIERS = 2
"""Fused multiply-adds of vectors per cycle."""

_LOADS = 2
"""Loads per cycle; a column loads its weight vectors, one input for each pixel, and its offset."""

_NEAR_INPUT = 36 << 10
"""Bytes of input that stay in the L1 cache from one block of a tile to the next."""

_STEP, _TILE, _RUN, _VALUE = 0.4, 5.0, 23.0, 6.0
"""Overhead in cycles of each column, tile, run of columns, and stored vector; fitted to measurements."""

_INPUT_LINE, _WEIGHT_LINE, _FAR_WEIGHT_LINE = 0.67, 1.4, 1.75
"""Cycles to load a cache line of input or weights from L2, and extra cycles for weights from beyond it; fitted."""


@dataclass(frozen=True)
class BlockShape:
    """The size of a block and of its output tiles."""

    vectors: int
    tile: Tile
    rest: Tile | None
    """Tile for the remaining images, if `tile` covers several images."""


@dataclass(frozen=True)
class ConvWork:
    """The facts about a convolution that the choice of a tile depends on."""

    plane: ConvAxes
    channels: int
    """Columns of a tap: input channels, or pairs of channels in bfloat16, which cost the same."""
    images: int
    """Images in a full block of the batch."""
    blocks: int
    """Number of blocks of rows."""
    columns: float
    """Mean number of retained columns of a block."""

    @property
    def density(self) -> float:
        """Share of columns that are retained."""
        return min(1.0, self.columns / (self.channels * self.plane.taps))


def block_sizes(target: Target) -> list[int]:
    """Return the numbers of vectors that a block may have."""
    return list(_PIXELS[target.registers])


def count_accumulators(vectors: int, tile: Tile, target: Target) -> int:
    """Return the sets of accumulators that hide the latency of additions, limited by the registers."""
    values = vectors * tile.pixels
    most = (target.registers - vectors - 2) // values
    return max(1, min(-(-_LATENCY * _MULTIPLIERS // values), most))


def estimate_cycles(work: ConvWork, vectors: int, tile: Tile, target: Target) -> float:
    """Estimate the cycles of one block for one image."""
    plane, values = work.plane, vectors * tile.pixels
    columns = work.columns * plane.count_taps(tile) / plane.taps
    beside = _TILE + _RUN * plane.runs_per_tile(tile) + _VALUE * values
    return columns * estimate_column_cycles(work, vectors, tile, target) + plane.tiles_per_image(tile) * beside


def estimate_column_cycles(work: ConvWork, vectors: int, tile: Tile, target: Target) -> float:
    """Estimate the cycles of one column in one tile: the slowest of multipliers, loads, latency and caches."""
    plane = work.plane
    waiting = _LATENCY / count_accumulators(vectors, tile, target)
    multiplied = vectors * tile.pixels / _MULTIPLIERS
    loaded = (vectors + tile.pixels + 1) / _LOADS
    column = vectors * target.lanes * FLOAT  # bytes of its weights
    line = _WEIGHT_LINE
    if work.blocks * work.columns * column > WEIGHTS_KEPT:
        line += _FAR_WEIGHT_LINE / max(1.0, plane.tiles_per_image(tile) * work.images)
    fetched = line * column / LINE
    if plane.count_input_pixels(tile) * work.channels * FLOAT > _NEAR_INPUT:
        loaded += _INPUT_LINE * estimate_fetched_lines(work, tile)
    return max(multiplied, loaded, waiting, fetched) + _STEP


def estimate_fetched_lines(work: ConvWork, tile: Tile) -> float:
    """Estimate the cache lines of the tile's input fetched for each column, on average over masks."""
    values = LINE // FLOAT
    inputs = work.plane.taps * tile.pixels
    if tile.pixels * work.channels * FLOAT <= _NEAR_INPUT:
        # Neighbouring taps find their inputs in the L1 cache.
        inputs = min(inputs, work.plane.count_input_pixels(tile))
    uses = values * work.plane.taps * tile.pixels / inputs  # of a line, if no column were pruned
    touched = inputs * work.channels / values * (1 - float((1 - work.density) ** uses))
    return touched / max(1.0, work.columns)


def choose_block_shape(work: ConvWork, vectors: int, target: Target) -> tuple[BlockShape, float]:
    """Return the fastest shape for blocks of this many vectors, and its `estimate_cycles`."""
    most = _PIXELS[target.registers][vectors]

    def price(tile: Tile) -> float:
        return estimate_cycles(work, vectors, tile, target)

    tile = min(work.plane.candidate_tiles(most, work.images), key=price)
    rest = None if tile.images == 1 else min(work.plane.candidate_tiles(most, 1), key=price)
    return BlockShape(vectors, tile, rest), price(tile)
