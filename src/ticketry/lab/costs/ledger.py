"""Counts of a lab's work: requested and trained segments, and the costs of masks."""

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
    """Processor time of the workers during both; for work on a GPU, the processor's share of it."""

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
        """Return the counts since an earlier copy."""
        counts = {name: value - getattr(before, name) for name, value in vars(self).items() if name != "keys"}
        return Ledger(**counts, keys=self.keys[len(before.keys) :])

    def counts(self) -> dict[str, int]:
        """Return the numbers of segments and steps, for a record."""
        names = ("segments_asked", "segments_distinct", "segments_trained", "steps_asked", "steps_trained")
        return {name: getattr(self, name) for name in names}


# -- masks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenExamples:
    """Numbers of training examples that a score uses."""

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
class MaskCost:
    """Cost of computing one mask."""

    seconds: float = 0.0
    """Time of scoring and choosing weights; 0 for masks in old stores that did not record it."""
    seen: SeenExamples | None = None
    """None if no examples were used, or if the search itself counts them (`Found.gradients`)."""


class MaskCosts:
    """Costs of all masks that a lab was asked for, computed or loaded. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, MaskCost] = {}

    def add(self, mask: str, making: MaskCost) -> None:
        """Record a cost; if a mask is computed in two ways, the higher cost counts."""
        with self._lock:
            self._made[mask] = max(self._made.get(mask, making), making, key=_cost_order)

    def get(self, mask: str) -> MaskCost:
        """Return the cost of the mask with this digest; zero for unknown masks."""
        return self._made.get(mask, MaskCost())


def _cost_order(making: MaskCost) -> tuple[float, float]:
    seen = making.seen
    return ((seen.first + seen.others) * seen.cuts if seen else 0, making.seconds)
