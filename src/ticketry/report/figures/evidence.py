"""Draw evidence: verifications, claims of campaigns, stability over rewind steps, and times of engines."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ticketry.errors import StoreError
from ticketry.records.campaign import Claim
from ticketry.records.evidence import EvidenceValues, StabilityRecord, StabilityRow, VerifyRecord, read_evidence
from ticketry.records.network import DENSE, TICKET
from ticketry.records.ticket import CurveRecord, SpeedRecord
from ticketry.records.verdict import Difference
from ticketry.report.campaigns import claim_number_style
from ticketry.report.figures.layout import (
    add_legend,
    figure_with_panels,
    label_line_ends,
    number_tick_label,
    set_labelled_ticks,
    set_shared_x_label,
    set_up_density_axis,
    set_up_log_axis,
    to_svg,
    write_note,
)
from ticketry.report.figures.style import COLOURS, TINY, figure_style, role_colour, role_plot_options
from ticketry.report.tables.evidence import (
    NOISE,
    Reader,
    rows_at_density,
    singular_role_name,
    sparsest_level_study,
    stability_quantities,
    study_densities,
    study_roles,
    style_of_seed_metrics,
    verify_differences,
)
from ticketry.report.tables.results import summarise
from ticketry.report.wording import (
    MINUS,
    NONE,
    Style,
    format_p_value,
    percent,
    role_name,
    short_count,
    short_metric_label,
    shorten_middle,
)
from ticketry_engine.results import EngineTime, TimeCurve, Timed


def difference_figure(verify: VerifyRecord, narrow: bool = False) -> Figure:
    """Draw a verification's mean differences with intervals, a line at 0, and a line where a ticket begins to lose."""
    found, margin, style = verify_differences(verify), verify.margin, style_of_seed_metrics(verify)
    names = [
        "ticket, other seeds (A/A)" if row.role == NOISE else shorten_middle(role_name(row.role), 40) for row in found
    ]
    labels = [(name, _difference_text(style, row)) for name, row in zip(names, found, strict=True)]
    taken = "ticket minus …" if verify.task.metric.higher_is_better else "… minus ticket"
    figure, axes, middles = figure_with_rows(
        labels, narrow, f"difference in test {short_metric_label(verify.task.metric)}"
    )
    ends = [end for row in found for end in (row.mean, row.low, row.high) if end is not None]
    low, high = min([*ends, 0.0, -margin]), max([*ends, 0.0])
    room = 0.08 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    # The lines leave out the part of the height that is text.
    for top, foot in [(m - 0.25, m + 0.27) for m in middles] if narrow else [(-0.5, len(found) - 0.5)]:
        axes.fill_between([-margin, 0], top, foot, color=COLOURS["shade"], lw=0, zorder=0)
        axes.vlines([0], top, foot, color=COLOURS["muted"], lw=1.2, zorder=1)
        axes.vlines([-margin], top, foot, color=COLOURS["muted"], lw=1, linestyle=(0, (4, 3)), zorder=1)
    left = low < -margin
    mark, shift = f"margin {style.format_number(-margin)}", -4 if left else 4
    write_note(axes, mark, (-margin, 1), (shift, 6), ("data", "axes fraction"), ha="right" if left else "left")
    axes.set_title(taken, pad=24)
    for middle, row in zip(middles, found, strict=True):
        _draw_difference_with_interval(axes, middle, row)
    return figure


def _draw_difference_with_interval(axes: Axes, middle: float, row: Difference) -> None:
    colour = COLOURS["muted"] if row.role == NOISE else role_colour(TICKET if row.role == DENSE else row.role)
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [middle, middle], color=colour, lw=2.4, solid_capstyle="round", zorder=3)
    mark: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 7.5, "markeredgewidth": 1}
    if row.role == DENSE:
        mark |= {"marker": "D", "markersize": 9}
    if row.role == NOISE:
        mark |= {"color": COLOURS["paper"], "markeredgecolor": colour, "markeredgewidth": 1.4}
    axes.plot([row.mean], [middle], zorder=4, **mark)


def seed_figure(verify: VerifyRecord, narrow: bool = False) -> Figure:
    """Draw a dot for the test metric of every seed of every network, and a short line for each network's mean."""
    groups = [(one.role, one.values) for one in verify.networks]
    groups += [(one.role, one.values) for one in verify.references if one.values]
    style = style_of_seed_metrics(verify)
    labels = [
        (shorten_middle(singular_role_name(role), 40), style.format_summary(summarise(values)))
        for role, values in groups
    ]
    figure, axes, middles = figure_with_rows(
        labels, narrow, f"test {short_metric_label(verify.task.metric)}, a dot a seed; bar: mean"
    )
    everything = [value for _, values in groups for value in values]
    room = 0.06 * (max(everything) - min(everything)) or 0.01 * abs(everything[0]) or 1.0
    axes.set_xlim(min(everything) - room, max(everything) + room)
    for middle, (role, values) in zip(middles, groups, strict=True):
        colour = role_colour(role)
        heights = [middle + 0.12 * math.sin(2.4 * seed) for seed in range(len(values))]
        axes.scatter(values, heights, 6.5**2, color=colour, alpha=0.55, linewidths=0, zorder=3)
        axes.vlines(statistics.fmean(values), middle - 0.24, middle + 0.24, color=colour, lw=2.2, zorder=4)
    return figure


def _difference_text(style: Style, row: Difference) -> str:
    mean = style.format_number(row.mean, sign=True)
    interval = (
        ""
        if row.low is None or row.high is None
        else f"  [{style.format_number(row.low)}, {style.format_number(row.high)}]"
    )
    return f"{mean}{interval}" + ("" if row.p is None else f"  {format_p_value(row.p)}")


def figure_with_rows(labels: Sequence[tuple[str, str]], narrow: bool, x_name: str) -> tuple[Figure, Axes, list[float]]:
    """Return a figure with a horizontal row for each label, its axes, and the vertical positions of the rows' marks.

    Each label is (name, text with numbers). The name is written left of the marks and the text right of them; on a
    narrow figure, both are written above the marks.
    """
    figure, (axes,) = figure_with_panels(1, narrow, (46 if narrow else 32) * len(labels) + 80)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5 if narrow else 8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    axes.set_xlabel(x_name)
    axes.grid(visible=False)
    if not narrow:
        axes.grid(axis="x")
    set_labelled_ticks(axes.yaxis, range(len(labels)), ["" if narrow else name or NONE for name, _ in labels])
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    beside: Any = ("axes fraction", "data")
    for index, (name, text) in enumerate(labels):
        if narrow:
            write_note(axes, name or NONE, (0, index), (0, 11), beside, color=COLOURS["ink"], va="center")
            write_note(axes, text, (1, index), (0, 11), beside, size=TINY, ha="right", va="center")
        else:
            write_note(axes, text, (1, index), (14, 0), beside, va="center")
    return figure, axes, [index + (0.22 if narrow else 0) for index in range(len(labels))]


_LABEL = "difference beyond the bound, in margins"
_FAR, _NEAR = 20.0, 3.0
"""Distances from a claim's bound, in margins. If some claim is farther than the first, as costs can be, the axis is
linear up to the second distance and logarithmic beyond."""
_TICKS = (-10_000, -1000, -100, -10, -3, -1, 0, 1, 3, 10, 100, 1000, 10_000)
_COLOURS = {"confirmed": "good", "refuted": "bad", "undecided": "muted"}


def claims_figure(claims: Sequence[Claim], narrow: bool = False) -> Figure:
    """Draw a row for each claim: by how many margins the difference exceeds the claim's bound, with the interval."""
    labels = []
    for claim in claims:
        told = "" if claim.difference is None else claim_number_style(claim).format_number(claim.difference, sign=True)
        labels.append((shorten_middle(claim.name, 40), f"{told}{told and '  '}{claim.found}"))
    figure, axes, middles = figure_with_rows(labels, narrow, _LABEL)
    drawn: list[float] = []
    for middle, claim in zip(middles, claims, strict=True):
        colour = COLOURS[_COLOURS[claim.found]]
        if claim.interval is not None:
            ends = [_difference_in_margins(claim, end) for end in claim.interval]
            drawn += ends
            axes.plot(ends, [middle, middle], color=colour, lw=2.4, solid_capstyle="round", zorder=3)
        if claim.difference is not None:
            drawn.append(_difference_in_margins(claim, claim.difference))
            axes.plot(drawn[-1:], [middle], color=colour, marker="o", markersize=7.5, zorder=4)
    low, high = min([0.0, *drawn]), max([0.0, *drawn])
    if max(-low, high) > _FAR:
        axes.set_xlabel(f"{_LABEL} (by powers of ten beyond {_NEAR:g})")
        axes.set_xscale("symlog", linthresh=_NEAR, linscale=2)
        axes.set_xticks([tick for tick in _TICKS if low <= tick <= high], minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(-_axis_limit_beyond(-low), _axis_limit_beyond(high))
    else:
        room = 0.06 * (high - low) or 1.0
        axes.set_xlim(low - room, high + room)
    axes.axvline(0, color=COLOURS["muted"], lw=1.2, zorder=1)
    return figure


def _axis_limit_beyond(distance: float) -> float:
    """Return an axis limit a little beyond `distance`, with more room if it is in the logarithmic part of the axis."""
    return 1.8 * distance if distance > _NEAR else distance + 1


def _difference_in_margins(claim: Claim, difference: float) -> float:
    return (difference - claim.above) / claim.margin


def stability_panels(study: StabilityRecord, narrow: bool = False) -> Figure:
    """Draw the quantities of a stability analysis against the rewind step, with a panel per quantity and density."""
    shown, levels = stability_quantities(study), study_densities(study) or [1.0]
    columns = min(2, len(shown)) if narrow else len(shown)
    bands = -(-len(shown) // columns)
    figure, grid = figure_with_panels(columns * bands * len(levels), narrow, 185 if narrow else 205, (columns, columns))
    steps = sorted({row.step for row in study.rows})
    ticks = [f"{short_count(step)}\n{_rewind_share_text(step, study)}" for step in steps]
    for index, density in enumerate(levels):
        rows, band = rows_at_density(study, density), grid[index * columns * bands : (index + 1) * columns * bands]
        for axes, quantity in zip(band, shown, strict=False):
            for role in reversed(study_roles(study)):
                own = [row for row in rows if row.role == role]
                for reader, line in ((quantity.solid, "-"), (quantity.dashed, (0, (3, 2)))):
                    if reader is not None:
                        _draw_quantity_line(axes, own, role, reader, line, steps)
            axes.locator_params(axis="y", nbins=4)
            axes.set_xlim(-0.25, len(steps) - 0.75)
            set_labelled_ticks(axes.xaxis, range(len(steps)), ticks, fit=True)
            axes.set_title(quantity.name)
        for spare in band[len(shown) :]:
            spare.remove()
        above = ("axes fraction", "axes fraction")
        words = f"weights remaining: {percent(density)} %"
        write_note(band[0], words, (0, 1), (0, 26), above, color=COLOURS["ink"], weight="bold")
    add_legend(figure, _legend_entries(study), columnspacing=1.2)
    return figure


def barrier_curves(study: StabilityRecord, narrow: bool = False) -> Figure:
    """Draw the error along the line between two networks of the sparsest level, with a panel per rewind step."""
    rows = [row for row in sparsest_level_study(study).rows if row.barriers]
    steps = sorted({row.step for row in rows})
    columns = 2 if narrow else len(steps) if len(steps) <= 5 else min(5, -(-len(steps) // 2))
    figure, grid = figure_with_panels(len(steps), narrow, 160 if narrow else 185, (columns, columns), sharey=True)
    errors = [e for row in rows for curve in [row.barrier] if curve for e in curve.errors if not math.isnan(e)]
    low, high = (min(errors), max(errors)) if errors else (0.0, 1.0)
    room = 0.06 * (high - low) or 1.0
    for axes, step in zip(grid, steps, strict=True):
        axes.set(xlim=(0, 1), ylim=(low - room, high + room))
        axes.locator_params(axis="y", nbins=4)
        set_labelled_ticks(axes.xaxis, [0, 0.5, 1], ["0", "½", "1"])
        for role in reversed(study_roles(study)):
            _draw_error_between_networks(axes, [row for row in rows if row.step == step and row.role == role], role)
        axes.set_title(f"step {step:,} ({_rewind_share_text(step, study)})", color=COLOURS["ink"])
    set_shared_x_label(figure, "from the one network (0) to the other (1)")
    return figure


def _draw_quantity_line(
    axes: Axes, rows: Sequence[StabilityRow], role: str, reader: Reader, line: object, steps: Sequence[int]
) -> None:
    """Draw a quantity's means over replicates as a line, with bars from the lowest to the highest replicate."""
    solid = line == "-"
    options = role_plot_options(role, size=0.75 if solid else 0.55) | {"linestyle": line, "lw": 1.7 if solid else 1.2}
    found = {
        index: values
        for index, step in enumerate(steps)
        if (values := [value for row in rows if row.step == step and (value := reader(row)) is not None])
    }
    if not found:
        return
    lows, highs = [min(values) for values in found.values()], [max(values) for values in found.values()]
    axes.vlines(list(found), lows, highs, color=options["color"], lw=1, alpha=0.5, zorder=2)
    if not solid:
        options |= {"markerfacecolor": COLOURS["paper"], "markeredgecolor": options["color"], "markeredgewidth": 1}
    means = [statistics.fmean(values) for values in found.values()]
    axes.plot(list(found), means, zorder=3 + (role == TICKET), clip_on=False, **options)


def _draw_error_between_networks(axes: Axes, rows: Sequence[StabilityRow], role: str) -> None:
    """Draw the mean error over replicates as a thick line, and each replicate as a thin line."""
    look = {name: role_plot_options(role)[name] for name in ("color", "linestyle")}
    curves = [curve for row in rows if (curve := row.barrier) is not None]
    if not curves:
        return
    if len(curves) > 1:
        for curve in curves:
            axes.plot(curve.alphas, curve.errors, color=look["color"], lw=0.7, alpha=0.35, zorder=2)
    alike = [curve.errors for curve in curves if curve.alphas == curves[0].alphas]
    means, front = [statistics.fmean(column) for column in zip(*alike, strict=True)], role == TICKET
    axes.plot(curves[0].alphas, means, lw=1.9 if front else 1.5, zorder=3 + front, **look)


def _rewind_share_text(step: int, study: StabilityRecord) -> str:
    """Return a rewind step as a share of training in per cent: as requested, otherwise with two digits."""
    asked = next((rewind.asked for rewind in study.rewinds if rewind.step == step), "")
    if re.fullmatch(r"\d{1,3}(\.\d{1,3})?%", asked):
        return asked
    return f"{100 * step / study.total_steps:.2g}%" if step < study.total_steps else "100%"


def _legend_entries(study: StabilityRecord) -> dict[str, Line2D]:
    roles_shown = {
        role_name(role): role_plot_options(role, size=0.8) | {"linestyle": "-"} for role in study_roles(study)
    }
    muted: dict[str, Any] = {"color": COLOURS["muted"]}
    kinds = {"pruning (solid)": muted, "data order (dashed)": muted | {"linestyle": (0, (3, 2)), "lw": 1.2}}
    return {name: Line2D([], [], **({"lw": 1.7} | look)) for name, look in (roles_shown | kinds).items()}


_BAR = 26
"""Height in pixels of a bar including the gap to the next bar."""
_LONGEST = 24
"""Largest number of letters of an engine's name."""


def time_by_engine(speed: SpeedRecord, narrow: bool = False) -> Figure:
    """Draw a panel for each batch size, with a bar for each engine and its milliseconds beside the bar."""
    shown = [
        (timed, {row.engine: row for row in timed.times if row.seconds is not None}) for timed in speed.comparisons
    ]
    names = list(dict.fromkeys(name for _, rows in shown for name in rows))
    figure, axes = figure_with_panels(len(shown), narrow, _BAR * len(names) + 44, (3, 1), sharey=True)
    for each, (timed, rows) in zip(axes, shown, strict=True):
        _draw_engine_bars(each, timed, [(names.index(name), row) for name, row in rows.items()])
        each.set_title(f"batch {timed.batch}: ms of a call")
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    set_labelled_ticks(axes[0].yaxis, range(len(names)), [shorten_middle(name, _LONGEST) for name in names])
    return figure


def _draw_engine_bars(axes: Axes, timed: Timed, rows: Sequence[tuple[int, EngineTime]]) -> None:
    places, times = [place for place, _ in rows], [1e3 * (row.seconds or 0) for _, row in rows]
    dense = {name: "muted" if name == timed.fastest_dense else "rule" for name in (row.engine for _, row in rows)}
    colours = [COLOURS["ticket" if row.sparse else dense[row.engine]] for _, row in rows]
    axes.barh(places, times, height=0.65, color=colours)
    for (place, row), time in zip(rows, times, strict=True):
        if row.low is not None and row.high is not None:
            axes.hlines(place, 1e3 * row.low, 1e3 * row.high, color=COLOURS["ink"], lw=1)
        end = (max(time, 1e3 * (row.high or 0)), place)
        write_note(axes, f"{time:.3g}", end, (5, 0), va="center", color=COLOURS["ink"])
    axes.set_xlim(0, max([*times, *(1e3 * (row.high or 0) for _, row in rows)]))
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def time_by_density(curves: Sequence[TimeCurve], narrow: bool = False) -> Figure:
    """Draw latency against density on log scales, with a panel per batch size; dense engines are horizontal lines."""
    figure, axes = figure_with_panels(len(curves), narrow, 290 if narrow else 330)
    for each, curve in zip(axes, curves, strict=True):
        _draw_latency_curves(each, curve)
        each.set_title(f"batch {curve.comparison.batch}: ms of a call (log scale)")
    handles = {
        "sparse, this engine": Line2D([], [], color=COLOURS["ticket"], marker="o", markersize=5.5, lw=1.8),
        "ideal: density × fastest dense": Line2D([], [], color=COLOURS["muted"], lw=1.2, dashes=(4, 3)),
        "dense": Line2D([], [], color=COLOURS["muted"], lw=1.4),
    }
    add_legend(figure, handles)
    ends = []
    for each, curve in zip(axes, curves, strict=True):
        colours = {curve.comparison.fastest_dense: "ink"}
        dense = _milliseconds_of_dense_engines(curve)
        ends.append((each, [(ms, shorten_middle(name, _LONGEST), colours.get(name, "muted")) for name, ms in dense]))
    label_line_ends(figure, ends)
    return figure


def time_by_density_svg(record: EvidenceValues) -> str:
    """Return the figure of latency against density as an SVG document; `record` is a timing at several densities."""
    timed = read_evidence(record, "record of time against density")
    if not isinstance(timed, CurveRecord):
        raise StoreError("a record of time against density is of kind bench-curve: measure it with --densities")
    with figure_style():
        return to_svg(time_by_density(timed.curves), "time by density")


def _draw_latency_curves(axes: Axes, curve: TimeCurve) -> None:
    points, dense = curve.points, _milliseconds_of_dense_engines(curve)
    x, times, ideal = zip(*((100 * p.density, 1e3 * p.seconds, 1e3 * p.ideal) for p in points), strict=True)
    axes.plot(x, ideal, color=COLOURS["muted"], lw=1.2, dashes=(4, 3))
    for name, milliseconds in dense:
        fastest = name == curve.comparison.fastest_dense
        axes.axhline(milliseconds, color=COLOURS["muted" if fastest else "rule"], lw=1.4 if fastest else 1, zorder=1)
    axes.vlines(x, [1e3 * p.low for p in points], [1e3 * p.high for p in points], color=COLOURS["ticket"], lw=1)
    axes.plot(x, times, color=COLOURS["ticket"], lw=1.8, marker="o", markersize=5.5, clip_on=False, zorder=3)
    everything = [*times, *ideal, *(milliseconds for _, milliseconds in dense)]
    set_up_log_axis(axes, "y", min(everything) / 1.25, max(everything) * 1.25, number_tick_label)
    set_up_density_axis(axes, [point.density for point in points])


def _milliseconds_of_dense_engines(curve: TimeCurve) -> list[tuple[str, float]]:
    rows = curve.comparison.times
    return [(row.engine, 1e3 * row.seconds) for row in rows if not row.sparse and row.seconds is not None]
