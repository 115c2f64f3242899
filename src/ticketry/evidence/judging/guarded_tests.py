"""Tests of a mean difference that hold beyond Student's t: where few seeds are no proof of how the differences spread.

Student's t errs at its level if differences are normal and independent. With up to ten seeds it errs three to eight
times as often where a few per cent of tickets collapse, or where differences are skewed, for then most samples look
better and steadier than the truth (docs/evidence.md has the numbers). So a p-value here is the largest of

1. Student's t with a spread that is not taken to be below a *least spread*, by default the margin; where the spread
   seen is larger than that, the t corrected for skewness, if that is larger (`hall`);
2. the test of a *collapse that was not seen* (`unseen_collapse`).

Where differences hang together in their order, both count with a spread that is as much larger (`inflation`).
Every p-value falls as all differences rise by the same. All functions take arrays of differences whose last axis is the
seeds; nothing here imports NumPy or SciPy when it is imported.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

from ticketry.evidence.judging.distributions import special

LEAST_SPREAD = 1.0
"""Standard deviation, in margins, below which the spread of seeds is never taken."""
UNSEEN_RATE = 0.05
"""The largest share of seeds that is allowed for as collapsing without having been seen."""
UNSEEN_FALL = 5.0
"""How far below the others such a seed falls, in least spreads."""
LEAST_SEEDS = 3
"""Fewer decide nothing."""
ROUNDING = 1e-9
"""A spread below this share of the values is the floating point's, not the networks'."""
_RATES = 26
_ORDER = 2.5758293035489004
"""Normal quantile of a two-sided 1 %, beyond which an order is taken to be seen."""
_MOST_CORRELATION = 0.9


class Sample(NamedTuple):
    """What of differences the tests go by: arrays of shape (...), of differences of shape (..., n)."""

    n: int
    mean: Any
    sd: Any
    skew: Any
    """`skewness`."""
    larger: Any
    """`inflation`."""


def sample_of(differences: Any) -> Sample:
    """Of at least two differences along the last axis."""
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    larger = inflation(correlation(values), n)
    return Sample(n, values.mean(axis=-1), values.std(axis=-1, ddof=1), skewness(values), larger)


def guarded(differences: Any, null: float, least_spread: float) -> tuple[Any, Any]:
    """p-values of H0: mean <= null and of H0: mean >= null.

    Args:
        differences: shape (..., n).
        null: the mean at the edge of the hypothesis.
        least_spread: in the unit of the differences, above 0.

    Returns:
        Two arrays of shape (...); 1 for fewer than `LEAST_SEEDS`.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    if n < LEAST_SEEDS:
        return np.ones(values.shape[:-1]), np.ones(values.shape[:-1])
    distance, (statistic, corrected), ordered = _seen(sample_of(values), null, least_spread)
    stdtr = special().stdtr
    students = stdtr(n - 1, -np.minimum(statistic, corrected)), stdtr(n - 1, np.maximum(statistic, corrected))
    collapse = [unseen_collapse(side * distance, n, least_spread, ordered) for side in (1, -1)]
    above, below = (np.maximum(*both) for both in zip(students, collapse, strict=True))
    return above, below


def shown_above(sample: Sample, least_spread: float, alpha: float) -> Any:
    """Whether the first p-value of `guarded`, of H0: mean <= 0, is at most alpha; quicker than to reckon it."""
    import numpy as np

    distance, both, ordered = _seen(sample, 0.0, least_spread)
    enough = special().stdtrit(sample.n - 1, 1 - alpha)
    return (np.minimum(*both) >= enough) & (distance >= collapse_edge(sample.n, alpha, least_spread, ordered))


def _seen(sample: Sample, null: float, least_spread: float) -> tuple[Any, tuple[Any, Any], Any]:
    """The distance from the null hypothesis, t and that without skewness, and the spread of what hangs together."""
    import numpy as np

    distance = sample.mean - null
    statistic = distance / (np.maximum(sample.sd * sample.larger, least_spread) / sqrt(sample.n))
    # Differences with few decimals often have the least spread exactly: there rounding must not decide.
    larger = sample.sd > least_spread * (1 + ROUNDING)
    corrected = np.where(larger, hall(statistic, sample.skew, sample.n), statistic)
    return distance, (statistic, corrected), np.where(sample.larger > 1, sample.sd * sample.larger, 0.0)


def unseen_collapse(distance: Any, n: int, least_spread: float, ordered: Any = 0.0) -> Any:
    """p-value of a mean that lies at the null hypothesis because of seeds that none of the n was.

    A share r of all seeds falls `UNSEEN_FALL` least spreads short of the others, which are normal with the least
    spread; r is anything up to `UNSEEN_RATE`. With probability (1 - r)^n none of n seeds has fallen, and those seen
    lie r * fall above the true mean. So p is the largest, over r, of
    (1 - r)^n * P(Z >= (distance - r * fall) / (spread / sqrt(n))). It is at most alpha, with no fall seen, with a
    probability of at most alpha: the true r is among them.

    Args:
        distance: of the mean seen from the null hypothesis, in the direction of the claim.
        ordered: the spread that takes the least's place if it is larger, of seeds that hang together in their order.
    """
    import numpy as np

    return unseen_collapse_of(distance, n, UNSEEN_FALL * least_spread, np.maximum(ordered, least_spread))


def unseen_collapse_of(distance: Any, n: int, fall: float, spread: Any) -> Any:
    """Return the p-value of `unseen_collapse` for a fall and a standard deviation of the other seeds.

    Args:
        distance: of the observed mean from the null hypothesis, in the direction of the claim.
        fall: how far a collapsed seed lies below the others.
        spread: the standard deviation of the others.
    """
    import numpy as np

    rates = np.linspace(0, UNSEEN_RATE, _RATES)
    short = np.asarray(distance)[..., None] - rates * fall
    error = np.asarray(spread)[..., None] / sqrt(n)
    return ((1 - rates) ** n * special().ndtr(-short / error)).max(axis=-1)


def collapse_edge(n: int, alpha: float, least_spread: float, ordered: Any = 0.0) -> Any:
    """The distance at which `unseen_collapse` is alpha: a mean must be so far from the null hypothesis."""
    import numpy as np

    return edge_of_collapse(n, alpha, UNSEEN_FALL * least_spread, np.maximum(ordered, least_spread))


def edge_of_collapse(n: int, alpha: float, fall: float, spread: Any) -> Any:
    """Return the distance at which `unseen_collapse_of` is alpha."""
    import numpy as np

    rates = np.linspace(0, UNSEEN_RATE, _RATES)
    unseen = (1 - rates) ** n
    rates, below = rates[alpha < unseen], special().ndtri(alpha / unseen[alpha < unseen])
    error = np.asarray(spread)[..., None] / sqrt(n)
    return (rates * fall - below * error).max(axis=-1)


def hall(statistic: Any, skew: Any, n: int) -> Any:
    """Student's t without what skewness does to it: the cubic transformation of Hall.

    "On the removal of skewness by transformation", Journal of the Royal Statistical Society B 54, 1992. It rises with
    t, as Johnson's (1978) does not.
    """
    root = sqrt(n)
    return statistic + skew * statistic**2 / (3 * root) + skew**2 * statistic**3 / (27 * n) + skew / (6 * root)


def skewness(differences: Any) -> Any:
    """Of a sample, G1 of Joanes and Gill (1998); 0 for fewer than 3 or for equal values."""
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
    """Of each difference with the next (lag 1), in the order of seeds; 0 for equal values."""
    import numpy as np

    centred = _centred(np.asarray(differences, dtype=np.float64))
    return _ratio((centred[..., 1:] * centred[..., :-1]).sum(axis=-1), (centred**2).sum(axis=-1))


def inflation(found: Any, n: int) -> Any:
    """How much larger the standard error is for a correlation in order: 1 unless it is shown at 1 %.

    By chance it has the mean -1/n and the standard deviation (n - 2) / (n sqrt(n - 1)) (Moran, "Some theorems on time
    series II", Biometrika 35, 1948). A negative one is a sign of shared randomness as well (two parents in turns).
    """
    import numpy as np

    chance = max((n - 2) / (n * sqrt(n - 1)), 1e-9)
    shown = np.abs(np.asarray(found) + 1 / n) > _ORDER * chance
    size = np.minimum(np.abs(found), _MOST_CORRELATION)
    return np.where(shown, np.sqrt((1 + size) / (1 - size)), 1.0)


def _centred(values: Any) -> Any:
    """What is left of values without their mean, in units of the largest: then squares and cubes of no unit vanish, be
    it of a loss of 1e-9, nor overflow. 0 where rounding alone tells values apart."""
    import numpy as np

    gaps = values - values.mean(axis=-1, keepdims=True)
    largest = np.abs(gaps).max(axis=-1, keepdims=True)
    equal = largest <= ROUNDING * np.abs(values).max(axis=-1, keepdims=True)
    return np.where(equal, 0.0, gaps / np.where(equal, 1.0, largest))


def _ratio(one: Any, two: Any) -> Any:
    """One divided by the other; 0 where the latter is 0."""
    import numpy as np

    return np.where(two == 0, 0.0, one / np.where(two == 0, 1.0, two))
