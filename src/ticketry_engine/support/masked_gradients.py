"""A mark on gradients that are 0 wherever a mask prunes, so that nobody masks them a second time."""

from __future__ import annotations

from torch import Tensor

_MARK = "_ticketry_masked"


def mark_masked(gradient: Tensor, mask: Tensor) -> None:
    """Mark a gradient as 0 where `mask` prunes."""
    setattr(gradient, _MARK, (mask, gradient._version))


def is_masked(gradient: Tensor, mask: Tensor) -> bool:
    """Return whether a gradient was marked with this mask, and not changed in place since then."""
    marked = getattr(gradient, _MARK, None)
    return marked is not None and marked[0] is mask and marked[1] == gradient._version
