"""Time of a compiled network against its density, beside the ideal line and the dense engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ticketry.report.figures import canvas
from ticketry.report.figures.svg import COLOURS, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def time_by_density(curves: Sequence[Mapping[str, Any]], narrow: bool = False) -> Figure:
    """A panel a batch size: milliseconds against density on two log scales, dense engines as lines from edge to edge.

    Args:
        curves: of a record of time against density, each with `points` and `comparison`.
    """
    columns = 1 if narrow else min(2, len(curves))
    width, left, right, tall = (360, 44, 84, 210) if narrow else (860, 48, 88, 250)
    cell, block = width / columns, tall + 86
    figure = canvas.figure_of(width, 24 + block * -(-len(curves) // columns))
    _legend(figure, narrow)
    for number, curve in enumerate(curves):
        x, y = cell * (number % columns) + left, 60 + block * (number // columns)
        axes = canvas.place(figure, x, y, cell - left - right, tall)
        _panel(axes, curve)
        canvas.write(figure, x - left + 2, y - 10, f"batch {curve['comparison']['batch']}: ms of a call (log scale)")
        _name_engines(figure, axes, curve)
        across, down = figure.get_size_inches() * canvas.INCH
        spot = ((x + cell - left - right) / across, 1 - (y + tall + 40) / down)
        text = "weights remaining, % (log scale)"
        figure.text(*spot, text, color=COLOURS["muted"], size=canvas.SMALL, ha="right")
    return figure


def time_by_density_svg(record: Mapping[str, Any]) -> str:
    """The figure of a record of time against density, as a standalone SVG document."""
    with drawing():
        return to_svg(time_by_density(record["curves"]))


def _panel(axes: Axes, curve: Mapping[str, Any]) -> None:
    points = sorted(curve["points"], key=lambda point: -point["density"])
    x = [100 * point["density"] for point in points]
    times = [1e3 * point["seconds"] for point in points]
    dense = _dense(curve)
    axes.set_yscale("log")
    ideal = [1e3 * point["ideal"] for point in points]
    axes.plot(x, ideal, color=COLOURS["muted"], lw=1.2, dashes=(4, 3))
    for name, milliseconds in dense:
        fastest = name == curve["comparison"]["fastest_dense"]
        axes.axhline(milliseconds, color=COLOURS["muted" if fastest else "rule"], lw=1.4 if fastest else 1, zorder=1)
    axes.vlines(
        x,
        [1e3 * point["low"] for point in points],
        [1e3 * point["high"] for point in points],
        color=COLOURS["ticket"],
        lw=1,
    )
    axes.plot(
        x,
        times,
        color=COLOURS["ticket"],
        lw=1.8,
        marker="o",
        markersize=5.5,
        markeredgecolor=COLOURS["paper"],
        markeredgewidth=0.8,
        clip_on=False,
        zorder=3,
    )
    everything = [*times, *ideal, *(milliseconds for _, milliseconds in dense)]
    axes.set_ylim(min(everything) / 1.25, max(everything) * 1.25)
    canvas.density_axis(axes, [point["density"] for point in points])
    _time_axis(axes, min(everything) / 1.25, max(everything) * 1.25)


def _dense(curve: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Name and milliseconds of each dense engine that was timed."""
    rows = curve["comparison"]["times"]
    return [(row["engine"], 1e3 * row["seconds"]) for row in rows if not row["sparse"] and row["seconds"] is not None]


def _name_engines(figure: Figure, axes: Axes, curve: Mapping[str, Any]) -> None:
    fastest = curve["comparison"]["fastest_dense"]
    labels = [(time, name, "ink" if name == fastest else "muted") for name, time in _dense(curve)]
    canvas.end_labels(figure, axes, labels)


def _time_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import NullLocator

    ticks = [digit * 10.0**power for power in range(-4, 7) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high] or [low]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(inside, [f"{tick:g}" for tick in inside])
    axes.grid(axis="y", color=COLOURS["rule"], lw=0.6)


def _legend(figure: Figure, narrow: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS["ticket"], marker="o", markersize=5.5, lw=1.8),
        Line2D([], [], color=COLOURS["muted"], lw=1.2, dashes=(4, 3)),
        Line2D([], [], color=COLOURS["muted"], lw=1.4),
    ]
    labels = ["sparse, this engine", "ideal: density × fastest dense", "dense"]
    canvas.legend(figure, handles, labels, 2 if narrow else 3, fontsize=11)
