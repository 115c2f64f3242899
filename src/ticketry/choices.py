"""Check the values of settings: a word from a list of choices, or a number within bounds.

The allowed words of a field are listed in its `Literal` annotation, which the command line reads too. Numbers have the
same bounds on the command line, in Python, in run files and in campaigns.
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
"""Largest number of names that a message lists; longer lists are abbreviated."""


def check_choices(settings: Any, of: str = "") -> None:
    """Raise `UsageError` unless every dataclass field annotated with `Literal` has, or contains, only listed values.

    `of` is the prefix of a field's name in the message, such as "recipe: ".
    """
    kind: Any = type(settings)
    for name, known in _choices_by_field(kind).items():
        value = getattr(settings, name)
        for word in value if isinstance(value, tuple) else (value,):
            check_choice(f"{of}{name}", word, known)


def check_choice(what: str, word: object, known: Iterable[Any]) -> None:
    """Raise `UsageError` unless `word` is in `known`; the message starts with `what` and lists `known`."""
    if word not in known:
        raise UsageError(f"{what} {word!r} is not known: {list_choices(word, known)}")


def list_choices(word: object, known: Iterable[Any]) -> str:
    """Return the choices `known` as text for an error message, with a suggestion if `word` is a misspelled choice."""
    names = [str(one) for one in known if one]
    near = did_you_mean(str(word), names).rstrip()
    return f"{', '.join(names)}{near and f'; {near}'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that suggests the known names closest to `name`, such as "did you mean fc.weight? ".

    The result is empty if no name is close. The name of a module or of a parameter alone (``fc``, ``weight``) counts as
    close to ``fc.weight``.
    """
    known = list(known)
    if longer := [one for one in known if name and (one.startswith(f"{name}.") or one.endswith(f".{name}"))]:
        return f"did you mean {' or '.join(longer[:3])}? "
    cutoff = 0.75 if len(name) > 4 else 0.65  # allows one wrong letter in a short name
    by_lower = {one.lower(): one for one in reversed(known)}  # the first of names that differ only in case
    near = get_close_matches(name.lower(), list(reversed(by_lower)), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(by_lower[one] for one in near)}? " if near else ""


def require_name(name: object, what: str, error: type[TicketryError]) -> str:
    """Return `name` if it is a string and not empty; else raise `error` with a message that starts with `what`."""
    if not isinstance(name, str):
        kind = type(name).__name__
        raise error(f"{what} has the name {name!r:.60}, a {kind}: use names of parameters, such as 'fc.weight'")
    if not name.strip():
        raise error(f"{what} has an empty name, {name!r}: use names of parameters, such as 'fc.weight'")
    return name


def describe_name_difference(given: Iterable[str], known: Iterable[str]) -> str:
    """Return text for an error message that says how the names `given` differ from `known`; empty if they do not."""
    given, known = list(given), list(known)
    if unknown := [name for name in given if name not in set(known)]:
        unused = [name for name in known if name not in set(given)] or known
        return f"{unknown[0]!r} is not one of them, {did_you_mean(unknown[0], unused)}they are {format_names(known)}"
    missing = [name for name in known if name not in set(given)]
    return f"{missing[0]!r} is missing" if missing else ""


def format_names(names: Iterable[str]) -> str:
    """Return the first few names, separated by commas, for an error message."""
    names = list(names)
    return ", ".join(map(str, names[:_MOST_NAMES])) + (", …" if len(names) > _MOST_NAMES else "")


def names_with_parent_modules(names: Iterable[str]) -> list[str]:
    """Return the given names of parameters, and the names of all modules that contain these parameters."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(one[:length]) for one in parts for length in range(1, len(one) + 1)))


@lru_cache(maxsize=256)
def _choices_by_field(kind: Any) -> dict[str, tuple[Any, ...]]:
    """Return the allowed values, by field name, of each field of a dataclass that is annotated with `Literal`."""
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

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
"""Smallest and largest accepted integer: TOML run files cannot hold integers of more than 64 bits."""


class Bounds(NamedTuple):
    """The range of allowed values of a number, from `low` to `high`; with `whole`, only integers are allowed."""

    low: float
    high: float
    whole: bool = True


SEED = Bounds(MIN_INTEGER, MAX_INTEGER)
BOUNDS = {
    "replicates": Bounds(1, 10**6),
    "workers": Bounds(0, 10**4),
    "threads": Bounds(1, 10**4),
    "devices": Bounds(1, 10**4),
    "checkpoint_seconds": Bounds(1e-9, 1e9, whole=False),
    **dict.fromkeys(("seed", "initialisation_seed", "order_seed", "mask_seed"), SEED),
}
"""Bounds of options, by option name."""


def check_bounds(name: str, value: Any, bounds: Bounds | None = None) -> None:
    """Raise `UsageError` unless the value of the option `name` is within `bounds`, by default those in `BOUNDS`."""
    low, high, whole = bounds or BOUNDS[name]
    kind = "a whole number" if whole else "a number"
    is_number = isinstance(value, int if whole else Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        first, last = (
            {MIN_INTEGER: "-2**63", MAX_INTEGER: "2**63 - 1"}.get(int(one), f"{one:g}") for one in (low, high)
        )
        raise UsageError(f"{name} must be {kind} from {first} to {last}, got {format_value(value)}")


def check_options(**values: Any) -> None:
    """Raise `UsageError` unless the value of each option is within the option's bounds in `BOUNDS`."""
    for name, value in values.items():
        check_bounds(name, value)


def check_storable_numbers(settings: Any, what: str = "") -> None:
    """Raise `UsageError` if a dataclass contains an integer of more than 64 bits, or a float that is not finite.

    A run file cannot store such numbers. `what` is the prefix of each field's name in the message.
    """
    for field in fields(settings):
        _check_storable_number(f"{what}{field.name}", getattr(settings, field.name))


def _check_storable_number(name: str, value: Any) -> None:
    if isinstance(value, tuple | list):
        for one in value:
            _check_storable_number(name, one)
    elif is_dataclass(value) and not isinstance(value, type):
        check_storable_numbers(value, f"{name}.")
    elif isinstance(value, int) and not isinstance(value, bool):
        check_bounds(name, value, SEED)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value}")


def format_value(value: object) -> str:
    """Return a value as text for an error message; long texts are abbreviated."""
    try:
        text = str(value) if isinstance(value, int | float) else repr(value)
    except ValueError:  # more digits than Python converts
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"
