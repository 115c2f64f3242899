"""Prepare the table of all trained networks; for very many networks, means by method, role and level."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from ticketry.records.network import Point
from ticketry.records.verdict import Task
from ticketry.report.subject import Subject
from ticketry.report.tables.results import Results, Summary, summarise
from ticketry.report.wording import NONE, Style, percent, printable, role_name

NETWORK_COLUMNS = {
    "replicate": "number",
    "level": "number",
    "role": "text",
    "weights, %": "number",
    "validation": "number",
    "test": "number",
    "steps": "number",
    "seconds": "number",
    "segment": "text",
}
"""Name of each column, and whether the column sorts as text or as numbers."""
_KEY = 10
"""Number of letters shown of the key that identifies a training."""


def network_cells(results: Results, point: Point, test: Style, validation: Style) -> list[str]:
    """Return the cells of a network's row, for the columns `NETWORK_COLUMNS`."""
    metric = results.run.task.metric.name
    return [
        str(point.replicate),
        str(point.level),
        role_name(point.role),
        percent(point.density),
        validation.number(point.metric(metric, "validation")),
        test.number(point.metric(metric)),
        NONE if point.steps is None else f"{point.steps:,}",
        NONE if point.seconds is None else f"{point.seconds:,.1f}",
        point.key[:_KEY],
    ]


def columns_of(results: Results) -> dict[str, object]:
    """Return a run's table of networks column by column, for the page's script; columns compress better than rows."""
    styles = Style.for_results(results), Style.for_results(results, "validation")
    rows = [network_cells(results, point, *styles) for point in results.run.points]
    cleaned = ([printable(cell).replace("\n", " ") for cell in row] for row in rows)
    return {
        "heads": list(NETWORK_COLUMNS),
        "kinds": list(NETWORK_COLUMNS.values()),
        "columns": ["\n".join(column) for column in zip(*cleaned, strict=True)],
    }


@dataclass(frozen=True)
class MethodSummary:
    """Summary of all networks with the same method, role and level."""

    task: Task
    method: str
    role: str
    level: int
    density: float
    runs: int
    networks: int
    summaries: tuple[tuple[Style, Summary], ...]
    """Summaries of the metric on the validation and on the test split."""


def summarised_networks(subject: Subject) -> Iterator[MethodSummary]:
    """Yield a summary over all runs of a task, for each task, method, role and level."""
    for task, indices in subject.by_task.items():
        groups: dict[tuple[str, str, int], list[tuple[Results, list[Point]]]] = {}
        for results in subject.runs_at(indices):
            for role in results.roles:
                for group in results.groups_of_role(role):
                    members = groups.setdefault((results.run.known_as, role, group.level), [])
                    members.append((results, list(group.points.values())))
        for (method, role, level), members in groups.items():
            points = [point for _, some in members for point in some]
            summaries = tuple(
                (
                    Style.for_results(members[0][0], split),
                    summarise(point.metric(task.metric.name, split) for point in points),
                )
                for split in ("validation", "test")
            )
            density = statistics.fmean(point.density for point in points)
            yield MethodSummary(task, method, role, level, density, len(members), len(points), summaries)
