"""Samples taken in turns, and what their ratios say.

A round times every contender once, in a random order; a sample is the mean of several calls in a row after one that is
not counted (which wakes waiting threads and fills all caches but those that learn slowly, see `settle`), or, with cold
caches, of single calls each after a walk through a buffer that is larger than all caches. Ratios are of times of the
same round, so that whatever slows the machine down for a while slows both sides.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ticketry_engine.errors import UsageError

ROUNDS = 15
CLOCKS = ("wall", "cpu")

_LEAST_SECONDS = 0.02
"""Of a sample: so long that neither the clock nor a call's overhead counts."""
_SETTLING_CALLS, _SETTLING_SECONDS = 15, 0.25
_COLD_CALLS = 3
_WARM_SECONDS = 3.0
_STEADY = 0.1
"""Calls are steady when three in a row are so near to each other."""


@dataclass(frozen=True)
class Timing:
    """How to time."""

    rounds: int = ROUNDS
    cold: bool = False
    """Caches are emptied before every call that counts."""
    clock: str = "wall"
    """wall, or cpu: time that this process's threads have computed, which others on the machine do not add to."""
    confidence: float = 0.95
    """Of the intervals of medians."""
    seed: int = 0
    """Of the order in each round."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"there is at least 1 round, not {self.rounds}")
        if self.clock not in CLOCKS:
            raise UsageError(f"the clock is one of {', '.join(CLOCKS)}, not {self.clock!r}")
        if not 0 < self.confidence < 1:
            raise UsageError(f"a confidence is between 0 and 1, not {self.confidence}")


@dataclass
class Samples:
    """Of one contender, a sample a round: seconds of one call."""

    calls: int = 1
    """In a sample."""
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def by(self, clock: str) -> list[float]:
        """The samples of a clock."""
        return self.wall if clock == "wall" else self.cpu


class Flush:
    """Empties the caches: reads and writes a buffer four times their size."""

    def __init__(self, cache_bytes: int) -> None:
        self._buffer = np.zeros(4 * cache_bytes // 8, dtype=np.int64)

    def __call__(self) -> None:
        self._buffer += 1


def take(contenders: Mapping[str, Callable[[], object]], timing: Timing, cache_bytes: int) -> dict[str, Samples]:
    """`timing.rounds` samples of every contender, taken in turns after each has become steady."""
    flush = Flush(cache_bytes) if timing.cold else None
    found = {}
    for name, call in contenders.items():
        usual = warmed(call)
        calls = _COLD_CALLS if flush else max(1, math.ceil(_LEAST_SECONDS / usual))
        found[name] = Samples(calls)
    order = list(contenders)
    shuffled = random.Random(timing.seed)
    for _ in range(timing.rounds):
        shuffled.shuffle(order)
        for name in order:
            sample = _cold if flush else _hot
            wall, cpu = sample(contenders[name], found[name].calls, flush)
            found[name].wall.append(wall)
            found[name].cpu.append(cpu)
    return found


def warmed(call: Callable[[], object], seconds: float = _WARM_SECONDS) -> float:
    """Call until three calls in a row are within a tenth of each other, or for some seconds; the last median."""
    began = time.perf_counter()
    last: list[float] = []
    while True:
        start = time.perf_counter()
        call()
        last = [*last[-2:], max(time.perf_counter() - start, 1e-9)]
        if len(last) == 3 and (max(last) <= (1 + _STEADY) * min(last) or start - began > seconds):
            return statistics.median(last)


def settle(call: Callable[[], object], seconds: float = _SETTLING_SECONDS) -> None:
    """Call until caches are in the state of a steady run: fifteen times, fewer where a call is long, at least once.

    After another contender's turn a call is slower until caches hold again what it reads, for a dozen calls where that
    comes from the last cache: VGG-16 with 29 % of its weights and one image, on an Intel with a second cache of 2 MB,
    takes 5.1 ms after the dense network's turn, and 3.5 ms from the thirteenth call on.
    """
    began = time.perf_counter()
    for _ in range(_SETTLING_CALLS):
        call()
        if time.perf_counter() - began > seconds:
            break


def _hot(call: Callable[[], object], calls: int, _: object) -> tuple[float, float]:
    call()
    wall, cpu = time.perf_counter(), time.process_time()
    for _index in range(calls):
        call()
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def _cold(call: Callable[[], object], calls: int, flush: Callable[[], object] | None) -> tuple[float, float]:
    assert flush is not None
    walls, cpus = 0.0, 0.0
    for _index in range(calls):
        flush()
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls += time.perf_counter() - wall
        cpus += time.process_time() - cpu
    return walls / calls, cpus / calls


# -- statistics --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A median, and between which values it lies with what confidence."""

    median: float
    low: float
    high: float
    confidence: float
    """What the ranks really give: at least what was asked for, if there are enough values."""


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median and the narrowest pair of symmetric order statistics that hold it with at least `confidence`.

    Exact for independent samples of any distribution: the rank of the median is binomial (n, 1/2). With fewer than six
    values no pair is so sure; then it is the least and the largest, and `confidence` says how sure that is.
    """
    ordered, count = sorted(values), len(values)
    if not count:
        raise UsageError("an interval needs at least one value")
    below = [math.comb(count, rank) / 2**count for rank in range(count + 1)]
    rank, sure = 0, 1 - 2 * below[0]
    while rank + 1 < count // 2 and sure - 2 * below[rank + 1] >= confidence:
        rank += 1
        sure -= 2 * below[rank]
    return Interval(statistics.median(ordered), ordered[rank], ordered[count - 1 - rank], max(0.0, sure))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; three times the value if there is one."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third
