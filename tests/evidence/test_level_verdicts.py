"""Verdicts by level against slow tests and Holm's rule by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from slow_p_values import slow_pooled
from ticketry.errors import UsageError
from ticketry.evidence.level_verdicts import add_verdicts, judge_levels, recompute_verdicts
from ticketry.records.metric import Metric
from ticketry.records.network import Point
from ticketry.records.run import RunRecord, read_run
from ticketry.records.schema import as_json
from ticketry.records.verdict import Task

METRIC = Metric("accuracy", "%", True)
DENSE = [90.0, 90.4, 89.8, 90.1, 90.2, 89.9, 90.3, 90.0, 90.1, 90.2]
TICKETS = {
    1: [90.3, 90.5, 90.2, 90.2, 90.4, 90.3, 90.2, 90.1, 90.5, 90.4],
    2: [90.1, 90.7, 90.0, 90.3, 90.1, 90.2, 90.5, 90.3, 90.1, 90.4],
    3: [85.0, 86.0, 85.5, 85.2, 85.4, 85.1, 85.7, 85.6, 85.2, 85.3],
}
SHUFFLED = {
    1: [90.3, 90.6, 90.0, 90.1, 90.5, 90.4, 90.1, 90.0, 90.6, 90.3],
    2: [88.0, 88.6, 87.9, 88.3, 88.1, 88.4, 88.0, 88.2, 87.8, 88.5],
    3: [84.0, 84.1, 84.6, 84.4, 84.2, 84.3, 84.1, 84.5, 84.0, 84.4],
}


def rows(**changes: Any) -> list[Point]:
    made = [row(0, "dense", number, value) for number, value in enumerate(DENSE)]
    for role, table in (("ticket", TICKETS), ("shuffled", SHUFFLED)):
        for level, values in table.items():
            made += [row(level, role, number, value) for number, value in enumerate(values)]
    return [replace(one, **changes) if one.role == "shuffled" else one for one in made]


def row(level: int, role: str, replicate: int, value: float) -> Point:
    density = 0.5**level
    return Point(
        level=level,
        role=role,
        replicate=replicate,
        density=density,
        validation={"accuracy": value},
        test={"accuracy": value},
        budget=100,
    )


def claim_p(level: int) -> float:
    to_dense = [differences_of(one) for one in (1, 2, 3)]
    to_control = [[t - c for t, c in zip(TICKETS[one], SHUFFLED[one], strict=True)] for one in (1, 2, 3)]
    return max(slow_pooled(to_dense, level - 1, -0.5, 0.5)[0], slow_pooled(to_control, level - 1, 0.0, 0.5)[0])


def test_p_values_are_the_slow_tests_and_holm_s() -> None:
    found = judge_levels(rows(), METRIC, examples=10_000)
    raw = [claim_p(level) for level in (1, 2, 3)]
    assert [one.p for one in found] == pytest.approx(raw)
    ranked = sorted(range(3), key=lambda index: raw[index])
    by_hand, largest = [0.0] * 3, 0.0
    for rank, index in enumerate(ranked):
        largest = max(largest, min(1.0, raw[index] * (3 - rank)))
        by_hand[index] = largest
    assert [one.p_holm for one in found] == pytest.approx(by_hand)
    assert [one.verdict for one in found] == ["matches", "wins", "loses"]
    assert [one.as_good_as_dense for one in found] == ["yes", "yes", "no"]
    assert [one.better_than_controls for one in found] == ["undecided", "yes", "yes"]
    assert [one.not_beaten for one in found] == [("shuffled",), (), ()]
    assert [one.density for one in found] == [0.5, 0.25, 0.125]
    assert found[1].difference == pytest.approx(sum(TICKETS[2]) / 10 - sum(DENSE) / 10)
    to_dense = [differences_of(level) for level in (1, 2, 3)]
    assert found[1].interval == pytest.approx(slow_pooled(to_dense, 1, -0.5, 0.5)[2])
    shown = [1 - slow_pooled(to_dense, index, -0.5, 0.5)[0] for index in range(3)]
    assert [one.probability for one in found] == pytest.approx(shown)
    assert {one.rule for one in found} == {"pooled"}


def differences_of(level: int) -> list[float]:
    return [t - d for t, d in zip(TICKETS[level], DENSE, strict=True)]


def test_replicates_of_one_dense_network_count_as_one() -> None:
    """A task that makes the same dense network whatever its seed: by the keys of the record."""
    keyed = [replace(one, key=f"{one.role}-{one.level}-{one.replicate}") for one in rows()]
    assert [one.groups for one in judge_levels(keyed, METRIC, examples=10_000)] == [10] * 3
    shared = [replace(one, key="same") if one.role == "dense" and one.replicate > 1 else one for one in keyed]
    found = judge_levels(shared, METRIC, examples=10_000)
    assert [(one.n, one.groups) for one in found] == [(10, 3)] * 3
    alone = judge_levels(
        [replace(one, key="same") if one.role == "dense" else one for one in keyed], METRIC, examples=10_000
    )
    assert [one.verdict for one in alone] == ["undecided"] * 3
    assert all("the 10 seeds come from 1 parent" in " ".join(one.reasons) for one in alone)


def test_levels_without_controls_are_judged_beside_dense_alone() -> None:
    found = judge_levels([one for one in rows() if (one.role, one.level) != ("shuffled", 3)], METRIC, examples=10_000)
    assert [one.claim for one in found] == ["wins", "wins", "matches"]
    assert [one.verdict for one in found] == ["matches", "wins", "loses"]
    assert [[each.role for each in one.comparisons] for one in found] == [["dense", "shuffled"]] * 2 + [["dense"]]


def test_unequal_budgets_a_missing_replicate_and_nan_are_told() -> None:
    with pytest.raises(UsageError, match=r"unequal budgets .*shuffled: 90 steps"):
        judge_levels(rows(budget=90), METRIC, examples=10_000)
    with pytest.raises(UsageError, match="the metric of shuffled is nan at seed number 1"):
        judge_levels(rows(test={"accuracy": float("nan")}), METRIC, examples=10_000)
    lacking = [one for one in rows() if (one.level, one.role, one.replicate) != (2, "shuffled", 3)]
    with pytest.raises(UsageError, match="level 2 lacks a shuffled for some of the 10 replicates"):
        judge_levels(lacking, METRIC, examples=10_000)
    assert told(rows(budget=90)).verdict_error.startswith("unequal budgets")


def told(points: list[Point], budget: str = "") -> RunRecord:
    task = Task("digits", "lenet-300-100", METRIC, 20, 10)
    settings = {"budget": budget}
    record = RunRecord(format=1, name="run", method="iterative", task=task, settings=settings, points=tuple(points))
    return add_verdicts(record, 10_000)


@pytest.mark.parametrize("steps", [20, 300])
def test_with_a_budget_of_the_search_the_dense_network_is_judged_with_its_own_steps(steps: int) -> None:
    """Their steps are fewer under a budget of steps, more under one of FLOPs; controls are checked all the same."""
    even = [one if one.role == "dense" else replace(one, budget=steps) for one in rows()]
    assert told(even, "steps").verdicts == tuple(judge_levels(rows(), METRIC, examples=10_000))
    other = [replace(one, budget=30) if one.role == "shuffled" else one for one in even]
    error = told(other, "steps").verdict_error
    assert (error.startswith("unequal budgets (ticket:"), "ticketry verify" in error) == (True, False)


def test_verdicts_of_an_earlier_rule_are_computed_again_and_the_file_s_word_is_named() -> None:
    made = told(rows())
    assert recompute_verdicts(made) is made
    old = [replace(one, rule="", probability=None, verdict="undecided") for one in made.verdicts]
    stored = replace(made, verdicts=tuple(old))
    shown = recompute_verdicts(read_run(json.loads(json.dumps(as_json(stored)))))
    assert [one.verdict for one in shown.verdicts] == ["matches", "wins", "loses"]
    for one, by_now in zip(shown.verdicts, made.verdicts, strict=True):
        assert "the record stores 'undecided'" in one.reasons[-1]
        assert replace(one, reasons=()) == replace(by_now, reasons=())
    assert stored.verdicts == tuple(old)
    same = replace(made, verdicts=tuple(replace(one, rule="") for one in made.verdicts))
    assert recompute_verdicts(same).verdicts == made.verdicts


def test_a_record_whose_networks_cannot_be_compared_keeps_its_stored_verdicts() -> None:
    old = tuple(replace(one, rule="") for one in told(rows()).verdicts)
    stored = replace(told(rows(budget=90)), verdicts=old)
    assert recompute_verdicts(stored) is stored


@pytest.mark.parametrize(("steps", "advised"), [(90, False), (110, True)])
def test_equal_budgets_are_advised_where_tickets_have_more(steps: int, advised: bool) -> None:
    error = told([one if one.role == "dense" else replace(one, budget=steps) for one in rows()]).verdict_error
    assert error.startswith("unequal budgets (dense: 100 steps;")
    assert ("Weights of the search are in these tickets" in error) == advised
