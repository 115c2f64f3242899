"""Tests of paired differences against slow references, closed forms, SciPy and simulation."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from slow_p_values import slow_p, slow_pooled
from ticketry.evidence.comparison import compare, seeds_needed
from ticketry.evidence.significance import (
    UNSEEN_FALL,
    UNSEEN_RATE,
    Diagnosis,
    collapse_test_threshold,
    diagnose,
    guarded_p_values,
    guarded_power,
    hall_corrected_t,
    is_significantly_above,
    lag_1_correlation,
    pool_sd,
    pooled_p_values,
    replicates_needed,
    skewness,
    standard_error_inflation,
    summarise_differences,
    unseen_collapse_p_value,
)
from ticketry.evidence.verdict import holm

differences = st.lists(st.floats(-3, 3).map(lambda value: round(value, 3)), min_size=3, max_size=12)


@given(differences, st.floats(-1, 1), st.floats(0.05, 2))
@example([2.0, 3.0, 0.312, 1.312], 0.0, 1.0)  # symmetric: skewness is rounding alone
@settings(deadline=None, max_examples=40)
def test_p_values_are_those_of_the_slow_reference(values: list[float], null: float, least: float) -> None:
    assert guarded_p_values(values, null, least) == pytest.approx(
        slow_p(np.array(values), null, least), rel=1e-6, abs=1e-12
    )


TIES = [
    ([-2.5, 2.5, -0.5, -3.0, 1.5, 0.0, 0.5, 0.5, -0.5], 1.75),
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
    found = guarded_p_values(values, 0.0, least)
    assert found == pytest.approx(slow_p(np.array(values), 0.0, least), rel=1e-9)
    for shift in (0.1, 0.7, -1.3, 12.34):
        moved = guarded_p_values([value + shift for value in values], shift, least)
        assert moved == pytest.approx(found, rel=1e-9)
    above = guarded_p_values(values, 0.0, least * 0.999)
    assert any(one > two * (1 + 1e-4) for one, two in zip(above, found, strict=True)), "skewness counts just beyond"


@pytest.mark.parametrize("unit", [1e-60, 1e3])
def test_the_unit_of_a_metric_changes_nothing(unit: float) -> None:
    """A loss may be of 1e-9: its squares and cubes are no rounding, though those of differences near 1 would be."""
    skewed = -np.random.default_rng(8).exponential(1, (200, 7))
    hanging = np.cumsum(np.random.default_rng(9).normal(size=(200, 7)), axis=1)
    for rows in (skewed, hanging):
        expected = np.array(guarded_p_values(rows, -1.0, 0.05))
        assert np.array(guarded_p_values(unit * rows, -unit, 0.05 * unit)) == pytest.approx(expected, rel=1e-6)
        assert skewness(unit * rows) == pytest.approx(skewness(rows))
        assert lag_1_correlation(unit * rows) == pytest.approx(lag_1_correlation(rows))


@pytest.mark.parametrize("rate", [0.0, 0.05])
@pytest.mark.parametrize("n", [5, 40])
def test_an_unseen_collapse_errs_at_most_at_its_level(rate: float, n: int) -> None:
    """Of seeds of which a share falls and the mean lies at the null hypothesis: exact for the mean of normal seeds.

    P(none falls) * P(the mean of the others reaches the edge), in closed form.
    """
    for alpha in (0.001, 0.0328, 0.05):
        shift = rate * UNSEEN_FALL * 0.5
        edge = collapse_test_threshold(n, alpha, 0.5 * UNSEEN_FALL, 0.5)
        reached = (1 - rate) ** n * stats.norm.sf((edge - shift) / (0.5 / n**0.5))
        assert reached <= alpha * (1 + 1e-9)
    assert rate <= UNSEEN_RATE


@pytest.mark.parametrize("n", [3, 100])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_edge_is_where_p_is_alpha(n: int, alpha: float) -> None:
    for fall, spread in ((2.5, 0.5), (2.5, 1.5)):
        edge = collapse_test_threshold(n, alpha, fall, spread)
        assert unseen_collapse_p_value(edge, n, fall, spread) == pytest.approx(alpha)
        assert collapse_test_threshold(n, alpha, 2 * fall, 2 * spread) == pytest.approx(2 * edge)


def test_skewness_is_scipy_s() -> None:
    rows = np.random.default_rng(2).lognormal(0, 1, (5, 9))
    assert skewness(rows) == pytest.approx(stats.skew(rows, axis=1, bias=False))
    assert skewness([1.0, 1.0, 1.0]) == skewness([1.0, 2.0]) == 0


def test_hall_s_transformation_is_its_cubic_and_rises() -> None:
    """g(t) = t + a s t^2 / sqrt(n) + (a s)^2 t^3 / (3 n) + b s / sqrt(n), with a = 1/3 and b = 1/6."""
    t, s, n = 1.7, -0.8, 12
    a, b = 1 / 3, 1 / 6
    expected = t + a * s * t**2 / n**0.5 + (a * s) ** 2 * t**3 / (3 * n) + b * s / n**0.5
    assert hall_corrected_t(t, s, n) == pytest.approx(expected)
    grid = hall_corrected_t(np.linspace(-30, 30, 1001), -2.0, 5)
    assert (np.diff(grid) >= -1e-9).all()


def test_hall_s_transformation_halves_the_error_of_skewed_samples() -> None:
    """Differences whose distribution has its tail below: a t test at 5 % finds means above the truth too often."""
    rows = -np.random.default_rng(3).exponential(1, (20_000, 10)) + 1
    statistic = rows.mean(axis=1) / (rows.std(axis=1, ddof=1) / 10**0.5)
    plain, corrected = (
        (stats.t.sf(one, 9) <= 0.05).mean() for one in (statistic, hall_corrected_t(statistic, skewness(rows), 10))
    )
    assert plain > 0.12
    assert abs(corrected - 0.05) < abs(plain - 0.05) / 1.5


def test_the_correlation_by_chance_is_moran_s() -> None:
    """Over all orders of some values its mean is -1/n exactly; over normal samples its spread is Moran's."""
    values = [0.3, -1.2, 0.8, 2.0, 0.1, -0.4]
    orders = np.array(list(itertools.permutations(values)))
    assert lag_1_correlation(orders).mean() == pytest.approx(-1 / 6)
    n = 10
    drawn = lag_1_correlation(np.random.default_rng(4).normal(size=(20_000, n)))
    assert drawn.std() == pytest.approx((n - 2) / (n * (n - 1) ** 0.5), rel=0.03)
    assert (standard_error_inflation(drawn, n) > 1).mean() < 0.02


def test_an_order_that_is_plain_makes_the_error_larger() -> None:
    rising, turns = np.arange(10.0), np.array([0.0, 1.0] * 5)
    for values in (rising, turns):
        found = float(lag_1_correlation(values))
        assert standard_error_inflation(found, 10) == pytest.approx(
            ((1 + min(abs(found), 0.9)) / (1 - min(abs(found), 0.9))) ** 0.5
        )
        told = diagnose(tuple(values), 0.1, "dense")
        assert told is not None
        assert "are correlated in their order" in " ".join(told.reasons)
    assert lag_1_correlation([2.0, 2.0, 2.0]) == 0
    assert skewness([90.1 - 90.0] * 9 + [90.2 - 90.1]) == lag_1_correlation([0.1] * 10) == 0  # equal but for rounding


@pytest.mark.parametrize(("n", "error"), [(8, 0.752), (50, 0.337)])
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


LEAST = 0.5


@pytest.mark.parametrize("n", [3, 10])
@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_what_is_shown_is_what_the_p_value_says(n: int, spread: float) -> None:
    """Among them some that hang together in their order."""
    drawn = np.random.default_rng(n).normal(0.8, spread, (2000, n))
    drawn[:200] = np.sort(drawn[:200], axis=1)
    for alpha in (0.05, 0.004):
        assert np.array_equal(
            is_significantly_above(summarise_differences(drawn), LEAST, alpha),
            guarded_p_values(drawn, 0.0, LEAST)[0] <= alpha,
        )


@pytest.mark.parametrize(("distance", "spread", "alpha", "by_t_alone"), [(2.0, 0.8, 0.05, 3), (1.0, 0.5, 0.033, 4)])
def test_the_number_of_seeds_reaches_its_power_where_they_spread_more_than_the_least(
    distance: float, spread: float, alpha: float, by_t_alone: int
) -> None:
    """As many as Student's t alone asks for do not."""

    def power(n: int) -> float:
        drawn = np.random.default_rng(5).normal(distance, spread, (8000, n))
        return float((guarded_p_values(drawn, 0.0, LEAST)[0] <= alpha).mean())

    found = seeds_needed(distance, spread, alpha, least_spread=LEAST)
    assert found is not None
    assert power(found) > 0.785
    assert power(found - 1) < 0.815
    assert found > by_t_alone
    assert guarded_power(found, distance, spread, alpha, LEAST) == pytest.approx(power(found), abs=0.03)


def test_equal_differences_are_shown_surely_or_never() -> None:
    found = seeds_needed(0.5, 0.0, 0.05, least_spread=LEAST)
    assert found == next(n for n in range(3, 50) if guarded_p_values(np.full(n, 0.5), 0.0, LEAST)[0] <= 0.05)
    assert [guarded_power(n, 0.5, 0.0, 0.05, LEAST) for n in (found - 1, found)] == [0.0, 1.0]


MARGIN = 0.5


def compared(levels: Any, index: int) -> Any:
    own = [float(value) for value in levels[index]]
    return compare(own, [0.0] * len(own), margin=MARGIN, least_spread=0.3, pooled=pool_sd(levels, MARGIN))


@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (7, 5)])
@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_p_values_and_intervals_are_those_written_out(shape: tuple[int, int], scale: float) -> None:
    random = np.random.default_rng([*shape, int(100 * scale)])
    levels = (random.normal(0, scale, shape) + np.linspace(0.3, -4, shape[0])[:, None]).tolist()
    for index in range(shape[0]):
        found = compared(levels, index)
        above, below, interval = slow_pooled(levels, index, -MARGIN, MARGIN)
        assert (found.p_noninferior, found.p_inferior) == pytest.approx((above, below))
        assert (found.p_superior, found.p_worse) == pytest.approx(slow_pooled(levels, index, 0.0, MARGIN)[:2])
        assert (found.low, found.high) == pytest.approx(interval)


def test_lost_levels_are_not_pooled_and_single_collapses_are() -> None:
    steady = [0.1, -0.1, 0.2, 0.0, -0.2]
    lost = [-9.0, -14.0, -4.0, -20.0, -11.0]
    collapsed = [0.1, -0.1, 0.0, 0.2, -8.0]
    assert pool_sd([steady, lost], MARGIN) == pool_sd([steady], MARGIN)
    with_collapse = pool_sd([steady, collapsed], MARGIN)
    assert with_collapse.levels == 2
    assert with_collapse.sd == pytest.approx(((np.var(steady, ddof=1) + np.var(collapsed, ddof=1)) / 2) ** 0.5)
    assert pool_sd([lost], MARGIN).levels == 0
    assert compared([lost, lost], 0).p_noninferior > 0.99


@pytest.mark.parametrize(("distance", "spread", "alpha"), [(0.5, 0.3, 0.05), (0.3, 0.3, 0.01)])
def test_replicates_needed_reach_their_power(distance: float, spread: float, alpha: float) -> None:
    pooled = pool_sd([[-spread, spread] * 50] * 5, MARGIN)
    needed = replicates_needed(distance, spread, alpha, pooled)
    assert needed is not None
    means = np.random.default_rng(1).normal(distance, spread, (2000, needed + 1))

    def power(n: int) -> float:
        shown = [pooled_p_values(float(mean), spread, n, pooled)[0] <= alpha for mean in means[:, :n].mean(axis=1)]
        return float(np.mean(shown))

    assert power(needed) >= 0.77
    assert needed == 3 or power(needed - 1) < 0.83


def rates(draw: Any, runs: int) -> tuple[float, float]:
    """How often some level of a search is called as good as dense, and the share of levels that are."""
    words = []
    for _ in range(runs):
        levels = draw()
        p_values = holm([compared(levels, index).p_noninferior for index in range(len(levels))])
        words.append([p <= 0.05 for p in p_values])
    return float(np.any(words, axis=1).mean()), float(np.mean(words))


def test_levels_without_a_difference_are_called_as_good_and_levels_at_the_margin_are_not() -> None:
    random = np.random.default_rng(7)

    def normal(mean: float) -> Any:
        shared = random.normal(size=(1, 5))
        return (mean + 0.3 * (0.5**0.5 * shared + 0.5**0.5 * random.normal(size=(8, 5)))).tolist()

    assert rates(lambda: normal(0.0), 20)[1] >= 0.25
    assert rates(lambda: normal(-MARGIN), 40)[0] <= 0.05

    def collapsing() -> Any:  # 5 % of replicates fall by 5 margins, and the mean is at the margin with them
        return (np.asarray(normal(-MARGIN + 0.125)) - 2.5 * (random.random((8, 5)) < 0.05)).tolist()

    assert rates(collapsing, 40)[0] <= 0.05


def told(*differences: float, least: float = 0.01) -> Diagnosis:
    found = diagnose(differences, least, "dense")
    assert found is not None
    return found


@pytest.mark.parametrize("shift", [0.0, 10.0, -4.0])
@pytest.mark.parametrize(("far", "seen"), [(4.44, False), (4.46, True)])
def test_an_outlier_is_three_spreads_from_the_median(shift: float, far: float, seen: bool) -> None:
    """Deviations 0, 1, 1, 1, 1 and twice `far` have the median 1: a spread of 1.4826, and three of them are 4.4478."""
    found = told(*(shift + value for value in (-far, -1.0, -1.0, 0.0, 1.0, 1.0, far)))
    assert (found.low, found.high) == (((1,), (7,)) if seen else ((), ()))


def test_an_outlier_lies_beyond_three_least_spreads_and_not_at_them() -> None:
    assert told(0.0, 0.0, 0.0, 0.0, -3.0, 3.0, least=1.0).low == ()
    beyond = told(0.0, 0.0, 0.0, 0.0, -3.01, 3.01, least=1.0)
    assert (beyond.low, beyond.high) == ((5,), (6,))
    assert [reason.split(" the others")[0] for reason in beyond.reasons] == [
        "dense: seed number 5 is far below",
        "dense: seed number 6 is far above",
    ]


def test_skewness_and_correlation_are_scipys_and_pearsons_of_a_series_with_itself() -> None:
    values = (0.3, -0.2, 0.9, 0.1, -0.4, 0.2)
    found = told(*values, least=1.0)
    centred = np.array(values) - np.mean(values)
    assert found.skewness == pytest.approx(stats.skew(values, bias=False))
    assert found.correlation == pytest.approx((centred[1:] @ centred[:-1]) / (centred @ centred))


def test_differences_of_rounding_hang_together_in_no_order() -> None:
    noise = [1e-14 * (number // 5) for number in range(10)]
    found = told(*noise, least=0.5)
    assert (found.skewness, found.correlation, found.reasons) == (0, 0, ())
    assert told(*(1e12 * value for value in noise), least=0.5).correlation > 0.5


def test_what_was_not_seen_is_not_excluded() -> None:
    """With none of n, 1 - 0.05^(1/n)."""
    for n in (3, 5, 30):
        found = told(*np.linspace(-0.1, 0.1, n), least=5.0)
        assert found.collapse_rate == pytest.approx(1 - 0.05 ** (1 / n))
        assert (found.low, found.high) == ((), ())
