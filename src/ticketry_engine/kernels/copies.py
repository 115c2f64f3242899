"""Copy runs of consecutive elements within a thread's working memory (the arena), in any layout.

    for start in starts:              int64 [outer, 2]: (destination, source) byte offsets
        for run in runs:              int64 [inner, 2]: byte offsets that are added to those of `start`
            copy `length` elements

Two small tables, `starts` and `runs`, replace one large table of their sums. Whole runs move as vectors.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ticketry_engine.kernels.emitter import I16, I32, I64, EmittedKernel, Emitter, StateSlot
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.window import Array

_MOST_LENGTHS = 6
"""Greatest number of different run lengths in a set of copies; with more lengths, elements are copied singly."""

_UNROLLED = 4


class CopyArg(enum.IntEnum):
    """Indices of the arguments of a `Copies` kernel."""

    SOURCE = 0
    """Byte offset of the source in the arena; `RESULT` is the byte offset of the destination."""
    RESULT = 1
    SOURCE_IMAGE = 2
    """Bytes between two images of the source; `RESULT_IMAGE` is the same for the destination."""
    RESULT_IMAGE = 3
    OUTER = 4
    """Number of entries of the table `STARTS`; `INNER` is the number of entries of the table `RUNS`."""
    INNER = 5
    STARTS = 6
    """int64 [outer, 2]: byte offsets of destination and source, relative to `RESULT` and `SOURCE`."""
    RUNS = 7
    """int64 [inner, 2]: for each run, byte offsets of destination and source relative to an entry of `STARTS`."""


def plan_copies(destinations: Array, places: Array, of: Array, size: int) -> Iterator[tuple[int, Array, Array, int]]:
    """Yield the copies to make, as (number of a source, table `starts`, table `runs`, elements per run).

    A run is a group of consecutive elements.

    The tables hold byte offsets: each run is copied once for each start. The number is -1 if the copies write zeros.

    Args:
        destinations: int64 [outer, inner], byte to which each element is copied. It is the sum of a number for the row
            and a number for the column.
        places: int64 [outer, inner], byte of each element in its source.
        of: [outer, inner], number of each element's source; -1 for an element that is set to zero.
        size: bytes of an element.
    """
    for number in np.unique(of).tolist():
        mine = of == number
        rows, columns = mine.any(1), mine.any(0)
        if mine[np.ix_(rows, columns)].all():
            to, source = destinations[np.ix_(rows, columns)], places[np.ix_(rows, columns)]
            if number < 0:
                source = np.zeros_like(to)
            line, first = source[0] - source[0, 0], source[:, :1]
            if np.array_equal(first + line, source):
                starts = np.stack([to[:, 0], first[:, 0]], axis=-1)
                for runs, length in _group_into_runs(to[0] - to[0, 0], line, size, number < 0):
                    yield number, np.ascontiguousarray(starts), runs, length
                continue
        to = destinations[mine]
        for runs, length in _group_into_runs(to, to if number < 0 else places[mine], size, number < 0):
            yield number, np.zeros((1, 2), np.int64), runs, length


def _group_into_runs(to: Array, source: Array, size: int, zeros: bool) -> Iterator[tuple[Array, int]]:
    """Yield (first bytes of runs, elements per run), where a run consists of consecutive elements.

    The first bytes are int64 [runs, 2], in the destination and in the source. `to` and `source` are the byte offsets of
    each element in both, and an element has `size` bytes. If `zeros`, elements need to be consecutive only in the
    destination.
    """
    breaks = np.diff(to) != size
    if not zeros:
        breaks = breaks | (np.diff(source) != size)
    firsts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lengths = np.diff(np.append(firsts, len(to)))
    if len(np.unique(lengths)) > _MOST_LENGTHS:
        firsts, lengths = np.arange(len(to)), np.ones(len(to), np.int64)
    pairs = np.stack([to, source], axis=-1)
    for length in np.unique(lengths).tolist():
        yield np.ascontiguousarray(pairs[firsts[lengths == length]]), length


@dataclass(frozen=True)
class Copies(EmittedKernel):
    """Kernel that copies runs of elements, or fills them with zeros; `CopyArg` lists its arguments."""

    length: int
    """Elements per run."""
    item: int
    """Bytes per element."""
    by_image: bool
    """Whether the copies are repeated for each image; False if each element holds the values of all images."""
    zeros: bool
    """Whether to write zeros instead of reading a source."""

    def write(self, e: Emitter) -> None:
        b = e.b
        outer, inner = e.arg(CopyArg.OUTER), e.arg(CopyArg.INNER)
        images = e.state(StateSlot.IMAGES) if self.by_image else e.i64(1)
        source, result = e.arena_pointer(e.arg(CopyArg.SOURCE)), e.arena_pointer(e.arg(CopyArg.RESULT))
        starts, runs = e.table(CopyArg.STARTS), e.table(CopyArg.RUNS)
        with e.loop_share_of_pairs(images, outer) as (image, entry):
            start = e.offset_pointer(starts, b.mul(entry, e.i64(16)))
            to = e.offset_pointer(result, b.add(b.mul(image, e.arg(CopyArg.RESULT_IMAGE)), e.load_i64(start)))
            source_place = e.offset_pointer(
                source, b.add(b.mul(image, e.arg(CopyArg.SOURCE_IMAGE)), e.load_i64(start, 8))
            )
            most = b.mul(b.udiv(inner, e.i64(_UNROLLED)), e.i64(_UNROLLED))
            with e.loop(0, most, _UNROLLED) as turn:
                self._copy_runs(e, e.offset_pointer(runs, b.mul(turn.index, e.i64(16))), _UNROLLED, to, source_place)
            with e.loop(most, inner) as turn:
                self._copy_runs(e, e.offset_pointer(runs, b.mul(turn.index, e.i64(16))), 1, to, source_place)

    def _copy_runs(self, e: Emitter, pairs: ir.Value, count: int, to: ir.Value, source_place: ir.Value) -> None:
        """Copy `count` runs; `pairs` points to the first run's entry in the table `CopyArg.RUNS`."""
        ends = [
            (
                e.offset_pointer(to, e.load_i64(pairs, 16 * number)),
                e.offset_pointer(source_place, e.load_i64(pairs, 16 * number + 8)),
            )
            for number in range(count)
        ]
        size = self.length * self.item
        wide = ir.VectorType(I32, e.target.lanes)
        whole = size // (4 * e.target.lanes) * 4 * e.target.lanes
        if whole:
            with e.loop(0, whole, 4 * e.target.lanes) as turn:
                self._copy_piece(
                    e,
                    [
                        (e.offset_pointer(destination, turn.index), e.offset_pointer(source, turn.index))
                        for destination, source in ends
                    ],
                    wide,
                )
        at = whole
        while at < size:
            kind, step = next((kind, step) for kind, step in _copy_types(e.target.lanes) if step <= size - at)
            self._copy_piece(
                e,
                [(e.offset_pointer(destination, at), e.offset_pointer(source, at)) for destination, source in ends],
                kind,
            )
            at += step

    def _copy_piece(self, e: Emitter, ends: list[tuple[ir.Value, ir.Value]], kind: ir.Type) -> None:
        if self.zeros:
            values = [ir.Constant(kind, None)] * len(ends)
        else:
            values = [e.b.load(source, typ=kind, align=self.item) for _, source in ends]
        for (destination, _), value in zip(ends, values, strict=True):
            e.b.store(value, destination, align=self.item)


def _copy_types(lanes: int) -> list[tuple[ir.Type, int]]:
    """Return (LLVM type, bytes) of the loads that copy less than a vector of `lanes` lanes, widest first."""
    widths = [width for width in (8, 4) if width < lanes]
    return [*((ir.VectorType(I32, width), 4 * width) for width in widths), (I64, 8), (I32, 4), (I16, 2)]
