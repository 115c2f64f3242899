"""Where to train, as ``--on`` and ``runner=`` write it: NAME, or NAME:DETAILS; and what details may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ticketry.choices import list_choices
from ticketry.errors import UsageError

_UNITS = {"": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?b?)", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """A runner's name, and the details that stand behind it: ADDRESS,option=value,…"""

    name: str
    address: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, details: str) -> Place:
        """
        Raises:
            UsageError: for an option that is given twice or has no value, or a second address.
        """
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
        """Raise `UsageError` for an option that is none of the known ones, with the nearest."""
        for option in self.options:
            if option not in known:
                raise UsageError(f"--on {self.name}: has no option {option!r}: {list_choices(option, known)}")

    def number(self, option: str, default: float | None = None) -> float | None:
        """An option that is a number of at least 0, or the default."""
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
        """An option that is a whole number above 0, or the default."""
        text = self.options.get(option)
        if text is None:
            return default
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"--on {self.name}: {option} is a whole number above 0, not {text!r}")
        return int(text)

    def bytes(self, option: str = "memory") -> int | None:
        """An option that is a size such as 8GB, or None."""
        text = self.options.get(option)
        if text is None:
            return None
        found = _SIZE.fullmatch(text)
        if not found:
            raise UsageError(f"--on {self.name}: {option} is a size such as 8GB, not {text!r}")
        unit = found[2].lower()
        return int(float(found[1]) * _UNITS[unit if unit.endswith("b") or not unit else f"{unit}b"])


@dataclass(frozen=True)
class Needs:
    """What one training takes of a worker."""

    cpus: float = 1
    gpus: float = 0
    memory: int | None = None
    """Bytes."""


RESOURCES = ("cpus", "gpus", "memory")
"""Options of a place that say what one training takes."""


def needs_of(place: Place, threads: int, device: str, ranks: int = 1) -> Needs:
    """What one training takes: by default a core for each thread of each of its ranks, and a GPU for each if it trains
    on them.

    A part of a GPU (``gpus=0.25``) lets several networks share it, a part of a core several one core.
    """
    cpus = place.number("cpus", float(threads * ranks))
    gpus = place.number("gpus", float(ranks * (device == "cuda")))
    assert cpus is not None
    assert gpus is not None
    return Needs(cpus, gpus, place.bytes())
