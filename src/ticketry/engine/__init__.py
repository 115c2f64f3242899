"""Provides the sparse engine of the package `ticketry_engine`: `compile`, `load`, `Compiled` and `Layer`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry.engine.adapters import compile
    from ticketry_engine import Compiled, Layer, load

__all__ = ["Compiled", "Layer", "compile", "load"]

_MODULES = {
    "Compiled": "ticketry_engine",
    "Layer": "ticketry_engine",
    "compile": "ticketry.engine.adapters",
    "load": "ticketry_engine",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package does not load torch or llvmlite."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ticketry.engine' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
