"""A verification in two figures: differences with their intervals (a forest plot), and the value of every seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ticketry.records.evidence import VerifyRecord
from ticketry.records.network import DENSE, TICKET
from ticketry.records.verdict import Difference
from ticketry.report.figures.axes import label_places
from ticketry.report.figures.panels import note, panels
from ticketry.report.figures.style import COLOURS, TINY, role_colour
from ticketry.report.tables.evidence import NOISE, differences, network_name, seed_style
from ticketry.report.tables.results import summarise
from ticketry.report.wording import MINUS, NONE, Style, p_value, role_name, short_metric, shortened


def forest(verify: VerifyRecord, narrow: bool = False) -> Figure:
    """Mean differences with their intervals, the line of no difference and the margin below which a ticket loses."""
    found, margin, style = differences(verify), verify.margin, seed_style(verify)
    names = ["ticket, other seeds (A/A)" if row.role == NOISE else shortened(role_name(row.role), 40) for row in found]
    labels = [(name, _numbers(style, row)) for name, row in zip(names, found, strict=True)]
    taken = "ticket minus …" if verify.task.metric.higher_is_better else "… minus ticket"
    figure, axes, middles = named_rows(labels, narrow, f"difference in test {short_metric(verify.task.metric)}")
    ends = [end for row in found for end in (row.mean, row.low, row.high) if end is not None]
    low, high = min([*ends, 0.0, -margin]), max([*ends, 0.0])
    room = 0.08 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    # Lines across leave out what of the height is text.
    for top, foot in [(m - 0.25, m + 0.27) for m in middles] if narrow else [(-0.5, len(found) - 0.5)]:
        axes.fill_between([-margin, 0], top, foot, color=COLOURS["shade"], lw=0, zorder=0)
        axes.vlines([0], top, foot, color=COLOURS["muted"], lw=1.2, zorder=1)
        axes.vlines([-margin], top, foot, color=COLOURS["muted"], lw=1, linestyle=(0, (4, 3)), zorder=1)
    left = low < -margin
    mark, shift = f"margin {style.number(-margin)}", -4 if left else 4
    note(axes, mark, (-margin, 1), (shift, 6), ("data", "axes fraction"), ha="right" if left else "left")
    axes.set_title(taken, pad=24)
    for middle, row in zip(middles, found, strict=True):
        _draw_difference(axes, middle, row)
    return figure


def _draw_difference(axes: Axes, middle: float, row: Difference) -> None:
    colour = COLOURS["muted"] if row.role == NOISE else role_colour(TICKET if row.role == DENSE else row.role)
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [middle, middle], color=colour, lw=2.4, solid_capstyle="round", zorder=3)
    mark: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 7.5, "markeredgewidth": 1}
    if row.role == DENSE:
        mark |= {"marker": "D", "markersize": 9}
    if row.role == NOISE:
        mark |= {"color": COLOURS["paper"], "markeredgecolor": colour, "markeredgewidth": 1.4}
    axes.plot([row.mean], [middle], zorder=4, **mark)


def seeds(verify: VerifyRecord, narrow: bool = False) -> Figure:
    """The test metric of every seed of every network, with the mean of each as a tick."""
    groups = [(one.role, one.values) for one in verify.networks]
    groups += [(one.role, one.values) for one in verify.references if one.values]
    style = seed_style(verify)
    labels = [(shortened(network_name(role), 40), style.summary(summarise(values))) for role, values in groups]
    figure, axes, middles = named_rows(
        labels, narrow, f"test {short_metric(verify.task.metric)}, a dot a seed; bar: mean"
    )
    everything = [value for _, values in groups for value in values]
    room = 0.06 * (max(everything) - min(everything)) or 0.01 * abs(everything[0]) or 1.0
    axes.set_xlim(min(everything) - room, max(everything) + room)
    for middle, (role, values) in zip(middles, groups, strict=True):
        colour = role_colour(role)
        heights = [middle + 0.12 * math.sin(2.4 * seed) for seed in range(len(values))]  # apart, always the same way
        axes.scatter(values, heights, 6.5**2, color=colour, alpha=0.55, linewidths=0, zorder=3)
        axes.vlines(statistics.fmean(values), middle - 0.24, middle + 0.24, color=colour, lw=2.2, zorder=4)
    return figure


def _numbers(style: Style, row: Difference) -> str:
    mean = style.number(row.mean, sign=True)
    interval = "" if row.low is None or row.high is None else f"  [{style.number(row.low)}, {style.number(row.high)}]"
    return f"{mean}{interval}" + ("" if row.p is None else f"  {p_value(row.p)}")


def named_rows(labels: Sequence[tuple[str, str]], narrow: bool, x_name: str) -> tuple[Figure, Axes, list[float]]:
    """Axes with horizontal rows, named to the left, with numbers to the right; on a narrow figure both above.

    The last is where each row's marks stand: on a narrow figure beneath its text.
    """
    figure, (axes,) = panels(1, narrow, (46 if narrow else 32) * len(labels) + 80)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5 if narrow else 8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    axes.set_xlabel(x_name)
    axes.grid(visible=False)
    if not narrow:
        axes.grid(axis="x")
    label_places(axes.yaxis, range(len(labels)), ["" if narrow else name or NONE for name, _ in labels])
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    beside: Any = ("axes fraction", "data")
    for index, (name, text) in enumerate(labels):
        if narrow:
            note(axes, name or NONE, (0, index), (0, 11), beside, color=COLOURS["ink"], va="center")
            note(axes, text, (1, index), (0, 11), beside, size=TINY, ha="right", va="center")
        else:
            note(axes, text, (1, index), (14, 0), beside, va="center")
    return figure, axes, [index + (0.22 if narrow else 0) for index in range(len(labels))]
