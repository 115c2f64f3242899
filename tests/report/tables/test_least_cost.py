"""The least cost at which tickets are as good as dense, against curves whose crossing is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from made_records import search_record
from ticketry.records.network import RelativeLatency
from ticketry.records.run import read_run
from ticketry.report.page import render_report
from ticketry.report.subject import read_report_subject
from ticketry.report.tables.frontier import MULTIPLICATIONS, TIME, lowest_cost_ratio, lowest_matching_cost
from ticketry.report.tables.results import Results

SHARES = (0.5, 0.25, 0.125)


def run(
    differences: Sequence[Sequence[float]],
    shares: Sequence[float] = SHARES,
    metric: tuple[str, str, bool] = ("accuracy", "%", True),
    **changed: Any,
) -> Results:
    """A run whose tickets differ from the dense network by so much: a row a replicate, a number a level."""
    made = read_run(search_record(levels=len(shares), replicates=len(differences), metric=metric))
    points = []
    for point in made.points:
        value, timed = 90.0 + point.replicate, None
        if point.level:
            value += differences[point.replicate][point.level - 1]
            share = shares[point.level - 1]
            timed = RelativeLatency(share=share, low=share, high=share)
        points.append(structs.replace(point, test={**point.test, "accuracy": value}, timed=timed))
    return Results(structs.replace(made, points=tuple(points), **changed))


def crossing(means: Sequence[float], shares: Sequence[float], margin: float) -> float:
    """By small steps along the lines between levels."""
    costs, values = np.log([1.0, *shares]), [0.0, *means]
    steps = np.linspace(0.0, costs[-1], 200_001)
    below = np.interp(-steps, -costs, values) < -margin
    return float(np.exp(steps[below.argmax()] if below.any() else costs[-1]))


@pytest.mark.parametrize("means", [(0.3, -0.2, -1.7), (-3.0, 0.5, 0.5), (0.2, 0.1, 0.0)])
def test_it_is_where_lines_between_levels_cross_the_margin_first(means: Sequence[float]) -> None:
    spread = np.array([-0.1, 0.0, 0.1])
    found = lowest_matching_cost(run([[mean + by for mean in means] for by in spread]), TIME, 0.5)
    assert found is not None
    assert found.value == pytest.approx(crossing(means, SHARES, 0.5), rel=1e-4)
    assert found.reached == (min(means) < -0.5)


def test_a_loss_is_better_where_it_is_lower() -> None:
    found = lowest_matching_cost(run([[-0.3, 0.2, 1.7]] * 3, metric=("accuracy", "", False)), TIME, 0.5)
    assert found is not None
    assert found.value == pytest.approx(crossing((0.3, -0.2, -1.7), SHARES, 0.5), rel=1e-4)


def test_the_interval_covers_what_it_should() -> None:
    """Normal differences of five replicates around a curve that is known, four hundred times."""
    draw, inside, means = np.random.default_rng(0), 0, np.array([0.2, -0.1, -1.5])
    truth = crossing(means, SHARES, 0.5)
    base = run([[0.0] * 3] * 5).run
    for _ in range(400):
        own = draw.normal(0.0, 0.25, (5, 1)) + draw.normal(0.0, 0.2, (5, 3)) + means
        points = tuple(
            structs.replace(
                point,
                test={**point.test, "accuracy": 90.0 + (own[point.replicate, point.level - 1] if point.level else 0)},
            )
            for point in base.points
        )
        found = lowest_matching_cost(Results(structs.replace(base, points=points)), TIME, 0.5)
        assert found is not None
        assert found.interval is not None
        inside += found.interval[0] <= truth <= found.interval[1]
    assert 0.9 * 400 <= inside <= 0.99 * 400


def test_a_ratio_is_paired_by_replicate() -> None:
    """What replicates have in common does not widen it: both curves shift alike, and the ratio stays what it is."""
    shifts = np.array([-0.3, 0.0, 0.3])
    one = run([[s, -0.5 + s, -2.0 + s] for s in shifts])
    other = run([[s, -0.5 + s, -2.0 + s] for s in shifts], shares=[0.8, 0.4, 0.2], name="two")
    found = lowest_cost_ratio(one, other, TIME, 0.5)
    assert found is not None
    assert found.interval is not None
    assert found.value == pytest.approx(0.25 / 0.4)
    assert math.log(found.interval[1] / found.interval[0]) < math.log(2)
    alone = lowest_matching_cost(one, TIME, 0.5)
    assert alone is not None
    assert alone.interval is not None
    assert found.interval[1] / found.interval[0] < alone.interval[1] / alone.interval[0]


def test_a_ratio_by_what_falls_short_nowhere_is_a_bound() -> None:
    """Tickets that still match at the cheapest level may match below it: they may need less than they are seen to."""
    falls = run([[s, -0.5 + s, -2.0 + s] for s in (-0.1, 0.0, 0.1)], shares=[0.4, 0.2, 0.1])
    holds = run([[s, s, s] for s in (-0.1, 0.0, 0.1)], shares=[0.8, 0.6, 0.4], name="two")
    least = lowest_matching_cost(holds, TIME, 0.5)
    assert least is not None
    assert (least.value, least.bound_prefix, least.interval) == (pytest.approx(0.4), "at most ", None)
    low, high = lowest_cost_ratio(falls, holds, TIME, 0.5), lowest_cost_ratio(holds, falls, TIME, 0.5)
    assert low is not None
    assert high is not None
    assert (low.value, low.bound_prefix, low.interval) == (pytest.approx(0.5), "at least ", None)
    assert (high.value, high.bound_prefix, high.interval) == (pytest.approx(2.0), "at most ", None)
    assert lowest_cost_ratio(holds, holds, TIME, 0.5) is None


def test_other_seeds_make_no_ratio_and_two_replicates_no_interval() -> None:
    one = run([[0.0, -1.0, -2.0]] * 2)
    other = run([[0.0, -1.0, -2.0]] * 2, name="two", seeds={**one.run.seeds, "master": 77})
    assert lowest_cost_ratio(one, other, TIME, 0.5) is None
    found = lowest_matching_cost(one, TIME, 0.5)
    assert found is not None
    assert found.interval is None
    assert lowest_matching_cost(one, MULTIPLICATIONS, 0.5) is None


@pytest.mark.usefixtures("dots")
def test_the_page_tells_it_of_each_run_and_lays_them_side_by_side() -> None:
    one = run([[0.1, -0.2, -2.0], [0.2, -0.1, -1.5], [0.0, -0.3, -1.8]])
    other = run([[-0.1, -1.2, -2.0], [-0.2, -1.1, -2.5], [0.0, -1.3, -2.8]], name="two")
    page = render_report(read_report_subject(one.run))
    assert "The mean of the tickets is within 0.5 points of the dense network&#39;s down to" in page
    both = render_report(read_report_subject([one.run, other.run]))
    assert "the first&#39;s, by it" in both
