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


def kind_of(kind: object, **settings: object) -> Kind:
    """The kind of a name, with those of the settings that are fields of it; `UsageError` if it is not known, or cannot
    be made.

    A kind that is made already is given back as it is.
    """
    if isinstance(kind, Kind):
        return kind
    if not isinstance(kind, str):
        told = f"the class {kind.__name__}: call it" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UsageError(f"kind= is a name ({', '.join(KINDS.built_in)}, …) or an object of a kind's class, not {told}")
    found = KINDS.get(kind)
    own = getattr(found, "__dataclass_fields__", {})
    try:
        return found(**{name: value for name, value in settings.items() if name in own})
    except TypeError as error:
        raise UsageError(f"the kind of gates {kind!r} cannot be made by its name alone: {error}") from error
