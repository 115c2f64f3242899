"""Samples in turns; intervals of medians against coverage by simulation."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from ticketry.errors import UsageError
from ticketry_engine.bench import timing
from ticketry_engine.bench.timing import Timing, median_interval, quartiles, take_samples


@pytest.mark.parametrize("count", [6, 15, 40])
def test_the_interval_is_the_narrowest_pair_of_ranks_that_is_sure_enough(count: int) -> None:
    values = list(range(count))
    found = median_interval(random.Random(0).sample(values, count), 0.95)
    assert found.median == statistics.median(values)
    assert found.low + found.high == count - 1  # symmetric ranks

    def sure(rank: int) -> float:
        """P(the median lies between the ranks), summed up directly."""
        return sum(math.comb(count, k) for k in range(rank + 1, count - rank)) / 2**count

    assert found.confidence == pytest.approx(sure(int(found.low)))
    assert found.confidence >= 0.95 > sure(int(found.low) + 1)


def test_few_values_say_how_sure_they_are() -> None:
    found = median_interval([3.0, 1.0, 2.0])
    assert (found.low, found.median, found.high, found.confidence) == (1.0, 2.0, 3.0, 0.75)
    assert median_interval([2.0]).confidence == 0
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    # A row of the usual tables of the sign test: n = 15, 96.5 %.
    found = median_interval([float(value) for value in range(1, 16)])
    assert (found.low, found.median, found.high) == (4, 8, 12)
    assert found.confidence == pytest.approx(0.9648, abs=1e-4)
    with pytest.raises(UsageError):
        median_interval([])


def test_every_round_runs_everyone_once_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "warm_up", lambda call: 1.0)
    seen: list[str] = []
    contenders = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    samples = take_samples(contenders, Timing(rounds=20), 1024)
    assert all(len(sample.wall) == len(sample.cpu) == 20 and sample.calls == 1 for sample in samples.values())
    turns = ["".join(dict.fromkeys(seen[i : i + 6])) for i in range(0, len(seen), 6)]
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 3
    seen.clear()
    take_samples(contenders, Timing(rounds=20), 1024)
    assert ["".join(dict.fromkeys(seen[i : i + 6])) for i in range(0, len(seen), 6)] == turns, "the seed decides"


def test_a_sample_is_the_mean_of_calls_after_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    count = 0

    def call() -> None:
        nonlocal now, count
        count += 1
        now += 0.004

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    monkeypatch.setattr(timing.time, "process_time", lambda: 3 * now)
    found = take_samples({"a": call}, Timing(rounds=2), 1024)["a"]
    assert (found.calls, count) == (5, 3 + 2 * (1 + 5))  # 20 ms a sample; three steady calls to warm up
    assert found.wall == pytest.approx([0.004] * 2)
    assert found.by_clock("cpu") == pytest.approx([0.012] * 2)


def test_warming_goes_on_until_calls_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([3.0, 0.5, 0.1, 0.1, 0.105, 9.0])
    now = 0.0

    def call() -> None:
        nonlocal now
        now += next(spent)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert timing.warm_up(call, seconds=100.0) == pytest.approx(0.1)
    assert next(spent) == 9.0


def test_cold_caches_are_walked_before_every_call_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, log = 0.0, []

    def call() -> None:
        nonlocal now
        now += 0.002
        log.append("call")

    def flush(_: object) -> None:
        nonlocal now
        now += 5.0
        log.append("flush")

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    monkeypatch.setattr(timing.time, "process_time", lambda: now)
    monkeypatch.setattr(timing.CacheFlush, "__call__", flush)
    found = take_samples({"a": call}, Timing(rounds=2, cold=True), 1024)["a"]
    assert log == ["call"] * 3 + ["flush", "call"] * 6
    assert found.wall == pytest.approx([0.002] * 2)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"clock": "sun"}, {"confidence": 1.0}])
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Timing(**wrong)  # type: ignore[arg-type]


def test_the_walk_covers_four_times_the_cache() -> None:
    flush = timing.CacheFlush(1 << 16)
    flush()
    assert flush._buffer.nbytes == 4 << 16
    assert (flush._buffer == 1).all()
