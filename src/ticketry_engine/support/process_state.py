"""Protects state of the whole process: torch's random generators, number of threads, `nn.Module` and default dtype.

If a thread seeds a generator, and another thread draws from it meanwhile, the first thread gets other numbers. A change
of torch's thread count affects all threads. torch.fx and torch.export modify `nn.Module` and mark the process as
tracing. Code that needs one of these to stay unchanged holds one common lock; with several locks, threads could wait
for each other forever.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

import torch


class Turns:
    """A reentrant lock that records how long each thread has waited for it.

    Examples:
        >>> turns = Turns()
        >>> with turns, turns:
        ...     turns.waited < 60
        True
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._mine = threading.local()

    @property
    def waited(self) -> float:
        """Return the total seconds that the current thread has waited for the lock."""
        seconds: float = getattr(self._mine, "waited", 0.0)
        return seconds

    def __enter__(self) -> None:
        if self._lock.acquire(blocking=False):
            return
        began = time.perf_counter()
        self._lock.acquire()
        self._mine.waited = self.waited + time.perf_counter() - began

    def __exit__(self, *_: object) -> None:
        self._lock.release()


ONE_AT_A_TIME = Turns()
"""Lock for code that draws random numbers, trains, measures or traces.

A thread that holds the lock must not wait for the lock of a lab.
"""


@contextlib.contextmanager
def private_random_state(devices: Iterable[torch.device | int] | None = None) -> Iterator[None]:
    """Run a `with` block in which only this thread uses torch's random generators; restore their states afterwards.

    `devices` are the GPUs whose generators are restored, besides that of the CPU; None: all GPUs.
    """
    with ONE_AT_A_TIME, torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Run a `with` block in which new tensors have the dtype `dtype` by default.

    The default applies to the whole process, so the block holds the lock `ONE_AT_A_TIME`.
    """
    with ONE_AT_A_TIME:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a `with` block with `count` torch threads, and restore the previous number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
