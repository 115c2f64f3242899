"""Define runners (objects that train segments): interface, registry, options, events, and a runner in this process."""

from __future__ import annotations

import concurrent.futures
import inspect
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from ticketry.choices import list_choices
from ticketry.errors import InterruptedTrainingError, NotStoredError, UsageError
from ticketry.lab.process import raise_if_stopped
from ticketry.lab.training.execute import execute, open_training_store
from ticketry.lab.training.job import Watch, Work
from ticketry.lab.training.segment import Segment
from ticketry.registry import Registry


@dataclass(frozen=True)
class Event:
    """Reports progress in training a segment, which has the key `key` and the steps from `first` to `last`.

    Kinds: started (submitted), waiting (for another process that trains the segment), progress, stored (the training
    was stopped, and its state is stored), lost (the worker is gone, and another worker resumes at the step), finished,
    cached (the result was in the store), aside (finished without a new result: a timing in another store, or weights
    that a bundle left out).
    """

    kind: str
    key: str
    first: int
    step: int
    """The step that the training has reached."""
    last: int
    label: str = ""
    """Name of the training for displays."""


OnEvent = Callable[[Event], None]


class Activity:
    """Counts the segments of a lab and lists those in training, from the lab's events; several threads may call it."""

    def __init__(self) -> None:
        self.trained = self.asked = 0
        """Numbers of trained and of requested segments; the results of all others were in the store."""
        self.since = 0.0
        """Time of the first progress, in seconds since 1970; 0 if there was none. Workers have started by that time."""
        self.at_once = 0
        """Largest number of segments in training at the same time."""
        self._active: dict[str, Event] = {}
        self._done: set[str] = set()  # a worker's last event may arrive after its result
        self._guard = threading.Lock()

    def on_event(self, event: Event) -> None:
        with self._guard:
            if event.kind in ("finished", "cached"):
                self._active.pop(event.key, None)
                self._done.add(event.key)
                self.trained += event.kind == "finished"
                self.asked += 1
            elif event.kind in ("stored", "aside"):
                self._active.pop(event.key, None)
                if event.kind == "aside":
                    self._done.add(event.key)
            elif event.kind != "started" and event.key not in self._done:  # started: queued until a worker takes it
                self._active[event.key] = event
                if event.kind == "progress":
                    self.since = self.since or time.time()
                    self.at_once = max(self.at_once, sum(one.kind == "progress" for one in self._active.values()))

    def active(self) -> list[Event]:
        """Return the last event of each segment in training, sorted by label."""
        with self._guard:
            return sorted(self._active.values(), key=lambda event: event.label)


# -- runners -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """Holds settings with which a segment (a range of training steps) is trained; a lab sends them to its runner."""

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
    """Trains segments (ranges of steps of a training); `RUNNERS` builds a runner from ``(workers, on_event)``."""

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        """Start or queue the training of a segment; states at the steps `keep` are also stored."""

    def stop(self) -> None:
        """Ask all trainings to store their states and stop, and return when they have stopped."""

    def close(self) -> None:
        """End the workers or disconnect from them."""


class ReportingWatch(Watch):
    """Sends events about progress in a training, and asks it to stop after a signal or if `stopped` returns True."""

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
        return super().is_stop_requested() or self._stopped()


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
        """Raise `NotStoredError` for weights that the store lacks, instead of training them again (`Store.retrain`)."""
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
    """Raise the first error of finished futures; an `InterruptedTrainingError` only if there is no other error."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, InterruptedTrainingError)):
        raise error


MakeRunner = Callable[..., Runner]
"""Builds a runner from the number of workers and a listener, and a `Place` if it has a parameter ``place``."""


def _check_callable(name: str, found: Any) -> MakeRunner:
    if not callable(found):
        raise UsageError(f"a runner must be a class or a function, got a {type(found).__name__}")
    return cast(MakeRunner, found)


RUNNERS: Registry[MakeRunner] = Registry(
    "runner",
    "ticketry.runners",
    {
        "in-process": "ticketry.lab.runners.runner:InProcess",
        "processes": "ticketry.lab.runners.executor_runner:ProcessRunner",
        "ray": "ticketry.lab.runners.clusters:RayRunner",
        "dask": "ticketry.lab.runners.clusters:DaskRunner",
        "slurm": "ticketry.lab.runners.slurm_jobs:SlurmRunner",
    },
    make=_check_callable,
)


# -- names and options of runners --------------------------------------------------------------------------------------


RESOURCES = ("cpus", "gpus", "memory")
"""Names of the options that set the resources of one training."""
_UNITS = {"": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?b?)", re.IGNORECASE)


@dataclass(frozen=True)
class Needs:
    """Holds the numbers of cores and GPUs, and the bytes of memory, that one training needs."""

    cpus: float = 1
    gpus: float = 0
    memory: int | None = None
    """Bytes of memory; None if there is no limit."""


@dataclass(frozen=True)
class Place:
    """Holds the name, the address and the options of a runner, written ``NAME:ADDRESS,option=value,…``."""

    name: str
    address: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse a text that is NAME, NAME:DETAILS (for a runner that accepts details), or module:object."""
        name, _, details = text.partition(":")
        if not (name in RUNNERS.built_in or (name in RUNNERS and accepts_place(RUNNERS.get(name)))):
            return cls(text)
        address, options = "", dict[str, str]()
        for part in filter(None, (one.strip() for one in details.split(","))):
            option, equals, value = part.partition("=")
            if not equals and address:
                raise UsageError(f"--on {name}: has two addresses, {address} and {part}; write options as option=value")
            if not equals:
                address = part
            elif option in options or not option or not value:
                why = "is given twice" if option in options else "must be written option=value"
                raise UsageError(f"--on {name}: {part!r} {why}")
            else:
                options[option] = value
        return cls(name, address, options)

    def check(self, known: tuple[str, ...]) -> None:
        """Raise `UsageError` if there is an option that is not in `known`; the message suggests a similar one."""
        for option in self.options:
            if option not in known:
                raise UsageError(f"--on {self.name}: has no option {option!r}: {list_choices(option, known)}")

    def parse_number(self, option: str, default: float) -> float:
        """Return the value of an option as a number of at least 0; `default` if the option is not given."""
        text = self.options.get(option)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e6:
            raise UsageError(f"--on {self.name}: {option} must be a number, got {text!r}")
        return value

    def parse_count(self, option: str, default: int) -> int:
        """Return the value of an option as a whole number above 0; `default` if the option is not given."""
        text = self.options.get(option)
        if text is None:
            return default
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"--on {self.name}: {option} must be a whole number above 0, got {text!r}")
        return int(text)

    def parse_memory(self) -> int | None:
        """Return the bytes of the option ``memory``, such as 8GB; None if the option is not given."""
        text = self.options.get("memory")
        if text is None:
            return None
        found = _SIZE.fullmatch(text)
        if not found:
            raise UsageError(f"--on {self.name}: memory must be a size such as 8GB, got {text!r}")
        unit = found[2].lower()
        return int(float(found[1]) * _UNITS[unit if unit.endswith("b") or not unit else f"{unit}b"])

    def resources_per_training(self, threads: int = 1, device: str = "cpu", ranks: int = 1) -> Needs:
        """Return the resources of one training, from the options ``cpus``, ``gpus`` and ``memory``.

        By default a training gets a core for each thread of each of its `ranks` (processes), and on the device cuda a
        GPU for each rank. With fractions, several trainings share a GPU or a core.
        """
        cpus = self.parse_number("cpus", float(threads * ranks))
        gpus = self.parse_number("gpus", float(ranks * (device == "cuda")))
        return Needs(cpus, gpus, self.parse_memory())


def accepts_place(make: MakeRunner) -> bool:
    """Return whether `make`, which builds a runner, accepts a `Place` (address and options after the name)."""
    return "place" in inspect.signature(make).parameters


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
