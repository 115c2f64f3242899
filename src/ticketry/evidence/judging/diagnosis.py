"""What paired differences themselves tell against the assumptions of their test."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from ticketry.evidence.judging.distributions import special
from ticketry.evidence.judging.guarded_tests import LEAST_SEEDS, ROUNDING, correlation, inflation, skewness
from ticketry.records.verdict import Diagnosis as Found

_FAR = 3.0
"""Spreads from the median, beyond which a seed is an outlier, and below the median a collapse."""
_MAD = 1.4826
"""Standard deviations of a normal distribution to its median absolute deviation."""
_SHOWN = 2.5758


class Diagnosis(Found, frozen=True, kw_only=True):
    """Of the differences of one comparison."""

    reasons: tuple[str, ...]
    """What is unusual, in words."""


def diagnose(differences: Sequence[float], least_spread: float, name: str) -> Diagnosis | None:
    """Skewness, order, outliers and the rate of collapse that cannot be excluded; None below `LEAST_SEEDS` seeds.

    Args:
        differences: above 0 the ticket is the better one.
        least_spread: the spread is not taken to be below it.
        name: of the other network.
    """
    import numpy as np

    n = len(differences)
    if n < LEAST_SEEDS:
        return None
    values = np.asarray(differences, dtype=np.float64)
    if np.ptp(values) <= ROUNDING * least_spread:  # differences of rounding, about 0, hang together in any order
        values = np.zeros(n)
    gaps = values - np.median(values)
    far = _FAR * max(_MAD * float(np.median(np.abs(gaps))), least_spread)
    low, high = (tuple(int(seed) + 1 for seed in np.flatnonzero(side * gaps > far)) for side in (-1, 1))
    # Clopper and Pearson; not all lie below their median
    bound = float(special().betaincinv(len(low) + 1, n - len(low), 0.95))
    skew, order = float(skewness(values)), float(correlation(values))
    reasons = []
    for seeds, word in ((low, "below"), (high, "above")):
        if seeds:
            told = ", ".join(map(str, seeds))
            reasons.append(f"{name}: seed number {told} lies far {word} the others: are rare collapses the rule here?")
    if abs(skew) > _SHOWN * sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3))):
        reasons.append(
            f"{name}: differences are skewed ({skew:+.1f}), so that their mean is less certain than it seems"
        )
    if inflation(order, n) > 1:
        reasons.append(
            f"{name}: differences hang together in their order (correlation {order:+.2f}), so that seeds may share"
            " randomness: the standard error is taken to be larger"
        )
    return Diagnosis(skewness=skew, correlation=order, low=low, high=high, collapse_rate=bound, reasons=tuple(reasons))
