"""The setting ``structure``: which weights a method removes together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ticketry.budgets.granularity import in_blocks
from ticketry.choices import did_you_mean
from ticketry.core.structure.pattern import UNSTRUCTURED, Pattern, parse_n_of_m
from ticketry.core.structure.structuring import Structuring
from ticketry.errors import UsageError

NONE = "none"
FILTERS = "filters"
Family = Literal["blocks", "n:m", "channels", "tickets", "latency"]
"""A family of values of the setting ``structure``; a method offers whole families.

blocks: blocks of one layer's weights are removed together. n:m: at most N of every M inputs remain. channels: whole
coupled channels are removed. tickets: the structure is applied to a ticket's mask after the search. latency: a
granularity is chosen for each layer, under a latency budget.
"""
_WORDS: dict[Family, str] = {
    "blocks": "rows:4, filters",
    "n:m": "search:2:4",
    "channels": "channels, channels:16",
    "tickets": "refill, refill+, regroup, 2:4",
    "latency": "auto, weights, rows:4 (with a latency budget)",
}
_OPTIONS = {
    "refill": {"score": "score", "coupled": "coupled"},
    "refill+": {"score": "score", "coupled": "coupled"},
    "regroup": {"method": "method", "collapse": "collapse"},
}
"""For each kind of ticket structure, its options: name in the text -> field of `Structuring`."""
_OLD_NAMES = {
    "plus": "plus",
    "match": "refill_match",
    "rows": "rows",
    "method": "regroup_method",
    "collapse": "regroup_collapse",
    "score": "refill_score",
    "coupled": "refill_coupled",
}
"""Field of `Structuring` -> name of the same setting in record format 1."""


@dataclass(frozen=True)
class ParsedStructure:
    """A parsed value of the setting ``structure``: which weights are removed together.

    Examples:
        >>> from ticketry.search.common.structure_option import ParsedStructure
        >>> ParsedStructure.parse("channels:16", ["channels"]).multiple
        16
        >>> str(ParsedStructure.parse("regroup:16,method=hypergraph", ["tickets"]).tickets)
        'regroup, 16 rows, hypergraph'
        >>> ParsedStructure.parse("row:4", ["blocks"])
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: structure 'row:4' is not offered: did you mean rows:4? none, rows:4, filters
    """

    text: str = NONE
    """The shortest text that `parse` reads as this structure."""
    pattern: str = UNSTRUCTURED
    """Pattern of the masks that the search chooses, such as 4x1 or 2:4, see `core.structure.pattern`."""
    channels: bool = False
    """Whether the search removes whole coupled channels."""
    multiple: int = 1
    """A group that loses channels retains a multiple of this number."""
    granularity: str = ""
    """Granularity of masks that are chosen by latency: auto, weights or rows:N; else empty."""
    tickets: Structuring | None = None
    """How a ticket's mask is derived from the search's mask; None if the ticket has the search's mask."""
    old: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The structure as settings of record format 1, without those that have default values."""

    @classmethod
    def parse(cls, text: str, offered: Iterable[Family], *, latency: bool = False) -> ParsedStructure:
        """Parse a value of the setting ``structure``.

        Args:
            text: the value, such as ``rows:4``.
            offered: families of structures that the method offers.
            latency: whether there is a latency budget.

        Raises:
            UsageError: if the value is unknown, or the method does not offer it.
        """
        families = tuple(offered)
        head, *options = text.split(",")
        kind, _, amount = head.partition(":")
        if text == NONE:
            return cls()
        if in_blocks(text) and "latency" in families and (latency or kind != "rows"):
            return cls(text, granularity=text, old={"structure": text})
        if not options and "blocks" in families and (kind == "rows" or head == FILTERS):
            rows = _parse_count(amount, text, least=2) if kind == "rows" else 0
            blocks = f"{rows}x1" if rows else "channel"
            return cls(text, blocks, old={"pattern": blocks})
        pattern = head.removeprefix("search:")
        by_search = kind == "search" or "tickets" not in families
        if not options and by_search and "n:m" in families and parse_n_of_m(pattern):
            return cls(f"search:{pattern}" if "tickets" in families else pattern, pattern, old={"pattern": pattern})
        if not options and "channels" in families and kind == "channels":
            multiple = _parse_count(amount, text, least=1) if amount else 1
            shortest = f"channels:{multiple}" if multiple > 1 else "channels"
            old = {"structured": True} | ({"multiple": multiple} if multiple > 1 else {})
            return cls(shortest, channels=True, multiple=multiple, old=old)
        if "tickets" in families and (kind in _OPTIONS or parse_n_of_m(head)):
            return _parse_ticket_structure(text, kind if kind in _OPTIONS else head, amount, options)
        words = ", ".join(_WORDS[family] for family in _WORDS if family in families)
        near = did_you_mean(head, words.replace(" (with a latency budget)", "").split(", "))
        raise UsageError(f"structure {text!r} is not offered: {near}{NONE}{words and f', {words}'}")

    @property
    def needs_latency(self) -> bool:
        """Whether blocks are chosen by their latency, so that the settings must have a latency budget."""
        return bool(self.granularity)

    @property
    def parsed_pattern(self) -> Pattern:
        return Pattern.parse(self.pattern)

    @property
    def trains_smaller_network(self) -> bool:
        """Whether tickets are trained without their removed channels, as smaller networks."""
        return self.channels or (self.tickets is not None and self.tickets.whole_channels)

    def __str__(self) -> str:
        return self.text


def _parse_ticket_structure(text: str, kind: str, amount: str, options: list[str]) -> ParsedStructure:
    """Parse a structure that is applied to tickets after the search, such as ``refill``."""
    values: dict[str, Any] = {}
    known = _OPTIONS.get(kind, {})
    for option in options:
        name, has_value, value = option.partition("=")
        if not has_value or name not in known:
            takes = ", ".join(f"{one}=…" for one in known) or "none"
            raise UsageError(f"structure {text!r} has the option {option!r}: the options of {kind} are {takes}")
        values[known[name]] = value
    if amount and kind == "regroup":
        values["rows"] = _parse_count(amount, text, least=1)
    elif amount and kind == "refill+":
        try:
            values |= {"match": True} if amount == "match" else {"plus": float(amount)}
        except ValueError:
            raise UsageError(
                f"structure {text!r}: after refill+ comes a share such as 0.2, or match, got {amount!r}"
            ) from None
    elif amount and kind == "refill":
        raise UsageError(f"structure {text!r}: refill takes no number: write refill, or refill+:{amount}")
    by = Structuring(kind=kind, **values)
    changed = {name: value for name, value in values.items() if value != getattr(Structuring, name)}
    number = "match" if changed.get("match") else changed.get("plus", changed.get("rows"))
    head = kind if number is None else f"{kind}:{number}"
    named = [f"{name}={changed[option]}" for name, option in known.items() if option in changed]
    old = {"structure": kind, **{_OLD_NAMES[name]: value for name, value in changed.items()}}
    return ParsedStructure(",".join([head, *named]), tickets=by, old=old)


def parsed_structure_of(settings: object) -> ParsedStructure:
    """Return the parsed structure of a method's settings; that of single weights if the method has no structure."""
    found = getattr(settings, "parsed_structure", None)
    return found if isinstance(found, ParsedStructure) else ParsedStructure()


def _parse_count(amount: str, text: str, *, least: int) -> int:
    if not amount.isdecimal() or int(amount) < least:
        raise UsageError(f"structure {text!r} needs a whole number from {least} on after the colon, got {amount!r}")
    return int(amount)
