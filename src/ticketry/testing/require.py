"""The check that contract tests use."""

from __future__ import annotations


def require(holds: bool, promise: str) -> None:
    """Raise `AssertionError` with the promise if it does not hold (unlike assert, also under python -O)."""
    if not holds:
        raise AssertionError(promise)
