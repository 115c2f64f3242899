"""Guarded tests written out seed by seed with SciPy's distributions, to compare the library's with."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from scipy import stats


def slow_p(differences: Any, null: float, least: float) -> tuple[float, float]:
    """p-values of H0: mean <= null and of H0: mean >= null."""
    values = [float(value) for value in differences]
    n, mean = len(values), sum(map(float, differences)) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    sd = math.sqrt(squares / (n - 1))
    larger = _larger(values, mean, squares)
    error = max(sd * larger, least) / math.sqrt(n)
    assumed = max(least, sd * larger if larger > 1 else 0) / math.sqrt(n)
    sides = []
    for sign in (1, -1):
        statistic = sign * (mean - null) / error
        found = [float(stats.t.sf(statistic, n - 1))]
        if _spreads_more(values, least):
            skew = sign * float(stats.skew(values, bias=False))
            found.append(float(stats.t.sf(_cubic(statistic, skew, n) + skew / (6 * math.sqrt(n)), n - 1)))
        for percent in range(26):
            rate, none_seen = 0.002 * percent, (1 - 0.002 * percent) ** n
            short = (sign * (mean - null) - rate * 5 * least) / assumed
            found.append(none_seen * float(stats.norm.sf(short)))
        sides.append(max(found))
    return sides[0], sides[1]


def _spreads_more(values: list[float], least: float) -> bool:
    """Whether the standard deviation is above `least` by more than rounding, 1e-9 of it; in fractions."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
    return variance > (Fraction(least) * (1 + Fraction(1, 10**9))) ** 2


def slow_pooled(levels: Any, level: int, null: float, margin: float) -> tuple[float, float, tuple[float, float]]:
    """p-values of H0: mean <= null and H0: mean >= null for one of several levels, and the 95 % interval.

    Args:
        levels: differences, a list for each level.
    """
    variances = []
    for one in levels:
        ordered = sorted(one)
        middle = (ordered[(len(one) - 1) // 2] + ordered[len(one) // 2]) / 2
        if abs(middle) < 5 * margin:
            variances.append(_variance(one))
    own = levels[level]
    n, mean = len(own), sum(own) / len(own)
    of_all = sum(variances) / len(variances) if variances else 0.0
    sd = max(math.sqrt(_variance(own)), math.sqrt(of_all), 0.6 * margin)
    freedom, error = max(1, min(3, len(variances))) * (n - 1), sd / math.sqrt(n)
    sides = []
    for sign in (1, -1):
        found = [float(stats.t.sf(sign * (mean - null) / error, freedom))]
        for step in range(26):
            rate = 0.002 * step
            short = sign * (mean - null) - rate * 5 * margin
            found.append((1 - rate) ** n * float(stats.norm.sf(short / error)))
        sides.append(max(found))
    half = float(stats.t.isf(0.025, freedom)) * error
    return sides[0], sides[1], (mean - half, mean + half)


def _variance(values: Any) -> float:
    mean = sum(values) / len(values)
    return float(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _cubic(statistic: float, skew: float, n: int) -> float:
    """((1 + skew * statistic / (3 root))^3 - 1) * root / skew, in fractions: of a skewness that is rounding alone, the
    difference from 1 would have no digit that is true.
    """
    if not skew:
        return statistic
    root, of_skew = Fraction(math.sqrt(n)), Fraction(skew)
    return float(((1 + of_skew * Fraction(statistic) / (3 * root)) ** 3 - 1) * root / of_skew)


def _larger(values: list[float], mean: float, squares: float) -> float:
    if squares < 1e-20:
        return 1.0
    n = len(values)
    order = sum((values[k] - mean) * (values[k + 1] - mean) for k in range(n - 1)) / squares
    if abs(order + 1 / n) <= stats.norm.isf(0.005) * (n - 2) / (n * math.sqrt(n - 1)):
        return 1.0
    size = min(abs(order), 0.9)
    return math.sqrt((1 + size) / (1 - size))
