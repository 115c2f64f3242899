"""Handling of signals that end a process: Ctrl-C, SIGTERM, SIGHUP and SIGQUIT.

In a command, or in a call of a lab, the first signal raises `Stopped` in the main thread. During a training
(`defer_signals`) it is recorded; the training stores its state between two steps, then stops. Worker processes do the
same (`record_signals`). Ignored signals (nohup) and handlers of the caller's are left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
_SCHEDULERS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals by which a scheduler announces the end of a job, if the process has a handler for them."""
_ONE_REQUEST = 1.0
"""Seconds within which several signals count as one: timeout(1) sends two, a closed terminal several."""
_LAST_SECONDS = 10
"""Seconds for which a data-loading process stays alive after SIGTERM, so that the training can store its state."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end. A subclass of KeyboardInterrupt, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class StopRequest:
    """The signal that asked this process to end, if any."""

    raises: bool
    """Whether a signal interrupts the main thread."""
    number: int = 0
    """The first signal; 0 if there was none."""
    since: float = 0.0


_current: StopRequest | None = None


def stop_signal() -> int:
    """Return the signal that asked this process to end, or 0."""
    return _current.number if _current else 0


def raise_if_stopped() -> None:
    """Raise `Stopped` if a signal asked this process to end."""
    if number := stop_signal():
        raise Stopped(number)


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGTERM."""
    return signal.Signals(number).name


# -- in a command or a user's process ----------------------------------------------------------------------------------


@contextlib.contextmanager
def handle_signals(*, command: bool = False) -> Iterator[StopRequest]:
    """Let signals end this block by raising `Stopped` in the main thread, and restore the handlers afterwards.

    A second signal, at least a second after the first, ends the process at once. Nested blocks, and blocks in other
    threads, do nothing.

    Args:
        command: whether the process is a command, which returns its own exit code. In a user's process Ctrl-C becomes a
            KeyboardInterrupt, and any other signal is delivered again after the block.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or StopRequest(raises=False)
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]

    def handle(number: int, frame: Any) -> None:
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
            signal.signal(number, handle)
        yield request
    finally:
        for number in ours:
            signal.signal(number, before[number])
        _current = None
        if not command and request.number not in (0, signal.SIGINT):
            ended = f"ended by {signal_name(request.number)}"
            print_error_line(f"{ended}; what was trained is stored, and the same call goes on from there")
            signal.raise_signal(request.number)
    if request.number and not command:  # it came too late to interrupt anything
        raise Stopped(request.number)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Let no signal interrupt this block of the main thread; the block checks `stop_signal` at suitable moments."""
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
    """Let signals end this block of a worker by raising `Stopped`, and restore the previous handlers afterwards.

    Those handlers do not see the signals; `StopRequest.number` is the first one. In threads, and where this process
    handles signals already, the block does nothing.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield StopRequest(raises=False)
        return
    request = StopRequest(raises=False)

    def handle(number: int, frame: Any) -> None:
        if not request.number:
            request.number = number
            if request.raises:
                raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (*SIGNALS, *_SCHEDULERS)}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN and handler is not None]
    ours = [number for number in ours if number in SIGNALS or callable(before[number])]
    try:
        for number in ours:
            signal.signal(number, handle)
        _current, request.raises = request, True
        yield request
    finally:
        request.raises, _current = False, None
        for number in ours:
            signal.signal(number, before[number])


# -- in a process that another one starts ------------------------------------------------------------------------------


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Start processes of this block with signals blocked, until they call `unblock_signals`.

    A signal to the process group would otherwise end a process that is just starting.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, *_SCHEDULERS))
    try:
        resource_tracker.ensure_running()  # before Python 3.12 it would otherwise start in the block and unblock them
        signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, *_SCHEDULERS))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals(*numbers: int) -> None:
    """Receive signals that `block_signals` blocked, by default all."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers or (*SIGNALS, *_SCHEDULERS))


def ignore_signals_as_reader() -> None:
    """Ignore signals in a data-loading process, since the training decides; after SIGTERM it ends within seconds."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_LAST_SECONDS) and None)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    unblock_signals(signal.SIGTERM)


def ignore_signals_as_rank() -> None:
    """Ignore signals in one of several processes that train one network: their parent decides when to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    unblock_signals()


def print_error_line(text: str) -> None:
    """Print a line on standard error, unless it is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"ticketry: {text}", file=sys.stderr, flush=True)
