"""The frontier: the metric against what a call costs, of tickets, of their controls and of dense networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ticketry.records.network import TICKET, is_matched_dense
from ticketry.report.figures.axes import log_axis, tick_label
from ticketry.report.figures.metric_by_density import limits_of, scale_of
from ticketry.report.figures.panels import legend, sheet
from ticketry.report.figures.style import COLOURS, look_of, run_look
from ticketry.report.subject import Series
from ticketry.report.tables.cost_of_call import MULTIPLICATIONS, TIME, Line, Measure, lines_of
from ticketry.report.wording import role_name, short_metric

_AXES = {
    TIME: "measured time of a call, % of the dense network's (log scale)",
    MULTIPLICATIONS: "multiplications of a call, % of the dense network's (log scale)",
}


def metric_by_call(measure: Measure, series: Sequence[Series], narrow: bool = False) -> Figure:
    """Means with bands of their intervals: one run with its controls, or tickets of several, and dense networks."""
    runs = {one.index: one.results for one in series}
    shown = lines_of(runs, sorted(runs), measure)
    figure = sheet(narrow, 340 if narrow else 390)
    axes = figure.subplots()
    scale = scale_of(*runs.values())
    costs = [100 * point.cost for line in shown for point in line.points]
    log_axis(axes, "x", min(costs) / 1.12, max(costs) * 1.12, lambda value: tick_label(value / 100))
    scale.set(axes, limits_of([point.group for line in shown for point in line.points], scale))
    axes.set_title(f"test {short_metric(series[0].results.run.task.metric)}{scale.note}")
    axes.set_xlabel(_AXES[measure])
    dense = next(one.results.dense for one in series if one.results.dense is not None)
    axes.axhline(dense.metric().mean, color=COLOURS["muted"], lw=0.8, zorder=1)
    names = {one.index: one.label for one in series}
    entries: dict[str, Any] = {}
    for line in reversed(shown):
        name = role_name(line.role) if line.run is None or len(series) == 1 else names[line.run]
        entries[name] = _drawn(axes, line, shown, len(series) > 1, scale)
    legend(figure, dict(reversed(entries.items())), fontsize=12)
    return figure


def _drawn(axes: Any, line: Line, shown: Sequence[Line], several: bool, scale: Any) -> Any:
    """A line with markers over the band of its intervals; what a legend shows of it."""
    ordered, front = sorted(line.points, key=lambda point: point.cost), line.role == TICKET
    if is_matched_dense(line.role):
        kinds = [one.role for one in shown if is_matched_dense(one.role)]
        look: dict[str, Any] = {
            "color": COLOURS["muted"],
            "marker": "sDvP"[kinds.index(line.role) % 4],
            "linestyle": (0, (4, 2)),
        }
    elif several:
        look = run_look(line.run or 0)
    else:
        look = look_of(line.role, [one.role for one in shown if one.run is not None])
    x = [100 * point.cost for point in ordered]
    bands = [(point.metric.mean, point.metric.interval or (point.metric.mean,) * 2) for point in ordered]
    lows = [scale.shown(low, point.metric) for (_, (low, _)), point in zip(bands, ordered, strict=True)]
    axes.fill_between(x, lows, [high for _, (_, high) in bands], color=look["color"], alpha=0.1, lw=0, zorder=2)
    look = {"markersize": 6.5, **look, "lw": 2.2 if front else 1.6}
    return axes.plot(x, [mean for mean, _ in bands], zorder=5 if front else 4, clip_on=False, **look)[0]
