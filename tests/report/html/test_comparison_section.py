"""The table of runs: numbers stay in sight whatever runs and methods are called."""

from __future__ import annotations

import copy

from ticketry.report.html.sections.comparison import summary_section
from ticketry.report.subject import subject_of


def test_long_names_of_methods_lose_their_middle(make_record) -> None:
    one = make_record(levels=1)
    other = copy.deepcopy(one) | {"run": "other", "method": "my_company.department.methods:" + "a_long_name_" * 5}
    (table,) = summary_section(subject_of([one, other])).blocks
    column = table.head.index("method") - 1  # the head of a row is no cell
    methods = [row.cells[column] for row in table.rows]
    assert methods[0] == one["method"]
    assert len(methods[1]) <= 28
    assert methods[1].startswith("my_company")
    assert "…" in methods[1]
    assert methods[1].endswith("long_name_")
