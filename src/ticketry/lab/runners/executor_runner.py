"""Train on a `concurrent.futures.Executor`: local processes, Ray, Dask, Slurm, or a user's own executor."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import uuid
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from ticketry.errors import InterruptedTrainingError, RunnerError, UsageError
from ticketry.lab.process import block_signals, exit_when_parent_exits, signal_name, unblock_signals
from ticketry.lab.runners.runner import Event, Needs, OnEvent, Order, Place
from ticketry.lab.runners.worker import build_request, execute, parse_answer, rebuild_error
from ticketry.lab.store.live import Messages, messages_at
from ticketry.lab.store.store import open_store
from ticketry.lab.training.job import Work
from ticketry.lab.training.segment import Segment

LOSSES = 3
"""Number of workers that may be lost in succession; then the segment fails. A newer stored state resets the count."""
STOP_SECONDS = 30.0
"""Seconds that workers have to store their states when the driver asks them to stop."""
_POLL_SECONDS = 1.0
"""Minimum seconds between two reads of the workers' progress."""
_POLL_SHARE = 0.02
"""Maximum share of the driver's time that reading progress may take."""
_ALIVE_SECONDS = 600.0
"""Seconds after which the driver announces again in the store that it is alive."""

_log = logging.getLogger(__name__)


class Pool:
    """Sends requests to the workers of an executor; subclasses do so for local processes, Ray, Dask and Slurm.

    This class itself is for an executor that a user passes; `close` does not shut that executor down.
    """

    name: str
    advice = "They were killed, ran out of memory, or their machines went away"
    """Part of the error message for lost workers."""
    local = False
    """Whether workers are processes of this command; then a signal to a worker stops the whole command."""

    def __init__(self, executor: Executor, name: str = "") -> None:
        self.executor, self.name = executor, name or type(executor).__name__

    def submit(self, request: str, needs: Needs) -> Future[str]:
        """Send a request (a `Request` as JSON text) to a worker, and return the future for the worker's answer."""
        return self.executor.submit(execute, request)

    def is_loss(self, error: BaseException) -> bool:
        """Return whether an error means that the worker was lost; the request is then sent to another worker."""
        return isinstance(error, ConnectionError)

    def explain(self, error: BaseException) -> str:
        """Return the text that describes an error of the executor to the user."""
        return f"{type(error).__name__}: {error}"

    def interrupt(self) -> None:
        """Make workers stop at once; otherwise they look for a request to stop only once a second."""

    def give_up(self, future: Future[str]) -> None:
        """Cancel the request with this future; called if its training did not stop in time."""
        future.cancel()

    def close(self) -> None:
        """End the workers or disconnect from them, after all trainings have ended."""


@dataclass
class _SentSegment:
    """Holds a segment (range of training steps) that was sent to a worker, the futures for the answer, and progress."""

    order: Order
    segment: Segment
    text: str
    answer: Future[Work]
    live: Messages
    future: Future[str] | None = None
    losses: int = 0
    furthest: int = -1
    """Step of the newest stored state at the time when a worker was last lost; -1 if none was."""
    worker: str = ""
    reported: tuple[str, int] = ("", -1)

    def event(self, kind: str, step: int) -> Event:
        return Event(kind, self.segment.key, self.segment.first, step, self.segment.last)

    def describe_worker(self) -> str:
        return f" on {self.worker}" if self.worker else ""


class ExecutorRunner:
    """Trains segments (ranges of training steps) on the workers of an executor; all workers must see the store.

    Workers report progress, and receive requests to stop, through messages in the store. If a worker is lost, another
    worker resumes from the last stored state. A training that raises an error is not repeated.
    """

    def __init__(self, pool: Pool, place: Place, on_event: OnEvent) -> None:
        self._pool, self._place, self._on_event = pool, place, on_event
        self._driver = uuid.uuid4().hex
        self._live: dict[str, Messages] = {}
        """Messages between this process and its workers, by the address of the store that contains them."""
        self._sent: dict[int, _SentSegment] = {}
        self._answers: queue.SimpleQueue[tuple[_SentSegment, Future[str]] | None] = queue.SimpleQueue()
        self._guard = threading.RLock()
        self._stopped = False
        self._signal = 0
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=one, daemon=True) for one in (self._report_progress, self._handle_queued_answers)
        ]

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> Future[Work]:
        request = build_request(order, segment, keep, self._driver)
        with self._guard:
            if self._stopped:
                raise self._build_interruption_error("this lab was stopped: continue with a new one on the same store")
            if not self._live:
                for thread in self._threads:
                    thread.start()
            if order.store not in self._live:
                live = messages_at(order.store, self._driver)
                live.announce_driver()
                self._live[order.store] = live
            sent = _SentSegment(order, segment, request.to_json(), Future(), self._live[order.store])
            self._sent[id(sent)] = sent
        self._send(sent)
        return sent.answer

    def _send(self, sent: _SentSegment) -> None:
        if self._stopped:
            self._set_result(sent, self._build_interruption_error("stopped before it began"))
            return
        arithmetic = sent.segment.arithmetic
        try:
            needs = self._place.resources_per_training(arithmetic.threads, arithmetic.device, arithmetic.ranks)
            sent.future = self._pool.submit(sent.text, needs)
        except Exception as error:
            self._set_result(sent, self._convert_error_for_user(error, sent))
            return
        sent.future.add_done_callback(lambda future: self._answers.put((sent, future)))  # in a thread of the executor

    def _handle_queued_answers(self) -> None:
        while item := self._answers.get():
            try:
                self._handle_answer(*item)
            except Exception as error:  # an invalid answer; the caller waits for a result
                self._set_result(item[0], error)

    def _handle_answer(self, sent: _SentSegment, future: Future[str]) -> None:
        with contextlib.suppress(Exception):
            self._read_progress(sent)  # the worker's last report
        error = CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            if self._stopped:
                self._set_result(
                    sent, self._build_interruption_error("stopped; earlier results and checkpoints are stored")
                )
            elif self._pool.is_loss(error):
                self._resend(sent, f"{type(error).__name__}: {error}")
            else:
                self._set_result(sent, self._convert_error_for_user(error, sent))
            return
        found = parse_answer(future.result())
        sent.worker = str(found["worker"])
        if found["kind"] == "left" and self._pool.local and not self._stopped:
            self._signal = int(found["number"])
            threading.Thread(target=self.stop, daemon=True).start()  # `stop` waits for this thread
            self._set_result(sent, self._build_interruption_error("its state is stored"))
        elif found["kind"] == "done":
            self._set_result(sent, Work(**found["work"]))
        elif found["kind"] == "failed":
            self._set_result(sent, rebuild_error(found))
        elif found["kind"] == "stopped" or self._stopped:
            self._set_result(
                sent, self._build_interruption_error(str(found.get("message", "stopped; its state is stored")))
            )
        else:
            self._resend(sent, f"it received signal {found['number']}")

    def _resend(self, sent: _SentSegment, why: str) -> None:
        """Send a segment to another worker after its worker was lost; `why` describes the loss.

        After `LOSSES` losses without a new stored state, give up.
        """
        furthest = open_store(sent.order.store).last_stored_step(sent.segment.trajectory, sent.segment.last)
        sent.losses = 1 if furthest > sent.furthest else sent.losses + 1
        sent.furthest = furthest
        if sent.losses < LOSSES:
            self._on_event(sent.event("lost", max(furthest, sent.segment.first)))
            self._send(sent)
            return
        message = (
            f"{LOSSES} workers of {self._pool.name} in a row were lost at steps {sent.segment.first} to"
            f" {sent.segment.last} of a training, without a new stored state; the last{sent.describe_worker()}:"
            f" {why:.300}. {self._pool.advice}. What was finished is stored; the same command goes on from there"
        )
        self._set_result(sent, RunnerError(message))

    def _convert_error_for_user(self, error: BaseException, sent: _SentSegment) -> Exception:
        if isinstance(error, (RunnerError, InterruptedTrainingError)):
            return error
        return RunnerError(
            f"{self._pool.name} did not train steps {sent.segment.first} to {sent.segment.last}"
            f"{sent.describe_worker()}: {self._pool.explain(error)}. What was finished is stored; the same command goes"
            " on from there"
        )

    def _build_interruption_error(self, message: str) -> InterruptedTrainingError:
        if not self._signal:
            return InterruptedTrainingError(message)
        return InterruptedTrainingError(
            f"a worker process received {signal_name(self._signal)}: {message}", self._signal
        )

    def _set_result(self, sent: _SentSegment, result: Work | Exception) -> None:
        with self._guard:
            if self._sent.pop(id(sent), None) is None:
                return
        sent.live.delete_message(sent.segment.key)
        if isinstance(result, Work):
            sent.answer.set_result(result)
        else:
            sent.answer.set_exception(result)

    def _report_progress(self) -> None:
        pause, alive, warned = _POLL_SECONDS, time.monotonic(), ""
        while not self._closed.wait(pause):
            began = time.monotonic()
            with self._guard:
                running = [one for one in self._sent.values() if one.future is not None]
            try:
                for sent in running:
                    self._read_progress(sent)
            except Exception as error:  # in the store or a listener: the next read may succeed
                if warned != (warned := f"{type(error).__name__}: {error}"):
                    _log.warning("progress of the workers of %s is unknown for now: %s", self._pool.name, warned)
            if began - alive > _ALIVE_SECONDS:
                alive = began
                for live in {sent.live for sent in running}:
                    with contextlib.suppress(Exception):
                        live.announce_driver()
            pause = max(_POLL_SECONDS, (time.monotonic() - began) / _POLL_SHARE)

    def _read_progress(self, sent: _SentSegment) -> None:
        found = sent.live.read_message(sent.segment.key)
        kind, step = found.get("kind"), found.get("step")
        if not isinstance(kind, str) or not isinstance(step, int) or (kind, step) == sent.reported:
            return
        sent.reported, sent.worker = (kind, step), str(found.get("worker", ""))
        self._on_event(sent.event(kind, step))

    def stop(self) -> None:
        with self._guard:
            if self._stopped:
                return
            self._stopped = True
            running = list(self._sent.values())
            for live in {sent.live for sent in running}:
                live.request_stop()
        self._pool.interrupt()
        for sent in running:
            if sent.future is None or not sent.live.read_message(sent.segment.key):  # it has not begun to train
                if sent.future is not None:
                    self._pool.give_up(sent.future)
                self._set_result(sent, self._build_interruption_error("stopped before it began"))
        _, late = concurrent.futures.wait([one.answer for one in running], timeout=STOP_SECONDS)
        for sent in running:
            if sent.answer in late and sent.future is not None:
                self._pool.give_up(sent.future)
                message = f"a worker did not stop within {STOP_SECONDS:.0f} s: its state is that of its last checkpoint"
                self._set_result(sent, self._build_interruption_error(message))

    def close(self) -> None:
        if self._sent:
            self.stop()
        self._closed.set()
        self._answers.put(None)
        self._pool.close()
        if self._live:
            for thread in self._threads:
                thread.join(timeout=5)
        for live in self._live.values():
            live.delete_all()


# -- local processes ---------------------------------------------------------------------------------------------------


_LEAVE_SECONDS = 2.0
"""Seconds between the answer and the end of a process that has received a signal to end."""


class ProcessRunner(ExecutorRunner):
    """Trains segments in local processes, one segment at a time in each; the processes end with this process."""

    def __init__(self, workers: int, on_event: OnEvent) -> None:
        if workers < 1:
            raise UsageError(f"the runner processes needs at least one worker, got {workers}")
        super().__init__(_Processes(workers), Place("processes"), on_event)


class _Processes(Pool):
    """Sends training requests to a process pool of the standard library; builds a new pool if a process was lost."""

    advice = (
        "A worker process was killed, ran out of memory, or the script that started it is not guarded by"
        " `if __name__ == '__main__':` (fewer workers need less memory: --workers 1)"
    )
    local = True

    def __init__(self, workers: int) -> None:
        self._workers, self._guard = workers, threading.Lock()
        super().__init__(self._build_pool(), "processes")

    def _build_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
        with block_signals():  # it starts Python's resource tracker, which a signal to the group must not end
            return ProcessPoolExecutor(
                self._workers, mp_context=context, initializer=_prepare_process, initargs=(list(sys.path),)
            )

    def submit(self, request: str, needs: Needs) -> Future[str]:
        with self._guard, block_signals():  # `submit` may start processes
            try:
                return self.executor.submit(execute, request, pass_signal_on=_exit_after_answer)
            except BrokenProcessPool:
                self.executor = self._build_pool()
                return self.executor.submit(execute, request, pass_signal_on=_exit_after_answer)

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


def _prepare_process(path: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: None)  # `execute` handles it during a training
    unblock_signals()
    sys.path[:] = path
    exit_when_parent_exits()


def _exit_after_answer(number: int) -> None:
    """Handle the signal `number`: end this process shortly after its answer; ignore SIGUSR1, which requests a stop."""
    if number in (signal.SIGTERM, getattr(signal, "SIGHUP", 0), getattr(signal, "SIGQUIT", 0)):
        timer = threading.Timer(_LEAVE_SECONDS, os._exit, [128 + number])
        timer.daemon = True
        timer.start()
