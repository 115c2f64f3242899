"""Working memory that values and gradients of a plan have one after the other.

Places are given in the order in which operations are emitted. Operations that wait run block by block, so that one of
them may be at its first block when another one is at its last: what they need is only given to a value of the very same
layout meanwhile, of which each block lies on the same block.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Some bytes of the memory."""

    begin: int
    end: int
    layout: Hashable
    """What lies there: whoever has the same one keeps the same bytes zero."""

    def meets(self, other: Place) -> bool:
        """Whether they have bytes in common."""
        return self.begin < other.end and other.begin < self.end


class Arena:
    """Gives places, and takes them back."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes that were needed at most."""
        self._free: list[tuple[int, int]] = []
        """Bytes, from and to, in order; no two of them touch."""
        self._clean: list[Place] = []
        """Free, with zeros where their layout has them: those that operations which wait may still need come last."""
        self._waiting = 0
        """How many those are."""
        self._given: list[Place] = []

    def take(self, size: int, layout: Hashable) -> tuple[Place, bool]:
        """A place of so many bytes, and whether somebody of the same layout had it just before: zeros are there."""
        for number in reversed(range(len(self._clean))):
            place = self._clean[number]
            if place.layout == layout and place.end - place.begin == size:
                del self._clean[number]
                if number >= len(self._clean) + 1 - self._waiting:
                    self._waiting -= 1
                else:
                    self._occupy(place)
                self._given.append(place)
                return place, True
        fitting = [(end - begin, begin) for begin, end in self._free if end - begin >= size]
        begin = min(fitting)[1] if fitting else self._end()
        place = Place(begin, begin + size, layout)
        self.size = max(self.size, place.end)
        self._occupy(place)
        self._given.append(place)
        return place, False

    def give(self, place: Place) -> None:
        """Take a place back that no operation to come needs; those that wait may."""
        self._clean.append(place)
        self._waiting += 1

    def settle(self) -> None:
        """No operation waits any more."""
        for place in self._clean[len(self._clean) - self._waiting :]:
            bisect.insort(self._free, (place.begin, place.end))
        self._waiting = 0
        joined: list[tuple[int, int]] = []
        for begin, end in self._free:
            if joined and joined[-1][1] == begin:
                begin, _ = joined.pop()
            joined.append((begin, end))
        self._free = joined

    def alone(self, place: Place) -> bool:
        """Whether nobody of another layout ever has some of its bytes: zeros stay there from step to step."""
        return all(
            other.layout == place.layout and other.begin == place.begin for other in self._given if other.meets(place)
        )

    def _end(self) -> int:
        """Where memory begins that may grow: free bytes at the end are part of it."""
        return self._free[-1][0] if self._free and self._free[-1][1] == self.size else self.size

    def _occupy(self, place: Place) -> None:
        left: list[tuple[int, int]] = []
        for begin, end in self._free:
            parts = [(begin, min(end, place.begin)), (max(begin, place.end), end)]
            left += [part for part in parts if part[0] < part[1]]
        self._free = left
        settled = len(self._clean) - self._waiting
        kept = [other for other in self._clean[:settled] if not other.meets(place)]
        self._clean = kept + self._clean[settled:]
