"""How far the gates of a model are open, as counts for a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Histogram:
    """Gates counted by how far they are open, from 0 (off) to 1."""

    edges: tuple[float, ...]
    """n + 1 ascending numbers from 0 to 1; a bin has its lower edge, and the last its upper one too."""
    counts: Mapping[str, tuple[int, ...]]
    """parameter name -> gates in each of the n bins"""

    @property
    def total(self) -> tuple[int, ...]:
        """Gates of all parameters in each bin."""
        return tuple(map(sum, zip(*self.counts.values(), strict=True)))
