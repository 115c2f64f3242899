"""Masks as pixels: of the first layer at a few levels, and of layers before and after they got a structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from ticketry.records.network import TICKET, FirstLayer
from ticketry.records.structure import Structure
from ticketry.report.tables.results import Group, Results

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


def kept_of(layer: FirstLayer) -> float:
    """The share of the layer's weights that are kept (of inputs: the mean of their shares)."""
    return float(shares(layer).mean())


def shares(layer: FirstLayer) -> numpy.ndarray:
    """Filters: 0 or 1 in the layer's shape. Inputs: shares in [0, 1], (channels, height, width)."""
    if layer.kind == "filters":
        return bits(layer.data, layer.shape).astype(float)
    return numpy.frombuffer(layer.data, dtype=numpy.uint8).reshape(layer.shape) / 255.0


def bits(data: bytes, shape: Sequence[int]) -> numpy.ndarray:
    raw = numpy.frombuffer(data, dtype=numpy.uint8)
    return numpy.unpackbits(raw, count=math.prod(shape)).reshape(shape)


def image(layer: FirstLayer) -> numpy.ndarray:
    """Pixels (height, width, 4) of 8 bits: tiles of filters with clear gaps, or the inputs scaled to their largest."""
    values = shares(layer)
    if layer.kind == "inputs":
        mean = values.mean(axis=0)
        return opaque(grey(mean / (mean.max() or 1)))
    filters = values[:MOST_FILTERS]
    if filters.shape[1] != 3:
        filters = numpy.repeat(filters.mean(axis=1, keepdims=True), 3, axis=1)
    number, _, height, width = filters.shape
    columns = math.ceil(math.sqrt(number * (height + 1) / (width + 1)))
    rows = -(-number // columns)
    sheet = numpy.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=numpy.uint8)
    for index, tile in enumerate(filters):
        y, x = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[y : y + height, x : x + width] = opaque(tile.transpose(1, 2, 0))
    return sheet


def grey(values: numpy.ndarray) -> numpy.ndarray:
    return numpy.repeat(values[:, :, None], 3, axis=2)


def opaque(colours: numpy.ndarray) -> numpy.ndarray:
    pixels = numpy.full((*colours.shape[:2], 4), 255, dtype=numpy.uint8)
    pixels[:, :, :3] = numpy.round(255 * colours)
    return pixels


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
