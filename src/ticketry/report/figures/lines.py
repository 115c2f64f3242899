"""Which points of a run a line joins in a figure of costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, TypeVar


class Costly(Protocol):
    """A point that took training steps."""

    @property
    def steps(self) -> float: ...


P = TypeVar("P", bound=Costly)


def lines_of(points: Sequence[P]) -> list[list[P]]:
    """The points, in lines that do not zigzag.

    A search that goes on from ticket to ticket is one line: the sparser, the later. One that has several searches side
    by side, such as gates with several s0, has a line for every number of steps: what one round gave, what two gave.

    Args:
        points: of one run, densest first.
    """
    if all(one.steps <= other.steps for one, other in pairwise(points)):
        return [list(points)]
    lines: dict[str, list[P]] = {}
    for point in points:
        lines.setdefault(f"{point.steps:.2g}", []).append(point)
    return list(lines.values())
