"""The convolution kernel: it computes rows that share their retained columns, a tile of output pixels at a time.

    for each block of rows, for each tile of output pixels:
        acc[v][p] = bias[v]                                 v: vectors of rows (output channels), p: pixels of the tile
        for each retained column k:
            acc[v][p] += weight[k][v] * x[tile + offset[k] + p]
        y[tile + p][v] = act(acc[v][p] + residual)

A row is an output channel; a column is an input channel at one tap of the window. A block is a few vectors of rows
that retain the same columns; `ConvArg` calls it a group. Tables (dtype and shape in `ConvArg`):

    WEIGHTS   | column 0: all rows of the block | column 1 | ...        dense, in the order in which they are read
    OFFSETS   | column 0: input offset          | column 1 | ...
    TILES     where each tile begins in input, output and residual, and the tile's class (which taps it computes)
    runs      for each block and class: ranges of columns whose taps touch the image; border tiles skip other columns

The generated code depends only on the layer's shape. The pruning mask is in the tables, so that one kernel serves many
layers.

The kernel is fast because all accumulators of a tile stay in registers. A loaded weight vector is used for every pixel
of the tile, and a loaded input for every vector of rows. Pruned columns take no time, and a single weight needs no
index and no branch.
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
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF, LINE, Strides, is_expensive, store_first_lanes
from ticketry_engine.kernels.emitter import I16, I64, EmittedKernel, Emitter, StateSlot
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array, Axis


class ConvArg(enum.IntEnum):
    """Indices of the arguments of a `GroupConv` kernel."""

    X = 0
    """Arena offset in bytes of the input's first image; `Y` and `RESIDUAL` are those of output and residual."""
    Y = 1
    RESIDUAL = 2
    GROUPS = 3
    """Number of groups (blocks of rows)."""
    GROUPS_PER_PASS = 4
    """Number of groups that are computed on a tile before the next tile: their weights fit in the L2 cache."""
    PLACES = 5
    """int32 [groups, 2]: output channel of the group's first row; number of rows in the group's last vector."""
    BIAS = 6
    """float32 [groups, vectors * lanes]: bias of each row."""
    OFFSETS = 7
    """uint16 or int32 [columns of all groups]: distance from a tile's input to the column's input, in 4-byte words."""
    WEIGHTS = 8
    """float32 [columns of all groups, vectors * lanes]; for pairs of channels, bfloat16 [..., vectors * lanes, 2]."""
    TILES = 9
    """First of `TILE_ARGS` arguments that describe the tiles:

    1. Number of tiles in an image.
    2. int32 [tiles, 4]: bytes from an image's start to the tile in input, output and residual; the tile's class.
    3. Number of classes.
    4. int32 [groups * classes + 1]: index of the first run of columns.
    5. int32 [runs, 2]: first column of the run, and end.

    The same five arguments follow for the tiles of the remaining images (`GroupConv.rest`), if there are any."""


TILE_ARGS = 5
"""Number of arguments that describe the tiles of one shape."""


@dataclass(frozen=True)
class GroupConv(EmittedKernel):
    """Kernel of sparse convolutions and linear layers (see the top of the module); `ConvArg` lists its arguments."""

    finished: ClassVar[bool] = True

    vectors: int
    tile: Tile
    rest: Tile | None
    """The tile for the images that are left over if `tile` covers several images; None if `tile` covers one image."""
    x: Strides
    """Bytes between the inputs of neighbouring output pixels, so that the convolution's stride is included."""
    y: Strides
    residual: Strides | None
    act: Activation
    partial_vector: bool
    """Whether the last vector of any group has fewer rows than lanes."""
    wide_offsets: bool
    """Whether the table OFFSETS is int32 instead of uint16."""
    depthwise: bool
    """Whether row i reads only input channel i; then a column is a tap."""

    @property
    def uses_pairs(self) -> bool:
        """Whether a column is a pair of neighbouring channels in bfloat16."""
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
    """Writer of the code of a `GroupConv` kernel for the tiles of one shape."""

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
        """Emit the loops over this thread's share of tiles and of groups of weight rows."""
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
                entry = e.offset_pointer(self.tiles, e.b.mul(number, e.i64(16)))
                x, y, residual = (
                    e.offset_pointer(base, e.b.add(e.b.mul(image, e.i64(step.image)), e.load_i32(entry, 4 * index)))
                    for index, (base, step) in enumerate(zip(bases, steps, strict=True))
                )
                kind = e.load_i32(entry, 12)
                with e.loop(some.index, end) as group:
                    self._write_group(group.index, kind, x, y, residual)

    def _divide_work(self, groups: ir.Value, tiles: ir.Value) -> list[ir.Value]:
        """Return what this thread computes: (first group of rows, end, first tile, end).

        If there are more groups than tiles, each thread gets some groups and all tiles; otherwise some tiles and all
        groups.
        """
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
        row = e.offset_pointer(self.bias, e.b.mul(group, e.i64(self.bytes)))
        size = e.target.lanes * FLOAT
        biases = [e.load(row, v * size, align=size) for v in range(vectors)]
        place = e.offset_pointer(self.places, e.b.mul(group, e.i64(8)))
        if self.kernel.depthwise:
            x = e.offset_pointer(x, e.b.mul(e.load_i32(place), e.i64(self.kernel.x.item)))
        start = biases * self.tile.pixels
        start += [e.splat(0.0)] * (len(start) * (self.accumulators - 1))
        begin = e.offset_pointer(self.begins, e.b.mul(e.b.add(e.b.mul(group, self.classes), kind), e.i64(4)))
        with e.loop(e.load_i32(begin), e.load_i32(begin, 4), carried=start) as run:
            entry = e.offset_pointer(self.runs, e.b.mul(run.index, e.i64(8)))
            run.next = self._accumulate_columns(e.load_i32(entry), e.load_i32(entry, 4), run.carried, x)
        one = len(run.results) // self.accumulators
        sums = run.results[:one]
        for number in range(1, self.accumulators):
            sums = [e.b.fadd(a, b) for a, b in zip(sums, run.results[number * one :], strict=False)]
        self._store_tile(sums, place, y, residual)

    def _accumulate_columns(self, first: ir.Value, last: ir.Value, sums: list[ir.Value], x: ir.Value) -> list[ir.Value]:
        """Emit the loop over columns `first` to ``last - 1``, which adds products to `sums`; return the new sums.

        An iteration adds one column to each set of accumulators.
        """
        e, count = self.e, self.accumulators
        stop = last if count == 1 else e.b.sub(last, e.i64(count - 1))
        with e.loop(first, stop, count, carried=sums) as column:
            one = len(sums) // count
            for number in range(count):
                at = e.b.add(column.index, e.i64(number)) if number else column.index
                column.next += self._add_column_products(at, column.carried[number * one : (number + 1) * one], x)
        if count == 1:
            return column.results
        done = e.b.mul(e.b.sdiv(e.b.sub(last, first), e.i64(count)), e.i64(count))
        with e.loop(e.b.add(first, done), last, carried=column.results[:one]) as column_left:
            column_left.next = self._add_column_products(column_left.index, column_left.carried, x)
        return column_left.results + column.results[one:]

    def _add_column_products(self, column: ir.Value, sums: list[ir.Value], x: ir.Value) -> list[ir.Value]:
        e, vectors, size = self.e, self.kernel.vectors, self.e.target.lanes * FLOAT
        if self.kernel.wide_offsets:
            offset = e.load_i32(self.offsets, e.b.mul(column, e.i64(4)))
        else:
            offset = e.b.zext(
                e.b.load(e.offset_pointer(self.offsets, e.b.mul(column, e.i64(2))), typ=I16, align=2), I64
            )
        source = e.offset_pointer(x, e.b.mul(offset, e.i64(FLOAT)))
        row = e.offset_pointer(self.weights, e.b.mul(column, e.i64(self.bytes)))
        if self.kernel.uses_pairs:
            weights = [bfloat.load_pairs(e, row, v * size, size) for v in range(vectors)]
        else:
            weights = [e.load(row, v * size, align=size) for v in range(vectors)]
        multiply = bfloat.multiply_pairs if self.kernel.uses_pairs else Emitter.fma
        results = []
        for index, place in enumerate(self.tile.pixel_positions):
            input_ = self._load_input(source, self.kernel.x.bytes_to(place))
            results += [multiply(e, weights[v], input_, sums[index * vectors + v]) for v in range(vectors)]
        return results

    def _load_input(self, source: ir.Value, byte: int) -> ir.Value:
        """Load a column's input at a pixel: a vector of channels if depthwise, otherwise one number in all lanes."""
        e, kernel = self.e, self.kernel
        if kernel.depthwise:
            return bfloat.load(e, source, byte, kernel.x.item)
        return bfloat.splat_pair(e, source, byte) if kernel.uses_pairs else e.splat(e.load_f32(source, byte))

    # End of a tile: residual, activation, store

    def _store_tile(self, sums: list[ir.Value], place: ir.Value, y: ir.Value, residual: ir.Value) -> None:
        e, kernel = self.e, self.kernel
        vectors, size = kernel.vectors, self.e.target.lanes * FLOAT
        lanes = e.load_i32(place, 4)
        first = e.load_i32(place)
        y = e.offset_pointer(y, e.b.mul(first, e.i64(kernel.y.item)))
        residual = e.offset_pointer(residual, e.b.mul(first, e.i64((kernel.residual or kernel.y).item)))
        if not self.staged:
            for index, pixel in enumerate(self.tile.pixel_positions):
                self._store_pixel(
                    sums[index * vectors :][:vectors],
                    e.offset_pointer(y, kernel.y.bytes_to(pixel)),
                    e.offset_pointer(residual, kernel.residual.bytes_to(pixel)) if kernel.residual else None,
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
            pointer = e.offset_pointer(pointer, e.b.mul(index, e.i64(bytes_)))
        return pointer

    def _store_pixel(self, sums: list[ir.Value], y: ir.Value, residual: ir.Value | None, lanes: ir.Value) -> None:
        e, kernel, count = self.e, self.kernel, self.e.target.lanes
        if residual is not None:
            assert kernel.residual is not None
            item = kernel.residual.item
            beside = [bfloat.load(e, residual, v * count * item, item) for v in range(kernel.vectors)]
            sums = [e.b.fadd(value, other) for value, other in zip(sums, beside, strict=True)]
        for v, value in enumerate(activate_all(e, kernel.act, sums)):
            here = e.offset_pointer(y, v * count * kernel.y.item)
            if kernel.partial_vector and v == kernel.vectors - 1:
                store_first_lanes(e, value, here, lanes, kernel.y.item)
            else:
                bfloat.store(e, value, here, 0, kernel.y.item)


# -- tiles -------------------------------------------------------------------------------------------------------------

# A tile is a box of output pixels (images x rows x columns) whose accumulators a kernel keeps in registers:
#
#     accumulators = vectors of rows * pixels of the tile  <=  vector registers
#
# With more pixels a weight vector is used more often per load, and with more vectors an input. The estimate takes the
# slowest of multipliers, loads, latency and caches (`estimate_column_cycles`); its constants fit measurements.


@dataclass(frozen=True)
class Tile:
    """A box of output pixels that a kernel computes together, with all sums in registers."""

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        """Number of pixels in the box."""
        return self.images * self.rows * self.columns

    @property
    def pixel_positions(self) -> list[tuple[int, int, int]]:
        """(Image, row, column) of each pixel of the tile, relative to the tile's first pixel."""
        return [(n, y, x) for n in range(self.images) for y in range(self.rows) for x in range(self.columns)]


@functools.lru_cache(maxsize=4096)
def _count_tiles(axis: Axis, length: int) -> tuple[int, int, float]:
    """Count tiles of `length`: return (number of tiles, sum of their live taps, share of tiles with only live taps).

    A tap (kernel position) is live in a tile if it reads any input there, not only padding.
    """
    alive = axis.live_taps(length)
    return len(alive), int(alive.sum()), float(alive.all(axis=1).mean())


@dataclass(frozen=True)
class ConvAxes:
    """The window of a convolution along rows and along columns; methods count tiles and kernel positions."""

    rows: Axis
    columns: Axis

    @property
    def taps(self) -> int:
        """Number of taps of the window."""
        return self.rows.size * self.columns.size

    def count_taps(self, tile: Tile) -> float:
        """Return the number of taps computed per image, summed over tiles and divided by the images of a tile."""
        return _count_tiles(self.rows, tile.rows)[1] * _count_tiles(self.columns, tile.columns)[1] / tile.images

    def tiles_per_image(self, tile: Tile) -> float:
        """Return the number of tiles per image: a tile that covers n images counts as 1 / n."""
        return _count_tiles(self.rows, tile.rows)[0] * _count_tiles(self.columns, tile.columns)[0] / tile.images

    def runs_per_tile(self, tile: Tile) -> float:
        """Return the mean number of ranges of consecutive live taps per tile.

        A tap (kernel position) is live if it reads any input, not only padding.
        """
        tiles, taps, _ = _count_tiles(self.rows, tile.rows)
        whole = _count_tiles(self.columns, tile.columns)[2]
        return whole + (1 - whole) * taps / tiles

    def count_input_pixels(self, tile: Tile) -> int:
        """Return the number of input pixels that a tile reads, in all its images."""
        return tile.images * self.rows.input_span(tile.rows) * self.columns.input_span(tile.columns)

    def candidate_tiles(self, pixels: int, images: int) -> list[Tile]:
        """Return the tiles to try: each has at most `pixels` pixels, and a number of images that divides `images`."""
        found = []
        for n in (n for n in range(1, min(images, pixels) + 1) if images % n == 0):
            for y in range(1, min(self.rows.outputs, pixels // n) + 1):
                longest = min(self.columns.outputs, pixels // (n * y))
                shortest_of_same_count = -(-self.columns.outputs // -(-self.columns.outputs // longest))
                found += [Tile(n, y, x) for x in {longest, shortest_of_same_count, 1}]
        return found


def find_true_runs(alive: Sequence[bool] | Array) -> list[tuple[int, int]]:
    """Return (first index, end) of each run of neighbouring True values in `alive`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], np.asarray(alive, dtype=bool), [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


@dataclass(frozen=True, eq=False)
class Tiling:
    """All tiles of an image, in classes: tiles of the same class compute the same taps (kernel positions)."""

    row: Array
    """Row of the first pixel of each tile."""
    column: Array
    """Column of the first pixel of each tile."""
    kind: Array
    """Class of each tile: an index into `spans`."""
    spans: list[list[tuple[int, int]]]
    """For each class, (first, end) of the runs of taps that touch the image; taps are numbered row by row."""

    @classmethod
    def from_axes(cls, plane: ConvAxes, tile: Tile) -> Tiling:
        """Return all tiles of the shape `tile` in an image of the output."""
        row_starts, column_starts = plane.rows.tile_starts(tile.rows), plane.columns.tile_starts(tile.columns)
        row_kinds, row_of = np.unique(plane.rows.live_taps(tile.rows), axis=0, return_inverse=True)
        column_kinds, column_of = np.unique(plane.columns.live_taps(tile.columns), axis=0, return_inverse=True)
        kinds = [
            find_true_runs((rows[:, None] & columns).reshape(-1)) for rows in row_kinds for columns in column_kinds
        ]
        row, column = (part.reshape(-1) for part in np.meshgrid(row_starts, column_starts, indexing="ij"))
        kind = row_of.reshape(-1)[:, None] * len(column_kinds) + column_of.reshape(-1)
        return cls(row, column, kind.reshape(-1), kinds)


# -- the choice of a tile ----------------------------------------------------------------------------------------------

CYCLES_A_NANOSECOND = 4.0
"""Cycles per nanosecond, to convert estimated cycles to time."""

WEIGHTS_KEPT = 1 << 19
"""Bytes of weights that stay in the L2 cache while a kernel proceeds from tile to tile."""

_PIXELS = {32: {1: 28, 2: 12, 3: 8, 4: 6}, 16: {1: 12, 2: 6, 3: 4}}
"""By the target's vector registers and a block's vectors: greatest number of pixels in a tile whose sums fit."""

_LATENCY = 4
"""Cycles until the result of a fused multiply-add is available."""

_MULTIPLIERS = 2
"""Number of fused multiply-adds of vectors per cycle."""

_LOADS = 2
"""Number of loads per cycle; a column loads its weight vectors, an input per pixel, and its offset."""

_NEAR_INPUT = 36 << 10
"""Bytes of input that stay in the L1 cache from one block of a tile to the next."""

_STEP, _TILE, _RUN, _VALUE = 0.4, 5.0, 23.0, 6.0
"""Overhead in cycles per column, per tile, per run of columns, and per stored vector; fitted to measurements."""

_INPUT_LINE, _WEIGHT_LINE, _FAR_WEIGHT_LINE = 0.67, 1.4, 1.75
"""Cycles to load a cache line of input from L2, of weights from L2, and extra cycles for weights outside of L2."""


@dataclass(frozen=True)
class BlockShape:
    """The number of vectors in a block of rows, and the tiles of output pixels for which the block is computed."""

    vectors: int
    tile: Tile
    rest: Tile | None
    """The tile for the images that are left over if `tile` covers several images; None if `tile` covers one image."""


@dataclass(frozen=True)
class ConvWork:
    """Sizes of a convolution on which the choice of a tile depends."""

    plane: ConvAxes
    channels: int
    """Columns per tap: the number of input channels, or of pairs of channels in bfloat16."""
    images: int
    """Images in a full block of the batch (`BlockSpec.images`)."""
    blocks: int
    columns: float
    """Mean number of retained columns of a block."""

    @property
    def density(self) -> float:
        """Share of all columns that a block retains, on average."""
        return min(1.0, self.columns / (self.channels * self.plane.taps))


def block_sizes(target: Target) -> list[int]:
    """Return the possible numbers of vectors in a block of rows."""
    return list(_PIXELS[target.registers])


def count_accumulators(vectors: int, tile: Tile, target: Target) -> int:
    """Return how many sets of accumulators a tile needs so that additions need not wait, as far as registers allow."""
    values = vectors * tile.pixels
    most = (target.registers - vectors - 2) // values
    return max(1, min(-(-_LATENCY * _MULTIPLIERS // values), most))


def estimate_cycles(work: ConvWork, vectors: int, tile: Tile, target: Target) -> float:
    """Estimate the processor cycles to compute a block of `vectors` vectors of weight rows for one image."""
    plane, values = work.plane, vectors * tile.pixels
    columns = work.columns * plane.count_taps(tile) / plane.taps
    beside = _TILE + _RUN * plane.runs_per_tile(tile) + _VALUE * values
    return columns * estimate_column_cycles(work, vectors, tile, target) + plane.tiles_per_image(tile) * beside


def estimate_column_cycles(work: ConvWork, vectors: int, tile: Tile, target: Target) -> float:
    """Estimate the cycles for one weight column and one tile: the slowest of multiplying, loading and caches."""
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
    """Estimate how many cache lines of a tile's input are fetched per column, on average over random masks."""
    values = LINE // FLOAT
    inputs = work.plane.taps * tile.pixels
    if tile.pixels * work.channels * FLOAT <= _NEAR_INPUT:
        # Neighbouring taps find their inputs in the L1 cache.
        inputs = min(inputs, work.plane.count_input_pixels(tile))
    uses = values * work.plane.taps * tile.pixels / inputs  # of a line, if no column were pruned
    touched = inputs * work.channels / values * (1 - float((1 - work.density) ** uses))
    return touched / max(1.0, work.columns)


def choose_block_shape(work: ConvWork, vectors: int, target: Target) -> tuple[BlockShape, float]:
    """Return the fastest tiles for blocks with `vectors` vectors of weight rows, and the cycles per block and image."""
    most = _PIXELS[target.registers][vectors]

    def estimate_tile_cycles(tile: Tile) -> float:
        return estimate_cycles(work, vectors, tile, target)

    tile = min(work.plane.candidate_tiles(most, work.images), key=estimate_tile_cycles)
    rest = None if tile.images == 1 else min(work.plane.candidate_tiles(most, 1), key=estimate_tile_cycles)
    return BlockShape(vectors, tile, rest), estimate_tile_cycles(tile)
