"""Measured times: what a compiled ticket saves, and accuracy against measured time, which granularity is worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ticketry.records.speed import BenchRecord, EngineTime, Saved, SpeedLayer, SpeedRecord, Timed
from ticketry.report.figures import METRIC_BY_TIME, TIME_BY_DENSITY, TIME_BY_ENGINE, Drawing
from ticketry.report.html.blocks import Byline, Cell, Facts, Folded, Place, Row, Section, Table, Text, made_by
from ticketry.report.subject import Series
from ticketry.report.tables.measured_time import AtEqualTime, Compared, Panel, TimedPoint, compared_panels
from ticketry.report.tables.rows import curve_rows, speed_rows, time_rows
from ticketry.report.wording import MINUS, NONE, Style, better, metric_label, percent

_CLOSE = 0.01
"""Of a share of time: a ratio of medians so far beyond what was saved is no contradiction that anybody sees."""
_STEADY = 2
"""Times its first quartile, where the third one of a steady engine's time lies at most."""

# -- of one ticket -----------------------------------------------------------------------------------------------------


def saved_section(speed: SpeedRecord, drawings: Mapping[str, Drawing], place: Place) -> Section:
    """Time saved, with how it was measured; engines, layers, and the time at other densities."""
    shown = speed.comparisons or tuple(curve.comparison for curve in speed.curves)
    task = f"{speed.model} on {speed.task}"
    facts = [task, f"{percent(speed.density)} % of the weights", shown[-1].how]
    sure = min((saved.confidence for timed in speed.comparisons for saved in timed.saved), default=0.0)
    engines = (
        "Median time of a call; thin lines: quartiles over rounds. All engines ran in turns in one process, on the same"
        " cores, after their outputs were compared with eager torch. The strongest grey: the fastest dense engine. What"
        f" is saved is the median of the rounds' ratios, with an interval of {percent(sure, 0)} % by ranks. "
    )
    pattern = speed.curves[0].pattern if speed.curves else ""
    curves = (
        f"Time of a call under synthetic masks ({pattern}) of the same network; dashed: density times"
        " that of the fastest dense engine, what would be ideal. "
    )
    blocks = [
        Byline([fact for fact in facts if fact.strip(" on")], speed.run or speed.ticket),
        Text(_sentence(speed), "lead") if speed.comparisons else None,
        Facts([*map(_batch_fact, speed.comparisons), *_sizes(speed)]),
        Text(unsteady, "note") if (unsteady := _unsteady(speed)) else None,
        place.figure(drawings, TIME_BY_ENGINE, engines, speed_rows([speed])),
        _engines(speed, place),
        _layers(speed, place),
        place.figure(drawings, TIME_BY_DENSITY, curves, curve_rows([speed])),
        made_by(speed.command, {}, shown[-1].machine),
    ]
    return Section(place.id("saved"), "What it saves" if speed.comparisons else "Time against density", blocks)


def _sentence(speed: SpeedRecord) -> str:
    """What a call takes where that is known, then where no difference was shown: the interval has 0."""
    takes, unknown = [], []
    for timed in speed.comparisons:
        if (best := _best(timed)) is None:
            continue
        at = f"at batch {timed.batch} ("
        if best.low <= 0 <= best.high:
            unknown.append(f"{at}saved: {_range(best)}; against {best.against})")
        else:
            takes.append(f"{_less(best.saved)} {at}against {best.against})")
    shown = [f"a call takes {', '.join(takes)}"] if takes else []
    shown += [f"no difference is shown {', '.join(unknown)}"] if unknown else []
    if not shown:
        return "Nothing was compared."
    return f"Against the fastest dense engine in the same rounds, {'; '.join(shown)}."


def _less(saved: float) -> str:
    return f"{abs(100 * saved):.0f} % {'less' if saved >= 0 else 'more'}"


def _range(best: Saved) -> str:
    return f"{100 * best.low:.1f} to {100 * best.high:.1f} %".replace("-", MINUS)


def _unsteady(speed: SpeedRecord) -> str:
    """What to think of numbers that disagree, as they do beside other work on the machine; empty where none do."""
    apart = {timed.batch: _less(saved) for timed in speed.comparisons if (saved := _otherwise(timed)) is not None}
    batches = [str(timed.batch) for timed in speed.comparisons if timed.batch in apart or _varied(timed)]
    if not batches:
        return ""
    medians = ", ".join(f"{less} at batch {batch}" for batch, less in apart.items())
    return (
        f"Times varied much (batch {', '.join(batches)}), as beside other work on the machine. What is saved is the"
        " median of ratios within rounds, which then need not agree with the medians of figure and table"
        f"{f', by which a call takes {medians}' if medians else ''}. Measure again on an idle machine."
    )


def _otherwise(timed: Timed) -> float | None:
    """What is saved by the medians of both times; None where that is within the interval, or as good as."""
    best, seconds = _best(timed), [row.seconds for row in _both(timed) if row.seconds is not None]
    if best is None or len(seconds) < 2:
        return None
    saved = 1 - seconds[0] / seconds[1]
    return None if best.low - _CLOSE <= saved <= best.high + _CLOSE else saved


def _varied(timed: Timed) -> bool:
    return any(row.low and row.high and row.high > _STEADY * row.low for row in _both(timed))


def _both(timed: Timed) -> list[EngineTime]:
    """The sparse engine's times, and those of the dense one that it is compared with."""
    best, rows = _best(timed), {row.engine: row for row in timed.times}
    return [rows[name] for name in (best.engine, best.against) if name in rows] if best else []


def _best(timed: Timed) -> Saved | None:
    """Of the engine with sparse kernels, which is named first; a smaller dense model may be there as well."""
    return next(iter(timed.saved), None)


def _batch_fact(timed: Timed) -> tuple[str, str, str]:
    best = _best(timed)
    if best is None:
        return f"Batch {timed.batch}", NONE, "not compared"
    number = f"{100 * best.saved:.1f} %".replace("-", MINUS)
    return f"Time saved, batch {timed.batch}", number, f"{_range(best)}; against {best.against}"


def _sizes(speed: SpeedRecord) -> list[tuple[str, str, str]]:
    if not isinstance(speed, BenchRecord) or speed.compile_seconds is None:
        return []
    return [("Compiled in", f"{speed.compile_seconds:.2f} s", "kernels and their tables; later ones are cached")]


def _engines(speed: SpeedRecord, place: Place) -> Table | None:
    """Times of all engines, and why some have none."""
    if not speed.comparisons:
        return None
    names = dict.fromkeys(row.engine for timed in speed.comparisons for row in timed.times)
    rows = [Row(name, [_time(timed, name) for timed in speed.comparisons]) for name in names]
    head = ["engine", *(f"batch {timed.batch}, ms" for timed in speed.comparisons)]
    return Table(place.id("table-engines"), "Milliseconds of a call: median (quartiles).", head, rows)


def _time(timed: Timed, name: str) -> str:
    row = next((row for row in timed.times if row.engine == name), None)
    if row is None:
        return NONE
    if row.seconds is None:
        return row.why
    quartiles = "" if row.low is None or row.high is None else f" ({1e3 * row.low:.3g} to {1e3 * row.high:.3g})"
    return f"{1e3 * row.seconds:.3g}{quartiles}"


def _layers(speed: SpeedRecord, place: Place) -> Folded | None:
    if not isinstance(speed, BenchRecord) or not speed.layers:
        return None
    head = ["layer", "kind", "kernel", "weights kept", "rows that share columns", "ms", "share", "saved", ""]
    at = "" if speed.layers_batch is None else f" at batch {speed.layers_batch}"
    caption = (
        f"What each layer runs in, and its time{at} on one thread; saved: against the same engine with nothing pruned."
    )
    rows = [_layer_row(layer) for layer in speed.layers]
    return Folded("Layer by layer", [Table(place.id("table-speed-layers"), caption, head, rows)])


def _layer_row(layer: SpeedLayer) -> Row:
    return Row(
        layer.name,
        [
            layer.kind,
            layer.kernel if layer.where == "engine" else "torch",
            "" if layer.density is None else f"{percent(layer.density)} %",
            layer.rows,
            "" if layer.seconds is None else f"{1e3 * layer.seconds:.3f}",
            "" if layer.share is None else f"{100 * layer.share:.1f} %",
            "" if layer.saved is None else f"{100 * layer.saved:.0f} %".replace("-", MINUS),
            Cell(layer.why, "note"),
        ],
    )


# -- of runs -----------------------------------------------------------------------------------------------------------


def timed_section(
    panels: Sequence[Panel], speeds: Sequence[SpeedRecord], drawings: Mapping[str, Drawing], place: Place
) -> Section | None:
    """The figure, a sentence for each batch, and all numbers; None where no ticket was timed."""
    if METRIC_BY_TIME not in drawings:
        return None
    metric = panels[0].curves[0][0].results.run.task.metric
    hows = dict.fromkeys(panel.setup.how for panel in panels)
    kind = "" if metric.summary == "iqm" else "t "
    caption = (
        f"Test {metric_label(metric)} ({better(metric)}) against the time of a call beside the fastest dense engine's"
        f" in the same rounds ({'; '.join(hows)}): up and to the left is better. Thin bars: 95 % {kind}intervals over"
        " replicates (those of two may reach beyond the panel), and the intervals of the measured time."
        " Grey square and lines: the dense network in the fastest dense engine. Beside points: weights remaining. "
    )
    compared = compared_panels(panels, speeds)
    blocks = [
        *(Text(text, "lead") for panel in panels if (text := _most_at_equal_time(panel, compared))),
        place.figure(drawings, METRIC_BY_TIME, caption, time_rows(panels, compared)),
        *(_table(panel, compared, place) for panel in panels),
    ]
    title = f"{metric.name[:1].upper()}{metric.name[1:]} against measured time"
    return Section(place.id("timed"), title, blocks, name="Time")


def _most_at_equal_time(panel: Panel, compared: Compared) -> str:
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
    sure = f" (95 % interval {style.interval(ends)})" if ends else ""
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


def _table(panel: Panel, compared: Compared, place: Place) -> Folded:
    found = [compared.get((panel.setup, one.results.run.name), {}) for one, _ in panel.curves]
    judged = any(found)
    rows = [
        _row(one, point, levels.get(point.group.level), judged)
        for (one, points), levels in zip(panel.curves, found, strict=True)
        for point in points
    ]
    metric, setup = panel.curves[0][0].results.run.task.metric, panel.setup
    against = ("at equal time", "interval") if judged else ()
    head = ["masks", "weights, %", "time, × dense", "interval", f"test {metric.name}", *against, "engine"]
    caption = f"Batch {setup.batch}, {setup.how}."
    if judged:
        caption += (
            " At equal time: better (+) or worse than the best unstructured tickets that take no longer, on the"
            " straight line between two of their levels, replicate by replicate."
        )
    name = place.id(f"table-timed-{setup.batch}-{setup.precision}-{setup.threads}-{setup.cold}")
    return Folded(f"Batch {setup.batch} in numbers", [Table(name, caption, head, rows)])


def _row(one: Series, point: TimedPoint, against: AtEqualTime | None, judged: bool) -> Row:
    """`judged` is whether the table tells differences at equal time."""
    style = Style.of(one.results)
    difference = style.number(against.difference.mean, True) if against else NONE
    interval = style.interval(against.difference.interval if against else None)
    return Row(
        one.label,
        [
            percent(point.group.density),
            f"{point.time:.3f}",
            f"{point.low:.3f} to {point.high:.3f}",
            style.summary(point.metric),
            *((difference, interval) if judged else ()),
            ", ".join(point.engines),
        ],
    )
