"""The kernel of rows of weights that share their columns: vectors over output channels, tiles of pixels in registers.

For each group of rows and each tile it does ``acc[v][p] += weight[k][v] * x[tile + offset[k] + p]`` over the kept
columns k. The code depends on the layer's shape alone; which columns are kept is told by tables.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from ticketry_engine.kernels.activations import Activation, activate_all
from ticketry_engine.kernels.channels_last import loops, number_formats
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.channels_last.loops import Strides
from ticketry_engine.kernels.channels_last.tiles import Tile, sets
from ticketry_engine.kernels.emitter import I16, I64, Emitter, State, Written
from ticketry_engine.kernels.llvm import ir


class Arg(enum.IntEnum):
    """Arguments of the kernel."""

    X = 0
    """Byte of the arena at which the input's first image begins; Y and RESIDUAL likewise."""
    Y = 1
    RESIDUAL = 2
    GROUPS = 3
    """How many groups."""
    TOGETHER = 4
    """Groups done on one tile before the next tile: as many as keep their weights in the second cache."""
    PLACES = 5
    """int32 [groups, 2]: the first row's channel; rows in the last vector."""
    BIAS = 6
    """float32 [groups, vectors * lanes]."""
    OFFSETS = 7
    """Of each kept column, all groups' one behind the other: words of 4 bytes from a tile's input to the column's."""
    WEIGHTS = 8
    """float32 [columns, vectors * lanes], or bfloat16 [columns, vectors * lanes, 2] where columns are pairs."""
    TILES = 9
    """Of the tile shape: how many an image has; int32 [tiles, 4]: bytes from an image's start to the tile's in input,
    output and residual, and the tile's class; classes; int32 [groups * classes + 1]: where runs begin; int32
    [runs, 2]: first kept column, and one behind the last. Then the same of the shape for images left over."""


TILE_ARGS = 5


@dataclass(frozen=True)
class GroupConv(Written):
    """See the module; arguments are listed in `Arg`."""

    finished: ClassVar[bool] = True

    vectors: int
    tile: Tile
    rest: Tile | None
    """For the images that are left over where a tile has several."""
    x: Strides
    """From a tile's pixel to the next along each axis."""
    y: Strides
    residual: Strides | None
    act: Activation
    partial: bool
    """Whether some group's last vector is not full."""
    wide: bool
    """Whether offsets are int32 rather than uint16."""
    depthwise: bool
    """Whether each row has an input channel of its own, the one at its place, and columns are taps."""

    @property
    def pairs(self) -> bool:
        """Whether columns are pairs of neighbouring channels in bfloat16."""
        return self.x.item == HALF and not self.depthwise

    def write(self, e: Emitter) -> None:
        images = e.state(State.IMAGES)
        blocks = e.b.udiv(images, e.i64(self.tile.images))
        writer = _Writer(self, e, self.tile, Arg.TILES)
        writer.all_tiles(e.i64(0), blocks)
        if self.rest is not None:
            done = e.b.mul(blocks, e.i64(self.tile.images))
            _Writer(self, e, self.rest, Arg.TILES + TILE_ARGS).all_tiles(done, e.b.sub(images, done))


class _Writer:
    """Writes the loops over tiles of one shape."""

    def __init__(self, kernel: GroupConv, e: Emitter, tile: Tile, first_arg: int) -> None:
        self.kernel, self.e, self.tile = kernel, e, tile
        self.sets = sets(kernel.vectors, tile, e.target)
        self.bytes = kernel.vectors * e.target.lanes * FLOAT
        self.per_image, self.tiles, self.classes = e.arg(first_arg), e.table(first_arg + 1), e.arg(first_arg + 2)
        self.begins, self.runs = e.table(first_arg + 3), e.table(first_arg + 4)
        self.places, self.bias = e.table(Arg.PLACES), e.table(Arg.BIAS)
        self.offsets, self.weights = e.table(Arg.OFFSETS), e.table(Arg.WEIGHTS)
        self.staged = loops.long(kernel.act)
        if self.staged:
            self.stage = e.scratch(tile.pixels * kernel.vectors)

    def all_tiles(self, first_image: ir.Value, blocks: ir.Value) -> None:
        """All tiles of ``blocks`` times the tile's images, of all groups: this thread's share of them."""
        e, kernel = self.e, self.kernel
        count = e.b.mul(blocks, self.per_image)
        low_group, high_group, low, high = self._share(e.arg(Arg.GROUPS), count)
        together = e.arg(Arg.TOGETHER)
        steps = (kernel.x, kernel.y, kernel.residual or kernel.y)
        bases = [e.arena(e.arg(arg)) for arg in (Arg.X, Arg.Y, Arg.RESIDUAL)]
        with e.loop(low_group, high_group, together) as some:
            end = e.b.add(some.index, together)
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
                    self._group(group.index, kind, x, y, residual)

    def _share(self, groups: ir.Value, tiles: ir.Value) -> list[ir.Value]:
        """From and to of groups and tiles for this thread: whichever there are more of are shared."""
        e = self.e
        some_groups, some_tiles = e.share(groups), e.share(tiles)
        by_groups = e.b.icmp_signed(">", groups, tiles)
        zero = e.i64(0)
        return [
            e.select(by_groups, some_groups[0], zero),
            e.select(by_groups, some_groups[1], groups),
            e.select(by_groups, zero, some_tiles[0]),
            e.select(by_groups, tiles, some_tiles[1]),
        ]

    def _group(self, group: ir.Value, kind: ir.Value, x: ir.Value, y: ir.Value, residual: ir.Value) -> None:
        e, vectors = self.e, self.kernel.vectors
        row = e.at(self.bias, e.b.mul(group, e.i64(self.bytes)))
        size = e.target.lanes * FLOAT
        biases = [e.load(row, v * size, align=size) for v in range(vectors)]
        place = e.at(self.places, e.b.mul(group, e.i64(8)))
        if self.kernel.depthwise:
            x = e.at(x, e.b.mul(e.load_i32(place), e.i64(self.kernel.x.item)))
        start = biases * self.tile.pixels
        start += [e.splat(0.0)] * (len(start) * (self.sets - 1))
        begin = e.at(self.begins, e.b.mul(e.b.add(e.b.mul(group, self.classes), kind), e.i64(4)))
        with e.loop(e.load_i32(begin), e.load_i32(begin, 4), carried=start) as run:
            entry = e.at(self.runs, e.b.mul(run.index, e.i64(8)))
            run.next = self._columns(e.load_i32(entry), e.load_i32(entry, 4), run.carried, x)
        self._finish(self._sum(run.results), place, y, residual)

    def _columns(self, first: ir.Value, last: ir.Value, sums: list[ir.Value], x: ir.Value) -> list[ir.Value]:
        """The run's columns: all sets at once, then the last few on the first set."""
        e, count = self.e, self.sets
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
        if self.kernel.wide:
            offset = e.load_i32(self.offsets, e.b.mul(column, e.i64(4)))
        else:
            offset = e.b.zext(e.b.load(e.at(self.offsets, e.b.mul(column, e.i64(2))), typ=I16, align=2), I64)
        source = e.at(x, e.b.mul(offset, e.i64(FLOAT)))
        row = e.at(self.weights, e.b.mul(column, e.i64(self.bytes)))
        if self.kernel.pairs:
            weights = [number_formats.load_pairs(e, row, v * size, size) for v in range(vectors)]
        else:
            weights = [e.load(row, v * size, align=size) for v in range(vectors)]
        multiply = number_formats.multiply_pairs if self.kernel.pairs else Emitter.fma
        results = []
        for index, place in enumerate(self.tile.places):
            input_ = self._input(source, self.kernel.x.at(place))
            results += [multiply(e, weights[v], input_, sums[index * vectors + v]) for v in range(vectors)]
        return results

    def _input(self, source: ir.Value, byte: int) -> ir.Value:
        """What a column's weights are multiplied with at a pixel."""
        e, kernel = self.e, self.kernel
        if kernel.depthwise:
            return number_formats.load(e, source, byte, kernel.x.item)
        return number_formats.splat_pair(e, source, byte) if kernel.pairs else e.splat(e.load_f32(source, byte))

    def _sum(self, parts: list[ir.Value]) -> list[ir.Value]:
        one = len(parts) // self.sets
        sums = parts[:one]
        for number in range(1, self.sets):
            sums = [self.e.b.fadd(a, b) for a, b in zip(sums, parts[number * one :], strict=False)]
        return sums

    # The end of a tile: residual, activation, store

    def _finish(self, sums: list[ir.Value], place: ir.Value, y: ir.Value, residual: ir.Value) -> None:
        e, kernel = self.e, self.kernel
        vectors, size = kernel.vectors, self.e.target.lanes * FLOAT
        lanes = e.load_i32(place, 4)
        first = e.load_i32(place)
        y = e.at(y, e.b.mul(first, e.i64(kernel.y.item)))
        residual = e.at(residual, e.b.mul(first, e.i64((kernel.residual or kernel.y).item)))
        if not self.staged:
            for index, pixel in enumerate(self.tile.places):
                self._pixel(
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
            source = self._place(self.stage, staged, at)
            self._pixel(
                [e.load(source, v * size, align=size) for v in range(vectors)],
                self._place(y, kernel.y, at),
                self._place(residual, kernel.residual, at) if kernel.residual else None,
                lanes,
            )

    def _place(self, pointer: ir.Value, step: Strides, at: tuple[ir.Value, ...]) -> ir.Value:
        e = self.e
        for index, bytes_ in zip(at, (step.image, step.row, step.pixel), strict=True):
            pointer = e.at(pointer, e.b.mul(index, e.i64(bytes_)))
        return pointer

    def _pixel(self, sums: list[ir.Value], y: ir.Value, residual: ir.Value | None, lanes: ir.Value) -> None:
        e, kernel, count = self.e, self.kernel, self.e.target.lanes
        if residual is not None:
            assert kernel.residual is not None
            item = kernel.residual.item
            beside = [number_formats.load(e, residual, v * count * item, item) for v in range(kernel.vectors)]
            sums = [e.b.fadd(value, other) for value, other in zip(sums, beside, strict=True)]
        for v, value in enumerate(activate_all(e, kernel.act, sums)):
            here = e.at(y, v * count * kernel.y.item)
            if kernel.partial and v == kernel.vectors - 1:
                number_formats.store_first(e, value, here, lanes, kernel.y.item)
            else:
                number_formats.store(e, value, here, 0, kernel.y.item)
