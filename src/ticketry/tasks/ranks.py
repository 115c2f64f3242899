"""What a task knows of the processes that train one network together, each with a part of every batch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class PartOfBatch:
    """Which examples of a batch one of several processes has: `own` of them, from place `first` on, of `whole`."""

    first: int
    own: int
    whole: int


def place_of_part(examples: int, rank: int, world: int) -> PartOfBatch:
    """The examples of a batch that one of `world` processes has: a pure function, and together they are the batch.

    Consecutive ones, as many for each; where `examples` is no multiple of `world`, one more for each of the first.
    """
    each, more = divmod(examples, world)
    return PartOfBatch(rank * each + min(rank, more), each + (rank < more), examples)


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

    def drawing(self, place: PartOfBatch) -> AbstractContextManager[object]:
        """Around what draws random numbers for the examples of a part: they are those of the whole batch."""
