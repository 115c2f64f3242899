"""Parse the text of ``--on`` and ``runner=``: the name of a runner, an address and options."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ticketry.choices import list_choices
from ticketry.errors import UsageError
from ticketry.lab.runners.runner import RUNNERS, MakeRunner

RESOURCES = ("cpus", "gpus", "memory")
"""Names of the options that set the resources of one training."""
_UNITS = {"": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?b?)", re.IGNORECASE)


@dataclass(frozen=True)
class Needs:
    """Numbers of cores and GPUs, and memory, that one training needs."""

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
        """Parse a text that is NAME, NAME:DETAILS (for a runner that accepts details), or module:object.

        Raises:
            UsageError: for a repeated option, an option without a value, or a second address.
        """
        name, _, details = text.partition(":")
        if not (name in RUNNERS.built_in or (name in RUNNERS and takes_details(RUNNERS.get(name)))):
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

    def parse_size(self, option: str = "memory") -> int | None:
        """Return the bytes for an option such as ``memory=8GB``; None if the option is not given."""
        text = self.options.get(option)
        if text is None:
            return None
        found = _SIZE.fullmatch(text)
        if not found:
            raise UsageError(f"--on {self.name}: {option} must be a size such as 8GB, got {text!r}")
        unit = found[2].lower()
        return int(float(found[1]) * _UNITS[unit if unit.endswith("b") or not unit else f"{unit}b"])

    def resources_per_training(self, threads: int = 1, device: str = "cpu", ranks: int = 1) -> Needs:
        """Return the resources of one training, from the options ``cpus``, ``gpus`` and ``memory``.

        By default a training gets a core for each thread of each of its `ranks` (processes), and on the device cuda a
        GPU for each rank. With fractions, several trainings share a GPU or a core.
        """
        cpus = self.parse_number("cpus", float(threads * ranks))
        gpus = self.parse_number("gpus", float(ranks * (device == "cuda")))
        return Needs(cpus, gpus, self.parse_size())


def takes_details(make: MakeRunner) -> bool:
    """Return whether a runner accepts an address and options after its name."""
    return "place" in inspect.signature(make).parameters


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
