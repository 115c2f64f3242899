"""Several runs at one density: how good each method is and what its whole training cost, a table a density."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.report.aggregate import Group, Results
from ticketry.report.markup import Html, el, join, prose
from ticketry.report.matched import TOLERANCE, Match, conditions, matches, schedules, unmatched
from ticketry.report.record import Task
from ticketry.report.sections.parts import Place, scrolling, swatch
from ticketry.report.spent import ENERGY, MEASURES, NOT_MEASURED, is_estimate, relative
from ticketry.report.subject import Subject, labels_of
from ticketry.report.wording import NONE, Style, metric_label, percent, ratio, summary_label


def methods_section(subject: Subject, task: Task, indices: tuple[int, ...], place: Place) -> Html | None:
    """A table for each density asked for; None where no two runs reached one."""
    runs = [subject.runs[index] for index in indices]
    found = matches(runs)
    if not found:
        return None
    labels = labels_of(runs)
    text = (
        f"Test {metric_label(task.metric)}: {summary_label(task.metric)} over n replicates; the difference to the "
        "dense network of the same run is taken replicate by replicate. FLOPs, seconds, memory and energy are those of "
        "the whole training (dense phase, search and sparse phase), as multiples of the dense network's in the same "
        "run. "
        f"Densities are shares of the {task.prunable:,} prunable weights; a run stands in a table if it reached a "
        f"density within {100 * TOLERANCE:g} % of the one asked for (that density is the 100 %)."
    )
    if any(relative(run, group, ENERGY) for match in found for i, group in match.members for run in [runs[i]]):
        text += " Energy is shared out by seconds, so that its multiple of dense is theirs."
        if any(is_estimate(run.run) for run in runs):
            text += " Part of it is an estimate."
    if alone := unmatched(runs):
        text += f" Without a table, since no two runs reached it: {', '.join(percent(one) for one in alone)} %."
    tables = [_table(match, runs, labels, indices, place.within(f"density-{i}")) for i, match in enumerate(found, 1)]
    title = "By method" if len(subject.by_task) == 1 else f"By method: {task.model} on {task.name}"
    return el("section", el("h2", title), el("p", prose(text), class_="caption"), *tables, id=place.id("methods"))


def _table(match: Match, runs: Sequence[Results], labels: Sequence[str], indices: Sequence[int], place: Place) -> Html:
    groups = [group for _, group in match.members]
    members = [runs[i] for i, _ in match.members]
    metric = members[0].run.task.metric
    style = Style.fitting([group.metric() for group in groups], metric.unit)
    heads = [("method", "text"), ("weights remaining, %", "number"), (f"test {metric_label(metric)}", "number")]
    heads += [("n", "number"), ("minus dense", "number")]
    heads += [(f"{measure}, ×\N{NO-BREAK SPACE}dense", "number") for measure in MEASURES]
    header = el("tr", *(el("th", name, scope="col", data_kind=kind) for name, kind in heads))
    body = [_row(labels[i], indices[i], runs[i], group, style) for i, group in match.members]
    table = el("table", el("thead", header), el("tbody", *body), class_="results sorts methods")
    caption = el("b", prose(f"{percent(match.density)} % of the weights"))
    return join(scrolling(table, caption, place.id("table")), *_notes(match, members, groups, labels))


def _row(label: str, index: int, results: Results, group: Group, style: Style) -> Html:
    summary = group.metric()
    difference = group.minus(results.dense) if results.dense else None
    costs = [relative(results, group, measure) for measure in MEASURES]
    return el(
        "tr",
        el("th", swatch(index), el("a", label, href=f"#run-{index + 1}"), scope="row"),
        el("td", percent(group.density)),
        el("td", style.summary(summary)),
        el("td", str(summary.n)),
        el("td", NONE if difference is None else style.summary(difference, sign=True)),
        *(el("td", NOT_MEASURED if cost is None else ratio(cost.mean)) for cost in costs),
    )


def _notes(match: Match, members: Sequence[Results], groups: Sequence[Group], labels: Sequence[str]) -> list[Html]:
    """What stands in the way of a comparison."""
    names = [labels[i] for i, _ in match.members]
    texts = []
    if found := schedules(names, members, groups):
        texts.append(f"Schedules differ, and only equal ones compare: {'. '.join(found)}.")
    if found := conditions(names, members):
        texts.append(f"Measured under different conditions: {'. '.join(found)}.")
    if match.nearest:
        others = ", ".join(f"{labels[i]} (nearest: {percent(density)} %)" for i, density in match.nearest)
        texts.append(f"Without networks of this density: {others}.")
    return [el("p", prose(text), class_="note") for text in texts]
