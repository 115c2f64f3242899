"""The passes that make a captured graph small, in their order."""

from __future__ import annotations

from ticketry.engine.capture.convert import Converted
from ticketry.engine.graph import Graph


def simplify(converted: Converted) -> Graph:
    return converted.graph
