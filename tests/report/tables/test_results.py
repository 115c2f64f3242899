"""Means, standard deviations and paired differences against numpy and against sums done by hand."""

from __future__ import annotations

import numpy
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ticketry.records.run import read_run
from ticketry.report.tables.results import Results, mean_layer_densities, summarise


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_summary_and_interval_are_those_of_numpy_and_scipy(numbers):
    summary, count = summarise(numbers), len(numbers)
    assert summary.n == count
    assert summary.mean == pytest.approx(numpy.mean(numbers), rel=1e-9, abs=1e-6)
    assert summary.sd == pytest.approx(numpy.std(numbers, ddof=1), rel=1e-6, abs=1e-6)
    if summary.sd < 1e-6:
        return
    ends = scipy.stats.t.interval(0.95, count - 1, loc=numpy.mean(numbers), scale=scipy.stats.sem(numbers))
    assert summary.interval == pytest.approx(ends, rel=1e-6, abs=1e-7)


def _accuracies(record, level, role):
    return {p["replicate"]: p["test"]["accuracy"] for p in record["points"] if (p["level"], p["role"]) == (level, role)}


def test_every_group_has_the_points_of_its_level_and_role(make_record):
    record = make_record(levels=4, replicates=5)
    results = Results(read_run(record))
    for level in (1, 2, 3, 4):
        for role in ("ticket", "random_reinit", "shuffled", "random_prune"):
            expected = list(_accuracies(record, level, role).values())
            summary = results.group(level, role).metric()
            assert (summary.n, summary.mean) == (5, pytest.approx(numpy.mean(expected)))
            assert summary.sd == pytest.approx(numpy.std(expected, ddof=1))


def test_differences_are_paired_by_replicate(partial_record):
    results = Results(read_run(partial_record))
    tickets, dense = _accuracies(partial_record, 6, "ticket"), _accuracies(partial_record, 0, "dense")
    assert sorted(tickets) == [0, 1]
    assert sorted(dense) == [0, 1, 2]
    by_hand = [tickets[0] - dense[0], tickets[1] - dense[1]]
    difference = results.group(6, "ticket").paired_difference(results.dense)
    assert difference.n == 2
    assert difference.mean == pytest.approx(sum(by_hand) / 2)
    assert difference.sd == pytest.approx(abs(by_hand[0] - by_hand[1]) / 2**0.5)


def test_layer_profiles_are_means_over_replicates(make_record):
    record = make_record(levels=2, replicates=2)
    tickets = [p for p in record["points"] if (p["level"], p["role"]) == (2, "ticket")]
    tickets[0]["layers"][0]["kept"] = 235200
    tickets[1]["layers"][0]["kept"] = 0
    profile = mean_layer_densities(Results(read_run(record)))[1]
    assert profile.level == 2
    assert list(profile.layers) == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert profile.layers["fc1.weight"] == 0.5
