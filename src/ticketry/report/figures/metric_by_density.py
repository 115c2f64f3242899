"""Draw the metric against the share of remaining weights, for one run, or for several runs on shared axes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ticketry.records.network import TICKET
from ticketry.report.figures.layout import (
    Scale,
    add_legend,
    empty_figure,
    label_line_ends,
    run_legend_handles,
    set_shared_x_label,
    set_up_density_axis,
)
from ticketry.report.figures.style import COLOURS, role_plot_options, run_colour, run_plot_options
from ticketry.report.subject import Series
from ticketry.report.tables.results import CONTROLS, Group, Results
from ticketry.report.wording import role_name, short_metric_label

_WORTH_A_PANEL = 0.5
"""If the better networks span less than this share of the whole range, they get a separate panel."""
_MOST_SD = 1.5
"""Standard deviations of an interval that must fit on an axis; whole intervals of two replicates would be too long."""
_ROOM = 0.04
X_NAME = "weights remaining, % of the prunable ones (log scale)"


def metric_by_density(results: Results, narrow: bool = False) -> Figure:
    """Draw the test metric against density: means over replicates, with bands of their 95 % t intervals.

    The run must have a level besides the dense network. If some networks are far worse than the rest (often controls at
    high sparsity), the main panel shows the range near the dense network, and a low panel beneath it the whole range.
    """
    whole, near, scale = y_limits_of_all_networks(results), y_limits_near_dense(results), metric_scale_of(results)
    tall, strip = (340, 130) if narrow else (390, 150)
    figure = empty_figure(narrow, tall + (strip - 20 if near else 0))
    heights = [tall - 60, strip - 60] if near else [1]
    panels = list(figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights).flat)
    _draw_all_roles(figure, panels, results)
    densities = [group.density for role in results.roles for group in results.groups_of_role(role)]
    set_up_density_axis(panels[-1], densities, X_NAME)
    scale.set_limits(panels[0], near or whole)
    panels[0].set_title(f"test {short_metric_label(results.run.task.metric)}{scale.name_suffix}")
    if near:
        panels[0].tick_params(axis="x", which="both", length=4)
        scale.set_limits(panels[1], whole, 3)
        panels[1].axhspan(*near, color=COLOURS["shade"], lw=0, zorder=0)
        panels[1].set_title("the whole range (shaded: the part shown above)")
    return figure


def y_limits_of_all_networks(results: Results) -> tuple[float, float]:
    """Return limits of the y axis that show all means of a run, and at least a part of their intervals."""
    groups = [group for role in results.roles for group in results.groups_of_role(role)]
    return y_limits_of(groups, metric_scale_of(results), _ROOM)


def metric_scale_of(*runs: Results) -> Scale:
    """Return the scale of the metric's axis for figures of these runs."""
    means = [
        group.metric().mean for results in runs for role in results.roles for group in results.groups_of_role(role)
    ]
    return Scale.for_values(runs[0].run.task.metric, means)


def y_limits_near_dense(results: Results) -> tuple[float, float] | None:
    """Return limits of the y axis that show the better networks well; None if limits for all networks do so.

    The limits extend from the dense network towards worse values, by 2.5 times the median shortfall of all other
    networks, or of the median role if that is smaller. So a single collapsed control does not set the scale.
    """
    if results.dense is None:
        return None
    sign, scale = results.run.task.metric.sign, metric_scale_of(results)
    dense = results.dense.metric()
    at = scale.position(dense.mean)
    others = [group for role in results.roles[1:] for group in results.groups_of_role(role)]

    def median_shortfall(groups: Sequence[Group]) -> float:
        return statistics.median(sign * (at - scale.position(group.metric().mean)) for group in groups)

    by_role = statistics.median_low(median_shortfall(results.groups_of_role(role)) for role in results.roles[1:])
    shortfall = min(median_shortfall(others), by_role)
    best = max(
        sign * scale.position(edge)
        for group in [results.dense, *others]
        for edge in _interval_ends_on_axis(group, scale)
    )
    depth = max(2.5 * shortfall, 4 * scale.sd_on_axis(dense), best - sign * at)
    one, other = scale.value_at(at - sign * depth), scale.value_at(sign * best)
    low, high = scale.limits_with_room(min(one, other), max(one, other), _ROOM)
    lowest, highest = (scale.position(limit) for limit in y_limits_of_all_networks(results))
    worth = _WORTH_A_PANEL * (highest - lowest)
    return (low, high) if 0 < scale.position(high) - scale.position(low) < worth else None


def _interval_ends_on_axis(group: Group, scale: Scale, most_sd: float = _MOST_SD) -> tuple[float, float]:
    """Return a mean's interval, cropped to `most_sd` standard deviations on both sides, for choosing axis limits."""
    summary = group.metric()
    low, high = summary.interval or (summary.mean, summary.mean)
    most = most_sd * (summary.sd or 0)
    return scale.clip_low_end(max(low, summary.mean - most), summary), min(high, summary.mean + most)


def y_limits_of(
    groups: Iterable[Group], scale: Scale, room: float = 0.05, most_sd: float = _MOST_SD
) -> tuple[float, float]:
    """Return axis limits that show all means, with intervals up to `most_sd` standard deviations.

    `room` is the share of the range that is left free at both ends.
    """
    edges = [_interval_ends_on_axis(group, scale, most_sd) for group in groups]
    return scale.limits_with_room(min(low for low, _ in edges), max(high for _, high in edges), room)


def draw_means(axes: Axes, groups: Sequence[Group], scale: Scale, alpha: float, front: bool, **options: Any) -> Any:
    """Draw a line of means over density with the band of their intervals; return the handle for the legend."""
    ordered = sorted(groups, key=lambda group: -group.density)
    x, summaries = [100 * group.density for group in ordered], [group.metric() for group in ordered]
    lows = [scale.clip_low_end((summary.interval or (summary.mean,))[0], summary) for summary in summaries]
    highs = [(summary.interval or (summary.mean,))[-1] for summary in summaries]
    axes.fill_between(x, lows, highs, color=options["color"], alpha=alpha, lw=0, zorder=2 + front)
    return axes.plot(x, [summary.mean for summary in summaries], zorder=4 + front, **options)[0]


def _draw_all_roles(figure: Figure, panels: Sequence[Axes], results: Results) -> None:
    """Draw all roles and add a legend; tickets are drawn on top of controls, and come first in the legend."""
    roles, scale = [TICKET, *results.controls], metric_scale_of(results)
    entries: dict[str, Any] = {}
    for role in (role for role in reversed(roles) if results.groups_of_role(role)):
        front = role == TICKET
        for panel in reversed(panels):
            strip = panel is not panels[0]
            options = role_plot_options(role, results.controls, 0.6 if strip else 1)
            options["lw"] = 1.2 if strip else 2.2 if front else 1.6
            options["markeredgewidth"] = 0.5 if strip else 1.0
            alpha = 0.16 if front else 0.09
            entries[role_name(role)] = draw_means(panel, results.groups_of_role(role), scale, alpha, front, **options)
    entries = dict(reversed(entries.items()))
    if results.dense is not None:
        entries["dense"] = _draw_dense_network(panels, results.dense, scale)
    add_legend(figure, entries, fontsize=12)


def _draw_dense_network(panels: Sequence[Axes], dense: Group, scale: Scale) -> Any:
    """Draw the dense network's mean and interval across the panels; return the handle for the legend."""
    muted, summary = COLOURS["muted"], dense.metric()
    low, high = summary.interval or (summary.mean, summary.mean)
    for panel in panels:
        panel.axhspan(scale.clip_low_end(low, summary), high, color=muted, alpha=0.16, lw=0, zorder=1)
        panel.axhline(summary.mean, color=muted, lw=1.2, zorder=1)
        panel.plot([100 * dense.density], [summary.mean], color=muted, marker="o", markersize=5.5)
    return (Patch(color=muted, alpha=0.16, lw=0), Line2D([], [], color=muted, lw=1.2, marker="o", markersize=5.5))


_MOST_LETTERS = 28
"""Largest number of letters of a label beside a line; if a label is longer, a legend is used."""


def overlay_runs(series: Sequence[Series], narrow: bool = False) -> Figure:
    """Draw the tickets of several runs in a large panel, and each control in a small panel beneath."""
    shown = [one for one in series if one.results.levels]
    names = {role for one in shown for role in one.results.controls}
    controls = [role for role in CONTROLS if role in names] + sorted(names - set(CONTROLS))
    beside = not narrow and max(len(one.label) for one in shown) <= _MOST_LETTERS
    columns = 1 if narrow else max(len(controls), 1)
    rows = [controls[start : start + columns] for start in range(0, len(controls), columns)]
    tall, small = (350, 170) if narrow else (400, 220)
    figure = empty_figure(narrow, tall + small * len(rows))
    layout: list[Any] = [[TICKET] * columns, *rows]
    panels = figure.subplot_mosaic(layout, height_ratios=[tall] + [small] * len(rows))
    scale = metric_scale_of(*(one.results for one in shown))
    densities = [g.density for one in shown for role in (TICKET, *controls) for g in one.results.groups_of_role(role)]
    for role, axes in panels.items():
        _draw_role(axes, shown, role, scale)
        own = [TICKET] if role == TICKET else controls
        groups = [group for one in shown for name in own for group in one.results.groups_of_role(name)]
        limits = y_limits_of([*groups, *(one.results.dense for one in shown if one.results.dense)], scale)
        scale.set_limits(axes, limits, None if role == TICKET else 4)
        set_up_density_axis(axes, densities, "")
        if role == TICKET:
            axes.set_title(f"tickets: test {short_metric_label(shown[0].results.run.task.metric)}{scale.name_suffix}")
        else:
            axes.set_title(role_name(role), color=COLOURS["ink"])
    set_shared_x_label(figure, X_NAME)
    if beside:
        label_line_ends(figure, [(panels[TICKET], _line_ends(shown))])
    else:
        add_legend(figure, run_legend_handles(shown))
    return figure


def _draw_role(axes: Axes, series: Sequence[Series], role: str, scale: Scale) -> None:
    large = role == TICKET
    means = dict.fromkeys(one.results.dense.metric().mean for one in series if one.results.dense is not None)
    for mean in means:
        axes.axhline(mean, color=COLOURS["muted"], lw=1.2 if large and len(means) == 1 else 0.8, zorder=1)
    options = {"lw": 2.0, "markersize": 6.2} if large else {"lw": 1.2, "markersize": 3.2, "markeredgewidth": 0.4}
    for one in series:
        if groups := one.results.groups_of_role(role):
            alpha = 0.12 if large and len(series) < 4 else 0.07
            draw_means(axes, groups, scale, alpha, front=False, **run_plot_options(one.index), **options)


def _line_ends(series: Sequence[Series]) -> list[tuple[float, str, str]]:
    """Return where each run's line of tickets ends, and where the line of the dense network ends, for their labels."""
    ends = []
    for one in series:
        if tickets := one.results.groups_of_role(TICKET):
            sparsest = min(tickets, key=lambda group: group.density)
            ends.append((sparsest.metric().mean, one.label, run_colour(one.index)))
    dense = next((one.results.dense for one in series if one.results.dense is not None), None)
    return ends if dense is None else [*ends, (dense.metric().mean, "dense", "muted")]
