"""What trains segments: the protocol of runners, what they are asked, what they tell, and which there are."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from ticketry.errors import InterruptedTrainingError, NotStoredError, UsageError
from ticketry.lab.runners.stopping import asked
from ticketry.lab.training.job import Watch, Work
from ticketry.lab.training.segment import Segment
from ticketry.registry import Registry


@dataclass(frozen=True)
class Order:
    """Where and how segments are trained: what all of a lab's have in common."""

    store: str
    """Its address, by which a worker opens it: see `lab.store.open_store`."""
    data: Path | None
    checkpoint_seconds: float
    measure: bool = True
    """Whether metrics are asked for, or the state at the end alone."""
    weights: bool = False
    """Whether the result is known, and weights that a bundle left out of it are wanted."""
    ahead: int = 0
    """Steps that wait for this segment, beside its own: where there are more segments than workers, most go first."""


@dataclass(frozen=True)
class Event:
    """Progress of a segment: kind is started, waiting, progress, stored (asked to stop), lost (its worker; another goes
    on from the step), finished, cached, or aside (finished and no new result: in another store for its time, or weights
    that a bundle left out)."""

    kind: str
    key: str
    first: int
    step: int
    last: int
    label: str = ""


OnEvent = Callable[[Event], None]


class Runner(Protocol):
    """Something that trains segments. Made by its class or function with ``(workers, on_event)``, see `RUNNERS`."""

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        """Begin, or queue, the work; the future holds what was really done."""

    def stop(self) -> None:
        """Ask all training to store its state and stop; returns when it has."""

    def close(self) -> None:
        """Release processes."""


class ReportingWatch(Watch):
    """A watch that sends events and obeys a stop, and signals."""

    def __init__(self, checkpoint_seconds: float, send: OnEvent, stopped: Callable[[], bool] = lambda: False) -> None:
        super().__init__(checkpoint_seconds)
        self._send, self._stopped = send, stopped

    def progress(self, segment: Segment, step: int) -> None:
        self._send(Event("progress", segment.key, segment.first, step, segment.last))

    def waiting(self, segment: Segment) -> None:
        self._send(Event("waiting", segment.key, segment.first, segment.first, segment.last))

    def stored(self, segment: Segment, step: int) -> None:
        self._send(Event("stored", segment.key, segment.first, step, segment.last))

    def stop_asked(self) -> bool:
        return bool(asked()) or self._stopped()


def _makes_a_runner(name: str, found: Any) -> MakeRunner:
    if not callable(found):
        raise UsageError(f"it is a {type(found).__name__}, and a runner is a class, or a function that makes one")
    return cast(MakeRunner, found)


MakeRunner = Callable[..., Runner]
"""Of the number of workers, and of what is to be told of progress; and of the `Place`, if it takes three things."""
RUNNERS: Registry[MakeRunner] = Registry(
    "runner",
    "ticketry.runners",
    {
        "in-process": "ticketry.lab.runners.in_process:InProcess",
        "processes": "ticketry.lab.runners.processes:Processes",
        "ray": "ticketry.lab.runners.ray_tasks:RayRunner",
        "dask": "ticketry.lab.runners.dask_tasks:DaskRunner",
        "slurm": "ticketry.lab.runners.slurm_jobs:SlurmRunner",
    },
    make=_makes_a_runner,
)


class Nothing:
    """A runner that trains nothing, and makes nothing again that a bundle left out."""

    def __init__(self) -> None:
        self.wanted: list[tuple[str, int]] = []
        """Trainings whose weights were asked for and are not there: trajectory and step."""
        self.asked: list[tuple[Segment, tuple[int, ...]]] = []
        """Segments that were to be trained, with the steps on the way whose states were to be kept."""

    def remake(self, digest: str, trajectory: str, step: int) -> None:
        """Takes the place of `Store.remake`."""
        self.wanted.append((trajectory, step))
        raise NotStoredError(f"{trajectory}@{step}: a bundle left the weights {digest[:12]}… out")

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        self.asked.append((segment, keep))
        raise NotStoredError(f"{segment.key}: steps {segment.first} to {segment.last} are not in the store")

    def stop(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is held."""


def raise_cause(futures: Iterable[concurrent.futures.Future[Any]]) -> None:
    """Raise what went wrong first, of futures that are done; that others were then stopped is a consequence."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, InterruptedTrainingError)):
        raise error
