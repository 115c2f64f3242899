"""Stability over the rewind step: small multiples of accuracy, distance, angle and error barrier, a row a density."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ticketry.records.evidence import StabilityRecord, StabilityRow
from ticketry.records.network import TICKET
from ticketry.report.figures.axes import label_places
from ticketry.report.figures.panels import legend, name_below, note, panels
from ticketry.report.figures.style import COLOURS, look_of
from ticketry.report.tables.evidence import (
    Quantity,
    Reader,
    at_density,
    densities,
    quantities,
    roles,
    sparsest,
)
from ticketry.report.wording import percent, role_name, short_count


def stability_panels(study: StabilityRecord, narrow: bool = False) -> Figure:
    """A column a quantity and a row a density; the rewind steps stand at equal distances, in order."""
    shown, levels = quantities(study), densities(study) or [1.0]
    columns = min(2, len(shown)) if narrow else len(shown)
    bands = -(-len(shown) // columns)
    figure, grid = panels(columns * bands * len(levels), narrow, 185 if narrow else 205, (columns, columns))
    steps = sorted({row.step for row in study.rows})
    for index, density in enumerate(levels):
        rows, band = at_density(study, density), grid[index * columns * bands : (index + 1) * columns * bands]
        for axes, quantity in zip(band, shown, strict=False):
            _draw_quantity(axes, study, rows, quantity, steps)
            _step_axis(axes, steps, study)
            axes.set_title(quantity.name)
        for spare in band[len(shown) :]:
            spare.remove()
        above = ("axes fraction", "axes fraction")
        words = f"weights remaining: {percent(density)} %"
        note(band[0], words, (0, 1), (0, 26), above, color=COLOURS["ink"], weight="bold")
    legend(figure, _entries(study), columnspacing=1.2)
    return figure


def barrier_curves(study: StabilityRecord, narrow: bool = False) -> Figure:
    """The error along the line between the two trained networks at the sparsest level, a panel a rewind step."""
    rows = [row for row in sparsest(study).rows if row.barriers]
    steps = sorted({row.step for row in rows})
    columns = 2 if narrow else len(steps) if len(steps) <= 5 else min(5, -(-len(steps) // 2))
    figure, grid = panels(len(steps), narrow, 160 if narrow else 185, (columns, columns), sharey=True)
    errors = [e for row in rows for curve in [row.barrier] if curve for e in curve.errors if not math.isnan(e)]
    low, high = (min(errors), max(errors)) if errors else (0.0, 1.0)
    room = 0.06 * (high - low) or 1.0
    for axes, step in zip(grid, steps, strict=True):
        axes.set(xlim=(0, 1), ylim=(low - room, high + room))
        axes.locator_params(axis="y", nbins=4)
        label_places(axes.xaxis, [0, 0.5, 1], ["0", "½", "1"])
        for role in reversed(roles(study)):
            _draw_curve(axes, [row for row in rows if row.step == step and row.role == role], role)
        axes.set_title(f"step {step:,} ({_share(step, study)})", color=COLOURS["ink"])
    name_below(figure, "from the one network (0) to the other (1)")
    return figure


def _draw_quantity(
    axes: Axes, study: StabilityRecord, rows: Sequence[StabilityRow], quantity: Quantity, steps: Sequence[int]
) -> None:
    for role in reversed(roles(study)):
        for reader, line in ((quantity.solid, "-"), (quantity.dashed, (0, (3, 2)))):
            if reader is not None:
                _draw_line(axes, [row for row in rows if row.role == role], role, reader, line, steps)
    axes.locator_params(axis="y", nbins=4)


def _draw_line(
    axes: Axes, rows: Sequence[StabilityRow], role: str, reader: Reader, line: object, steps: Sequence[int]
) -> None:
    """Means over replicates, with a thin bar from the least to the largest."""
    solid = line == "-"
    options = look_of(role, size=0.75 if solid else 0.55) | {"linestyle": line, "lw": 1.7 if solid else 1.2}
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


def _draw_curve(axes: Axes, rows: Sequence[StabilityRow], role: str) -> None:
    """The mean over replicates, and each of them as a thin line."""
    look = {name: look_of(role)[name] for name in ("color", "linestyle")}
    curves = [curve for row in rows if (curve := row.barrier) is not None]
    if not curves:
        return
    if len(curves) > 1:
        for curve in curves:
            axes.plot(curve.alphas, curve.errors, color=look["color"], lw=0.7, alpha=0.35, zorder=2)
    alike = [curve.errors for curve in curves if curve.alphas == curves[0].alphas]
    means, front = [statistics.fmean(column) for column in zip(*alike, strict=True)], role == TICKET
    axes.plot(curves[0].alphas, means, lw=1.9 if front else 1.5, zorder=3 + front, **look)


def _step_axis(axes: Axes, steps: Sequence[int], study: StabilityRecord) -> None:
    axes.set_xlim(-0.25, len(steps) - 0.75)
    labels = [f"{short_count(step)}\n{_share(step, study)}" for step in steps]
    label_places(axes.xaxis, range(len(steps)), labels, fit=True)


def _share(step: int, study: StabilityRecord) -> str:
    """Per cent of training: as it was asked for, otherwise with two digits at most."""
    asked = next((rewind.asked for rewind in study.rewinds if rewind.step == step), "")
    if re.fullmatch(r"\d{1,3}(\.\d{1,3})?%", asked):
        return asked
    return f"{100 * step / study.total_steps:.2g}%" if step < study.total_steps else "100%"


def _entries(study: StabilityRecord) -> dict[str, Line2D]:
    roles_shown = {role_name(role): look_of(role, size=0.8) | {"linestyle": "-"} for role in roles(study)}
    muted: dict[str, Any] = {"color": COLOURS["muted"]}
    kinds = {"pruning (solid)": muted, "data order (dashed)": muted | {"linestyle": (0, (3, 2)), "lw": 1.2}}
    return {name: Line2D([], [], **({"lw": 1.7} | look)) for name, look in (roles_shown | kinds).items()}
