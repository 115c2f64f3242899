"""Represents rearranged values: rolled, padded, cut into windows, or with channels and pixels exchanged.

A rearranged value is a table that contains the source of each element. A view of the value is a view of the table, so
views take no time at run time. The elements are copied to new memory when an operation computes with the value.
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
"""Index in a table of sources that stands for an element that is 0."""


@dataclass(frozen=True, eq=False)
class Rearranged:
    """A value that contains elements of some storages in any arrangement."""

    sources: tuple[int, ...]
    """Numbers of the storages that the elements come from."""
    where: Planned
    """Table [axes without the batch] with the index of each element in the concatenated sources, or `ZERO`.

    The elements of a source are counted channel by channel, and those of a channel pixel by pixel."""

    @property
    def axes(self) -> tuple[int, ...]:
        """Return the value's shape without the batch."""
        return tuple(self.where.shape)

    def view(self, where: Planned) -> Rearranged:
        """Return a value with the same sources and the table `where`."""
        return replace(self, where=where)


def rearranged(value: ValueForm | Rearranged, storages: Storages) -> Rearranged:
    """Return a value as a table of the sources of its elements.

    Raises:
        UnsupportedError: if the value has too many elements.
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
    """Return a rearranged value as a list of whole planes of its sources; None if the value cuts or changes planes.

    `labels` has a letter per axis: "c" for channels, "p" for pixels.
    """
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
    """Return the table transposed and reshaped to [channel axes..., pixels]; `labels` says which axes are channels."""
    order = [axis for kind in "cp" for axis, label in enumerate(labels) if label == kind]
    channels = [where.shape[axis] for axis, label in enumerate(labels) if label == "c"]
    made: Planned = where.transpose(order).reshape(*channels, -1)
    return made


def source_table(value: Rearranged, labels: str) -> tuple[Planned, list[int], tuple[int, int]]:
    """Return (table of sources [channels, pixels], sizes of the channel axes, height and width of a plane).

    `labels` has a letter per axis, "c" for channels and "p" for pixels, and at most two "p".
    """
    places = [size for size, label in zip(value.axes, labels, strict=True) if label == "p"]
    channels = [size for size, label in zip(value.axes, labels, strict=True) if label == "c"]
    if len(places) > 2 or len(labels) != len(value.axes):
        raise UnsupportedError("positions of more than two axes")
    pixels = (places[0], places[1]) if len(places) == 2 else (1, prod(places))
    return _elements_by_channel(value.where, labels).reshape(prod(channels), prod(pixels)), channels, pixels


# -- views -------------------------------------------------------------------------------------------------------------


def transposed(value: Rearranged, axes: Sequence[int]) -> Rearranged:
    """Return the value with permuted axes; `axes` includes the batch, axis 0, which stays in place."""
    return value.view(value.where.transpose([axis - 1 for axis in axes[1:]]))


def reshaped(value: Rearranged, shape: Sequence[int | None]) -> Rearranged:
    """Return the value reshaped to `shape`, which includes the batch."""
    return value.view(value.where.reshape([int(size or 0) for size in shape[1:]]))


def flattened(value: Rearranged) -> Rearranged:
    """Return the value flattened to one axis besides the batch."""
    return value.view(value.where.reshape(-1))


def sliced(value: Rearranged, axis: int, start: int, stop: int) -> Rearranged:
    """Return the entries from `start` to before `stop` along `axis`, where the batch is axis 0."""
    return value.view(value.where[(slice(None),) * (axis - 1) + (slice(start, stop),)])


def padded(value: Rearranged, before: Sequence[int], after: Sequence[int]) -> Rearranged:
    """Return the value padded with zeros; `before` and `after` have the numbers for each axis except the batch."""
    room = list(zip(before, after, strict=True))
    return value.view(np.pad(value.where, room, constant_values=ZERO))


def shuffled(value: Rearranged, groups: int) -> Rearranged:
    """Return the value with channels shuffled between groups as in ShuffleNet."""
    channels, *rest = value.axes
    split = value.where.reshape(groups, channels // groups, *rest).swapaxes(0, 1)
    return value.view(split.reshape(channels, *rest))


def joined(values: Sequence[Rearranged], axis: int, storages: Storages) -> Rearranged:
    """Return the values concatenated along `axis`, where the batch is axis 0."""
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
    """Return the value that consists of all planes of the storage with the number `storage`."""
    one = storages.all[storage]
    return forms.new_value("cpp", [one.channels], one.pixels, storage)
