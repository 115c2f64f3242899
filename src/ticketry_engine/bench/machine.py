"""Describes the machine of a measurement, chooses idle cores, and pins threads to these cores."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ticketry_engine.errors import UsageError
from ticketry_engine.processor import BF16, kind, last_cache, processor

PROCESSOR = ("processor", "processor_kind")
"""Keys in the result of `machine` that identify the processor."""
_FEATURES = ("avx2", "avx512f", *BF16, "asimd", "sve")


def machine(packages: Iterable[str] = ("torch", "ticketry")) -> dict[str, Any]:
    """Return a description of this machine as JSON values: processor, features, cache, system, load and versions.

    `packages` are the names of the packages whose versions are included.
    """
    name, flags = processor()
    return {
        "processor": name,
        "processor_kind": kind(),
        "features": [feature for feature in _FEATURES if feature in flags],
        "cores": len(available_cores()),
        "last_cache_bytes": last_cache(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: found for package in packages if (found := _version(package))},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def another_machine(about: Mapping[str, Any]) -> str:
    """Return a text that names both processors if `about` describes another processor than this machine has; else "".

    Args:
        about: the result of `machine` on the other machine; older files have only the name of the processor.
    """
    here = machine(())
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
    """Return the numbers of the idlest cores, one per thread, on different physical cores if possible.

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
    """Pin all threads of this process, and threads started meanwhile, to `cores` inside a `with` block.

    Do nothing if the system cannot pin threads (`can_pin`).
    """
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
    """Return, for each core, the share of 0.2 seconds in which the core was busy; {} if unknown."""
    before = _read_ticks()
    if not before:
        return {}
    time.sleep(_LOAD_SECONDS)
    after = _read_ticks()
    return {core: _busy_share(before[core], after[core]) for core in before.keys() & after.keys()}


def _busy_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    idle, whole = after[0] - before[0], after[1] - before[1]
    return 1 - idle / whole if whole > 0 else 0.0


def _read_ticks() -> dict[int, tuple[int, int]]:
    """Return, for each core, (idle ticks, all ticks) since the start of the machine."""
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
    """Return a text that is the same for all hardware threads of one physical core."""
    file = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return str(core)
