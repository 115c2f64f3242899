"""When a network was pruned early: what the detector compared at each look, its threshold, and the moment chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.report.aggregate import Results
from ticketry.report.figures import canvas
from ticketry.report.figures.svg import COLOURS
from ticketry.report.moments import DISTANCE, Moment
from ticketry.report.record import TICKET
from ticketry.report.wording import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 6
"""Densities that are drawn: as many as there are shades."""
_MOST_NAMED = 4
"""Replicates whose lines have names."""
_LOW = 1e-4
"""What is smaller is drawn there."""
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Watched:
    """One density: when each replicate was pruned to it."""

    level: int
    density: float
    moments: dict[int, Moment]
    """By replicate."""

    @property
    def threshold(self) -> float:
        return next(iter(self.moments.values())).threshold

    @property
    def by_distance(self) -> bool:
        return all(moment.detector == DISTANCE for moment in self.moments.values())


def watched(results: Results) -> list[Watched]:
    """The densities for which something was looked at, densest first; at most six, evenly spread."""
    found = []
    for group in sorted(results.of_role(TICKET), key=lambda group: -group.density):
        moments = {r: point.moment for r, point in group.points.items() if point.moment and point.moment.looks}
        if moments:
            found.append(Watched(group.level, group.density, moments))
    if len(found) <= _MOST:
        return found
    return [found[round(index * (len(found) - 1) / (_MOST - 1))] for index in range(_MOST)]


def moment_figure(results: Results, shown: Sequence[Watched], narrow: bool = False) -> Figure:
    """By distance, one panel for all densities and one of the distance itself; by masks, a panel for each density."""
    per_epoch = results.run.steps.get("per_epoch")
    epoch = per_epoch if isinstance(per_epoch, int) and per_epoch > 0 else 0
    together = all(one.by_distance for one in shown)
    panels = [list(shown)] if together else [[one] for one in shown]
    count = len(panels) + together
    columns = 1 if narrow else min(2, count)
    width, left, tall, gap = (360, 44, 190, 0) if narrow else (860, 48, 240, 62)
    wide = (width - left - 16 - gap * (columns - 1)) / columns
    rows, handles, labels = -(-count // columns), *_legend(shown, together)
    across = canvas.legend_columns(labels, width)
    top = 34 + 20 * -(-len(handles) // across)
    block = tall + 78
    figure = canvas.figure_of(width, top + rows * block - 14)
    canvas.legend(figure, handles, labels, across, fontsize=11)
    last = max(max(m.step, m.looks[-1][0]) for one in shown for m in one.moments.values())
    spots = [(left + (i % columns) * (wide + gap), top + (i // columns) * block) for i in range(count)]
    for panel, (x, y) in zip(panels, spots, strict=False):
        axes = canvas.place(figure, x, y, wide, tall)
        _compared(axes, panel, shown, together)
        _training_axis(axes, last, epoch)
        what = "change of the distance since the look before, share of the first"
        if not together:
            what = f"{canvas.tick_label(panel[0].density)} % of weights: mask's difference to the look before"
        canvas.write(figure, x - left + 2 if x == left else x - 36, y - 10, _short(what, narrow))
    if together:
        x, y = spots[-1]
        axes = canvas.place(figure, x, y, wide, tall)
        _distances(axes, shown)
        _training_axis(axes, last, epoch)
        canvas.write(figure, x - left + 2 if x == left else x - 36, y - 10, "distance from the initialisation")
    canvas.write_at_foot(
        figure, width - 16, "training steps (and epochs) before pruning" if epoch else "training steps"
    )
    return figure


def _short(what: str, narrow: bool) -> str:
    return what.replace("change of the distance since", "change since") if narrow else what


def _compared(axes: Axes, panel: Sequence[Watched], shown: Sequence[Watched], together: bool) -> None:
    """Lines on a log scale, thresholds across, and a mark where each replicate was pruned."""
    axes.set_yscale("log")
    values = [one.threshold for one in panel]
    for replicate, moment in _longest(panel).items():
        points = [(step, max(value, _LOW)) for step, value in moment.compared if not math.isnan(value)]
        values += [value for _, value in points]
        _line(axes, points, replicate)
    for one in panel:
        colour = COLOURS[f"step-{_shade(shown.index(one), len(shown))}"]
        axes.axhline(max(one.threshold, _LOW), color=colour, lw=1.3, zorder=2)
        for moment in one.moments.values():
            spot = (moment.step, max(moment.at, _LOW) if not math.isnan(moment.at) else max(one.threshold, _LOW))
            _mark(axes, spot, moment, colour)
    low, high = max(min(values), _LOW) / 1.35, max(values) * 1.35
    axes.set_ylim(low, high)
    _log_ticks(axes, low, high)


def _distances(axes: Axes, shown: Sequence[Watched]) -> None:
    for replicate, moment in _longest(shown).items():
        _line(axes, [(0, 0.0), *(look for look in moment.looks if not math.isnan(look[1]))], replicate)
    for index, one in enumerate(shown):
        for moment in one.moments.values():
            value = next((value for step, value in reversed(moment.looks) if step <= moment.step), 0.0)
            if not math.isnan(value):
                _mark(axes, (moment.step, value), moment, COLOURS[f"step-{_shade(index, len(shown))}"])
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=6)
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)


def _longest(panel: Sequence[Watched]) -> dict[int, Moment]:
    """Of each replicate the density that was looked at most often: the others have the beginning of the same line."""
    found: dict[int, Moment] = {}
    for one in panel:
        for replicate, moment in one.moments.items():
            if replicate not in found or len(moment.looks) > len(found[replicate].looks):
                found[replicate] = moment
    return dict(sorted(found.items()))


def _line(axes: Axes, points: Sequence[tuple[float, float]], replicate: int) -> None:
    axes.plot(
        [step for step, _ in points],
        [value for _, value in points],
        color=COLOURS["muted"],
        lw=1.3,
        linestyle=_LINES[replicate % len(_LINES)],
        marker="o",
        markersize=2.4,
        zorder=3,
    )


def _mark(axes: Axes, spot: tuple[float, float], moment: Moment, colour: str) -> None:
    """Full where it was detected, hollow where it was the latest step allowed."""
    axes.plot(
        *spot,
        marker="o" if moment.detected else "D",
        markersize=8 if moment.detected else 7,
        markerfacecolor=colour if moment.detected else COLOURS["paper"],
        markeredgecolor=COLOURS["paper"] if moment.detected else colour,
        markeredgewidth=0.9 if moment.detected else 1.6,
        linestyle="none",
        clip_on=False,
        zorder=5,
    )


def _legend(shown: Sequence[Watched], together: bool) -> tuple[list[Any], list[str]]:
    """Densities with their thresholds, the two marks, and the lines of replicates where they are few."""
    from matplotlib.lines import Line2D

    handles, labels = [], []
    for index, one in enumerate(shown):
        handles.append(Line2D([], [], color=COLOURS[f"step-{_shade(index, len(shown))}"], lw=2.4))
        name = f"{canvas.tick_label(one.density)} %"
        labels.append(f"{name}: threshold {one.threshold:.3g}")
    muted = COLOURS["muted"]
    moments = [moment for one in shown for moment in one.moments.values()]
    if any(moment.detected for moment in moments):
        handles.append(Line2D([], [], color=muted, marker="o", markersize=8, linestyle="none"))
        labels.append("pruned: detected")
    if not all(moment.detected for moment in moments):
        hollow: dict[str, Any] = {"markerfacecolor": COLOURS["paper"], "markeredgecolor": muted, "markeredgewidth": 1.6}
        handles.append(Line2D([], [], color=muted, marker="D", markersize=7, linestyle="none", **hollow))
        labels.append("pruned: latest allowed")
    replicates = sorted({replicate for one in shown for replicate in one.moments})
    if 1 < len(replicates) <= _MOST_NAMED:
        handles += [Line2D([], [], color=muted, lw=1.3, linestyle=_LINES[r % len(_LINES)]) for r in replicates]
        labels += [f"replicate {replicate}" for replicate in replicates]
    return handles, labels


def _shade(index: int, count: int) -> int:
    """The palest only where all are needed: of one density the darkest."""
    first = 1 if count == _MOST else 2
    return first + index * (_MOST - first) // (count - 1) if count > 1 else _MOST


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import NullLocator

    ticks = [digit * 10.0**power for power in range(-5, 4) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high] or [low]
    if len(inside) > 8:
        inside = [tick for tick in inside if f"{tick:.0e}".startswith("1")]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(inside, [f"{tick:.4g}" for tick in inside])
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)


def _training_axis(axes: Axes, last: float, epoch: int) -> None:
    """From the initialisation to a little beyond the last moment, ticks at whole epochs where those are known."""
    axes.set_xlim(0, 1.04 * max(last, 1))
    if epoch and last >= 2 * epoch:
        stride = epoch * _round_up(last / epoch / 6)
        ticks = [float(step) for step in range(0, int(last) + 1, stride)]
    else:
        axes.locator_params(axis="x", nbins=6)
        ticks = [float(tick) for tick in axes.get_xticks() if 0 <= tick <= last]
    labels = [short_count(tick) + (f"\n{tick / epoch:.3g} ep" if epoch else "") for tick in ticks]
    positions = [float(axes.transData.transform((tick, 1))[0]) for tick in ticks]
    shown = canvas.fitting(positions, [max(label.split("\n"), key=len) for label in labels])
    axes.set_xticks([ticks[i] for i in shown], [labels[i] for i in shown])
    axes.tick_params(axis="x", length=4, color=COLOURS["muted"])


def _round_up(number: float) -> int:
    """To 1, 2, 5, 10, 20, 50 …"""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= number:
                return digit * power
        power *= 10
