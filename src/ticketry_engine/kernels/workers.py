"""Threads that stay, each fed by a queue: a native call in each, none of which holds Python's lock.

Jobs may wait for one another natively, so either all of them have to begin or none, wherever the caller is interrupted.
Python runs handlers of signals between its own instructions, not inside of a function in C; so feeding all queues and
doing the caller's job is one call of such a function.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from queue import SimpleQueue
from typing import Any

Job = tuple[Callable[..., Any], tuple[Any, ...]]

_CALL = methodcaller("__call__")


def cores() -> int:
    """Cores that the calling thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _Call:
    """What the jobs of one call share."""

    holding: object
    """What they use: each thread holds it until its job has ended, even if the caller did not wait for that."""
    threads: int
    """Beside the caller's."""
    ended: list[BaseException | None] = field(default_factory=list)
    """Of each job that has ended on a thread of its own: its error."""
    signal: SimpleQueue[None] = field(default_factory=SimpleQueue)
    """Gets an entry when all have."""


_Queue = SimpleQueue["tuple[Job, _Call] | weakref.ref[Workers]"]


class Workers:
    """So many threads beside the caller's. Used by one caller at a time; they end when nobody holds this any more."""

    def __init__(self, count: int) -> None:
        self._queues: list[_Queue] = [SimpleQueue() for _ in range(count)]
        for queue in self._queues:
            # Its last entry is put by the reference itself, a function in C: no handler of signals runs inside, whose
            # error would be lost there. And before it starts: a caller interrupted here leaves none that waits.
            gone = weakref.ref(self, queue.put)
            threading.Thread(target=_serve, args=(queue, gone), daemon=True, name="ticketry-engine").start()

    def run(self, jobs: Sequence[Job], holding: object = None) -> None:
        """Do the first job here and each other one on a thread of its own; return when all are done.

        Args:
            jobs: functions with their arguments. Once one of them has begun, all will.
            holding: what the jobs use. It lives until the last of them has ended.

        Raises:
            BaseException: the first that a job or a handler of signals raised, when all have ended. These workers are
                not to be used again then.
        """
        queues = self._queues[: len(jobs) - 1]
        if len(queues) < len(jobs) - 1:
            raise ValueError(f"{len(jobs)} jobs for {len(self._queues) + 1} threads")
        call = _Call(holding, len(queues))
        steps: list[Callable[[], Any]] = [
            partial(queue.put, (job, call)) for queue, job in zip(queues, jobs[1:], strict=True)
        ]
        function, arguments = jobs[0]
        steps.append(partial(function, *arguments))
        begun: list[Any] = []
        errors: list[BaseException] = []
        try:
            begun.extend(map(_CALL, steps))
            if queues:
                call.signal.get()
        except BaseException as error:
            errors.append(error)
            while begun and len(call.ended) < len(queues):  # interrupted once more, they still have to end
                with suppress(KeyboardInterrupt):
                    time.sleep(0.001)
        errors += [error for error in call.ended if error is not None]
        if errors:
            raise errors[0]


def _serve(queue: _Queue, gone: weakref.ref[Workers]) -> None:
    """Do what the queue gives until it gives `gone`: whose threads they were is no more."""
    while not isinstance(given := queue.get(), weakref.ref):
        (function, arguments), call = given
        error: BaseException | None = None
        try:
            function(*arguments)
        except BaseException as raised:
            error = raised
        call.ended.append(error)
        if len(call.ended) == call.threads:
            call.signal.put(None)
        del given, function, arguments, call, error
