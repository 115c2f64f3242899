"""The work of a lab: segments requested and trained, masks computed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry.lab.scoring_sample import Sample


@dataclass
class Ledger:
    """Segments and steps that were requested and trained, over the life of a lab."""

    segments_asked: int = 0
    segments_trained: int = 0
    steps_asked: int = 0
    steps_trained: int = 0
    train_seconds: float = 0.0
    other_seconds: float = 0.0
    """Time of workers outside training steps: evaluation, reading and writing, waiting for locks."""
    processor_seconds: float = 0.0
    """Processor time of workers, for both; for work on other devices, the processor's share of it."""

    keys: list[str] = field(default_factory=list, repr=False)
    """The key of every requested segment, once for each request."""

    @property
    def segments_distinct(self) -> int:
        """Number of different requested segments: an empty store would train this many."""
        return len(set(self.keys))

    def copy(self) -> Ledger:
        """Return a copy."""
        return replace(self, keys=list(self.keys))

    def since(self, before: Ledger) -> Ledger:
        """Return the difference from an earlier copy."""
        counts = {name: value - getattr(before, name) for name, value in vars(self).items() if name != "keys"}
        return Ledger(**counts, keys=self.keys[len(before.keys) :])

    def counts(self) -> dict[str, int]:
        """Return the numbers of segments and steps, for a record."""
        names = ("segments_asked", "segments_distinct", "segments_trained", "steps_asked", "steps_trained")
        return {name: getattr(self, name) for name in names}


# -- masks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenExamples:
    """Examples that a score looks at."""

    score: str
    """Name of the score; empty if it has none."""
    first: int
    """Examples in the first batch; some scores look at no others."""
    others: int
    """Examples in the other batches."""
    cuts: int
    """Pruning steps; each looks at the examples again."""

    @classmethod
    def from_settings(cls, sample: Sample, available: int, settings: Mapping[str, Any]) -> SeenExamples:
        """Return the examples that `Lab.prune` looks at, of `available` training examples."""
        score = settings.get("score", "magnitude")
        first, examples = min(sample.size, available), min(sample.count * sample.size, available)
        name = score if isinstance(score, str) else ""
        return cls(name, first, examples - first, int(settings.get("iterations", 1)))


@dataclass(frozen=True)
class Making:
    """Cost of computing one mask."""

    seconds: float = 0.0
    """Time of scoring and choosing; 0 for masks in stores from before it was recorded."""
    seen: SeenExamples | None = None
    """None if it looks at no examples, or if the search counts them (`Found.gradients`)."""


class Makings:
    """Costs of all masks that a lab was requested to make, computed or remembered. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Making] = {}

    def add(self, mask: str, making: Making) -> None:
        """Record a cost; if a mask is computed in two ways, the higher cost counts."""
        with self._lock:
            self._made[mask] = max(self._made.get(mask, making), making, key=_rank)

    def get(self, mask: str) -> Making:
        """Return the cost of the mask of this digest; zero if the lab was not requested to make it."""
        return self._made.get(mask, Making())


def _rank(making: Making) -> tuple[float, float]:
    seen = making.seen
    return ((seen.first + seen.others) * seen.cuts if seen else 0, making.seconds)
