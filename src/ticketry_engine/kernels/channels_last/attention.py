"""Attention: softmax(q k') v for each head, the pixels of an image being its tokens.

Two kernels: one turns the keys over, so that a vector holds one channel of neighbouring keys; the other does a few
queries of a head at a time, whose scores stay in the first cache.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.activations import exp
from ticketry_engine.kernels.channels_last import lanes as lane
from ticketry_engine.kernels.channels_last import loops
from ticketry_engine.kernels.channels_last.elementwise import copy
from ticketry_engine.kernels.channels_last.geometry import FLOAT, Geometry, Pixels
from ticketry_engine.kernels.emitter import Emitter, State, Written
from ticketry_engine.kernels.llvm import ir
from ticketry_engine.kernels.program import Bias, BlockSpec, Op
from ticketry_engine.kernels.target import Target

_TILE = {32: (4, 6), 16: (2, 6)}
"""Vector registers of a processor -> vectors and queries of a tile of sums."""

MOST_KEYS = 4096
"""Keys whose scores a thread's stack holds."""


class Arg(enum.IntEnum):
    """Arguments of both kernels: bytes of the arena (`loops.begin`, and the turned keys')."""

    Q = 0
    K = 1
    V = 2
    Y = 3
    TURNED = 4
    BIAS = 5
    """float32 [windows or 1 times heads or 1, queries, padded keys], where there is one."""


def attention(
    q: Pixels,
    k: Pixels,
    v: Pixels,
    y: Pixels,
    heads: int,
    scale: float,
    causal: bool,
    spec: BlockSpec,
    bias: Bias | None = None,
    windows: bool = False,
) -> list[Op]:
    """``y = softmax(scale * q k' + bias) v``, head by head.

    Kernels compute in float32: values in bfloat16 are copied before and after.

    Args:
        q, k, v: values without halo; a head is a run of channels. k and v have the same tokens, and as many heads as
            q or fewer, each for as many of q.
        y: none of the others' memory.
        causal: whether a token sees none behind itself.
        bias: what is added to the scores.
        windows: whether each row of pixels is a window, whose tokens see those of the same window alone. Values may
            have a halo then.

    Raises:
        EngineError: values that do not fit, more than `MOST_KEYS` keys, or no scratch memory.
    """
    queries, keys, channels = _tokens(q, windows), _tokens(k, windows), q.channels
    rows = q.geometry.height if windows else 1
    size = channels // heads
    if not q.like(y) or not k.like(v) or channels % heads or k.channels % size or heads % (k.channels // size):
        raise EngineError(f"attention of {heads} heads: queries, keys, values and result do not fit")
    if windows and k.geometry.height != rows:
        raise EngineError(f"{rows} windows of queries, and {k.geometry.height} of keys")
    if keys > MOST_KEYS:
        raise EngineError(f"attention over {keys} keys: at most {MOST_KEYS}")
    if spec.reserve is None:
        raise EngineError("attention needs scratch memory")
    padded = _padded(keys, spec.target)
    turned = spec.images * rows * k.channels * padded * FLOAT
    if q.geometry.item != FLOAT:
        copies = [Geometry.of(value.geometry.height, value.geometry.width, value.channels) for value in (q, k, v, y)]
        ends = list(itertools.accumulate(geometry.bytes(spec.images) for geometry in copies))
        begin = spec.reserve(ends[-1] + turned)
        wide = [Pixels(geometry, begin + at) for geometry, at in zip(copies, [0, *ends], strict=False)]
        inputs = [op for value, there in zip((q, k, v), wide, strict=False) for op in copy(value, there)]
        behind = replace(spec, reserve=lambda size: begin + ends[-1])
        q, k, v, result = wide
        return [*inputs, *attention(q, k, v, result, heads, scale, causal, behind, bias, windows), *copy(result, y)]
    begins = (*(loops.begin(value) for value in (q, k, v, y)), spec.reserve(turned))
    steps = [(value.geometry.pixel, value.geometry.row, value.geometry.image) for value in (q, k, v, y)]
    group = channels // k.channels
    settings = (steps[0], steps[2], steps[3], padded, float(scale), causal)
    turn = Op(TurnKeys(keys, k.channels, steps[1], padded, rows), begins)
    if bias is None:
        return [turn, Op(Attention(queries, keys, heads, size, *settings, group, rows), begins)]
    if bias.name not in spec.tables:
        room = ((0, 0), (0, 0), (0, padded - keys))
        spec.tables[bias.name] = np.ascontiguousarray(np.pad(bias.values, room), np.float32)
    attend = Attention(queries, keys, heads, size, *settings, group, rows, (bias.by_window, bias.by_head))
    return [turn, Op(attend, (*begins, spec.tables[bias.name]))]


def _tokens(value: Pixels, windows: bool) -> int:
    if windows:
        return value.geometry.width
    if value.geometry.halo:
        raise EngineError("attention over values with a halo")
    return value.geometry.height * value.geometry.width


def _padded(keys: int, target: Target) -> int:
    """Keys up to whole tiles of vectors."""
    step = _TILE[target.registers][0] * target.lanes
    return -(-keys // step) * step


Steps = tuple[int, int, int]
"""Bytes from one token to the next, from one window to the next, and from one image to the next."""


def _window(e: Emitter, number: ir.Value, windows: int, steps: Steps) -> ir.Value:
    """The byte of a window's first token, of windows counted on from image to image."""
    if windows == 1:
        return e.b.mul(number, e.i64(steps[2]))
    image, window = e.b.udiv(number, e.i64(windows)), e.b.urem(number, e.i64(windows))
    return e.b.add(e.b.mul(image, e.i64(steps[2])), e.b.mul(window, e.i64(steps[1])))


@dataclass(frozen=True)
class TurnKeys(Written):
    """From [keys, channels] to [channels, padded keys], with zeros behind the last key."""

    keys: int
    channels: int
    steps: Steps
    padded: int
    windows: int = 1

    def write(self, e: Emitter) -> None:
        b, lanes = e.b, e.target.lanes
        blocks = self.padded // lanes
        low, high = e.share(b.mul(e.state(State.IMAGES), e.i64(self.windows * blocks)))
        source, result = e.arena(e.arg(Arg.K)), e.arena(e.arg(Arg.TURNED))
        with e.loop(low, high) as turn:
            image = b.udiv(turn.index, e.i64(blocks))
            first = b.mul(b.sub(turn.index, b.mul(image, e.i64(blocks))), e.i64(lanes))
            keys = e.at(source, b.add(_window(e, image, self.windows, self.steps), b.mul(first, e.i64(self.steps[0]))))
            row = FLOAT * self.padded
            place = e.at(result, b.add(b.mul(image, e.i64(self.channels * row)), b.mul(first, e.i64(FLOAT))))

            def square(byte: ir.Value, counts: list[int]) -> None:
                rows = [self._key(e, keys, first, number, byte, counts[0]) for number in range(lanes)]
                for number, vector in enumerate(lane.transposed(e, rows)[: counts[0]]):
                    line = b.add(b.mul(byte, e.i64(self.padded)), e.i64(number * row))
                    e.store(vector, e.at(place, line))

            loops.vectors(e, self.channels, 1, square)

    def _key(self, e: Emitter, keys: ir.Value, first: ir.Value, number: int, byte: ir.Value, count: int) -> ir.Value:
        """Channels of a key, zeros of one behind the last: read from the last, so that nothing else is."""
        token = e.b.add(first, e.i64(number))
        inside = e.b.icmp_signed("<", token, e.i64(self.keys))
        back = e.select(inside, e.i64(0), e.b.mul(e.b.sub(token, e.i64(self.keys - 1)), e.i64(self.steps[0])))
        vector = loops.get(e, e.at(keys, e.b.sub(e.i64(number * self.steps[0]), back)), byte, count)
        return e.select(inside, vector, e.splat(0.0))


@dataclass(frozen=True)
class Attention(Written):
    """Some queries of one head at a time."""

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
    """Heads of queries for each one of keys and values."""
    windows: int = 1
    biases: tuple[int, int] | None = None
    """Tables of a bias from one window to the next, and from one head to the next; None without one."""

    def write(self, e: Emitter) -> None:
        b = e.b
        tile = min(_TILE[e.target.registers][1], self.queries)
        tiles = -(-self.queries // tile)
        stage = e.scratch(tile * self.padded // e.target.lanes)
        low, high = e.share(b.mul(e.state(State.IMAGES), e.i64(self.windows * self.heads * tiles)))
        with e.loop(low, high) as turn:
            unit = b.udiv(turn.index, e.i64(tiles))
            image = b.udiv(unit, e.i64(self.heads))
            head = b.sub(unit, b.mul(image, e.i64(self.heads)))
            query = b.mul(b.sub(turn.index, b.mul(unit, e.i64(tiles))), e.i64(tile))
            # The last tile is moved back over the one before.
            query = e.select(b.icmp_signed(">", query, e.i64(self.queries - tile)), e.i64(self.queries - tile), query)
            _Tile(self, e, tile, stage, (image, head, query)).write()


class _Tile:
    """Writes what is done for some queries of one head."""

    def __init__(self, kernel: Attention, e: Emitter, tile: int, stage: ir.Value, place: Sequence[ir.Value]) -> None:
        """`place`: image (times windows, and the window), head and the first of so many queries."""
        self.kernel, self.e, self.tile, self.stage = kernel, e, tile, stage
        self.image, self.head, self.query = place
        self.vectors = _TILE[e.target.registers][0]
        self.row = FLOAT * kernel.padded
        """Bytes from one query's scores to the next's."""
        self.seen = e.i64(kernel.keys)
        """Keys that the last of the queries sees."""
        if kernel.causal:
            last = e.b.add(self.query, e.i64(tile))
            self.seen = e.select(e.b.icmp_signed("<", last, self.seen), last, self.seen)

    def write(self) -> None:
        e, step = self.e, self.vectors * self.e.target.lanes
        with e.loop(0, self.seen, step) as some:
            self._scores(some.index)
        sums = [self._powers(number) for number in range(self.tile)]
        factors = [e.splat(e.b.fdiv(e.f32(1.0), value)) for value in sums]
        full = self.kernel.size // step * step
        with e.loop(0, full, step) as channel:
            self._values(channel.index, [e.target.lanes] * self.vectors, factors)
        if full < self.kernel.size:
            left = range(full, self.kernel.size, e.target.lanes)
            self._values(e.i64(full), [min(e.target.lanes, self.kernel.size - at) for at in left], factors)

    @property
    def _key_head(self) -> ir.Value:
        return self.e.b.udiv(self.head, self.e.i64(self.kernel.group))

    def _token(self, arg: Arg, steps: Steps, token: ir.Value) -> ir.Value:
        """The pointer to a token's channels of the head."""
        head = self._key_head if arg is Arg.V else self.head
        e, b = self.e, self.e.b
        byte = b.add(_window(e, self.image, self.kernel.windows, steps), b.mul(token, e.i64(steps[0])))
        return e.at(e.arena(e.arg(arg)), b.add(byte, b.mul(head, e.i64(self.kernel.size * FLOAT))))

    def _scores(self, first: ir.Value) -> None:
        """Scores of all queries with some vectors of keys."""
        e, b, kernel = self.e, self.e.b, self.kernel
        size = e.target.lanes * FLOAT
        key_heads = e.i64(kernel.heads // kernel.group)
        start = b.mul(b.add(b.mul(self.image, key_heads), self._key_head), e.i64(kernel.size * self.row))
        byte = b.mul(first, e.i64(FLOAT))
        keys = e.at(e.arena(e.arg(Arg.TURNED)), b.add(start, byte))
        query = self._token(Arg.Q, kernel.q, self.query)
        zeros = [e.splat(0.0)] * (self.vectors * self.tile)
        with e.loop(0, kernel.size, carried=zeros) as channel:
            line = e.at(keys, b.mul(channel.index, e.i64(self.row)))
            values = [e.load(line, v * size) for v in range(self.vectors)]
            here = e.at(query, b.mul(channel.index, e.i64(FLOAT)))
            for number in range(self.tile):
                factor = e.splat(e.load_f32(here, number * kernel.q[0]))
                sums = channel.carried[number * self.vectors :]
                channel.next += [e.fma(value, factor, so_far) for value, so_far in zip(values, sums, strict=False)]
        place = e.at(self.stage, byte)
        for index, value in enumerate(channel.results):
            at = index // self.vectors * self.row + index % self.vectors * size
            score = b.fmul(value, e.splat(kernel.scale))
            if kernel.biases is not None:
                score = b.fadd(score, e.load(e.at(self._bias(), byte), at))
            e.store(score, place, at)

    def _bias(self) -> ir.Value:
        """The pointer to what is added to the first query's scores."""
        e, b, kernel = self.e, self.e.b, self.kernel
        row = self.query
        by_window, by_head = kernel.biases or (0, 0)
        if by_head:
            row = b.add(b.mul(self.head, e.i64(by_head * kernel.queries)), row)
        if by_window:
            window = b.urem(self.image, e.i64(kernel.windows))
            row = b.add(b.mul(window, e.i64(by_window * kernel.queries)), row)
        return e.at(e.table(Arg.BIAS), b.mul(row, e.i64(self.row)))

    def _powers(self, number: int) -> ir.Value:
        """Turn a query's scores into exponentials, zeros where it sees no key; their sum."""
        e, b, lanes = self.e, self.e.b, self.e.target.lanes
        limit = e.i64(self.kernel.keys)
        if self.kernel.causal:
            mine = b.add(self.query, e.i64(number + 1))
            limit = e.select(b.icmp_signed("<", mine, limit), mine, limit)
        row = e.at(self.stage, number * self.row)

        def seen(first: ir.Value, vector: ir.Value, other: float) -> ir.Value:
            return e.select(lane.first_lanes(e, b.sub(limit, first)), vector, e.splat(other))

        with e.loop(0, self.seen, lanes, carried=[e.splat(float("-inf"))]) as some:
            value = seen(some.index, e.load(row, b.mul(some.index, e.i64(FLOAT))), float("-inf"))
            some.next = [e.intrinsic("llvm.maxnum", some.carried[0], value)]
        largest = e.splat(lane.largest(e, some.results[0]))
        with e.loop(0, self.seen, lanes, carried=[e.splat(0.0)]) as some:
            byte = b.mul(some.index, e.i64(FLOAT))
            power = seen(some.index, exp(e, b.fsub(e.load(row, byte), largest)), 0.0)
            e.store(power, row, byte)
            some.next = [b.fadd(some.carried[0], power)]
        return lane.total(e, some.results[0])

    def _values(self, first: ir.Value, counts: list[int], factors: list[ir.Value]) -> None:
        """Some vectors of the head's channels of the result."""
        e, b, kernel = self.e, self.e.b, self.kernel
        byte = b.mul(first, e.i64(FLOAT))
        source = e.at(self._token(Arg.V, kernel.v, e.i64(0)), byte)
        zeros = [e.splat(0.0)] * (len(counts) * self.tile)
        with e.loop(0, self.seen, carried=zeros) as key:
            line = e.at(source, b.mul(key.index, e.i64(kernel.v[0])))
            values = [e.load(line, v * e.target.lanes * FLOAT) for v in range(len(counts))]
            here = e.at(self.stage, b.mul(key.index, e.i64(FLOAT)))
            for number in range(self.tile):
                factor = e.splat(e.load_f32(here, number * self.row))
                sums = key.carried[number * len(counts) :]
                key.next += [e.fma(value, factor, so_far) for value, so_far in zip(values, sums, strict=False)]
        result = self._token(Arg.Y, kernel.y, self.query)
        for index, value in enumerate(key.results):
            number, v = divmod(index, len(counts))
            scaled = b.fmul(value, factors[number])
            loops.put(e, scaled, e.at(result, number * kernel.y[0]), loops.next_vector(e, byte, v), counts[v])
