"""Verdicts by level against SciPy's own t tests and Holm's rule by hand."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import ttest_1samp

from ticketry.errors import UsageError
from ticketry.evidence.judge import default_margin, judge, verdicts_of

METRIC = {"name": "accuracy", "unit": "%", "higher_is_better": True}
DENSE = [90.0, 90.4, 89.8, 90.1]
TICKETS = {1: [90.3, 90.5, 90.2, 90.2], 2: [90.0, 90.6, 89.9, 90.2], 3: [85.0, 86.0, 85.5, 85.2]}
SHUFFLED = {1: [90.3, 90.6, 90.0, 90.1], 2: [88.0, 88.6, 87.9, 88.3], 3: [84.0, 84.1, 84.6, 84.4]}


def rows(**changes: Any) -> list[dict[str, Any]]:
    made = [row(0, "dense", number, value) for number, value in enumerate(DENSE)]
    for role, table in (("ticket", TICKETS), ("shuffled", SHUFFLED)):
        for level, values in table.items():
            made += [row(level, role, number, value) for number, value in enumerate(values)]
    return [{**one, **changes} if one["role"] == "shuffled" else one for one in made]


def row(level: int, role: str, replicate: int, value: float) -> dict[str, Any]:
    density = 0.5**level
    return {
        "level": level,
        "role": role,
        "replicate": replicate,
        "density": density,
        "test": {"accuracy": value},
        "budget": 100,
    }


def claim_p(level: int) -> float:
    to_dense = [t - d for t, d in zip(TICKETS[level], DENSE, strict=True)]
    to_control = [t - c for t, c in zip(TICKETS[level], SHUFFLED[level], strict=True)]
    return max(
        ttest_1samp(to_dense, -0.5, alternative="greater").pvalue,
        ttest_1samp(to_control, 0.0, alternative="greater").pvalue,
    )


def test_p_values_are_scipy_s_and_holm_s() -> None:
    found = judge(rows(), METRIC, examples=10_000)
    raw = [claim_p(level) for level in (1, 2, 3)]
    assert [one["p"] for one in found] == pytest.approx(raw)
    ranked = sorted(range(3), key=lambda index: raw[index])
    by_hand, largest = [0.0] * 3, 0.0
    for rank, index in enumerate(ranked):
        largest = max(largest, min(1.0, raw[index] * (3 - rank)))
        by_hand[index] = largest
    assert [one["p_holm"] for one in found] == pytest.approx(by_hand)
    assert [one["verdict"] for one in found] == ["undecided", "wins", "loses"]
    assert [one["density"] for one in found] == [0.5, 0.25, 0.125]
    assert found[1]["difference"] == pytest.approx(sum(TICKETS[2]) / 4 - sum(DENSE) / 4)


def test_without_controls_the_claim_is_that_it_matches() -> None:
    found = judge([one for one in rows() if one["role"] != "shuffled"], METRIC, examples=10_000)
    assert [one["claim"] for one in found] == ["matches"] * 3
    assert [one["verdict"] for one in found] == ["matches", "matches", "loses"]


def test_unequal_budgets_a_missing_replicate_and_nan_are_told() -> None:
    with pytest.raises(UsageError, match=r"unequal budgets .*shuffled: 90 steps"):
        judge(rows(budget=90), METRIC, examples=10_000)
    with pytest.raises(UsageError, match="the metric of shuffled is nan at seed number 1"):
        judge(rows(test={"accuracy": float("nan")}), METRIC, examples=10_000)
    lacking = [one for one in rows() if (one["level"], one["role"], one["replicate"]) != (2, "shuffled", 3)]
    with pytest.raises(UsageError, match="level 2 has not a shuffled for each of the 4 replicates"):
        judge(lacking, METRIC, examples=10_000)
    record = {"points": rows(budget=90), "task": {"metric": METRIC}}
    assert verdicts_of(record, 10_000)["verdict_error"].startswith("unequal budgets")


def test_one_replicate_is_undecided_and_says_how_many_more() -> None:
    found = judge([one for one in rows() if one["replicate"] == 0], METRIC, examples=10_000)
    assert [one["verdict"] for one in found] == ["undecided"] * 3
    assert all(one["more_seeds"] >= 2 for one in found)
    assert found[0]["interval"] is None


def test_the_default_margin() -> None:
    assert default_margin("%", [90.0]) == 0.5
    assert default_margin("", [2.0, 4.0]) == pytest.approx(0.03)
