"""Triton, which is installed with an extra."""

from __future__ import annotations

from importlib.util import find_spec

from ticketry.errors import MissingExtraError


def require_triton() -> None:
    """Raises:
    MissingExtraError: Triton is not installed.
    """
    if find_spec("triton") is None:
        raise MissingExtraError("triton", "gpu", "sparse kernels on a GPU")
