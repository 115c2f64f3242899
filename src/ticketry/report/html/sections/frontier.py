"""Frontiers: the metric against what a call costs, first on the page of a search for a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ticketry.records.network import TICKET
from ticketry.report.figures import METRIC_BY, Drawing
from ticketry.report.html.blocks import Block, Cell, Place, Row, Section, Table, Text
from ticketry.report.html.sections.results import bands
from ticketry.report.subject import Subject
from ticketry.report.tables.cost_of_call import (
    MULTIPLICATIONS,
    TIME,
    CostPoint,
    Line,
    Measure,
    at_equal_cost,
    cost_points,
    frontier_rows,
    lines_of,
)
from ticketry.report.tables.least_cost import LeastCost, least_cost, least_cost_ratio
from ticketry.report.tables.observation import margin_of
from ticketry.report.tables.results import Results
from ticketry.report.wording import NONE, Style, better, metric_label, percent, role_name


@dataclass(frozen=True)
class _Words:
    """How a page speaks of a cost."""

    column: str
    of: str
    """Of a share: ``18.1 % of the time``."""
    axis: str
    """What a figure shows it of."""
    note: str


_WORDS = {
    TIME: _Words(
        "time, %",
        "time",
        "the measured time of a call, as a share of the dense network's in turns with it",
        "Times are medians of a call by a timing that chose nothing, as shares of the dense network's; means over"
        " replicates.",
    ),
    MULTIPLICATIONS: _Words(
        "multiplications, %",
        "multiplications",
        "the multiplications of a call with one example, in linear and convolution layers, where removed weights take"
        " none",
        "Multiplications are shares of the dense network's, over all linear and convolution layers.",
    ),
}


def frontier_sections(
    subject: Subject, indices: Sequence[int], drawings: Mapping[str, Drawing], place: Place
) -> Iterator[Section]:
    """Figure, sentences, and a table of all its points, for each way in which the runs tell what a call costs."""
    told = [measure for measure in _WORDS if METRIC_BY[measure] in drawings]
    for measure in told:
        first = measure is told[0]
        where = place.id("frontier" if first else f"frontier-{measure.name}")
        blocks, title = _blocks(subject, indices, drawings, place, measure)
        yield Section(where, title, blocks, name="Frontier" if first else measure.name.capitalize())


def _blocks(
    subject: Subject, indices: Sequence[int], drawings: Mapping[str, Drawing], place: Place, measure: Measure
) -> tuple[list[Block | None], str]:
    """What a section has, and its title."""
    words, lines = _WORDS[measure], lines_of(subject.runs, indices, measure)
    numbers = [index for index in dict.fromkeys(line.run for line in lines) if index is not None]
    runs = [subject.runs[index] for index in numbers]
    metric = runs[0].run.task.metric
    caption = (
        f"Test {metric_label(metric)} ({better(metric)}) against {words.axis}: up and to the left is better;"
        f" {bands(*runs)}."
        " Dashed grey: dense networks, as narrow as the cost asks for, trained by the same recipe for as many steps;"
        " thin line: the dense network of the task. "
    )
    leads = [_lead(results, measure, len(runs) == 1) for results in runs]
    blocks: list[Block | None] = [
        *(Text(text, "lead") for text in leads if text),
        place.figure(drawings, METRIC_BY[measure], caption, frontier_rows(subject.runs, lines, measure)),
        _table(subject, lines, runs, place, measure),
    ]
    if len(runs) > 1:
        blocks.append(_least(subject, numbers, place, measure))
    return blocks, f"Test {metric.words} against the {words.of} of a call"


def _lead(results: Results, measure: Measure, alone: bool) -> str:
    """Down to which cost a run's tickets are as good as dense, if it is alone, and where its dense rivals stand."""
    words, told = _WORDS[measure], []
    if alone and results.dense is not None:
        margin, margin_text = margin_of(results, results.dense)
        found = least_cost(results, measure, margin)
        if found is not None and found.value < 1:
            how = "" if found.reached else ", the least that was tried"
            told.append(
                f"The mean of the tickets is within {margin_text} of the dense network's down to"
                f" {_told(found)} % of the {words.of}{how}."
            )
    if against := _rivals(results, measure):
        told.append(f"Tickets minus dense networks of equal cost, by share of the {words.of}: {'; '.join(against)}.")
    return " ".join(told)


def _rivals(results: Results, measure: Measure) -> list[str]:
    style, told = Style.of(results), []
    for point in cost_points(results, TICKET, measure):
        against = at_equal_cost(results, point, [results], measure)
        if against is not None:
            ends = against.difference.interval
            sure = f" [{style.interval(ends)}]" if ends else ""
            cost = f"{percent(point.cost)} % (theirs: {percent(against.rival.cost)} %)"
            told.append(f"{style.number(against.difference.mean, True)}{sure} at {cost}")
    return told


def _told(found: LeastCost) -> str:
    """``18.1 [15.0, 21.9]``, of a share in per cent."""
    ends = "" if found.interval is None else f" [{percent(found.interval[0])}, {percent(found.interval[1])}]"
    return f"{percent(found.value)}{ends}"


def _table(subject: Subject, lines: Sequence[Line], runs: Sequence[Results], place: Place, measure: Measure) -> Table:
    words = _WORDS[measure]
    head = [
        *("networks", words.column, "weights remaining, %", "network", f"test {runs[0].run.task.metric.name}"),
        *("minus dense of equal cost", "interval"),
    ]
    style = Style.of(runs[0])
    rows = [_row(subject, line, point, runs, style, measure) for line in lines for point in line.points]
    asked = [f"{measure.setting} {told}" for results in runs if (told := _asked(results, measure))]
    budget = f" Asked for: {'; '.join(dict.fromkeys(asked))} of the layers that are pruned." if asked else ""
    caption = (
        f"{words.note} Weights remaining are of the prunable ones.{budget} Differences are taken replicate by"
        " replicate, to the best dense network of equal cost; intervals: 95 %, Student's t."
    )
    return Table(place.id(f"table-frontier-{measure.name}"), caption, head, rows)


def _asked(results: Results, measure: Measure) -> str:
    shares = results.run.settings.get(measure.setting)
    if not isinstance(shares, list | tuple):
        return ""
    return ", ".join(f"{share:g}" if isinstance(share, float) else str(share) for share in shares)


def _row(
    subject: Subject, line: Line, point: CostPoint, runs: Sequence[Results], style: Style, measure: Measure
) -> Row:
    name, difference, interval = role_name(line.role), NONE, NONE
    if line.run is not None:
        results = subject.runs[line.run]
        name = name if len(runs) == 1 else subject.labels[line.run]
        against = at_equal_cost(results, point, runs, measure) if line.role == TICKET else None
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


def _least(subject: Subject, numbers: Sequence[int], place: Place, measure: Measure) -> Table:
    """The least cost at which each run's tickets are as good as dense, and what the first needs of what each needs."""
    words, runs = _WORDS[measure], {index: subject.runs[index] for index in numbers}
    margins = {index: margin_of(results, results.dense) for index, results in runs.items() if results.dense is not None}
    told = {index: least_cost(runs[index], measure, margin) for index, (margin, _) in margins.items()}
    found = {index: least for index, least in told.items() if least is not None}
    ordered = sorted(found, key=lambda index: found[index].value)
    rows = []
    for index in ordered:
        ratio = None
        if index != ordered[0]:
            ratio = least_cost_ratio(runs[ordered[0]], runs[index], measure, margins[index][0])
        ends = NONE if ratio is None or ratio.interval is None else "{:.2f} to {:.2f}".format(*ratio.interval)
        least = f"{found[index].words}{_told(found[index])}"
        rows.append(Row(subject.labels[index], [least, f"{ratio.words}{ratio.value:.2f}" if ratio else NONE, ends]))
    margin_text = next((text for _, text in margins.values()), "")
    caption = (
        f"The least {words.of} at which the mean of the tickets is within {margin_text} of the dense network's: where"
        " mean differences, from the dense network through all levels, by lines over the logarithm of the cost, first"
        " fall below; at most: no level does. Then what the first needs of what each needs, over the replicates that"
        " both have: a bound where one of them falls short at no level, and nothing where neither does. Intervals:"
        " 95 %, jackknife over replicates, which in simulations held the truth 86 to 95 % of the time."
    )
    head = ["tickets", f"least {words.column}", "the first's, by it", "interval"]
    return Table(place.id(f"table-least-{measure.name}"), caption, head, rows)
