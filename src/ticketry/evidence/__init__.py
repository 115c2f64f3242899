"""Evidence that a ticket wins: verdicts, controls that should lose, stability, and error barriers.

The names below are imported when they are first used, so that ``import ticketry.evidence`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Bound now, over the module of the same name: imported later, that module would take the function's place here.
from ticketry.evidence.verdict import holm, verdict

if TYPE_CHECKING:
    from ticketry.evidence.comparison import compare
    from ticketry.evidence.connectivity import barrier, distance, instability, stability
    from ticketry.evidence.control import CONTROLS, Control
    from ticketry.evidence.controls import train_control
    from ticketry.evidence.rivals import Procedure
    from ticketry.evidence.settings import VerifySettings
    from ticketry.evidence.verification import verify, verify_procedure

_PUBLIC = {
    "CONTROLS": "ticketry.evidence.control",
    "Control": "ticketry.evidence.control",
    "Procedure": "ticketry.evidence.rivals",
    "VerifySettings": "ticketry.evidence.settings",
    "barrier": "ticketry.evidence.connectivity",
    "compare": "ticketry.evidence.comparison",
    "distance": "ticketry.evidence.connectivity",
    "instability": "ticketry.evidence.connectivity",
    "stability": "ticketry.evidence.connectivity",
    "train_control": "ticketry.evidence.controls",
    "verify": "ticketry.evidence.verification",
    "verify_procedure": "ticketry.evidence.verification",
}

__all__ = [
    "CONTROLS",
    "Control",
    "Procedure",
    "VerifySettings",
    "barrier",
    "compare",
    "distance",
    "holm",
    "instability",
    "stability",
    "train_control",
    "verdict",
    "verify",
    "verify_procedure",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ticketry.evidence' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
