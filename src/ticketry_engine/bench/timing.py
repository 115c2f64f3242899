"""Takes timing samples of several contenders alternately, and computes confidence intervals of medians.

A round takes one sample of every contender, in random order. A sample is the mean time of several consecutive calls,
after a call that is not counted. With cold caches, a buffer larger than all caches is read and written before each
call. Ratios compare times of the same round, so that a temporary slowdown of the machine affects both times.
"""

from __future__ import annotations

import copy
import math
import random
import shutil
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ticketry_engine.errors import UsageError
from ticketry_engine.example_inputs import batch_of, difference, outputs_of
from ticketry_engine.export import write_onnx
from ticketry_engine.support.entry_points import check_model, entry_point

ROUNDS = 15
CLOCKS = ("wall", "cpu")

_LEAST_SECONDS = 0.02
"""Minimum duration of a sample in seconds, so long that the resolution of the clock does not matter."""
_SETTLING_CALLS, _SETTLING_SECONDS = 15, 0.25
_COLD_CALLS = 3
_WARM_SECONDS = 3.0
_STEADY = 0.1
"""Share by which the times of three consecutive calls may differ at most, so that warming up ends."""


@dataclass(frozen=True)
class Timing:
    """Settings of a measurement: rounds, caches, clock and confidence."""

    rounds: int = ROUNDS
    cold: bool = False
    """Whether caches are emptied before every timed call."""
    clock: str = "wall"
    """"wall", or "cpu" for the processor time of this process's threads, which excludes other processes."""
    confidence: float = 0.95
    """Confidence of the intervals for medians, between 0 and 1."""
    seed: int = 0
    """Seed of the random order of contenders in each round."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"rounds must be at least 1, got {self.rounds}")
        if self.clock not in CLOCKS:
            raise UsageError(f"clock must be one of {', '.join(CLOCKS)}, got {self.clock!r}")
        if not 0 < self.confidence < 1:
            raise UsageError(f"confidence must be between 0 and 1, got {self.confidence}")


@dataclass
class Samples:
    """Timing samples of one contender: seconds per call, one sample for each round."""

    calls: int = 1
    """Number of calls in a sample."""
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def by(self, clock: str) -> list[float]:
        """Return the samples of the clock `clock`, "wall" or "cpu"."""
        return self.wall if clock == "wall" else self.cpu


class CacheFlush:
    """Function that empties the caches, by reading and writing a buffer of four times `cache_bytes`."""

    def __init__(self, cache_bytes: int) -> None:
        self._buffer = np.zeros(4 * cache_bytes // 8, dtype=np.int64)

    def __call__(self) -> None:
        self._buffer += 1


def take(contenders: Mapping[str, Callable[[], object]], timing: Timing, cache_bytes: int) -> dict[str, Samples]:
    """Return `timing.rounds` samples of every contender, taken alternately after all contenders are warmed up.

    Args:
        contenders: name -> function to time.
        timing: settings of the measurement.
        cache_bytes: size of the largest cache, which is emptied before each call if `timing.cold`.
    """
    flush = CacheFlush(cache_bytes) if timing.cold else None
    found = {}
    for name, call in contenders.items():
        usual = warm_up(call)
        calls = _COLD_CALLS if flush else max(1, math.ceil(_LEAST_SECONDS / usual))
        found[name] = Samples(calls)
    order = list(contenders)
    shuffled = random.Random(timing.seed)
    for _ in range(timing.rounds):
        shuffled.shuffle(order)
        for name in order:
            sample = _sample_cold if flush else _sample_warm
            wall, cpu = sample(contenders[name], found[name].calls, flush)
            found[name].wall.append(wall)
            found[name].cpu.append(cpu)
    return found


def warm_up(call: Callable[[], object], seconds: float = _WARM_SECONDS) -> float:
    """Call until three consecutive calls differ by at most a tenth, or `seconds` are over; return their median time."""
    began = time.perf_counter()
    last: list[float] = []
    while True:
        start = time.perf_counter()
        call()
        last = [*last[-2:], max(time.perf_counter() - start, 1e-9)]
        if len(last) == 3 and (max(last) <= (1 + _STEADY) * min(last) or start - began > seconds):
            return statistics.median(last)


def settle(call: Callable[[], object], seconds: float = _SETTLING_SECONDS) -> None:
    """Call up to fifteen times, but not after `seconds` are over, to fill the caches.

    After calls of another contender, calls are slower until the caches contain the data again. For data in the
    last-level cache, this takes about a dozen calls.
    """
    began = time.perf_counter()
    for _ in range(_SETTLING_CALLS):
        call()
        if time.perf_counter() - began > seconds:
            break


def _sample_warm(call: Callable[[], object], calls: int, _: object) -> tuple[float, float]:
    call()
    wall, cpu = time.perf_counter(), time.process_time()
    for _index in range(calls):
        call()
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def _sample_cold(call: Callable[[], object], calls: int, flush: Callable[[], object] | None) -> tuple[float, float]:
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
    """A median, and a confidence interval from `low` to `high`."""

    median: float
    low: float
    high: float
    confidence: float
    """Actual confidence of the interval; it is lower than requested only if there are too few values."""


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the median of the values, and a confidence interval between two of the sorted values.

    The interval is the narrowest one with at least the given confidence. The confidence is exact for independent
    samples of any distribution, because the number of values below the median is binomial (n, 1/2). With too few
    values, the interval extends from the smallest to the largest value, and its `confidence` is lower than requested.
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
    """Return (first quartile, median, third quartile); for a single value, all three are this value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


# -- workload ----------------------------------------------------------------------------------------------------------


PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Case:
    """A model, the inputs of its calls, the precision and the number of threads, equal for all engines compared."""

    model: nn.Module
    """Model in evaluation mode, float32 on the CPU; pruned weights are zeros in dense tensors."""
    inputs: tuple[Any, ...] | Mapping[str, Any]
    """Arguments of a call, a tuple or a mapping by name; tensors are contiguous."""
    precision: str = "fp32"
    """Precision of the arithmetic, "fp32" or "bf16"; inputs and outputs are always float32."""
    threads: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, got {self.threads}")
        check_model(self.model)
        if self.model.training:
            raise UsageError("only models in evaluation mode are timed: call model.eval() first")

    @property
    def args(self) -> tuple[Any, ...]:
        """Return the positional arguments of a call."""
        return () if isinstance(self.inputs, Mapping) else self.inputs

    @property
    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of a call."""
        return dict(self.inputs) if isinstance(self.inputs, Mapping) else {}

    def outputs(self, function: Callable[..., Any]) -> list[Tensor]:
        """Call `function` with the inputs, and return its output tensors."""
        return outputs_of(function(*self.args, **self.kwargs))

    @property
    def tensors(self) -> list[Tensor]:
        """Return the tensors among the inputs, in order."""
        return outputs_of((self.args, self.kwargs))

    @property
    def batch(self) -> int:
        """Return the batch size of the inputs."""
        return batch_of(self.inputs)

    def of(self, model: nn.Module) -> Case:
        """Return the same case with the model `model`."""
        return replace(self, model=model)

    @entry_point()
    def reference(self) -> list[Tensor]:
        """Return the model's outputs in eager torch with float32, which are the expected outputs."""
        with torch.inference_mode():
            return self.outputs(self.model)

    @entry_point()
    def rounding(self) -> float:
        """Return the relative error of `reference` compared with float64; 0 if the model does not run in float64."""

        def double(leaf: Any) -> Any:
            return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        args, kwargs = tree_map(double, (self.args, self.kwargs))
        try:
            with torch.inference_mode():
                exact = outputs_of(copy.deepcopy(self.model).double()(*args, **kwargs))
        except RuntimeError:  # the model has float32 in its code
            return 0.0
        return difference(self.reference(), exact)

    @cached_property
    def onnx(self) -> Path:
        """Return an ONNX file of the model, which accepts only inputs of these shapes; it is deleted with the case.

        Raises:
            EngineError: if the model cannot be exported.
        """
        folder = tempfile.mkdtemp(prefix="ticketry-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = Path(folder) / "model.onnx"
        write_onnx(self.model, self.args, file, named=self.kwargs)
        return file
