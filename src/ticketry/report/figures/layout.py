"""Lay out figures in the page's two widths, and convert them to files and to SVG elements of a page.

matplotlib's constrained layout places panels, legends, axes and labels. After `finish_layout`, labels that must not
touch can be placed. Figures have the colours of the light theme, which files keep; on a page, each colour becomes a CSS
variable, which the style sheet sets for both themes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.sax.saxutils import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from ticketry.records.metric import Metric
from ticketry.report.figures.style import COLOURS, SMALL, TINY, run_plot_options
from ticketry.report.subject import Series
from ticketry.report.tables.results import Summary
from ticketry.report.wording import percent, short_count

INCH = 72
"""Pixels of an SVG figure per matplotlib inch, chosen so that a font of size 12 is 12 pixels high."""
WIDE, NARROW = 860, 360
"""Width in pixels of a figure on the page, and of a narrow figure, on a phone."""


def empty_figure(narrow: bool, height: float) -> Figure:
    """Return an empty figure of the wide or the narrow width that is `height` pixels high."""
    size = ((NARROW if narrow else WIDE) / INCH, height / INCH)
    figure = Figure(figsize=size, dpi=INCH, layout="constrained")
    FigureCanvasAgg(figure)  # measures texts
    return figure


def figure_with_panels(
    count: int, narrow: bool, height: float, across: tuple[int, int] = (2, 1), **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, each `height` pixels high including labels, and a list of its panels.

    `across` gives the largest number of panels side by side on a wide and on a narrow figure. `options` are passed to
    `Figure.subplots`, such as ``sharey``.
    """
    columns = min(count, across[narrow])
    rows = -(-count // columns)
    figure = empty_figure(narrow, rows * height)
    grid = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for spare in grid[count:]:
        spare.remove()
    return figure, grid[:count]


def set_shared_x_label(figure: Figure, text: str) -> None:
    """Write `text` below all panels as the name of their common x axis."""
    figure.supxlabel(text, x=0.99, ha="right", size=SMALL, color=COLOURS["muted"])


def add_legend(figure: Figure, entries: Mapping[str, Any], title: str = "", **options: Any) -> None:
    """Add a legend above all panels, in as many columns as fit; the figure grows by the legend's height."""
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


def run_legend_handles(series: Sequence[Series]) -> dict[str, Any]:
    """Return, by label, the legend handles of runs."""
    return {one.label: Line2D([], [], lw=2, **run_plot_options(one.index)) for one in series}


def finish_layout(figure: Figure) -> None:
    """Run the constrained layout once and switch it off, so that pixel positions are final."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.execute(figure)
        figure.set_layout_engine(None)  # saving a figure with one draws it twice


# -- names that do not touch -------------------------------------------------------------------------------------------


def write_note(
    axes: Axes,
    text: str,
    spot: tuple[float, float],
    shift: tuple[float, float],
    frame: Any = ("data", "data"),
    **options: Any,
) -> Annotation:
    """Write text beside the point `spot`, at a distance of `shift` pixels; `frame` is matplotlib's ``xycoords``."""
    options = {"size": SMALL, "color": COLOURS["muted"], **options}
    return axes.annotate(
        text, spot, shift, xycoords=frame, textcoords="offset points", annotation_clip=False, **options
    )


Ends = Sequence[tuple[float, str, str]]
"""Ends of lines to label: (y in data coordinates, text, name of a colour)."""
_LEAST = 14.0
"""Smallest distance in pixels between the middles of two names."""


def label_line_ends(figure: Figure, named: Sequence[tuple[Axes, Ends]]) -> None:
    """Write names to the right of the ends of lines, at vertical distances at which names do not touch."""
    notes = []
    for axes, ends in named:
        low, high = axes.get_ylim()
        for y, text, colour in sorted(ends):
            shown = min(max(y, low), high)
            made = write_note(
                axes, text, (1, shown), (8, 0), ("axes fraction", "data"), color=COLOURS[colour], va="center"
            )
            notes.append((axes, shown, made))
    finish_layout(figure)
    for axes, _ in named:
        own = [(float(axes.transData.transform((1, y))[1]), made) for each, y, made in notes if each is axes]
        box = axes.get_window_extent()
        if own:
            spots = spread_label_positions([end for end, _ in own], _LEAST, box.y0, max(box.y1, box.y0 + _LEAST))
            for spot, (end, made) in zip(spots, own, strict=True):
                made.set_position((8, spot - end))


def spread_label_positions(positions: Sequence[float], min_distance: float, low: float, high: float) -> list[float]:
    """Return ascending `positions`, moved at least `min_distance` apart, and if possible between `low` and `high`."""
    spots: list[float] = []
    for position in positions:
        spots.append(max(position, spots[-1] + min_distance) if spots else max(position, low))
    over = spots[-1] - high
    if over > 0:
        spots[-1] -= over
        for index in range(len(spots) - 2, -1, -1):
            spots[index] = min(spots[index], spots[index + 1] - min_distance)
    return spots


_SIDES = ((0, 13), (0, -13), (1, 0), (-1, 0), (1, 11), (-1, 11), (1, -11), (-1, -11))
"""Positions to try for a name beside its point: right (1), centred (0) or left (-1), and pixels above the point."""


def label_points(axes: Axes, named: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names beside points; omit names that would touch another name, a point or a line.

    The layout of the figure must be finished. `named` has (x, y, text, colour) of each name, with x and y in data
    coordinates, and the most important name first.
    """
    frame = Bbox.from_extents(axes.bbox.x0, axes.bbox.y0, axes.bbox.x1 + 3, axes.bbox.y1 + 8)
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform([one[:2] for one in named])]
    lines = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    for x, y, text, colour in named:
        made = write_note(axes, text, (x, y), (0, 0), color=colour, size=TINY, ha="center", va="center", zorder=6)
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


_DIGIT = 7.4
"""Largest width of a digit in pixels at size 12."""


def indices_of_fitting_labels(positions: Sequence[float], labels: Sequence[str]) -> list[int]:
    """Return the indices of labels to show so that none touch: the first, the last, and others that fit between."""
    last = len(positions) - 1
    letters = [max(map(len, label.split("\n"))) for label in labels]

    def labels_do_not_touch(i: int, j: int) -> bool:
        return positions[j] - positions[i] >= _DIGIT * (letters[i] + letters[j]) / 2 + _DIGIT

    chosen = [0]
    for index in range(1, last):
        if labels_do_not_touch(chosen[-1], index) and labels_do_not_touch(index, last):
            chosen.append(index)
    return chosen if last == 0 or not labels_do_not_touch(chosen[-1], last) else [*chosen, last]


class _FittingTicks(FixedLocator):
    """Places ticks on an x axis, except ticks whose labels would overlap another label."""

    def __init__(self, axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
        super().__init__(places)
        self._axes, self._places, self._labels = axes, list(places), list(labels)

    def __call__(self) -> Any:
        pixels = self._axes.transData.transform([(place, 1) for place in self._places])[:, 0]
        pixels *= INCH / self._axes.figure.dpi  # a PNG has a higher resolution
        return [self._places[index] for index in indices_of_fitting_labels(pixels.tolist(), self._labels)]


def set_labelled_ticks(axis: Axis, places: Sequence[float], labels: Sequence[str], fit: bool = False) -> None:
    """Set labelled ticks at `places` on an axis; if `fit` (for x axes only), omit ticks whose labels have no room."""
    names = dict(zip(places, labels, strict=True))
    axis.set_major_locator(_FittingTicks(axis.axes, places, labels) if fit else FixedLocator(places))
    axis.set_major_formatter(lambda value, _: names.get(value, ""))
    axis.set_minor_locator(FixedLocator(places) if fit else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def set_up_density_axis(axes: Axes, densities: Iterable[float], name: str = "weights remaining, % (log scale)") -> None:
    """Set up a logarithmic x axis of densities in per cent, sparser to the right, with a tick at each density."""
    shares = [100 * density for density in sorted(set(densities), reverse=True)]
    high, low = shares[0], shares[-1]
    room = (high / low) ** 0.025 if high > low else 1.5
    axes.set_xscale("log")
    axes.set_xlim(high * room, low / room)
    set_labelled_ticks(axes.xaxis, shares, [density_tick_label(share / 100) for share in shares], fit=True)
    axes.set_xlabel(name)


def density_tick_label(density: float) -> str:
    """Format a density in per cent without a trailing .0: 100, 51.2, 0.92."""
    return percent(density).removesuffix(".0")


def set_up_log_axis(
    axes: Axes, axis: Literal["x", "y"], low: float, high: float, text: Callable[[float], str] = short_count
) -> list[float]:
    """Set up a logarithmic axis with ticks at 1, 2, 5, 10, …; on a long axis only at 1, 10, 100, ….

    Returns:
        The values at which there are ticks.
    """
    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low, high)})
    lowest, highest = sorted((low, high))
    familiar = [digit * 10.0**power for power in range(-9, 16) for digit in (1, 2, 5)]
    inside = [tick for tick in familiar if lowest <= tick <= highest]
    if len(inside) < 2:
        inside = round_ticks(lowest, highest, 6)
    if len(inside) > 9:
        inside = [tick for tick in inside if f"{tick:.0e}".startswith("1")]
    if low > high:
        inside.reverse()
    set_labelled_ticks(getattr(axes, f"{axis}axis"), inside, [text(tick) for tick in inside], fit=axis == "x")
    return inside


def number_tick_label(value: float) -> str:
    """Format a number with as few digits as it needs: 0.05, 2, 500."""
    return f"{value:.6g}"


# -- metrics -----------------------------------------------------------------------------------------------------------

_DIGITS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
"""First digits of ticks; axes over fewer decades need more digits."""
_FEWEST = 3
_LOWEST = 0.5
"""Smallest lower end of an interval on a logarithmic axis, as a share of the mean, since ends may be 0 or less."""


@dataclass(frozen=True)
class Scale:
    """Scale of a metric's axis: linear or logarithmic."""

    log: bool = False

    @classmethod
    def for_values(cls, metric: Metric, values: Iterable[float]) -> Scale:
        """Return the scale of a metric's axis; it is linear if some values are not positive."""
        return cls(metric.scale == "log" and all(value > 0 for value in values))

    @property
    def name_suffix(self) -> str:
        """Text to append to the name of a logarithmic axis; empty for a linear axis."""
        return " (log scale)" if self.log else ""

    def position(self, value: float) -> float:
        """Return the position of a value on the axis: the value itself, or on a logarithmic scale its logarithm."""
        return math.log10(value) if self.log else value

    def value_at(self, position: float) -> float:
        """Return the value at a position; this is the inverse of `position`."""
        return 10.0**position if self.log else position

    def sd_on_axis(self, summary: Summary) -> float:
        """Return the length of one standard deviation on the axis; 0 for a single value."""
        if not summary.sd:
            return 0.0
        return self.position(summary.mean + summary.sd) - self.position(summary.mean) if self.log else summary.sd

    def clip_low_end(self, low: float, summary: Summary) -> float:
        """Return the lower end of an interval; on a log scale, at least half the mean, so that it is positive."""
        return max(low, _LOWEST * summary.mean) if self.log else low

    def limits_with_room(self, low: float, high: float, share: float) -> tuple[float, float]:
        """Return axis limits around `low` and `high`; at both ends, `share` of the range is left free."""
        if not self.log:
            room = share * (high - low) or 0.01 * abs(high) or 1.0
            return low - room, high + room
        room = (high / low) ** share if high > low else 1.01
        return low / room, high * room

    def set_limits(self, axes: Axes, limits: tuple[float, float], most: int | None = None) -> None:
        """Set the scale and the limits of a y axis, with at most `most` ticks."""
        if not self.log:
            axes.set_ylim(*limits)
            if most:
                axes.locator_params(axis="y", nbins=most)
            return
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        found = round_ticks(*limits, most or 8)
        set_labelled_ticks(axes.yaxis, found, [f"{tick:,.10g}" for tick in found])


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` round numbers from `low` to `high`, at least three if possible."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def ticks_with_digits(digits: Iterable[float]) -> list[float]:
        return [tick for power in powers for d in digits if low <= (tick := d * 10.0**power) <= high]

    decades = _take_evenly_spaced(ticks_with_digits((1.0,)), most)
    for digits in _DIGITS:
        if _FEWEST <= len(found := ticks_with_digits(digits)) <= most:
            return found
    values = MaxNLocator(max(most - 1, 1), steps=[1, 2, 5, 10]).tick_values(low, high)
    even = _take_evenly_spaced([tick for tick in map(float, values) if low <= tick <= high], most)
    return max(decades, even, key=len)


def _take_evenly_spaced(found: list[float], most: int) -> list[float]:
    return found[:: -(-len(found) // most)] if found else []


_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG of twice its size in pixels, without date and version."""
    return _save_figure(figure, "png", ("Software",), dpi=2 * figure.dpi)


def to_pdf(figure: Figure) -> bytes:
    """Return the figure as a PDF whose text can be selected, without date and version."""
    with rc_context({"pdf.fonttype": 42}):
        return _save_figure(figure, "pdf", ("Creator", "Producer", "CreationDate"))


def to_svg(figure: Figure, title: str = "") -> str:
    """Return the figure as an SVG document with a title for screen readers, without date and version."""
    document = _save_figure(figure, "svg", ("Creator", "Date", "Format", "Type")).decode()
    document = re.sub(r"<!DOCTYPE[^>]*>\s*", "", document)
    document = re.sub(r' style="[^"]*font[^"]*"', _remove_font_family, document)
    return re.sub(
        r"<svg [^>]*>",
        lambda start: f'{start[0][:-1]} font-family="{_FONT}">' + (f"<title>{escape(title)}</title>" if title else ""),
        document,
        count=1,
    )


def _save_figure(figure: Figure, kind: str, metadata: tuple[str, ...], **options: Any) -> bytes:
    finish_layout(figure)
    buffer = io.BytesIO()
    blank = dict.fromkeys(metadata)
    figure.savefig(buffer, format=kind, metadata=blank, facecolor=COLOURS["paper"], **options)
    return buffer.getvalue()


def to_inline_element(svg: str, prefix: str, caption: str = "") -> str:
    """Convert an SVG document to an element of a page, with colours of the page's theme, unique ids and variable size.

    Args:
        svg: a document from `to_svg`.
        prefix: start of all ids in the element.
        caption: id of the page's element that describes the drawing; without it, screen readers skip the drawing.
    """
    view = re.search(r'viewBox="[^"]*"', svg)
    seen = f'role="img" aria-labelledby="{caption}"' if caption else 'aria-hidden="true"'
    # A title would show at the mouse; a style would hold for the whole page.
    body = re.sub(r"<metadata>.*?</metadata>|<title>.*?</title>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    body = body[body.index(">", body.index("<svg")) + 1 :]
    body = re.sub(r">\s+<", "><", body).replace("<defs></defs>", "").replace(" xlink:href=", " href=")
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'(?<= id=")|(?<= href="#)|(?<=url\(#)', f"{prefix}-", body)
    body = re.sub(r' (?:d|x|y|width|height)="[^"]*"', lambda found: _NUMBER.sub(_round_svg_number, found[0]), body)
    body = re.sub(r' style="[^"]*"', lambda found: _COLOUR.sub(_to_theme_colour, found[0]), body)
    return f'<svg {view[0] if view else ""} focusable="false" {seen}>{body}'


_NUMBER, _COLOUR = re.compile(r"\d+\.\d+"), re.compile(r"#[0-9a-f]{6}")


def _round_svg_number(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _to_theme_colour(colour: re.Match[str]) -> str:
    return _VARIABLES.get(colour[0], colour[0])


def _remove_font_family(style: re.Match[str]) -> str:
    text = re.sub(r"font-family: [^;\"]*;? ?", "", style[0])
    return re.sub(
        r"font: (?:(?:normal|italic) )*(?:(\w+) )?([\d.]+px) [^;\"]*",
        lambda font: (f"font-weight: {font[1]}; " if font[1] else "") + f"font-size: {font[2]}",
        text,
    )
