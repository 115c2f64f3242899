"""Compiles PyTorch models under a mask to sparse kernels for inference, and trains models under a mask with kernels.

A mask is a mapping of parameter names to bool tensors, True = retained.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry_engine.compiled import (
        Compiled,
        InspectedLayer,
        Machine,
        compile,
        examples_to_inspect,
        inspect,
        load,
        machine,
    )
    from ticketry_engine.gpu import CompiledGpu
    from ticketry_engine.results import Layer
    from ticketry_engine.training.sparse_training import SparseTraining, train

__all__ = ["Compiled", "CompiledGpu", "InspectedLayer", "Layer", "Machine", "SparseTraining", "compile"]
__all__ += ["examples_to_inspect", "inspect", "load", "machine", "train"]

_MODULES = {
    **dict.fromkeys(("Compiled", "compile", "load"), "compiled"),
    **dict.fromkeys(("InspectedLayer", "Machine", "examples_to_inspect", "inspect", "machine"), "compiled"),
    "CompiledGpu": "gpu",
    "Layer": "results",
    **dict.fromkeys(("SparseTraining", "train"), "training.sparse_training"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package does not load torch or llvmlite."""
    if name in _MODULES:
        return getattr(import_module(f"ticketry_engine.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'ticketry_engine' has no attribute {name!r}")
