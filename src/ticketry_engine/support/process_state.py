"""State of the whole process: torch's generators, its thread count, `nn.Module`, and the default tensor type.

If a thread seeds a generator, another one that draws meanwhile changes its numbers; if one restores the thread count,
it changes it for all. torch.fx and torch.export modify `nn.Module` and mark the process as tracing. Code that needs one
of these to stay unchanged holds one common lock, so that drawing and tracing threads cannot wait for each other.
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
"""Lock of code that draws, trains, measures or traces in this process; its holder never waits for a lab's guard."""


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
