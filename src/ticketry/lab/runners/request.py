"""Build and read requests to workers and the workers' answers; both are JSON text and contain no code."""

from __future__ import annotations

import functools
import json
import os
import platform
import socket
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ticketry import errors
from ticketry.errors import DataError, RunnerError, StoreError, TicketryError
from ticketry.files import parse_json
from ticketry.lab.environment import processor_name
from ticketry.lab.runners.runner import Order
from ticketry.lab.store.store import NUMERICS
from ticketry.lab.training.job import Work
from ticketry.lab.training.segment import Segment, check_task
from ticketry.tasks.task import Spec
from ticketry.version import __version__

VERSION = 2
"""Version of requests and answers."""
_ENVIRONMENT = "TICKETRY_"
"""Prefix of environment variables that are sent with a request, except those in `_PER_MACHINE`."""
_PER_MACHINE = ("TICKETRY_CACHE",)
"""Variables that are not sent, because they name folders of the driver's machine."""


@dataclass(frozen=True)
class Request:
    """Asks a worker to train a segment, in a form that a process on another machine can read.

    The driver is the process that sends the request.
    """

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
    """What is needed to build the task: name, model, options."""
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

    def text(self) -> str:
        """Return the request as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Request:
        """Parse a request; raise `RunnerError` if it is invalid or of another version."""
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
        """Raise `RunnerError` if versions or processor here differ from the driver's, so that results might differ."""
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
    """Build the request to train a segment.

    Args:
        order: settings that apply to all trainings of the lab.
        segment: what to train.
        keep: steps whose states are also stored.
        driver: unique name of the driver.

    Raises:
        TaskError: if other processes cannot build the segment's task.
    """
    task = segment.task
    check_task(task.name, task.spec)
    assert task.spec is not None
    return Request(
        version=VERSION,
        driver=driver,
        key=segment.key,
        store=order.store,
        data=None if order.data is None else str(order.data),
        checkpoint_seconds=order.checkpoint_seconds,
        measure=order.measure,
        weights=order.weights,
        task={"name": task.spec.name, "model": task.spec.model, "options": [list(one) for one in task.spec.options]},
        segment=segment.describe(),
        modules=segment.modules(),
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
    """Return an answer of some kind as JSON text, with further entries `more`.

    Kinds: ``done`` (with the work done), ``failed`` (with the error), ``stopped`` (on the driver's request) and
    ``left`` (because a signal ended the worker).
    """
    return json.dumps({"version": VERSION, "kind": kind, "worker": worker_name(), **more})


def answer_done(work: Work) -> str:
    """Return the answer for a finished training, with the amount of `work` that was done."""
    return build_answer("done", work=asdict(work))


def answer_failed(error: Exception) -> str:
    """Return the answer for a failed training; it has class and arguments of a ticketry error, else a traceback."""
    args = [part for part in error.args if isinstance(part, (str, int, float, bool, type(None)))]
    ours = isinstance(error, TicketryError) and getattr(errors, type(error).__name__, None) is type(error)
    if ours and len(args) == len(error.args):
        return build_answer("failed", error=type(error).__name__, args=args)
    text = f"training failed in the worker {worker_name()}:\n{''.join(traceback.format_exception(error))}"
    return build_answer("failed", error=RunnerError.__name__, args=[text])


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
