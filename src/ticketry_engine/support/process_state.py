"""What belongs to the process, whichever thread uses it: torch's generators, its thread count, `nn.Module` itself, the
type of tensors that are made without one.

A thread that seeds a generator and draws from it gets other numbers if another thread draws meanwhile, and one that
restores the thread count changes it for all. torch.fx and torch.export change `nn.Module` itself while they trace, and
mark the process as tracing. So whoever needs one of these to stay as it is holds one lock, the same for all: a thread
that draws while it traces cannot wait for one that traces while it draws.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

import torch


class Turns:
    """A lock that one thread at a time holds, and may take again; it knows how long each has waited for it.

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
        """Seconds that this thread has waited so far, in all."""
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
"""Held by whoever draws, trains, measures or traces in this process; whoever holds it waits for no lab's guard."""


@contextlib.contextmanager
def private_random_state(devices: Iterable[torch.device | int] | None = None) -> Iterator[None]:
    """Torch's generators for this thread alone: no other draws meanwhile, and afterwards they are as before.

    Args:
        devices: GPUs whose generators are restored; all by default.
    """
    with ONE_AT_A_TIME, torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that are made without a type get this one, and no other thread computes meanwhile."""
    with ONE_AT_A_TIME:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads within the block, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
