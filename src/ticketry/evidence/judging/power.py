"""How likely the guarded test shows a difference: by simulation, for a t that is guarded has no formula for that.

The samples are the same every time, so that a number once told stays as it is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ticketry.evidence.judging.guarded_tests import Sample, sample_of, shown_above

SIMULATED = 64
"""Beyond so many seeds what guards the test costs it less than two points of power, and samples cost time."""
_SAMPLES = 2000
_SEED = 20261128


def guarded_power(n: int, distance: float, spread: float, alpha: float, least_spread: float) -> float:
    """The share of samples of n normal differences that `guarded` rejects at alpha.

    Args:
        n: `LEAST_SEEDS` to `SIMULATED`.
        distance: of the mean from the null hypothesis, in the direction of the claim.
        spread: the standard deviation of the differences; 0 for equal ones.
    """
    drawn = _drawn(n)
    seen = drawn._replace(mean=distance + spread * drawn.mean, sd=spread * drawn.sd)
    return float(shown_above(seen, least_spread, alpha).mean())


@cache
def _drawn(n: int) -> Sample:
    """Of standard normal samples: skewness and order are the same at any mean and spread."""
    return sample_of(_normal()[:, :n])


@cache
def _normal() -> Any:
    import numpy as np

    return np.random.default_rng(_SEED).standard_normal((_SAMPLES, SIMULATED))
