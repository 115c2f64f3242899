"""The engine: a masked model captured as a small graph, planned, and run by sparse kernels made for its masks.

Uses the core, the records (for what it tells of layers and times), and nothing of the lab: a model and a mask are
enough. `compile` makes a module of a model; `load` one of a model file that `Compiled.save` has written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry.engine.compiled import Compiled, compile, load
    from ticketry.records.speed import Layer

__all__ = ["Compiled", "Layer", "compile", "load"]

_WHERE = {"Compiled": "compiled", "Layer": "layers", "compile": "compiled", "load": "compiled"}


def __getattr__(name: str) -> Any:
    """Imported when first used: kernels alone do not need torch, nor a graph llvmlite."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ticketry.engine' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ticketry.engine.{_WHERE[name]}"), name)
