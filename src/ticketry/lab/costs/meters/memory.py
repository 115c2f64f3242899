"""Measure the peak memory of this process or of a function call."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def resident_at_peak() -> int | None:
    """Return the maximum bytes of memory that this process has used since its start; None if not reported.

    Examples:
        >>> peak = tk.meters.resident_at_peak()
        >>> peak is None or peak > 10_000_000
        True
    """
    try:
        import resource
    except ImportError:  # not on this system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)


def allocated_at_peak(work: Callable[[], object], held: Iterable[object]) -> int:
    """Return the peak bytes of CPU tensors during a call of `work`: the tensors `held`, plus newly allocated tensors.

    Args:
        work: function that is measured, such as a training step.
        held: tensors that exist before the call, in nested lists, tuples and mappings; shared memory counts once.

    Examples:
        >>> held = torch.zeros(1000)  # 4,000 bytes
        >>> tk.meters.allocated_at_peak(lambda: torch.ones(1000) + held, [held])
        12000
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else it writes to standard error when it starts
    before, cpu = tensor_bytes(held), [torch.profiler.ProfilerActivity.CPU]
    with _no_collection(), torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        work()
    results: Any = profile.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    height = now = 0
    for _, change in changes:
        now += change
        height = max(height, now)
    return before + height


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Within a ``with`` block, disable garbage collection, so that no older tensors are freed during a measurement."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def peak_bytes(work: Callable[[], object], held: Iterable[object], device: str) -> int:
    """Return the peak bytes of tensors on `device` during a call of `work`; see `allocated_at_peak` for `held`."""
    if not device.startswith("cuda"):
        return allocated_at_peak(work, held)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    own = tensor_bytes(held)
    work()
    torch.cuda.synchronize()
    return own + torch.cuda.max_memory_allocated() - before


def tensor_bytes(values: object) -> int:
    """Return the bytes of memory of all tensors in nested `values`; memory that tensors share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(values))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def tensors_in(values: object) -> Iterator[Tensor]:
    """Yield all tensors in nested lists, tuples, mappings and other iterables."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, Iterable) and not isinstance(values, str | bytes):
        for value in values:
            yield from tensors_in(value)
