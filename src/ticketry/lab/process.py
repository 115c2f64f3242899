"""Handle signals of this process, end it with its parent, tune its memory allocator, and describe its machine.

In a command, or in a call of a lab, the first signal raises `Stopped` in the main thread. During a training
(`defer_signals`) the signal is only recorded; the training stores its state between two steps, then stops. Worker
processes do the same (`record_signals`). Signals that the process ignores (nohup), or for which the caller has set a
handler, are handled as before.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

from ticketry.errors import RunnerError
from ticketry.version import __version__
from ticketry_engine.processor import name_and_features, processor_kind

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
_SCHEDULERS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals by which a scheduler may announce the end of a job; used only if the process has a handler for them."""
_ONE_REQUEST = 1.0
"""Seconds within which several signals count as one, because timeout(1) and a closed terminal send several."""
_LAST_SECONDS = 10
"""Seconds for which a data-loading process stays alive after SIGTERM, so that the training can store its state."""


class Stopped(KeyboardInterrupt):
    """Raised when a signal asks this process to end; ``except Exception`` does not catch this exception."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class StopRequest:
    """Holds the number and the time of the first signal that asked this process to end."""

    raises: bool
    """Whether a signal raises `Stopped` in the main thread."""
    number: int = 0
    """Number of the first signal; 0 if there was none."""
    since: float = 0.0
    """Time of the first signal, in seconds of `time.monotonic`."""


_current: StopRequest | None = None


def received_stop_signal() -> int:
    """Return the number of the signal that asked this process to end; 0 if there was none."""
    return _current.number if _current else 0


def raise_if_stopped() -> None:
    """Raise `Stopped` if a signal asked this process to end."""
    if number := received_stop_signal():
        raise Stopped(number)


def signal_name(number: int) -> str:
    return signal.Signals(number).name


# -- in a command or a user's process ----------------------------------------------------------------------------------


@contextlib.contextmanager
def handle_signals(*, command: bool = False) -> Iterator[StopRequest]:
    """Within a ``with`` block, raise `Stopped` in the main thread on a signal; restore the handlers afterwards.

    A second signal, at least a second after the first, ends the process at once. A block inside another such block, or
    in another thread, has no effect.

    Args:
        command: whether the process is a command, which handles `Stopped` itself. In a user's process, any signal other
            than Ctrl-C is sent again to the process after the block.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or StopRequest(raises=False)
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]

    def handle_signal(number: int, frame: Any) -> None:
        if not request.number:
            request.number, request.since = number, time.monotonic()
            if request.raises:
                raise Stopped(number)
        elif time.monotonic() - request.since > _ONE_REQUEST:
            if command:
                os._exit(128 + number)
            signal.signal(number, before[number])
            signal.raise_signal(number)

    request = _current = StopRequest(raises=True)
    try:
        for number in ours:
            signal.signal(number, handle_signal)
        yield request
    finally:
        for number in ours:
            signal.signal(number, before[number])
        _current = None
        if not command and request.number not in (0, signal.SIGINT):
            ended = f"ended by {signal_name(request.number)}"
            print_error_line(f"{ended}; what was trained is stored, and the same call goes on from there")
            signal.raise_signal(request.number)
    if request.number and not command:  # the signal came too late to interrupt anything
        raise Stopped(request.number)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Within a ``with`` block of the main thread, only record signals; `received_stop_signal` returns the signal."""
    request = _current
    if request is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, request.raises = request.raises, False
    try:
        yield
    finally:
        request.raises = before


# -- in a worker -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def record_signals() -> Iterator[StopRequest]:
    """Within a ``with`` block of a worker, raise `Stopped` on a signal; restore the previous handlers afterwards.

    The previous handlers do not receive the signals; `StopRequest.number` is the number of the first signal. The block
    has no effect outside the main thread, or if this process handles signals already.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield StopRequest(raises=False)
        return
    request = StopRequest(raises=False)

    def handle_signal(number: int, frame: Any) -> None:
        if not request.number:
            request.number = number
            if request.raises:
                raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (*SIGNALS, *_SCHEDULERS)}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN and handler is not None]
    ours = [number for number in ours if number in SIGNALS or callable(before[number])]
    try:
        for number in ours:
            signal.signal(number, handle_signal)
        _current, request.raises = request, True
        yield request
    finally:
        request.raises, _current = False, None
        for number in ours:
            signal.signal(number, before[number])


# -- in a process that another one starts ------------------------------------------------------------------------------


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Within a ``with`` block, block signals, also in processes that are started in the block.

    Otherwise a signal to the process group would end a process that is still starting. Such a process calls
    `unblock_signals` when it is ready.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, *_SCHEDULERS))
    try:
        resource_tracker.ensure_running()  # otherwise Python < 3.12 starts it in the block, which unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, *_SCHEDULERS))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals(*numbers: int) -> None:
    """Unblock the signals with these `numbers`, by default all signals that `block_signals` blocks."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers or (*SIGNALS, *_SCHEDULERS))


def ignore_signals_in_data_loader() -> None:
    """Ignore signals in a data-loading process, as the training process handles them; end 10 seconds after SIGTERM."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_LAST_SECONDS) and None)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    unblock_signals(signal.SIGTERM)


def ignore_signals_in_rank_process() -> None:
    """Ignore signals in one of several processes that train a network together; the parent process handles them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    unblock_signals()


def print_error_line(text: str) -> None:
    """Print `text` as a line on standard error; do nothing if standard error is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"ticketry: {text}", file=sys.stderr, flush=True)


# -- parent and memory -------------------------------------------------------------------------------------------------


def choose_start_context(preload: list[str]) -> Any:
    """Return how processes start: forked from a server process that has imported the modules `preload`, if possible."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    return context


def exit_when_parent_exits() -> None:
    """End this process as soon as its parent is gone."""

    def wait_for_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def make_picklable(error: Exception) -> Exception:
    """Return `error`; or, if it cannot be pickled, a `RunnerError` that contains the traceback of `error`."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunnerError(f"training failed in a worker process:\n{''.join(traceback.format_exception(error))}")
    return error


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Option numbers in glibc's <malloc.h>."""
_LARGE, _LEFT = 1 << 20, 1 << 17
"""Sizes in bytes: the smallest block that gets its own memory mapping, and the free memory that may stay at the end of
the heap (glibc's default)."""
_MOST = 2**31 - 1
"""Largest int."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep large freed blocks for the next training step; return whether that worked.

    Otherwise the system fills every page of a returned block with zeros, which took a third of a step of a language
    model. Call this only in a process that trains, because the process afterwards never returns memory.
    """
    return _set_malloc_options({_MMAP_MAX: 0, _TRIM_THRESHOLD: _MOST})


def give_back_freed_memory() -> bool:
    """Tell glibc to return every block of 1 MiB or more to the system once it is freed; return whether that worked.

    By default glibc places ever larger blocks in its heap, where long-lived tensors fragment the free space. For
    example, a process with half of a sharded network held 2.3 GB instead of 1 GB.
    """
    return _set_malloc_options({_MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: _LEFT})


def _set_malloc_options(options: Mapping[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    done = [mallopt(option, value) for option, value in options.items()]
    return all(done)


# -- the machine -------------------------------------------------------------------------------------------------------


def describe_machine() -> dict[str, Any]:
    """Return the software versions, processor and GPU for a stored record; the keys of results do not contain them."""
    import torch

    return {
        "ticketry": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "processor_kind": processor_kind(),
    }


@functools.cache  # every result and every ticket needs it
def processor_name() -> str:
    """Return the name of the CPU, and of the GPU if there is one."""
    import torch

    name, _ = name_and_features()
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name
