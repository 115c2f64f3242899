"""The metric over costs: lines through points, bars, and names beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ticketry.report.figures.costs import metric_by_training_cost, split_into_lines
from ticketry.report.subject import labelled_runs, read_report_subject


@dataclass(frozen=True)
class At:
    steps: float


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        ([100, 200, 300], [[100, 200, 300]]),  # level by level
        ([100, 100, 100], [[100, 100, 100]]),  # one round each
        ([100, 200, 100, 200], [[100, 100], [200, 200]]),  # two rounds of two s0
        ([1290, 2580.5, 1290, 2579.5], [[1290, 1290], [2580.5, 2579.5]]),  # means over replicates
        ([], [[]]),
    ],
)
def test_no_line_goes_back_and_forth(steps: list[float], lines: list[list[float]]) -> None:
    assert [
        [point.steps for point in line]
        for line in split_into_lines([At(step) for step in steps], lambda point: point.steps)
    ] == lines


def test_levels_that_stand_above_each_other_have_no_names() -> None:
    """All need as much memory: a name beside one point could as well be the next one's."""
    record = json.loads((Path(__file__).parents[1] / "data" / "early_runs.json").read_text())[0]
    for step in (0.1, 0.0):
        for point in record["points"]:
            for phase in point["cost"].values():
                phase["memory"] = round(1e6 * (1.2 + step * point["level"])) if point["level"] else 1_000_000
        named = _names_over_memory(record)
        assert named[0] == "dense"
        assert (len(named) > 1) is (step > 0)


def _names_over_memory(record: dict[str, Any]) -> list[str]:
    axes = metric_by_training_cost(labelled_runs(read_report_subject([record]), [0])).axes[2]
    assert axes.get_xlabel().startswith("memory")
    return [text.get_text() for text in axes.texts]
