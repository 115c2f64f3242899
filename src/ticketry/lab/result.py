"""What a segment gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ticketry.lab.segment import Segment


@dataclass(frozen=True)
class Result:
    """What a segment gave: a stored state and its metrics."""

    segment: Segment
    model: str
    """Digest of the weights and buffers."""
    training: str | None
    """Digest of the optimiser's state, where it is kept."""
    metrics: dict[str, dict[str, float]]
    """validation and test -> metric -> value; searches look at validation only."""
    train_seconds: float
    gates: str | None
    """Digest of the gates, where the segment has them."""
    record: dict[str, Any] = field(repr=False, compare=False)
