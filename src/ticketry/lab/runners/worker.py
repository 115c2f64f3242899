"""Carry out a request in a worker: train the segment, report progress through the store, and return an answer.

The worker's process belongs to Ray, Dask, Slurm or another executor. A signal to end the process is recorded during a
training. When the state is stored, the signal is sent to the process again, which then ends as its scheduler expects.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ticketry.errors import InterruptedTrainingError, RunnerError
from ticketry.lab.process_guard import keep_freed_memory
from ticketry.lab.runners.events import Event
from ticketry.lab.runners.request import Request, answer_done, answer_failed, build_answer, worker_name
from ticketry.lab.runners.runner import ReportingWatch
from ticketry.lab.signals import Stopped, record_signals
from ticketry.lab.store.live import messages_at
from ticketry.lab.training import execute as training
from ticketry.lab.training.job import Watch, Work
from ticketry.lab.training.segment import Segment
from ticketry.tasks import catalogue
from ticketry.tasks.task import Spec, Task

POLL_SECONDS = 1.0
"""Seconds between two reports of progress, and between two checks for the driver's request to stop."""

_one_at_a_time = threading.Lock()
"""Lock that lets only one thread of the process train, because a process has one thread count and random state."""


def execute(
    request: str,
    leaving: Callable[[], bool] = lambda: False,
    pass_signal_on: Callable[[int], object] = signal.raise_signal,
) -> str:
    """Train the segment of a request and return an answer, also if the training fails; see `request.build_answer`.

    Args:
        request: a `Request` as JSON text.
        leaving: returns whether this worker has to end; for schedulers that do not send a signal.
        pass_signal_on: called with the number of a signal that arrived during the training; by default the signal is
            sent to this process again.
    """
    with _one_at_a_time, record_signals() as signals:
        text = _train_and_answer(request, leaving, lambda: signals.number)
    if signals.number not in (0, signal.SIGINT):
        pass_signal_on(signals.number)
    return text


def _train_and_answer(text: str, leaving: Callable[[], bool], number: Callable[[], int]) -> str:
    watch: _Watch | None = None
    try:
        request = Request.read(text)
        request.check_worker()
        watch = _Watch(request, leaving)
        if watch.is_stop_requested():
            return build_answer("stopped", message="stopped before it began")
        return answer_done(_train(request, watch))
    except Stopped:
        return build_answer("left", number=number())
    except InterruptedTrainingError as error:
        if watch is None or watch.stopped_by_driver or not (number() or leaving()):
            return build_answer("stopped", message=str(error))
        return build_answer("left", number=number())
    except Exception as error:
        return answer_failed(error)


def _train(request: Request, watch: Watch) -> Work:
    os.environ.update(request.environment)
    known = set(sys.path)
    sys.path += [folder for folder in request.folders if folder not in known and os.path.isdir(folder)]
    keep_freed_memory()
    for module in request.modules:  # the user's own process has imported them
        importlib.import_module(module)
    segment = Segment.from_description(request.segment, _build_task(request.spec))
    data = Path(request.data) if request.data is not None else None
    store = training.open_training_store(request.store, data, segment)
    return training.execute(store, data, segment, request.keep, watch, measure=request.measure, weights=request.weights)


@functools.lru_cache(maxsize=8)
def _build_task(spec: Spec) -> Task:
    return catalogue.create_task(spec)


class _Watch(ReportingWatch):
    """Reports progress, and looks for the driver's request to stop, once a second through messages in the store."""

    def __init__(self, request: Request, leaving: Callable[[], bool]) -> None:
        """Raise `RunnerError` if this worker cannot see the driver's store."""
        super().__init__(request.checkpoint_seconds, self._report, leaving)
        self._live = messages_at(request.store, request.driver)
        if not self._live.is_driver_active():
            raise RunnerError(
                f"the worker {worker_name()} does not see the store {request.store}, or the search has ended: all"
                " machines need the store under the same name"
            )
        self.stopped_by_driver = False
        self._next_report = self._next_check = 0.0

    def is_stop_requested(self) -> bool:
        if not self.stopped_by_driver and time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + POLL_SECONDS
            self.stopped_by_driver = self._live.is_stop_requested()
        return self.stopped_by_driver or super().is_stop_requested()

    def _report(self, event: Event) -> None:
        if event.kind == "progress":
            if time.monotonic() < self._next_report:
                return
            self._next_report = time.monotonic() + POLL_SECONDS
        self._live.report(event.key, {"kind": event.kind, "step": event.step, "worker": worker_name()})
