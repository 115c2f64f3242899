"""The runner that trains in several local processes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from ticketry.errors import InterruptedTrainingError, RunnerError, UsageError
from ticketry.lab.runners.process_guard import end_with_parent, keep_freed_memory, portable
from ticketry.lab.runners.runner import Event, OnEvent, Order, ReportingWatch
from ticketry.lab.runners.stopping import Stopped, heed_as_worker, held_back, interruptible, name_of
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Work
from ticketry.lab.training.remake import store_for
from ticketry.lab.training.segment import Segment, check_task
from ticketry.tasks import catalogue
from ticketry.tasks.task import Spec, Task


@dataclass(frozen=True)
class _Request:
    """A segment to train, in a form that another process can take."""

    order: Order
    spec: Spec
    """How another process makes the task."""
    segment: dict[str, Any]
    """Its description."""
    modules: tuple[str, ...]
    """Where its variants of training are defined."""
    keep: tuple[int, ...]


class Processes:
    """Trains in local processes, one segment in each; they end when this process does, however it ends."""

    def __init__(self, workers: int, on_event: OnEvent) -> None:
        if workers < 1:
            raise UsageError("the runner processes has at least one worker")
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
        with held_back():  # it starts multiprocessing's tracker of resources, which a signal to the group would end
            self._events: Any = context.SimpleQueue()
        # No event: a worker that is killed while it looks at one would leave it locked.
        stopped, self._stop = context.Pipe(duplex=False)
        self._stopped = False
        self._signalled = 0
        self._ending, self._asking = threading.Lock(), threading.Lock()
        self._pool = concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(self._events, stopped, list(sys.path))
        )
        self._on_event = on_event
        self._listener = threading.Thread(target=_listen, args=(self._events, self._heard), daemon=True)
        self._listener.start()

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        task = segment.task
        check_task(task.name, task.spec)
        assert task.spec is not None
        try:
            request = _Request(order, task.spec, segment.describe(), tuple(segment.modules()), keep)
            with held_back():  # it may start workers
                future = self._pool.submit(_work, request)
        except BrokenProcessPool as error:
            raise self._explained(error) from error
        except RuntimeError as error:
            if not self._stopped:
                raise
            raise self._interrupted("this lab was stopped: go on with a new one on the same store") from error
        answer: concurrent.futures.Future[Work] = concurrent.futures.Future()
        future.add_done_callback(functools.partial(self._pass_on, answer))
        return answer

    def stop(self) -> None:
        self._ask_to_stop()
        self._shut_down()

    def _ask_to_stop(self) -> None:
        with self._asking:
            if not self._stopped:
                self._stopped = True
                self._stop.send_bytes(b"stop")

    def _heard(self, told: Event | int) -> None:
        """What a worker tells: an event, or the signal that asked it to end. Then all store what they train."""
        if isinstance(told, Event):
            self._on_event(told)
        elif not self._stopped:
            self._signalled = told
            self._ask_to_stop()

    def _shut_down(self) -> None:
        with self._ending:  # of two threads at once the second would find the pool's pipes closed
            self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        self._shut_down()
        self._events.put(None)
        self._listener.join(timeout=5)

    def _pass_on(self, answer: concurrent.futures.Future[Work], future: concurrent.futures.Future[Work]) -> None:
        if future.cancelled():
            answer.set_exception(self._interrupted("stopped before it began"))
        elif error := future.exception():
            answer.set_exception(self._explained(error))
        else:
            answer.set_result(future.result())

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, InterruptedTrainingError) and error.number == signal.SIGINT:
            return self._interrupted(str(error))
        if not isinstance(error, BrokenProcessPool):
            return error
        return self._interrupted("its worker process has left") if self._signalled else _lost_worker()

    def _interrupted(self, message: str) -> InterruptedTrainingError:
        """That training was stopped, and by which signal to a worker."""
        if not self._signalled:
            return InterruptedTrainingError(message)
        return InterruptedTrainingError(
            f"a worker process was told to end ({name_of(self._signalled)}): {message}", self._signalled
        )


def _lost_worker() -> RunnerError:
    return RunnerError(
        "a worker process ended without an answer: it was killed, ran out of memory, or the script that started it"
        " is not guarded by `if __name__ == '__main__':`. What was finished is stored; the same command goes on from"
        " there (fewer workers need less memory: --workers 1)"
    )


def _listen(events: Any, on_event: Callable[[Any], None]) -> None:
    try:
        while (event := events.get()) is not None:
            on_event(event)
    except BaseException:
        while events.get() is not None:  # workers that nobody listens to would wait for ever
            pass
        raise


# -- in a worker process ---------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _begin(events: Any, stop: Any, path: list[str]) -> None:
    heed_as_worker(stop, events.put)
    sys.path[:] = path
    _worker["send"] = events.put
    keep_freed_memory()
    end_with_parent()


@functools.lru_cache(maxsize=8)
def _task(spec: Spec) -> Task:
    return catalogue.make(spec)


def _work(request: _Request) -> Work:
    order = request.order
    with _portable_errors(), interruptible():
        for module in request.modules:  # named by this process's parent, which has them imported
            importlib.import_module(module)
        segment = Segment.from_description(request.segment, _task(request.spec))
        watch = ReportingWatch(order.checkpoint_seconds, _worker["send"])
        store = store_for(order.store, order.data, segment)
        return execute(store, order.data, segment, request.keep, watch, measure=order.measure, weights=order.weights)


@contextlib.contextmanager
def _portable_errors() -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        raise InterruptedTrainingError("stopped before it was trained", stopped.number) from stopped
    except Exception as error:
        raise portable(error) from error
