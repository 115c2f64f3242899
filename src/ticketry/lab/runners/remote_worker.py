"""What a worker elsewhere does with a request: train it, tell of it through the store, and answer.

The worker's process belongs to whoever started it (Ray, Dask, Slurm, another executor). Signals that ask it to end are
noted while it trains; once the state is stored they are delivered again to whoever handled them before, who ends the
process as that scheduler expects.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ticketry.errors import InterruptedTrainingError, RunnerError
from ticketry.lab.runners.process_guard import keep_freed_memory
from ticketry.lab.runners.request import Request, answer, done, failed, here
from ticketry.lab.runners.runner import Event, ReportingWatch
from ticketry.lab.runners.stopping import Stopped, noted
from ticketry.lab.store.live import live_at
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch, Work
from ticketry.lab.training.remake import store_for
from ticketry.lab.training.segment import Segment
from ticketry.tasks import catalogue
from ticketry.tasks.task import Spec, Task

TELL_SECONDS = 1.0
"""Between two words of progress, and two looks at whether the driver asks to stop."""

_one_at_a_time = threading.Lock()
"""Thread count and random state belong to the process: of its threads one trains."""


def work(text: str, leaving: Callable[[], bool] = lambda: False) -> str:
    """Train what a request asks for; the answer, see `request.answer`. Errors of the training are answers too.

    Args:
        leaving: whether this worker is to end, for one that learns it by other means than a signal.
    """
    with _one_at_a_time, noted() as signals:
        told = _answered(text, leaving, lambda: signals.number)
    if signals.number not in (0, signal.SIGINT):  # to whoever handled it before: mostly this ends the process
        signal.raise_signal(signals.number)
    return told


def _answered(text: str, leaving: Callable[[], bool], number: Callable[[], int]) -> str:
    watch: _Watch | None = None
    try:
        request = Request.read(text)
        request.check_worker()
        watch = _Watch(request, leaving)
        if watch.stop_asked():
            return answer("stopped", message="stopped before it began")
        return done(_trained(request, watch))
    except Stopped:
        return answer("left", number=number())
    except InterruptedTrainingError as error:
        if watch is None or watch.driver_asked or not (number() or leaving()):
            return answer("stopped", message=str(error))
        return answer("left", number=number())
    except Exception as error:
        return failed(error, functools.partial(_trace, error))


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _trained(request: Request, watch: Watch) -> Work:
    os.environ.update(request.environment)
    known = set(sys.path)
    sys.path += [folder for folder in request.folders if folder not in known and os.path.isdir(folder)]
    keep_freed_memory()
    for module in request.modules:  # named by the user's own process, which has them imported
        importlib.import_module(module)
    segment = Segment.from_description(request.segment, _task(request.spec))
    data = Path(request.data) if request.data is not None else None
    store = store_for(request.store, data, segment)
    return execute(store, data, segment, request.keep, watch, measure=request.measure, weights=request.weights)


@functools.lru_cache(maxsize=8)
def _task(spec: Spec) -> Task:
    return catalogue.make(spec)


class _Watch(ReportingWatch):
    """Tells of progress, and looks for a stop, through files of the store: both seldom, for they may be far away."""

    def __init__(self, request: Request, leaving: Callable[[], bool]) -> None:
        """Raises `RunnerError` where this worker does not see the driver's store."""
        super().__init__(request.checkpoint_seconds, self._tell, leaving)
        self._live = live_at(request.store, request.driver)
        if not self._live.begun():
            raise RunnerError(
                f"the worker {here()} does not see the store {request.store}, or the search that asked for it has"
                " ended: the store has to lie where all machines see it, by the same name"
            )
        self.driver_asked = False
        self._next_word = self._next_look = 0.0

    def stop_asked(self) -> bool:
        if not self.driver_asked and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + TELL_SECONDS
            self.driver_asked = self._live.stop_asked()
        return self.driver_asked or super().stop_asked()

    def _tell(self, event: Event) -> None:
        if event.kind == "progress" and time.monotonic() < self._next_word:
            return
        self._next_word = time.monotonic() + TELL_SECONDS
        self._live.tell(event.key, {"kind": event.kind, "step": event.step, "worker": here()})
