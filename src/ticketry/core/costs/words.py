"""Costs as people read and write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Literal

from ticketry.errors import UsageError

Unit = Literal["seconds", "bytes", "multiplications"]

_UNITS: dict[Unit, dict[str, float]] = {
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "bytes": {"B": 1.0, "kB": 1e3, "KB": 1e3, "KiB": 2.0**10, "MB": 1e6, "MiB": 2.0**20, "GB": 1e9, "GiB": 2.0**30},
    "multiplications": {"": 1.0, "M": 1e6, "G": 1e9},
}
_EXAMPLES: dict[Unit, str] = {
    "seconds": '"5ms"',
    "bytes": '"2MB"',
    "multiplications": '"50M"',
}
_SHOWN: dict[Unit, tuple[tuple[float, str], ...]] = {
    "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "multiplications": ((1e9, "G"), (1e6, "M"), (1.0, "")),
}
_AMOUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*")


def parsed(asked: float | str, unit: Unit, dense: float) -> float:
    """A budget in `unit`: a share of `dense` (0.3 or "30%"), or an amount ("5ms"). `UsageError` if it is none."""
    number, is_share = share_or_amount(asked, unit)
    return number * dense if is_share else number


def share_or_amount(asked: float | str, unit: Unit) -> tuple[float, bool]:
    """A share of the dense network's cost, or an amount in `unit`, and whether it is a share. `UsageError` if neither.

    >>> share_or_amount("30%", "seconds"), share_or_amount("5ms", "seconds")
    ((0.3, True), (0.005, False))
    """
    wrong = UsageError(
        f"a budget of {unit} is a share of the dense network's, 0 < share <= 1 (0.3, 30%), or an amount such as"
        f" {_EXAMPLES[unit]}, not {asked!r}"
    )
    if isinstance(asked, str):
        match = _AMOUNT.fullmatch(asked)
        if match is None:
            raise wrong
        try:
            number = float(match[1])
        except ValueError:
            raise wrong from None
        if match[2] and match[2] != "%":
            if match[2] not in _UNITS[unit] or not number > 0:
                raise wrong
            return number * _UNITS[unit][match[2]], False
        asked = number / 100 if match[2] else number
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 < asked <= 1:
        raise wrong
    return asked, True


def told(value: float, unit: Unit) -> str:
    """A cost in three digits, with a unit that fits its size."""
    size, name = next((each for each in _SHOWN[unit] if abs(value) >= each[0]), _SHOWN[unit][-1])
    return f"{value / size:.3g} {name}".strip()


def told_above(value: float, unit: Unit) -> str:
    """A cost in three digits that is no less than the value, as one who asks for it has to write it."""
    step = 10.0 ** (floor(log10(value)) - 2)
    return told(ceil(value / step * (1 - 1e-12)) * step, unit)


def in_columns(rows: Sequence[tuple[str, ...]]) -> str:
    """A table as text, a line below its first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
