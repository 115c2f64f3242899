"""What a compiled ticket saves: time by engine and batch, and time against density beside the ideal line."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ticketry.errors import StoreError
from ticketry.records.evidence import EvidenceValues, read_evidence
from ticketry.records.speed import CurveRecord, EngineTime, SpeedRecord, TimeCurve, Timed
from ticketry.report.figures.axes import density_axis, general, label_places, log_axis
from ticketry.report.figures.panels import legend, name_ends, note, panels
from ticketry.report.figures.style import COLOURS, drawing
from ticketry.report.figures.svg import to_svg
from ticketry.report.wording import shortened

_BAR = 26
"""Pixels of a bar and the gap to the next."""
_LONGEST = 24
"""Letters of an engine's name."""


def time_by_engine(speed: SpeedRecord, narrow: bool = False) -> Figure:
    """A panel a batch size: a bar an engine, milliseconds of a call written beside it."""
    shown = [
        (timed, {row.engine: row for row in timed.times if row.seconds is not None}) for timed in speed.comparisons
    ]
    names = list(dict.fromkeys(name for _, rows in shown for name in rows))
    figure, axes = panels(len(shown), narrow, _BAR * len(names) + 44, (3, 1), sharey=True)
    for each, (timed, rows) in zip(axes, shown, strict=True):
        _bars(each, timed, [(names.index(name), row) for name, row in rows.items()])
        each.set_title(f"batch {timed.batch}: ms of a call")
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    label_places(axes[0].yaxis, range(len(names)), [shortened(name, _LONGEST) for name in names])
    return figure


def _bars(axes: Axes, timed: Timed, rows: Sequence[tuple[int, EngineTime]]) -> None:
    places, times = [place for place, _ in rows], [1e3 * (row.seconds or 0) for _, row in rows]
    axes.barh(places, times, height=0.65, color=[_colour(timed, row) for _, row in rows])
    for (place, row), time in zip(rows, times, strict=True):
        if row.low is not None and row.high is not None:
            axes.hlines(place, 1e3 * row.low, 1e3 * row.high, color=COLOURS["ink"], lw=1)
        end = (max(time, 1e3 * (row.high or 0)), place)
        note(axes, f"{time:.3g}", end, (5, 0), va="center", color=COLOURS["ink"])
    axes.set_xlim(0, max([*times, *(1e3 * (row.high or 0) for _, row in rows)]))
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def _colour(timed: Timed, row: EngineTime) -> str:
    if row.sparse:
        return COLOURS["ticket"]
    return COLOURS["muted" if row.engine == timed.fastest_dense else "rule"]


def time_by_density(curves: Sequence[TimeCurve], narrow: bool = False) -> Figure:
    """A panel a batch size: milliseconds against density, both on log scales; dense engines are lines across."""
    figure, axes = panels(len(curves), narrow, 290 if narrow else 330)
    for each, curve in zip(axes, curves, strict=True):
        _draw_curve(each, curve)
        each.set_title(f"batch {curve.comparison.batch}: ms of a call (log scale)")
    handles = {
        "sparse, this engine": Line2D([], [], color=COLOURS["ticket"], marker="o", markersize=5.5, lw=1.8),
        "ideal: density × fastest dense": Line2D([], [], color=COLOURS["muted"], lw=1.2, dashes=(4, 3)),
        "dense": Line2D([], [], color=COLOURS["muted"], lw=1.4),
    }
    legend(figure, handles)
    name_ends(figure, [(each, _engine_names(curve)) for each, curve in zip(axes, curves, strict=True)])
    return figure


def time_by_density_svg(record: EvidenceValues) -> str:
    """The figure of a record of time against density, as a standalone SVG document.

    Raises:
        StoreError: if the record is malformed.
    """
    timed = read_evidence(record, "record of time against density")
    if not isinstance(timed, CurveRecord):
        raise StoreError("a record of time against density is of kind bench-curve: measure it with --densities")
    with drawing():
        return to_svg(time_by_density(timed.curves), "time by density")


def _draw_curve(axes: Axes, curve: TimeCurve) -> None:
    points, dense = curve.points, _dense(curve)
    x, times, ideal = zip(*((100 * p.density, 1e3 * p.seconds, 1e3 * p.ideal) for p in points), strict=True)
    axes.plot(x, ideal, color=COLOURS["muted"], lw=1.2, dashes=(4, 3))
    for name, milliseconds in dense:
        fastest = name == curve.comparison.fastest_dense
        axes.axhline(milliseconds, color=COLOURS["muted" if fastest else "rule"], lw=1.4 if fastest else 1, zorder=1)
    axes.vlines(x, [1e3 * p.low for p in points], [1e3 * p.high for p in points], color=COLOURS["ticket"], lw=1)
    axes.plot(x, times, color=COLOURS["ticket"], lw=1.8, marker="o", markersize=5.5, clip_on=False, zorder=3)
    everything = [*times, *ideal, *(milliseconds for _, milliseconds in dense)]
    log_axis(axes, "y", min(everything) / 1.25, max(everything) * 1.25, general)
    density_axis(axes, [point.density for point in points])


def _dense(curve: TimeCurve) -> list[tuple[str, float]]:
    """Name and milliseconds of each dense engine that was timed."""
    rows = curve.comparison.times
    return [(row.engine, 1e3 * row.seconds) for row in rows if not row.sparse and row.seconds is not None]


def _engine_names(curve: TimeCurve) -> list[tuple[float, str, str]]:
    fastest = curve.comparison.fastest_dense
    return [(time, shortened(name, _LONGEST), "ink" if name == fastest else "muted") for name, time in _dense(curve)]
