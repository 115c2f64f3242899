"""Tests for the levels of one search: each level's standard deviation is checked against that of the other levels.

Five replicates say little about the standard deviation (SD) of one level, and a search has many levels. A level is
therefore tested with

- SD = the largest of its own, the pooled one, `SD_FLOOR` margins and the metric's resolution;
- Student's t with `POOLED_LEVELS` (n - 1) degrees of freedom, fewer where fewer levels are pooled;
- or, if its p-value is larger, the test of a collapse that no replicate has shown (`unseen_collapse`).

Levels whose median difference is beyond `LOST` margins are not pooled: a network that has lost 10 points varies more
than one that has lost none, and would hide what the denser levels show. The median ignores single collapsed replicates,
so these stay in the pool. `benchmarks/verdict_levels.py` measures the error rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from ticketry.evidence.judging.distributions import special
from ticketry.evidence.judging.guarded_tests import LEAST_SEEDS, UNSEEN_FALL, edge_of_collapse, unseen_collapse_of

RULE = "pooled"
"""Name of these tests in records. Records without a rule were judged by `guarded_tests`, level by level."""
SD_FLOOR = 0.6
"""In margins: an SD below it is not believed."""
POOLED_LEVELS = 3
"""Levels whose degrees of freedom count: levels of one search share replicates, so that more add little."""
LOST = 5.0
"""In margins: levels with a larger median difference are not pooled."""


class PooledSD(NamedTuple):
    """The standard deviation of differences over the levels of one search."""

    sd: float
    """Root mean square over the pooled levels; 0 where there are none."""
    levels: int
    """How many are pooled."""
    margin: float

    @property
    def floor(self) -> float:
        return SD_FLOOR * self.margin

    @property
    def fall(self) -> float:
        """How far below the others an undetected collapse is taken to lie."""
        return UNSEEN_FALL * self.margin

    def freedom(self, n: int) -> int:
        """Degrees of freedom for n replicates."""
        return min(max(self.levels, 1), POOLED_LEVELS) * (n - 1)


def pool(levels: Sequence[Sequence[float]], margin: float) -> PooledSD:
    """Pool the standard deviations of levels.

    Args:
        levels: the differences of each level, one value a replicate.
        margin: in the unit of the differences.
    """
    import numpy as np

    near = [one for one in levels if len(one) > 1 and abs(float(np.median(one))) < LOST * margin]
    variances = [float(np.var(np.asarray(one, dtype=np.float64), ddof=1)) for one in near]
    return PooledSD(sqrt(sum(variances) / len(variances)) if variances else 0.0, len(variances), margin)


def pooled_p_values(distance: float, spread: float, n: int, pooled: PooledSD) -> tuple[float, float]:
    """Return the p-values of H0: the mean is at most, and at least, `distance` below the one observed.

    Args:
        distance: the mean observed minus the mean at the edge of the hypothesis.
        spread: the SD to test with, see `PooledSD`.
        n: replicates; below `LEAST_SEEDS` both p-values are 1.
    """
    if n < LEAST_SEEDS:
        return 1.0, 1.0
    statistic, freedom = distance / (spread / sqrt(n)), pooled.freedom(n)
    above, below = (
        max(
            float(special().stdtr(freedom, -side * statistic)),
            float(unseen_collapse_of(side * distance, n, pooled.fall, spread)),
        )
        for side in (1, -1)
    )
    return above, below


def replicates_needed(
    distance: float, spread: float, alpha: float, pooled: PooledSD, power: float = 0.8, most: int = 1000
) -> int | None:
    """Return the fewest replicates with which these tests reject at `alpha` with probability `power`.

    Args:
        distance: how far beyond the null hypothesis the true mean is taken to be.
        spread: the SD of the tests, taken to stay what it is.
        most: None is returned if more would be needed, or if the distance is not positive.
    """
    if distance <= 0:
        return None
    lift = float(special().ndtri(power)) * spread

    def reached(n: int) -> bool:
        quantile = float(special().stdtrit(pooled.freedom(n), 1 - alpha))
        edge = float(edge_of_collapse(n, alpha, pooled.fall, spread))
        return distance >= max(quantile * spread / sqrt(n), edge) + lift / sqrt(n)

    return next((n for n in range(LEAST_SEEDS, most + 1) if reached(n)), None)
