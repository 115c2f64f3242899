"""Guarded tests against a slow reference, closed forms, SciPy and simulation."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from slow_p_values import slow_p
from ticketry.evidence.significance import (
    UNSEEN_FALL,
    UNSEEN_RATE,
    collapse_edge,
    correlation,
    diagnose,
    guarded,
    hall,
    inflation,
    skewness,
    unseen_collapse,
)

differences = st.lists(st.floats(-3, 3).map(lambda value: round(value, 3)), min_size=3, max_size=12)


@given(differences, st.floats(-1, 1), st.floats(0.05, 2))
@example([2.0, 3.0, 0.312, 1.312], 0.0, 1.0)  # symmetric: skewness is rounding alone
@settings(deadline=None, max_examples=100)
def test_p_values_are_those_of_the_slow_reference(values: list[float], null: float, least: float) -> None:
    assert guarded(values, null, least) == pytest.approx(slow_p(np.array(values), null, least), rel=1e-6, abs=1e-12)


TIES = [
    ([-2.5, 2.5, -0.5, -3.0, 1.5, 0.0, 0.5, 0.5, -0.5], 1.75),
    ([2.2, -1.0, 1.6, 3.0, -0.2, -0.2, -0.2, -0.4, 0.2], 1.3666666666666667),
    ([-1.0, 0.0, 3.0, 2.0, 0.0, 0.0, 0.0, 1.0, -1.0], 1.3333333333333333),
    ([0.0, -2.0, -2.0, 2.0, -1.0, -1.0, 3.0, 0.0, 2.0], 1.8333333333333333),
    ([0.0, 0.0, 0.0, 2.0], 1.0),
    ([0.1, 0.1, 0.1, 2.1], 1.0),
]


@pytest.mark.parametrize(("values", "least"), TIES)
def test_a_spread_that_is_the_least_is_not_larger_whatever_rounding_says(values: list[float], least: float) -> None:
    """It is exactly the least one; as a float it comes out on either side, and skewness would count or not."""
    exact = [Fraction(str(value)) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
    assert variance == Fraction(least).limit_denominator(1000) ** 2
    found = guarded(values, 0.0, least)
    assert found == pytest.approx(slow_p(np.array(values), 0.0, least), rel=1e-9)
    for shift in (0.1, 0.7, -1.3, 12.34):
        moved = guarded([value + shift for value in values], shift, least)
        assert moved == pytest.approx(found, rel=1e-9)
    above = guarded(values, 0.0, least * 0.999)
    assert any(one > two * (1 + 1e-4) for one, two in zip(above, found, strict=True)), "skewness counts just beyond"


@given(differences, st.floats(-1, 1), st.floats(0.05, 2), st.floats(0, 2))
@settings(deadline=None, max_examples=100)
def test_p_values_fall_as_differences_rise(values: list[float], null: float, least: float, more: float) -> None:
    above, below = guarded(values, null, least)
    up, down = guarded([value + more for value in values], null, least)
    assert up <= above + 1e-9
    assert down >= below - 1e-9


@given(differences, st.floats(-1, 1), st.floats(0.05, 2))
@settings(deadline=None, max_examples=50)
def test_the_two_sides_mirror_each_other(values: list[float], null: float, least: float) -> None:
    above, below = guarded(values, null, least)
    assert guarded([-value for value in values], -null, least) == pytest.approx((below, above))


@pytest.mark.parametrize("unit", [1e-60, 1e-9, 1e3, 1e60])
def test_the_unit_of_a_metric_changes_nothing(unit: float) -> None:
    """A loss may be of 1e-9: its squares and cubes are no rounding, though those of differences near 1 would be."""
    skewed = -np.random.default_rng(8).exponential(1, (200, 7))
    hanging = np.cumsum(np.random.default_rng(9).normal(size=(200, 7)), axis=1)
    for rows in (skewed, hanging):
        expected = np.array(guarded(rows, -1.0, 0.05))
        assert np.array(guarded(unit * rows, -unit, 0.05 * unit)) == pytest.approx(expected, rel=1e-6)
        assert skewness(unit * rows) == pytest.approx(skewness(rows))
        assert correlation(unit * rows) == pytest.approx(correlation(rows))


# -- an unseen collapse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("n", [5, 10, 40])
def test_an_unseen_collapse_errs_at_most_at_its_level(rate: float, n: int) -> None:
    """Of seeds of which a share falls and the mean lies at the null hypothesis: exact for the mean of normal seeds.

    P(none falls) * P(the mean of the others reaches the edge), in closed form.
    """
    for alpha in (0.001, 0.0328, 0.05):
        shift = rate * UNSEEN_FALL * 0.5
        reached = (1 - rate) ** n * stats.norm.sf((collapse_edge(n, alpha, 0.5) - shift) / (0.5 / n**0.5))
        assert reached <= alpha * (1 + 1e-9)
    assert rate <= UNSEEN_RATE


@pytest.mark.parametrize("n", [3, 10, 100])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_edge_is_where_p_is_alpha(n: int, alpha: float) -> None:
    assert unseen_collapse(collapse_edge(n, alpha, 0.5), n, 0.5) == pytest.approx(alpha)
    assert collapse_edge(n, alpha, 1.0) == pytest.approx(2 * collapse_edge(n, alpha, 0.5))


# -- skewness ----------------------------------------------------------------------------------------------------------


def test_skewness_is_scipy_s() -> None:
    rows = np.random.default_rng(2).lognormal(0, 1, (5, 9))
    assert skewness(rows) == pytest.approx(stats.skew(rows, axis=1, bias=False))
    assert skewness([1.0, 1.0, 1.0]) == skewness([1.0, 2.0]) == 0


def test_hall_s_transformation_is_its_cubic_and_rises() -> None:
    """g(t) = t + a s t^2 / sqrt(n) + (a s)^2 t^3 / (3 n) + b s / sqrt(n), with a = 1/3 and b = 1/6."""
    t, s, n = 1.7, -0.8, 12
    a, b = 1 / 3, 1 / 6
    expected = t + a * s * t**2 / n**0.5 + (a * s) ** 2 * t**3 / (3 * n) + b * s / n**0.5
    assert hall(t, s, n) == pytest.approx(expected)
    grid = hall(np.linspace(-30, 30, 1001), -2.0, 5)
    assert (np.diff(grid) >= -1e-9).all()


def test_hall_s_transformation_halves_the_error_of_skewed_samples() -> None:
    """Differences whose distribution has its tail below: a t test at 5 % finds means above the truth too often."""
    rows = -np.random.default_rng(3).exponential(1, (20_000, 10)) + 1
    statistic = rows.mean(axis=1) / (rows.std(axis=1, ddof=1) / 10**0.5)
    plain, corrected = ((stats.t.sf(one, 9) <= 0.05).mean() for one in (statistic, hall(statistic, skewness(rows), 10)))
    assert plain > 0.12
    assert abs(corrected - 0.05) < abs(plain - 0.05) / 1.5


# -- order -------------------------------------------------------------------------------------------------------------


def test_the_correlation_by_chance_is_moran_s() -> None:
    """Over all orders of some values its mean is -1/n exactly; over normal samples its spread is Moran's."""
    values = [0.3, -1.2, 0.8, 2.0, 0.1, -0.4]
    orders = np.array(list(itertools.permutations(values)))
    assert correlation(orders).mean() == pytest.approx(-1 / 6)
    n = 10
    drawn = correlation(np.random.default_rng(4).normal(size=(40_000, n)))
    assert drawn.std() == pytest.approx((n - 2) / (n * (n - 1) ** 0.5), rel=0.03)
    assert (inflation(drawn, n) > 1).mean() < 0.02


def test_an_order_that_is_plain_makes_the_error_larger() -> None:
    rising, turns = np.arange(10.0), np.array([0.0, 1.0] * 5)
    for values in (rising, turns):
        found = float(correlation(values))
        assert inflation(found, 10) == pytest.approx(((1 + min(abs(found), 0.9)) / (1 - min(abs(found), 0.9))) ** 0.5)
        told = diagnose(tuple(values), 0.1, "dense")
        assert told is not None
        assert "are correlated in their order" in " ".join(told.reasons)
    assert correlation([2.0, 2.0, 2.0]) == 0
    assert skewness([90.1 - 90.0] * 9 + [90.2 - 90.1]) == correlation([0.1] * 10) == 0  # equal but for rounding


# -- diagnosis ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "error"), [(8, 0.752), (10, 0.687), (20, 0.512), (50, 0.337)])
def test_skewness_is_told_beyond_its_published_standard_error(n: int, error: float) -> None:
    """At 1 %, two-sided: beyond 2.576 standard errors of G1, as tables print them to three places."""

    def sample(last: float) -> np.ndarray:
        return np.append(np.linspace(-1, 1, n - 1), last)

    def beyond(last: float, share: float) -> float:
        return float(skewness(sample(last))) - share * 2.576 * error

    for share, told in ((0.99, False), (1.01, True)):
        edge = optimize.brentq(beyond, 1.0, 100.0, args=(share,))
        found = diagnose(tuple(sample(edge)), 100.0, "dense")
        assert found is not None
        assert any(reason.startswith("dense: differences are skewed (+") for reason in found.reasons) == told
