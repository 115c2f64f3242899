"""Where segments are trained: in this process, or in several local ones."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ticketry.errors import InterruptedTrainingError, RunnerError, TaskError
from ticketry.lab.allocator import keep_freed_memory
from ticketry.lab.execute import Watch, Work, execute
from ticketry.lab.parent import end_with_parent
from ticketry.lab.segment import Segment
from ticketry.lab.store import Store
from ticketry.lab.together import Answer, execute_together
from ticketry.tasks import registry
from ticketry.tasks.base import Spec, Task

T = TypeVar("T")
Answers = concurrent.futures.Future[list[Answer]]


@dataclass(frozen=True)
class Order:
    """Where and how segments are trained: what all of a lab's have in common."""

    store: Path
    data: Path | None
    checkpoint_seconds: float
    measure: bool = True
    """Whether metrics are asked for, or the state at the end alone."""


@dataclass(frozen=True)
class _Request:
    """Segments to train, one or a stack, in a form that another process can take."""

    order: Order
    spec: Spec
    """How another process makes the task."""
    segments: tuple[dict[str, Any], ...]
    """Their descriptions."""
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """Progress of a segment: kind is started, waiting, progress, finished or cached."""

    kind: str
    key: str
    first: int
    step: int
    last: int
    label: str = ""


OnEvent = Callable[[Event], None]


class Runner(Protocol):
    """Something that trains segments."""

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        """Begin, or queue, the work; the future holds what was really done."""

    def submit_stack(self, order: Order, segments: Sequence[Segment], keep: tuple[int, ...]) -> Answers:
        """Likewise for segments that are trained together, see `lab.together`."""

    def stop(self) -> None:
        """Ask all training to store its state and stop; returns when it has."""

    def close(self) -> None:
        """Release processes."""


class _ReportingWatch(Watch):
    """A watch that sends events and obeys a stop."""

    def __init__(self, checkpoint_seconds: float, send: OnEvent, stopped: Callable[[], bool]) -> None:
        super().__init__(checkpoint_seconds)
        self._send, self._stopped = send, stopped

    def progress(self, segment: Segment, step: int) -> None:
        self._send(Event("progress", segment.key, segment.first, step, segment.last))

    def waiting(self, segment: Segment) -> None:
        self._send(Event("waiting", segment.key, segment.first, segment.first, segment.last))

    def stop_asked(self) -> bool:
        return self._stopped()


class InProcess:
    """Trains in the calling process, one segment at a time (thread count and random state belong to the process)."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._one_at_a_time = threading.Lock()
        self._stop = threading.Event()

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        return self._done(
            order, lambda store, watch: execute(store, order.data, segment, keep, watch, measure=order.measure)
        )

    def submit_stack(self, order: Order, segments: Sequence[Segment], keep: tuple[int, ...]) -> Answers:
        def work(store: Store, watch: Watch) -> list[Answer]:
            return execute_together(store, order.data, segments, keep, watch, measure=order.measure)

        return self._done(order, work)

    def _done(self, order: Order, work: Callable[[Store, Watch], T]) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        watch = _ReportingWatch(order.checkpoint_seconds, self._on_event, self._stop.is_set)
        with self._one_at_a_time:
            self._stop.clear()
            with _interrupt_as_flag(self._stop):
                try:
                    future.set_result(work(Store(order.store), watch))
                except InterruptedTrainingError as error:
                    raise KeyboardInterrupt from error
                except Exception as error:
                    future.set_exception(error)
        return future

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        """Nothing is held."""


class Processes:
    """Trains in local processes, one segment in each; they end when this process does, however it ends."""

    def __init__(self, workers: int, on_event: OnEvent) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
        self._events: Any = context.SimpleQueue()
        self._stop = context.Event()
        self._ending = threading.Lock()
        self._pool = concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(self._events, self._stop, list(sys.path))
        )
        self._listener = threading.Thread(target=_listen, args=(self._events, on_event), daemon=True)
        self._listener.start()

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        return self._begun(_work, order, [segment], keep)

    def submit_stack(self, order: Order, segments: Sequence[Segment], keep: tuple[int, ...]) -> Answers:
        return self._begun(_work_stack, order, segments, keep)

    def _begun(
        self, work: Callable[[_Request], T], order: Order, segments: Sequence[Segment], keep: tuple[int, ...]
    ) -> concurrent.futures.Future[T]:
        task = segments[0].task
        if task.spec is None:
            raise TaskError(
                f"the task {task.name!r} was made in this process and another cannot make it: name it as"
                " package.module:object, or train in this process (workers=0)"
            )
        try:
            request = _Request(order, task.spec, tuple(segment.describe() for segment in segments), keep)
            future = self._pool.submit(work, request)
        except BrokenProcessPool as error:
            raise _lost_worker() from error
        except RuntimeError as error:
            if not self._stop.is_set():
                raise
            raise InterruptedTrainingError("this lab was stopped: go on with a new one on the same store") from error
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        future.add_done_callback(functools.partial(_pass_on, answer))
        return answer

    def stop(self) -> None:
        self._stop.set()
        self._shut_down()

    def _shut_down(self) -> None:
        with self._ending:  # of two threads at once the second would find the pool's pipes closed
            self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        self._shut_down()
        self._events.put(None)
        self._listener.join(timeout=5)


def _pass_on(answer: concurrent.futures.Future[T], future: concurrent.futures.Future[T]) -> None:
    if future.cancelled():
        answer.set_exception(InterruptedTrainingError("stopped before it began"))
        return
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        error = _lost_worker()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(future.result())


def _lost_worker() -> RunnerError:
    return RunnerError(
        "a worker process ended without an answer: it was killed, ran out of memory, or the script that started it"
        " is not guarded by `if __name__ == '__main__':`. What was finished is stored; the same command goes on from"
        " there (fewer workers need less memory: --workers 1)"
    )


def _listen(events: Any, on_event: OnEvent) -> None:
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    sys.path[:] = path
    _worker.update(send=events.put, stopped=stop.is_set)
    keep_freed_memory()
    end_with_parent()


@functools.lru_cache(maxsize=8)
def _task(spec: Spec) -> Task:
    return registry.make(spec)


def _work(request: _Request) -> Work:
    order, (segment,) = request.order, _segments(request)
    with _portable_errors():
        return execute(Store(order.store), order.data, segment, request.keep, _watch(order), measure=order.measure)


def _work_stack(request: _Request) -> list[Answer]:
    order = request.order
    with _portable_errors():
        return execute_together(
            Store(order.store), order.data, _segments(request), request.keep, _watch(order), measure=order.measure
        )


def _segments(request: _Request) -> list[Segment]:
    return [Segment.from_description(described, _task(request.spec)) for described in request.segments]


def _watch(order: Order) -> Watch:
    return _ReportingWatch(order.checkpoint_seconds, _worker["send"], _worker["stopped"])


@contextlib.contextmanager
def _portable_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _portable(error) from error


def _portable(error: Exception) -> Exception:
    """The error, or what it says if another process could not read it (it would take it for a lost worker)."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunnerError(f"training failed in a worker process:\n{''.join(traceback.format_exception(error))}")
    return error


class _interrupt_as_flag:
    """Turns the first Ctrl-C into a flag, so that training stops between two steps; the second one interrupts."""

    def __init__(self, flag: threading.Event) -> None:
        self._flag = flag
        self._previous: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self._flag.set()
        signal.signal(signal.SIGINT, self._previous)

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
