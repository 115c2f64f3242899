"""Significance tests of paired differences that hold beyond Student's t, their power, and a diagnosis of assumptions.

Student's t has its nominal error rate if differences are normal and independent. With up to ten seeds it errs three to
eight times as often if a few per cent of tickets collapse, or if differences are skewed: most samples then look better
and steadier than the population (docs/evidence.md has the error rates). A guarded p-value is therefore the largest of

1. Student's t with an SD floor, by default the margin; where the observed SD is larger, also the t corrected for
   skewness (`hall`);
2. the test of an undetected collapse (`unseen_collapse`).

Where differences are correlated in their order, both use a correspondingly larger SD (`inflation`).

The levels of one search are tested with a pooled SD instead (`pooled_p_values`), because five replicates say little
about the SD of one level:

- SD = the largest of the level's own, the pooled one, `SD_FLOOR` margins and the metric's resolution;
- Student's t with `POOLED_LEVELS` (n - 1) degrees of freedom, fewer where fewer levels are pooled;
- or, if its p-value is larger, the test of an undetected collapse.

Levels whose median difference exceeds `LOST` margins are not pooled: they vary more than levels near dense. The median
ignores single collapsed replicates, so these stay in the pool. `benchmarks/verdict_levels.py` measures the error rates.

Every p-value falls as all differences rise by the same amount. Functions take arrays whose last axis is the seeds;
nothing here imports NumPy or SciPy when it is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt
from typing import Any, NamedTuple

from ticketry.errors import needs
from ticketry.records.verdict import Diagnosis as Found


def special() -> Any:
    """Return `scipy.special`, which has the distribution functions and imports faster than `scipy.stats`."""
    needs("scipy", "lab", "a verdict")
    import scipy.special

    return scipy.special


LEAST_SPREAD = 1.0
"""SD floor of seeds, in margins."""
UNSEEN_RATE = 0.05
"""Largest assumed share of seeds that collapse undetected."""
UNSEEN_FALL = 5.0
"""How far a collapsed seed falls below the others, in SD floors."""
LEAST_SEEDS = 3
"""Fewest seeds that can decide."""
ROUNDING = 1e-9
"""SD as a share of the values below which it is rounding error."""
_RATES = 26
_ORDER = 2.5758293035489004
"""Normal quantile of a two-sided 1 %, beyond which a correlation in order is significant."""
_MOST_CORRELATION = 0.9


class Sample(NamedTuple):
    """Statistics of differences of shape (..., n): arrays of shape (...)."""

    n: int
    mean: Any
    sd: Any
    skew: Any
    """`skewness`."""
    larger: Any
    """`inflation`."""


def sample_of(differences: Any) -> Sample:
    """Return the statistics of at least two differences along the last axis."""
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    larger = inflation(correlation(values), n)
    return Sample(n, values.mean(axis=-1), values.std(axis=-1, ddof=1), skewness(values), larger)


def guarded(differences: Any, null: float, least_spread: float) -> tuple[Any, Any]:
    """Return the guarded p-values of H0: mean <= null and of H0: mean >= null.

    Args:
        differences: shape (..., n).
        null: the mean at the edge of the hypothesis.
        least_spread: SD floor in the unit of the differences, above 0.

    Returns:
        Two arrays of shape (...); 1 for fewer than `LEAST_SEEDS`.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    if n < LEAST_SEEDS:
        return np.ones(values.shape[:-1]), np.ones(values.shape[:-1])
    distance, (statistic, corrected), ordered = _statistics(sample_of(values), null, least_spread)
    stdtr = special().stdtr
    students = stdtr(n - 1, -np.minimum(statistic, corrected)), stdtr(n - 1, np.maximum(statistic, corrected))
    collapse = [unseen_collapse(side * distance, n, UNSEEN_FALL * least_spread, ordered) for side in (1, -1)]
    above, below = (np.maximum(*both) for both in zip(students, collapse, strict=True))
    return above, below


def shown_above(sample: Sample, least_spread: float, alpha: float) -> Any:
    """Return whether the first p-value of `guarded`, of H0: mean <= 0, is at most alpha, without computing it."""
    import numpy as np

    distance, both, ordered = _statistics(sample, 0.0, least_spread)
    enough = special().stdtrit(sample.n - 1, 1 - alpha)
    edge = collapse_edge(sample.n, alpha, UNSEEN_FALL * least_spread, ordered)
    return (np.minimum(*both) >= enough) & (distance >= edge)


def _statistics(sample: Sample, null: float, least_spread: float) -> tuple[Any, tuple[Any, Any], Any]:
    """Return the distance from the null hypothesis, t and skewness-corrected t, and the SD without collapses."""
    import numpy as np

    distance = sample.mean - null
    statistic = distance / (np.maximum(sample.sd * sample.larger, least_spread) / sqrt(sample.n))
    # Differences with few decimals often have exactly the SD floor: rounding must not decide.
    larger = sample.sd > least_spread * (1 + ROUNDING)
    corrected = np.where(larger, hall(statistic, sample.skew, sample.n), statistic)
    ordered = np.where(sample.larger > 1, sample.sd * sample.larger, 0.0)
    return distance, (statistic, corrected), np.maximum(ordered, least_spread)


def unseen_collapse(distance: Any, n: int, fall: float, spread: Any) -> Any:
    """Return the p-value of the null hypothesis that a share of seeds collapses, but none of these n did.

    A share r of all seeds, up to `UNSEEN_RATE`, falls below the others, which are normal. With probability (1 - r)^n
    none of n seeds collapses, and the observed mean is r * fall above the true one. p is the largest, over r, of
    (1 - r)^n * P(Z >= (distance - r * fall) / (spread / sqrt(n))). Its error rate without an observed collapse is at
    most alpha, because the true r is among them.

    Args:
        distance: observed mean minus null hypothesis, in the direction of the claim.
        fall: how far a collapsed seed falls below the others, as a rule `UNSEEN_FALL` SD floors.
        spread: SD of the others.
    """
    import numpy as np

    rates = np.linspace(0, UNSEEN_RATE, _RATES)
    short = np.asarray(distance)[..., None] - rates * fall
    error = np.asarray(spread)[..., None] / sqrt(n)
    return ((1 - rates) ** n * special().ndtr(-short / error)).max(axis=-1)


def collapse_edge(n: int, alpha: float, fall: float, spread: Any) -> Any:
    """Return the distance from the null hypothesis at which `unseen_collapse` is alpha."""
    import numpy as np

    rates = np.linspace(0, UNSEEN_RATE, _RATES)
    unseen = (1 - rates) ** n
    rates, below = rates[alpha < unseen], special().ndtri(alpha / unseen[alpha < unseen])
    error = np.asarray(spread)[..., None] / sqrt(n)
    return (rates * fall - below * error).max(axis=-1)


def hall(statistic: Any, skew: Any, n: int) -> Any:
    """Return Student's t corrected for skewness by Hall's cubic transformation.

    "On the removal of skewness by transformation", Journal of the Royal Statistical Society B 54, 1992. Unlike
    Johnson's (1978) it is monotone in t.
    """
    root = sqrt(n)
    return statistic + skew * statistic**2 / (3 * root) + skew**2 * statistic**3 / (27 * n) + skew / (6 * root)


def skewness(differences: Any) -> Any:
    """Return the sample skewness G1 of Joanes and Gill (1998); 0 for fewer than 3 or for equal values."""
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    if n < 3:
        return np.zeros(values.shape[:-1])
    centred = _centred(values)
    spread = centred.std(axis=-1, ddof=1)
    third = n / ((n - 1) * (n - 2)) * (centred**3).sum(axis=-1)
    return _ratio(third, spread**3)


def correlation(differences: Any) -> Any:
    """Return the lag-1 autocorrelation in the order of seeds; 0 for equal values."""
    import numpy as np

    centred = _centred(np.asarray(differences, dtype=np.float64))
    return _ratio((centred[..., 1:] * centred[..., :-1]).sum(axis=-1), (centred**2).sum(axis=-1))


def inflation(found: Any, n: int) -> Any:
    """Return the factor of the standard error for a correlation in order: 1 unless significant at 1 %.

    Under independence it has mean -1/n and SD (n - 2) / (n sqrt(n - 1)) (Moran, "Some theorems on time series II",
    Biometrika 35, 1948). A negative correlation indicates shared randomness as well (two alternating parents).
    """
    import numpy as np

    chance = max((n - 2) / (n * sqrt(n - 1)), 1e-9)
    shown = np.abs(np.asarray(found) + 1 / n) > _ORDER * chance
    size = np.minimum(np.abs(found), _MOST_CORRELATION)
    return np.where(shown, np.sqrt((1 + size) / (1 - size)), 1.0)


def _centred(values: Any) -> Any:
    """Subtract the mean and divide by the largest value, so that squares and cubes neither vanish nor overflow.

    Values that differ only by rounding become 0.
    """
    import numpy as np

    gaps = values - values.mean(axis=-1, keepdims=True)
    largest = np.abs(gaps).max(axis=-1, keepdims=True)
    equal = largest <= ROUNDING * np.abs(values).max(axis=-1, keepdims=True)
    return np.where(equal, 0.0, gaps / np.where(equal, 1.0, largest))


def _ratio(one: Any, two: Any) -> Any:
    """Divide elementwise; 0 where the divisor is 0."""
    import numpy as np

    return np.where(two == 0, 0.0, one / np.where(two == 0, 1.0, two))


RULE = "pooled"
"""Name of these tests in records. Records without a rule were judged by `guarded_tests`, level by level."""
SD_FLOOR = 0.6
"""SD floor in margins."""
POOLED_LEVELS = 3
"""Most levels whose degrees of freedom count: levels of one search share replicates, so more add little."""
LOST = 5.0
"""In margins: levels with a larger median difference are not pooled."""


class PooledSD(NamedTuple):
    """The standard deviation of differences over the levels of one search."""

    sd: float
    """Root mean square over the pooled levels; 0 without any."""
    levels: int
    """Number of pooled levels."""
    margin: float

    @property
    def floor(self) -> float:
        return SD_FLOOR * self.margin

    @property
    def fall(self) -> float:
        """Assumed distance of an undetected collapse below the others."""
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
            float(unseen_collapse(side * distance, n, pooled.fall, spread)),
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
        edge = float(collapse_edge(n, alpha, pooled.fall, spread))
        return distance >= max(quantile * spread / sqrt(n), edge) + lift / sqrt(n)

    return next((n for n in range(LEAST_SEEDS, most + 1) if reached(n)), None)


SIMULATED = 64
"""Most seeds that are simulated: beyond, guarding costs less than two points of power."""
_SAMPLES = 2000
_SEED = 20261128


def guarded_power(n: int, distance: float, spread: float, alpha: float, least_spread: float) -> float:
    """Return the share of samples of n normal differences that `guarded` rejects at alpha, by simulation.

    The samples are fixed, so that the number is reproducible.

    Args:
        n: `LEAST_SEEDS` to `SIMULATED`.
        distance: true mean minus null hypothesis, in the direction of the claim.
        spread: the standard deviation of the differences; 0 for equal ones.
    """
    drawn = _normal_statistics(n)
    seen = drawn._replace(mean=distance + spread * drawn.mean, sd=spread * drawn.sd)
    return float(shown_above(seen, least_spread, alpha).mean())


@cache
def _normal_statistics(n: int) -> Sample:
    """Return statistics of standard normal samples: skewness and order do not depend on mean and SD."""
    return sample_of(_normal()[:, :n])


@cache
def _normal() -> Any:
    import numpy as np

    return np.random.default_rng(_SEED).standard_normal((_SAMPLES, SIMULATED))


_FAR = 3.0
"""SDs from the median beyond which a seed is an outlier, and below the median a collapse."""
_MAD = 1.4826
"""Ratio of SD to median absolute deviation of a normal distribution."""
_SHOWN = 2.5758


class Diagnosis(Found, frozen=True, kw_only=True):
    """Diagnosis of the differences of one comparison."""

    reasons: tuple[str, ...]
    """Descriptions of unusual properties."""


def diagnose(differences: Sequence[float], least_spread: float, name: str) -> Diagnosis | None:
    """Return skewness, correlation in order, outliers and the collapse rate that is not excluded.

    Args:
        differences: above 0 the ticket is better.
        least_spread: the SD floor.
        name: the other network's name.

    Returns:
        None for fewer than `LEAST_SEEDS` seeds.
    """
    import numpy as np

    n = len(differences)
    if n < LEAST_SEEDS:
        return None
    values = np.asarray(differences, dtype=np.float64)
    if np.ptp(values) <= ROUNDING * least_spread:  # rounding errors about 0 would be correlated
        values = np.zeros(n)
    gaps = values - np.median(values)
    far = _FAR * max(_MAD * float(np.median(np.abs(gaps))), least_spread)
    low, high = (tuple(int(seed) + 1 for seed in np.flatnonzero(side * gaps > far)) for side in (-1, 1))
    # Clopper-Pearson; never all are below their median
    bound = float(special().betaincinv(len(low) + 1, n - len(low), 0.95))
    skew, order = float(skewness(values)), float(correlation(values))
    reasons = []
    for seeds, word in ((low, "below"), (high, "above")):
        if seeds:
            numbers = ", ".join(map(str, seeds))
            reasons.append(f"{name}: seed number {numbers} is far {word} the others: do some seeds collapse here?")
    if abs(skew) > _SHOWN * sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3))):
        reasons.append(f"{name}: differences are skewed ({skew:+.1f}), so their mean is less certain than it seems")
    if inflation(order, n) > 1:
        reasons.append(
            f"{name}: differences are correlated in their order ({order:+.2f}), so seeds may share randomness: a larger"
            " standard error is used"
        )
    return Diagnosis(skewness=skew, correlation=order, low=low, high=high, collapse_rate=bound, reasons=tuple(reasons))
