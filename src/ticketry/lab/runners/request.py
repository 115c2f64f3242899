"""What a worker elsewhere is asked and answers: plain text, so that it goes through any channel and loads no code."""

from __future__ import annotations

import functools
import json
import os
import platform
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ticketry import errors
from ticketry.errors import DataError, RunnerError, StoreError, TicketryError
from ticketry.files import parse_json
from ticketry.lab.environment import processor
from ticketry.lab.runners.runner import Order
from ticketry.lab.store.store import NUMERICS
from ticketry.lab.training.job import Work
from ticketry.lab.training.segment import Segment, check_task
from ticketry.tasks.task import Spec
from ticketry.version import __version__

VERSION = 2
"""Of the form of requests and answers."""
_ENVIRONMENT = "TICKETRY_"
"""Variables of the environment that begin so go with a request, but for `_OF_ONE_MACHINE`."""
_OF_ONE_MACHINE = ("TICKETRY_CACHE",)
"""A folder on the driver's disk. Where a worker may write is for its own machine to say: the driver's folder might not
be there, be another user's, or be one on a network that many workers would fill at once."""


@dataclass(frozen=True)
class Request:
    """A segment to train, in a form that another process, on another machine, can take."""

    version: int
    driver: str
    """Whose files in the store tell of progress and of a stop, see `store.live`."""
    key: str
    store: str
    data: str | None
    checkpoint_seconds: float
    measure: bool
    weights: bool
    task: dict[str, Any]
    """How another process makes the task: name, model, options."""
    segment: dict[str, Any]
    """Its description."""
    modules: list[str]
    """Where its variants of training are defined."""
    keep: list[int]
    folders: list[str]
    """Where the driver looks for modules."""
    environment: dict[str, str]
    made_with: dict[str, str]
    """What the driver has of all that decides bits, see `made_with`."""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Request:
        """
        Raises:
            RunnerError: if it is of another version than this worker's, or none at all; it names the worker.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise RunnerError(f"the worker {here()} got a request that is none of ticketry's: {error}") from None
        if values.get("version") != VERSION:
            raise RunnerError(
                f"the worker {here()} has ticketry {__version__}, which reads requests of version {VERSION}, and this"
                f" one is of version {values.get('version')}: install the same ticketry on both"
            )
        return cls(**values)

    @property
    def spec(self) -> Spec:
        options = tuple((name, value) for name, value in self.task["options"])
        return Spec(self.task["name"], self.task["model"], options)

    def check_worker(self) -> None:
        """
        Raises:
            RunnerError: if this worker would give other bits than the segment's key stands for, or cannot tell; it
                names the worker.
        """
        own = made_with(self.made_with["device"])
        for what, wanted in self.made_with.items():
            if own[what] != wanted:
                raise RunnerError(
                    f"the worker {here()} has {_NAMES[what]} {own[what]}, and the search's own process {wanted}, so its"
                    f" results could have other bits than their keys stand for: {_ADVICE[what]}"
                )


_NAMES = {
    "ticketry": "ticketry",
    "numerics": "ticketry's numbers of version",
    "torch": "torch",
    "processor": "a processor of the kind",
    "device": "the device",
}
_SAME = "install the same there"
_ADVICE = {
    "ticketry": _SAME,
    "numerics": _SAME,
    "torch": _SAME,
    "processor": "choose workers of one kind, and begin the search on one of them, or set ATEN_CPU_CAPABILITY=avx2 for"
    " all of them",
    "device": "choose workers of one kind",
}


@functools.lru_cache(maxsize=4)
def made_with(device: str) -> dict[str, str]:
    """What decides bits beside a segment's key, of this process: versions, and the kind of processor."""
    return {
        "ticketry": __version__,
        "numerics": str(NUMERICS),
        "torch": torch.__version__,
        "processor": _kind(device),
        "device": device,
    }


def _kind(device: str) -> str:
    """Processors of one kind run the same kernels of torch; GPUs of one name."""
    if device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def here() -> str:
    """This worker, in words: host and process."""
    return f"{socket.gethostname()} (process {os.getpid()})"


def request_of(order: Order, segment: Segment, keep: tuple[int, ...], driver: str) -> Request:
    """The request for a segment.

    Raises:
        TaskError: if no other process can make its task.
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
        folders=_folders(tuple(sys.path), os.getcwd()),
        environment={name: value for name, value in os.environ.items() if _travels(name)},
        made_with=made_with(segment.arithmetic.device),
    )


def _travels(variable: str) -> bool:
    return variable.startswith(_ENVIRONMENT) and variable not in _OF_ONE_MACHINE


@functools.lru_cache(maxsize=4)  # asked for by every request
def _folders(path: tuple[str, ...], here: str) -> list[str]:
    return [str(Path(here, folder).resolve()) for folder in path]


# -- answers -----------------------------------------------------------------------------------------------------------


def answer(kind: str, **more: Any) -> str:
    """``done`` (with work), ``failed`` (with an error), ``stopped`` as asked, or ``left``: the worker has to end."""
    return json.dumps({"version": VERSION, "kind": kind, "worker": here(), **more})


def done(work: Work) -> str:
    return answer("done", work=asdict(work))


def failed(error: Exception, trace: Callable[[], str]) -> str:
    """An error of ours as its class and what it was made with; another as the text that `trace` gives."""
    told = [part for part in error.args if isinstance(part, (str, int, float, bool, type(None)))]
    ours = isinstance(error, TicketryError) and getattr(errors, type(error).__name__, None) is type(error)
    if ours and len(told) == len(error.args):
        return answer("failed", error=type(error).__name__, args=told)
    text = f"training failed in the worker {here()}:\n{trace()}"
    return answer("failed", error=RunnerError.__name__, args=[text])


def read_answer(text: object) -> dict[str, Any]:
    """
    Raises:
        RunnerError: for what no worker of this version answers.
    """
    try:
        found = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise RunnerError(f"a worker gave an answer that is none of ticketry's: {text!r:.200}")
    return found


def error_of(found: dict[str, Any]) -> TicketryError:
    """The error in an answer of the kind ``failed``."""
    kind = getattr(errors, str(found["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, TicketryError)):
        return RunnerError(str(found["args"]))
    args = list(found["args"])
    if issubclass(kind, (StoreError, DataError)) and args and isinstance(args[0], str):  # of that machine's disk
        args[0] = f"{args[0]} (the worker {found['worker']})"
    made: TicketryError = kind(*args)
    return made
