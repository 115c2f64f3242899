"""Draw masks (density of layers, pictures), and how they were found (gates, detectors that decide when to prune)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ticketry.records.network import Moment
from ticketry.records.ticket import LayerPicture
from ticketry.report.figures.layout import (
    add_legend,
    density_tick_label,
    figure_with_panels,
    number_tick_label,
    set_labelled_ticks,
    set_shared_x_label,
    set_up_log_axis,
)
from ticketry.report.figures.style import COLOURS, SHADES, sequence_colour
from ticketry.report.tables.masks import (
    DetectorMoments,
    Picture,
    RoundChain,
    StructuredLevel,
    mask_pixels,
    mean_retained_share,
    pick_evenly_spaced,
    retained_shares,
    to_grey_pixels,
    to_opaque_pixels,
    unpack_bits,
)
from ticketry.report.tables.results import LayerProfile, Results
from ticketry.report.wording import percent, printable, short_count


def density_by_layer(profiles: Sequence[LayerProfile], narrow: bool = False) -> Figure:
    """Draw the density of each layer, as the mean over replicates, for up to six levels of the run."""
    shown = pick_evenly_spaced(profiles, 4 if narrow else SHADES)
    names = list(dict.fromkeys(name for profile in shown for name in profile.layers))
    row = 30 if len(names) <= 8 else 20 if len(names) <= 24 else 15
    figure, (axes,) = figure_with_panels(1, narrow, row * len(names) + 52)
    axes.set_ylim(len(names) - 0.5, -0.5)
    set_labelled_ticks(axes.yaxis, range(len(names)), shorten_layer_names(names, 16 if narrow else 34))
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    densities = [density for profile in shown for density in profile.layers.values()]
    lowest = min((density for density in densities if density > 0), default=0.5)
    empty = lowest / 2  # position of an empty layer on the logarithmic axis
    floor = empty if min(densities) == 0 else lowest
    ticks = set_up_log_axis(axes, "x", 100, 100 * min(floor, 0.5) / 1.06, number_tick_label)
    if floor == empty:
        ticks = [*(tick for tick in ticks if tick > 100 * empty), 100 * empty]
        set_labelled_ticks(axes.xaxis, ticks, [*map(number_tick_label, ticks[:-1]), "0"], fit=True)
    axes.grid(axis="x")
    axes.set_xlabel("weights remaining in the layer, % (log scale)")
    lines = {}
    for index, profile in enumerate(shown):
        shares = [100 * max(profile.layers.get(name, math.nan), floor) for name in names]
        colour = sequence_colour(index, len(shown))
        (line,) = axes.plot(shares, range(len(names)), color=colour, lw=1.2, marker="o", clip_on=False)
        lines[density_tick_label(profile.density)] = line
    add_legend(figure, lines, "all prunable weights together, % remaining:", handlelength=1.2)
    return figure


def shorten_layer_names(names: Sequence[str], most: int) -> list[str]:
    """Shorten layer names: remove ``.weight`` if all names end so, and cut the beginning of names that are too long."""
    if all(name.endswith(".weight") for name in names):
        names = [name.removesuffix(".weight") for name in names]
    return [printable(name if len(name) <= most else "…" + name[1 - most :]).replace("\n", " ") for name in names]


def mask_pictures(shown: Sequence[Picture], narrow: bool = False) -> Figure:
    """Draw masks of first layers: white weights are retained, black weights are removed; colours are input channels."""
    images = [mask_pixels(picture.layer) for picture in shown]
    lines = [_caption_lines(picture, narrow) for picture in shown]
    tall = (170 if narrow else 270) * max(pixels.shape[0] / pixels.shape[1] for pixels in images)
    figure, axes = figure_with_panels(3, narrow, min(tall, 500) + 15 * max(map(len, lines)) + 16, (3, 2))
    for spare in axes[len(shown) :]:
        spare.remove()
    for each, pixels, words in zip(axes, images, lines, strict=False):
        each.set_axis_off()
        each.set_anchor("NW")
        each.imshow(pixels, interpolation="none")
        each.set_title("\n".join(words), color=COLOURS["ink"])
    return figure


def _caption_lines(picture: Picture, narrow: bool) -> list[str]:
    """Return the caption of a picture: shares of retained weights, and for a mask of inputs, which share is white."""
    layer = picture.layer
    lines = [
        f"{percent(picture.density)} % of all weights",
        f"of this layer: {_percent_text(mean_retained_share(layer))} %",
    ]
    if layer.kind == "inputs":
        white = f"white: {_percent_text(float(retained_shares(layer).mean(axis=0).max()))} %"
        lines[1:] = [lines[1], white] if narrow else [f"{lines[1]}; {white}"]
    return lines


def _percent_text(share: float) -> str:
    return percent(share) if share > 0 else "0"


_MOST_EDGES = 48
"""Largest number of groups whose edges are marked; more marks would touch."""


def structure_pictures(shown: StructuredLevel, narrow: bool = False) -> Figure:
    """Draw each layer's mask before and after structuring: white is retained, a mark at the left starts a group."""
    found, copies, wide = shown.structures[0].pictures, 2 if narrow else 1, 340 if narrow else 400
    heights = [
        min(max(wide * picture.shape[0] / picture.shape[1], 60.0), 260.0)
        + 16 * len(_picture_title_lines(picture, narrow))
        + 36
        for picture in found
    ]
    heights = [height for height in heights for _ in range(copies)]
    options = {"height_ratios": heights}
    figure, axes = figure_with_panels(2 * len(found), narrow, sum(heights) / len(heights), (2, 1), **options)
    for number, picture in enumerate(found):
        for each, when in zip(axes[2 * number :], ("before", "after"), strict=False):
            pixels = unpack_bits(picture.before if when == "before" else picture.after, picture.shape)
            words = f"{when}: {percent(float(pixels.mean()))} % of the weights shown"
            title = _picture_title_lines(picture, narrow) if when == "before" else [] if narrow else [""]
            each.set_title("\n".join([*title, words]), color=COLOURS["ink"])
            each.set_axis_off()
            each.imshow(to_opaque_pixels(to_grey_pixels(pixels)), interpolation="none", aspect="auto")
            if len(picture.groups) <= _MOST_EDGES:
                starts = 1 - numpy.cumsum([0, *picture.groups]) / len(pixels)
                edge: dict[str, Any] = {"color": COLOURS["ticket"], "lw": 1, "clip_on": False}
                each.hlines(starts, -0.02, -0.005, transform=each.transAxes, **edge)
    return figure


def _picture_title_lines(picture: LayerPicture, narrow: bool) -> list[str]:
    """Return the title of a picture as a list of lines, one line or, on a narrow figure, up to two."""
    width = picture.shape[1]
    parts = [f"{picture.name}: {picture.rows} rows, {picture.columns} columns"]
    if picture.every > 1:
        parts.append(f"one row in {picture.every}")
    if width < picture.columns:
        parts.append(f"the first {width} columns")
    if len(parts) == 1:
        return parts
    shown = f"shown: {', '.join(parts[1:])}"
    return [parts[0], shown] if narrow else [f"{parts[0]}; {shown}"]


def density_over_training(shown: Sequence[RoundChain], narrow: bool = False) -> Figure:
    """Draw the share of gates that are on against the steps of the search, with a line for each search."""
    figure, (axes,) = figure_with_panels(1, narrow, 290 if narrow else 350)
    paths = [chain.gate_shares_by_step for chain in shown]
    low = 100 * min((share for _, each in paths for share in each if share > 0), default=1.0)
    set_up_log_axis(axes, "y", max(low, 1e-4) / 1.25, 112, number_tick_label)
    lines = {}
    for index, (chain, (steps, open_shares)) in enumerate(zip(shown, paths, strict=True)):
        on = [100 * max(share, 1e-9) for share in open_shares]
        (lines[chain.name],) = axes.plot(steps, on, color=sequence_colour(index, len(shown)), lw=1.8)
    axes.set_xlim(0, max(1, *(steps[-1] for steps, _ in paths)))
    boundary = 0
    for one in max(shown, key=lambda chain: len(chain.rounds)).rounds[:-1]:
        boundary += one.steps
        axes.axvline(boundary, color=COLOURS["rule"], lw=1, zorder=0)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda step, _: short_count(step))
    axes.set_title("gates that are on, % (log scale)")
    axes.set_xlabel("training steps of the search; vertical lines: a new round")
    add_legend(figure, lines, "s0 (density at the end):", handlelength=1.4)
    return figure


def gate_histograms(shown: Sequence[RoundChain], narrow: bool = False) -> Figure:
    """Draw histograms of the values of gates after the last round, with a panel for each search."""
    figure, axes = figure_with_panels(len(shown), narrow, 140 if narrow else 180, (3, 1), sharey=True)
    most = max(1.0, *(max(chain.rounds[-1].histogram) for chain in shown))
    powers = [10.0**power for power in range(0, math.ceil(math.log10(most)) + 1, 2)]
    for index, (panel, chain) in enumerate(zip(axes, shown, strict=True)):
        counts = chain.rounds[-1].histogram
        size = 1 / len(counts)
        middles, heights = [(bin_ + 0.5) * size for bin_ in range(len(counts))], [max(count, 0.1) for count in counts]
        panel.bar(middles, heights, width=0.9 * size, color=sequence_colour(index, len(shown)))
        panel.set(yscale="log", ylim=(0.5, 2 * most), xlim=(0, 1))
        set_labelled_ticks(panel.xaxis, [0, 0.5, 1], ["0", "0.5", "1"])
        set_labelled_ticks(panel.yaxis, powers, [short_count(power) for power in powers])
        panel.set_title(chain.name, color=COLOURS["ink"])
    set_shared_x_label(figure, "gate, from 0 (off) to 1; heights: number of gates (log scale)")
    return figure


_MOST_NAMED = 4
_LOW = 1e-4
"""Smallest value that is drawn; smaller values are drawn at this value."""
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_FULL: Mapping[str, Any] = {"marker": "o", "markersize": 8, "markeredgewidth": 0.9, "linestyle": "none"}
_HOLLOW: Mapping[str, Any] = {"marker": "D", "markersize": 7, "markeredgewidth": 1.6, "linestyle": "none"}


def moment_figure(results: Results, shown: Sequence[DetectorMoments], narrow: bool = False) -> Figure:
    """Draw the measurements by which detectors chose when to prune, and the step at which each replicate was pruned.

    A detector of weight distances has two panels: the distances and their changes. A detector of mask changes has a
    panel for each density.
    """
    per_epoch = results.run.steps.per_epoch
    epoch = per_epoch if isinstance(per_epoch, int) and per_epoch > 0 else 0
    together = all(one.uses_distance_detector for one in shown)
    groups = [list(shown)] if together else [[one] for one in shown]
    figure, axes = figure_with_panels(len(groups) + together, narrow, 265 if narrow else 310)
    colours = [sequence_colour(index, len(shown), 1 if len(shown) == SHADES else 2) for index in range(len(shown))]
    last = max(max(m.step, m.measurements[-1][0]) for one in shown for m in one.moments.values())
    for each in axes:
        _set_up_training_axis(each, last, epoch)
    for each, group in zip(axes, groups, strict=False):
        _draw_values_and_thresholds(each, group, colours if together else [colours[shown.index(group[0])]])
        what = "change of the distance since the measurement before, share of the first"
        if not together:
            what = f"{density_tick_label(group[0].density)} % of weights: mask's difference to the one before"
        each.set_title(what.replace("change of the distance since", "change since") if narrow else what)
    if together:
        _draw_distances(axes[-1], shown, colours)
        axes[-1].set_title("distance from the initialisation")
    set_shared_x_label(figure, "training steps (and epochs) before pruning" if epoch else "training steps")
    add_legend(figure, _legend_entries(shown, colours))
    return figure


def _draw_values_and_thresholds(axes: Axes, group: Sequence[DetectorMoments], colours: Sequence[str]) -> None:
    """Draw each replicate's measurements on a log scale, the thresholds, and marks where replicates were pruned."""
    values = [one.threshold for one in group]
    for replicate, moment in _pruning_with_most_measurements(group).items():
        points = [(step, max(value, _LOW)) for step, value in moment.compared_measurements if not math.isnan(value)]
        values += [value for _, value in points]
        _draw_measurements(axes, points, replicate)
    for one, colour in zip(group, colours, strict=True):
        axes.axhline(max(one.threshold, _LOW), color=colour, lw=1.3, zorder=2)
        for moment in one.moments.values():
            at = one.threshold if math.isnan(moment.value_at_pruning) else moment.value_at_pruning
            _mark_pruning_step(axes, (moment.step, max(at, _LOW)), moment, colour)
    set_up_log_axis(axes, "y", max(min(values), _LOW) / 1.35, max(values) * 1.35, number_tick_label)


def _draw_distances(axes: Axes, shown: Sequence[DetectorMoments], colours: Sequence[str]) -> None:
    for replicate, moment in _pruning_with_most_measurements(shown).items():
        _draw_measurements(
            axes, [(0, 0.0), *(look for look in moment.measurements if not math.isnan(look[1]))], replicate
        )
    for one, colour in zip(shown, colours, strict=True):
        for moment in one.moments.values():
            value = next((value for step, value in reversed(moment.measurements) if step <= moment.step), 0.0)
            if not math.isnan(value):
                _mark_pruning_step(axes, (moment.step, value), moment, colour)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=6)


def _pruning_with_most_measurements(group: Sequence[DetectorMoments]) -> dict[int, Moment]:
    """Return, for each replicate, the record of pruning with the most measurements, which include all others."""
    found: dict[int, Moment] = {}
    for one in group:
        for replicate, moment in one.moments.items():
            if replicate not in found or len(moment.measurements) > len(found[replicate].measurements):
                found[replicate] = moment
    return dict(sorted(found.items()))


def _draw_measurements(axes: Axes, points: Sequence[tuple[float, float]], replicate: int) -> None:
    options = {"color": COLOURS["muted"], "lw": 1.3, "linestyle": _LINES[replicate % len(_LINES)], "zorder": 3}
    axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=2.4, markeredgewidth=0, **options)


def _mark_pruning_step(axes: Axes, spot: tuple[float, float], moment: Moment, colour: str) -> None:
    axes.plot(*spot, clip_on=False, zorder=5, **_pruning_step_marker(moment.detected, colour))


def _pruning_step_marker(detected: bool, colour: str) -> dict[str, Any]:
    """Return plot options of the marker of a pruning step: filled if it was `detected`, else hollow."""
    if detected:
        return {**_FULL, "markerfacecolor": colour, "markeredgecolor": COLOURS["paper"]}
    return {**_HOLLOW, "markerfacecolor": COLOURS["paper"], "markeredgecolor": colour}


def _legend_entries(shown: Sequence[DetectorMoments], colours: Sequence[str]) -> dict[str, Line2D]:
    """Return legend handles for densities with thresholds, for both kinds of markers, and for a few replicates."""
    entries = {
        f"{density_tick_label(one.density)} %: threshold {one.threshold:.3g}": Line2D([], [], color=colour, lw=2.4)
        for one, colour in zip(shown, colours, strict=True)
    }
    found = {moment.detected for one in shown for moment in one.moments.values()}
    for detected, words in ((True, "pruned: detected"), (False, "pruned: latest allowed")):
        if detected in found:
            entries[words] = Line2D([], [], **_pruning_step_marker(detected, COLOURS["muted"]))
    replicates = sorted({replicate for one in shown for replicate in one.moments})
    if 1 < len(replicates) <= _MOST_NAMED:
        for replicate in replicates:
            line = _LINES[replicate % len(_LINES)]
            entries[f"replicate {replicate}"] = Line2D([], [], color=COLOURS["muted"], lw=1.3, linestyle=line)
    return entries


def _set_up_training_axis(axes: Axes, last_step: float, steps_per_epoch: int) -> None:
    """Set up an x axis of training steps up to `last_step`, with ticks at epochs if `steps_per_epoch` is not 0."""
    axes.set_xlim(0, 1.04 * max(last_step, 1))
    unit = steps_per_epoch if steps_per_epoch and last_step >= 2 * steps_per_epoch else 1
    steps = MaxNLocator(6, steps=[1, 2, 5, 10], integer=True).tick_values(0, max(last_step, 1) / unit)
    ticks = [float(unit * tick) for tick in steps if 0 <= unit * tick <= last_step]
    labels = [short_count(tick) + (f"\n{tick / steps_per_epoch:.3g} ep" if steps_per_epoch else "") for tick in ticks]
    set_labelled_ticks(axes.xaxis, ticks, labels, fit=True)
