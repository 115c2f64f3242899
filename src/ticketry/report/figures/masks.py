"""What masks keep: density by layer, pictures of the first layer, and layers before and after they got a structure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ticketry.records.structure import LayerPicture
from ticketry.report.figures.axes import general, label_places, log_axis, tick_label
from ticketry.report.figures.panels import legend, panels
from ticketry.report.figures.style import COLOURS, SHADES, shade
from ticketry.report.tables.masks import Drawn, Picture, bits, grey, image, kept_of, opaque, shares
from ticketry.report.tables.results import LayerProfile
from ticketry.report.tables.search_progress import spread_out
from ticketry.report.wording import clean, percent


def density_by_layer(profiles: Sequence[LayerProfile], narrow: bool = False) -> Figure:
    """The share of each layer that is kept, mean over replicates, at up to six levels spread over the run."""
    shown = spread_out(profiles, 4 if narrow else SHADES)
    names = list(dict.fromkeys(name for profile in shown for name in profile.layers))
    row = 30 if len(names) <= 8 else 20 if len(names) <= 24 else 15
    figure, (axes,) = panels(1, narrow, row * len(names) + 52)
    axes.set_ylim(len(names) - 0.5, -0.5)
    label_places(axes.yaxis, range(len(names)), short_names(names, 16 if narrow else 34))
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    densities = [density for profile in shown for density in profile.layers.values()]
    lowest = min((density for density in densities if density > 0), default=0.5)
    empty = lowest / 2  # where a layer without weights is drawn, since a logarithmic axis has no 0
    floor = empty if min(densities) == 0 else lowest
    ticks = log_axis(axes, "x", 100, 100 * min(floor, 0.5) / 1.06, general)
    if floor == empty:
        ticks = [*(tick for tick in ticks if tick > 100 * empty), 100 * empty]
        label_places(axes.xaxis, ticks, [*map(general, ticks[:-1]), "0"], fit=True)
    axes.grid(axis="x")
    axes.set_xlabel("weights remaining in the layer, % (log scale)")
    lines = {}
    for index, profile in enumerate(shown):
        shares = [100 * max(profile.layers.get(name, math.nan), floor) for name in names]
        colour = shade(index, len(shown))
        (line,) = axes.plot(shares, range(len(names)), color=colour, lw=1.2, marker="o", clip_on=False)
        lines[tick_label(profile.density)] = line
    legend(figure, lines, "all prunable weights together, % remaining:", handlelength=1.2)
    return figure


def short_names(names: Sequence[str], most: int) -> list[str]:
    """Layer names without a ``.weight`` that all share; of long ones the end, which tells layers apart, stays."""
    if all(name.endswith(".weight") for name in names):
        names = [name.removesuffix(".weight") for name in names]
    return [clean(name if len(name) <= most else "…" + name[1 - most :]).replace("\n", " ") for name in names]


# -- pictures ----------------------------------------------------------------------------------------------------------


def mask_pictures(shown: Sequence[Picture], narrow: bool = False) -> Figure:
    """White is kept (all channels; in colour: those of red, green and blue), black is removed."""
    images = [image(picture.layer) for picture in shown]
    lines = [_captions(picture, narrow) for picture in shown]
    tall = (170 if narrow else 270) * max(pixels.shape[0] / pixels.shape[1] for pixels in images)
    figure, axes = panels(3, narrow, min(tall, 500) + 15 * max(map(len, lines)) + 16, (3, 2))
    for spare in axes[len(shown) :]:
        spare.remove()
    for each, pixels, words in zip(axes, images, lines, strict=False):
        each.set_axis_off()
        each.set_anchor("NW")
        each.imshow(pixels, interpolation="none")
        each.set_title("\n".join(words), color=COLOURS["ink"])
    return figure


def _captions(picture: Picture, narrow: bool) -> list[str]:
    """How much is kept; of inputs, also what white stands for."""
    layer = picture.layer
    lines = [f"{percent(picture.density)} % of all weights", f"of this layer: {_percent(kept_of(layer))} %"]
    if layer.kind == "inputs":
        white = f"white: {_percent(float(shares(layer).mean(axis=0).max()))} %"
        lines[1:] = [lines[1], white] if narrow else [f"{lines[1]}; {white}"]
    return lines


def _percent(share: float) -> str:
    return percent(share) if share > 0 else "0"


# -- before and after a structure --------------------------------------------------------------------------------------

_MOST_EDGES = 48
"""Groups of which the edges are marked: of more, marks would touch."""


def structure_pictures(shown: Drawn, narrow: bool = False) -> Figure:
    """A row of two pictures a layer, before and after; white is kept, marks at the left are where groups begin."""
    found, copies = shown.structure.pictures, 2 if narrow else 1
    heights = [_height(picture, 340 if narrow else 400) + 16 * len(_title(picture, narrow)) + 36 for picture in found]
    heights = [height for height in heights for _ in range(copies)]
    options = {"height_ratios": heights}
    figure, axes = panels(2 * len(found), narrow, sum(heights) / len(heights), (2, 1), **options)
    for number, picture in enumerate(found):
        for each, when in zip(axes[2 * number :], ("before", "after"), strict=False):
            pixels = bits(picture.before if when == "before" else picture.after, picture.shape)
            words = f"{when}: {percent(float(pixels.mean()))} % of the weights shown"
            title = _title(picture, narrow) if when == "before" else [] if narrow else [""]
            each.set_title("\n".join([*title, words]), color=COLOURS["ink"])
            _draw(each, pixels, picture.groups)
    return figure


def _height(picture: LayerPicture, wide: float) -> float:
    """Square weights where that suits the page."""
    rows, columns = picture.shape
    return min(max(wide * rows / columns, 60.0), 260.0)


def _title(picture: LayerPicture, narrow: bool) -> list[str]:
    """One line, or two where there is no room."""
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


def _draw(axes: Axes, pixels: numpy.ndarray, groups: Sequence[int]) -> None:
    axes.set_axis_off()
    axes.imshow(opaque(grey(pixels)), interpolation="none", aspect="auto")
    if len(groups) <= _MOST_EDGES:
        starts = numpy.cumsum([0, *groups]) / len(pixels)
        axes.hlines(1 - starts, -0.02, -0.005, color=COLOURS["ticket"], lw=1, clip_on=False, transform=axes.transAxes)
