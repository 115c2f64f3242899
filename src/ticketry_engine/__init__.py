"""Sparse kernels for masked PyTorch models: compile a model under a mask for inference, or train it under one.

`compile` turns a module and a mask into a module with the same call; `load` reads one that `Compiled.save` wrote.
A mask is a mapping of parameter names to bool tensors, True = retained.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry_engine.compiled import Compiled, compile, load

__all__ = ["Compiled", "compile", "load"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package does not load torch or llvmlite."""
    if name in __all__:
        return getattr(import_module("ticketry_engine.compiled"), name)
    raise AttributeError(f"module 'ticketry_engine' has no attribute {name!r}")
