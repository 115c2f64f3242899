"""Stability over the rewind step: small multiples of accuracy, distance, angle and error barrier, a row a density."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ticketry.report.aggregate import CONTROLS
from ticketry.report.evidence_record import Curve, Distances, StabilityRow, StabilityStudy
from ticketry.report.figures import canvas
from ticketry.report.figures.looks import look_of
from ticketry.report.figures.svg import COLOURS
from ticketry.report.record import DENSE, TICKET
from ticketry.report.wording import metric_label, percent, role_name, short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Reader = Callable[[StabilityRow], float | None]
MOST_ROWS = 4


@dataclass(frozen=True)
class Quantity:
    """One column of panels: what is drawn solid, and dashed beside it."""

    name: str
    solid: Reader
    dashed: Reader | None = None

    def tells(self, row: StabilityRow) -> bool:
        return self.solid(row) is not None or (self.dashed is not None and self.dashed(row) is not None)


def quantities(study: StabilityStudy) -> list[Quantity]:
    """The columns that the record has something for."""
    name = study.task.metric.name
    unit = f" ({study.task.metric.unit})" if study.task.metric.unit else ""
    every = (
        Quantity(f"test {metric_label(study.task.metric)}", lambda row: row.value),
        Quantity("L2 distance", lambda row: _l2(row.pruning), lambda row: _l2(row.data_order)),
        Quantity("angle (°)", lambda row: _angle(row.pruning), lambda row: _angle(row.data_order)),
        Quantity(f"error barrier{unit if name == 'accuracy' else ''}", barrier_height),
    )
    return [one for one in every if any(one.tells(row) for row in study.rows)]


def barrier_height(row: StabilityRow) -> float | None:
    """The height on the test split."""
    curve = main_curve(row)
    return None if curve is None or math.isnan(curve.height) else curve.height


def main_curve(row: StabilityRow) -> Curve | None:
    """The barrier that is drawn: on the test split if there is one, with statistics recomputed if that was done."""
    return max(row.barriers, key=lambda curve: (curve.split == "test", curve.recalibrated), default=None)


def densities(study: StabilityStudy) -> list[float]:
    """The levels' mean densities that get a row, densest first: at most four, spread over what there is."""
    levels = sorted({row.level for row in study.rows if row.role != DENSE})
    if len(levels) > MOST_ROWS:
        levels = [levels[round(i * (len(levels) - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)]
    return [statistics.fmean(row.density for row in study.rows if row.level == level) for level in levels]


def roles(study: StabilityStudy) -> list[str]:
    found = {row.role for row in study.rows}
    return [role for role in (TICKET, *CONTROLS, DENSE) if role in found] + sorted(found - {TICKET, DENSE, *CONTROLS})


def at_density(study: StabilityStudy, density: float) -> list[StabilityRow]:
    """The rows of the level of that mean density, and the dense network's."""
    levels = {row.level for row in study.rows if row.role != DENSE}
    level = min(
        levels,
        key=lambda level: abs(statistics.fmean(r.density for r in study.rows if r.level == level) - density),
        default=0,
    )
    return [row for row in study.rows if row.level == level or row.role == DENSE]


def sparsest(study: StabilityStudy) -> StabilityStudy:
    """What the curves are drawn from: the sparsest level and the dense network, one barrier each."""
    levels = densities(study)
    rows = at_density(study, levels[-1]) if levels else study.rows
    kept = [replace(row, barriers=(curve,) if (curve := main_curve(row)) else ()) for row in rows]
    return replace(study, rows=tuple(kept))


def stability_panels(study: StabilityStudy, narrow: bool = False) -> Figure:
    """A column a quantity and a row a density; the rewind steps stand at equal distances, in order."""
    shown, levels = quantities(study), densities(study) or [1.0]
    columns = min(2, len(shown)) if narrow else len(shown)
    bands = -(-len(shown) // columns)
    width, tall, gap, left = (360, 118, 46, 42) if narrow else (860, 138, 52, 44)
    wide = (width - left - 8 - gap * (columns - 1)) / columns
    names = [role_name(role) for role in roles(study)]
    legend_rows = -(-(len(names) + 2) // (2 if narrow else 6))
    top = 20 * legend_rows + 50
    panel = tall + 62
    block = bands * panel + 20
    figure = canvas.figure_of(width, top + block * len(levels) - 34)
    _legend(figure, study, narrow)
    steps = sorted({row.step for row in study.rows})
    for index, density in enumerate(levels):
        y = top + index * block
        canvas.write(figure, 2, y - 24, f"weights remaining: {percent(density)} %", colour="ink", weight="bold")
        rows = at_density(study, density)
        for number, quantity in enumerate(shown):
            x = left + (number % columns) * (wide + gap)
            axes = canvas.place(figure, x, y + (number // columns) * panel, wide, tall)
            _draw_quantity(axes, study, rows, quantity, steps)
            canvas.write(figure, x - 26 if number % columns else 2, y + (number // columns) * panel - 7, quantity.name)
            _step_axis(axes, steps, study)
    return figure


def barrier_curves(study: StabilityStudy, narrow: bool = False) -> Figure:
    """The error along the line between the two trained networks at the sparsest level, a panel a rewind step."""
    rows = [row for row in sparsest(study).rows if row.barriers]
    steps = sorted({row.step for row in rows})
    columns = 2 if narrow else len(steps) if len(steps) <= 5 else min(5, -(-len(steps) // 2))
    lines = -(-len(steps) // columns)
    width, tall, gap, left = (360, 104, 34, 40) if narrow else (860, 130, 36, 44)
    wide = (width - left - 10 - gap * (columns - 1)) / columns
    figure = canvas.figure_of(width, 24 + lines * (tall + 54) + 6)
    errors = [e for row in rows for curve in [main_curve(row)] if curve for e in curve.errors if not math.isnan(e)]
    low, high = (min(errors), max(errors)) if errors else (0.0, 1.0)
    room = 0.06 * (high - low) or 1.0
    for index, step in enumerate(steps):
        x, y = left + (index % columns) * (wide + gap), 28 + (index // columns) * (tall + 54)
        axes = canvas.place(figure, x, y, wide, tall)
        axes.set_ylim(low - room, high + room)
        axes.set_xlim(0, 1)
        axes.locator_params(axis="y", nbins=4)
        axes.grid(axis="y", color=COLOURS["rule"], lw=1)
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        axes.tick_params(axis="x", length=4, color=COLOURS["muted"])
        for role in reversed(roles(study)):
            _draw_curve(axes, [row for row in rows if row.step == step and row.role == role], role)
        canvas.write(figure, x - 20, y - 9, f"step {step:,} ({_share(step, study)})", colour="ink")
    canvas.write_at_foot(figure, width - 10, "from the one network (0) to the other (1)")
    return figure


def _draw_quantity(
    axes: Axes, study: StabilityStudy, rows: Sequence[StabilityRow], quantity: Quantity, steps: Sequence[int]
) -> None:
    for role in reversed(roles(study)):
        for reader, line in ((quantity.solid, "-"), (quantity.dashed, (0, (3, 2)))):
            if reader is not None:
                _draw_line(axes, [row for row in rows if row.role == role], role, reader, line, steps)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)


def _draw_line(
    axes: Axes, rows: Sequence[StabilityRow], role: str, reader: Reader, line: object, steps: Sequence[int]
) -> None:
    """Means over replicates, with a thin bar from the least to the largest."""
    look, solid = look_of(role), line == "-"
    found = {
        index: values
        for index, step in enumerate(steps)
        if (values := [value for row in rows if row.step == step and (value := reader(row)) is not None])
    }
    if not found:
        return
    lows, highs = [min(values) for values in found.values()], [max(values) for values in found.values()]
    axes.vlines(list(found), lows, highs, color=look.colour, lw=1, alpha=0.5, zorder=2)
    axes.plot(
        list(found),
        [statistics.fmean(values) for values in found.values()],
        color=look.colour,
        lw=1.7 if solid else 1.2,
        linestyle=line,
        marker=look.marker,
        markersize=(0.75 if solid else 0.55) * look.size,
        markerfacecolor=look.colour if solid else COLOURS["paper"],
        markeredgecolor=COLOURS["paper"] if solid else look.colour,
        markeredgewidth=0.7 if solid else 1,
        zorder=3 + (role == TICKET),
        clip_on=False,
    )


def _draw_curve(axes: Axes, rows: Sequence[StabilityRow], role: str) -> None:
    """The mean over replicates, and each of them as a thin line."""
    look = look_of(role)
    curves = [curve for row in rows if (curve := main_curve(row)) is not None]
    if not curves:
        return
    if len(curves) > 1:
        for curve in curves:
            axes.plot(curve.alphas, curve.errors, color=look.colour, lw=0.7, alpha=0.35, zorder=2)
    alphas = curves[0].alphas
    alike = [curve.errors for curve in curves if curve.alphas == alphas]
    axes.plot(
        alphas,
        [statistics.fmean(column) for column in zip(*alike, strict=True)],
        color=look.colour,
        lw=1.9 if role == TICKET else 1.5,
        linestyle=look.line,
        zorder=3 + (role == TICKET),
    )


def _step_axis(axes: Axes, steps: Sequence[int], study: StabilityStudy) -> None:
    axes.set_xlim(-0.25, len(steps) - 0.75)
    positions = [float(axes.transData.transform((i, 0))[0]) for i in range(len(steps))]
    labels = [short_count(step) for step in steps]
    shares = [_share(step, study) for step in steps]
    longest = [label if len(label) >= len(share) else share for label, share in zip(labels, shares, strict=True)]
    shown = canvas.fitting(positions, longest)
    axes.set_xticks(shown, [f"{labels[i]}\n{shares[i]}" for i in shown])
    axes.set_xticks(range(len(steps)), minor=True)
    axes.tick_params(axis="x", which="both", length=4, color=COLOURS["muted"])
    axes.tick_params(axis="x", which="major", pad=4)


def _share(step: int, study: StabilityStudy) -> str:
    """Per cent of training: as it was asked for, otherwise with two digits at most."""
    asked = next((rewind.asked for rewind in study.rewinds if rewind.step == step), "")
    if re.fullmatch(r"\d{1,3}(\.\d{1,3})?%", asked):
        return asked
    return f"{100 * step / study.total_steps:.2g}%" if step < study.total_steps else "100%"


def _legend(figure: Figure, study: StabilityStudy, narrow: bool) -> None:
    from matplotlib.lines import Line2D

    handles, labels = [], []
    for role in roles(study):
        look = look_of(role)
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, markersize=0.8 * look.size, lw=1.7))
        labels.append(role_name(role))
    ink = COLOURS["muted"]
    handles += [Line2D([], [], color=ink, lw=1.7), Line2D([], [], color=ink, lw=1.2, linestyle=(0, (3, 2)))]
    labels += ["pruning (solid)", "data order (dashed)"]
    canvas.legend(figure, handles, labels, 2 if narrow else 6, fontsize=11, columnspacing=1.2, handlelength=2.0)


def _l2(distances: Distances | None) -> float | None:
    return None if distances is None else distances.l2


def _angle(distances: Distances | None) -> float | None:
    return None if distances is None else distances.angle
