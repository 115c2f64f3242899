"""Pictures of layers before and after their mask got a structure: rows sorted by the group that they are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.report.aggregate import Group, Results
from ticketry.report.figures import canvas
from ticketry.report.figures.svg import COLOURS
from ticketry.report.record import TICKET
from ticketry.report.structure_record import LayerPicture, Structure
from ticketry.report.wording import percent

if TYPE_CHECKING:
    import numpy
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EDGE, _GAP = 10, 24
_MOST_EDGES = 48
"""Groups of which the edges are marked: of more, marks would touch."""


@dataclass(frozen=True)
class Drawn:
    """The level whose layers are drawn."""

    group: Group
    structure: Structure


def drawn_level(results: Results) -> Drawn | None:
    """The middle one of the levels that have pictures."""
    found = [
        Drawn(group, point.structure)
        for group in results.of_role(TICKET)
        for point in [next((p for p in group.points.values() if p.structure and p.structure.pictures), None)]
        if point is not None and point.structure is not None
    ]
    return found[len(found) // 2] if found else None


def structure_pictures(shown: Drawn, narrow: bool = False) -> Figure:
    """A row of two pictures a layer, before and after; white is kept, marks at the left are where groups begin."""
    pictures = shown.structure.pictures
    width = 360 if narrow else 860
    wide = (width - 8 - _EDGE) if narrow else (width - 8 - 2 * _EDGE - _GAP) / 2
    heights = [_height(picture, wide) for picture in pictures]
    titles = [_title(picture, narrow) for picture in pictures]
    blocks = [
        (2 if narrow else 1) * (height + 30) + 6 + 16 * len(lines)
        for height, lines in zip(heights, titles, strict=True)
    ]
    figure = canvas.figure_of(width, sum(blocks) + 4)
    top = 16.0
    for picture, lines, height, block in zip(pictures, titles, heights, blocks, strict=True):
        for number, line in enumerate(lines):
            canvas.write(figure, 2, top + 16 * number, line, colour="ink")
        below = top + 16 * len(lines) + 10
        for number, (when, bits) in enumerate((("before", picture.before), ("after", picture.after))):
            x = 4 + _EDGE + (0 if narrow else number * (wide + _EDGE + _GAP))
            y = below + (number * (height + 30) if narrow else 0)
            pixels = _pixels(bits, picture.shape)
            canvas.write(figure, x, y - 6, f"{when}: {percent(float(pixels.mean()))} % of the weights shown")
            axes = canvas.place(figure, x, y, wide, height)
            _draw(axes, pixels, picture.groups)
        top += block
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


def _pixels(bits: bytes, shape: tuple[int, int]) -> numpy.ndarray:
    import numpy

    raw = numpy.frombuffer(bits, dtype=numpy.uint8)
    return numpy.unpackbits(raw, count=shape[0] * shape[1]).reshape(shape)


def _draw(axes: Axes, pixels: numpy.ndarray, groups: Sequence[int]) -> None:
    import numpy

    axes.set_axis_off()
    colours = numpy.zeros((*pixels.shape, 4), dtype=numpy.uint8)
    colours[:, :, 3] = 255
    colours[:, :, :3] = 255 * pixels[:, :, None]
    axes.imshow(colours, interpolation="none", aspect="auto")
    starts = numpy.cumsum([0, *groups])
    if len(groups) > _MOST_EDGES:
        return
    across = pixels.shape[1]
    for start in starts:
        axes.plot(
            (-0.5 - 0.02 * across, -0.5 - 0.005 * across),
            (start - 0.5, start - 0.5),
            color=COLOURS["ticket"],
            lw=1,
            clip_on=False,
        )
    axes.set_xlim(-0.5, across - 0.5)
    axes.set_ylim(pixels.shape[0] - 0.5, -0.5)
