"""Keyword arguments as settings: checked by name and type, as the command line checks words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_origin, get_type_hints

import msgspec

from ticketry.choices import did_you_mean, format_value
from ticketry.core.pattern import SHARES, check_share
from ticketry.errors import UsageError
from ticketry.lab.remote.address import place_of


def settings_of(given: Mapping[str, Any], *kinds: type[Any], what: str) -> tuple[Any, ...]:
    """An instance of each dataclass, from the arguments that are its fields.

    A list stands for a tuple, and a single value for a tuple of one.

    Args:
        what: is called, for the error: ``run("iterative", …)``.

    Raises:
        UsageError: for an argument that none of them has, or of another type; the nearest names are told.
    """
    known = {field.name for kind in kinds for field in fields(kind)}
    for name in given:
        if name not in known:
            near = did_you_mean(name, known)
            raise UsageError(f"{what} has no argument {name!r}: {near}it takes {', '.join(sorted(known))}")
    return tuple(_made(kind, given, what) for kind in kinds)


def _made(kind: type[Any], given: Mapping[str, Any], what: str) -> Any:
    hints, own = get_type_hints(kind), {field.name for field in fields(kind)}
    return kind(**{name: _value(name, value, hints[name], what) for name, value in given.items() if name in own})


def _value(name: str, value: Any, hint: Any, what: str) -> Any:
    if name in SHARES:
        value = _shares(name, value)
    if name == "store":
        value = place_of(value) if isinstance(value, str) else value
    if get_origin(hint) is tuple and not isinstance(value, (list, tuple)):
        value = (value,)
    try:
        return msgspec.convert(value, hint, dec_hook=lambda kind, one: kind(one))
    except ValueError as error:  # msgspec's, or that of a number of thousands of digits
        why = str(error) if isinstance(error, msgspec.ValidationError) else "it is beyond 64 bits"
        raise UsageError(f"{what}: {name} is {format_value(value)}, which cannot be: {why}") from None


def _shares(name: str, value: Any) -> Any:
    """Densities as numbers, one or several; what is neither a number nor a text is left to the type."""
    if isinstance(value, (list, tuple)):
        return tuple(_shares(name, one) for one in value)
    return check_share(name, value) if isinstance(value, str | int | float) else value
