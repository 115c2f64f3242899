"""Significance tests of paired differences that assume less than Student's t, their power, and a diagnosis.

Student's t has its nominal error rate if differences are normal and independent. With up to ten seeds it errs three to
eight times as often if a few per cent of tickets collapse, or if differences are skewed: most samples then look better
and steadier than the population (error rates: docs/evidence.md). A guarded p-value is therefore the largest p-value of
these tests:

1. Student's t with an SD floor, by default the margin; where the observed SD is larger, also the t corrected for
   skewness (`hall_corrected_t`);
2. the test of an undetected collapse (`unseen_collapse_p_value`).

Where differences are correlated in their order, both use a correspondingly larger SD (`standard_error_inflation`).

The levels of one search are tested with a pooled SD instead (`pooled_p_values`), because five replicates say little
about the SD of one level:

- SD = the largest of the level's own, the pooled one, `SD_FLOOR` margins and the metric's resolution;
- Student's t with `POOLED_LEVELS` (n - 1) degrees of freedom, fewer where fewer levels are pooled;
- the test of an undetected collapse, if its p-value is larger.

Levels whose median difference exceeds `LOST` margins are not pooled: they vary more than levels that are nearly as good
as dense. The median ignores single collapsed replicates, so their levels stay in the pool.
`benchmarks/verdict_levels.py` measures the error rates.

Every p-value falls as all differences rise by the same amount. Functions take arrays whose last axis is the seeds.
Importing this module imports neither NumPy nor SciPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt
from typing import Any, NamedTuple

from ticketry.errors import needs
from ticketry.records.verdict import Diagnosis as Found


def import_scipy_special() -> Any:
    """Import and return `scipy.special`, which loads faster than `scipy.stats`."""
    needs("scipy", "lab", "a verdict")
    import scipy.special

    return scipy.special


LEAST_SPREAD = 1.0
"""Default SD floor of the guarded tests, in margins."""
UNSEEN_RATE = 0.05
"""Largest share of seeds that is assumed to collapse undetected."""
UNSEEN_FALL = 5.0
"""How far a collapsed seed is assumed to fall below the others, in SD floors."""
LEAST_SEEDS = 3
"""Smallest number of seeds that can decide."""
POWER = 0.8
"""Probability of a decision for which numbers of needed seeds are estimated."""
MOST_SEEDS = 1000
"""Largest number of needed seeds that is estimated."""
ROUNDING = 1e-9
"""An SD below this share of the values' magnitude counts as a rounding error."""
_RATES = 26
_ORDER = 2.5758293035489004
"""Normal quantile of a two-sided test at 1 %, beyond which a correlation of successive seeds is significant."""
_MOST_CORRELATION = 0.9


class DifferenceStatistics(NamedTuple):
    """Statistics of paired differences, computed over the last axis, which is the seeds."""

    n: int
    mean: Any
    sd: Any
    skew: Any
    """The result of `skewness`."""
    larger: Any
    """The result of `standard_error_inflation`."""


def summarise_differences(differences: Any) -> DifferenceStatistics:
    """Compute the statistics of differences; the last axis is the seeds, at least two."""
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    larger = standard_error_inflation(lag_1_correlation(values), n)
    return DifferenceStatistics(n, values.mean(axis=-1), values.std(axis=-1, ddof=1), skewness(values), larger)


def guarded_p_values(differences: Any, null: float, least_spread: float) -> tuple[Any, Any]:
    """Return p-values of H0: true mean <= `null` and H0: true mean >= `null`, guarded against skewness and collapses.

    Args:
        differences: array of shape (..., n), with n seeds.
        least_spread: SD floor, above 0, in the unit of the differences.

    Returns:
        Two arrays of shape (...), which are 1 if there are fewer than `LEAST_SEEDS` seeds.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    if n < LEAST_SEEDS:
        return np.ones(values.shape[:-1]), np.ones(values.shape[:-1])
    distance, (statistic, corrected), ordered = _test_statistics(summarise_differences(values), null, least_spread)
    stdtr = import_scipy_special().stdtr
    students = stdtr(n - 1, -np.minimum(statistic, corrected)), stdtr(n - 1, np.maximum(statistic, corrected))
    collapse = [unseen_collapse_p_value(side * distance, n, UNSEEN_FALL * least_spread, ordered) for side in (1, -1)]
    above, below = (np.maximum(*both) for both in zip(students, collapse, strict=True))
    return above, below


def is_significantly_above(sample: DifferenceStatistics, least_spread: float, alpha: float) -> Any:
    """Return whether `guarded_p_values` rejects H0: true mean <= 0 at alpha, without computing the p-values."""
    import numpy as np

    distance, both, ordered = _test_statistics(sample, 0.0, least_spread)
    enough = import_scipy_special().stdtrit(sample.n - 1, 1 - alpha)
    edge = collapse_test_threshold(sample.n, alpha, UNSEEN_FALL * least_spread, ordered)
    return (np.minimum(*both) >= enough) & (distance >= edge)


def _test_statistics(
    sample: DifferenceStatistics, null: float, least_spread: float
) -> tuple[Any, tuple[Any, Any], Any]:
    """Return (mean - null, (t, t corrected for skewness), SD for the test of an undetected collapse)."""
    import numpy as np

    distance = sample.mean - null
    statistic = distance / (np.maximum(sample.sd * sample.larger, least_spread) / sqrt(sample.n))
    # Differences with few decimals often have exactly the SD floor: rounding must not decide.
    larger = sample.sd > least_spread * (1 + ROUNDING)
    corrected = np.where(larger, hall_corrected_t(statistic, sample.skew, sample.n), statistic)
    ordered = np.where(sample.larger > 1, sample.sd * sample.larger, 0.0)
    return distance, (statistic, corrected), np.maximum(ordered, least_spread)


def unseen_collapse_p_value(distance: Any, n: int, fall: float, spread: Any) -> Any:
    """Return the p-value under the hypothesis that a share of all seeds collapses, although none of these n did.

    A share r of all seeds, at most `UNSEEN_RATE`, is assumed to fall by `fall` below the others, which are normal. With
    probability (1 - r)^n none of n seeds collapses; the observed mean is then r * fall above the true mean. The p-value
    is the largest value, over r, of (1 - r)^n * P(Z >= (distance - r * fall) / (spread / sqrt(n))) with a standard
    normal Z.

    Args:
        distance: observed mean minus the mean of the null hypothesis, in the direction of the claim.
        n: number of seeds.
        fall: how far a collapsed seed falls below the others, usually `UNSEEN_FALL` SD floors.
        spread: SD of seeds that do not collapse.
    """
    import numpy as np

    rates = np.linspace(0, UNSEEN_RATE, _RATES)
    short = np.asarray(distance)[..., None] - rates * fall
    error = np.asarray(spread)[..., None] / sqrt(n)
    return ((1 - rates) ** n * import_scipy_special().ndtr(-short / error)).max(axis=-1)


def collapse_test_threshold(n: int, alpha: float, fall: float, spread: Any) -> Any:
    """Return the distance of the mean from the null hypothesis at which `unseen_collapse_p_value` is alpha."""
    import numpy as np

    rates = np.linspace(0, UNSEEN_RATE, _RATES)
    unseen = (1 - rates) ** n
    rates, below = rates[alpha < unseen], import_scipy_special().ndtri(alpha / unseen[alpha < unseen])
    error = np.asarray(spread)[..., None] / sqrt(n)
    return (rates * fall - below * error).max(axis=-1)


def hall_corrected_t(statistic: Any, skew: Any, n: int) -> Any:
    """Correct Student's t for skewness by Hall's cubic transformation.

    Hall, "On the removal of skewness by transformation", Journal of the Royal Statistical Society B 54, 1992. The
    result is monotone in t, unlike Johnson's correction (1978).
    """
    root = sqrt(n)
    return statistic + skew * statistic**2 / (3 * root) + skew**2 * statistic**3 / (27 * n) + skew / (6 * root)


def skewness(differences: Any) -> Any:
    """Return the sample skewness G1 of Joanes and Gill (1998); 0 for fewer than 3 values, or equal values."""
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    if n < 3:
        return np.zeros(values.shape[:-1])
    centred = _subtract_mean_and_rescale(values)
    spread = centred.std(axis=-1, ddof=1)
    third = n / ((n - 1) * (n - 2)) * (centred**3).sum(axis=-1)
    return _divide_or_zero(third, spread**3)


def lag_1_correlation(differences: Any) -> Any:
    """Return the correlation between each difference and the next, in the order of seeds; 0 for equal values."""
    import numpy as np

    centred = _subtract_mean_and_rescale(np.asarray(differences, dtype=np.float64))
    return _divide_or_zero((centred[..., 1:] * centred[..., :-1]).sum(axis=-1), (centred**2).sum(axis=-1))


def standard_error_inflation(correlation: Any, n: int) -> Any:
    """Return the factor by which the lag-1 `correlation` enlarges the standard error of a mean.

    The factor is 1 unless the correlation is significant at 1 %. For n independent values the correlation has mean -1/n
    and SD (n - 2) / (n sqrt(n - 1)) (Moran, "Some theorems on time series II", Biometrika 35, 1948). Negative
    correlations count too: they arise, for instance, if seeds from two dense networks alternate.
    """
    import numpy as np

    chance = max((n - 2) / (n * sqrt(n - 1)), 1e-9)
    shown = np.abs(np.asarray(correlation) + 1 / n) > _ORDER * chance
    size = np.minimum(np.abs(correlation), _MOST_CORRELATION)
    return np.where(shown, np.sqrt((1 + size) / (1 - size)), 1.0)


def _subtract_mean_and_rescale(values: Any) -> Any:
    """Subtract the mean, then divide by the largest magnitude; squares and cubes then neither underflow nor overflow.

    Values that differ only by rounding errors become 0.
    """
    import numpy as np

    gaps = values - values.mean(axis=-1, keepdims=True)
    largest = np.abs(gaps).max(axis=-1, keepdims=True)
    equal = largest <= ROUNDING * np.abs(values).max(axis=-1, keepdims=True)
    return np.where(equal, 0.0, gaps / np.where(equal, 1.0, largest))


def _divide_or_zero(one: Any, two: Any) -> Any:
    import numpy as np

    return np.where(two == 0, 0.0, one / np.where(two == 0, 1.0, two))


RULE = "pooled"
"""Name, in records, of the tests with a pooled SD. In records without a rule, each level was tested alone with guarded
p-values."""
SD_FLOOR = 0.6
"""SD floor of the pooled tests, in margins."""
POOLED_LEVELS = 3
"""Largest number of levels that add degrees of freedom: levels share replicates, so further levels add little."""
LOST = 5.0
"""Levels whose median difference exceeds this number of margins are not pooled."""


class PooledSD(NamedTuple):
    """Pooled standard deviation of differences over the levels of one search."""

    sd: float
    """Root mean square of the pooled levels' SDs; 0 if no level is pooled."""
    levels: int
    """Number of pooled levels."""
    margin: float

    @property
    def sd_floor(self) -> float:
        return SD_FLOOR * self.margin

    @property
    def collapse_depth(self) -> float:
        """How far a collapsed seed is assumed to fall below the others, in the metric's unit."""
        return UNSEEN_FALL * self.margin

    def degrees_of_freedom(self, n: int) -> int:
        """Return the degrees of freedom of a pooled test with n replicates."""
        return min(max(self.levels, 1), POOLED_LEVELS) * (n - 1)


def pool_sd(levels: Sequence[Sequence[float]], margin: float) -> PooledSD:
    """Pool the standard deviations of the differences at each level of a search into one."""
    import numpy as np

    near = [one for one in levels if len(one) > 1 and abs(float(np.median(one))) < LOST * margin]
    variances = [float(np.var(np.asarray(one, dtype=np.float64), ddof=1)) for one in near]
    return PooledSD(sqrt(sum(variances) / len(variances)) if variances else 0.0, len(variances), margin)


def pooled_p_values(distance: float, spread: float, n: int, pooled: PooledSD) -> tuple[float, float]:
    """Return the p-values of H0: true mean <= null and H0: true mean >= null, from tests with a pooled SD.

    Args:
        distance: observed mean minus `null`, the mean that the hypotheses compare with.
        spread: the SD to test with, see the module.
        n: number of replicates; below `LEAST_SEEDS` both p-values are 1.
    """
    if n < LEAST_SEEDS:
        return 1.0, 1.0
    statistic, freedom = distance / (spread / sqrt(n)), pooled.degrees_of_freedom(n)
    above, below = (
        max(
            float(import_scipy_special().stdtr(freedom, -side * statistic)),
            float(unseen_collapse_p_value(side * distance, n, pooled.collapse_depth, spread)),
        )
        for side in (1, -1)
    )
    return above, below


def replicates_needed(distance: float, spread: float, alpha: float, pooled: PooledSD) -> int | None:
    """Return the smallest number of replicates with which `pooled_p_values` has the power `POWER` at `alpha`.

    The result is None if the distance is not positive, or more than `MOST_SEEDS` replicates are needed.

    Args:
        distance: assumed distance of the true mean from the null hypothesis, in the direction of the claim.
        spread: the SD to test with, assumed not to change with more replicates.
    """
    if distance <= 0:
        return None
    lift = float(import_scipy_special().ndtri(POWER)) * spread

    def has_power(n: int) -> bool:
        quantile = float(import_scipy_special().stdtrit(pooled.degrees_of_freedom(n), 1 - alpha))
        edge = float(collapse_test_threshold(n, alpha, pooled.collapse_depth, spread))
        return distance >= max(quantile * spread / sqrt(n), edge) + lift / sqrt(n)

    return next((n for n in range(LEAST_SEEDS, MOST_SEEDS + 1) if has_power(n)), None)


SIMULATED = 64
"""Largest number of seeds in simulations. With more seeds, the guarded tests lose less than two points of power against
Student's t."""
_SAMPLES = 2000
_SEED = 20261128


def guarded_power(n: int, distance: float, spread: float, alpha: float, least_spread: float) -> float:
    """Estimate the power of `guarded_p_values` at alpha for n normal differences, by simulation with fixed samples.

    Args:
        n: number of differences, `LEAST_SEEDS` to `SIMULATED`.
        distance: true mean minus the mean of the null hypothesis, in the direction of the claim.
        spread: standard deviation of the differences; 0 for equal ones.
    """
    drawn = _standard_normal_statistics(n)
    seen = drawn._replace(mean=distance + spread * drawn.mean, sd=spread * drawn.sd)
    return float(is_significantly_above(seen, least_spread, alpha).mean())


@cache
def _standard_normal_statistics(n: int) -> DifferenceStatistics:
    """Return statistics of fixed standard normal samples of size n; scaled, they hold for any mean and SD."""
    import numpy as np

    return summarise_differences(np.random.default_rng(_SEED).standard_normal((_SAMPLES, SIMULATED))[:, :n])


_FAR = 3.0
"""Distance from the median, in SDs, beyond which a seed is an outlier; an outlier below the median is a collapse."""
_MAD = 1.4826
"""Ratio of SD to median absolute deviation of a normal distribution."""
_SHOWN = 2.5758


class Diagnosis(Found, frozen=True, kw_only=True):
    """Diagnosis of one comparison's differences: checks of assumptions, with unusual findings as text."""

    reasons: tuple[str, ...]
    """Sentences about unusual properties; empty if all is usual."""


def diagnose(differences: Sequence[float], least_spread: float, name: str) -> Diagnosis | None:
    """Check differences for skewness, correlation of successive seeds and outliers; bound the rate of collapses.

    Differences are positive if the ticket is better. Return None if there are fewer than `LEAST_SEEDS` seeds.
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
    bound = float(import_scipy_special().betaincinv(len(low) + 1, n - len(low), 0.95))
    skew, order = float(skewness(values)), float(lag_1_correlation(values))
    reasons = []
    for seeds, word in ((low, "below"), (high, "above")):
        if seeds:
            numbers = ", ".join(map(str, seeds))
            reasons.append(f"{name}: seed number {numbers} is far {word} the others: do some seeds collapse here?")
    if abs(skew) > _SHOWN * sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3))):
        reasons.append(f"{name}: differences are skewed ({skew:+.1f}), so their mean is less certain than it seems")
    if standard_error_inflation(order, n) > 1:
        reasons.append(
            f"{name}: differences are correlated in their order ({order:+.2f}), so seeds may share randomness: a larger"
            " standard error is used"
        )
    return Diagnosis(skewness=skew, correlation=order, low=low, high=high, collapse_rate=bound, reasons=tuple(reasons))
