"""Takes timing samples of several contenders alternately, and computes confidence intervals of medians.

A round takes one sample of every contender, in random order. A sample is the mean time of several consecutive calls,
after a call that is not counted. With cold caches, a buffer larger than all caches is read and written before each
call. Ratios compare times of the same round, so that a temporary slowdown of the machine affects both times.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ticketry_engine.errors import UsageError
from ticketry_engine.example_inputs import batch_size_of, output_tensors, relative_difference
from ticketry_engine.export import write_onnx
from ticketry_engine.processor import BF16, last_level_cache_bytes, name_and_features, processor_kind
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
    """Settings of a measurement, such as the number of rounds, cold caches, the clock and the confidence."""

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
    """Timing samples of one engine, in seconds per call, with one sample for each round."""

    calls: int = 1
    """Number of calls in a sample."""
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def by_clock(self, clock: str) -> list[float]:
        """Return the samples of the clock `clock`, "wall" or "cpu"."""
        return self.wall if clock == "wall" else self.cpu


class CacheFlush:
    """Function that evicts all other data from the caches: it reads and writes a buffer of four times `cache_bytes`."""

    def __init__(self, cache_bytes: int) -> None:
        self._buffer = np.zeros(4 * cache_bytes // 8, dtype=np.int64)

    def __call__(self) -> None:
        self._buffer += 1


def take_samples(
    contenders: Mapping[str, Callable[[], object]], timing: Timing, cache_bytes: int
) -> dict[str, Samples]:
    """Return `timing.rounds` samples of every contender, taken alternately after all contenders are warmed up.

    `cache_bytes` is the size of the largest cache, which is emptied before each call if `timing.cold`.
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
            wall, cpu = _take_sample(contenders[name], found[name].calls, flush)
            found[name].wall.append(wall)
            found[name].cpu.append(cpu)
    return found


def warm_up(call: Callable[[], object], seconds: float = _WARM_SECONDS) -> float:
    """Repeat a call until the last three durations differ by at most a tenth, or for `seconds`; return their median."""
    began = time.perf_counter()
    last: list[float] = []
    while True:
        start = time.perf_counter()
        call()
        last = [*last[-2:], max(time.perf_counter() - start, 1e-9)]
        if len(last) == 3 and (max(last) <= (1 + _STEADY) * min(last) or start - began > seconds):
            return statistics.median(last)


def fill_caches_by_calls(call: Callable[[], object], seconds: float = _SETTLING_SECONDS) -> None:
    """Repeat a call up to fifteen times, for at most `seconds`, to fill the caches after calls of another engine."""
    began = time.perf_counter()
    for _ in range(_SETTLING_CALLS):
        call()
        if time.perf_counter() - began > seconds:
            break


def _take_sample(call: Callable[[], object], calls: int, flush: Callable[[], object] | None) -> tuple[float, float]:
    """Return the mean wall and processor seconds of `calls` consecutive calls; if given, call `flush` before each."""
    walls, cpus = 0.0, 0.0
    for consecutive in [1] * calls if flush else [calls]:
        (flush or call)()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(consecutive):
            call()
        walls += time.perf_counter() - wall
        cpus += time.process_time() - cpu
    return walls / calls, cpus / calls


# -- statistics --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A median, and its confidence interval from `low` to `high`."""

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
    """The task that all engines run in a comparison: a model, its inputs, the precision and the number of threads."""

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
        return output_tensors(function(*self.args, **self.kwargs))

    @property
    def tensors(self) -> list[Tensor]:
        """Return the tensors among the inputs, in order."""
        return output_tensors((self.args, self.kwargs))

    @property
    def batch(self) -> int:
        """Return the batch size of the inputs."""
        return batch_size_of(self.inputs)

    @entry_point()
    def reference(self) -> list[Tensor]:
        """Return the model's outputs in eager torch with float32, which are the expected outputs."""
        with torch.inference_mode():
            return self.outputs(self.model)

    @entry_point()
    def rounding(self) -> float:
        """Return the relative difference between `reference` and the outputs in float64; 0 if float64 cannot run."""

        def to_float64(leaf: Any) -> Any:
            return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        args, kwargs = tree_map(to_float64, (self.args, self.kwargs))
        try:
            with torch.inference_mode():
                exact = output_tensors(copy.deepcopy(self.model).double()(*args, **kwargs))
        except RuntimeError:  # the model has float32 in its code
            return 0.0
        return relative_difference(self.reference(), exact)

    @cached_property
    def onnx(self) -> Path:
        """Return the path of an ONNX file of the model for these input shapes; the file is deleted with the case."""
        folder = tempfile.mkdtemp(prefix="ticketry-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = Path(folder) / "model.onnx"
        write_onnx(self.model, self.args, file, named=self.kwargs)
        return file


# -- machine -----------------------------------------------------------------------------------------------------------


PROCESSOR = ("processor", "processor_kind")
"""Keys in the result of `machine` that identify the processor."""
_FEATURES = ("avx2", "avx512f", *BF16, "asimd", "sve")


def machine(packages: Iterable[str] = ("torch", "ticketry")) -> dict[str, Any]:
    """Return a description of this machine as JSON values, with the versions of `packages`."""
    name, flags = name_and_features()
    return {
        "processor": name,
        "processor_kind": processor_kind(),
        "features": [feature for feature in _FEATURES if feature in flags],
        "cores": len(available_cores()),
        "last_cache_bytes": last_level_cache_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: found for package in packages if (found := _version(package))},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def describe_machine_difference(about: Mapping[str, Any]) -> str:
    """Return a text that names both machines if `about`, a result of `machine`, describes another one; else ""."""
    here = machine(())
    # Older files have only the name of the processor.
    facts = [fact for fact in PROCESSOR if fact == "processor" or fact in about]
    if all(about.get(fact) == here[fact] for fact in facts):
        return ""
    there, own = (", ".join(str(one.get(fact)) for fact in facts) for one in (about, here))
    return f"{there}; this one is {own}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# -- cores ------------------------------------------------------------------------------------------------------------

_LOAD_SECONDS = 0.2


def available_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def check_cores(cores: Sequence[int]) -> None:
    """Raise `UsageError` if this process may not use one of the cores, or if a core is listed twice."""
    known = available_cores()
    if wrong := [core for core in cores if core not in known]:
        raise UsageError(
            f"core {wrong[0]} is not available to this process: choose among {', '.join(map(str, sorted(known)))}"
        )
    if len(set(cores)) < len(cores):
        raise UsageError(f"cores must differ, got {', '.join(map(str, cores))}: name each core once")


def choose_cores(threads: int, load: Mapping[int, float] | None = None) -> tuple[int, ...]:
    """Return the numbers of the least busy cores, one per thread, on different physical cores if possible.

    Args:
        threads: number of threads.
        load: core number -> share of time in which the core was busy; by default, it is measured for 0.2 seconds.

    Raises:
        UsageError: if this process may use fewer cores than `threads`.
    """
    cores = available_cores()
    if threads > len(cores):
        raise UsageError(
            f"{threads} threads need as many cores, but this process may use {len(cores)}: give --threads {len(cores)}"
        )
    busy = _measure_load() if load is None else load
    ranked = sorted(cores, key=lambda core: (round(busy.get(core, 0.0), 1), core))
    firsts: list[int] = []
    seen: set[str] = set()
    for core in ranked:
        twin = _read_siblings(core)
        if twin not in seen:
            firsts.append(core)
            seen.add(twin)
    others = [core for core in ranked if core not in firsts]
    return tuple(sorted([*firsts, *others][:threads]))


@contextlib.contextmanager
def pin_for_block(cores: Sequence[int]) -> Iterator[None]:
    """Run a `with` block in which all threads of this process, and threads started meanwhile, are pinned to `cores`."""
    before = _current_affinities()
    pin(cores)
    try:
        yield
    finally:
        for thread, mask in before.items():
            _pin_thread(thread, mask)
        left = set().union(*before.values()) if before else set()
        for thread in _thread_ids() - before.keys():
            _pin_thread(thread, left)


def pin(cores: Sequence[int]) -> None:
    """Pin all current threads of this process to the cores `cores`."""
    for thread in _thread_ids():
        _pin_thread(thread, set(cores))


def can_pin() -> bool:
    """Return whether this system can pin threads to cores."""
    return hasattr(os, "sched_setaffinity")


def _thread_ids() -> set[int]:
    if not can_pin():
        return set()
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}
    except OSError:
        return {0}


def _current_affinities() -> dict[int, set[int]]:
    found = {}
    for thread in _thread_ids():
        with contextlib.suppress(OSError):  # it may just have ended
            found[thread] = os.sched_getaffinity(thread)
    return found


def _pin_thread(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):
        os.sched_setaffinity(thread, cores)


def _measure_load() -> dict[int, float]:
    """Measure for 0.2 seconds; return, for each core, the share of that time in which it was busy; {} if unknown."""
    before = _read_core_times()
    if not before:
        return {}
    time.sleep(_LOAD_SECONDS)
    after = _read_core_times()
    return {core: _busy_share(before[core], after[core]) for core in before.keys() & after.keys()}


def _busy_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    idle, whole = after[0] - before[0], after[1] - before[1]
    return 1 - idle / whole if whole > 0 else 0.0


def _read_core_times() -> dict[int, tuple[int, int]]:
    """Return, for each core, (idle time, total time) since the machine started, in the system's clock units."""
    found = {}
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    for line in lines:
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            counts = [int(value) for value in values[:8]]
            found[int(name[3:])] = (counts[3] + counts[4], sum(counts))
    return found


def _read_siblings(core: int) -> str:
    """Return a text that identifies the physical core to which the hardware thread `core` belongs."""
    file = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return str(core)
