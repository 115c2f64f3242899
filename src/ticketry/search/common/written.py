"""Settings as people write them: one value alone where several may stand, shares as ``10%``. Needs no torch."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ticketry.core.structure.pattern import SHARES, check_share
from ticketry.errors import UsageError


def take_as_written(settings: Any) -> None:
    """Turn the fields of a frozen dataclass into what their types say, while it is made.

    Where several values may stand (a tuple), one alone, ``0.2`` or ``"fc3"``, is a tuple of one, and a list a tuple.
    Shares become numbers: 0.2, 1, ``"0.2"`` and ``"20%"``; of several also ``"50%,20%"``. Where a share is None by
    default, one of them is a number and several are a tuple: so records and names of runs with one stay as they were.

    Raises:
        UsageError: for a share that is none.
    """
    for field in fields(settings):
        value, several = getattr(settings, field.name), isinstance(field.default, tuple)
        if value is field.default:
            continue
        shares = field.name in SHARES
        if several or (shares and value is not None):
            value = _several(value, apart=shares)
        if shares and value is not None:
            value = tuple(_share(field.name, one) for one in value)
            if not several and len(value) < 2:
                value = value[0] if value else None
        object.__setattr__(settings, field.name, value)


def _several(value: Any, *, apart: bool) -> tuple[Any, ...]:
    if isinstance(value, str) and apart:
        return tuple(value.split(","))
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{name} is a number or a text such as 20%, not {value!r:.60}")
    return float(check_share(name, value))
