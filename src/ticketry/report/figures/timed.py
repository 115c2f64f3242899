"""The figure that decides between granularities: the metric against the measured time of a call, a panel a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.report.figures import canvas
from ticketry.report.figures.metric import low_high
from ticketry.report.figures.overlay import Series
from ticketry.report.figures.svg import COLOURS
from ticketry.report.granularity import UNSTRUCTURED, granularity
from ticketry.report.speed_record import Speed
from ticketry.report.timed import (
    AtEqualTime,
    Compared,
    Setup,
    TimedPoint,
    at_equal_time,
    setups,
    timed_points,
    unstructured,
)
from ticketry.report.wording import metric_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ONE_STEP = 0.05
"""Of a share of time: the axis begins below the fastest call by so much, and ends as far above the slowest."""


@dataclass(frozen=True)
class Panel:
    """One setup with the runs that have tickets timed in it."""

    setup: Setup
    curves: tuple[tuple[Series, tuple[TimedPoint, ...]], ...]


def timed_panels(series: Sequence[Series], speeds: Sequence[Speed]) -> list[Panel]:
    """A panel for each setup in which anything was timed; none if the dense network or tickets are missing."""
    found = []
    for setup in setups([one.results for one in series], speeds):
        curves = tuple((one, tuple(timed_points(one.results, speeds, setup))) for one in series)
        curves = tuple((one, points) for one, points in curves if points)
        if curves:
            found.append(Panel(setup, curves))
    return found


def compared_panels(panels: Sequence[Panel], speeds: Sequence[Speed]) -> Compared:
    """What the tickets with structure have over those without, of each panel that has both."""
    found: dict[tuple[Setup, str], Mapping[int, AtEqualTime]] = {}
    for panel in panels:
        base = unstructured([one.results for one, _ in panel.curves])
        for one, _ in panel.curves:
            if base is not None and granularity(one.results) != UNSTRUCTURED:
                name = one.results.run.name
                found[panel.setup, name] = at_equal_time(one.results, base, speeds, panel.setup)
    return found


def metric_by_time(panels: Sequence[Panel], narrow: bool = False) -> Figure:
    """Means with intervals of both; the square is the dense network in the fastest dense engine, at 1."""
    series = list({one.index: one for panel in panels for one, _ in panel.curves}.values())
    columns = 1 if narrow else min(2, len(panels))
    width, left, tall, gap = (360, 44, 210, 0) if narrow else (860, 48, 250, 52)
    wide = (width - left - 16 - gap * (columns - 1)) / columns
    named = canvas.legend_columns([one.label for one in series], width)
    top = 46 + 20 * -(-(len(series) + 1) // named)
    block = tall + 82
    rows = -(-len(panels) // columns)
    figure = canvas.figure_of(width, top + block * rows - 22)
    _legend(figure, series, named)
    limits = _limits(panels)
    mixed = len({panel.setup.how for panel in panels}) > 1
    metric = f"test {metric_label(series[0].results.run.task.metric)}"
    for number, panel in enumerate(panels):
        x, y = left + (number % columns) * (wide + gap), top + (number // columns) * block
        axes = canvas.place(figure, x, y, wide, tall)
        axes.set_ylim(*limits)
        _draw_panel(axes, panel)
        how = f", {panel.setup.how}" if mixed else ""
        canvas.write(
            figure, x - left + 2 if number % columns == 0 else x, y - 12, f"batch {panel.setup.batch}{how}", "ink"
        )
        if number % columns == 0:
            canvas.write(figure, x + 66 - left + 6.2 * len(how), y - 12, f"  {metric}")
        across, down = figure.get_size_inches() * canvas.INCH
        spot = ((x + wide) / across, 1 - (y + tall + 42) / down)
        title = "time of a call, × the fastest dense engine's"
        figure.text(*spot, title, color=COLOURS["muted"], size=canvas.SMALL, ha="right")
    return figure


def _limits(panels: Sequence[Panel]) -> tuple[float, float]:
    summaries = [point.metric for panel in panels for _, points in panel.curves for point in points]
    summaries += [one.results.dense.metric() for panel in panels for one, _ in panel.curves if one.results.dense]
    low = min(low_high(summary)[0] for summary in summaries)
    high = max(low_high(summary)[1] for summary in summaries)
    room = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - room, high + room


def _draw_panel(axes: Axes, panel: Panel) -> None:
    times = [1.0, *(edge for _, points in panel.curves for point in points for edge in (point.low, point.high))]
    axes.set_xlim(max(0.0, min(times) - _ONE_STEP), max(times) + _ONE_STEP)
    edge: dict[str, Any] = {"markeredgecolor": COLOURS["paper"], "markeredgewidth": 0.8}
    dense = dict.fromkeys(one.results.dense.metric().mean for one, _ in panel.curves if one.results.dense)
    for mean in dense:
        axes.axhline(mean, color=COLOURS["muted"], lw=0.8, zorder=1)
        axes.plot([1.0], [mean], color=COLOURS["muted"], marker="s", markersize=7, clip_on=False, zorder=5, **edge)
    axes.axvline(1, color=COLOURS["muted"], lw=0.8, zorder=1)
    for one, points in panel.curves:
        _draw_curve(axes, one, points)
    drawn = [(one, point) for one, points in panel.curves for point in points]
    ends = [(one, point) for one, points in panel.curves for point in (*points[:1], *points[1:][-1:])]
    canvas.name_points(
        axes,
        [(point.time, point.metric.mean, f"{canvas.tick_label(point.group.density)} %") for _, point in ends],
        [("x", 1.0), *(("y", mean) for mean in dense)],
        [bar for _, point in drawn for bar in _bars(point)],
        [one.colour for one, _ in ends],
    )
    axes.locator_params(axis="y", nbins=6)
    axes.locator_params(axis="x", nbins=7)
    axes.tick_params(axis="x", length=4, color=COLOURS["muted"])
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)


def _bars(point: TimedPoint) -> tuple[tuple[float, float, float, float], ...]:
    """The intervals of metric and time, each as (from x, y to x, y)."""
    mean, (low, high) = point.metric.mean, low_high(point.metric)
    return (point.time, low, point.time, high), (point.low, mean, point.high, mean)


def _draw_curve(axes: Axes, one: Series, points: Sequence[TimedPoint]) -> None:
    x, means = [point.time for point in points], [point.metric.mean for point in points]
    axes.plot(x, means, color=one.colour, lw=1.2, alpha=0.6, zorder=2)
    for left, low, right, high in (bar for point in points for bar in _bars(point)):
        axes.plot([left, right], [low, high], color=one.colour, lw=1, alpha=0.7, zorder=2)
    edge: dict[str, Any] = {"markeredgecolor": COLOURS["paper"], "markeredgewidth": 0.8}
    axes.plot(x, means, color=one.colour, lw=0, marker=one.marker, markersize=6.2, clip_on=False, zorder=4, **edge)


def _legend(figure: Figure, series: Sequence[Series], columns: int) -> None:
    from matplotlib.lines import Line2D

    looks = [Line2D([], [], color=one.colour, marker=one.marker, markersize=6, lw=2) for one in series]
    looks.append(Line2D([], [], color=COLOURS["muted"], marker="s", markersize=7, lw=0))
    canvas.legend(figure, looks, [*(one.label for one in series), "dense"], columns, fontsize=11)
