"""What the table of results says of the level that it marks."""

from __future__ import annotations

import pytest

from ticketry.records.run import read_run
from ticketry.report.html.blocks import Place
from ticketry.report.html.sections.results import results_table
from ticketry.report.tables.results import Results


@pytest.mark.parametrize(
    ("controls", "metric", "told"),
    [
        (("shuffled",), ("accuracy", "%", True), "within 0.5 points of dense and better than every control"),
        ((), ("accuracy", "%", True), "within 0.5 points of dense"),
        ((), ("rmse", "", False), "within 1 % of dense"),
    ],
)
def test_the_marked_level_is_told_by_its_rule_and_not_by_a_verdict(make_record, controls, metric, told):
    record = make_record(levels=2, replicates=2, controls=controls, metric=metric)
    for point in record["points"]:
        point["test"][metric[0]] = 80.0 if point["role"] == "shuffled" else 90.0
    table = results_table(Results(read_run(record)), "test", Place())
    assert f"Marked: the sparsest level whose mean is {told}, which is no verdict." in table.caption
    assert [row.kind for row in table.rows][-2:] == ["level", "chosen"]
