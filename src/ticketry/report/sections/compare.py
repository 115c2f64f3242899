"""Several runs side by side: a table of what each found and cost, and figures that lay them over each other."""

from __future__ import annotations

from ticketry.report.aggregate import Group, Results
from ticketry.report.figures import METRIC_BY_COST, METRIC_BY_DENSITY, METRIC_BY_SPENT, STEPS_TO_TICKET, Drawing
from ticketry.report.markup import Html, el, prose
from ticketry.report.observation import best_tickets, observe
from ticketry.report.record import Task
from ticketry.report.rows import cost_rows, known_rows, spent_rows, summary_rows
from ticketry.report.sections.cost import cost_caption, spent_caption
from ticketry.report.sections.parts import Place, head_row, scrolling, swatch
from ticketry.report.sections.results import bands
from ticketry.report.subject import Subject, rewind_of
from ticketry.report.wording import NONE, Style, duration, metric_label, percent, short_count, times


def summary_section(subject: Subject) -> Html:
    """A row a run: what it is, what it found and what it cost."""
    tasks = len(subject.by_task) > 1
    header = head_row(
        "run",
        *(["task"] if tasks else []),
        "method",
        "rewind",
        "levels",
        "replicates",
        "sparsest matching, %",
        "best tickets",
        "at, %",
        "dense",
        "search, × dense",
        "steps trained",
        "training time",
        "segments trained / asked",
    )
    rows = [_row(index, subject.labels[index], results, tasks) for index, results in enumerate(subject.runs)]
    caption = (
        "Sparsest matching: the least share of weights at which the tickets' mean is within the margin of dense and "
        "better than every control (means, not verdicts). Best tickets: the level with the best mean test metric. "
        "Search: all training of one replicate's search against one dense training."
    )
    table = el("table", header, el("tbody", *rows), class_="results summary")
    return el("section", el("h2", "The runs"), scrolling(table, prose(caption), "table-runs"), id="runs")


def comparison_section(
    subject: Subject, task: Task, indices: tuple[int, ...], drawings: dict[str, Drawing], place: Place
) -> Html | None:
    """The figures of one task's runs; None where there is nothing to draw."""
    runs = [subject.runs[index] for index in indices]
    metric = task.metric
    figures = []
    if METRIC_BY_DENSITY in drawings:
        better = "more is better" if metric.higher_is_better else "less is better"
        caption = prose(
            f"Test {metric_label(metric)} against weights remaining ({better}), {bands(*runs)}. "
            "Large: the tickets of each run; small, on one scale: its controls. Grey line: the dense network. "
        )
        figures.append(place.figure(drawings[METRIC_BY_DENSITY], METRIC_BY_DENSITY, caption, summary_rows(runs)))
    if METRIC_BY_SPENT in drawings:
        caption = spent_caption(runs)
        figures.append(place.figure(drawings[METRIC_BY_SPENT], METRIC_BY_SPENT, caption, spent_rows(runs)))
    if METRIC_BY_COST in drawings:
        figures.append(place.figure(drawings[METRIC_BY_COST], METRIC_BY_COST, cost_caption(True), cost_rows(runs)))
    if STEPS_TO_TICKET in drawings:
        caption = prose(
            "Time to ticket: all training until the mask of a density was known, mean over replicates. Of an iterative "
            "search: the dense network and every denser ticket. Of gates: their rounds, tries among them. The training "
            "of the ticket itself comes on top for every method. "
        )
        figures.append(place.figure(drawings[STEPS_TO_TICKET], STEPS_TO_TICKET, caption, known_rows(runs)))
    if not figures:
        return None
    title = f"Test {metric.words} of the runs, overlaid"
    if len(subject.by_task) > 1:
        title = f"{task.model} on {task.name}"
    return el("section", el("h2", title), *figures, id=place.id("comparison"))


def _row(index: int, label: str, results: Results, with_task: bool) -> Html:
    style, run = Style.of(results), results.run
    best, level = best_tickets(results), observe(results).level
    matching = None if level is None else results.any_at(level)
    cells = (
        *([f"{run.task.model} on {run.task.name}"] if with_task else []),
        run.method,
        rewind_of(results) or NONE,
        str(len(results.levels)),
        str(results.replicates),
        percent(matching.density) if matching else NONE,
        _metric(style, best),
        percent(best.density) if best else NONE,
        _metric(style, results.dense),
        *_costs(results),
    )
    name = el("th", swatch(index), el("a", label, href=f"#run-{index + 1}"), scope="row")
    return el("tr", name, *(el("td", cell) for cell in cells))


def _metric(style: Style, group: Group | None) -> str:
    return NONE if group is None else style.summary(group.metric())


def _costs(results: Results) -> list[str]:
    """Search against dense, steps trained, training time, segments; whatever is no number is left out."""

    def number(key: str) -> float | None:
        found = results.run.cost.get(key)
        usable = isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found < 1e15
        return float(found) if usable and found is not None else None

    search, dense, trained = number("search_steps_per_replicate"), number("dense_steps"), number("segments_trained")
    steps, seconds, asked = number("steps_trained"), number("train_seconds"), number("segments_asked")
    return [
        times(search / dense) if search is not None and dense else NONE,
        NONE if steps is None else short_count(steps),
        NONE if seconds is None else duration(seconds),
        NONE if trained is None or asked is None else f"{trained:,.0f} / {asked:,.0f}",
    ]
