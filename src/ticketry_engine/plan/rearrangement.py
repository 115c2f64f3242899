"""Rearranged values: rolled, padded, cut into windows, or with channels and positions exchanged.

A rearranged value is a table of the source of each element. Views of it are views of the table and cost nothing. It is
copied to new memory when an operation computes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ticketry_engine.ir.native import MOST_MOVED
from ticketry_engine.plan import value_axes as forms
from ticketry_engine.plan.storage import Storages
from ticketry_engine.plan.value_axes import Planned, UnsupportedError, ValueForm

ZERO = -1
"""Index of an element that is 0."""


@dataclass(frozen=True, eq=False)
class Rearranged:
    """Elements of some storages, in any arrangement."""

    sources: tuple[int, ...]
    """Numbers of the storages."""
    where: Planned
    """[axes...] without the batch: index of each element in the concatenated sources, channel by channel and position
    by position, or `ZERO`."""

    @property
    def axes(self) -> tuple[int, ...]:
        """The value's shape without the batch."""
        return tuple(self.where.shape)

    def view(self, where: Planned) -> Rearranged:
        """Return the same elements in another arrangement."""
        return replace(self, where=where)


def rearranged(value: ValueForm | Rearranged, storages: Storages) -> Rearranged:
    """Return a value as a table of elements.

    Raises:
        UnsupportedError: if it is too large.
    """
    if isinstance(value, Rearranged):
        return value
    positions = prod(value.pixels)
    if value.channels * positions > MOST_MOVED:
        raise UnsupportedError("a rearrangement of a value this large")
    bases, at = {}, 0
    for storage in value.storages:
        bases[storage] = at
        at += storages.all[storage].channels * positions
    planes = np.vectorize(bases.__getitem__, otypes=[np.int64])(value.planes[..., 0]) + value.planes[..., 1] * positions
    where = planes[..., None] + np.arange(positions)
    if value.labels == "f":
        return Rearranged(tuple(bases), where.reshape(-1))
    places = value.labels.count("p")
    where = where.reshape(*planes.shape, *((), (positions,), value.pixels)[places])
    channel, place = iter(range(planes.ndim)), iter(range(planes.ndim, where.ndim))
    order = [next(channel if label == "c" else place) for label in value.labels]
    return Rearranged(tuple(bases), where.transpose(order))


def in_planes(value: Rearranged, labels: str, storages: Storages) -> ValueForm | None:
    """Return the value as a list of whole planes; None if that is impossible."""
    where = _elements_by_channel(value.where, labels)
    positions = where.shape[-1]
    ends = np.cumsum([storages.all[one].channels * prod(storages.all[one].pixels) for one in value.sources])
    first = where[..., 0]
    if not where.size or first.min() < 0 or not np.array_equal(where, first[..., None] + np.arange(positions)):
        return None
    number = np.searchsorted(ends, first, side="right")
    pixels = {storages.all[value.sources[one]].pixels for one in np.unique(number).tolist()}
    begins = np.concatenate([[0], ends[:-1]])[number]
    if len(pixels) != 1 or prod(*pixels) != positions or ((first - begins) % positions).any():
        return None
    (size,) = pixels
    places = tuple(count for count, label in zip(value.axes, labels, strict=True) if label == "p")
    if len(places) == 2 and places != size:
        return None
    planes = np.stack([np.array(value.sources)[number], (first - begins) // positions], axis=-1)
    return ValueForm(labels, planes, size)


def _elements_by_channel(where: Planned, labels: str) -> Planned:
    """Return the elements as [channel axes..., positions]."""
    order = [axis for kind in "cp" for axis, label in enumerate(labels) if label == kind]
    channels = [where.shape[axis] for axis, label in enumerate(labels) if label == "c"]
    made: Planned = where.transpose(order).reshape(*channels, -1)
    return made


def source_table(value: Rearranged, labels: str) -> tuple[Planned, list[int], tuple[int, int]]:
    """Return the source of each element, [channels, positions], the sizes of the channel axes, and the pixels of a
    plane.

    Labels may have at most two positions.
    """
    places = [size for size, label in zip(value.axes, labels, strict=True) if label == "p"]
    channels = [size for size, label in zip(value.axes, labels, strict=True) if label == "c"]
    if len(places) > 2 or len(labels) != len(value.axes):
        raise UnsupportedError("positions of more than two axes")
    pixels = (places[0], places[1]) if len(places) == 2 else (1, prod(places))
    return _elements_by_channel(value.where, labels).reshape(prod(channels), prod(pixels)), channels, pixels


# -- views -------------------------------------------------------------------------------------------------------------


def transposed(value: Rearranged, axes: Sequence[int]) -> Rearranged:
    """Permute the axes, given as axes of the whole value: the batch, axis 0, stays."""
    return value.view(value.where.transpose([axis - 1 for axis in axes[1:]]))


def reshaped(value: Rearranged, shape: Sequence[int | None]) -> Rearranged:
    """Reshape; `shape` includes the batch."""
    return value.view(value.where.reshape([int(size or 0) for size in shape[1:]]))


def flattened(value: Rearranged) -> Rearranged:
    """Flatten to [N, everything]."""
    return value.view(value.where.reshape(-1))


def sliced(value: Rearranged, axis: int, start: int, stop: int) -> Rearranged:
    """Slice an axis."""
    return value.view(value.where[(slice(None),) * (axis - 1) + (slice(start, stop),)])


def padded(value: Rearranged, before: Sequence[int], after: Sequence[int]) -> Rearranged:
    """Pad with zeros: numbers before and after each axis without the batch."""
    room = list(zip(before, after, strict=True))
    return value.view(np.pad(value.where, room, constant_values=ZERO))


def shuffled(value: Rearranged, groups: int) -> Rearranged:
    """Shuffle channels as in ShuffleNet."""
    channels, *rest = value.axes
    split = value.where.reshape(groups, channels // groups, *rest).swapaxes(0, 1)
    return value.view(split.reshape(channels, *rest))


def joined(values: Sequence[Rearranged], axis: int, storages: Storages) -> Rearranged:
    """Concatenate along an axis."""
    sources: dict[int, int] = {}
    tables, at = [], 0
    for value in values:
        begins, begin = [], 0
        for storage in value.sources:
            size = storages.all[storage].channels * prod(storages.all[storage].pixels)
            if storage not in sources:
                sources[storage] = at
                at += size
            begins.append((begin, begin + size, sources[storage] - begin))
            begin += size
        table = value.where.copy()
        for low, high, shift in begins:
            inside = (value.where >= low) & (value.where < high)
            table[inside] += shift
        tables.append(table)
    if sum(table.size for table in tables) > MOST_MOVED:
        raise UnsupportedError("a rearrangement of a value this large")
    return Rearranged(tuple(sources), np.concatenate(tables, axis=axis - 1))


def all_planes(storage: int, storages: Storages) -> ValueForm:
    """Return all planes of a storage."""
    one = storages.all[storage]
    return forms.new_value("cpp", [one.channels], one.pixels, storage)
