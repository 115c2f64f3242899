"""Kernel of scaled dot-product attention on planes: channels are the features of all heads, positions are the tokens.

    y = softmax(scale * q @ k.T + bias) @ v,   for each head and image

    for each tile of query vectors:                  one lane per query and image
        for each block of keys:
            s = scale * q @ k.T + bias               in registers
            m' = max(m, s),  p = exp(s - m')
            sums = sums * exp(m - m') + p @ v,  total = total * exp(m - m') + sum(p)
        y = sums / total

Because of the running maximum m, one pass over the keys is enough and the matrix of scores is not stored (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018). No lane needs a value of another lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import exp
from ticketry_engine.kernels.emitter import I32, PTR, EmittedKernel, Emitter
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.planar.geometry import (
    FLOAT,
    MOST,
    Geometry,
    Planes,
    first_lanes_mask,
    load_repeated,
    shuffle,
    splat,
    store,
)
from ticketry_engine.kernels.program import Bias, BlockSpec, Op
from ticketry_engine.kernels.window import Array

_MOST_KEYS = 12
"""Greatest number of keys per block."""

_HIDDEN = -1e30
"""Number that replaces -inf in bias tables; its exponential is also 0, but its difference to itself is not NaN."""


def attention(
    q: Planes,
    k: Planes,
    v: Planes,
    y: Planes,
    heads: int,
    scale: float,
    causal: bool,
    spec: BlockSpec,
    bias: Bias | None = None,
    windows: bool = False,
) -> list[Op]:
    """Return the operations of ``y = softmax(scale * q @ k.T + bias) @ v``, for each image and head.

    Each position (pixel) of a value is a token; k and v may have other tokens than q. If k and v have fewer heads than
    q, several consecutive heads of q use the same head of k and v. y must not overlap q, k or v. If `causal`, a query
    attends only to keys up to its own position. If `windows`, each row of pixels is a window whose tokens attend only
    to each other.
    """
    depth, values = q.channels // heads, y.channels // heads
    key_heads = k.channels // max(depth, 1)
    found = tuple(value.channels for value in (q, k, v, y))
    fitting = (heads * depth, key_heads * depth, key_heads * values, heads * values)
    if found != fitting or 0 in found or heads % key_heads:
        raise EngineError(f"attention of {heads} heads does not fit queries, keys, values, results of {found} channels")
    geometries = [value.geometry for value in (q, k, v, y)]
    places = [
        (g.width, g.pixel_position(0, 0) * g.position_bytes) if windows else _token_count_and_start(g)
        for g in geometries
    ]
    queries, keys = places[0][0], places[1][0]
    if windows and len({g.height for g in geometries}) > 1:
        raise EngineError("as many windows of queries as of keys have to be")
    kernel = Attention(q.geometry.images, values, min(keys, _MOST_KEYS), causal, bias is not None, windows)
    args = (heads, heads // key_heads, depth, queries, keys, *(start for _, start in places))
    number = np.array([scale], np.float32)
    added = (0, 0, 0, 0) if bias is None else _bias_table(bias, spec)
    rows = (q.geometry.height, *(g.row * g.position_bytes for g in geometries)) if windows else ()
    return [Op(kernel, (*args, q.offsets, k.offsets, v.offsets, y.offsets, number, *added, *rows))]


def _bias_table(bias: Bias, spec: BlockSpec) -> tuple[Array | int, ...]:
    """Return the bias as the kernel's arguments: a table [tables, keys, queries] and three distances in bytes.

    The distances lead from one head, one key and one window to the next.
    """
    if bias.name not in spec.tables:
        turned = np.maximum(bias.values, np.float32(_HIDDEN)).swapaxes(1, 2)
        spec.tables[bias.name] = np.ascontiguousarray(np.pad(turned, ((0, 0), (0, 0), (0, 4 * MOST))))
    table = spec.tables[bias.name]
    return (table, bias.by_head * table.strides[0], table.strides[1], bias.by_window * table.strides[0])


def _token_count_and_start(g: Geometry) -> tuple[int, int]:
    """Return (number of tokens, byte at which the first token begins in the memory of a channel)."""
    if g.height > 1 and g.row != g.width:
        raise EngineError(f"tokens must follow one another: {g.height} rows of {g.width} lie {g.row} positions apart")
    return g.height * g.width, g.pixel_position(0, 0) * g.position_bytes


@dataclass(frozen=True)
class Attention(EmittedKernel):
    """Kernel of attention on values that are stored channel by channel (one plane of pixels per channel)."""

    images: int
    values: int
    """Features per head of v and y."""
    keys: int
    """Keys per block, at most `_MOST_KEYS`."""
    causal: bool
    biased: bool = False
    windows: bool = False

    def write(self, e: Emitter) -> None:
        _AttentionWriter(self, e).write()


class _AttentionWriter:
    """Writer of the kernel's code for tiles of `across` vectors of queries and blocks of `block` keys."""

    def __init__(self, kernel: Attention, e: Emitter) -> None:
        self.kernel, self.e, target = kernel, e, e.target
        # If a vector holds several images, a loaded key serves few queries, so a tile has more vectors of queries.
        many = target.registers >= 32
        self.across = 2 if kernel.images <= (2 if many else target.lanes) else 4 if many else 3
        self.block = min(kernel.keys, (24 if many else 12) // self.across)
        self.images = min(kernel.images, target.lanes)
        """Images per vector; the images of a position take `parts` vectors."""
        self.parts = kernel.images // self.images
        self.pixels = target.lanes // self.images
        """Tokens per vector."""
        self.heads, self.group, self.depth, self.queries, self.count = (e.arg(i) for i in range(5))
        self.starts = [e.arg(5 + i) for i in range(4)]
        self.begins = self.starts
        """Bytes in planes of q, k, v and y where the current window begins."""
        self.window = e.i64(0)
        self.tables = [e.table(9 + i) for i in range(4)]
        self.scale = e.splat(e.load_f32(e.table(13)))
        self.scores = self._allocate_stack(self.block * self.across)
        self.sums = self._allocate_stack(kernel.values * self.across)

    def _allocate_stack(self, vectors: int) -> ir.Value:
        place = self.e.b.alloca(ir.ArrayType(self.e.vector, vectors))
        place.align, place.type = self._size, PTR  # the builder assigns a typed pointer, which LLVM no longer has
        return place

    @property
    def _size(self) -> int:
        return FLOAT * self.e.target.lanes

    def write(self) -> None:
        e, b = self.e, self.e.b
        size = e.i64(self.across * self.pixels)
        tiles = b.mul(e.i64(self.parts), b.udiv(b.add(self.queries, b.sub(size, e.i64(1))), size))
        heads = b.mul(self.heads, e.arg(18)) if self.kernel.windows else self.heads
        with e.loop_share_of_pairs(heads, tiles) as (head, tile):
            if self.kernel.windows:
                self.window, head = b.udiv(head, self.heads), b.urem(head, self.heads)
                self.begins = [b.add(start, b.mul(self.window, e.arg(19 + i))) for i, start in enumerate(self.starts)]
            part, tile = b.urem(tile, e.i64(self.parts)), b.udiv(tile, e.i64(self.parts))
            self._write_tile(head, b.mul(tile, size), b.mul(part, e.i64(self._size)))

    def _write_tile(self, head: ir.Value, first: ir.Value, part: ir.Value) -> None:
        """Emit the code for the queries of a tile from `first` on, for the images at byte `part` of each token."""
        e, b, k = self.e, self.e.b, self.kernel
        zero, none = e.splat(0.0), e.splat(float("-inf"))
        with e.loop(0, k.values) as i:
            for v in range(self.across):
                e.store(zero, self._sum_pointer(i.index), v * self._size, self._size)
        seen = self.count
        if k.causal:
            last = b.add(first, e.i64(self.across * self.pixels))
            seen = e.select(b.icmp_signed("<", last, seen), last, seen)
        blocks = b.udiv(b.add(seen, e.i64(self.block - 1)), e.i64(self.block))
        with e.loop(0, blocks, carried=[none] * self.across + [zero] * self.across) as turn:
            largest, totals = turn.carried[: self.across], turn.carried[self.across :]
            new = b.mul(turn.index, e.i64(self.block))
            last = b.sub(self.count, e.i64(self.block))
            key = e.select(b.icmp_signed("<", new, last), new, last)
            scores = [b.fmul(score, self.scale) for score in self._compute_scores(head, first, key, part)]
            if k.biased:
                scores = self._add_bias(scores, head, first, key)
            scores = self._mask_scores(scores, first, key, new)
            most = [self._elementwise_maximum([largest[v], *scores[v :: self.across]]) for v in range(self.across)]
            shrink = [exp(e, b.fsub(old, now)) for old, now in zip(largest, most, strict=True)]
            totals = [b.fmul(total, factor) for total, factor in zip(totals, shrink, strict=True)]
            totals = self._store_exponentials(scores, most, totals)
            self._add_values(head, key, part, shrink)
            turn.next = [*most, *totals]
        self._write_results(head, first, part, turn.results[self.across :])

    def _compute_scores(self, head: ir.Value, first: ir.Value, key: ir.Value, part: ir.Value) -> list[ir.Value]:
        """Return the dot products of a block's keys with the tile's queries: for each key, `across` vectors."""
        e, b = self.e, self.e.b
        key_head = b.udiv(head, self.group)
        with e.loop(0, self.depth, carried=[e.splat(0.0)] * (self.block * self.across)) as i:
            q, k = (
                self._token_pointer(which, b.add(b.mul(of, self.depth), i.index), position, part)
                for which, of, position in ((0, head, first), (1, key_head, key))
            )
            queries = [e.load(q, v * self._bytes_between_vectors) for v in range(self.across)]
            for j in range(self.block):
                value = self._load_token_value(k, j)
                pairs = zip(queries, i.carried[j * self.across :], strict=False)
                i.next += [e.fma(query, value, total) for query, total in pairs]
        return i.results

    def _add_bias(self, scores: Sequence[ir.Value], head: ir.Value, first: ir.Value, key: ir.Value) -> list[ir.Value]:
        """Return the scores plus the bias of each query and key."""
        e, b = self.e, self.e.b
        by_head, by_key = e.arg(15), e.arg(16)
        table = b.add(b.mul(head, by_head), b.mul(self.window, e.arg(17)))
        begin = e.offset_pointer(e.table(14), b.add(table, b.mul(first, e.i64(FLOAT))))
        order = [lane // self.images for lane in range(e.target.lanes)]
        found = []
        for index, score in enumerate(scores):
            j, v = divmod(index, self.across)
            line = e.offset_pointer(begin, b.mul(b.add(key, e.i64(j)), by_key))
            few = b.load(
                e.offset_pointer(line, FLOAT * v * self.pixels),
                typ=ir.VectorType(score.type.element, self.pixels),
                align=FLOAT,
            )
            found.append(b.fadd(score, shuffle(e, few, few, order)))
        return found

    def _mask_scores(self, scores: Sequence[ir.Value], first: ir.Value, key: ir.Value, new: ir.Value) -> list[ir.Value]:
        """Return the scores, with -inf for keys before `new`, because an earlier block of keys includes them.

        If the attention is causal, keys after the query also get -inf.
        """
        e, b, found = self.e, self.e.b, []
        none = e.splat(float("-inf"))
        for index, score in enumerate(scores):
            j, v = divmod(index, self.across)
            here = b.add(key, e.i64(j))
            value = e.select(b.icmp_signed("<", here, new), none, score)
            if self.kernel.causal:
                apart = b.trunc(b.sub(here, first), I32)
                positions = [v * self.pixels + lane // self.images for lane in range(e.target.lanes)]
                tokens = ir.Constant(ir.VectorType(I32, e.target.lanes), positions)
                later = b.icmp_signed("<", tokens, splat(e, apart, e.target.lanes))
                value = e.select(later, none, value)
            found.append(value)
        return found

    def _elementwise_maximum(self, values: Sequence[ir.Value]) -> ir.Value:
        found = values[0]
        for value in values[1:]:
            found = self.e.select(self.e.b.fcmp_ordered(">", found, value), found, value)
        return found

    def _store_exponentials(
        self, scores: Sequence[ir.Value], most: Sequence[ir.Value], totals: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Emit the code that stores exp(score - most) of each score, and return the totals plus these exponentials."""
        e, b = self.e, self.e.b
        for index, score in enumerate(scores):
            e.store(b.fsub(score, most[index % self.across]), self.scores, index * self._size, self._size)
        with e.loop(0, self.block, carried=totals) as j:
            here = e.offset_pointer(self.scores, b.mul(j.index, e.i64(self.across * self._size)))
            for v in range(self.across):
                power = exp(e, e.load(here, v * self._size, self._size))
                e.store(power, here, v * self._size, self._size)
                j.next.append(b.fadd(j.carried[v], power))
        return j.results

    def _add_values(self, head: ir.Value, key: ir.Value, part: ir.Value, shrink: Sequence[ir.Value]) -> None:
        """Emit the code that multiplies the sums by `shrink`, and adds v times the exponentials for a block of keys."""
        e, b = self.e, self.e.b
        powers = [e.load(self.scores, index * self._size, self._size) for index in range(self.block * self.across)]
        begin = b.mul(b.udiv(head, self.group), e.i64(self.kernel.values))
        with e.loop(0, self.kernel.values) as i:
            place, here = self._token_pointer(2, b.add(begin, i.index), key, part), self._sum_pointer(i.index)
            sums = [b.fmul(e.load(here, v * self._size, self._size), shrink[v]) for v in range(self.across)]
            for j in range(self.block):
                value = self._load_token_value(place, j)
                sums = [e.fma(powers[j * self.across + v], value, total) for v, total in enumerate(sums)]
            for v, total in enumerate(sums):
                e.store(total, here, v * self._size, self._size)

    def _write_results(self, head: ir.Value, first: ir.Value, part: ir.Value, totals: Sequence[ir.Value]) -> None:
        """Emit the code that stores sums / totals in y, without the lanes after the last query."""
        e, b = self.e, self.e.b
        inverse = [b.fdiv(e.splat(1.0), total) for total in totals]
        left = b.sub(self.queries, first)
        masks = [
            first_lanes_mask(e, b.mul(b.sub(left, e.i64(v * self.pixels)), e.i64(self.images)))
            for v in range(self.across)
        ]
        with e.loop(0, self.kernel.values) as i:
            channel = b.add(b.mul(head, e.i64(self.kernel.values)), i.index)
            place, here = self._token_pointer(3, channel, first, part), self._sum_pointer(i.index)
            for v, (factor, mask) in enumerate(zip(inverse, masks, strict=True)):
                value = b.fmul(e.load(here, v * self._size, self._size), factor)
                store(e, value, place, v * self._bytes_between_vectors, mask)

    @property
    def _bytes_between_vectors(self) -> int:
        """Bytes from one vector of queries to the next, in the memory of one channel (a plane)."""
        return FLOAT * max(self.kernel.images, self.e.target.lanes)

    def _sum_pointer(self, feature: ir.Value) -> ir.Value:
        return self.e.offset_pointer(self.sums, self.e.b.mul(feature, self.e.i64(self.across * self._size)))

    def _token_pointer(self, which: int, channel: ir.Value, position: ir.Value, part: ir.Value) -> ir.Value:
        """Return a pointer to token `position` of a channel of q, k, v or y, for `which` = 0 to 3."""
        b = self.e.b
        plane = self.e.load_i64(self.tables[which], b.mul(channel, self.e.i64(8)))
        byte = b.add(b.mul(position, self.e.i64(FLOAT * self.kernel.images)), b.add(part, self.begins[which]))
        return self.e.offset_pointer(self.e.arena_pointer(plane), byte)

    def _load_token_value(self, place: ir.Value, token: int) -> ir.Value:
        """Return the values of all images for one token, repeated to fill a vector.

        The token is `token` tokens after the one at the pointer `place`.
        """
        return load_repeated(self.e, place, self.images, token * FLOAT * self.kernel.images)
