"""What differences are said to show, by outliers placed by hand at the edge of the rule, and the words of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ticketry.evidence.significance import Diagnosis, diagnose


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


def test_what_was_not_seen_is_not_excluded() -> None:
    """With none of n, 1 - 0.05^(1/n)."""
    for n in (3, 5, 30):
        found = told(*np.linspace(-0.1, 0.1, n), least=5.0)
        assert found.collapse_rate == pytest.approx(1 - 0.05 ** (1 / n))
        assert (found.low, found.high) == ((), ())


def test_skewness_and_correlation_are_scipys_and_pearsons_of_a_series_with_itself() -> None:
    values = (0.3, -0.2, 0.9, 0.1, -0.4, 0.2)
    found = told(*values, least=1.0)
    centred = np.array(values) - np.mean(values)
    assert found.skewness == pytest.approx(stats.skew(values, bias=False))
    assert found.correlation == pytest.approx((centred[1:] @ centred[:-1]) / (centred @ centred))


def test_skewed_differences_are_told_with_their_skewness() -> None:
    values = (0.0, 0.1, -0.1, 0.05, -0.05, 0.0, 0.1, 4.0)
    found = told(*values, least=5.0)
    skew = stats.skew(values, bias=False)
    assert found.reasons == (
        f"dense: differences are skewed ({skew:+.1f}), so their mean is less certain than it seems",
    )


def test_differences_of_rounding_hang_together_in_no_order() -> None:
    noise = [1e-14 * (number // 5) for number in range(10)]
    found = told(*noise, least=0.5)
    assert (found.skewness, found.correlation, found.reasons) == (0, 0, ())
    assert told(*(1e12 * value for value in noise), least=0.5).correlation > 0.5
