"""What a task knows of the processes that train one network together, each with a part of every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class PartOfBatch:
    """Which examples of a batch one of several processes has: `own` of them, from place `first` on, of `whole`."""

    first: int
    own: int
    whole: int


class Ranks(Protocol):
    """The processes that train one network together, as one of them sees them."""

    rank: int
    """Its number, from 0 on."""
    world: int
    """How many there are."""
    in_parts: bool
    """Whether each has a part of every parameter, so that all have to call the network equally often."""

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, in their order; all of them call it."""
