"""Accuracy against the cost of the whole training, beside the dense network's: a small panel for each measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.report.aggregate import Results
from ticketry.report.figures import canvas
from ticketry.report.figures.overlay import Series
from ticketry.report.figures.scale import Scale
from ticketry.report.figures.svg import COLOURS
from ticketry.report.record import TICKET
from ticketry.report.spent import (
    ENERGY,
    FLOPS,
    MEASURES,
    MEMORY,
    NOT_MEASURED,
    SECONDS,
    SpentPoint,
    is_estimate,
    mean_spent,
    spent_points,
)
from ticketry.report.wording import metric_label, short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    FLOPS: "FLOPs, × dense",
    SECONDS: "training seconds, × dense",
    MEMORY: "memory at the highest, × dense",
    ENERGY: "energy",
}
_UNITS = {"mWh": 1e3, "Wh": 1.0, "kWh": 1e-3}
_MUCH = 4
"""Times the dense network's cost: beyond it, the axis is logarithmic; otherwise it begins at 0."""


@dataclass(frozen=True)
class _Curve:
    """A run in one panel."""

    series: Series
    points: Sequence[tuple[float, SpentPoint]]
    """With their costs as they stand on the axis."""
    dense: tuple[float, float] | None
    """Cost and metric of the dense network."""


def metric_by_spent(series: Sequence[Series], narrow: bool = False) -> Figure:
    """Points are means over replicates, thin bars reach from the least to the largest; square: the dense network."""
    shown = [(one, points) for one in series if (points := spent_points(one.results))]
    several = len(shown) > 1
    columns = 1 if narrow else 2
    width, left, tall, gap = (360, 44, 170, 0) if narrow else (860, 48, 190, 52)
    wide = (width - left - 16 - gap * (columns - 1)) / columns
    named = canvas.legend_columns([one.label for one, _ in shown], width)
    top = 30 + (20 * -(-len(shown) // named) if several else 0)
    block = tall + 76
    figure = canvas.figure_of(width, top + block * (len(MEASURES) // columns) - 22)
    if several:
        _legend(figure, [one for one, _ in shown], named)
    values = _values([one.results for one, _ in shown])
    scale = Scale.of(shown[0][0].results.run.task.metric, values)
    limits = scale.padded(min(values), max(values), 0.08)
    metric = f"test {metric_label(shown[0][0].results.run.task.metric)}{scale.note}"
    for number, measure in enumerate(MEASURES):
        x, y = left + (number % columns) * (wide + gap), top + (number // columns) * block
        curves, title = _curves(shown, measure)
        axes = canvas.place(figure, x, y, wide, tall)
        if curves:
            scale.set(axes, limits, 6)
            title += _panel(axes, curves, measure, several)
            if number % columns == 0:
                canvas.write(figure, 2, y - 10, metric)
        else:
            _say(axes, NOT_MEASURED)
        across, down = figure.get_size_inches() * canvas.INCH
        spot = ((x + wide) / across, 1 - (y + tall + 42) / down)
        figure.text(*spot, title, color=COLOURS["muted"], size=canvas.SMALL, ha="right")
    return figure


def _curves(shown: Sequence[tuple[Series, Sequence[SpentPoint]]], measure: str) -> tuple[list[_Curve], str]:
    """The runs for which it was measured, and what the axis is called."""
    known = [(one, [point for point in points if point.on_axis(measure) is not None]) for one, points in shown]
    known = [(one, points) for one, points in known if points]
    title, factor = _TITLES[measure], 1.0
    if measure == ENERGY and known:
        unit = _unit([point.on_axis(measure) or 0.0 for _, points in known for point in points])
        title, factor = f"{title}, {unit}", _UNITS[unit]
        if any(is_estimate(one.results.run) for one, _ in known):
            title += " (an estimate)"
    if known and len(known) < len(shown):
        title += f"; {len(shown) - len(known)} of {len(shown)} runs {NOT_MEASURED}"
    curves = []
    for one, points in known:
        costs = [factor * (point.on_axis(measure) or 0.0) for point in points]
        curves.append(_Curve(one, list(zip(costs, points, strict=True)), _dense(one.results, measure, factor)))
    return curves, title


def _unit(watt_hours: Sequence[float]) -> str:
    return "mWh" if max(watt_hours) < 1 else "kWh" if max(watt_hours) >= 1e3 else "Wh"


def _dense(results: Results, measure: str, factor: float) -> tuple[float, float] | None:
    if results.dense is None:
        return None
    cost = mean_spent(results, results.dense, ENERGY) if measure == ENERGY else 1.0
    return None if cost is None else (factor * cost, results.dense.metric().mean)


def _say(axes: Axes, words: str) -> None:
    """What stands where there is nothing to draw."""
    axes.set_facecolor(COLOURS["shade"])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=COLOURS["muted"])


def _values(runs: Sequence[Results]) -> list[float]:
    groups = [group for results in runs for group in (*results.of_role(TICKET), results.dense) if group is not None]
    return [point.test for group in groups for point in group.points.values()]


def _panel(axes: Axes, curves: Sequence[_Curve], measure: str, several: bool) -> str:
    """Draw; return what is to be added to the axis' name."""
    dense = [curve.dense for curve in curves if curve.dense is not None]
    _cost_axis(axes, [cost for curve in curves for cost, _ in curve.points], [cost for cost, _ in dense])
    for level in sorted({metric for _, metric in dense}):
        axes.axhline(level, color=COLOURS["muted"], lw=0.8, zorder=1)
    if measure != ENERGY:
        axes.axvline(1, color=COLOURS["muted"], lw=0.8, zorder=1)
    for curve in curves:
        own = several and measure == ENERGY  # multiples of dense have one dense in common, energies do not
        _draw(axes, curve, curve.series.colour if several else COLOURS["ticket"], several, own)
    if not several:
        _name(axes, curves[0], measure)
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)
    return " (log scale)" if axes.get_xscale() == "log" else ""


def _draw(axes: Axes, curve: _Curve, colour: str, several: bool, own_dense: bool) -> None:
    """From the densest to the sparsest, which has the smallest mark."""
    edge: dict[str, Any] = {"markeredgecolor": COLOURS["paper"], "markeredgewidth": 0.8, "clip_on": False}
    spots = [(cost, point.metric) for cost, point in curve.points]
    axes.plot([x for x, _ in spots], [y for _, y in spots], color=colour, lw=1, alpha=0.55, zorder=2)
    for rank, (cost, point) in enumerate(curve.points):
        axes.vlines(cost, min(point.values), max(point.values), color=colour, lw=1, alpha=0.55, zorder=2)
        size = 8.5 - 4 * rank / max(len(curve.points) - 1, 1)
        marker = curve.series.marker if several else "o"
        axes.plot(cost, point.metric, color=colour, marker=marker, markersize=size, zorder=4, **edge)
    if curve.dense is not None:
        look = colour if own_dense else COLOURS["muted"]
        axes.plot(*curve.dense, color=look, marker="s", markersize=7, zorder=5, **edge)


def _name(axes: Axes, curve: _Curve, measure: str) -> None:
    """The densities beside as many points as have room."""
    named = [(*curve.dense, "dense")] if curve.dense else []
    named += [(cost, point.metric, f"{canvas.tick_label(point.density)} %") for cost, point in curve.points]
    rules = [("y", curve.dense[1]), *([("x", 1.0)] if measure != ENERGY else [])] if curve.dense else []
    canvas.name_points(axes, named, rules)


def _cost_axis(axes: Axes, costs: Sequence[float], dense: Sequence[float]) -> None:
    """From 0 where the costs are of the dense network's order, so that lengths compare; else on a log scale."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    low, high = min([*costs, *dense]), max([*costs, *dense])
    if low > 0 and high > _MUCH * max(dense, default=high):
        axes.set_xscale("log")
        limits = (low / 1.15, high * 1.15)
        ticks = [digit * 10.0**power for power in range(-6, 13) for digit in (1, 2, 5)]
    else:
        limits = (0, 1.08 * high or 1)
        ticks = list(MaxNLocator(6).tick_values(*limits))
    axes.set_xlim(*limits)
    inside = [float(tick) for tick in ticks if limits[0] <= tick <= limits[1]] or [high]
    positions = [float(axes.transData.transform((tick, 1))[0]) for tick in inside]
    shown = canvas.fitting(positions, [short_count(tick) for tick in inside])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([inside[i] for i in shown], [short_count(inside[i]) for i in shown])
    axes.tick_params(axis="x", length=4, color=COLOURS["muted"])


def _legend(figure: Figure, series: Sequence[Series], columns: int) -> None:
    from matplotlib.lines import Line2D

    looks = [Line2D([], [], color=one.colour, marker=one.marker, markersize=6, lw=2) for one in series]
    canvas.legend(figure, looks, [one.label for one in series], columns, fontsize=11)
