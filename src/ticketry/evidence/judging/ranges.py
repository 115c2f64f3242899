"""What margins, confidences and spreads may be. Needs no torch."""

from __future__ import annotations

from math import isfinite
from numbers import Real

from ticketry.errors import UsageError


def check_settings(
    margin: float, confidence: float, resolution: float | None, least_spread: float | None = None
) -> None:
    """Raise `UsageError` if a setting is no number or out of its range."""
    given = {"margin": margin, "confidence": confidence, "resolution": resolution, "least_spread": least_spread}
    for name, value in given.items():
        if not isinstance(value, Real) and not (value is None and name in ("resolution", "least_spread")):
            raise UsageError(f"{name}= is a number, such as 0.5, not {value!r:.60}")
    if not (isfinite(margin) and margin > 0):
        raise UsageError(f"a margin of {margin}: it must be above 0, in the metric's unit (0.5 points of accuracy)")
    if not 0.5 < confidence < 1:
        raise UsageError(f"a confidence of {confidence}: it must lie between 0.5 and 1 (0.95 means 95 %)")
    if resolution is not None and not (isfinite(resolution) and resolution > 0):
        raise UsageError(f"a resolution of {resolution}: it must be above 0 (100 / test examples for % of accuracy)")
    if least_spread is not None and not (isfinite(least_spread) and least_spread > 0):
        raise UsageError(f"a least spread of {least_spread}: it must be above 0, in the metric's unit, as the margin")
