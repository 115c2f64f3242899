"""Several runs of one task on one pair of axes: tickets large, each control in a panel of its own beneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.report.aggregate import CONTROLS, Group, Results
from ticketry.report.figures import canvas
from ticketry.report.figures.metric import band, low_high, scale_of
from ticketry.report.figures.scale import Scale
from ticketry.report.figures.svg import COLOURS, run_colour
from ticketry.report.record import TICKET
from ticketry.report.wording import metric_label, role_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
_MOST_LABEL = 190
"""Pixels beyond which names stand in a legend rather than beside the lines."""


@dataclass(frozen=True)
class Series:
    """One run among others: its short name and its number, which sets its colour on the whole page."""

    label: str
    index: int
    results: Results

    @property
    def colour(self) -> str:
        return COLOURS[run_colour(self.index)]

    @property
    def marker(self) -> str:
        """One further on each time the colours begin again, so that the two together tell 64 runs apart."""
        return MARKERS[(self.index + self.index // 8) % len(MARKERS)]


def overlay(series: Sequence[Series], narrow: bool = False) -> Figure:
    """Means with 95 % t intervals of the tickets of each run, dense networks, and the controls in small panels."""
    shown = [one for one in series if one.results.levels]
    controls = _controls(shown)
    width, left, tall, small = (360, 40, 260, 100) if narrow else (860, 44, 320, 150)
    longest = canvas.text_width([one.label for one in shown])
    direct = not narrow and longest <= _MOST_LABEL
    columns_of_names = canvas.legend_columns([one.label for one in shown], width)
    right = max(70, 14 + longest) if direct else 8
    across = width - left - right
    columns = 1 if narrow else max(len(controls), 1)
    rows = -(-len(controls) // columns)
    top = 30 + (0 if direct else 20 * -(-len(shown) // columns_of_names))
    foot = top + tall + rows * (small + 58)
    figure = canvas.figure_of(width, foot + 60)
    densities = sorted({group.density for one in shown for group in _groups(one, controls)}, reverse=True)
    main = canvas.place(figure, left, top, across, tall)
    scale = scale_of(*(one.results for one in shown))
    canvas.write(figure, 2, top - 10, f"tickets: test {metric_label(shown[0].results.run.task.metric)}{scale.note}")
    _draw_role(main, shown, TICKET, scale, large=True)
    scale.set(main, _limits([one.results for one in shown], [TICKET], scale))
    canvas.density_axis(main, densities, labels=True)
    main.grid(axis="y", color=COLOURS["rule"], lw=1)
    _name(figure, main, shown, 0 if direct else columns_of_names)
    limits = _limits([one.results for one in shown], controls, scale) if controls else None
    gap = 34
    wide = (width - left - (8 if narrow else 12) - gap * (columns - 1)) / columns
    for number, role in enumerate(controls):
        x, y = left + (number % columns) * (wide + gap), top + tall + 62 + (number // columns) * (small + 58)
        axes = canvas.place(figure, x, y, wide, small)
        scale.set(axes, limits or (0, 1), 4)
        _draw_role(axes, shown, role, scale, large=False)
        canvas.density_axis(axes, densities)
        axes.grid(axis="y", color=COLOURS["rule"], lw=1)
        canvas.write(figure, x - (left if number % columns == 0 else 20) + 2, y - 9, role_name(role), colour="ink")
    canvas.write_at_foot(figure, width - 8, "weights remaining, % of the prunable ones (log scale)")
    return figure


def _controls(series: Sequence[Series]) -> list[str]:
    found = {role for one in series for role in one.results.controls}
    return [role for role in CONTROLS if role in found] + sorted(found - set(CONTROLS))


def _groups(one: Series, controls: Sequence[str]) -> list[Group]:
    return [group for role in (TICKET, *controls) for group in one.results.of_role(role)]


def _limits(runs: Sequence[Results], roles: Sequence[str], scale: Scale) -> tuple[float, float]:
    """Every mean of the roles and of dense with its band as far as `low_high` goes, and some room."""
    groups = [group for results in runs for role in roles for group in results.of_role(role)]
    groups += [results.dense for results in runs if results.dense is not None]
    summaries = [group.metric() for group in groups]
    low = min(scale.shown(low_high(summary)[0], summary) for summary in summaries)
    high = max(low_high(summary)[1] for summary in summaries)
    return scale.padded(low, high, 0.05)


def _draw_role(axes: Axes, series: Sequence[Series], role: str, scale: Scale, large: bool) -> None:
    means = dict.fromkeys(one.results.dense.metric().mean for one in series if one.results.dense is not None)
    for mean in means:
        axes.axhline(mean, color=COLOURS["muted"], lw=1.2 if large and len(means) == 1 else 0.8, zorder=1)
    for one in series:
        groups = sorted(one.results.of_role(role), key=lambda group: -group.density)
        x = [100 * group.density for group in groups]
        summaries = [group.metric() for group in groups]
        low, high = zip(*(band(summary, scale) for summary in summaries), strict=True) if summaries else ((), ())
        alpha = 0.12 if large and len(series) < 4 else 0.07
        axes.fill_between(x, low, high, color=one.colour, alpha=alpha, lw=0, zorder=2)
        axes.plot(
            x,
            [summary.mean for summary in summaries],
            color=one.colour,
            lw=2.0 if large else 1.2,
            marker=one.marker,
            markersize=6.2 if large else 3.2,
            markeredgecolor=COLOURS["paper"],
            markeredgewidth=0.9 if large else 0.4,
            zorder=3,
        )


def _name(figure: Figure, axes: Axes, series: Sequence[Series], columns: int) -> None:
    """Names at the ends of the tickets' lines; with `columns`, where there is no room for them, a legend above."""
    if columns:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=one.colour, marker=one.marker, markersize=6, lw=2) for one in series]
        canvas.legend(figure, handles, [one.label for one in series], columns, fontsize=11)
        return
    ends = []
    for one in series:
        tickets = one.results.of_role(TICKET)
        if tickets:
            sparsest = min(tickets, key=lambda group: group.density)
            ends.append((sparsest.metric().mean, one.label, run_colour(one.index)))
    dense = next((one.results.dense for one in series if one.results.dense is not None), None)
    if dense is not None:
        ends.append((dense.metric().mean, "dense", "muted"))
    canvas.end_labels(figure, axes, ends)
