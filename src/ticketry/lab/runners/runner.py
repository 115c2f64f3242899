"""The interface of runners, the registry of runners, and the runner that trains in the calling process."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from ticketry.errors import InterruptedTrainingError, NotStoredError, UsageError
from ticketry.lab.runners.events import Event, OnEvent
from ticketry.lab.signals import raise_if_stopped, stop_signal
from ticketry.lab.training.execute import execute, open_training_store
from ticketry.lab.training.job import Watch, Work
from ticketry.lab.training.segment import Segment
from ticketry.registry import Registry


@dataclass(frozen=True)
class Order:
    """Settings that apply to all trainings of a lab."""

    store: str
    """Address of the store, see `lab.store.store.open_store`."""
    data: Path | None
    checkpoint_seconds: float
    measure: bool = True
    """Whether metrics are needed, or only the final state."""
    weights: bool = False
    """Whether only the weights are needed: the result is known, but a bundle left its weights out."""


class Runner(Protocol):
    """Trains segments. `RUNNERS` holds classes or functions that build one from ``(workers, on_event)``."""

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        """Start or queue the training of a segment; the future returns the work done."""

    def stop(self) -> None:
        """Request all trainings to store their states and stop; return when they have stopped."""

    def close(self) -> None:
        """Release the workers."""


class ReportingWatch(Watch):
    """A watch that sends events, and stops a training after a signal or when `stopped` returns True."""

    def __init__(self, checkpoint_seconds: float, send: OnEvent, stopped: Callable[[], bool] = lambda: False) -> None:
        super().__init__(checkpoint_seconds)
        self._send, self._stopped = send, stopped

    def report_progress(self, segment: Segment, step: int) -> None:
        self._send(Event("progress", segment.key, segment.first, step, segment.last))

    def report_waiting(self, segment: Segment) -> None:
        self._send(Event("waiting", segment.key, segment.first, segment.first, segment.last))

    def report_stored(self, segment: Segment, step: int) -> None:
        self._send(Event("stored", segment.key, segment.first, step, segment.last))

    def is_stop_requested(self) -> bool:
        return bool(stop_signal()) or self._stopped()


class InProcess:
    """Trains in the calling process, one segment at a time, since thread count and random state belong to the
    process.
    """

    def __init__(self, workers: int, on_event: OnEvent) -> None:
        if workers:
            raise UsageError(f"the runner in-process has no workers, got {workers}")
        self._on_event = on_event
        self._one_at_a_time = threading.Lock()
        self._stop = threading.Event()

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        future: concurrent.futures.Future[Work] = concurrent.futures.Future()
        watch = ReportingWatch(order.checkpoint_seconds, self._on_event, self._stop.is_set)
        with self._one_at_a_time:
            self._stop.clear()
            try:
                store = open_training_store(order.store, order.data, segment)
                work = execute(store, order.data, segment, keep, watch, measure=order.measure, weights=order.weights)
                future.set_result(work)
            except InterruptedTrainingError as error:
                raise_if_stopped()
                raise KeyboardInterrupt from error
            except Exception as error:
                future.set_exception(error)
        return future

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        """Do nothing: there are no workers."""


class NoTraining:
    """A runner for reading a store: it raises `NotStoredError` instead of training."""

    def __init__(self) -> None:
        self.wanted: list[tuple[str, int]] = []
        """Trajectory and step of requested weights that the store lacks."""
        self.asked: list[tuple[Segment, tuple[int, ...]]] = []
        """Requested segments, with the intermediate steps to store."""

    def retrain(self, digest: str, trajectory: str, step: int) -> None:
        """Raise `NotStoredError`, in place of `Store.retrain`, for weights that a bundle left out."""
        self.wanted.append((trajectory, step))
        raise NotStoredError(f"{trajectory}@{step}: a bundle left the weights {digest[:12]}… out")

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        self.asked.append((segment, keep))
        raise NotStoredError(f"{segment.key}: steps {segment.first} to {segment.last} are not in the store")

    def stop(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def raise_first_error(futures: Iterable[concurrent.futures.Future[Any]]) -> None:
    """Raise the first error of finished futures. Interruptions come last, since they are consequences of other
    errors.
    """
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, InterruptedTrainingError)):
        raise error


MakeRunner = Callable[..., Runner]
"""Builds a runner from the number of workers and a listener; also from a `Place` if it has a parameter ``place``."""


def _check_callable(name: str, found: Any) -> MakeRunner:
    if not callable(found):
        raise UsageError(f"a runner must be a class or a function, got a {type(found).__name__}")
    return cast(MakeRunner, found)


RUNNERS: Registry[MakeRunner] = Registry(
    "runner",
    "ticketry.runners",
    {
        "in-process": "ticketry.lab.runners.runner:InProcess",
        "processes": "ticketry.lab.runners.processes:ProcessRunner",
        "ray": "ticketry.lab.runners.ray_tasks:RayRunner",
        "dask": "ticketry.lab.runners.dask_tasks:DaskRunner",
        "slurm": "ticketry.lab.runners.slurm_jobs:SlurmRunner",
    },
    make=_check_callable,
)
