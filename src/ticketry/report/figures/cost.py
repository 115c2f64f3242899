"""What accuracy costs: the metric against the training of the search up to each ticket, in steps and in seconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.report.aggregate import Results
from ticketry.report.figures import canvas
from ticketry.report.figures.lines import lines_of
from ticketry.report.figures.overlay import Series
from ticketry.report.figures.scale import Scale
from ticketry.report.figures.svg import COLOURS
from ticketry.report.record import DENSE, TICKET, Point
from ticketry.report.wording import metric_label, short_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CostPoint:
    """The search up to one level, mean over the replicates that got there."""

    level: int
    density: float
    metric: float
    steps: float
    """Of the dense training and of every ticket up to this one; where masks come from trainings of their own, of those
    that this one needed and of the ticket."""
    seconds: float | None
    n: int


def cost_points(results: Results) -> list[CostPoint]:
    """Dense and then each ticket, densest first; controls are no part of a search. Empty without steps."""
    paths: dict[int, list[tuple[Point, float, float | None]]] = {}
    for replicate in sorted({point.replicate for point in results.run.points}):
        steps, seconds = 0.0, 0.0
        timed = True
        searched = [p for p in results.run.points if p.replicate == replicate and p.role in (DENSE, TICKET)]
        for point in sorted(searched, key=lambda point: (point.role == TICKET, point.level)):
            if point.steps is None:
                break
            steps += point.steps
            timed = timed and point.seconds is not None
            seconds += point.seconds or 0
            if point.search_steps is not None:
                timed = timed and point.search_seconds is not None
                steps, seconds = point.search_steps + point.steps, (point.search_seconds or 0) + (point.seconds or 0)
            paths.setdefault(point.level, []).append((point, steps, seconds if timed else None))
    found = []
    for level, entries in sorted(paths.items()):
        times = [seconds for _, _, seconds in entries if seconds is not None]
        found.append(
            CostPoint(
                level,
                statistics.fmean(point.density for point, _, _ in entries),
                statistics.fmean(point.test for point, _, _ in entries),
                statistics.fmean(steps for _, steps, _ in entries),
                statistics.fmean(times) if len(times) == len(entries) else None,
                len(entries),
            )
        )
    return found if any(point.level for point in found) else []


def cost_by_metric(series: Sequence[Series], narrow: bool = False) -> Figure:
    """One panel over steps and, where every run tells them, one over seconds."""
    shown = [(one, points) for one in series if (points := cost_points(one.results))]
    timed = all(point.seconds is not None for _, points in shown for point in points)
    names = ["steps", "seconds"] if timed else ["steps"]
    several = len(shown) > 1
    columns = 1 if narrow else len(names)
    width, left, tall = (360, 40, 190) if narrow else (860, 44, 230)
    gap = 48
    wide = (width - left - 14 - gap * (columns - 1)) / columns
    named = canvas.legend_columns([one.label for one, _ in shown], width)
    top = 28 + (20 * -(-len(shown) // named) if several else 0)
    block = tall + 80
    figure = canvas.figure_of(width, top + block * (len(names) // columns) - 22)
    means = [point.metric for _, points in shown for point in points]
    scale = Scale.of(shown[0][0].results.run.task.metric, means)
    if several:
        _legend(figure, [one for one, _ in shown], named)
    for number, name in enumerate(names):
        x, y = left + (number % columns) * (wide + gap), top + (number // columns) * block
        axes = canvas.place(figure, x, y, wide, tall)
        scale.set(axes, scale.padded(min(means), max(means), 0.08), 6)
        axes.set_xscale("log")
        for one, points in shown:
            _draw(axes, one, points, name, several)
        _cost_axis(axes, [_cost(point, name) for _, points in shown for point in points])
        axes.grid(axis="y", color=COLOURS["rule"], lw=1)
        if number % columns == 0:
            canvas.write(figure, 2, y - 10, f"test {metric_label(shown[0][0].results.run.task.metric)}{scale.note}")
        what = f"{'training steps of the search' if name == 'steps' else 'seconds of training'} so far (log scale)"
        across, down = figure.get_size_inches() * canvas.INCH
        spot = ((x + wide) / across, 1 - (y + tall + 44) / down)
        figure.text(*spot, what, color=COLOURS["muted"], size=canvas.SMALL, ha="right")
    return figure


def _cost(point: CostPoint, name: str) -> float:
    return max((point.steps if name == "steps" else point.seconds) or 0.0, 1e-3)


def _draw(axes: Any, one: Series, points: Sequence[CostPoint], name: str, several: bool) -> None:
    colour = one.colour if several else COLOURS["ticket"]
    x = [_cost(point, name) for point in points]
    for line in lines_of(points):
        axes.plot(
            [_cost(point, name) for point in line],
            [point.metric for point in line],
            color=colour,
            lw=1.6,
            marker=one.marker if several else "o",
            markersize=5.5,
            markeredgecolor=COLOURS["paper"],
            markeredgewidth=0.8,
            clip_on=False,
            zorder=3,
        )
    if points[0].level == 0:
        axes.axhline(points[0].metric, color=COLOURS["muted"], lw=1, zorder=1)
        axes.plot(
            [x[0]],
            [points[0].metric],
            marker="s",
            markersize=7,
            color=COLOURS["muted"],
            markeredgecolor=COLOURS["paper"],
            zorder=5,
        )
    if not several:
        _name_densities(axes, points, x)


def _name_densities(axes: Any, points: Sequence[CostPoint], x: Sequence[float]) -> None:
    """The densities beside as many points as have room; the first is the dense network."""
    positions = [float(axes.transData.transform((cost, 1))[0]) for cost in x]
    labels = ["dense" if point.level == 0 else f"{canvas.tick_label(point.density)} %" for point in points]
    for index in canvas.fitting(positions, labels):
        axes.annotate(
            labels[index],
            (x[index], points[index].metric),
            xytext=(0, 9 if index else -15),
            textcoords="offset points",
            ha="center" if 0 < index < len(points) - 1 else "left" if index == 0 else "right",
            color=COLOURS["muted"],
            size=10,
        )


def _cost_axis(axes: Any, costs: Sequence[float]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    low, high = min(costs), max(costs)
    axes.set_xlim(low / 1.12, high * 1.12)
    ticks = [digit * 10.0**power for power in range(-3, 13) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low / 1.12 <= tick <= high * 1.12] or [low]
    positions = [float(axes.transData.transform((tick, 1))[0]) for tick in inside]
    shown = canvas.fitting(positions, [short_count(tick) for tick in inside])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([inside[i] for i in shown], [short_count(inside[i]) for i in shown])
    axes.tick_params(axis="x", length=4, color=COLOURS["muted"])


def _legend(figure: Figure, series: Sequence[Series], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=one.colour, marker=one.marker, markersize=6, lw=2) for one in series]
    canvas.legend(figure, handles, [one.label for one in series], columns, fontsize=11)
