"""Kinds of gates, one a file. `KINDS` is the only list of them."""

from __future__ import annotations

from typing import Any

from ticketry.core.gates.gate_kind import Kind
from ticketry.errors import UsageError
from ticketry.registry import Registry

_HERE = "ticketry.core.gates.kinds"


def _kind(name: str, found: Any) -> type[Kind]:
    if not (isinstance(found, type) and issubclass(found, Kind)):
        raise UsageError(f"{found!r} is no class derived from ticketry.gates.Kind")
    return found


KINDS: Registry[type[Kind]] = Registry(
    "kind of gates",
    "ticketry.gates",
    {
        "continuous": f"{_HERE}.continuous:Continuous",
        "stochastic": f"{_HERE}.stochastic:Stochastic",
        "hard-concrete": f"{_HERE}.hard_concrete:HardConcrete",
        "binary-concrete": f"{_HERE}.binary_concrete:BinaryConcrete",
    },
    make=_kind,
    unknown="gates of kind {name!r} are not known: {names}",
)
"""name -> class. Those of other packages are found by entry points of the group ``ticketry.gates``."""


def kind_of(kind: str | Kind, **settings: object) -> Kind:
    """The kind of a name, with those of the settings that are fields of it; `UsageError` if it is not known.

    A kind that is made already is given back as it is.
    """
    if isinstance(kind, Kind):
        return kind
    found = KINDS.get(kind)
    own = getattr(found, "__dataclass_fields__", {})
    return found(**{name: value for name, value in settings.items() if name in own})
