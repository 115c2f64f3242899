"""The dense engines by name."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.engine.bench.dense import ChannelsLast, Compiled, Contender, Eager
from ticketry.engine.bench.runtimes import OnnxRuntime, OpenVino
from ticketry.errors import UsageError

_RIVALS: dict[str, type[Contender]] = {
    engine.name: engine for engine in (Eager, ChannelsLast, Compiled, OnnxRuntime, OpenVino)
}


def names() -> tuple[str, ...]:
    """All dense engines."""
    return tuple(_RIVALS)


def rivals(chosen: Sequence[str] | None = None) -> list[Contender]:
    """The engines of these names, each once; all of them for None.

    Raises:
        UsageError: for a name that is none of `names()`, or if there is no name.
    """
    asked = list(dict.fromkeys(names() if chosen is None else chosen))
    unknown = [name for name in asked if name not in _RIVALS]
    if unknown:
        raise UsageError(f"there is no dense engine {unknown[0]!r}: choose from {', '.join(names())}")
    if not asked:
        raise UsageError(f"name a dense engine to compare with: {', '.join(names())}")
    return [_RIVALS[name]() for name in asked]
