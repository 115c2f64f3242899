"""The runner that a lab is asked to train on: checked as far as can be before anything is asked of it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from ticketry.errors import UsageError
from ticketry.lab.runners.places import Place
from ticketry.lab.runners.runner import RUNNERS, MakeRunner, OnEvent, Runner

MANY = 1000
"""Segments that are asked for at once where workers are elsewhere: as many as there are train."""

IN_PROCESS, PROCESSES = "in-process", "processes"


@dataclass(frozen=True)
class Chosen:
    """How to make a runner."""

    name: str
    workers: int
    """Trainings side by side; 0 for one after the other."""
    elsewhere: bool
    """Whether workers are not processes of this machine, so that only a task that has a name can be trained."""
    make: Callable[[OnEvent], Runner]


def chosen(runner: str | Executor, workers: int) -> Chosen:
    """
    Args:
        runner: NAME or NAME:DETAILS, an executor, or an empty text for in-process or, with workers, processes.
        workers: local processes; 0 where the runner says how many it has.

    Raises:
        UsageError: for a runner, or a detail of one, that is not known or cannot be.
        MissingExtraError: for one whose packages are not installed.
    """
    if isinstance(runner, Executor):
        if workers:
            raise UsageError("an executor knows how many workers it has: leave workers away")
        return Chosen(type(runner).__name__, MANY, True, functools.partial(_on_executor, runner))
    place = place_of(runner) if runner else Place(PROCESSES if workers else IN_PROCESS)
    found = RUNNERS.get(place.name)
    if place.name in (IN_PROCESS, PROCESSES):
        count = _own_workers(place, workers)
        return Chosen(place.name, count, False, functools.partial(found, count))
    if check := getattr(found, "check", None):
        if workers:
            raise UsageError(f"the runner {place.name} says itself how many workers it has: leave workers away")
        check(place)
        return Chosen(place.name, MANY, True, functools.partial(found, MANY, place=place))
    more = {"place": place} if _takes_details(found) else {}
    make = functools.partial(_made, place.name, functools.partial(found, workers, **more))
    if _is_a_cluster(found):  # whose `room` says how many train at once, where nobody else does
        return Chosen(place.name, workers or MANY, True, make)
    return Chosen(place.name, workers, False, make)


def place_of(text: str) -> Place:
    """NAME, NAME:DETAILS of a runner that takes some, or module:object; `UsageError` if details cannot be read."""
    name, _, details = text.partition(":")
    own = name in RUNNERS.built_in or (name in RUNNERS and _takes_details(RUNNERS.get(name)))
    return Place.of(name, details) if own else Place(text)


def _is_a_cluster(found: MakeRunner) -> bool:
    from ticketry.lab.runners.remote import Remote

    return isinstance(found, type) and issubclass(found, Remote)


def _made(name: str, make: Callable[[OnEvent], Runner], on_event: OnEvent) -> Runner:
    """Another's runner; `UsageError` if it cannot be made so, or is none."""
    try:
        inspect.signature(make).bind(on_event)
    except TypeError as error:
        raise UsageError(f"the runner {name} is not made of (workers, on_event), nor (…, place): {error}") from None
    runner = make(on_event)
    if missing := [part for part in ("submit", "stop", "close") if not hasattr(runner, part)]:
        raise UsageError(f"{runner!r:.80}, which the runner {name} makes, is no runner: it has no {missing[0]}")
    return runner


def _takes_details(make: MakeRunner) -> bool:
    return "place" in inspect.signature(make).parameters


def _own_workers(place: Place, workers: int) -> int:
    """Of the local runners, ``processes:N`` among them."""
    place.check(())
    if place.name == IN_PROCESS:
        if place.address:
            raise UsageError("the runner in-process takes nothing behind its name")
        return workers
    if not place.address:
        return workers or default_workers()
    if workers:
        raise UsageError(f"--on {place.name}:{place.address} says how many workers there are: leave --workers away")
    if not place.address.isdecimal() or not 1 <= int(place.address) <= 10_000:
        raise UsageError(f"--on processes:N has a number of at least 1, not {place.address!r}")
    return int(place.address)


def default_workers() -> int:
    """One process for each core this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _on_executor(executor: Executor, on_event: OnEvent) -> Runner:
    from ticketry.lab.runners.cluster import OwnExecutor
    from ticketry.lab.runners.remote import Remote

    return Remote(OwnExecutor(executor), Place("executor"), on_event)
