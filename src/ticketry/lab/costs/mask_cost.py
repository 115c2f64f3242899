"""What it takes to make the masks that a lab is asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ticketry.lab.scoring_sample import Sample


@dataclass(frozen=True)
class Seen:
    """What a score looks at."""

    score: str
    """Its name; empty if it has none."""
    first: int
    """Examples in the first batch, which is all that some look at."""
    others: int
    """In the other batches."""
    cuts: int
    """Each looks at them again."""

    @classmethod
    def of(cls, sample: Sample, available: int, settings: Mapping[str, Any]) -> Seen:
        """Of a call of `Lab.prune` with `available` training examples."""
        score = settings.get("score", "magnitude")
        first, examples = min(sample.size, available), min(sample.count * sample.size, available)
        name = score if isinstance(score, str) else ""
        return cls(name, first, examples - first, int(settings.get("iterations", 1)))


@dataclass(frozen=True)
class Making:
    """Of one mask."""

    seconds: float = 0.0
    """Scoring and choosing, when it was made; 0 for masks that a store has from before this was noted."""
    seen: Seen | None = None
    """None if no examples are looked at, or only where the search counts that itself (`Found.gradients`)."""


class Makings:
    """Of all masks that a lab was asked for, made now or known from before. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Making] = {}

    def add(self, mask: str, making: Making) -> None:
        """Take note; of a mask that is made in two ways, the dearer one holds, whichever came first."""
        with self._lock:
            self._made[mask] = max(self._made.get(mask, making), making, key=_dearness)

    def of(self, mask: str) -> Making:
        """By the mask's digest; nothing is known of one that the lab was not asked for."""
        return self._made.get(mask, Making())


def _dearness(making: Making) -> tuple[float, float]:
    seen = making.seen
    return ((seen.first + seen.others) * seen.cuts if seen else 0, making.seconds)
