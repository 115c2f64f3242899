"""Check the values of settings: a word from a list of choices, or a number within bounds.

The choices of a field are those of its `Literal` annotation, which the command line reads too. Numbers have the same
bounds on the command line, in Python, in run files and in campaigns.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, NamedTuple

from ticketry.errors import TicketryError, UsageError

_MOST_NAMES = 4
"""Largest number of names in a message."""


def check_choices(settings: Any, of: str = "") -> None:
    """Check that every field with a `Literal` annotation has one of its values.

    Args:
        settings: instance of a dataclass; fields that are tuples hold any number of words.
        of: prefix of the field's name in the message, such as "recipe: ".

    Raises:
        UsageError: if a value is not among the choices, which the message lists.
    """
    kind: Any = type(settings)
    for name, known in _find_choices(kind).items():
        value = getattr(settings, name)
        for word in value if isinstance(value, tuple) else (value,):
            check_choice(f"{of}{name}", word, known)


def check_choice(what: str, word: object, known: Iterable[Any]) -> None:
    """Raise `UsageError` with the choices unless `word` is one of `known`; `what` precedes the word in the message."""
    if word not in known:
        raise UsageError(f"{what} {word!r} is not known: {list_choices(word, known)}")


def list_choices(word: object, known: Iterable[Any]) -> str:
    """Return the choices as text for a message, with a suggestion for a word that is not among them."""
    names = [str(one) for one in known if one]
    near = did_you_mean(str(word), names).rstrip()
    return f"{', '.join(names)}{near and f'; {near}'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the known names nearest to `name` and a final space; empty if no name is near.

    ``weight`` and ``fc`` are near to ``fc.weight``: the module's or the parameter's name alone.
    """
    known = list(known)
    if longer := [one for one in known if name and (one.startswith(f"{name}.") or one.endswith(f".{name}"))]:
        return f"did you mean {' or '.join(longer[:3])}? "
    cutoff = 0.75 if len(name) > 4 else 0.65  # allows one wrong letter in a short name
    by_lower = {one.lower(): one for one in reversed(known)}  # the first of names that differ only in case
    near = get_close_matches(name.lower(), list(reversed(by_lower)), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(by_lower[one] for one in near)}? " if near else ""


def require_name(name: object, what: str, error: type[TicketryError]) -> str:
    """Return a parameter's name; raise `error`, with a message on `what`, unless it is a string that is not empty."""
    if not isinstance(name, str):
        kind = type(name).__name__
        raise error(f"{what} has the name {name!r:.60}, a {kind}: use names of parameters, such as 'fc.weight'")
    if not name.strip():
        raise error(f"{what} has an empty name, {name!r}: use names of parameters, such as 'fc.weight'")
    return name


def describe_name_difference(given: Iterable[str], known: Iterable[str]) -> str:
    """Return how `given` names differ from the `known` ones, for a message; empty if they are the same names."""
    given, known = list(given), list(known)
    if unknown := [name for name in given if name not in set(known)]:
        unused = [name for name in known if name not in set(given)] or known
        return f"{unknown[0]!r} is not one of them, {did_you_mean(unknown[0], unused)}they are {format_names(known)}"
    missing = [name for name in known if name not in set(given)]
    return f"{missing[0]!r} is missing" if missing else ""


def format_names(names: Iterable[str]) -> str:
    """Return the first few names, for a message."""
    names = list(names)
    return ", ".join(map(str, names[:_MOST_NAMES])) + (", …" if len(names) > _MOST_NAMES else "")


def add_module_names(names: Iterable[str]) -> list[str]:
    """Return names of parameters and of all modules that they are in."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(one[:length]) for one in parts for length in range(1, len(one) + 1)))


@lru_cache(maxsize=256)
def _find_choices(kind: Any) -> dict[str, tuple[Any, ...]]:
    """Return the choices of each `Literal` field of a dataclass, by name."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        kinds = typing.get_args(hint)
        if typing.get_origin(hint) is tuple:
            hint = kinds[0]
        optional = type(None) in kinds
        if optional and len(kinds) == 2:
            hint = next(kind for kind in kinds if kind is not type(None))
        if typing.get_origin(hint) is Literal:
            found[field.name] = (*typing.get_args(hint), *([None] if optional else []))
    return found


# -- numbers -----------------------------------------------------------------------------------------------------------

LEAST, MOST = -(2**63), 2**63 - 1
"""Bounds of every whole number, because run files (TOML) cannot hold larger ones."""


class Bounds(NamedTuple):
    """Range of a number, including both ends."""

    low: float
    high: float
    whole: bool = True


SEED = Bounds(LEAST, MOST)
BOUNDS = {
    "replicates": Bounds(1, 10**6),
    "workers": Bounds(0, 10**4),
    "threads": Bounds(1, 10**4),
    "devices": Bounds(1, 10**4),
    "checkpoint_seconds": Bounds(1e-9, 1e9, whole=False),
    **dict.fromkeys(("seed", "initialisation_seed", "order_seed", "mask_seed"), SEED),
}
"""Bounds of each option, by name."""


def check_bounds(name: str, value: Any, bounds: Bounds | None = None) -> None:
    """Raise `UsageError` unless a number is within its bounds.

    Args:
        name: name of the option, as its user writes it.
        value: value of the option.
        bounds: bounds of the option; by default its entry in `BOUNDS`.
    """
    low, high, whole = bounds or BOUNDS[name]
    kind = "a whole number" if whole else "a number"
    is_number = isinstance(value, int if whole else Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise UsageError(
            f"{name} must be {kind} from {_format_bound(low)} to {_format_bound(high)}, got {format_value(value)}"
        )


def check_each(**values: Any) -> None:
    """Raise `UsageError` unless each of these options is within its bounds in `BOUNDS`."""
    for name, value in values.items():
        check_bounds(name, value)


def check_numbers(settings: Any, what: str = "") -> None:
    """Raise `UsageError` unless all numbers of a dataclass can be written into a run file and read again.

    Args:
        settings: a dataclass, whose fields may be dataclasses and tuples.
        what: prefix of each field's name in the message.
    """
    for field in fields(settings):
        _check_value(f"{what}{field.name}", getattr(settings, field.name))


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, tuple | list):
        for one in value:
            _check_value(name, one)
    elif is_dataclass(value) and not isinstance(value, type):
        check_numbers(value, f"{name}.")
    elif isinstance(value, int) and not isinstance(value, bool):
        check_bounds(name, value, SEED)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value}")


def format_value(value: object) -> str:
    """Return a value as text for a message, short also where it is a number of thousands of digits."""
    try:
        text = str(value) if isinstance(value, int | float) else repr(value)
    except ValueError:  # more digits than Python converts
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def _format_bound(value: float) -> str:
    return {LEAST: "-2**63", MOST: "2**63 - 1"}.get(int(value), f"{value:g}")
