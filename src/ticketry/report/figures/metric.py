"""The figure of the field: the metric against the weights remaining, tickets, controls and the dense network."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.report.aggregate import Group, Results, Summary
from ticketry.report.figures import canvas
from ticketry.report.figures.looks import look_of
from ticketry.report.figures.scale import Scale
from ticketry.report.figures.svg import COLOURS
from ticketry.report.record import TICKET
from ticketry.report.wording import metric_label, role_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Layout:
    """Pixels, and how many entries of the legend stand side by side."""

    width: float
    left: float
    panel: float
    strip: float
    columns: int


_WIDE = _Layout(width=860, left=44, panel=320, strip=90, columns=5)
_NARROW = _Layout(width=360, left=38, panel=270, strip=76, columns=2)
_WORTH_A_PANEL = 0.5
"""The share of the whole range below which the better networks get a panel of their own."""
_MOST_SD = 1.5
_RIGHT, _GAP, _FOOT, _ROW = 8, 38, 52, 19
_ROOM = 0.04


def metric_by_density(results: Results, narrow: bool = False) -> Figure:
    """Means with bands of their 95 % t intervals; the run must have a level other than the dense one.

    Where some networks fall far below the rest, as controls at high sparsity do, the main panel shows the range
    near the dense network and a strip beneath it the whole range.
    """
    layout = _NARROW if narrow else _WIDE
    roles = [TICKET, *results.controls]
    whole, near = whole_range(results), near_dense(results)
    across = layout.width - layout.left - _RIGHT
    top = _ROW * -(-(len(roles) + 1) // layout.columns) + 32
    bottom = top + layout.panel
    figure = canvas.figure_of(layout.width, bottom + (_GAP + layout.strip if near else 0) + _FOOT)
    panels = [canvas.place(figure, layout.left, top, across, layout.panel)]
    scale = scale_of(results)
    scale.set(panels[0], near or whole)
    if near:
        panels.append(canvas.place(figure, layout.left, bottom + _GAP, across, layout.strip))
        scale.set(panels[1], whole, 3)
        panels[1].axhspan(*near, color=COLOURS["shade"], lw=0, zorder=0)
        canvas.write(figure, 2, bottom + _GAP - 10, "the whole range (shaded: the part shown above)")
    _draw_all(figure, panels, results, roles, layout.columns)
    densities = sorted({group.density for role in results.roles for group in results.of_role(role)}, reverse=True)
    for panel in panels:
        canvas.density_axis(panel, densities, labels=panel is panels[-1])
        panel.grid(axis="y", color=COLOURS["rule"], lw=1)
    canvas.write(figure, 2, top - 10, f"test {metric_label(results.run.task.metric)}{scale.note}")
    canvas.write_at_foot(figure, layout.width - _RIGHT, "weights remaining, % of the prunable ones (log scale)")
    return figure


def whole_range(results: Results) -> tuple[float, float]:
    """Limits of the y axis that show every mean with its band, as far as `low_high` goes."""
    scale = scale_of(results)
    edges = [edge for role in results.roles for group in results.of_role(role) for edge in _edges(group, scale)]
    return scale.padded(min(edges), max(edges), _ROOM)


def scale_of(*runs: Results) -> Scale:
    """The scale of the metric's axis."""
    means = [group.metric().mean for results in runs for role in results.roles for group in results.of_role(role)]
    return Scale.of(runs[0].run.task.metric, means)


def near_dense(results: Results) -> tuple[float, float] | None:
    """Limits of the y axis that show the better networks well, or None where the whole range does.

    They reach as far below dense as 2.5 times the median shortfall of all other networks, so that at least half of
    the points lie in the better part of the panel however badly the worst do. (Above it, if less is better.)
    """
    if results.dense is None:
        return None
    sign, scale = results.run.task.metric.sign, scale_of(results)
    dense = results.dense.metric()
    at = scale.place(dense.mean)
    others = [group for role in results.roles[1:] for group in results.of_role(role)]
    shortfall = statistics.median(sign * (at - scale.place(group.metric().mean)) for group in others)
    best = max(sign * scale.place(edge) for group in [results.dense, *others] for edge in _edges(group, scale))
    depth = max(2.5 * shortfall, 4 * scale.spread(dense), best - sign * at)
    one, other = scale.value(at - sign * depth), scale.value(sign * best)
    low, high = scale.padded(min(one, other), max(one, other), _ROOM)
    lowest, highest = (scale.place(limit) for limit in whole_range(results))
    worth = _WORTH_A_PANEL * (highest - lowest)
    return (low, high) if 0 < scale.place(high) - scale.place(low) < worth else None


def _edges(group: Group, scale: Scale) -> tuple[float, float]:
    low, high = low_high(group.metric())
    return scale.shown(low, group.metric()), high


def low_high(summary: Summary) -> tuple[float, float]:
    """The interval of a mean as far as axes make room for it: that of two replicates would leave none for lines."""
    low, high = summary.interval or (summary.mean, summary.mean)
    most = _MOST_SD * (summary.sd or 0)
    return max(low, summary.mean - most), min(high, summary.mean + most)


def band(summary: Summary, scale: Scale) -> tuple[float, float]:
    """The interval of a mean, as far as the axis can show it."""
    low, high = summary.interval or (summary.mean, summary.mean)
    return scale.shown(low, summary), high


def _draw_all(figure: Figure, panels: list[Axes], results: Results, roles: list[str], columns: int) -> None:
    """Controls first, tickets last and so on top; in the legend the tickets come first."""
    handles = {role: _draw(panels, results, role) for role in reversed(roles) if results.of_role(role)}
    entries = {role_name(role): handles[role] for role in roles if role in handles}
    if results.dense is not None:
        entries["dense"] = _draw_dense(panels, results.dense, scale_of(results))
    canvas.legend(figure, list(entries.values()), list(entries), columns)


def _draw(panels: Iterable[Axes], results: Results, role: str) -> Any:
    """A line with markers and its band in each panel; what the legend shows of it."""
    groups = sorted(results.of_role(role), key=lambda group: -group.density)
    look = look_of(role, results.controls)
    colour, front, scale = look.colour, role == TICKET, scale_of(results)
    x = [100 * group.density for group in groups]
    for strip, panel in enumerate(panels):
        low, high = zip(*(band(group.metric(), scale) for group in groups), strict=True)
        panel.fill_between(x, low, high, color=colour, alpha=0.16 if front else 0.09, lw=0, zorder=2 + front)
        handle = panel.plot(
            x,
            [group.metric().mean for group in groups],
            color=colour,
            linestyle=look.line,
            lw=1.2 if strip else 2.2 if front else 1.6,
            marker=look.marker,
            markersize=0.6 * look.size if strip else look.size,
            markeredgecolor=COLOURS["paper"],
            markeredgewidth=0.5 if strip else 1.0,
            zorder=4 + front,
        )
        if not strip:
            shown = handle[0]
    return shown


def _draw_dense(panels: Iterable[Axes], dense: Group, scale: Scale) -> Any:
    """The dense network's mean and spread, all along the axis; what the legend shows of it."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    low, high = band(dense.metric(), scale)
    muted, paper = COLOURS["muted"], COLOURS["paper"]
    point: dict[str, Any] = {"color": muted, "marker": "o", "markersize": 5.5, "markeredgecolor": paper}
    for panel in panels:
        panel.axhspan(low, high, color=muted, alpha=0.16, lw=0, zorder=1)
        panel.axhline(dense.metric().mean, color=muted, lw=1.2, zorder=1)
        panel.plot([100 * dense.density], [dense.metric().mean], **point)
    return (Patch(color=muted, alpha=0.16, lw=0), Line2D([], [], lw=1.2, **point))
