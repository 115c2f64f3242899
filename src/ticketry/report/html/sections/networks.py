"""Every trained network of all runs, a row each; the script makes the table sortable and filterable."""

from __future__ import annotations

from ticketry.records.network import Point
from ticketry.report.html.blocks import Cell, Filters, Row, Section, Table
from ticketry.report.subject import Subject, rewind_of
from ticketry.report.wording import NONE, Style, percent, role_name

_KEY = 10
"""Letters of a segment's key that tell it apart."""


def networks_section(subject: Subject) -> Section:
    """The table; columns that would be the same in all rows are left out where there is one run."""
    several, rows = len(subject.runs) > 1, []
    for label, results in zip(subject.labels, subject.runs, strict=True):
        named = [label, results.run.method, rewind_of(results) or NONE] if several else []
        test, validation = Style.of(results), Style.of(results, "validation")
        rows += [_row(named, point, results.run.task.metric.name, test, validation) for point in results.run.points]
    texts = ["run", "method", "rewind"] if several else []
    head = [
        *(Cell(name, sort="text") for name in texts),
        *(Cell("replicate", sort="number"), Cell("level", sort="number"), Cell("role", sort="text")),
        *(Cell(name, sort="number") for name in ("weights, %", "validation", "test", "steps", "seconds")),
        Cell("segment", sort="text"),
    ]
    caption = f"{len(rows):,} networks. Steps and seconds are those of each network's own segment of training."
    roles = dict.fromkeys(role_name(role) for results in subject.runs for role in results.roles)
    kind = "sorts networks several" if several else "sorts networks"
    table = Table("table-networks", caption, head, rows, kind, tall=True)
    return Section("networks", "All networks", [Filters(list(roles)), table])


def _row(named: list[str], point: Point, metric: str, test: Style, validation: Style) -> Row:
    return Row(
        None,
        [
            *named,
            str(point.replicate),
            str(point.level),
            role_name(point.role),
            percent(point.density),
            validation.number(point.metric(metric, "validation")),
            test.number(point.metric(metric)),
            NONE if point.steps is None else f"{point.steps:,}",
            NONE if point.seconds is None else f"{point.seconds:,.1f}",
            Cell(point.key[:_KEY], code=True),
        ],
    )
