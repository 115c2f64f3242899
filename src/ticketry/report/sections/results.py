"""The results: the figure of the metric against density, and the table behind it."""

from __future__ import annotations

from ticketry.report.aggregate import Group, Results, Split, Summary
from ticketry.report.figures import METRIC_BY_DENSITY, Drawing
from ticketry.report.markup import Html, el, join, prose
from ticketry.report.observation import observe
from ticketry.report.record import TICKET, Task
from ticketry.report.rows import summary_rows
from ticketry.report.sections.parts import Place, scrolling
from ticketry.report.wording import NONE, Style, metric_label, percent, role_name, sparsity, summary_label


def results_section(results: Results, drawings: dict[str, Drawing], place: Place) -> Html:
    """Figure, table of the test results, and that of the validation results folded away."""
    metric = results.run.task.metric
    picture = None
    if METRIC_BY_DENSITY in drawings:
        caption = _figure_caption(results, place)
        picture = place.figure(drawings[METRIC_BY_DENSITY], METRIC_BY_DENSITY, caption, summary_rows([results]))
    return el(
        "section",
        el("h2", f"Test {metric.words} against weights remaining"),
        picture,
        results_table(results, "test", place),
        el(
            "details",
            el("summary", f"Validation {metric.words}, the split that a search may look at"),
            results_table(results, "validation", place),
        ),
        id=place.id("results"),
    )


def results_table(results: Results, split: Split, place: Place) -> Html:
    """A row a level: density and sparsity, tickets, their difference to dense, controls."""
    style = Style.of(results, split)
    roles = [TICKET, *results.controls]
    counts = {role: _common_count(results.of_role(role)) for role in roles}
    header = el(
        "tr",
        *(el("th", name, scope="col") for name in ("level", "weights remaining, %", "sparsity, %")),
        *(_metric_heads(role, counts[role]) for role in roles),
        el("th", "of all parameters, %", scope="col"),
    )
    chosen = observe(results).level
    rows = [_level_row(results, style, split, level, counts, level == chosen) for level in results.levels]
    if results.dense is not None:
        rows.insert(0, _dense_row(results, style, split, results.dense, len(roles)))
    table = el("table", el("thead", header), el("tbody", *rows), class_="results")
    return scrolling(table, prose(_table_caption(results, split)), place.id(f"table-{split}"))


def _metric_heads(role: str, count: int | None) -> Html:
    number = el("span", f"n = {count}", class_="count") if count else None
    head = el("th", role_name(role), number, scope="col", class_=f"role {_css_role(role)}")
    return Html(head + el("th", "tickets minus dense", scope="col")) if role == TICKET else head


def _dense_row(results: Results, style: Style, split: Split, dense: Group, columns: int) -> Html:
    summary = dense.metric(split)
    return el(
        "tr",
        el("th", str(dense.level), scope="row"),
        el("td", "100.0"),
        el("td", "0.0"),
        el("td", _value(style, summary)),
        el("td", f"the dense network, n = {summary.n}", colspan=columns, class_="note"),
        el("td", "100.0"),
        class_="dense",
    )


def _level_row(
    results: Results, style: Style, split: Split, level: int, counts: dict[str, int | None], chosen: bool
) -> Html:
    any_group = results.any_at(level)
    cells = []
    for role, count in counts.items():
        group = results.group(level, role)
        cells.append(el("td", _value(style, group.metric(split), count is None) if group else NONE))
        if role == TICKET:
            difference = group.minus(results.dense, split) if group and results.dense else None
            cells.append(el("td", _value(style, difference, sign=True) if difference else NONE))
    return el(
        "tr",
        el("th", str(level), scope="row"),
        el("td", percent(any_group.density)),
        el("td", sparsity(any_group.density)),
        *cells,
        el("td", _share_of_all(results.run.task, any_group.density)),
        class_="chosen" if chosen else "level",
    )


def _value(style: Style, summary: Summary, counted: bool = False, sign: bool = False) -> Html:
    """Mean, standard deviation (or interval) and, where it is not in the column's head, n."""
    spread = el("span", text, class_="spread") if (text := style.spread(summary)) else None
    count = el("span", f" ({summary.n})", class_="spread") if counted else None
    return el("span", style.number(summary.mean, sign), spread, count, class_="value")


def _share_of_all(task: Task, density: float) -> str:
    """What remains of all parameters, those that are never pruned included."""
    if task.parameters == 0:
        return NONE
    return percent((density * task.prunable + task.parameters - task.prunable) / task.parameters)


def _common_count(groups: list[Group]) -> int | None:
    """The number of replicates if it is the same at all levels."""
    counts = {len(group.points) for group in groups}
    return counts.pop() if len(counts) == 1 else None


def _css_role(role: str) -> str:
    return role.replace("_", "-")


def _figure_caption(results: Results, place: Place) -> Html:
    metric = results.run.task.metric
    better = "more is better" if metric.higher_is_better else "less is better"
    return join(
        prose(
            f"Test {metric_label(metric)} of networks with the given share of their prunable weights "
            f"({better}), {bands(results)}. What the lines are is explained in the "
        ),
        el("a", "notes", href="#notes"),
        ". ",
    )


def bands(*runs: Results) -> str:
    """What points and bands of a figure of these runs are."""
    if all(results.replicates == 1 for results in runs):
        return "one replicate, so there is no band"
    groups = (group for results in runs for role in results.roles for group in results.of_role(role))
    counts = sorted({len(group.points) for group in groups})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if any(results.run.task.metric.summary == "iqm" for results in runs):
        return f"interquartile mean over replicates ({n}); bands: its 95 % bootstrap interval"
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
    if split == "test" and observe(results).level is not None:
        sentences.append("Marked: the sparsest level that matches, see the top of the page")
    return ". ".join(sentences) + "."
