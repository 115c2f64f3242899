"""Figures of the page's two widths: panels, a legend above them, names beside lines and points.

Where panels stand is left to matplotlib's constrained layout. What must not touch other text is placed when that is
done (`settle`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ticketry.report.figures.style import COLOURS, SMALL, TINY, run_look
from ticketry.report.subject import Series

INCH = 72
"""Pixels of a figure's viewBox to matplotlib's inch; a font of size 12 is then 12 pixels high."""
WIDE, NARROW = 860, 360
"""Pixels across, of the page and of a telephone."""


def sheet(narrow: bool, height: float) -> Figure:
    """An empty figure, so many pixels high."""
    size = ((NARROW if narrow else WIDE) / INCH, height / INCH)
    figure = Figure(figsize=size, dpi=INCH, layout="constrained")
    FigureCanvasAgg(figure)  # measures texts
    return figure


def panels(
    count: int, narrow: bool, height: float, across: tuple[int, int] = (2, 1), **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each so many pixels high with its labels, and the panels, row by row.

    `across` is how many stand side by side at most, on the wide figure and on the narrow one; `options` are those of
    `Figure.subplots`, such as ``sharey``.
    """
    columns = min(count, across[narrow])
    rows = -(-count // columns)
    figure = sheet(narrow, rows * height)
    grid = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for spare in grid[count:]:
        spare.remove()
    return figure, grid[:count]


def name_below(figure: Figure, text: str) -> None:
    """The name of the x axis that all panels have."""
    figure.supxlabel(text, x=0.99, ha="right", size=SMALL, color=COLOURS["muted"])


def legend(figure: Figure, entries: Mapping[str, Any], title: str = "", **options: Any) -> None:
    """Names with their marks above all panels, in as many columns as fit; the figure grows by their height."""
    for columns in range(len(entries), 0, -1):
        made = figure.legend(
            list(entries.values()), list(entries), loc="outside upper left", ncols=columns, title=title, **options
        )
        if made.get_window_extent().width <= figure.bbox.width or columns == 1:
            break
        made.remove()
    made.get_title().set(size=SMALL, color=COLOURS["muted"])
    made.set_alignment("left")
    figure.set_figheight(figure.get_figheight() + made.get_window_extent().height / INCH)


def run_handles(series: Sequence[Series]) -> dict[str, Any]:
    """What a legend shows of runs, by their names."""
    return {one.label: Line2D([], [], lw=2, **run_look(one.index)) for one in series}


def settle(figure: Figure) -> None:
    """Lay the figure out, once: from here on, pixels stay where they are."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.execute(figure)
        figure.set_layout_engine(None)  # a figure that has one is drawn twice whenever it is saved


# -- names that keep apart ---------------------------------------------------------------------------------------------


def note(
    axes: Axes,
    text: str,
    spot: tuple[float, float],
    shift: tuple[float, float],
    frame: Any = ("data", "data"),
    **options: Any,
) -> Annotation:
    """A few words so many pixels from a spot, each of whose coordinates is that of the data or an axes fraction."""
    options = {"size": SMALL, "color": COLOURS["muted"], **options}
    return axes.annotate(
        text, spot, shift, xycoords=frame, textcoords="offset points", annotation_clip=False, **options
    )


Ends = Sequence[tuple[float, str, str]]
"""Of lines: y in data coordinates, text, name of a colour."""


def name_ends(figure: Figure, named: Sequence[tuple[Axes, Ends]], least: float = 14) -> None:
    """Names to the right of lines' ends, moved apart so that none touch, in the order of the ends.

    Args:
        figure: is laid out by this.
        named: the ends of lines in each panel.
        least: pixels between the middles of two names.
    """
    notes = []
    for axes, ends in named:
        low, high = axes.get_ylim()
        for y, text, colour in sorted(ends):
            shown = min(max(y, low), high)
            made = note(axes, text, (1, shown), (8, 0), ("axes fraction", "data"), color=COLOURS[colour], va="center")
            notes.append((axes, shown, made))
    settle(figure)
    for axes, _ in named:
        own = [(float(axes.transData.transform((1, y))[1]), made) for each, y, made in notes if each is axes]
        box = axes.get_window_extent()
        if own:
            spots = spread([end for end, _ in own], least, box.y0, max(box.y1, box.y0 + least))
            for spot, (end, made) in zip(spots, own, strict=True):
                made.set_position((8, spot - end))


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


_SIDES = ((0, 13), (0, -13), (1, 0), (-1, 0), (1, 11), (-1, 11), (1, -11), (-1, -11))
"""Where a name may stand beside its point: to the right (1) or left (-1), and so many pixels above or below."""


def name_points(axes: Axes, named: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside as many points as have room, touching neither each other nor a line. The figure has been laid out.

    `named` are x and y in data coordinates, text and colour, the more important first.
    """
    frame = Bbox.from_extents(axes.bbox.x0, axes.bbox.y0, axes.bbox.x1 + 3, axes.bbox.y1 + 8)
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform([one[:2] for one in named])]
    lines = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    for x, y, text, colour in named:
        made = note(axes, text, (x, y), (0, 0), color=colour, size=TINY, ha="center", va="center", zorder=6)
        size = made.get_window_extent().padded(1)
        for side, up in _SIDES:
            shift = (side * (size.width / 2 + 9), up)
            box = size.translated(*shift)
            inside = frame.count_contains(box.corners()) == 4
            if inside and not box.count_overlaps(taken) and not any(line.intersects_bbox(box, False) for line in lines):
                made.set_position(shift)
                taken.append(box)
                break
        else:
            made.remove()
