"""Parse and check ``--on`` and ``runner=``, which choose where a lab trains, before anything is trained."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from ticketry.errors import UsageError
from ticketry.lab.runners.executor_runner import ExecutorRunner, Pool
from ticketry.lab.runners.runner import RUNNERS, OnEvent, Place, Runner, accepts_place, default_workers

MANY = 1000
"""Number of segments that may be sent to workers on other machines at once; a scheduler there decides when to train."""
IN_PROCESS, PROCESSES = "in-process", "processes"


@dataclass(frozen=True)
class Choice:
    """Describes the chosen runner (the object that trains segments), which is built when training begins."""

    name: str
    workers: int
    """Number of trainings side by side; 0 if this process trains them one after another."""
    elsewhere: bool
    """Whether workers may be on other machines, which must be able to build the task by its name."""
    make: Callable[[OnEvent], Runner]
    """Builds the runner, given a listener for events."""


def choose_runner(runner: str | Executor, workers: int) -> Choice:
    """Check `runner` and return it as a `Choice`.

    If `runner` is empty, segments train in local processes if `workers` is above 0, and otherwise in this process.
    """
    if isinstance(runner, Executor):
        if workers:
            raise UsageError("an executor knows its number of workers: leave out workers")
        return Choice(
            type(runner).__name__,
            MANY,
            True,
            lambda on_event: ExecutorRunner(Pool(runner), Place("executor"), on_event),
        )
    place = Place.parse(runner) if runner else Place(PROCESSES if workers else IN_PROCESS)
    found = RUNNERS.get(place.name)
    if place.name in (IN_PROCESS, PROCESSES):
        count = _local_worker_count(place, workers)
        return Choice(place.name, count, False, functools.partial(found, count))
    if check := getattr(found, "check", None):
        if workers:
            raise UsageError(f"the runner {place.name} knows its number of workers: leave out workers")
        check(place)
        return Choice(place.name, MANY, True, functools.partial(found, MANY, place=place))
    more = {"place": place} if accepts_place(found) else {}
    make = functools.partial(_build_custom_runner, place.name, functools.partial(found, workers, **more))
    elsewhere = isinstance(found, type) and issubclass(found, ExecutorRunner)
    return Choice(place.name, workers or (MANY if elsewhere else 0), elsewhere, make)


def _local_worker_count(place: Place, workers: int) -> int:
    place.check(())
    if place.name == IN_PROCESS:
        if place.address:
            raise UsageError("the runner in-process takes no details")
        return workers
    if not place.address:
        return workers or default_workers()
    if workers:
        raise UsageError(f"--on {place.name}:{place.address} sets the number of workers: leave out --workers")
    if not place.address.isdecimal() or not 1 <= int(place.address) <= 10_000:
        raise UsageError(f"--on processes:N needs a number of at least 1, got {place.address!r}")
    return int(place.address)


def _build_custom_runner(name: str, make: Callable[[OnEvent], Runner], on_event: OnEvent) -> Runner:
    """Build a user-defined runner; raise `UsageError` if it takes other arguments or lacks a method of `Runner`."""
    try:
        inspect.signature(make).bind(on_event)
    except TypeError as error:
        raise UsageError(
            f"the runner {name} cannot be called with (workers, on_event), nor with (…, place): {error}"
        ) from None
    runner = make(on_event)
    if missing := [part for part in ("submit", "stop", "close") if not hasattr(runner, part)]:
        raise UsageError(f"the runner {name} returned {runner!r:.80}, which has no method {missing[0]}")
    return runner
