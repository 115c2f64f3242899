"""Units, granularities and bases of budgets: names, parsing and formatting. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import total_ordering
from math import ceil, floor, log10
from typing import Literal, get_args

from ticketry.choices import check_choice
from ticketry.errors import UsageError

Unit = Literal["seconds", "bytes", "multiplications"]

_UNITS: dict[Unit, dict[str, float]] = {
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "bytes": {"B": 1.0, "kB": 1e3, "KB": 1e3, "KiB": 2.0**10, "MB": 1e6, "MiB": 2.0**20, "GB": 1e9, "GiB": 2.0**30},
    "multiplications": {"": 1.0, "M": 1e6, "G": 1e9},
}
_EXAMPLES: dict[Unit, str] = {"seconds": '"5ms"', "bytes": '"2MB"', "multiplications": '"50M"'}
_PRINTED: dict[Unit, tuple[tuple[float, str], ...]] = {
    "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "multiplications": ((1e9, "G"), (1e6, "M"), (1.0, "")),
}
_AMOUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*")


def parse_amount(text: float | str, unit: Unit, dense: float) -> float:
    """Parse a budget and return it in `unit`; a share (0.3 or "30%") is multiplied by the cost `dense`.

    Raises:
        UsageError: if `text` is neither a share nor an amount.
    """
    number, is_share = parse_share_or_amount(text, unit)
    return number * dense if is_share else number


def parse_share_or_amount(text: float | str, unit: Unit) -> tuple[float, bool]:
    """Parse a budget: return (share of the dense cost, True) or (amount in `unit`, False).

    Raises:
        UsageError: if `text` is neither a share nor an amount.

    >>> parse_share_or_amount("30%", "seconds"), parse_share_or_amount("5ms", "seconds")
    ((0.3, True), (0.005, False))
    """
    wrong = UsageError(
        f"a budget of {unit} is a share of the dense network's, 0 < share <= 1 (0.3, 30%), or an amount such as"
        f" {_EXAMPLES[unit]}, not {text!r}"
    )
    if isinstance(text, str):
        match = _AMOUNT.fullmatch(text)
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
        text = number / 100 if match[2] else number
    if isinstance(text, bool) or not isinstance(text, int | float) or not 0 < text <= 1:
        raise wrong
    return text, True


def format_cost(value: float, unit: Unit) -> str:
    """Format a cost with three digits and a suitable prefix of the unit: "5.4 ms"."""
    size, name = next((each for each in _PRINTED[unit] if abs(value) >= each[0]), _PRINTED[unit][-1])
    return f"{value / size:.3g} {name}".strip()


def format_cost_above(value: float, unit: Unit) -> str:
    """Format a cost, rounded up to three digits, so that a user can copy it as a budget that suffices."""
    step = 10.0 ** (floor(log10(value)) - 2)
    return format_cost(ceil(value / step * (1 - 1e-12)) * step, unit)


def format_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows as text in aligned columns, with a line of dashes below the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


Base = Literal["eager", "torch.compile", "onnxruntime", "openvino", "engine"]
EAGER: Base = "eager"
ENGINE: Base = "engine"
BASES: tuple[str, ...] = get_args(Base)
"""Ways to run the unpruned model, to whose latency a budget may refer; ``engine`` is ticketry's compiled model."""


def check_base(base: str) -> str:
    """Return `base` unchanged; raise `UsageError` if it is not one of `BASES`."""
    check_choice("base", base, BASES)
    return base


@dataclass(frozen=True)
class Latencies:
    """Three latencies in seconds: of the base, of the unpruned model compiled by ticketry, and the requested one.

    Examples:
        >>> from ticketry.budgets.units import Latencies
        >>> print(Latencies("eager", now=10.9e-3, unpruned=2.1e-3, requested=5.4e-3))
        now 10.9 ms (eager), compiled without pruning 2.1 ms, requested 5.4 ms: no pruning needed
        >>> print(Latencies("engine", now=2.1e-3, unpruned=2.1e-3, requested=1.05e-3))
        compiled without pruning 2.1 ms, requested 1.05 ms
    """

    base: str
    """Name of the base: one of `BASES`."""
    now: float
    """Latency of the base, timed alternately with the compiled unpruned model."""
    unpruned: float
    """Latency of the model compiled by ticketry without pruning."""
    requested: float

    @property
    def met_unpruned(self) -> bool:
        """Whether the compiled model meets the request without pruning."""
        return self.requested >= self.unpruned

    def __str__(self) -> str:
        now = "" if self.base == ENGINE else f"now {format_cost(self.now, 'seconds')} ({self.base}), "
        return (
            f"{now}compiled without pruning {format_cost(self.unpruned, 'seconds')}, requested"
            f" {format_cost(self.requested, 'seconds')}{': no pruning needed' if self.met_unpruned else ''}"
        )


# -- granularities: single weights, groups of rows, or whole channels --------------------------------------------------

FINEST = "weights"
CHANNELS = "channels"
NONE = "none"
"""Structure of a budget by which single weights with the highest score per cost are retained."""
AUTO = "auto"
"""Structure of a budget by which each layer gets the granularity that retains most for its cost."""
BY_MEASUREMENT = "by measurement"
"""Structure of a latency budget by which ``auto`` and ``channels`` are timed; the one that retains most is chosen."""
MEASURED = (FINEST, "rows:4", "rows:16")
"""Granularities that ``auto`` chooses from, because the engine has fast kernels for them."""


@total_ordering
@dataclass(frozen=True)
class Granularity:
    """Single weights, groups of rows that retain the same columns, or whole channels; fine granularities sort first."""

    rows: int
    """Number of rows in a group; 1 for single weights, 0 for whole channels."""

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """Parse ``weights``, ``rows:N`` or ``channels``; raise `UsageError` for any other `text`."""
        kind, _, rows = text.partition(":")
        if text == FINEST:
            return cls(1)
        if text == CHANNELS:
            return cls(0)
        if kind == "rows" and rows.isdecimal() and int(rows) >= 2:
            return cls(int(rows))
        raise UsageError(f"a granularity is weights, rows:N (N rows share their columns) or channels, not {text!r}")

    def __str__(self) -> str:
        return FINEST if self.rows == 1 else f"rows:{self.rows}" if self.rows else CHANNELS

    def __lt__(self, other: Granularity) -> bool:
        return (self.rows or float("inf")) < (other.rows or float("inf"))


def parse_granularities(texts: Iterable[str]) -> list[Granularity]:
    """Parse names of granularities and return them sorted from fine to coarse."""
    return sorted(Granularity.parse(text) for text in texts)


def retains_whole_blocks(structure: str) -> bool:
    """Return whether `structure` is ``auto``, ``weights`` or ``rows:N``, by which blocks are chosen by cost."""
    if structure == AUTO:
        return True
    try:
        return Granularity.parse(structure).rows > 0
    except UsageError:
        return False


def sums_block_scores(structure: str) -> bool:
    """Return whether `structure` sums scores over blocks and compares layers, so that scores need a common unit."""
    return structure in (BY_MEASUREMENT, CHANNELS) or retains_whole_blocks(structure)


def single_granularity(structure: str) -> str:
    """Return the granularity that `structure` requires in all layers; empty for ``auto``, which chooses by layer."""
    return "" if structure == AUTO else structure


def granularities_to_measure(structure: str) -> tuple[str, ...]:
    """Return the granularities whose costs must be measured to choose masks with this structure."""
    if structure == AUTO:
        return MEASURED
    return (structure,) if retains_whole_blocks(structure) else (FINEST,)
