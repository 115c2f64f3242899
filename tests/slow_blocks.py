"""Patterns by plain loops over single weights, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from ticketry.core.structure.layout import Layout

Place = tuple[int, ...]


def places(shape: tuple[int, ...]) -> Iterator[Place]:
    return itertools.product(*map(range, shape))


def row_and_column(place: Place, shape: tuple[int, ...], layout: Layout) -> tuple[int, int, Place]:
    """(group, row in the group, (input in the group, taps …)) of a weight."""
    if len(shape) < 2:
        return 0, place[0] if place else 0, ()
    first, second, *taps = place
    length = shape[0] // layout.groups
    group, inside = divmod(first, length)
    return (group, second, (inside, *taps)) if layout.inputs_first else (group, inside, (second, *taps))


def blocks_of(pattern: str, shape: tuple[int, ...], layout: Layout) -> dict[tuple[object, ...], list[Place]]:
    found: dict[tuple[object, ...], list[Place]] = {}
    for place in places(shape):
        group, row, column = row_and_column(place, shape, layout)
        if pattern == "channel":
            key: tuple[object, ...] = (group, row)
        else:
            key = (group, row // int(pattern.removesuffix("x1")), column)
        found.setdefault(key, []).append(place)
    return dict(sorted(found.items()))


def value_at(tensor: Tensor, place: Place) -> float:
    return tensor[place].item()
