"""Lines through points of cost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ticketry.report.figures.costs import lines_of


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
        [point.steps for point in line] for line in lines_of([At(step) for step in steps], lambda point: point.steps)
    ] == lines
