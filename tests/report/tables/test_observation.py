"""Which level the report points at, and what it says, on records whose right answer is plain."""

from __future__ import annotations

import pytest

from ticketry.records.run import read_run
from ticketry.report import verdict_line
from ticketry.report.tables.observation import describe_highlighted_level
from ticketry.report.tables.results import Results


def _record(make_record, means, metric=("accuracy", "%", True), replicates=2):
    """Test metrics by (level, role), each the same in every replicate."""
    record = make_record(levels=3, replicates=replicates, controls=("shuffled",), metric=metric)
    record["points"] = [p for p in record["points"] if (p["level"], p["role"]) in means]
    for point in record["points"]:
        point["test"][metric[0]] = means[point["level"], point["role"]]
    return record


_CLEAR = {
    (0, "dense"): 90.0,
    (1, "ticket"): 90.2,
    (1, "shuffled"): 89.0,
    (2, "ticket"): 89.6,
    (2, "shuffled"): 80.0,
    (3, "ticket"): 89.4,
    (3, "shuffled"): 70.0,
}


def _level(record):
    return describe_highlighted_level(Results(read_run(record))).level


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, 2),
        ({(3, "ticket"): 89.5}, 3),
        ({(2, "shuffled"): 89.6}, 1),
        ({(2, "shuffled"): 89.7, (1, "shuffled"): 95.0}, None),
        ({(0, "dense"): 91.0}, None),
    ],
)
def test_the_sparsest_level_within_half_a_point_and_above_the_control(make_record, changes, level):
    assert _level(_record(make_record, {**_CLEAR, **changes})) == level


def test_less_can_be_better(make_record):
    means = {key: 100 - value for key, value in _CLEAR.items()}
    assert _level(_record(make_record, means, ("error", "%", False))) == 2


def test_without_per_cent_the_margin_is_one_per_cent(make_record):
    means = {(0, "dense"): 2.0, (1, "ticket"): 2.01, (2, "ticket"): 2.019, (3, "ticket"): 2.03}
    record = _record(make_record, means, ("loss", "", False))
    assert _level(record) == 2
    assert "no more than 1 % worse than dense; no controls were trained" in verdict_line(record)


@pytest.mark.parametrize(
    ("roles", "text"),
    [
        ((), "No dense network has finished yet"),
        (("ticket",), "No dense network has finished yet"),
        (("dense",), "Only the dense network has finished so far: 90.00 ± 0.00 % (n = 2) on the test set."),
    ],
)
def test_a_run_that_has_just_begun(make_record, roles, text):
    means = {key: value for key, value in _CLEAR.items() if key[1] in roles}
    assert verdict_line(_record(make_record, means)).startswith(text)


def test_controls_with_more_steps_are_no_rivals(make_record):
    """Cyclic training may be better than the tickets without a change of what is said of them."""
    record = make_record(levels=3, replicates=3, controls=("shuffled", "random_prune"))
    without = [point for point in record["points"] if point["role"] != "random_prune"]
    for point in record["points"]:
        if point["role"] == "random_prune":
            point.update(role="cyclic", test=dict.fromkeys(point["test"], 99.9))
    told = describe_highlighted_level(Results(read_run(record)))
    assert told == describe_highlighted_level(Results(read_run({**record, "points": without})))
    assert Results(read_run(record)).controls == ["shuffled", "cyclic"]
    assert Results(read_run(record)).equal_budget_controls == ["shuffled"]
