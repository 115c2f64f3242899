"""Kinds of gates, one a file. `KINDS` is the only list of them."""

from __future__ import annotations

from typing import Any

import torch

from ticketry.core.gates.gate_kind import Kind, Moment
from ticketry.errors import UsageError
from ticketry.registry import Registry

_HERE = "ticketry.core.gates.kinds"


def _kind(name: str, found: Any) -> type[Kind]:
    if not (isinstance(found, type) and issubclass(found, Kind)):
        raise UsageError(f"{found!r} is no class derived from ticketry.gates.Kind")
    _require_whole(found)
    return found


def _require_whole(kind: type[Kind]) -> None:
    """Raises `UsageError` where a kind does not say all that it has to, which would be told in the middle of a step."""
    lacks = [f"{name}()" for name in ("gate", "test_gate", "open") if getattr(kind, name) is getattr(Kind, name)]
    if not isinstance(getattr(kind, "name", None), str):
        lacks.append("name, a word")
    if lacks:
        raise UsageError(f"the kind of gates {kind.__name__} lacks {', '.join(lacks)}")


def _require_gates(kind: Kind) -> Kind:
    """The kind itself; `UsageError` where a method gives no gate for each s: what broadcasts would train too."""
    logits, moment = torch.zeros(3, 2), Moment(0.0, kind.inverse_temperature(0.0))
    given = {
        "gate": kind.gate(logits, moment, torch.full_like(logits, 0.5) if kind.draws else None),
        "test_gate": kind.test_gate(logits, moment),
        "hard_gate": kind.hard_gate(logits, moment),
        "open": kind.open(logits, moment),
    }
    for name, gates in given.items():
        if not isinstance(gates, torch.Tensor) or gates.shape != logits.shape:
            got = f"{list(gates.shape)}" if isinstance(gates, torch.Tensor) else f"a {type(gates).__name__}"
            raise UsageError(f"{name}() of the gates {kind.name!r} gives {got} for s of shape {list(logits.shape)}")
    return kind


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
    be made, or does not give a gate for each s.

    A kind that is made already is given back as it is.
    """
    if isinstance(kind, Kind):
        _require_whole(type(kind))
        return _require_gates(kind)
    if not isinstance(kind, str):
        told = f"the class {kind.__name__}: call it" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UsageError(f"kind= is a name ({', '.join(KINDS.built_in)}, …) or an object of a kind's class, not {told}")
    found = KINDS.get(kind)
    own = getattr(found, "__dataclass_fields__", {})
    try:
        made = found(**{name: value for name, value in settings.items() if name in own})
    except TypeError as error:
        raise UsageError(f"the kind of gates {kind!r} cannot be made by its name alone: {error}") from error
    return _require_gates(made)
