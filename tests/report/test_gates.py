"""Rounds of gates on the page: which are drawn, what is told of them, and when masks were known."""

from __future__ import annotations

import copy
import re

import pytest

from made_records import search_record, with_rounds
from ticketry.records.run import read_run
from ticketry.report.page import render_report
from ticketry.report.subject import read_report_subject
from ticketry.report.tables.costs import ticket_cost_points
from ticketry.report.tables.masks import gate_round_chains
from ticketry.report.tables.results import Results
from ticketry.report.tables.rows import gate_density_rows, gate_round_rows


@pytest.fixture(scope="module")
def record():
    return with_rounds(search_record(levels=8, replicates=2))


def test_a_line_is_the_rounds_of_one_search(record):
    """Of the first replicate, without tries, the densest first, six of the eight."""
    shown = gate_round_chains(Results(read_run(record)))
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
    (line,) = gate_round_chains(Results(read_run(changed)))
    assert line.name.startswith("0.1 … 0.3 (")


def test_when_masks_of_an_iterative_search_were_known():
    """Level 1 after the dense training, each further one after one more ticket."""
    points = ticket_cost_points(Results(read_run(search_record(levels=3, replicates=2))))
    assert [(point.level, point.known, point.n) for point in points] == [(1, 4300, 2), (2, 8557, 2), (3, 12814, 2)]


@pytest.mark.usefixtures("dots")
def test_pages_have_figures_a_row_a_round_and_the_time_to_ticket(record):
    page = render_report(read_report_subject([record]))
    section = re.search(r'<section id="gates">(.*?)</section>', page, re.DOTALL)[1]
    assert section.count("<figure") == 2
    table = section.partition("<tbody>")[2].partition("</tbody>")[0]
    assert table.count("<tr>") == len(record["rounds"]) == 2 * 8 * 4
    assert table.count("<td>no</td>") == 2 * 8
    other = {**search_record(levels=8), "run": "another"}
    page = render_report(read_report_subject([record, other]))
    assert "Time to ticket" in page
    assert 'id="task-1-steps-to-ticket"' in page


def test_data_behind_the_figures(record):
    results = Results(read_run(record))
    rows = gate_round_rows([results])
    assert len(rows) == len(record["rounds"])
    assert [row["gates_1_of_20"] for row in rows] == [row["histogram"][0] for row in record["rounds"]]
    assert len(gate_density_rows(results)) == 100 * len(rows)
