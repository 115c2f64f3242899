"""What a compiled ticket saves: time by engine and batch, and time against density beside the ideal line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ticketry.report.figures import canvas
from ticketry.report.figures.svg import COLOURS, drawing, to_svg
from ticketry.report.nodes import Node
from ticketry.report.speed_record import EngineTime, Speed, TimeCurve, Timed, read_curves
from ticketry.report.wording import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR, _GAP = 17, 9
"""Pixels of a bar, and between two."""
_LONGEST = 24
"""Letters of an engine's name."""


def time_by_engine(speed: Speed, narrow: bool = False) -> Figure:
    """A panel a batch size: a bar an engine, milliseconds of a call written beside it."""
    shown = [(timed, [row for row in timed.times if row.seconds is not None]) for timed in speed.comparisons]
    names = [_short(row.engine) for _, rows in shown for row in rows]
    columns = 1 if narrow else min(3, len(shown))
    width, left = (360, 20 + canvas.text_width(names)) if narrow else (860, 20 + canvas.text_width(names))
    cell = (width - left) / columns
    tall = max(len(rows) for _, rows in shown) * (_BAR + _GAP)
    block = tall + 44
    figure = canvas.figure_of(width, block * -(-len(shown) // columns) + 6)
    for number, (timed, rows) in enumerate(shown):
        x, y = left + cell * (number % columns), 30 + block * (number // columns)
        axes = canvas.place(figure, x, y, cell - 66, tall)
        _bars(axes, timed, rows, names=number % columns == 0)
        canvas.write(figure, x, y - 10, f"batch {timed.batch}: ms of a call")
    return figure


def _bars(axes: Axes, timed: Timed, rows: Sequence[EngineTime], names: bool) -> None:
    times = [1e3 * (row.seconds or 0) for row in rows]
    colours = [_colour(timed, row) for row in rows]
    places = range(len(rows))
    ends = [max(time, 1e3 * (row.high or 0)) for time, row in zip(times, rows, strict=True)]
    axes.barh(places, times, height=_BAR / (_BAR + _GAP), color=colours)
    for place, row in zip(places, rows, strict=True):
        if row.low is not None and row.high is not None:
            axes.hlines(place, 1e3 * row.low, 1e3 * row.high, color=COLOURS["ink"], lw=1)
        axes.annotate(
            f"{times[place]:.3g}",
            (ends[place], place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS["ink"],
            size=canvas.SMALL,
            annotation_clip=False,
        )
    axes.set_xlim(0, max(ends))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks(list(places), [_short(row.engine) for row in rows] if names else [""] * len(rows))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(name: str) -> str:
    """An engine's name, cut where it is longer than any that there is."""
    plain = clean(name)
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 1]}…"


def _colour(timed: Timed, row: EngineTime) -> str:
    if row.sparse:
        return COLOURS["ticket"]
    return COLOURS["muted" if row.engine == timed.fastest else "rule"]


def time_by_density(curves: Sequence[TimeCurve], narrow: bool = False) -> Figure:
    """A panel a batch size: milliseconds against density, both on log scales; dense engines are lines across."""
    columns = 1 if narrow else min(2, len(curves))
    width, left, right, tall = (360, 44, 84, 210) if narrow else (860, 48, 88, 250)
    cell, block = width / columns, tall + 86
    figure = canvas.figure_of(width, 24 + block * -(-len(curves) // columns))
    _legend(figure, narrow)
    for number, curve in enumerate(curves):
        x, y = cell * (number % columns) + left, 60 + block * (number // columns)
        axes = canvas.place(figure, x, y, cell - left - right, tall)
        _panel(axes, curve)
        canvas.write(figure, x - left + 2, y - 10, f"batch {curve.timed.batch}: ms of a call (log scale)")
        _name_engines(figure, axes, curve)
        across, down = figure.get_size_inches() * canvas.INCH
        spot = ((x + cell - left - right) / across, 1 - (y + tall + 40) / down)
        text = "weights remaining, % (log scale)"
        figure.text(*spot, text, color=COLOURS["muted"], size=canvas.SMALL, ha="right")
    return figure


def time_by_density_svg(record: Mapping[str, Any]) -> str:
    """The figure of a record of time against density, as a standalone SVG document.

    Raises:
        StoreError: if the record is malformed.
    """
    curves = read_curves(Node(record, "", "record of time against density", "Measure it again"))
    with drawing():
        return to_svg(time_by_density(curves))


def _panel(axes: Axes, curve: TimeCurve) -> None:
    points = curve.points
    x = [100 * point.density for point in points]
    times = [1e3 * point.seconds for point in points]
    dense = _dense(curve)
    axes.set_yscale("log")
    ideal = [1e3 * point.ideal for point in points]
    axes.plot(x, ideal, color=COLOURS["muted"], lw=1.2, dashes=(4, 3))
    for name, milliseconds in dense:
        fastest = name == curve.timed.fastest
        axes.axhline(milliseconds, color=COLOURS["muted" if fastest else "rule"], lw=1.4 if fastest else 1, zorder=1)
    axes.vlines(
        x,
        [1e3 * point.low for point in points],
        [1e3 * point.high for point in points],
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
    canvas.density_axis(axes, [point.density for point in points])
    _time_axis(axes, min(everything) / 1.25, max(everything) * 1.25)


def _dense(curve: TimeCurve) -> list[tuple[str, float]]:
    """Name and milliseconds of each dense engine that was timed."""
    rows = curve.timed.times
    return [(row.engine, 1e3 * row.seconds) for row in rows if not row.sparse and row.seconds is not None]


def _name_engines(figure: Figure, axes: Axes, curve: TimeCurve) -> None:
    fastest = curve.timed.fastest
    labels = [(time, _short(name), "ink" if name == fastest else "muted") for name, time in _dense(curve)]
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
