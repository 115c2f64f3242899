"""Every trained network of all runs, a row each; the script makes the table sortable and filterable.

Of very many, the page has a summary by method, role and level, and the networks of each run compressed, unpacked when
they are asked for.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

from ticketry.records.network import Point
from ticketry.report.html.blocks import Cell, Filters, PackedRows, Row, Section, Table, Text, packed
from ticketry.report.subject import Subject, rewind_of
from ticketry.report.tables.results import Results, summarise
from ticketry.report.wording import NONE, Style, clean, percent, role_name

_MOST = 5_000
"""Networks that a page has in one table."""
_OWN = ("replicate", "level", "role", "weights, %", "validation", "test", "steps", "seconds", "segment")

_KEY = 10
"""Letters of a segment's key that tell it apart."""


def networks_section(subject: Subject) -> Section:
    """The table; columns that would be the same in all rows are left out where there is one run."""
    if sum(len(results.run.points) for results in subject.runs) > _MOST:
        return _summarised(subject)
    several, rows = len(subject.runs) > 1, []
    for label, results in zip(subject.labels, subject.runs, strict=True):
        named = [label, results.run.known_as, rewind_of(results) or NONE] if several else []
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


# -- very many ---------------------------------------------------------------------------------------------------------


def _summarised(subject: Subject) -> Section:
    total = sum(len(results.run.points) for results in subject.runs)
    lead = f"{total:,} networks: those of a run are shown when it is opened here, a part of them at a time."
    runs = zip(subject.labels, subject.runs, strict=True)
    lists = [PackedRows(f"{label}: {len(results.run.points):,} networks", _rows(results)) for label, results in runs]
    return Section("networks", "All networks", [Text(lead), _summary(subject), *lists])


def _rows(results: Results) -> str:
    """The table's cells as texts, column by column: alike ones stand together, which compresses better."""
    test, validation, name = Style.of(results), Style.of(results, "validation"), results.run.task.metric.name
    rows = (_row([], point, name, test, validation).cells for point in results.run.points)
    texts = ([clean(cell if isinstance(cell, str) else cell.text).replace("\n", " ") for cell in row] for row in rows)
    columns = ["\n".join(column) for column in zip(*texts, strict=True)]
    kinds = ["text" if name in ("role", "segment") else "number" for name in _OWN]
    return packed(json.dumps({"heads": _OWN, "kinds": kinds, "columns": columns}, ensure_ascii=False))


def _summary(subject: Subject) -> Table:
    """A row for each method, role and level of a task, over all its runs."""
    columns = [("task", "text"), ("method", "text"), ("role", "text"), ("level", "number"), ("weights, %", "number")]
    columns += [("runs", "number"), ("networks", "number"), ("validation", "number"), ("test", "number")]
    caption = (
        "By method, role and level: means, with the standard deviation over networks, of all runs of a method whatever"
        " their settings."
    )
    rows = [row for indices in subject.by_task.values() for row in _summary_rows([subject.runs[i] for i in indices])]
    head = [Cell(name, sort=sort) for name, sort in columns]
    return Table("table-networks", caption, head, rows, "sorts", tall=True)


def _summary_rows(runs: list[Results]) -> Iterator[Row]:
    groups: dict[tuple[str, str, int], list[tuple[Results, list[Point]]]] = {}
    for results in runs:
        for role in results.roles:
            for group in results.of_role(role):
                members = groups.setdefault((results.run.known_as, role, group.level), [])
                members.append((results, list(group.points.values())))
    task, name = runs[0].run.task, runs[0].run.task.metric.name
    for (method, role, level), members in groups.items():
        points = [point for _, some in members for point in some]
        values = []
        for split in ("validation", "test"):
            style = Style.of(members[0][0], split)
            found = summarise(point.metric(name, split) for point in points)
            values.append(Cell(style.number(found.mean), quiet=style.spread(found)))
        density = statistics.fmean(point.density for point in points)
        named = [task.title, method, role_name(role), str(level), percent(density)]
        yield Row(None, [*named, f"{len(members):,}", f"{len(points):,}", *values])
