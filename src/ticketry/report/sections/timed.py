"""Accuracy against measured time: which granularity is worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ticketry.report.figures import METRIC_BY_TIME, Drawing
from ticketry.report.figures.overlay import Series
from ticketry.report.figures.timed import Panel, compared_panels
from ticketry.report.markup import Html, el, prose
from ticketry.report.sections.parts import Place, head_row, scrolling
from ticketry.report.speed_record import Speed
from ticketry.report.structure_rows import time_rows
from ticketry.report.timed import AtEqualTime, Compared, TimedPoint
from ticketry.report.wording import NONE, Style, metric_label, percent


def timed_section(
    panels: Sequence[Panel], speeds: Sequence[Speed], drawings: Mapping[str, Drawing], place: Place
) -> Html | None:
    """The figure, a sentence for each batch, and all numbers; None where no ticket was timed."""
    if METRIC_BY_TIME not in drawings:
        return None
    series = list({one.index: one for panel in panels for one, _ in panel.curves}.values())
    metric = series[0].results.run.task.metric
    better = "more is better" if metric.higher_is_better else "less is better"
    hows = list(dict.fromkeys(panel.setup.how for panel in panels))
    caption = prose(
        f"Test {metric_label(metric)} ({better}) against the time of a call beside the fastest dense engine's in the"
        f" same rounds ({'; '.join(hows)}): up and to the left is better. Thin bars: 95 % t intervals over replicates"
        " (of two replicates, as far as 1.5 standard deviations), and the intervals of the measured time. Grey square"
        " and lines: the dense network in the fastest dense engine. Beside points: weights remaining. "
    )
    compared = compared_panels(panels, speeds)
    rows = time_rows(panels, compared)
    sentences = [text for panel in panels if (text := _sentence(panel, compared))]
    return el(
        "section",
        el("h2", f"{metric.name[:1].upper()}{metric.name[1:]} against measured time"),
        *(el("p", prose(text), class_="lead") for text in sentences),
        place.figure(drawings[METRIC_BY_TIME], METRIC_BY_TIME, caption, rows),
        *(_table(panel, compared, place) for panel in panels),
        id=place.id("timed"),
    )


def _sentence(panel: Panel, compared: Compared) -> str:
    """The structured level that has most over unstructured tickets of the same time."""
    found = [
        (one, level)
        for one, _ in panel.curves
        for level in compared.get((panel.setup, one.results.run.name), {}).values()
    ]
    if not found:
        return ""
    one, best = max(found, key=lambda each: each[1].difference.mean)
    style = Style.of(one.results)
    ends = best.difference.interval
    sure = "" if ends is None else f" (95 % interval {style.number(ends[0], True)} to {style.number(ends[1], True)})"
    verb = "most that any structured level has over" if best.difference.mean > 0 else "least that any falls behind"
    of_how_many = (
        "the only level that can be compared"
        if len(found) == 1
        else f"the best of the {len(found)} levels that can be compared, so an upper estimate"
    )
    where = f"{one.label} at {percent(best.point.group.density)} % of the weights"
    return (
        f"Batch {panel.setup.batch}: at equal time the {verb} unstructured tickets is"
        f" {style.number(best.difference.mean, True)}{sure}: {where}, in {100 * best.point.time:.0f} % of the dense"
        f" time; {of_how_many}."
    )


def _table(panel: Panel, compared: Compared, place: Place) -> Html:
    found = [compared.get((panel.setup, one.results.run.name), {}) for one, _ in panel.curves]
    judged = any(found)
    rows = [
        _row(one, point, levels.get(point.group.level), judged)
        for (one, points), levels in zip(panel.curves, found, strict=True)
        for point in points
    ]
    metric = panel.curves[0][0].results.run.task.metric
    against = ("at equal time", "interval") if judged else ()
    header = head_row("masks", "weights, %", "time, × dense", "interval", f"test {metric.name}", *against, "engine")
    text = f"Batch {panel.setup.batch}, {panel.setup.how}."
    if judged:
        text += (
            " At equal time: better (+) or worse than the best unstructured tickets that take no longer, on the"
            " straight line between two of their levels, replicate by replicate."
        )
    caption = prose(text)
    name = place.id(f"table-timed-{panel.setup.batch}-{panel.setup.precision}-{panel.setup.threads}-{panel.setup.cold}")
    table = scrolling(el("table", header, el("tbody", *rows), class_="results"), caption, name)
    return el("details", el("summary", f"Batch {panel.setup.batch} in numbers"), table)


def _row(one: Series, point: TimedPoint, against: AtEqualTime | None, judged: bool) -> Html:
    """`judged` is whether the table tells differences at equal time."""
    style = Style.of(one.results)
    ends = against.difference.interval if against else None
    beside = (
        style.number(against.difference.mean, True) if against else NONE,
        f"{style.number(ends[0], True)} to {style.number(ends[1], True)}" if ends else NONE,
    )
    cells = (
        percent(point.group.density),
        f"{point.time:.3f}",
        f"{point.low:.3f} to {point.high:.3f}",
        style.summary(point.metric),
        *(beside if judged else ()),
        ", ".join(point.engines),
    )
    return el("tr", el("th", one.label, scope="row"), *(el("td", cell) for cell in cells))
