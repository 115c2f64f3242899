"""Time to ticket: the training that it took until a mask of each density was known."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.report.aggregate import Results
from ticketry.report.figures import canvas
from ticketry.report.figures.lines import lines_of
from ticketry.report.figures.overlay import Series
from ticketry.report.figures.svg import COLOURS
from ticketry.report.record import DENSE, TICKET
from ticketry.report.wording import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class KnownPoint:
    """When the masks of one level were known, mean over the replicates that got there."""

    level: int
    density: float
    steps: float
    """Of all training that the mask needed: of an iterative search the dense network and every denser ticket; of gates
    their rounds. The training of the ticket itself is not among them."""
    n: int


def known_points(results: Results) -> list[KnownPoint]:
    """A point a level, densest first. Empty without steps."""
    found: dict[int, list[tuple[float, float]]] = {}
    for replicate in sorted({point.replicate for point in results.run.points}):
        spent = 0.0
        networks = [p for p in results.run.points if p.replicate == replicate and p.role in (DENSE, TICKET)]
        for point in sorted(networks, key=lambda point: (point.role == TICKET, point.level)):
            if point.steps is None:
                break
            if point.role == TICKET:
                steps = spent if point.search_steps is None else float(point.search_steps)
                found.setdefault(point.level, []).append((point.density, steps))
            spent += point.steps
    points = [
        KnownPoint(
            level,
            statistics.fmean(density for density, _ in entries),
            statistics.fmean(steps for _, steps in entries),
            len(entries),
        )
        for level, entries in found.items()
    ]
    return sorted(points, key=lambda point: -point.density)


def steps_to_ticket(series: Sequence[Series], narrow: bool = False) -> Figure:
    """Steps until a mask was known against its density, both on log scales, in lines as `lines_of` says."""
    shown = [(one, points) for one in series if (points := known_points(one.results))]
    width, left, tall = (360, 44, 220) if narrow else (860, 52, 280)
    labels = [one.label for one, _ in shown]
    columns = canvas.legend_columns(labels, width)
    top = 30 + 20 * -(-len(shown) // columns)
    figure = canvas.figure_of(width, top + tall + 60)
    axes = canvas.place(figure, left, top, width - left - 16, tall)
    axes.set_yscale("log")
    handles = []
    for one, points in shown:
        drawn = [
            axes.plot(
                [100 * point.density for point in line],
                [max(point.steps, 1.0) for point in line],
                color=one.colour,
                lw=1.6,
                marker=one.marker,
                markersize=6,
                markeredgecolor=COLOURS["paper"],
                markeredgewidth=0.8,
                clip_on=False,
            )[0]
            for line in lines_of(points)
        ]
        handles.append(drawn[0])
    steps = [max(point.steps, 1.0) for _, points in shown for point in points]
    densities = sorted({point.density for _, points in shown for point in points}, reverse=True)
    axes.set_ylim(min(steps) / 1.3, max(steps) * 1.3)
    canvas.density_axis(axes, densities)
    _step_axis(axes, min(steps) / 1.3, max(steps) * 1.3)
    canvas.legend(figure, handles, labels, columns, fontsize=11)
    canvas.write(figure, 2, top - 8, "training steps until the mask was known (log scale)")
    canvas.write_at_foot(figure, width - 16, "weights remaining, % (log scale)")
    return figure


def _step_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import NullLocator

    ticks = [digit * 10.0**power for power in range(13) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high] or [low]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(inside, [short_count(tick) for tick in inside])
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)
