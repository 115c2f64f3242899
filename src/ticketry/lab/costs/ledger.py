"""Count a lab's work: requested and trained segments, and the costs of masks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry.lab.scoring_sample import Sample


@dataclass
class Ledger:
    """Counts the segments and steps that were requested from a lab, and those that were trained."""

    segments_asked: int = 0
    segments_trained: int = 0
    steps_asked: int = 0
    steps_trained: int = 0
    train_seconds: float = 0.0
    other_seconds: float = 0.0
    """Seconds of workers outside training steps: evaluation, reading and writing, waiting for locks."""
    processor_seconds: float = 0.0
    """CPU time of the workers in `train_seconds` and `other_seconds`; the time of GPUs is not included."""

    keys: list[str] = field(default_factory=list, repr=False)
    """The keys of all requested segments; a segment that was requested twice is listed twice."""

    @property
    def segments_distinct(self) -> int:
        """Number of different segments that were requested; with an empty store, all of them would be trained."""
        return len(set(self.keys))

    def copy(self) -> Ledger:
        """Return a copy, which does not change when the lab works on."""
        return replace(self, keys=list(self.keys))

    def since(self, before: Ledger) -> Ledger:
        """Return a ledger with the work since `before`, an earlier copy of this ledger."""
        counts = {name: value - getattr(before, name) for name, value in vars(self).items() if name != "keys"}
        return Ledger(**counts, keys=self.keys[len(before.keys) :])

    def counts(self) -> dict[str, int]:
        """Return the numbers of segments and steps by name, for a stored record."""
        names = ("segments_asked", "segments_distinct", "segments_trained", "steps_asked", "steps_trained")
        return {name: getattr(self, name) for name in names}


# -- masks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenExamples:
    """Holds the numbers of training examples that a pruning score uses."""

    score: str
    """Name of the score; empty for a function without a name."""
    first: int
    """Number of examples in the first batch, which is the only batch that some scores use."""
    others: int
    """Number of examples in all other batches."""
    cuts: int
    """Number of pruning steps; each step uses the examples again."""

    @classmethod
    def from_settings(cls, sample: Sample, available: int, settings: Mapping[str, Any]) -> SeenExamples:
        """Return the numbers of examples that `Lab.prune` uses.

        Args:
            sample: number and size of the batches.
            available: number of training examples.
            settings: arguments of `core.prune`, of which ``score`` and ``iterations`` matter.
        """
        score = settings.get("score", "magnitude")
        first, examples = min(sample.size, available), min(sample.count * sample.size, available)
        name = score if isinstance(score, str) else ""
        return cls(name, first, examples - first, int(settings.get("iterations", 1)))


@dataclass(frozen=True)
class MaskCost:
    """Holds the cost of computing one mask."""

    seconds: float = 0.0
    """Seconds for scoring and choosing weights; 0 if an old store did not record them."""
    seen: SeenExamples | None = None
    """Examples that the score used; None if it used none, or if the search counts them in `Found.gradients`."""


class MaskCosts:
    """Collects the costs of all masks that a lab has computed or loaded; several threads may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, MaskCost] = {}

    def add(self, mask: str, making: MaskCost) -> None:
        """Record the cost `making` of the mask with the digest `mask`; of several costs, the highest counts."""
        with self._lock:
            self._made[mask] = max(self._made.get(mask, making), making, key=_cost_order)

    def get(self, mask: str) -> MaskCost:
        """Return the cost of the mask with the digest `mask`; an unknown mask has no cost."""
        return self._made.get(mask, MaskCost())


def _cost_order(making: MaskCost) -> tuple[float, float]:
    seen = making.seen
    return ((seen.first + seen.others) * seen.cuts if seen else 0, making.seconds)
