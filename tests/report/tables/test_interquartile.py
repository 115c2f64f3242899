"""Returns over seeds: against SciPy, and in every table, figure and sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, t, trim_mean

from made_records import search_record
from ticketry.records.run import read_run
from ticketry.report import summary_lines
from ticketry.report.tables.results import Results, bootstrap_interval, interquartile_mean, interquartile_summary

RETURNS = np.random.default_rng(0).normal(400, 80, 200)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 20])
def test_the_mean_is_that_of_scipy(count: int) -> None:
    assert interquartile_mean(RETURNS[:count].tolist()) == pytest.approx(trim_mean(RETURNS[:count], 0.25))


@pytest.mark.parametrize("count", [3, 10, 20])
def test_the_interval_is_that_of_scipy(count: int) -> None:
    values = RETURNS[:count]
    low, high = bootstrap_interval(values.tolist(), 0.95)
    found = bootstrap(
        (values,), lambda x, axis: trim_mean(x, 0.25, axis=axis), method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx((found.low, found.high), abs=0.03 * (found.high - found.low))
    assert bootstrap_interval(values.tolist(), 0.95) == (low, high)


@pytest.mark.parametrize("count", [2, 3])
def test_the_interval_of_a_few_values_is_student_s_and_holds_the_truth_as_often_as_it_says(count: int) -> None:
    """Of three the bootstrap's lies between the least and the most: 1 - 2 / 2^3 of the time at best."""
    held = {"ours": 0, "bootstrap": 0}
    for values in np.random.default_rng(3).normal(size=(150, count)):
        found = interquartile_summary(tuple(values.tolist()))
        error = values.std(ddof=1) / count**0.5
        assert found.interval is not None
        assert found.interval == pytest.approx(t.interval(0.95, count - 1, values.mean(), error))
        for name, (low, high) in (("ours", found.interval), ("bootstrap", bootstrap_interval(values.tolist(), 0.95))):
            held[name] += low <= 0 <= high
    assert held["ours"] > 0.9 * 150
    assert held["bootstrap"] < 0.8 * 150


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    made = search_record(levels=3, replicates=5, metric=("return", "", True))
    made["task"]["metric"]["summary"] = "iqm"
    return made


def test_tables_show_it_with_its_interval(record: dict[str, Any]) -> None:
    values = [point["test"]["return"] for point in record["points"] if point["role"] == "dense"]
    low, high = bootstrap_interval(values, 0.95)
    group = Results(read_run(record)).dense
    assert group is not None
    assert group.metric().mean == pytest.approx(trim_mean(values, 0.25))
    assert group.metric().interval == (low, high)
    lines = "\n".join(summary_lines(record))
    assert "interquartile mean [95 % interval], n = 5" in lines
    assert "±" not in lines
    assert f"{trim_mean(values, 0.25):.2f} [{low:.2f}, {high:.2f}]" in lines
