"""Rounds of gates on the page: which are drawn, what is told of them, and when masks were known."""

from __future__ import annotations

import copy
import re

import pytest

from made_records import search_record, with_rounds
from ticketry.errors import StoreError
from ticketry.records.run import read_run
from ticketry.report.html.page import render
from ticketry.report.subject import subject_of
from ticketry.report.tables.costs import tickets_by_density
from ticketry.report.tables.masks import chains
from ticketry.report.tables.results import Results
from ticketry.report.tables.rows import path_rows, round_rows


@pytest.fixture(scope="module")
def record():
    return with_rounds(search_record(levels=8, replicates=2))


def test_a_line_is_the_rounds_of_one_search(record):
    """Of the first replicate, without tries, the densest first, six of the eight."""
    shown = chains(Results(read_run(record)))
    assert [len(chain.rounds) for chain in shown] == [3] * 6
    assert [chain.density for chain in shown] == pytest.approx([0.8**level for level in (1, 2, 4, 5, 7, 8)])
    assert all(one.replicate == 0 and one.used for chain in shown for one in chain.rounds)
    assert shown[0].name == "0.15 (80 %)"
    assert shown[-1].name == "−0.2 (16.8 %)"


def test_rounds_with_s0_of_their_own_are_one_line(record):
    """As a search for a density has them."""
    changed = copy.deepcopy(record)
    for row in changed["rounds"]:
        row["level"], row["init"] = row["round"], 0.1 * row["round"]
    changed["rounds"] = [row for row in changed["rounds"] if row["replicate"] == 0][:3]
    (line,) = chains(Results(read_run(changed)))
    assert line.name.startswith("0.1 … 0.3 (")


def test_when_masks_of_an_iterative_search_were_known():
    """Level 1 after the dense training, each further one after one more ticket."""
    points = tickets_by_density(Results(read_run(search_record(levels=3, replicates=2))))
    assert [(point.level, point.known, point.n) for point in points] == [(1, 4300, 2), (2, 8557, 2), (3, 12814, 2)]


def test_the_section_has_figures_and_a_row_a_round(record):
    page = render(subject_of([record]))
    section = re.search(r'<section id="gates">(.*?)</section>', page, re.DOTALL)[1]
    assert section.count("<figure") == 2
    table = section.partition("<tbody>")[2].partition("</tbody>")[0]
    assert table.count("<tr>") == len(record["rounds"]) == 2 * 8 * 4
    assert table.count("<td>no</td>") == 2 * 8


@pytest.mark.slow
def test_runs_are_compared_by_time_to_ticket(record):
    other = search_record(levels=8)
    other["run"] = "another"
    page = render(subject_of([record, other]))
    assert "Time to ticket" in page
    assert 'id="task-1-steps-to-ticket"' in page


def test_data_behind_the_figures(record):
    results = Results(read_run(record))
    rows = round_rows([results])
    assert len(rows) == len(record["rounds"])
    assert [row["gates_1_of_20"] for row in rows] == [row["histogram"][0] for row in record["rounds"]]
    assert len(path_rows(results)) == 100 * len(rows)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"density": 1.2}, "does not lie in"),
        ({"path": [[43]]}, "is not a step and a share"),
        ({"path": [[43, 2.0]]}, "does not lie in"),
        ({"path": [43]}, "is a number, not a list"),
        ({"histogram": []}, "is empty"),
        ({"histogram": [-1] * 20}, "below 0"),
        ({"histogram": [1] * 19}, "different bins"),
        ({"used": "yes"}, "not true or false"),
        ({"round": 0}, "less than 1"),
        ({"init": None}, "missing, not a number"),
    ],
)
def test_a_damaged_round_is_named(record, change, reason):
    damaged = copy.deepcopy(record)
    damaged["rounds"][2].update(change)
    with pytest.raises(StoreError, match=reason):
        read_run(damaged)
