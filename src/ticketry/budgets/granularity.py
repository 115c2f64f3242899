"""Granularities in which a budget prunes: single weights, groups of rows, or whole channels. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

from ticketry.errors import UsageError

FINEST = "weights"
CHANNELS = "channels"
NONE = "none"
"""Structure of a budget by which single weights with the highest score per cost are retained."""
AUTO = "auto"
"""Structure of a budget by which each layer gets the granularity that retains most for its cost."""
BY_MEASUREMENT = "by measurement"
"""Structure of a latency budget by which ``auto``, ``weights`` and ``channels`` are timed, and the one that retains
most is chosen."""
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


def in_blocks(structure: str) -> bool:
    """Return whether `structure` is ``auto``, ``weights`` or ``rows:N``, by which blocks are chosen by cost."""
    if structure == AUTO:
        return True
    try:
        return Granularity.parse(structure).rows > 0
    except UsageError:
        return False


def sums_block_scores(structure: str) -> bool:
    """Return whether `structure` sums scores over blocks and compares layers, so that scores need a common unit."""
    return structure in (BY_MEASUREMENT, CHANNELS) or in_blocks(structure)


def single_granularity(structure: str) -> str:
    """Return the granularity that `structure` requires in all layers; empty for ``auto``, which chooses by layer."""
    return "" if structure == AUTO else structure


def granularities_to_measure(structure: str) -> tuple[str, ...]:
    """Return the granularities whose costs must be measured to choose masks with this structure."""
    if structure == AUTO:
        return MEASURED
    return (structure,) if in_blocks(structure) else (FINEST,)
