"""Density by layer: a row per layer, a line per level, so that three layers and fifty read the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ticketry.report.aggregate import LayerProfile
from ticketry.report.figures import canvas
from ticketry.report.figures.svg import COLOURS
from ticketry.report.wording import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LETTER = 6.9
"""Pixels that a letter takes on average at the size of the names."""
_RIGHT, _FOOT, _STEPS = 16, 48, 6


def density_by_layer(profiles: Sequence[LayerProfile], narrow: bool = False) -> Figure:
    """The share of each layer that is kept, mean over replicates, at up to six levels spread over the run."""
    shown = spread_out(profiles, 4 if narrow else _STEPS)
    names = list(dict.fromkeys(name for profile in shown for name in profile.layers))
    labels = short_names(names, 16 if narrow else 34)
    width = 360 if narrow else 860
    left = 14 + _LETTER * max(map(len, labels))
    row = 30 if len(names) <= 8 else 20 if len(names) <= 24 else 15
    top, tall = 52, row * len(names)
    figure = canvas.figure_of(width, top + tall + _FOOT)
    axes = canvas.place(figure, left, top, width - left - _RIGHT, tall)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), labels)
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)
    floor = _share_axis(axes, [density for profile in shown for density in profile.layers.values()])
    handles = []
    for index, profile in enumerate(shown):
        step = 1 + (index * (_STEPS - 1) // (len(shown) - 1) if len(shown) > 1 else _STEPS - 1)
        handles += axes.plot(
            [100 * max(profile.layers.get(name, math.nan), floor) for name in names],
            range(len(names)),
            color=COLOURS[f"step-{step}"],
            lw=1.2,
            marker="o",
            markersize=6,
            markeredgecolor=COLOURS["paper"],
            clip_on=False,
        )
    canvas.write(figure, 2, 14, "all prunable weights together, % remaining:")
    canvas.legend(
        figure,
        handles,
        [canvas.tick_label(profile.density) for profile in shown],
        len(shown),
        bbox_to_anchor=(0, 1 - 18 / (top + tall + _FOOT)),
        handlelength=1.2,
        columnspacing=1.0 if narrow else 1.6,
        handletextpad=0.4,
    )
    canvas.write_at_foot(figure, width - _RIGHT, "weights remaining in the layer, % (log scale)")
    return figure


def spread_out(profiles: Sequence[LayerProfile], most: int) -> list[LayerProfile]:
    """At most so many profiles, the first and last among them, evenly spread over the levels."""
    if len(profiles) <= most:
        return list(profiles)
    return [profiles[round(index * (len(profiles) - 1) / (most - 1))] for index in range(most)]


def short_names(names: Sequence[str], most: int) -> list[str]:
    """Layer names without a ``.weight`` that all share; of long ones the end, which tells layers apart, stays."""
    if all(name.endswith(".weight") for name in names):
        names = [name.removesuffix(".weight") for name in names]
    return [clean(name if len(name) <= most else "…" + name[1 - most :]).replace("\n", " ") for name in names]


def _share_axis(axes: Axes, densities: Sequence[float]) -> float:
    """A log axis from 100 % to the sparsest layer; the density at which an empty layer is drawn, labelled 0."""
    from matplotlib.ticker import NullLocator

    lowest = min((density for density in densities if density > 0), default=0.5)
    empty = min(densities) == 0
    floor = lowest / 2 if empty else lowest
    end = 100 * min(floor, 0.5) / 1.06
    axes.set_xscale("log")
    axes.set_xlim(100, end)
    decades = range(2, math.floor(math.log10(100 * lowest)) - 1, -1)
    digits = (5, 2, 1) if len(decades) <= 3 else (1,)
    shares = [digit * 10.0**power for power in decades for digit in digits]
    ticks = {share: f"{share:g}" for share in shares if 100 * min(lowest, 0.5) / 1.06 <= share <= 100}
    if empty:
        ticks[100 * floor] = "0"
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.grid(axis="x", color=COLOURS["rule"], lw=1)
    axes.tick_params(axis="x", length=4, color=COLOURS["muted"])
    return floor
