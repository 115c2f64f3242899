"""llvmlite's `ir`; without the extra ``engine``, a stand-in that only supports being imported.

Kernel modules name llvmlite's types at import time. Code generation calls `target()` first, which raises
`MissingExtraError` if llvmlite is missing, so the stand-in's types are never used.
"""

from __future__ import annotations

from typing import Any

try:
    from llvmlite import ir
except ModuleNotFoundError:

    class _Named:
        """Stand-in for a type that modules derive from or instantiate at import time."""

        def __init__(self, *of: Any, **how: Any) -> None:
            pass

    class _Absent:
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return _Named

    ir = _Absent()

__all__ = ["ir"]
