"""Which runner a lab trains on: ``--on`` and ``runner=`` are parsed and checked before anything is trained."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

from ticketry.choices import list_choices
from ticketry.errors import UsageError
from ticketry.lab.runners.events import OnEvent
from ticketry.lab.runners.runner import RUNNERS, MakeRunner, Runner

MANY = 1000
"""Segments requested at once from workers elsewhere; the scheduler decides how many of them train."""
IN_PROCESS, PROCESSES = "in-process", "processes"
RESOURCES = ("cpus", "gpus", "memory")
"""Options of a place that say what one training needs."""
_UNITS = {"": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?b?)", re.IGNORECASE)


@dataclass(frozen=True)
class Needs:
    """Resources of one training."""

    cpus: float = 1
    gpus: float = 0
    memory: int | None = None
    """Bytes."""


@dataclass(frozen=True)
class Place:
    """Name of a runner and its details, ``ADDRESS,option=value,…``."""

    name: str
    address: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse NAME, NAME:DETAILS of a runner that has details, or module:object.

        Raises:
            UsageError: for a repeated option, an option without a value, or a second address.
        """
        name, _, details = text.partition(":")
        if not (name in RUNNERS.built_in or (name in RUNNERS and _has_details(RUNNERS.get(name)))):
            return cls(text)
        address, options = "", dict[str, str]()
        for part in filter(None, (one.strip() for one in details.split(","))):
            option, equals, value = part.partition("=")
            if not equals and address:
                raise UsageError(f"--on {name}: names two addresses, {address} and {part}: an option is option=value")
            if not equals:
                address = part
            elif option in options or not option or not value:
                why = "is given twice" if option in options else "is written option=value"
                raise UsageError(f"--on {name}: {part!r} {why}")
            else:
                options[option] = value
        return cls(name, address, options)

    def check(self, known: tuple[str, ...]) -> None:
        """Raise `UsageError` for an unknown option, with the nearest known one."""
        for option in self.options:
            if option not in known:
                raise UsageError(f"--on {self.name}: has no option {option!r}: {list_choices(option, known)}")

    def number(self, option: str, default: float) -> float:
        """Return an option as a number of at least 0."""
        text = self.options.get(option)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e6:
            raise UsageError(f"--on {self.name}: {option} is a number, not {text!r}")
        return value

    def count(self, option: str, default: int) -> int:
        """Return an option as a whole number above 0."""
        text = self.options.get(option)
        if text is None:
            return default
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"--on {self.name}: {option} is a whole number above 0, not {text!r}")
        return int(text)

    def bytes(self, option: str = "memory") -> int | None:
        """Return an option that is a size such as 8GB, or None."""
        text = self.options.get(option)
        if text is None:
            return None
        found = _SIZE.fullmatch(text)
        if not found:
            raise UsageError(f"--on {self.name}: {option} is a size such as 8GB, not {text!r}")
        unit = found[2].lower()
        return int(float(found[1]) * _UNITS[unit if unit.endswith("b") or not unit else f"{unit}b"])

    def needs(self, threads: int = 1, device: str = "cpu", ranks: int = 1) -> Needs:
        """Return the resources of one training: by default a core for each thread of each rank, and a GPU for each rank
        that trains on one. Fractions let several trainings share a GPU or a core."""
        cpus = self.number("cpus", float(threads * ranks))
        gpus = self.number("gpus", float(ranks * (device == "cuda")))
        return Needs(cpus, gpus, self.bytes())


@dataclass(frozen=True)
class Choice:
    """A checked runner, which is built when something is trained for the first time."""

    name: str
    workers: int
    """Trainings side by side; 0 for one after the other."""
    elsewhere: bool
    """Whether workers may be on other machines, so that a task needs a name."""
    make: Callable[[OnEvent], Runner]


def choose_runner(runner: str | Executor, workers: int) -> Choice:
    """Check a runner and its details.

    Args:
        runner: NAME or NAME:DETAILS, an executor, or an empty text for in-process or, with workers, processes.
        workers: number of local processes; 0 if the runner knows its own number.

    Raises:
        UsageError: for an unknown runner or an invalid detail.
        MissingExtraError: if the packages of a runner are not installed.
    """
    if isinstance(runner, Executor):
        if workers:
            raise UsageError("an executor knows how many workers it has: leave workers away")
        return Choice(type(runner).__name__, MANY, True, functools.partial(_wrap_executor, runner))
    place = Place.parse(runner) if runner else Place(PROCESSES if workers else IN_PROCESS)
    found = RUNNERS.get(place.name)
    if place.name in (IN_PROCESS, PROCESSES):
        count = _local_workers(place, workers)
        return Choice(place.name, count, False, functools.partial(found, count))
    if check := getattr(found, "check", None):
        if workers:
            raise UsageError(f"the runner {place.name} says itself how many workers it has: leave workers away")
        check(place)
        return Choice(place.name, MANY, True, functools.partial(found, MANY, place=place))
    more = {"place": place} if _has_details(found) else {}
    make = functools.partial(_make_custom, place.name, functools.partial(found, workers, **more))
    elsewhere = _runs_on_executor(found)
    return Choice(place.name, workers or (MANY if elsewhere else 0), elsewhere, make)


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _local_workers(place: Place, workers: int) -> int:
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


def _has_details(make: MakeRunner) -> bool:
    return "place" in inspect.signature(make).parameters


def _runs_on_executor(found: MakeRunner) -> bool:
    from ticketry.lab.runners.executor_runner import ExecutorRunner

    return isinstance(found, type) and issubclass(found, ExecutorRunner)


def _wrap_executor(executor: Executor, on_event: OnEvent) -> Runner:
    from ticketry.lab.runners.executor_runner import ExecutorRunner, Pool

    return ExecutorRunner(Pool(executor), Place("executor"), on_event)


def _make_custom(name: str, make: Callable[[OnEvent], Runner], on_event: OnEvent) -> Runner:
    """Build a user-defined runner; `UsageError` if its arguments or its methods are not those of a runner."""
    try:
        inspect.signature(make).bind(on_event)
    except TypeError as error:
        raise UsageError(f"the runner {name} is not made of (workers, on_event), nor (…, place): {error}") from None
    runner = make(on_event)
    if missing := [part for part in ("submit", "stop", "close") if not hasattr(runner, part)]:
        raise UsageError(f"{runner!r:.80}, which the runner {name} makes, is no runner: it has no {missing[0]}")
    return runner
