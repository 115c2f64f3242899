"""Persistent threads, each fed by a queue, that run native calls without holding the GIL.

Jobs may wait for each other natively, so either all of them must start or none, wherever the caller is interrupted.
Python runs signal handlers between its own instructions, never inside a C function. Therefore filling all queues and
running the caller's own job is a single call of a C function (``list.extend`` over ``map``).
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
    """Return the number of cores that the calling thread may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _JobBatch:
    """State shared by the jobs of one call."""

    holding: object
    """Objects the jobs use; each thread keeps a reference until its job ends, even if the caller did not wait."""
    threads: int
    """Number of threads besides the caller's."""
    ended: list[BaseException | None] = field(default_factory=list)
    """Error or None of each job that has finished on a worker thread."""
    signal: SimpleQueue[None] = field(default_factory=SimpleQueue)
    """Receives an entry when all jobs have finished."""


_Queue = SimpleQueue["tuple[Job, _JobBatch] | weakref.ref[Workers]"]


class Workers:
    """A fixed number of worker threads, used by one caller at a time. They end when this object is collected."""

    def __init__(self, count: int) -> None:
        self._queues: list[_Queue] = [SimpleQueue() for _ in range(count)]
        for queue in self._queues:
            # The weakref callback is a C function, so no signal handler can raise inside it. It is set
            # before the thread starts, so that an interrupted caller leaves no waiting thread.
            gone = weakref.ref(self, queue.put)
            threading.Thread(target=_serve, args=(queue, gone), daemon=True, name="ticketry-engine").start()

    def run(self, jobs: Sequence[Job], holding: object = None) -> None:
        """Run the first job here and each other job on its own thread; return when all have finished.

        Args:
            jobs: functions with their arguments. Once one has started, all will.
            holding: objects the jobs use, kept alive until the last job ends.

        Raises:
            BaseException: the first error of a job or a signal handler, after all jobs have ended. These workers must
            not be
                used again afterwards.
        """
        queues = self._queues[: len(jobs) - 1]
        if len(queues) < len(jobs) - 1:
            raise ValueError(f"{len(jobs)} jobs for {len(self._queues) + 1} threads")
        call = _JobBatch(holding, len(queues))
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
            while begun and len(call.ended) < len(queues):  # even if interrupted again
                with suppress(KeyboardInterrupt):
                    time.sleep(0.001)
        errors += [error for error in call.ended if error is not None]
        if errors:
            raise errors[0]


def _serve(queue: _Queue, gone: weakref.ref[Workers]) -> None:
    """Run jobs from the queue until it delivers `gone`, the weak reference to the collected owner."""
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
