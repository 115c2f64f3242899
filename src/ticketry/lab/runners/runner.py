"""Define the interface and the registry of runners (objects that train segments), and a runner in this process."""

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
    """Holds settings that a lab sends to its runner together with a segment."""

    store: str
    """Address of the store, see `lab.store.store.open_store`."""
    data: Path | None
    """Folder in which data sets are looked for first."""
    checkpoint_seconds: float
    """Seconds between two checkpoints."""
    measure: bool = True
    """Whether metrics of the trained network are needed."""
    weights: bool = False
    """Whether the segment is trained only for its weights, because its result came from a bundle without weights."""


class Runner(Protocol):
    """Trains segments (ranges of steps of a training) in this process or elsewhere.

    `RUNNERS` has classes or functions that build a runner from ``(workers, on_event)``.
    """

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        """Start or queue the training of a segment, and return a future for the amount of work done.

        Args:
            order: settings of the lab.
            segment: what to train.
            keep: steps whose states are also stored.
        """

    def stop(self) -> None:
        """Ask all trainings to store their states and stop, and return when they have stopped."""

    def close(self) -> None:
        """End the workers or disconnect from them."""


class ReportingWatch(Watch):
    """Sends an event when a training reports progress, and asks it to stop after a signal or if `stopped` says so."""

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
    """Trains segments in the calling process, one at a time, since a process has one thread count and random state."""

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
        """Do nothing, because there are no workers."""


class NoTraining:
    """Raises `NotStoredError` instead of training; this runner is for reading stored results only."""

    def __init__(self) -> None:
        self.wanted: list[tuple[str, int]] = []
        """Trajectories and steps of the weights that were requested but are not stored."""
        self.asked: list[tuple[Segment, tuple[int, ...]]] = []
        """Segments that were requested but are not stored, with the intermediate steps whose states are needed."""

    def retrain(self, digest: str, trajectory: str, step: int) -> None:
        """Raise `NotStoredError` for weights that a bundle left out; used in place of `Store.retrain`."""
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
    """Raise the first error of finished futures; an interruption is raised only if there is no other error."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, InterruptedTrainingError)):
        raise error


MakeRunner = Callable[..., Runner]
"""Builds a runner from the number of workers and a listener; gets also a `Place` if it has a parameter ``place``."""


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
