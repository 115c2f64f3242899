"""A verification in two figures: differences with their intervals (a forest plot), and the value of every seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.report.aggregate import Summary, summarise
from ticketry.report.evidence_record import Verify
from ticketry.report.figures import canvas
from ticketry.report.figures.looks import look_of
from ticketry.report.figures.svg import COLOURS
from ticketry.report.record import DENSE, TICKET, Difference
from ticketry.report.wording import MINUS, NONE, Style, metric_label, p_value, role_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOISE = "noise"


@dataclass(frozen=True)
class Row:
    """One line of a figure: its name, what is written to its right, and its role for the looks."""

    role: str
    name: str
    text: str


@dataclass(frozen=True)
class Rows:
    """Axes with a row for each name, and where the names and numbers stand."""

    figure: Figure
    axes: Axes
    count: int
    narrow: bool

    @property
    def middles(self) -> list[float]:
        """Where each row's marks stand: on a narrow figure beneath its text."""
        return [index + (0.22 if self.narrow else 0) for index in range(self.count)]

    @property
    def stretches(self) -> list[tuple[float, float]]:
        """What of the height is free of text, for lines across the rows."""
        if not self.narrow:
            return [(-0.5, self.count - 0.5)]
        return [(middle - 0.25, middle + 0.27) for middle in self.middles]


def differences(verify: Verify) -> list[Difference]:
    """Ticket minus dense, minus each control, and last the ticket minus itself under other seeds."""
    judged = verify.judgement
    found = {one.role: one for one in judged.comparisons}
    if DENSE not in found:
        low, high = judged.interval or (None, None)
        found = {DENSE: Difference(DENSE, judged.difference, low, high, judged.p), **found}
    rows = [found.pop(DENSE), *found.values()]
    if verify.noise is not None:
        rows.append(Difference(NOISE, verify.noise.mean, verify.noise.low, verify.noise.high, None))
    return rows


def forest(verify: Verify, narrow: bool = False) -> Figure:
    """Mean differences with their intervals, the line of no difference and the margin below which a ticket loses."""
    rows, judged = differences(verify), verify.judgement
    style = seed_style(verify)
    labels = [
        Row(row.role, "ticket, other seeds (A/A)" if row.role == NOISE else role_name(row.role), _numbers(style, row))
        for row in rows
    ]
    taken = "ticket minus …" if verify.task.metric.higher_is_better else "… minus ticket"
    canvas_rows = _rows(labels, narrow, taken, f"difference in test {metric_label(verify.task.metric)}")
    axes = canvas_rows.axes
    ends = [end for row in rows for end in (row.mean, row.low, row.high) if end is not None]
    low, high = min([*ends, 0.0, -judged.margin]), max([*ends, 0.0])
    room = 0.08 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    for top, foot in canvas_rows.stretches:
        axes.fill_between([-judged.margin, 0], top, foot, color=COLOURS["shade"], lw=0, zorder=0)
        axes.vlines([0], top, foot, color=COLOURS["muted"], lw=1.2, zorder=1)
        axes.vlines([-judged.margin], top, foot, color=COLOURS["muted"], lw=1, linestyle=(0, (4, 3)), zorder=1)
    _mark_top(
        canvas_rows,
        -judged.margin,
        f"margin {style.number(-judged.margin)}",
        "right" if low < -judged.margin else "left",
    )
    for index, row in zip(canvas_rows.middles, rows, strict=True):
        colour = COLOURS["muted"] if row.role in (NOISE, DENSE) else look_of(row.role).colour
        colour = COLOURS["ticket"] if row.role == DENSE else colour
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [index, index], color=colour, lw=2.4, solid_capstyle="round", zorder=3)
        axes.plot(
            [row.mean],
            [index],
            color=COLOURS["paper"] if row.role == NOISE else colour,
            marker="D" if row.role == DENSE else "o",
            markersize=9 if row.role == DENSE else 7.5,
            markeredgecolor=colour if row.role == NOISE else COLOURS["paper"],
            markeredgewidth=1.4 if row.role == NOISE else 1,
            zorder=4,
        )
    return canvas_rows.figure


def seeds(verify: Verify, narrow: bool = False) -> Figure:
    """The test metric of every seed of every network, with the mean of each as a tick."""
    groups = [(one.role, one.values) for one in verify.networks]
    groups += [(one.role, one.values) for one in verify.references if one.values]
    style = seed_style(verify)
    labels = [Row(role, network_name(role), style.summary(summarise(values))) for role, values in groups]
    canvas_rows = _rows(labels, narrow, "", f"test {metric_label(verify.task.metric)}, a dot a seed; bar: mean")
    axes = canvas_rows.axes
    everything = [value for _, values in groups for value in values]
    room = 0.06 * (max(everything) - min(everything)) or 0.01 * abs(everything[0]) or 1.0
    axes.set_xlim(min(everything) - room, max(everything) + room)
    for middle, (role, values) in zip(canvas_rows.middles, groups, strict=True):
        colour = look_of(role).colour
        axes.plot(
            values,
            [middle + 0.12 * math.sin(2.4 * seed) for seed in range(len(values))],  # apart, and always the same way
            color=colour,
            linestyle="",
            marker="o",
            markersize=6.5,
            alpha=0.55,
            markeredgewidth=0,
            zorder=3,
        )
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [middle - 0.24, middle + 0.24], color=colour, lw=2.2, solid_capstyle="butt", zorder=4)
    return canvas_rows.figure


def seed_style(verify: Verify) -> Style:
    """As many decimals as the spread of the ticket's seeds asks for."""
    summaries: list[Summary] = [summarise(one.values) for one in verify.networks]
    return Style.fitting(summaries, verify.task.metric.unit)


def network_name(role: str) -> str:
    """The name of a role where there is one ticket only."""
    return "ticket" if role == TICKET else role_name(role)


def _numbers(style: Style, row: Difference) -> str:
    mean = style.number(row.mean, sign=True)
    interval = "" if row.low is None or row.high is None else f"  [{style.number(row.low)}, {style.number(row.high)}]"
    return f"{mean}{interval}" + ("" if row.p is None else f"  {p_value(row.p)}")


def _rows(labels: Sequence[Row], narrow: bool, title: str, x_name: str) -> Rows:
    """Axes with horizontal rows, named to the left (above, on a narrow figure), with numbers to the right."""
    width, row = (360, 46) if narrow else (860, 32)
    left = 10 if narrow else 16 + canvas.text_width([label.name for label in labels])
    right = 12 if narrow else 16 + canvas.text_width([label.text for label in labels])
    top = (48 if narrow else 34) if title else 8
    tall = row * len(labels)
    figure = canvas.figure_of(width, top + tall + 54)
    axes = canvas.place(figure, left, top, width - left - right, tall)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5 if narrow else 8)
    axes.grid(axis="x", color=COLOURS["rule"], lw=0 if narrow else 1)
    axes.tick_params(axis="x", length=4, color=COLOURS["muted"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    for index, label in enumerate(labels):
        y = top + row * (index + 0.5) + (-row * 0.5 + 12 if narrow else 4)
        canvas.write(figure, left if narrow else 4, y, label.name or NONE, colour="ink")
        if narrow:
            canvas.write(figure, width - right, y, label.text, ha="right", size=10)
        else:
            canvas.write(figure, width - right + 14, y, label.text)
    if title:
        canvas.write(figure, left if narrow else 4, 16, title)
    canvas.write_at_foot(figure, width - right, x_name)
    return Rows(figure, axes, len(labels), narrow)


def _mark_top(rows: Rows, x: float, text: str, side: str) -> None:
    """A word above the axes beside a vertical line."""
    across, down = rows.figure.get_size_inches() * canvas.INCH
    box = rows.axes.get_position()
    spot = float(rows.axes.transData.transform((x, 0))[0]) / across
    rows.figure.text(
        spot + (-4 if side == "right" else 4) / across,
        box.y1 + 6 / down,
        text,
        color=COLOURS["muted"],
        size=canvas.SMALL,
        ha=side,
    )
