"""The results: the figure of the metric against density, and the table behind it."""

from __future__ import annotations

from collections.abc import Mapping

from ticketry.records.network import TICKET
from ticketry.records.verdict import Task
from ticketry.report.figures import METRIC_BY_DENSITY, Drawing
from ticketry.report.html.blocks import Cell, Folded, Part, Place, Row, Section, Table
from ticketry.report.tables.observation import margin_of, observe
from ticketry.report.tables.results import Group, Results, Split, Summary
from ticketry.report.tables.rows import summary_rows
from ticketry.report.wording import NONE, Style, better, metric_label, percent, role_name, sparsity, summary_label


def results_section(results: Results, drawings: Mapping[str, Drawing], place: Place) -> Section:
    """Figure, table of the test results, and that of the validation results folded away."""
    metric = results.run.task.metric
    caption = (
        f"Test {metric_label(metric)} of networks with the given share of their prunable weights "
        f"({better(metric)}), {bands(results)}. What the lines are is explained in the ",
        Part("notes", "#notes"),
        ". ",
    )
    return Section(
        place.id("results"),
        f"Test {metric.words} against weights remaining",
        [
            place.figure(drawings, METRIC_BY_DENSITY, caption, summary_rows([results])),
            results_table(results, "test", place),
            Folded(
                f"Validation {metric.words}, the split that a search may look at",
                [results_table(results, "validation", place)],
            ),
        ],
        name="Results",
    )


def results_table(results: Results, split: Split, place: Place) -> Table:
    """A row a level: density and sparsity, tickets, their difference to dense, controls."""
    style, roles = Style.of(results, split), [TICKET, *results.controls]
    counts = {role: _common_count(results.of_role(role)) for role in roles}
    heads: list[Cell | str] = []
    for role, count in counts.items():
        below = f"n = {count}" if count else ""
        heads.append(Cell(role_name(role), f"role {role.replace('_', '-')}", below=below))
        heads += ["tickets minus dense"] if role == TICKET else []
    chosen = observe(results).level
    rows = [_level_row(results, style, split, level, counts, level == chosen) for level in results.levels]
    if results.dense is not None:
        rows.insert(0, _dense_row(style, results.dense, split, len(roles)))
    head = ["level", "weights remaining, %", "sparsity, %", *heads, "of all parameters, %"]
    return Table(place.id(f"table-{split}"), _table_caption(results, split), head, rows)


def _dense_row(style: Style, dense: Group, split: Split, columns: int) -> Row:
    summary = dense.metric(split)
    name = Cell(f"the dense network, n = {summary.n}", "note", columns=columns)
    return Row(str(dense.level), ["100.0", "0.0", _value(style, summary), name, "100.0"], "dense")


def _level_row(
    results: Results, style: Style, split: Split, level: int, counts: Mapping[str, int | None], chosen: bool
) -> Row:
    density = results.any_at(level).density
    cells: list[Cell | str] = [percent(density), sparsity(density)]
    for role, count in counts.items():
        group = results.group(level, role)
        cells.append(_value(style, group.metric(split), count is None) if group else NONE)
        if role == TICKET:
            difference = group.minus(results.dense, split) if group and results.dense else None
            cells.append(_value(style, difference, sign=True) if difference else NONE)
    cells.append(_share_of_all(results.run.task, density))
    return Row(str(level), cells, "chosen" if chosen else "level")


def _value(style: Style, summary: Summary, counted: bool = False, sign: bool = False) -> Cell:
    """Mean, standard deviation (or interval) and, where it is not in the column's head, n."""
    count = f" ({summary.n})" if counted else ""
    return Cell(style.number(summary.mean, sign), quiet=style.spread(summary) + count)


def _share_of_all(task: Task, density: float) -> str:
    """What remains of all parameters, those that are never pruned included."""
    if task.parameters == 0:
        return NONE
    return percent((density * task.prunable + task.parameters - task.prunable) / task.parameters)


def _common_count(groups: list[Group]) -> int | None:
    """The number of replicates if it is the same at all levels."""
    counts = {len(group.points) for group in groups}
    return counts.pop() if len(counts) == 1 else None


def bands(*runs: Results) -> str:
    """What points and bands of a figure of these runs are."""
    if all(results.replicates <= 1 for results in runs):
        return "one replicate, so there is no band"
    groups = (group for results in runs for role in results.roles for group in results.of_role(role))
    counts = sorted({len(group.points) for group in groups})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if any(results.run.task.metric.summary == "iqm" for results in runs):
        return f"interquartile mean over replicates ({n}); bands: its 95 % interval"
    return f"mean over replicates ({n}); bands: 95 % Student t interval of that mean"


def _table_caption(results: Results, split: Split) -> str:
    task = results.run.task
    unit = f" in {task.metric.unit}" if task.metric.unit else ""
    many = f"{summary_label(task.metric)} over {results.replicates} replicates"
    others = task.parameters - task.prunable
    sentences = [
        f"{split.capitalize()} {task.metric.words}{unit}: {many if results.replicates > 1 else 'one replicate'}",
        f"Weights remaining and sparsity are of the {task.prunable:,} prunable weights; the last column is of all "
        f"{task.parameters:,} parameters, {others:,} of which are never pruned",
        "Differences to dense are taken replicate by replicate",
    ]
    if any(len(group.points) < results.replicates for role in results.roles for group in results.of_role(role)):
        sentences[0] += ", or over as many as n or the number in brackets says"
    if split == "test" and results.dense is not None and observe(results).level is not None:
        _, margin = margin_of(results, results.dense)
        above = " and better than every control" if results.rivals else ""
        sentences.append(
            f"Marked: the sparsest level whose mean is within {margin} of dense{above}, which is no verdict"
        )
    return ". ".join(sentences) + "."
