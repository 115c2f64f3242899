"""Signals that ask to end (Ctrl-C, SIGTERM, SIGHUP, SIGQUIT): the one place where they are handled.

In the process of a command, or of a call of a lab's, the first one raises `Stopped` in the main thread; between the
steps of a training (`deferred`) it is noted, and the training stores its state before it stops. A worker process does
the same while it works (`interruptible`) and tells the process that started it, which stops all else: whoever signals
one process of a command wants its memory or the machine back, and a new worker would take it again.

Left alone are a signal that is ignored (nohup), one that somebody else handles, and all of them outside of `heeded`.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
_SCHEDULERS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""By which schedulers say that a job's time is over."""
_ONE_REQUEST = 1.0
"""Seconds within which several signals are one request: timeout(1) sends two, a terminal that closes several."""
_LAST_SECONDS = 10
"""What a process that reads examples stays for when it is told to end, so that its training can store its state."""
_GRACE_SECONDS = 2.0
"""How long a worker that was told to end waits for its pool to close before it leaves by itself."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end. An interruption, so that nothing takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Request:
    """What this process was asked."""

    raises: bool
    """Whether a signal interrupts what the main thread does."""
    number: int = 0
    """The first signal; 0 if there was none."""
    since: float = 0.0


_now: Request | None = None


def asked() -> int:
    """The signal that asked this process to end; 0 if none did."""
    return _now.number if _now else 0


def check() -> None:
    """Raise `Stopped` if a signal asked this process to end."""
    if number := asked():
        raise Stopped(number)


def name_of(number: int) -> str:
    """Such as SIGTERM."""
    return signal.Signals(number).name


# -- in the process of a command, or of a user's own -------------------------------------------------------------------


@contextlib.contextmanager
def heeded(*, command: bool = False) -> Iterator[Request]:
    """Let signals end this block by `Stopped`, in the main thread; the handlers of before are back behind it.

    A second signal, a second or more after the first, ends the process at once. Within another such block, and in
    other threads, nothing happens here.

    Args:
        command: whether the process is a command's, which answers with its exit code. In a user's own process Ctrl-C
            comes out as a KeyboardInterrupt, and any other signal is delivered again behind the block.
    """
    global _now
    if _now is not None or threading.current_thread() is not threading.main_thread():
        yield _now or Request(raises=False)
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

    request = _now = Request(raises=True)
    try:
        for number in ours:
            signal.signal(number, handle)
        yield request
    finally:
        for number in ours:
            signal.signal(number, before[number])
        _now = None
        if not command and request.number not in (0, signal.SIGINT):
            say(f"ended by {name_of(request.number)}; what was trained is stored, and the same call goes on from there")
            signal.raise_signal(request.number)
    if request.number and not command:  # it came too late to interrupt anything
        raise Stopped(request.number)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let no signal interrupt this block of the main thread, which looks at `asked` by itself."""
    request = _now
    if request is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, request.raises = request.raises, False
    try:
        yield
    finally:
        request.raises = before


# -- processes that are started ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Processes started in this block begin with these signals held back, until they are ready for them.

    They reach the whole group of processes, and would end one that is just being started.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # else it would be started in the block, and end it in Python before 3.12
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ready_for(*numbers: int) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def serve_to_the_end() -> None:
    """For a process that reads examples: the one that trains decides. Told to end, it stays for a while, then ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_LAST_SECONDS) and None)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _ready_for(signal.SIGTERM)


def leave_to_parent() -> None:
    """For one of several processes that train one network: whoever started them is asked to stop, and tells them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _ready_for(*SIGNALS)


# -- in a worker process -----------------------------------------------------------------------------------------------


@dataclass
class _WorkersRequest(Request):
    parent_asked: bool = False
    leaving: bool = False
    idle: threading.Event = field(default_factory=threading.Event)


def heed_as_worker(stop: Connection, tell: Callable[[int], None]) -> None:
    """From now on, heed signals as a worker process does. Ctrl-C, which reaches the whole group, is the parent's.

    Args:
        stop: has something to read, which is not read, as soon as the parent asks all workers to stop.
        tell: tells the parent that this process was asked to end by a signal.
    """
    global _now
    request = _now = _WorkersRequest(raises=False)
    request.idle.set()

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGINT and not request.parent_asked:
            return
        if number != signal.SIGINT and not request.leaving:
            request.leaving = True
            _thread.start_new_thread(leave, (number,))  # a thread, for the handler may have interrupted `tell` itself
        if not request.number:
            request.number = number
            if request.raises:
                raise Stopped(number)

    def leave(number: int) -> None:
        tell(number)
        request.idle.wait()
        time.sleep(_GRACE_SECONDS)
        os._exit(128 + number)

    def watch() -> None:
        wait([stop])
        request.parent_asked = True
        _thread.interrupt_main(signal.SIGINT)

    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, handle)
    _ready_for(*SIGNALS)
    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In this block of a worker process, a signal or its parent ends what it does by `Stopped`; else they are noted."""
    request = _now
    assert isinstance(request, _WorkersRequest)
    check()
    request.idle.clear()
    request.raises = True
    try:
        yield
    finally:
        request.raises = False
        request.idle.set()


@contextlib.contextmanager
def noted() -> Iterator[Request]:
    """In this block of a worker that is another program's (Ray's, Slurm's), signals end what it does by `Stopped`.

    Whoever handled them before does not see them; `Request.number` says behind the block which there was. In threads,
    and where this process heeds signals already, nothing happens here.
    """
    global _now
    if _now is not None or threading.current_thread() is not threading.main_thread():
        yield Request(raises=False)
        return
    request = Request(raises=False)

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
        _now, request.raises = request, True
        yield request
    finally:
        request.raises, _now = False, None
        for number in ours:
            signal.signal(number, before[number])


def say(text: str) -> None:
    """A line on standard error, if anybody can read it: a terminal that was closed cannot be written to."""
    with contextlib.suppress(OSError, ValueError):
        print(f"ticketry: {text}", file=sys.stderr, flush=True)
