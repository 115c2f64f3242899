"""What the figures share: axes placed in pixels, quiet spines and rules, a density axis that runs to the sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ticketry.report.figures.svg import COLOURS
from ticketry.report.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCH = 72
"""Pixels of a figure's viewBox to matplotlib's inch; a font of size 12 is then 12 pixels high."""
SMALL = 11.0
_DIGIT = 7.4
"""Pixels that a digit takes at most at size 12."""


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of so many pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / INCH, height / INCH), dpi=INCH)


def place(figure: Figure, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
    """Axes in pixels from the figure's left and top edge, with horizontal room only where the caller leaves it."""
    across, down = figure.get_size_inches() * INCH
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down), **options)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOURS["muted"])
    axes.tick_params(length=0, labelcolor=COLOURS["muted"], labelsize=SMALL, pad=6)
    axes.set_axisbelow(True)
    return axes


def write(figure: Figure, x: float, y: float, text: str, colour: str = "muted", **options: Any) -> None:
    """Text whose left end of the baseline is at pixel (x, y) from the top left corner."""
    across, down = figure.get_size_inches() * INCH
    figure.text(x / across, 1 - y / down, text, color=COLOURS[colour], **{"size": SMALL, **options})


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int, **options: Any) -> None:
    """A legend without a frame in the figure's top left corner."""
    figure.legend(
        handles,
        labels,
        loc="upper left",
        borderaxespad=0.2,
        ncol=columns,
        frameon=False,
        labelcolor=COLOURS["ink"],
        **{"bbox_to_anchor": (0, 1), "fontsize": 12, "handlelength": 2.2, "columnspacing": 1.6, **options},
    )


def end_labels(figure: Figure, axes: Axes, labels: Sequence[tuple[float, str, str]], least: float = 14) -> None:
    """Names beside the right ends of lines, moved apart so that none touch, in the order of the ends.

    `labels` are (y in data coordinates, text, name of a colour); the caller leaves room to the right of the axes.
    """
    if not labels:
        return
    across, down = figure.get_size_inches() * INCH
    box = axes.get_position()
    bottom, top = box.y0 * down, box.y1 * down
    ends = sorted((float(axes.transData.transform((1, y))[1]), text, colour) for y, text, colour in labels)
    spots = spread([min(max(end, bottom), top) for end, _, _ in ends], least, bottom, max(top, bottom + least))
    for spot, (_, text, colour) in zip(spots, ends, strict=True):
        figure.text(box.x1 + 8 / across, spot / down, text, color=COLOURS[colour], size=SMALL, va="center")


def spread(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """The places, which rise, moved as little as needed to be `least` apart; within the limits if there is room."""
    spots: list[float] = []
    for place in places:
        spots.append(max(place, spots[-1] + least) if spots else max(place, low))
    over = spots[-1] - high
    if over > 0:
        spots[-1] -= over
        for index in range(len(spots) - 2, -1, -1):
            spots[index] = min(spots[index], spots[index + 1] - least)
    return spots


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many names fit side by side into a legend of so many pixels; at least one, at most four."""
    return min(4, max(1, int(width // (text_width(labels) + 48))))


def text_width(texts: Sequence[str]) -> float:
    """Pixels that the longest of the texts takes at most at the small size."""
    return 6.6 * max(map(len, texts), default=0)


def write_at_foot(figure: Figure, right: float, text: str) -> None:
    """Text that ends at pixel `right`, at the figure's lower edge: the name of an x axis."""
    across, down = figure.get_size_inches() * INCH
    figure.text(right / across, 8 / down, text, color=COLOURS["muted"], size=SMALL, ha="right")


def density_axis(axes: Axes, densities: Sequence[float], labels: bool = True) -> None:
    """A logarithmic x axis in per cent, sparser to the right, with ticks at the densities themselves.

    `densities` are fractions and fall. Each has a tick mark; as many have a label as fit without touching.
    """
    from matplotlib.ticker import FixedLocator, NullFormatter

    axes.set_xscale("log")
    high, low = 100 * max(densities), 100 * min(densities)
    room = (high / low) ** 0.025 if high > low else 1.5
    axes.set_xlim(high * room, low / room)
    positions = [axes.transData.transform((100 * density, 1))[0] for density in densities]
    labelled = fitting(positions, [tick_label(density) for density in densities])
    axes.xaxis.set_minor_locator(FixedLocator([100 * density for density in densities]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([100 * densities[i] for i in labelled], [tick_label(densities[i]) for i in labelled])
    axes.tick_params(axis="x", which="both", length=4, color=COLOURS["muted"], labelbottom=labels)


def tick_label(density: float) -> str:
    """100, 51.2, 41, 0.92: `percent` without a trailing .0."""
    return percent(density).removesuffix(".0")


def fitting(positions: Sequence[float], labels: Sequence[str]) -> list[int]:
    """Which centred labels to write, by index, so that none touch: the first, the last and what fits between.

    `positions` are pixels and rise.
    """
    last = len(positions) - 1

    def apart(i: int, j: int) -> bool:
        return positions[j] - positions[i] >= _DIGIT * (len(labels[i]) + len(labels[j])) / 2 + _DIGIT

    chosen = [0]
    for index in range(1, last):
        if apart(chosen[-1], index) and apart(index, last):
            chosen.append(index)
    return chosen if last == 0 or not apart(chosen[-1], last) else [*chosen, last]


def name_points(
    axes: Axes,
    named: Sequence[tuple[float, float, str]],
    rules: Sequence[tuple[str, float]] = (),
    bars: Sequence[tuple[float, float, float, float]] = (),
    colours: Sequence[str] = (),
) -> None:
    """Names beside as many points as have room: right, left, above, below or askew, touching no other, nor a line.

    `named` are (x, y in data coordinates, text), the more important first; `rules` ("x" or "y", where) are lines from
    edge to edge, `bars` (from x, y to x, y, rising) such as are upright or level. Names are grey, or have `colours`.
    """
    frame = axes.get_window_extent()
    taken = []
    for x, y, _ in named:
        across, up = axes.transData.transform((x, y))
        taken.append((across - 5, up - 5, across + 5, up + 5))
    spots = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in taken]
    for direction, where in rules:
        across, up = axes.transData.transform((where, where))
        taken.append((across, frame.y0, across, frame.y1) if direction == "x" else (frame.x0, up, frame.x1, up))
    for left, low, right, high in bars:
        taken.append((*axes.transData.transform((left, low)), *axes.transData.transform((right, high))))
    looks = colours or [COLOURS["muted"]] * len(named)
    for (x, y), (_, _, text), look in zip(spots, named, looks, strict=True):
        half = 0.5 * 6.2 * len(text)
        side = half + 9
        for across, up in (
            (side, 0),
            (-side, 0),
            (0, 13),
            (0, -13),
            (side, 11),
            (-side, 11),
            (side, -11),
            (-side, -11),
        ):
            box = (x + across - half, y + up - 6, x + across + half, y + up + 6)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 + 8 and frame.y0 <= box[1] and box[3] <= frame.y1 + 8
            if inside and not any(_overlap(box, other) for other in taken):
                middle_x, middle_y = axes.transData.inverted().transform((x + across, y + up))
                axes.text(middle_x, middle_y, text, ha="center", va="center", color=look, size=10, zorder=6)
                taken.append(box)
                break


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
