"""Train segments in several local processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ticketry.errors import UsageError
from ticketry.lab.process_guard import end_with_parent
from ticketry.lab.runners.events import OnEvent
from ticketry.lab.runners.executor_runner import ExecutorRunner, Pool
from ticketry.lab.runners.place import Needs, Place
from ticketry.lab.runners.worker import execute
from ticketry.lab.signals import block_signals, unblock_signals

_LEAVE_SECONDS = 2.0
"""Seconds between the answer and the end of a process that has received a signal to end."""


class ProcessRunner(ExecutorRunner):
    """Trains segments in local processes, one segment at a time in each; the processes end with this process."""

    def __init__(self, workers: int, on_event: OnEvent) -> None:
        if workers < 1:
            raise UsageError(f"the runner processes needs at least one worker, got {workers}")
        super().__init__(_Processes(workers), Place("processes"), on_event)


class _Processes(Pool):
    """Sends requests to a process pool of the standard library, and builds a new pool after a process was lost."""

    advice = (
        "A worker process was killed, ran out of memory, or the script that started it is not guarded by"
        " `if __name__ == '__main__':` (fewer workers need less memory: --workers 1)"
    )
    local = True

    def __init__(self, workers: int) -> None:
        self._workers, self._guard = workers, threading.Lock()
        super().__init__(self._build(), "processes")

    def _build(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
        return ProcessPoolExecutor(
            self._workers, mp_context=context, initializer=_prepare_process, initargs=(list(sys.path),)
        )

    def submit(self, request: str, needs: Needs) -> Future[str]:
        with self._guard, block_signals():  # it may start processes
            try:
                return self.executor.submit(_execute, request)
            except BrokenProcessPool:
                self.executor = self._build()
                return self.executor.submit(_execute, request)

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, BrokenProcessPool)

    def interrupt(self) -> None:
        executor: Any = self.executor
        if hasattr(signal, "SIGUSR1"):
            for pid in list(executor._processes or ()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)

    def close(self) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)


# -- in a worker process -----------------------------------------------------------------------------------------------


def _prepare_process(path: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: None)  # `execute` handles it during a training
    unblock_signals()
    sys.path[:] = path
    end_with_parent()


def _execute(request: str) -> str:
    return execute(request, pass_signal_on=_exit_after_answer)


def _exit_after_answer(number: int) -> None:
    """End this process shortly after it has returned its answer; ignore SIGUSR1, which only requests a stop."""
    if number in (signal.SIGTERM, getattr(signal, "SIGHUP", 0), getattr(signal, "SIGQUIT", 0)):
        timer = threading.Timer(_LEAVE_SECONDS, os._exit, [128 + number])
        timer.daemon = True
        timer.start()
