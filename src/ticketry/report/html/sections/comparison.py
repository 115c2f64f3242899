"""Several runs side by side: what each found and cost, figures that lay them over each other, tables by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ticketry.records.verdict import Task
from ticketry.report.figures import METRIC_BY_COST, METRIC_BY_DENSITY, METRIC_BY_SPENT, STEPS_TO_TICKET, Drawing
from ticketry.report.figures.style import run_colour
from ticketry.report.html.blocks import Block, Cell, Place, Row, Section, Table, Text
from ticketry.report.html.sections.costs import cost_caption, spent_caption
from ticketry.report.html.sections.results import bands
from ticketry.report.subject import Subject, labels_of, rewind_of
from ticketry.report.tables.costs import ENERGY, MEASURES, NOT_MEASURED, counts, is_estimate, relative
from ticketry.report.tables.observation import best_tickets, observe
from ticketry.report.tables.results import Group, Results
from ticketry.report.tables.rows import cost_rows, known_rows, spent_rows, summary_rows
from ticketry.report.tables.same_density import TOLERANCE, Match, conditions, matches, schedules, unmatched
from ticketry.report.wording import (
    NONE,
    Style,
    better,
    duration,
    metric_label,
    percent,
    ratio,
    short_count,
    shortened,
    summary_label,
    times,
)

_LONGEST = 28
"""Letters of a method's name: those of a module's path would push the numbers out of sight."""


def _run(label: str, index: int) -> Cell:
    """A run's name, which leads to it."""
    return Cell(label, run=run_colour(index), href=f"#run-{index + 1}")


def summary_section(subject: Subject) -> Section:
    """A row a run: what it is, what it found and what it cost."""
    tasks = ["task"] if len(subject.by_task) > 1 else []
    head = [
        *("run", *tasks, "method", "rewind", "levels", "replicates", "sparsest matching, %", "best tickets", "at, %"),
        *("dense", "search, × dense", "steps trained", "training time", "segments trained / asked"),
    ]
    rows = [
        Row(_run(label, index), _summary_cells(results, bool(tasks)))
        for index, (label, results) in enumerate(zip(subject.labels, subject.runs, strict=True))
    ]
    caption = (
        "Sparsest matching: the least share of weights at which the tickets' mean is within the margin of dense and "
        "better than every control (means, not verdicts). Best tickets: the level with the best mean test metric. "
        "Search: all training of one replicate's search against one dense training."
    )
    return Section("runs", "The runs", [Table("table-runs", caption, head, rows, "summary")], name="Runs")


def _summary_cells(results: Results, with_task: bool) -> list[str]:
    style, run, cost = Style.of(results), results.run, counts(results.run)
    best, level = best_tickets(results), observe(results).level
    search, dense, steps = (cost.get(key) for key in ("search_steps_per_replicate", "dense_steps", "steps_trained"))
    seconds, trained, asked = (cost.get(key) for key in ("train_seconds", "segments_trained", "segments_asked"))
    return [
        *([run.task.title] if with_task else []),
        shortened(run.known_as, _LONGEST),
        rewind_of(results) or NONE,
        str(len(results.levels)),
        str(results.replicates),
        NONE if level is None else percent(results.any_at(level).density),
        _metric(style, best),
        percent(best.density) if best else NONE,
        _metric(style, results.dense),
        times(search / dense) if search is not None and dense else NONE,
        NONE if steps is None else short_count(steps),
        NONE if seconds is None else duration(seconds),
        NONE if trained is None or asked is None else f"{trained:,.0f} / {asked:,.0f}",
    ]


def _metric(style: Style, group: Group | None) -> str:
    return NONE if group is None else style.summary(group.metric())


def comparison_section(
    subject: Subject, task: Task, indices: Sequence[int], drawings: Mapping[str, Drawing], place: Place
) -> Section | None:
    """The figures of one task's runs; None where there is nothing to draw."""
    runs = [subject.runs[index] for index in indices]
    overlaid = (
        f"Test {metric_label(task.metric)} against weights remaining ({better(task.metric)}), {bands(*runs)}. "
        "Large: the tickets of each run; small, on one scale: its controls. Grey line: the dense network. "
    )
    known = (
        "Time to ticket: all training until the mask of a density was known, mean over replicates. Of an iterative "
        "search: the dense network and every denser ticket. Of gates: their rounds, tries among them. The training "
        "of the ticket itself comes on top for every method. "
    )
    figures = [
        place.figure(drawings, METRIC_BY_DENSITY, overlaid, summary_rows(runs)),
        place.figure(drawings, METRIC_BY_SPENT, spent_caption(runs), spent_rows(runs)),
        place.figure(drawings, METRIC_BY_COST, cost_caption(True), cost_rows(runs)),
        place.figure(drawings, STEPS_TO_TICKET, known, known_rows(runs)),
    ]
    several = len(subject.by_task) > 1
    name = task.title
    title = name if several else f"Test {task.metric.words} of the runs, overlaid"
    return Section(place.id("comparison"), title, figures, name if several else "Comparison") if any(figures) else None


# -- at one density ----------------------------------------------------------------------------------------------------


def methods_section(subject: Subject, task: Task, indices: Sequence[int], place: Place) -> Section | None:
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
    if any(relative(runs[i], group, ENERGY) for match in found for i, group in match.members):
        text += " Energy is shared out by seconds, so that its multiple of dense is theirs."
        if any(is_estimate(run.run) for run in runs):
            text += " Part of it is an estimate."
    if alone := unmatched(runs):
        text += f" Without a table, since no two runs reached it: {', '.join(percent(one) for one in alone)} %."
    blocks: list[Block] = [Text(text, "caption")]
    for number, match in enumerate(found, 1):
        blocks += _at_density(match, runs, labels, indices, place.within(f"density-{number}"))
    title = "By method" if len(subject.by_task) == 1 else f"By method: {task.title}"
    return Section(place.id("methods"), title, blocks, name="By method")


def _at_density(
    match: Match, runs: Sequence[Results], labels: Sequence[str], indices: Sequence[int], place: Place
) -> list[Block]:
    """The table, and what stands in the way of a comparison."""
    groups, members = [group for _, group in match.members], [runs[i] for i, _ in match.members]
    metric = members[0].run.task.metric
    style = Style.fitting([group.metric() for group in groups], metric.unit)
    numbers = ["weights remaining, %", f"test {metric_label(metric)}", "n", "minus dense"]
    numbers += [f"{measure}, ×\N{NO-BREAK SPACE}dense" for measure in MEASURES]
    head = [Cell("method", sort="text"), *(Cell(name, sort="number") for name in numbers)]
    rows = [_method_row(_run(labels[i], indices[i]), runs[i], group, style) for i, group in match.members]
    caption = f"{percent(match.density)} % of the weights"
    texts, names = [], [labels[i] for i, _ in match.members]
    if found := schedules(names, members, groups):
        texts.append(f"Schedules differ, and only equal ones compare: {'. '.join(found)}.")
    if found := conditions(names, members):
        texts.append(f"Measured under different conditions: {'. '.join(found)}.")
    if match.nearest:
        others = ", ".join(f"{labels[i]} (nearest: {percent(density)} %)" for i, density in match.nearest)
        texts.append(f"Without networks of this density: {others}.")
    table = Table(place.id("table"), caption, head, rows, "sorts methods", bold=True)
    return [table, *(Text(text, "note") for text in texts)]


def _method_row(name: Cell, results: Results, group: Group, style: Style) -> Row:
    summary = group.metric()
    difference = group.minus(results.dense) if results.dense else None
    costs = [relative(results, group, measure) for measure in MEASURES]
    return Row(
        name,
        [
            percent(group.density),
            style.summary(summary),
            str(summary.n),
            NONE if difference is None else style.summary(difference, sign=True),
            *(NOT_MEASURED if cost is None else ratio(cost.mean) for cost in costs),
        ],
    )
