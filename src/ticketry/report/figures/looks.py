"""How each role looks, the same in every figure: colour, marker, its size and the line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ticketry.report.aggregate import CONTROLS
from ticketry.report.figures.svg import COLOURS
from ticketry.report.record import DENSE, TICKET


@dataclass(frozen=True)
class Look:
    """Of the line and markers of a role."""

    name: str
    """The key of its colour."""
    marker: str
    size: float
    line: Any

    @property
    def colour(self) -> str:
        return COLOURS[self.name]


_LOOKS = {
    TICKET: Look("ticket", "o", 7.0, "-"),
    DENSE: Look("muted", "o", 5.5, "-"),
    "random_reinit": Look("random-reinit", "s", 5.8, (0, (5, 2))),
    "shuffled": Look("shuffled", "^", 7.4, (0, (1.5, 1.5))),
    "random_prune": Look("random-prune", "D", 5.4, (0, (6, 2, 1.5, 2))),
    "cyclic": Look("other-1", "v", 7.4, (0, (3, 1.5))),
    "cyclic_random": Look("other-2", "P", 7.0, (0, (8, 2))),
    "small_dense": Look("other-1", "v", 7.0, (0, (3, 1.5))),
    "dense_at_cost": Look("muted", "P", 6.4, "-"),
    "dense_at_flops": Look("muted", "X", 6.4, "-"),
}
_OTHER_LOOKS = (Look("other-1", "v", 7.4, (0, (3, 1.5))), Look("other-2", "P", 7.0, (0, (8, 2))))
"""The usual roles differ in colour, marker and line; unusual ones take turns."""


def look_of(role: str, controls: Sequence[str] = ()) -> Look:
    """The look of a role; of an unusual control, that of its place among the unusual ones in `controls`."""
    if role in _LOOKS:
        return _LOOKS[role]
    unusual = [control for control in controls if control not in CONTROLS]
    return _OTHER_LOOKS[(unusual.index(role) if role in unusual else 0) % len(_OTHER_LOOKS)]
