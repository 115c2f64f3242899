"""Compute tables of trained networks: networks of a run, means of networks, and tickets of several runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ticketry.records.metric import Metric
from ticketry.records.network import TICKET, Point
from ticketry.records.verdict import Task
from ticketry.report.subject import Subject
from ticketry.report.tables.costs import ENERGY, cost_relative_to_dense
from ticketry.report.tables.results import Group, Results, Summary, summarise
from ticketry.report.wording import NONE, Style, json_text, percent, printable, role_name

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


def network_table_cells(results: Results, point: Point, test: Style, validation: Style) -> list[str]:
    """Return the cells of a network's row in the table of networks; `test` and `validation` format the metric."""
    metric = results.run.task.metric.name
    return [
        str(point.replicate),
        str(point.level),
        role_name(point.role),
        percent(point.density),
        validation.format_number(point.metric(metric, "validation")),
        test.format_number(point.metric(metric)),
        NONE if point.steps is None else f"{point.steps:,}",
        NONE if point.seconds is None else f"{point.seconds:,.1f}",
        point.key[:_KEY],
    ]


def network_table_columns(results: Results) -> dict[str, object]:
    """Return a run's table of networks column by column, for the page's script; columns compress better than rows."""
    styles = Style.for_results(results), Style.for_results(results, "validation")
    rows = [network_table_cells(results, point, *styles) for point in results.run.points]
    cleaned = ([printable(cell).replace("\n", " ") for cell in row] for row in rows)
    return {
        "heads": list(NETWORK_COLUMNS),
        "kinds": list(NETWORK_COLUMNS.values()),
        "columns": ["\n".join(column) for column in zip(*cleaned, strict=True)],
    }


@dataclass(frozen=True)
class MethodSummary:
    """Summary of all networks of a task with the same method, role and level."""

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
    for task, indices in subject.run_indices_by_task.items():
        groups: dict[tuple[str, str, int], list[tuple[Results, list[Point]]]] = {}
        for results in subject.runs_with_indices(indices):
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


TOLERANCE = 0.05
"""Largest relative deviation of a ticket's density from the requested density."""
_MEASURED_BY = ("device", "processor", "precision", "threads_per_segment", "devices", "workers", "kernels")
"""Keys of a record's environment that influence seconds, memory and energy."""
_DEFAULTS = {"kernels": "dense", "devices": 1}
"""Values of these keys for older records, which lack them."""


@dataclass(frozen=True)
class DensityMatch:
    """A requested density, and the tickets of this density from each run that has such tickets."""

    density: float
    """The density that some run requested, as a share of the prunable weights."""
    members: tuple[tuple[int, Group], ...]
    """(index of the run, its tickets) for each run that reached the density."""
    nearest: tuple[tuple[int, float], ...]
    """(index of the run, its nearest density) for each other run that has tickets."""

    def number_style(self, metric: Metric) -> Style:
        """Return the number format for the metric of all matched runs."""
        return Style.for_summaries([group.metric() for _, group in self.members], metric.unit)


def tickets_of_equal_density(runs: Sequence[Results]) -> list[DensityMatch]:
    """Return each requested density that two or more runs reached, with their tickets, the densest first."""
    return [
        match for density in _all_requested_densities(runs) if len((match := _match_density(runs, density)).members) > 1
    ]


def unmatched_densities(runs: Sequence[Results]) -> list[float]:
    """Return the requested densities that fewer than two runs reached."""
    return [density for density in _all_requested_densities(runs) if len(_match_density(runs, density).members) < 2]


def _match_density(runs: Sequence[Results], density: float) -> DensityMatch:
    members, others = [], []
    for place, results in enumerate(runs):
        near = min(results.groups_of_role(TICKET), key=lambda group: abs(group.density - density), default=None)
        if near is None:
            continue
        if abs(near.density - density) <= TOLERANCE * density:
            members.append((place, near))
        else:
            others.append((place, near.density))
    return DensityMatch(density, tuple(members), tuple(others))


def _all_requested_densities(runs: Sequence[Results]) -> list[float]:
    distinct: list[float] = []
    for density in sorted({one for results in runs for one in requested_densities(results)}, reverse=True):
        if not distinct or abs(density - distinct[-1]) > TOLERANCE * distinct[-1]:
            distinct.append(density)
    return distinct


def requested_densities(results: Results) -> list[float]:
    """Return the densities that a run requested; if its method chose the densities, return those that it reached."""
    settings = results.run.settings
    given, removed = (
        _select_numbers_between_0_and_1(settings.get("density")),
        [1 - share for share in _select_numbers_between_0_and_1(settings.get("sparsity"))],
    )
    if given or removed:
        return given or removed
    if settings.get("density") is not None:  # empty: the default
        return [group.density for group in results.groups_of_role(TICKET)]
    return []


def have_measured_energy(found: Sequence[DensityMatch], runs: Sequence[Results]) -> bool:
    return any(cost_relative_to_dense(runs[i], group, ENERGY) for match in found for i, group in match.members)


def schedule_differences(match: DensityMatch, labels: Sequence[str], runs: Sequence[Results]) -> list[str]:
    """Return texts on differences in the training of matched runs, such as ``lr: 0.1 (one), 0.05 (other)``."""
    members = [runs[i].run for i, _ in match.members]
    recipes = [run.recipe for run in members]
    keys = [key for key in recipes[0] if all(key in recipe for recipe in recipes)]
    values: list[tuple[str, Sequence[Any]]] = [(key, [recipe[key] for recipe in recipes]) for key in keys]
    values.append(("steps of the schedule", [run.steps.total for run in members]))
    values.append(("training steps in the weights", [_max_training_steps(group) for _, group in match.members]))
    return _format_setting_differences(match, labels, values)


def condition_differences(match: DensityMatch, labels: Sequence[str], runs: Sequence[Results]) -> list[str]:
    """Return texts on differences in machine, processor, precision, threads and other settings of matched runs."""
    environments = [runs[i].run.environment for i, _ in match.members]
    values = [
        (key.replace("_", " "), [one.get(key, _DEFAULTS.get(key)) for one in environments]) for key in _MEASURED_BY
    ]
    return _format_setting_differences(match, labels, values)


def _format_setting_differences(
    match: DensityMatch, labels: Sequence[str], values: Sequence[tuple[str, Sequence[Any]]]
) -> list[str]:
    texts = []
    for name, each in values:
        found: dict[str, list[str]] = {}
        for (i, _), item in zip(match.members, each, strict=True):
            found.setdefault("not recorded" if item is None else json_text(item), []).append(labels[i])
        if len(found) > 1:
            texts.append(f"{name}: " + ", ".join(f"{item} ({'; '.join(those)})" for item, those in found.items()))
    return texts


def _max_training_steps(group: Group) -> int | None:
    budgets = {point.budget for point in group.points.values()}
    return max((one for one in budgets if one is not None), default=None) if None not in budgets else None


def _select_numbers_between_0_and_1(item: Any) -> list[float]:
    found = item if isinstance(item, list | tuple) else [item]
    return [float(x) for x in found if isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1]
