"""Build requests to workers, carry them out in a worker, and return answers; both are JSON text and contain no code.

The worker's process belongs to Ray, Dask, Slurm or another executor. A signal to end the process is recorded during a
training. When the state is stored, the signal is sent to the process again, which then ends as its scheduler expects.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ticketry import errors
from ticketry.errors import DataError, InterruptedTrainingError, RunnerError, StoreError, TicketryError
from ticketry.files import parse_json
from ticketry.lab.process import Stopped, keep_freed_memory, processor_name, record_signals
from ticketry.lab.runners.runner import Event, Order, ReportingWatch
from ticketry.lab.store.live import messages_at
from ticketry.lab.store.store import NUMERICS
from ticketry.lab.training import execute as training
from ticketry.lab.training.job import Watch, Work
from ticketry.lab.training.segment import Segment, require_spec
from ticketry.tasks import catalogue
from ticketry.tasks.task import Spec, Task
from ticketry.version import __version__

VERSION = 2
"""Version of requests and answers."""
_ENVIRONMENT = "TICKETRY_"
"""Prefix of environment variables that are sent with a request, except those in `_PER_MACHINE`."""
_PER_MACHINE = ("TICKETRY_CACHE",)
"""Variables that are not sent, because they name folders of the driver's machine."""


@dataclass(frozen=True)
class Request:
    """Describes a segment (a range of training steps) that a worker shall train for the sending process, the driver."""

    version: int
    driver: str
    """Unique name of the driver; it is part of the names of messages in the store, see `store.live`."""
    key: str
    store: str
    data: str | None
    checkpoint_seconds: float
    measure: bool
    weights: bool
    task: dict[str, Any]
    """Name, model and options of the task, from which it is built."""
    segment: dict[str, Any]
    """Description of the segment, see `Segment.describe`."""
    modules: list[str]
    """Names of modules that define changes to the training (variants); the worker imports them."""
    keep: list[int]
    folders: list[str]
    """The driver's module search path."""
    environment: dict[str, str]
    made_with: dict[str, str]
    """Versions and hardware of the driver, see `describe_versions`."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Request:
        """Parse the JSON text of a request; raise `RunnerError` if it is invalid or has another format version."""
        try:
            values = parse_json(text)
        except ValueError as error:
            raise RunnerError(f"the worker {worker_name()} got a request of another program: {error}") from None
        if values.get("version") != VERSION:
            raise RunnerError(
                f"the worker {worker_name()} has ticketry {__version__}, which reads requests of version {VERSION}, and"
                f" this one is of version {values.get('version')}: install the same ticketry on both"
            )
        return cls(**values)

    @property
    def spec(self) -> Spec:
        """Name, model and options of the task."""
        options = tuple((name, value) for name, value in self.task["options"])
        return Spec(self.task["name"], self.task["model"], options)

    def check_worker(self) -> None:
        """Raise `RunnerError` if worker and driver have different versions or processors; results might then differ."""
        own = describe_versions(self.made_with["device"])
        for what, wanted in self.made_with.items():
            if own[what] != wanted:
                name, advice = _DIFFERENCES[what]
                raise RunnerError(
                    f"the worker {worker_name()} has {name} {own[what]}, and the search's own process {wanted}, so its"
                    f" results could have other bits than their keys stand for: {advice}"
                )


_SAME = "install the same there"
_DIFFERENCES = {
    "ticketry": ("ticketry", _SAME),
    "numerics": ("ticketry's numbers of version", _SAME),
    "torch": ("torch", _SAME),
    "processor": (
        "a processor of the kind",
        "choose workers of one kind, and begin the search on one of them, or set ATEN_CPU_CAPABILITY=avx2 for all of"
        " them",
    ),
    "device": ("the device", "choose workers of one kind"),
}


@functools.lru_cache(maxsize=4)
def describe_versions(device: str) -> dict[str, str]:
    """Return versions and the kind of processor or GPU; these affect results, but are not part of a segment's key."""
    if device == "cuda":
        kind = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    else:
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "ticketry": __version__,
        "numerics": str(NUMERICS),
        "torch": torch.__version__,
        "processor": kind,
        "device": device,
    }


def worker_name() -> str:
    """Return the host name and process id of this process."""
    return f"{socket.gethostname()} (process {os.getpid()})"


def build_request(order: Order, segment: Segment, keep: tuple[int, ...], driver: str) -> Request:
    spec = require_spec(segment.task)
    return Request(
        version=VERSION,
        driver=driver,
        key=segment.key,
        store=order.store,
        data=None if order.data is None else str(order.data),
        checkpoint_seconds=order.checkpoint_seconds,
        measure=order.measure,
        weights=order.weights,
        task={"name": spec.name, "model": spec.model, "options": [list(one) for one in spec.options]},
        segment=segment.describe(),
        modules=segment.imported_modules(),
        keep=list(keep),
        folders=_absolute_paths(tuple(sys.path), os.getcwd()),
        environment={
            name: value
            for name, value in os.environ.items()
            if name.startswith(_ENVIRONMENT) and name not in _PER_MACHINE
        },
        made_with=describe_versions(segment.arithmetic.device),
    )


@functools.lru_cache(maxsize=4)
def _absolute_paths(path: tuple[str, ...], here: str) -> list[str]:
    return [str(Path(here, folder).resolve()) for folder in path]


# -- answers -----------------------------------------------------------------------------------------------------------


def build_answer(kind: str, **more: Any) -> str:
    """Return a worker's answer as JSON text, with its `kind` and the further entries `more`.

    Kinds: ``done`` (with the work done), ``failed`` (with the error), ``stopped`` (on the driver's request) and
    ``left`` (because a signal ended the worker).
    """
    return json.dumps({"version": VERSION, "kind": kind, "worker": worker_name(), **more})


def parse_answer(text: object) -> dict[str, Any]:
    """Parse an answer; raise `RunnerError` if it is not an answer of this version."""
    try:
        found = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise RunnerError(f"a worker returned an answer of another program: {text!r:.200}")
    return found


def rebuild_error(found: dict[str, Any]) -> TicketryError:
    """Return the error that a ``failed`` answer describes; errors about stores and data also name the worker."""
    kind = getattr(errors, str(found["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, TicketryError)):
        return RunnerError(str(found["args"]))
    args = list(found["args"])
    if issubclass(kind, (StoreError, DataError)) and args and isinstance(args[0], str):
        args[0] = f"{args[0]} (the worker {found['worker']})"
    error: TicketryError = kind(*args)
    return error


# -- in a worker -------------------------------------------------------------------------------------------------------


POLL_SECONDS = 1.0
"""Seconds between two reports of progress, and between two checks for the driver's request to stop."""

_one_at_a_time = threading.Lock()
"""Lock that lets only one thread of the process train, because a process has one thread count and random state."""


def execute(
    request: str,
    leaving: Callable[[], bool] = lambda: False,
    pass_signal_on: Callable[[int], object] = signal.raise_signal,
) -> str:
    """Train the segment of a request and return an answer, also if the training fails; see `build_answer`.

    Args:
        leaving: returns whether this worker has to end; needed for schedulers that do not send a signal.
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
        request = Request.parse(text)
        request.check_worker()
        watch = _Watch(request, leaving)
        if watch.is_stop_requested():
            return build_answer("stopped", message="stopped before it began")
        return build_answer("done", work=asdict(_train_requested_segment(request, watch)))
    except Stopped:
        return build_answer("left", number=number())
    except InterruptedTrainingError as error:
        if watch is None or watch.stopped_by_driver or not (number() or leaving()):
            return build_answer("stopped", message=str(error))
        return build_answer("left", number=number())
    except Exception as error:
        plain = all(isinstance(part, (str, int, float, bool, type(None))) for part in error.args)
        if plain and isinstance(error, TicketryError) and getattr(errors, type(error).__name__, None) is type(error):
            return build_answer("failed", error=type(error).__name__, args=list(error.args))
        message = f"training failed in the worker {worker_name()}:\n{traceback.format_exc()}"
        return build_answer("failed", error=RunnerError.__name__, args=[message])


def _train_requested_segment(request: Request, watch: Watch) -> Work:
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
        super().__init__(request.checkpoint_seconds, self._report_event, leaving)
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

    def _report_event(self, event: Event) -> None:
        if event.kind == "progress":
            if time.monotonic() < self._next_report:
                return
            self._next_report = time.monotonic() + POLL_SECONDS
        self._live.report(event.key, {"kind": event.kind, "step": event.step, "worker": worker_name()})
