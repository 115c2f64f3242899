"""Draw the metric against costs of whole trainings, searches or single calls, and the steps until a mask is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ticketry.records.metric import Metric
from ticketry.records.network import TICKET, is_matched_dense
from ticketry.report.figures.layout import (
    Scale,
    add_legend,
    density_tick_label,
    empty_figure,
    figure_with_panels,
    finish_layout,
    label_points,
    run_legend_handles,
    set_labelled_ticks,
    set_up_density_axis,
    set_up_log_axis,
)
from ticketry.report.figures.metric_by_density import metric_scale_of, y_limits_of
from ticketry.report.figures.style import COLOURS, role_plot_options, run_plot_options
from ticketry.report.subject import Series
from ticketry.report.tables.costs import (
    ENERGY,
    FLOPS,
    MEASURES,
    MEMORY,
    NOT_MEASURED,
    SECONDS,
    SearchCostPoint,
    TrainingCostPoint,
    mean_total_cost,
    search_cost_points,
    ticket_cost_points,
    training_cost_points,
)
from ticketry.report.tables.frontier import MULTIPLICATIONS, TIME, CostMeasure, FrontierLine, frontier_lines
from ticketry.report.tables.speed import LatencyPanel, LatencyPoint
from ticketry.report.wording import role_name, short_count, short_metric_label

P = TypeVar("P")
Range = tuple[float, float]


@dataclass(frozen=True)
class PlottedNetwork:
    """A mark in a panel: cost and metric of a network, or their means over replicates."""

    cost: float
    metric: float
    name: str = ""
    """Label to write beside the mark, if there is room."""
    costs: Range | None = None
    """Lowest and highest cost, which are drawn as a thin bar."""
    metrics: Range | None = None
    size: float = 5.5


@dataclass(frozen=True)
class Curve:
    """The marks of one run in a panel, grouped into lines, and the mark of the run's dense network."""

    look: dict[str, Any]
    lines: Sequence[Sequence[PlottedNetwork]]
    dense: tuple[float, float] | None
    """Cost and metric of the dense network."""
    dense_colour: str = COLOURS["muted"]

    @property
    def networks(self) -> list[PlottedNetwork]:
        return [spot for line in self.lines for spot in line]


@dataclass(frozen=True)
class CostPanel:
    """A panel of a figure: the curves of all runs over one kind of cost."""

    name: str
    curves: Sequence[Curve]
    title: str = ""
    unit: float | None = None
    """Cost of the dense network, to be marked by a vertical line; None if curves do not share this cost."""


def _draw_panels_side_by_side(
    shown: Sequence[CostPanel], metric: Metric, scale: Scale, limits: Range, narrow: bool, height: float
) -> tuple[Figure, list[Axes]]:
    """Draw the panels `shown` side by side with a common axis for the metric; return the figure and its axes."""
    figure, axes = figure_with_panels(len(shown), narrow, height, sharey=not narrow)
    for number, (each, panel) in enumerate(zip(axes, shown, strict=True)):
        scale.set_limits(each, limits, 6)
        own = (narrow and panel.curves) or number % 2 == 0
        name = f"test {short_metric_label(metric)}{scale.name_suffix}" if own else ""
        each.set_title(": ".join(filter(None, (panel.title, name))))
        each.set_xlabel(panel.name)
        _draw_panel(each, panel)
    return figure, axes


def _draw_panel(axes: Axes, panel: CostPanel) -> None:
    """Draw a panel's curves with marks and bars, and grey lines at the metric and cost of dense networks."""
    for level in sorted({curve.dense[1] for curve in panel.curves if curve.dense is not None}):
        axes.axhline(level, color=COLOURS["muted"], lw=0.8, zorder=1)
    if panel.unit is not None and panel.curves:
        axes.axvline(panel.unit, color=COLOURS["muted"], lw=0.8, zorder=1)
    for curve in panel.curves:
        thin = {"color": curve.look["color"], "alpha": 0.6, "zorder": 2}
        for line in curve.lines:
            axes.plot([spot.cost for spot in line], [spot.metric for spot in line], lw=1.2, **thin)
        for spot in curve.networks:
            if spot.metrics:
                axes.plot([spot.cost] * 2, spot.metrics, lw=1, solid_capstyle="butt", **thin)
            if spot.costs:
                axes.plot(spot.costs, [spot.metric] * 2, lw=1, solid_capstyle="butt", **thin)
        x, y, sizes = zip(*((spot.cost, spot.metric, spot.size**2) for spot in curve.networks), strict=True)
        edge: dict[str, Any] = {"edgecolors": COLOURS["paper"], "linewidths": 0.8, "clip_on": False}
        axes.scatter(x, y, sizes, zorder=4, **curve.look, **edge)
        if curve.dense is not None:
            axes.scatter(*curve.dense, 49, color=curve.dense_colour, marker="s", zorder=5, **edge)


def _add_legend_or_point_names(
    figure: Figure, axes: Sequence[Axes], shown: Sequence[CostPanel], series: Sequence[Series]
) -> Figure:
    """Add a legend if there are several runs; for a single run, write names beside points and the dense network."""
    if len(series) > 1:
        add_legend(figure, run_legend_handles(series))
        return figure
    finish_layout(figure)
    for each, panel in zip(axes, shown, strict=True):
        named = [(*curve.dense, "dense", COLOURS["muted"]) for curve in panel.curves if curve.dense]
        if not _points_have_similar_cost(each, panel):
            named += [(*name, COLOURS["muted"]) for curve in panel.curves for name in _points_to_label(curve)]
        label_points(each, named)
    return figure


def _points_have_similar_cost(axes: Axes, panel: CostPanel) -> bool:
    """Return whether all points have nearly the same cost, so that a name beside a point would be ambiguous."""
    spots = [spot for curve in panel.curves for spot in curve.networks]
    across = axes.transData.transform([(spot.cost, spot.metric) for spot in spots])[:, 0] if spots else [0.0]
    return len(spots) > 1 and max(across) - min(across) < max(spot.size for spot in spots)


def _points_to_label(curve: Curve) -> list[tuple[float, float, str]]:
    return [(spot.cost, spot.metric, spot.name) for spot in curve.networks if spot.name]


# -- of the whole training ---------------------------------------------------------------------------------------------

_TITLES = {
    FLOPS: "FLOPs, × dense",
    SECONDS: "training seconds, × dense",
    MEMORY: "memory at the highest, × dense",
    ENERGY: "energy",
}
_UNITS = {"mWh": 1e3, "Wh": 1.0, "kWh": 1e-3}
_MOST_LINEAR = 4
"""If a cost exceeds this multiple of the dense network's cost, the axis is logarithmic; otherwise it begins at 0."""

TrainingCosts = Sequence[tuple[Series, Sequence[TrainingCostPoint]]]


def metric_by_training_cost(series: Sequence[Series], narrow: bool = False) -> Figure:
    """Draw the metric against FLOPs, time, memory and energy of whole trainings."""
    found = [(one, points) for one in series if (points := training_cost_points(one.results))]
    shown = [_training_cost_panel(found, measure) for measure in MEASURES]
    roles = [(*one.results.groups_of_role(TICKET), one.results.dense) for one, _ in found]
    values = [value for groups in roles for group in groups if group is not None for value in group.values().values()]
    metric = found[0][0].results.run.task.metric
    scale = Scale.for_values(metric, values)
    figure, axes = _draw_panels_side_by_side(
        shown, metric, scale, scale.limits_with_room(min(values), max(values), 0.08), narrow, 250
    )
    for each, panel in zip(axes, shown, strict=True):
        if panel.curves:
            each.set_xlabel(panel.name + _set_up_cost_axis(each, panel.curves))
        else:
            each.set_facecolor(COLOURS["shade"])
            each.tick_params(labelleft=False, labelbottom=False, length=0)
            each.grid(visible=False)
            each.spines["bottom"].set_visible(False)
            middle: dict[str, Any] = {"transform": each.transAxes, "ha": "center", "va": "center"}
            each.text(0.5, 0.5, NOT_MEASURED, color=COLOURS["muted"], **middle)
    return _add_legend_or_point_names(figure, axes, shown, [one for one, _ in found])


def _training_cost_panel(found: TrainingCosts, measure: str) -> CostPanel:
    known = [(one, [point for point in points if point.cost_to_draw(measure) is not None]) for one, points in found]
    known = [(one, points) for one, points in known if points]
    name, factor = _TITLES[measure], 1.0
    if measure == ENERGY and known:
        most = max(point.cost_to_draw(measure) or 0.0 for _, points in known for point in points)
        unit = "mWh" if most < 1 else "kWh" if most >= 1e3 else "Wh"
        name, factor = f"{name}, {unit}", _UNITS[unit]
        if any(one.results.has_estimated_energy for one, _ in known):
            name += " (an estimate)"
    if known and len(known) < len(found):
        name += f"; {len(found) - len(known)} of {len(found)} runs {NOT_MEASURED}"
    curves = [_training_cost_curve(one, points, measure, factor, len(found) > 1) for one, points in known]
    return CostPanel(name, curves, unit=None if measure == ENERGY else 1.0)  # only multiples share a unit


def _training_cost_curve(
    one: Series, points: Sequence[TrainingCostPoint], measure: str, factor: float, several: bool
) -> Curve:
    """Return a run's curve; its marks become smaller from the densest level to the sparsest level."""
    spots = [
        PlottedNetwork(
            factor * (point.cost_to_draw(measure) or 0.0),
            point.metric,
            f"{density_tick_label(point.density)} %",
            metrics=(min(point.values), max(point.values)),
            size=8.5 - 4 * rank / max(len(points) - 1, 1),
        )
        for rank, point in enumerate(points)
    ]
    look, dense = run_plot_options(one.index, several), one.results.dense
    cost = mean_total_cost(one.results, dense, ENERGY) if measure == ENERGY and dense is not None else 1.0
    place = None if dense is None or cost is None else (factor * cost, dense.metric().mean)
    return Curve(look, [spots], place, look["color"] if several and measure == ENERGY else COLOURS["muted"])


def _set_up_cost_axis(axes: Axes, curves: Sequence[Curve]) -> str:
    """Start the cost axis at 0 if all costs are similar to the dense network's; otherwise make the axis logarithmic.

    Returns:
        Text to append to the name of the axis.
    """
    dense = [curve.dense[0] for curve in curves if curve.dense]
    costs = [*dense, *(spot.cost for curve in curves for spot in curve.networks)]
    low, high = min(costs), max(costs)
    if low > 0 and high > _MOST_LINEAR * max(dense, default=high):
        set_up_log_axis(axes, "x", low / 1.15, high * 1.15)
        return " (log scale)"
    end = 1.08 * high or 1.0
    axes.set_xlim(0, end)
    places = [float(tick) for tick in MaxNLocator(6).tick_values(0, end) if 0 <= tick <= end]
    set_labelled_ticks(axes.xaxis, places, [short_count(tick) for tick in places], fit=True)
    return ""


# -- of the search -----------------------------------------------------------------------------------------------------


def split_into_lines(points: Sequence[P], steps: Callable[[P], float]) -> list[list[P]]:
    """Split the points of a run into lines that do not zigzag.

    A search that continues from ticket to ticket gives one line. Several parallel searches, such as gates with several
    initial values, give a line for every number of steps: tickets after one round, tickets after two rounds.
    """
    if all(steps(one) <= steps(other) for one, other in pairwise(points)):
        return [list(points)]
    lines: dict[str, list[P]] = {}
    for point in points:
        lines.setdefault(f"{steps(point):.2g}", []).append(point)
    return list(lines.values())


def metric_by_search_cost(series: Sequence[Series], narrow: bool = False) -> Figure:
    """Draw the metric against training steps of the search, and against seconds if every run has recorded seconds."""
    found = [(one, points) for one in series if (points := search_cost_points(one.results))]
    names = {"steps": "training steps of the search"}
    if all(point.seconds is not None for _, points in found for point in points):
        names["seconds"] = "seconds of training"
    shown = [
        CostPanel(
            f"{words} so far (log scale)",
            [_search_cost_curve(one, points, name, len(found) > 1) for one, points in found],
        )
        for name, words in names.items()
    ]
    metric, means = found[0][0].results.run.task.metric, [point.metric for _, points in found for point in points]
    scale = Scale.for_values(metric, means)
    figure, axes = _draw_panels_side_by_side(
        shown, metric, scale, scale.limits_with_room(min(means), max(means), 0.08), narrow, 260 if narrow else 300
    )
    for each, panel in zip(axes, shown, strict=True):
        costs = [spot.cost for curve in panel.curves for spot in curve.networks]
        set_up_log_axis(each, "x", min(costs) / 1.12, max(costs) * 1.12)
    return _add_legend_or_point_names(figure, axes, shown, [one for one, _ in found])


def _search_cost_curve(one: Series, points: Sequence[SearchCostPoint], name: str, several: bool) -> Curve:
    """Return a run's curve over the cost `name`, steps or seconds; the first point is the dense network, if any."""

    def plotted_network(point: SearchCostPoint) -> PlottedNetwork:
        cost = max((point.steps if name == "steps" else point.seconds) or 0.0, 1e-3)
        return PlottedNetwork(cost, point.metric, f"{density_tick_label(point.density)} %" if point.level else "")

    lines = [[plotted_network(point) for point in line] for line in split_into_lines(points, lambda point: point.steps)]
    dense = plotted_network(points[0])
    return Curve(run_plot_options(one.index, several), lines, None if points[0].level else (dense.cost, dense.metric))


def steps_to_ticket(series: Sequence[Series], narrow: bool = False) -> Figure:
    """Draw, on log scales, the number of training steps until a mask was known against the mask's density."""
    shown = [(one, points) for one in series if (points := ticket_cost_points(one.results))]
    figure, (axes,) = figure_with_panels(1, narrow, 290 if narrow else 350)
    steps = [max(point.known, 1.0) for _, points in shown for point in points]
    set_up_log_axis(axes, "y", min(steps) / 1.3, max(steps) * 1.3)
    set_up_density_axis(axes, [point.density for _, points in shown for point in points])
    axes.set_title("training steps until the mask was known (log scale)")
    for one, points in shown:
        for line in split_into_lines(points, lambda point: point.known):
            x, y = [100 * point.density for point in line], [max(point.known, 1.0) for point in line]
            axes.plot(x, y, lw=1.6, clip_on=False, **run_plot_options(one.index))
    add_legend(figure, run_legend_handles([one for one, _ in shown]))
    return figure


# -- of a call ---------------------------------------------------------------------------------------------------------

_TIME_ROOM = 0.05
"""Room on the time axis beyond the fastest and the slowest call, as a share of the fastest dense engine's time."""
_ROOM_SD = 2.5
"""Standard deviations that fit on the metric's axis; this shows whole intervals of three or more replicates."""


def metric_by_latency(timed: Sequence[LatencyPanel], narrow: bool = False) -> Figure:
    """Draw the metric against measured latency, with a panel for each batch size and a curve for each kind of mask."""
    series = list({one.index: one for panel in timed for one, _ in panel.curves}.values())
    mixed = len({panel.setup.conditions for panel in timed}) > 1
    shown = [
        CostPanel(
            "time of a call, × the fastest dense engine's",
            [_latency_curve(one, points) for one, points in panel.curves],
            f"batch {panel.setup.batch}{f', {panel.setup.conditions}' if mixed else ''}",
            unit=1.0,
        )
        for panel in timed
    ]
    groups = [point.group for panel in timed for _, points in panel.curves for point in points]
    limits = y_limits_of(
        [*groups, *(one.results.dense for one in series if one.results.dense)], Scale(), 0.06, _ROOM_SD
    )
    metric = series[0].results.run.task.metric
    figure, axes = _draw_panels_side_by_side(shown, metric, Scale(), limits, narrow, 280 if narrow else 320)
    for each, panel in zip(axes, shown, strict=True):
        times = [1.0, *(edge for curve in panel.curves for spot in curve.networks for edge in spot.costs or ())]
        each.set_xlim(max(0.0, min(times) - _TIME_ROOM), max(times) + _TIME_ROOM)
        each.locator_params(axis="x", nbins=7)
    square = Line2D([], [], color=COLOURS["muted"], marker="s", markersize=7, lw=0)
    add_legend(figure, {**run_legend_handles(series), "dense": square})
    finish_layout(figure)
    for each, panel in zip(axes, shown, strict=True):
        label_points(
            each, [(*named, curve.look["color"]) for curve in panel.curves for named in _points_to_label(curve)]
        )
    return figure


def _latency_curve(one: Series, points: Sequence[LatencyPoint]) -> Curve:
    """Return a run's curve over latency; only the first and the last point are labelled, with their density."""
    spots = [
        PlottedNetwork(
            point.time,
            point.metric.mean,
            f"{density_tick_label(point.group.density)} %" if point in (points[0], points[-1]) else "",
            costs=(point.low, point.high),
            metrics=point.metric.interval,
            size=6.2,
        )
        for point in points
    ]
    dense = one.results.dense
    return Curve(run_plot_options(one.index), [spots], (1.0, dense.metric().mean) if dense else None)


_AXES = {
    TIME: "measured latency of a call, % of the dense network's (log scale)",
    MULTIPLICATIONS: "MACs of a call, % of the dense network's (log scale)",
}


def metric_by_call_cost(measure: CostMeasure, series: Sequence[Series], narrow: bool = False) -> Figure:
    """Draw the metric of tickets, dense networks, and a single run's controls against latency or MACs of a call."""
    runs = {one.index: one.results for one in series}
    shown = frontier_lines(runs, sorted(runs), measure)
    figure = empty_figure(narrow, 340 if narrow else 390)
    axes = figure.subplots()
    scale = metric_scale_of(*runs.values())
    costs = [100 * point.cost for line in shown for point in line.points]
    set_up_log_axis(axes, "x", min(costs) / 1.12, max(costs) * 1.12, lambda value: density_tick_label(value / 100))
    scale.set_limits(axes, y_limits_of([point.group for line in shown for point in line.points], scale))
    axes.set_title(f"test {short_metric_label(series[0].results.run.task.metric)}{scale.name_suffix}")
    axes.set_xlabel(_AXES[measure])
    dense = next(one.results.dense for one in series if one.results.dense is not None)
    axes.axhline(dense.metric().mean, color=COLOURS["muted"], lw=0.8, zorder=1)
    names = {one.index: one.label for one in series}
    entries: dict[str, Any] = {}
    for line in reversed(shown):
        name = role_name(line.role) if line.run is None or len(series) == 1 else names[line.run]
        entries[name] = _draw_frontier_line(axes, line, shown, len(series) > 1, scale)
    add_legend(figure, dict(reversed(entries.items())), fontsize=12)
    return figure


def _draw_frontier_line(axes: Any, line: FrontierLine, shown: Sequence[FrontierLine], several: bool, scale: Any) -> Any:
    """Draw a line with markers and a band of intervals, and return the line's handle for the legend."""
    ordered, front = sorted(line.points, key=lambda point: point.cost), line.role == TICKET
    if is_matched_dense(line.role):
        kinds = [one.role for one in shown if is_matched_dense(one.role)]
        look: dict[str, Any] = {
            "color": COLOURS["muted"],
            "marker": "sDvP"[kinds.index(line.role) % 4],
            "linestyle": (0, (4, 2)),
        }
    elif several:
        look = run_plot_options(line.run or 0)
    else:
        look = role_plot_options(line.role, [one.role for one in shown if one.run is not None])
    x = [100 * point.cost for point in ordered]
    bands = [(point.metric.mean, point.metric.interval or (point.metric.mean,) * 2) for point in ordered]
    lows = [scale.clip_low_end(low, point.metric) for (_, (low, _)), point in zip(bands, ordered, strict=True)]
    axes.fill_between(x, lows, [high for _, (_, high) in bands], color=look["color"], alpha=0.1, lw=0, zorder=2)
    look = {"markersize": 6.5, **look, "lw": 2.2 if front else 1.6}
    return axes.plot(x, [mean for mean, _ in bands], zorder=5 if front else 4, clip_on=False, **look)[0]
