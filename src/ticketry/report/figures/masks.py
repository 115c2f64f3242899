"""Pictures of the masks of the first layer: filters as tiles, or inputs as a heat image, a few levels side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.report.aggregate import Results
from ticketry.report.figures import canvas
from ticketry.report.record import TICKET, FirstLayer
from ticketry.report.wording import percent

if TYPE_CHECKING:
    import numpy
    from matplotlib.figure import Figure

MOST_FILTERS = 128


@dataclass(frozen=True)
class Picture:
    """The first layer at one level."""

    level: int
    density: float
    layer: FirstLayer


def pictures(results: Results) -> list[Picture]:
    """The densest, the middle and the sparsest of the levels that have one; the first replicate that has."""
    found: dict[int, Picture] = {}
    for group in results.of_role(TICKET):
        for point in group.points.values():
            if point.first_layer is not None:
                found.setdefault(group.level, Picture(group.level, point.density, point.first_layer))
    levels = sorted(found)
    chosen = dict.fromkeys((levels[0], levels[len(levels) // 2], levels[-1])) if levels else {}
    return [found[level] for level in chosen]


def mask_pictures(shown: Sequence[Picture], narrow: bool = False) -> Figure:
    """White is kept (all channels; in colour: those of red, green and blue), black is removed."""
    width, gap = (360, 12) if narrow else (860, 28)
    columns = min(len(shown), 2) if narrow else 3
    wide = min((width - 8 - gap * (columns - 1)) / columns, 268)
    images = [image(picture.layer) for picture in shown]
    tall = max(wide * pixels.shape[0] / pixels.shape[1] for pixels in images)
    rows = -(-len(shown) // columns)
    lines = [_captions(picture, narrow) for picture in shown]
    head = 15 * max(map(len, lines)) + 10
    figure = canvas.figure_of(width, rows * (tall + head + 10) + 4)
    for index, pixels in enumerate(images):
        x, y = 4 + (index % columns) * (wide + gap), head + (index // columns) * (tall + head + 10)
        axes = canvas.place(figure, x, y, wide, wide * pixels.shape[0] / pixels.shape[1])
        axes.set_axis_off()
        axes.imshow(pixels, interpolation="none", aspect="auto")
        for number, line in enumerate(reversed(lines[index])):
            canvas.write(figure, x, y - 9 - 15 * number, line, colour="ink" if line is lines[index][0] else "muted")
    return figure


def kept_of(layer: FirstLayer) -> float:
    """The share of the layer's weights that are kept (of inputs: the mean of their shares)."""
    values = shares(layer)
    return float(values.mean())


def shares(layer: FirstLayer) -> numpy.ndarray:
    """Filters: 0 or 1 in the layer's shape. Inputs: shares in [0, 1], (channels, height, width)."""
    import numpy

    raw = numpy.frombuffer(layer.data, dtype=numpy.uint8)
    if layer.kind == "filters":
        return numpy.unpackbits(raw, count=math.prod(layer.shape)).reshape(layer.shape).astype(float)
    return raw.reshape(layer.shape) / 255.0


def image(layer: FirstLayer) -> numpy.ndarray:
    """Pixels (height, width, 4) of 8 bits: tiles of filters with clear gaps, or the inputs scaled to their largest."""
    import numpy

    values = shares(layer)
    if layer.kind == "inputs":
        grey = values.mean(axis=0)
        grey = grey / (grey.max() or 1)
        return _opaque(numpy.repeat(grey[:, :, None], 3, axis=2))
    filters = values[:MOST_FILTERS]
    if filters.shape[1] != 3:
        filters = numpy.repeat(filters.mean(axis=1, keepdims=True), 3, axis=1)
    number, _, height, width = filters.shape
    columns = math.ceil(math.sqrt(number * (height + 1) / (width + 1)))
    rows = -(-number // columns)
    sheet = numpy.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=numpy.uint8)
    for index, tile in enumerate(filters):
        y, x = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[y : y + height, x : x + width] = _opaque(tile.transpose(1, 2, 0))
    return sheet


def _opaque(colours: numpy.ndarray) -> numpy.ndarray:
    import numpy

    pixels = numpy.full((*colours.shape[:2], 4), 255, dtype=numpy.uint8)
    pixels[:, :, :3] = numpy.round(255 * colours)
    return pixels


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
