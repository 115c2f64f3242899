"""What of a search is not the library's own, by digests of its source: a run of other source is another run."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from ticketry.errors import TicketryError
from ticketry.registry import digest_defining_source
from ticketry.search.common.method import Method


def procedure_sources(method: Method[Any], settings: Any) -> dict[str, str]:
    """Digests of the source of a method, and of the score and the kind of gates that its settings name.

    What is built in has none. Nor has a method that was made at a prompt or in a notebook, where there is no file.

    Raises:
        UsageError: if a module has no source file.
    """
    defined = (sys.modules.get(method.module), method.search, method.Settings)
    found = {"method": digest_defining_source(*defined), **{name: _named(settings, name) for name in ("score", "kind")}}
    return {name: source for name, source in found.items() if source}


def _named(settings: Any, name: str) -> str:
    """Of what a setting of this name stands for: "" where it is another thing, as settings of one's own may be."""
    value = getattr(settings, name, None)
    if not isinstance(value, str):
        return ""
    from ticketry.core.gates.kinds import KINDS  # these import torch
    from ticketry.core.score import source_of

    with contextlib.suppress(TicketryError):  # a score that cannot be used is told of where it is used
        if name == "score":
            return source_of(value)
        return KINDS.digest_source(value) if KINDS.is_outside(value) else ""
    return ""
