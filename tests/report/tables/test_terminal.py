"""The table for the terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from ticketry.report import pruning_moment_lines, summary_lines, summary_table


def _rendered(record, width=160):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary_table(record, width))
    return console.file.getvalue()


def test_numbers_by_hand(make_record):
    record = make_record(levels=1, replicates=3, controls=())
    for point in record["points"]:
        point["test"]["accuracy"] = 90.0 + point["replicate"] + (0.5 if point["role"] == "ticket" else 0.0)
    assert summary_lines(record)[2].split("  ")[-2:] == ["91.5 ± 1.0", "91.0 ± 1.0"]


@pytest.mark.parametrize("width", [28, 40, 61, 97, 160])
def test_a_narrow_terminal_gets_fewer_columns_and_no_cut_number(make_record, width):
    record = make_record(levels=3, replicates=3)
    record["points"] = [one for one in record["points"] if (one["role"], one["replicate"]) != ("shuffled", 1)]
    text = _rendered(record, width)
    header, *rows = (re.split(r"  +", line.strip()) for line in summary_lines(record)[1:])
    table, _, gone = (" ".join(part.split()) for part in text.partition("no room for: "))
    left_out = gone.split(", ") if gone else []
    assert header[2] not in left_out, "tickets stay"
    assert left_out == [name for name in header if name in left_out], "in the order of the table"
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        assert " ".join(cell for name, cell in zip(header, row, strict=True) if name not in left_out) in table
    assert bool(left_out) == (width < len(_rendered(record).splitlines()[-1]))


def test_markup_and_control_codes_stay_text(make_record):
    record = make_record(levels=1, metric=("[red]loud[/red]\x1b[2J", "", True))
    assert "[red]loud[/red]\ufffd[2J on the test set" in _rendered(record)
    assert "\x1b" not in "\n".join(summary_lines(record))


def test_the_moments_that_detectors_found_are_told_by_level(make_record):
    record = make_record(levels=2, replicates=2, controls=("shuffled",))
    assert pruning_moment_lines(record) == []
    tickets = [point for point in record["points"] if point["role"] == "ticket"]
    for point in tickets:
        found = point["level"] == 1 or point["replicate"] == 0
        step = 100 * point["level"] + point["replicate"]
        point["moment"] = {"step": step, "detected": found, "detector": "distance", "threshold": 0.5, "looks": []}
    assert pruning_moment_lines(record) == [
        "level 1 at step 100 (detected), 101 (detected)",
        "level 2 at step 200 (detected), 201 (the latest allowed)",
    ]
