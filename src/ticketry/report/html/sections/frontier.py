"""The frontier: the metric against counted cost, first on the page of a search for a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ticketry.records.network import TICKET, is_dense_rival
from ticketry.report.figures import METRIC_BY_MULTIPLICATIONS, Drawing
from ticketry.report.html.blocks import Cell, Place, Row, Section, Table, Text
from ticketry.report.html.sections.results import bands
from ticketry.report.subject import Subject
from ticketry.report.tables.counted_cost import (
    CountedPoint,
    Line,
    at_equal_cost,
    frontier_rows,
    lines_of,
)
from ticketry.report.tables.results import Results
from ticketry.report.wording import NONE, Style, better, metric_label, percent, role_name


def frontier_section(
    subject: Subject, indices: Sequence[int], drawings: Mapping[str, Drawing], place: Place
) -> Section | None:
    """Figure, a sentence, and a table of all its points; None for runs that do not tell multiplications."""
    if METRIC_BY_MULTIPLICATIONS not in drawings:
        return None
    lines = lines_of(subject.runs, indices)
    runs = [subject.runs[index] for index in dict.fromkeys(line.run for line in lines) if index is not None]
    metric = runs[0].run.task.metric
    caption = (
        f"Test {metric_label(metric)} ({better(metric)}) against the multiplications of a call with one example, in"
        " linear and convolution layers, where removed weights take none: up and to the left is better;"
        f" {bands(*runs)}."
        " Dashed grey: dense networks, as narrow as the cost asks for, trained by the same recipe for as many steps;"
        " thin line: the dense network of the task. "
    )
    found = [_lead(results, runs) for results in runs]
    return Section(
        place.id("frontier"),
        f"Test {metric.words} against the cost of a call",
        [
            *(Text(text, "lead") for text in found if text),
            place.figure(drawings, METRIC_BY_MULTIPLICATIONS, caption, frontier_rows(subject.runs, lines)),
            _table(subject, lines, runs, place),
        ],
        name="Frontier",
    )


def _lead(results: Results, runs: Sequence[Results]) -> str:
    """Where a run's own dense rivals stand, at each of its budgets; empty where it has none."""
    style, told = Style.of(results), []
    own = [line for line in lines_of([results], [0]) if line.role == TICKET and line.run is not None]
    for point in own[0].points if any(map(is_dense_rival, results.roles)) else ():
        against = at_equal_cost(results, point, [results])
        if against is not None:
            ends = against.difference.interval
            sure = f" [{style.interval(ends)}]" if ends else ""
            cost = f"{percent(point.cost)} % (theirs: {percent(against.rival.cost)} %)"
            told.append(f"{style.number(against.difference.mean, True)}{sure} at {cost}")
    if not told:
        return ""
    return f"Tickets minus dense networks of equal cost, by share of the multiplications: {'; '.join(told)}."


def _table(subject: Subject, lines: Sequence[Line], runs: Sequence[Results], place: Place) -> Table:
    head = [
        *("networks", "multiplications, %", "weights remaining, %", "network", f"test {runs[0].run.task.metric.name}"),
        *("minus dense of equal cost", "interval"),
    ]
    rows = [_row(subject, line, point, runs, Style.of(runs[0])) for line in lines for point in line.points]
    asked = [f"flops {told}" for results in runs if (told := _asked(results))]
    budget = f" Asked for: {'; '.join(dict.fromkeys(asked))} of the layers that are pruned." if asked else ""
    caption = (
        "Multiplications are shares of the dense network's, over all linear and convolution layers; weights remaining"
        f" are of the prunable ones.{budget} Differences are taken replicate by replicate, to the best dense network of"
        " equal cost; intervals: 95 %, Student's t."
    )
    return Table(place.id("table-frontier"), caption, head, rows)


def _asked(results: Results) -> str:
    shares = results.run.settings.get("flops")
    return ", ".join(f"{share:g}" for share in shares) if isinstance(shares, list | tuple) else ""


def _row(subject: Subject, line: Line, point: CountedPoint, runs: Sequence[Results], style: Style) -> Row:
    name, difference, interval = role_name(line.role), NONE, NONE
    if line.run is not None:
        results = subject.runs[line.run]
        name = name if len(runs) == 1 else subject.labels[line.run]
        against = at_equal_cost(results, point, runs) if line.role == TICKET else None
        if against is not None:
            difference, interval = (
                style.number(against.difference.mean, True),
                style.interval(against.difference.interval),
            )
    elif point.group.role == "dense":
        name = role_name("dense")
    network = ", ".join(point.networks) or NONE
    return Row(
        name,
        [
            percent(point.cost),
            percent(point.group.density),
            Cell(network, code=network != NONE),
            style.summary(point.metric),
            difference,
            interval,
        ],
    )
