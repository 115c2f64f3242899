"""What a record tells of masks that were given a structure after they were found: how well it fits, and pictures."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from ticketry.report.nodes import Node

_MOST_PIXELS = 1 << 20


@dataclass(frozen=True)
class Fit:
    """One layer, or all of them together: shares lie in 0 … 1."""

    name: str
    rows: int
    columns: int
    groups: int
    """Of rows that keep the same columns."""
    rows_per_group: int
    before: float
    """Density without structure."""
    after: float
    coverage: float
    """Share of the magnitude that was kept before which is in the structured mask."""
    fill: float
    """Share of the structured mask that was not kept before."""
    null: float | None
    """Coverage where rows have nothing in common; None if not measured."""
    random: float | None
    """Coverage of random groups."""


@dataclass(frozen=True)
class LayerPicture:
    """A layer's mask before and after; rows are sorted by the group that they are in after."""

    name: str
    rows: int
    columns: int
    """Of the layer; the picture may show fewer."""
    every: int
    """Of its rows, one in so many is shown."""
    shape: tuple[int, int]
    """Of the picture: height, width."""
    groups: tuple[int, ...]
    """Rows of the picture in each group, from the top."""
    before: bytes
    """Bits, packed in C order, the highest bit of a byte first, 1 = kept."""
    after: bytes


@dataclass(frozen=True)
class Structure:
    """Of one ticket."""

    kind: str
    name: str
    """The kind with the options that tell it from others: ``regroup, 16 rows``."""
    before: float
    """Density of the mask without structure."""
    layers: tuple[Fit, ...]
    """The last is of all layers together; empty if that was not measured."""
    pictures: tuple[LayerPicture, ...]


def read_structure(node: Node) -> Structure | None:
    """Of a point; None if its mask has none that was made afterwards."""
    if "structure" not in node:
        return None
    told = node.node("structure")
    kind = told.text("kind")
    return Structure(
        kind=kind,
        name=told.text("name", kind),
        before=_share(told, "density_before"),
        layers=tuple(_fit(layer) for layer in told.nodes("layers", optional=True)),
        pictures=tuple(_picture(picture) for picture in told.nodes("pictures", optional=True)),
    )


def _fit(node: Node) -> Fit:
    return Fit(
        name=node.text("name"),
        rows=node.integer("rows", least=0),
        columns=node.integer("columns", least=0),
        groups=node.integer("groups", least=0),
        rows_per_group=node.integer("rows_per_group", least=0),
        before=_share(node, "density_before"),
        after=_share(node, "density_after"),
        coverage=_share(node, "coverage"),
        fill=_share(node, "fill"),
        null=_share(node, "null_coverage") if "null_coverage" in node else None,
        random=_share(node, "random_coverage") if "random_coverage" in node else None,
    )


def _share(node: Node, key: str) -> float:
    share = node.number(key)
    if not -1e-9 <= share <= 1 + 1e-9:
        node.fail(key, f"is {share:g}, which is no share")
    return min(max(share, 0.0), 1.0)


def _picture(node: Node) -> LayerPicture:
    shape = tuple(int(size) for size in node.numbers("shape"))
    if len(shape) != 2 or not all(size >= 1 for size in shape) or shape[0] * shape[1] > _MOST_PIXELS:
        node.fail("shape", "is not that of a picture")
    groups = tuple(int(size) for size in node.numbers("groups"))
    if sum(groups) != shape[0] or min(groups) < 1:
        node.fail("groups", "do not add up to the picture's rows")
    return LayerPicture(
        name=node.text("name"),
        rows=node.integer("rows", least=1),
        columns=node.integer("columns", least=1),
        every=node.integer("every", least=1),
        shape=(shape[0], shape[1]),
        groups=groups,
        before=_bits(node, "before", shape[0] * shape[1]),
        after=_bits(node, "after", shape[0] * shape[1]),
    )


def _bits(node: Node, key: str, count: int) -> bytes:
    try:
        data = base64.b64decode(node.text(key), validate=True)
    except (binascii.Error, ValueError):
        node.fail(key, "is not base64")
    if len(data) != -(-count // 8):
        node.fail(key, f"is {len(data)} bytes long, which does not fit the shape")
    return data
