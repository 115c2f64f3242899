"""The power that numbers of seeds are told by, against samples of its own."""

from __future__ import annotations

import numpy as np
import pytest

from ticketry.evidence.comparison import seeds_needed
from ticketry.evidence.significance import (
    collapse_edge,
    guarded,
    guarded_power,
    sample_of,
    shown_above,
    unseen_collapse,
)

LEAST = 0.5


@pytest.mark.parametrize("n", [3, 4, 10, 40])
@pytest.mark.parametrize("spread", [0.1, 0.6, 2.0])
def test_what_is_shown_is_what_the_p_value_says(n: int, spread: float) -> None:
    """Among them some that hang together in their order."""
    drawn = np.random.default_rng(n).normal(0.8, spread, (2000, n))
    drawn[:200] = np.sort(drawn[:200], axis=1)
    for alpha in (0.05, 0.004):
        assert np.array_equal(shown_above(sample_of(drawn), LEAST, alpha), guarded(drawn, 0.0, LEAST)[0] <= alpha)


@pytest.mark.parametrize("ordered", [0.0, 1.5])
def test_at_its_edge_an_unseen_collapse_is_as_likely_as_alpha(ordered: float) -> None:
    edge = collapse_edge(7, 0.02, LEAST, ordered)
    assert unseen_collapse(edge, 7, LEAST, ordered) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("distance", "spread", "alpha", "by_t_alone"),
    [(2.0, 0.8, 0.05, 3), (1.0, 0.8, 0.05, 6), (2.0, 1.5, 0.033, 6), (1.0, 0.5, 0.033, 4), (0.5, 0.8, 0.033, 22)],
)
def test_the_number_of_seeds_reaches_its_power_where_they_spread_more_than_the_least(
    distance: float, spread: float, alpha: float, by_t_alone: int
) -> None:
    """As many as Student's t alone asks for do not."""

    def power(n: int) -> float:
        drawn = np.random.default_rng(5).normal(distance, spread, (8000, n))
        return float((guarded(drawn, 0.0, LEAST)[0] <= alpha).mean())

    found = seeds_needed(distance, spread, alpha, least_spread=LEAST)
    assert found is not None
    assert power(found) > 0.785
    assert power(found - 1) < 0.815
    assert found > by_t_alone
    assert guarded_power(found, distance, spread, alpha, LEAST) == pytest.approx(power(found), abs=0.03)


def test_equal_differences_are_shown_surely_or_never() -> None:
    found = seeds_needed(0.5, 0.0, 0.05, least_spread=LEAST)
    assert found == next(n for n in range(3, 50) if guarded(np.full(n, 0.5), 0.0, LEAST)[0] <= 0.05)
    assert [guarded_power(n, 0.5, 0.0, 0.05, LEAST) for n in (found - 1, found)] == [0.0, 1.0]
