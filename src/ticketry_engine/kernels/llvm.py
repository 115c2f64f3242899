"""llvmlite's `ir`; or, where the extra ``engine`` is not installed, a stand-in that can only be imported from.

The lab imports the engine for all that trains, with kernels or without. Whoever makes code asks `target()` first, which
raises `MissingExtraError` where llvmlite is missing: the stand-in's types are named by then, and never used.
"""

from __future__ import annotations

from typing import Any

try:
    from llvmlite import ir
except ModuleNotFoundError:

    class _Named:
        """A type of llvmlite's that modules derive from, or make constants of, while they are imported."""

        def __init__(self, *of: Any, **how: Any) -> None:
            pass

    class _Absent:
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return _Named

    ir = _Absent()

__all__ = ["ir"]
