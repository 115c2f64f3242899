"""While masks were searched for: what gates did round by round, and what detectors saw before they pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ticketry.records.network import Moment
from ticketry.report.figures.axes import general, label_places, log_axis, tick_label
from ticketry.report.figures.panels import legend, name_below, panels
from ticketry.report.figures.style import COLOURS, SHADES, shade
from ticketry.report.tables.results import Results
from ticketry.report.tables.search_progress import Chain, Watched
from ticketry.report.wording import short_count


def density_over_training(shown: Sequence[Chain], narrow: bool = False) -> Figure:
    """The share of gates that are on against the steps of the search, round after round; a line a search."""
    figure, (axes,) = panels(1, narrow, 290 if narrow else 350)
    paths = [chain.path for chain in shown]
    low = 100 * min((share for _, shares in paths for share in shares if share > 0), default=1.0)
    log_axis(axes, "y", max(low, 1e-4) / 1.25, 112, general)
    lines = {}
    for index, (chain, (steps, shares)) in enumerate(zip(shown, paths, strict=True)):
        on = [100 * max(share, 1e-9) for share in shares]
        (lines[chain.name],) = axes.plot(steps, on, color=shade(index, len(shown)), lw=1.8)
    axes.set_xlim(0, max(1, *(steps[-1] for steps, _ in paths)))
    boundary = 0
    for one in max(shown, key=lambda chain: len(chain.rounds)).rounds[:-1]:
        boundary += one.steps
        axes.axvline(boundary, color=COLOURS["rule"], lw=1, zorder=0)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda step, _: short_count(step))
    axes.set_title("gates that are on, % (log scale)")
    axes.set_xlabel("training steps of the search; vertical lines: a new round")
    legend(figure, lines, "s0 (density at the end):", handlelength=1.4)
    return figure


def gate_histograms(shown: Sequence[Chain], narrow: bool = False) -> Figure:
    """Gates by how far they are open when the last round ends, a small panel for each search."""
    figure, axes = panels(len(shown), narrow, 140 if narrow else 180, (3, 1), sharey=True)
    most = max(1.0, *(max(chain.rounds[-1].histogram) for chain in shown))
    powers = [10.0**power for power in range(0, math.ceil(math.log10(most)) + 1, 2)]
    for index, (panel, chain) in enumerate(zip(axes, shown, strict=True)):
        counts = chain.rounds[-1].histogram
        size = 1 / len(counts)
        middles, heights = [(bin_ + 0.5) * size for bin_ in range(len(counts))], [max(count, 0.1) for count in counts]
        panel.bar(middles, heights, width=0.9 * size, color=shade(index, len(shown)))
        panel.set(yscale="log", ylim=(0.5, 2 * most), xlim=(0, 1))
        label_places(panel.xaxis, [0, 0.5, 1], ["0", "0.5", "1"])
        label_places(panel.yaxis, powers, [short_count(power) for power in powers])
        panel.set_title(chain.name, color=COLOURS["ink"])
    name_below(figure, "gate, from 0 (off) to 1; heights: number of gates (log scale)")
    return figure


# -- when detectors pruned ---------------------------------------------------------------------------------------------

_MOST_NAMED = 4
"""Replicates whose lines have names."""
_LOW = 1e-4
"""What is smaller is drawn there."""
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_FULL: Mapping[str, Any] = {"marker": "o", "markersize": 8, "markeredgewidth": 0.9, "linestyle": "none"}
_HOLLOW: Mapping[str, Any] = {"marker": "D", "markersize": 7, "markeredgewidth": 1.6, "linestyle": "none"}


def moment_figure(results: Results, shown: Sequence[Watched], narrow: bool = False) -> Figure:
    """By distance, one panel for all densities and one of the distance itself; by masks, a panel for each density."""
    per_epoch = results.run.steps.per_epoch
    epoch = per_epoch if isinstance(per_epoch, int) and per_epoch > 0 else 0
    together = all(one.by_distance for one in shown)
    groups = [list(shown)] if together else [[one] for one in shown]
    figure, axes = panels(len(groups) + together, narrow, 265 if narrow else 310)
    # Of one density the darkest; the palest only where all are needed.
    colours = [shade(index, len(shown), 1 if len(shown) == SHADES else 2) for index in range(len(shown))]
    last = max(max(m.step, m.looks[-1][0]) for one in shown for m in one.moments.values())
    for each in axes:
        _training_axis(each, last, epoch)
    for each, group in zip(axes, groups, strict=False):
        _compared(each, group, colours if together else [colours[shown.index(group[0])]])
        what = "change of the distance since the measurement before, share of the first"
        if not together:
            what = f"{tick_label(group[0].density)} % of weights: mask's difference to the one before"
        each.set_title(what.replace("change of the distance since", "change since") if narrow else what)
    if together:
        _distances(axes[-1], shown, colours)
        axes[-1].set_title("distance from the initialisation")
    name_below(figure, "training steps (and epochs) before pruning" if epoch else "training steps")
    legend(figure, _entries(shown, colours))
    return figure


def _compared(axes: Axes, group: Sequence[Watched], colours: Sequence[str]) -> None:
    """Lines on a log scale, thresholds across, and a mark where each replicate was pruned."""
    values = [one.threshold for one in group]
    for replicate, moment in _longest(group).items():
        points = [(step, max(value, _LOW)) for step, value in moment.compared if not math.isnan(value)]
        values += [value for _, value in points]
        _line(axes, points, replicate)
    for one, colour in zip(group, colours, strict=True):
        axes.axhline(max(one.threshold, _LOW), color=colour, lw=1.3, zorder=2)
        for moment in one.moments.values():
            at = one.threshold if math.isnan(moment.value_at_pruning) else moment.value_at_pruning
            _mark(axes, (moment.step, max(at, _LOW)), moment, colour)
    log_axis(axes, "y", max(min(values), _LOW) / 1.35, max(values) * 1.35, general)


def _distances(axes: Axes, shown: Sequence[Watched], colours: Sequence[str]) -> None:
    for replicate, moment in _longest(shown).items():
        _line(axes, [(0, 0.0), *(look for look in moment.looks if not math.isnan(look[1]))], replicate)
    for one, colour in zip(shown, colours, strict=True):
        for moment in one.moments.values():
            value = next((value for step, value in reversed(moment.looks) if step <= moment.step), 0.0)
            if not math.isnan(value):
                _mark(axes, (moment.step, value), moment, colour)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=6)


def _longest(group: Sequence[Watched]) -> dict[int, Moment]:
    """Of each replicate the density that was looked at most often: the others have the beginning of the same line."""
    found: dict[int, Moment] = {}
    for one in group:
        for replicate, moment in one.moments.items():
            if replicate not in found or len(moment.looks) > len(found[replicate].looks):
                found[replicate] = moment
    return dict(sorted(found.items()))


def _line(axes: Axes, points: Sequence[tuple[float, float]], replicate: int) -> None:
    options = {"color": COLOURS["muted"], "lw": 1.3, "linestyle": _LINES[replicate % len(_LINES)], "zorder": 3}
    axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=2.4, markeredgewidth=0, **options)


def _mark(axes: Axes, spot: tuple[float, float], moment: Moment, colour: str) -> None:
    axes.plot(*spot, clip_on=False, zorder=5, **_moment_mark(moment.detected, colour))


def _moment_mark(detected: bool, colour: str) -> dict[str, Any]:
    """Full where it was detected, hollow where it was the latest step allowed."""
    if detected:
        return {**_FULL, "markerfacecolor": colour, "markeredgecolor": COLOURS["paper"]}
    return {**_HOLLOW, "markerfacecolor": COLOURS["paper"], "markeredgecolor": colour}


def _entries(shown: Sequence[Watched], colours: Sequence[str]) -> dict[str, Line2D]:
    """Densities with their thresholds, the two marks, and the lines of replicates where they are few."""
    entries = {
        f"{tick_label(one.density)} %: threshold {one.threshold:.3g}": Line2D([], [], color=colour, lw=2.4)
        for one, colour in zip(shown, colours, strict=True)
    }
    found = {moment.detected for one in shown for moment in one.moments.values()}
    for detected, words in ((True, "pruned: detected"), (False, "pruned: latest allowed")):
        if detected in found:
            entries[words] = Line2D([], [], **_moment_mark(detected, COLOURS["muted"]))
    replicates = sorted({replicate for one in shown for replicate in one.moments})
    if 1 < len(replicates) <= _MOST_NAMED:
        for replicate in replicates:
            line = _LINES[replicate % len(_LINES)]
            entries[f"replicate {replicate}"] = Line2D([], [], color=COLOURS["muted"], lw=1.3, linestyle=line)
    return entries


def _training_axis(axes: Axes, last: float, epoch: int) -> None:
    """From the initialisation to a little beyond the last moment, ticks at whole epochs where those are known."""
    axes.set_xlim(0, 1.04 * max(last, 1))
    unit = epoch if epoch and last >= 2 * epoch else 1
    steps = MaxNLocator(6, steps=[1, 2, 5, 10], integer=True).tick_values(0, max(last, 1) / unit)
    ticks = [float(unit * tick) for tick in steps if 0 <= unit * tick <= last]
    labels = [short_count(tick) + (f"\n{tick / epoch:.3g} ep" if epoch else "") for tick in ticks]
    label_places(axes.xaxis, ticks, labels, fit=True)
