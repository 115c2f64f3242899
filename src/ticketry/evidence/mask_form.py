"""What masks of controls have in common with the ticket's: single weights, channels, groups of rows, a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ticketry.core.pattern import UNSTRUCTURED
from ticketry.core.structuring import Structuring
from ticketry.lab.search_result import Found


@dataclass(frozen=True)
class Form:
    """The form of a mask."""

    kind: str = "weights"
    """weights, channels, rows (groups of them keep the same columns), n:m or pattern."""
    m: int = 0
    """Of n:m."""
    pattern: str = ""
    """Of pattern: that in which the mask was chosen, see `core.pattern`."""
    aim: str = ""
    """Of weights: what the mask has a budget of (flops); controls have the same budget, and not its density."""

    @classmethod
    def of(cls, structure: str, *, shrunk: bool, pattern: str = UNSTRUCTURED, aim: str = "") -> Form:
        """Of a ticket's mask.

        Args:
            structure: the kind of `Structuring` that it was given, or an empty text.
            pattern: that it was chosen in.
            shrunk: whether its network is trained without the channels that the mask removes.
            aim: what it has a budget of.
        """
        if shrunk:
            return cls("channels")
        if not structure:
            return cls(aim=aim) if pattern == UNSTRUCTURED else cls("pattern", pattern=pattern)
        n_of_m = Structuring(kind=structure).n_of_m
        return cls("n:m", n_of_m[1]) if n_of_m else cls("rows")

    @classmethod
    def of_found(cls, found: Found) -> Form:
        """Of the mask of a ticket that a search found."""
        kind = found.structured.by.kind if found.structured else ""
        return cls.of(kind, shrunk=found.result.segment.whole_channels, pattern=found.pattern, aim=found.aim)

    def key(self) -> dict[str, Any]:
        """What tells a control's mask from that of another form, as JSON values."""
        if self.kind == "channels":
            return {"channels": True}  # masks are remembered by this word since before there were other forms
        more = {"m": self.m, "pattern": self.pattern, "budget": self.aim}
        return {"form": self.kind, **{name: value for name, value in more.items() if value}}


WEIGHTS = Form()
