"""Kernels of attention over the tokens (pixels) of an image, head by head.

    y = softmax(scale * q k' + bias) v        q, k, v: [tokens, heads * size]; a head is a run of ``size`` channels

Two kernels run one after the other:

    TransposeKeys           k [keys, channels]  ->  scratch [channels, padded keys], zeros after the last key
    ChannelsLastAttention   for each tile of a few queries of a head:
                                scores[query, key] = sum over channels of q[query, c] * scratch[c, key]
                                softmax over keys, in place
                                y[query, c] = sum over keys of scores[query, key] * v[key, c]

Both products multiply a broadcast number by whole vectors of keys or channels, with all sums of a tile in registers.
The scores of a tile, at most `MOST_KEYS` per query, stay in the L1 cache and are never written to the arena. The bias
is float32 [tables, queries, padded keys], where a table may serve several heads and windows.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import exp
from ticketry_engine.kernels.channels_last.elementwise import copy
from ticketry_engine.kernels.channels_last.geometry import (
    FLOAT,
    ChannelsLastGeometry,
    ChannelsLastValue,
    first_lanes_mask,
    first_pixel_offset,
    load_vector,
    loop_vectors,
    max_lane,
    store_vector,
    sum_lanes,
    transpose,
    vector_offset,
)
from ticketry_engine.kernels.emitter import EmittedKernel, Emitter, StateSlot
from ticketry_engine.kernels.jit import ir
from ticketry_engine.kernels.program import Bias, BlockSpec, Op

_TILE = {32: (4, 6), 16: (2, 6)}
"""By number of the target's vector registers: (vectors, queries) of a tile, whose sums fit in the registers."""

MOST_KEYS = 4096
"""Greatest number of keys: a tile's scores are stored on the thread's stack."""


class AttentionArg(enum.IntEnum):
    """Indices of the arguments of both kernels, `TransposeKeys` and `ChannelsLastAttention`.

    The arguments are memory offsets of the values' first pixels and of the transposed keys, and the bias.
    """

    Q = 0
    K = 1
    V = 2
    Y = 3
    TURNED = 4
    BIAS = 5
    """float32 [tables, queries, padded keys]: the bias; absent if there is none."""


def attention(
    q: ChannelsLastValue,
    k: ChannelsLastValue,
    v: ChannelsLastValue,
    y: ChannelsLastValue,
    heads: int,
    scale: float,
    causal: bool,
    spec: BlockSpec,
    bias: Bias | None = None,
    windows: bool = False,
) -> list[Op]:
    """Return the operations of ``y = softmax(scale * q @ k.T + bias) @ v``, for each head.

    The kernels compute in float32; bfloat16 values are converted before and after.

    A head is a range of consecutive channels. Values have no halo (zero border), except with `windows`. k and v have
    the same tokens. If k and v have fewer heads than q, several consecutive heads of q use the same head of k and v. y
    must not overlap the inputs. If `causal`, a token attends only to itself and earlier tokens. If `windows`, each row
    of pixels is a window whose tokens attend only to each other.
    """
    queries, keys, channels = _count_tokens(q, windows), _count_tokens(k, windows), q.channels
    rows = q.geometry.height if windows else 1
    size = channels // heads
    if (
        not q.has_shape_of(y)
        or not k.has_shape_of(v)
        or channels % heads
        or k.channels % size
        or heads % (k.channels // size)
    ):
        raise EngineError(f"attention of {heads} heads: the shapes of queries, keys, values and result do not match")
    if windows and k.geometry.height != rows:
        raise EngineError(f"attention in windows: {rows} windows of queries, but {k.geometry.height} of keys")
    if keys > MOST_KEYS:
        raise EngineError(f"attention over {keys} keys: at most {MOST_KEYS}")
    if spec.reserve is None:
        raise EngineError("attention needs scratch memory")
    step = _TILE[spec.target.registers][0] * spec.target.lanes
    padded = -(-keys // step) * step
    turned = spec.images * rows * k.channels * padded * FLOAT
    if q.geometry.item != FLOAT:
        copies = [
            ChannelsLastGeometry.build(value.geometry.height, value.geometry.width, value.channels)
            for value in (q, k, v, y)
        ]
        ends = list(itertools.accumulate(geometry.bytes(spec.images) for geometry in copies))
        begin = spec.reserve(ends[-1] + turned)
        wide = [ChannelsLastValue(geometry, begin + at) for geometry, at in zip(copies, [0, *ends], strict=False)]
        inputs = [op for value, there in zip((q, k, v), wide, strict=False) for op in copy(value, there)]
        behind = replace(spec, reserve=lambda size: begin + ends[-1])
        q, k, v, result = wide
        return [*inputs, *attention(q, k, v, result, heads, scale, causal, behind, bias, windows), *copy(result, y)]
    begins = (*(first_pixel_offset(value) for value in (q, k, v, y)), spec.reserve(turned))
    steps = [(value.geometry.pixel, value.geometry.row_bytes, value.geometry.image) for value in (q, k, v, y)]
    group = channels // k.channels
    settings = (steps[0], steps[2], steps[3], padded, float(scale), causal)
    turn = Op(TransposeKeys(keys, k.channels, steps[1], padded, rows), begins)
    if bias is None:
        return [turn, Op(ChannelsLastAttention(queries, keys, heads, size, *settings, group, rows), begins)]
    if bias.name not in spec.tables:
        room = ((0, 0), (0, 0), (0, padded - keys))
        spec.tables[bias.name] = np.ascontiguousarray(np.pad(bias.values, room), np.float32)
    attend = ChannelsLastAttention(queries, keys, heads, size, *settings, group, rows, (bias.by_window, bias.by_head))
    return [turn, Op(attend, (*begins, spec.tables[bias.name]))]


def _count_tokens(value: ChannelsLastValue, windows: bool) -> int:
    """Return the number of tokens of an image, or of a window if `windows`."""
    if windows:
        return value.geometry.width
    if value.geometry.halo:
        raise EngineError("attention over values with a halo")
    return value.geometry.height * value.geometry.width


Steps = tuple[int, int, int]
"""Bytes from one token to the next, from one window to the next, and from one image to the next."""


def _window_offset(e: Emitter, number: ir.Value, windows: int, steps: Steps) -> ir.Value:
    """Return the bytes from a value's first pixel to the first token of window `number`, counted over all images."""
    if windows == 1:
        return e.b.mul(number, e.i64(steps[2]))
    image, window = e.b.udiv(number, e.i64(windows)), e.b.urem(number, e.i64(windows))
    return e.b.add(e.b.mul(image, e.i64(steps[2])), e.b.mul(window, e.i64(steps[1])))


@dataclass(frozen=True)
class TransposeKeys(EmittedKernel):
    """Kernel that transposes k from [keys, channels] to [channels, padded keys], with zeros after the last key."""

    title: ClassVar[str] = "turnkeys"

    keys: int
    channels: int
    steps: Steps
    padded: int
    windows: int = 1

    def write(self, e: Emitter) -> None:
        b, lanes = e.b, e.target.lanes
        blocks = self.padded // lanes
        low, high = e.thread_share(b.mul(e.state(StateSlot.IMAGES), e.i64(self.windows * blocks)))
        source, result = e.arena_pointer(e.arg(AttentionArg.K)), e.arena_pointer(e.arg(AttentionArg.TURNED))
        with e.loop(low, high) as turn:
            image = b.udiv(turn.index, e.i64(blocks))
            first = b.mul(b.sub(turn.index, b.mul(image, e.i64(blocks))), e.i64(lanes))
            keys = e.offset_pointer(
                source, b.add(_window_offset(e, image, self.windows, self.steps), b.mul(first, e.i64(self.steps[0])))
            )
            row = FLOAT * self.padded
            place = e.offset_pointer(
                result, b.add(b.mul(image, e.i64(self.channels * row)), b.mul(first, e.i64(FLOAT)))
            )
            for byte, counts in loop_vectors(e, self.channels, 1):
                rows = [self._load_key(e, keys, first, number, byte, counts[0]) for number in range(lanes)]
                for number, vector in enumerate(transpose(e, rows)[: counts[0]]):
                    line = b.add(b.mul(byte, e.i64(self.padded)), e.i64(number * row))
                    e.store(vector, e.offset_pointer(place, line))

    def _load_key(
        self, e: Emitter, keys: ir.Value, first: ir.Value, number: int, byte: ir.Value, count: int
    ) -> ir.Value:
        """Load `count` channels of key ``first + number``; the result is zero if there is no such key."""
        token = e.b.add(first, e.i64(number))
        inside = e.b.icmp_signed("<", token, e.i64(self.keys))
        back = e.select(inside, e.i64(0), e.b.mul(e.b.sub(token, e.i64(self.keys - 1)), e.i64(self.steps[0])))
        vector = load_vector(e, e.offset_pointer(keys, e.b.sub(e.i64(number * self.steps[0]), back)), byte, count)
        return e.select(inside, vector, e.splat(0.0))


@dataclass(frozen=True)
class ChannelsLastAttention(EmittedKernel):
    """Kernel of attention with transposed keys; it computes a few queries of one head (a tile) at a time."""

    title: ClassVar[str] = "attention"

    queries: int
    keys: int
    heads: int
    size: int
    """Channels of a head."""
    q: Steps
    v: Steps
    y: Steps
    padded: int
    scale: float
    causal: bool
    group: int = 1
    """Number of heads of q that share one head of k and v."""
    windows: int = 1
    biases: tuple[int, int] | None = None
    """(`Bias.by_window`, `Bias.by_head`): distances between tables of the bias; None without a bias."""

    def write(self, e: Emitter) -> None:
        b = e.b
        tile = min(_TILE[e.target.registers][1], self.queries)
        tiles = -(-self.queries // tile)
        stage = e.scratch(tile * self.padded // e.target.lanes)
        low, high = e.thread_share(b.mul(e.state(StateSlot.IMAGES), e.i64(self.windows * self.heads * tiles)))
        with e.loop(low, high) as turn:
            unit = b.udiv(turn.index, e.i64(tiles))
            image = b.udiv(unit, e.i64(self.heads))
            head = b.sub(unit, b.mul(image, e.i64(self.heads)))
            query = b.mul(b.sub(turn.index, b.mul(unit, e.i64(tiles))), e.i64(tile))
            # The last tile starts earlier, so that it is full; it recomputes some queries of the tile before.
            query = e.select(b.icmp_signed(">", query, e.i64(self.queries - tile)), e.i64(self.queries - tile), query)
            _QueryTile(self, e, tile, stage, (image, head, query)).write_queries()


class _QueryTile:
    """Writer of the kernel's code for a tile: a few queries of one head."""

    def __init__(
        self, kernel: ChannelsLastAttention, e: Emitter, tile: int, stage: ir.Value, place: Sequence[ir.Value]
    ) -> None:
        """Prepare a tile; `place` is (image, head, first query).

        With windows, the first number of `place` counts windows instead of images.
        """
        self.kernel, self.e, self.tile, self.stage = kernel, e, tile, stage
        self.image, self.head, self.query = place
        self.vectors = _TILE[e.target.registers][0]
        self.row = FLOAT * kernel.padded
        """Bytes from the scores of one query to the scores of the next."""
        self.visible_keys = e.i64(kernel.keys)
        """Number of keys to which the tile's last query attends."""
        if kernel.causal:
            last = e.b.add(self.query, e.i64(tile))
            self.visible_keys = e.select(e.b.icmp_signed("<", last, self.visible_keys), last, self.visible_keys)

    def write_queries(self) -> None:
        e, step = self.e, self.vectors * self.e.target.lanes
        with e.loop(0, self.visible_keys, step) as some:
            self._write_scores(some.index)
        sums = [self._exponentiate(number) for number in range(self.tile)]
        factors = [e.splat(e.b.fdiv(e.f32(1.0), value)) for value in sums]
        full = self.kernel.size // step * step
        with e.loop(0, full, step) as channel:
            self._write_values(channel.index, [e.target.lanes] * self.vectors, factors)
        if full < self.kernel.size:
            left = range(full, self.kernel.size, e.target.lanes)
            self._write_values(e.i64(full), [min(e.target.lanes, self.kernel.size - at) for at in left], factors)

    @property
    def _key_value_head(self) -> ir.Value:
        return self.e.b.udiv(self.head, self.e.i64(self.kernel.group))

    def _token_pointer(self, arg: AttentionArg, steps: Steps, token: ir.Value) -> ir.Value:
        """Return a pointer to the current head's channels of a token, in the value of argument `arg`."""
        head = self._key_value_head if arg is AttentionArg.V else self.head
        e, b = self.e, self.e.b
        byte = b.add(_window_offset(e, self.image, self.kernel.windows, steps), b.mul(token, e.i64(steps[0])))
        return e.offset_pointer(e.arena_pointer(e.arg(arg)), b.add(byte, b.mul(head, e.i64(self.kernel.size * FLOAT))))

    def _write_scores(self, first: ir.Value) -> None:
        """Emit the code that stores the scores of all queries of the tile with some vectors of keys from `first` on."""
        e, b, kernel = self.e, self.e.b, self.kernel
        size = e.target.lanes * FLOAT
        key_heads = e.i64(kernel.heads // kernel.group)
        start = b.mul(b.add(b.mul(self.image, key_heads), self._key_value_head), e.i64(kernel.size * self.row))
        byte = b.mul(first, e.i64(FLOAT))
        keys = e.offset_pointer(e.arena_pointer(e.arg(AttentionArg.TURNED)), b.add(start, byte))
        query = self._token_pointer(AttentionArg.Q, kernel.q, self.query)
        zeros = [e.splat(0.0)] * (self.vectors * self.tile)
        with e.loop(0, kernel.size, carried=zeros) as channel:
            line = e.offset_pointer(keys, b.mul(channel.index, e.i64(self.row)))
            values = [e.load(line, v * size) for v in range(self.vectors)]
            here = e.offset_pointer(query, b.mul(channel.index, e.i64(FLOAT)))
            for number in range(self.tile):
                factor = e.splat(e.load_f32(here, number * kernel.q[0]))
                sums = channel.carried[number * self.vectors :]
                channel.next += [e.fma(value, factor, so_far) for value, so_far in zip(values, sums, strict=False)]
        place = e.offset_pointer(self.stage, byte)
        for index, value in enumerate(channel.results):
            at = index // self.vectors * self.row + index % self.vectors * size
            score = b.fmul(value, e.splat(kernel.scale))
            if kernel.biases is not None:
                score = b.fadd(score, e.load(e.offset_pointer(self._bias_pointer(), byte), at))
            e.store(score, place, at)

    def _bias_pointer(self) -> ir.Value:
        """Return a pointer to the row of the bias table for the tile's first query."""
        e, b, kernel = self.e, self.e.b, self.kernel
        row = self.query
        by_window, by_head = kernel.biases or (0, 0)
        if by_head:
            row = b.add(b.mul(self.head, e.i64(by_head * kernel.queries)), row)
        if by_window:
            window = b.urem(self.image, e.i64(kernel.windows))
            row = b.add(b.mul(window, e.i64(by_window * kernel.queries)), row)
        return e.offset_pointer(e.table(AttentionArg.BIAS), b.mul(row, e.i64(self.row)))

    def _exponentiate(self, number: int) -> ir.Value:
        """Replace the scores of query `number` by exp(score - largest score), 0 for masked keys; return the sum."""
        e, b, lanes = self.e, self.e.b, self.e.target.lanes
        limit = e.i64(self.kernel.keys)
        if self.kernel.causal:
            mine = b.add(self.query, e.i64(number + 1))
            limit = e.select(b.icmp_signed("<", mine, limit), mine, limit)
        row = e.offset_pointer(self.stage, number * self.row)

        def mask_unseen(first: ir.Value, vector: ir.Value, other: float) -> ir.Value:
            return e.select(first_lanes_mask(e, b.sub(limit, first)), vector, e.splat(other))

        with e.loop(0, self.visible_keys, lanes, carried=[e.splat(float("-inf"))]) as some:
            value = mask_unseen(some.index, e.load(row, b.mul(some.index, e.i64(FLOAT))), float("-inf"))
            some.next = [e.intrinsic("llvm.maxnum", some.carried[0], value)]
        largest = e.splat(max_lane(e, some.results[0]))
        with e.loop(0, self.visible_keys, lanes, carried=[e.splat(0.0)]) as some:
            byte = b.mul(some.index, e.i64(FLOAT))
            power = mask_unseen(some.index, exp(e, b.fsub(e.load(row, byte), largest)), 0.0)
            e.store(power, row, byte)
            some.next = [b.fadd(some.carried[0], power)]
        return sum_lanes(e, some.results[0])

    def _write_values(self, first: ir.Value, counts: list[int], factors: list[ir.Value]) -> None:
        """Emit the code that computes some vectors of the result's channels, from channel `first` of the head on.

        `counts` has the number of channels of each vector, and `factors` 1 / (sum of the exponentials) for each query.
        """
        e, b, kernel = self.e, self.e.b, self.kernel
        byte = b.mul(first, e.i64(FLOAT))
        source = e.offset_pointer(self._token_pointer(AttentionArg.V, kernel.v, e.i64(0)), byte)
        zeros = [e.splat(0.0)] * (len(counts) * self.tile)
        with e.loop(0, self.visible_keys, carried=zeros) as key:
            line = e.offset_pointer(source, b.mul(key.index, e.i64(kernel.v[0])))
            values = [e.load(line, v * e.target.lanes * FLOAT) for v in range(len(counts))]
            here = e.offset_pointer(self.stage, b.mul(key.index, e.i64(FLOAT)))
            for number in range(self.tile):
                factor = e.splat(e.load_f32(here, number * self.row))
                sums = key.carried[number * len(counts) :]
                key.next += [e.fma(value, factor, so_far) for value, so_far in zip(values, sums, strict=False)]
        result = self._token_pointer(AttentionArg.Y, kernel.y, self.query)
        for index, value in enumerate(key.results):
            number, v = divmod(index, len(counts))
            scaled = b.fmul(value, factors[number])
            store_vector(
                e, scaled, e.offset_pointer(result, number * kernel.y[0]), vector_offset(e, byte, v), counts[v]
            )
