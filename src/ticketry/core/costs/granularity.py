"""What of a layer is kept or removed together, as far as a kernel's time depends on it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

from ticketry.errors import UsageError

FINEST = "weights"
CHANNELS = "channels"


@total_ordering
@dataclass(frozen=True)
class Granularity:
    """Single weights, groups of so many rows (outputs) that keep the same columns, or whole channels."""

    rows: int
    """1 of single weights, 0 of channels."""

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """``weights``, ``rows:16`` or ``channels``; `UsageError` for anything else."""
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
        """Finer first; channels are the coarsest."""
        return (self.rows or float("inf")) < (other.rows or float("inf"))


def granularities(texts: Iterable[str]) -> list[Granularity]:
    """The finest first."""
    return sorted(Granularity.parse(text) for text in texts)
