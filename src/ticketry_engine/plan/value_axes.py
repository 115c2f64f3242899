"""How the axes of a value are spread over channels and positions.

Behind the batch, each axis of a value is one of channels ("c") or of positions ("p"): [N, C, H, W] is "cpp", tokens
[N, T, D] are "pc", heads [N, h, T, d] are "cpc". A value is an array of planes with the shape of its channel axes, so
that transposing, splitting and joining channels make another array of the same planes and move no data. "f" is the one
axis of a flattened [N, C * H * W], read by linear layers as a kernel over the whole plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

Planned = np.ndarray[Any, np.dtype[np.int64]]


class UnsupportedError(Exception):
    """The reason why a layout cannot run a node, which then runs in torch: see `Compiled.layers`."""


@dataclass(frozen=True, eq=False)
class ValueForm:
    """Where a value is stored: its planes as (storage, number within it), its axes, and the pixels of a plane."""

    labels: str
    planes: Planned
    """[channel axes..., 2]: the storage and the plane in it."""
    pixels: tuple[int, int]
    """Height and width of a plane; (1, T) for a single axis of T tokens."""

    @property
    def flat(self) -> Planned:
        """The planes as [channels, 2], in the order of the channel axes."""
        return self.planes.reshape(-1, 2)

    @property
    def channels(self) -> int:
        return len(self.flat)

    @property
    def storages(self) -> list[int]:
        """Numbers of the storages of its planes."""
        found: list[int] = np.unique(self.planes[..., 0]).tolist()
        return found

    @property
    def axes(self) -> tuple[int, ...]:
        """The value's shape without the batch; merged positions count as their product."""
        sizes = iter(self.planes.shape[:-1])
        if self.labels == "f":
            return (prod(self.planes.shape[:-1]) * prod(self.pixels),)
        places = iter(self.pixels if self.labels.count("p") == 2 else (prod(self.pixels),))
        return tuple(next(sizes) if label == "c" else next(places) for label in self.labels)


def region_input(shape: Sequence[int | None], storage: int) -> ValueForm:
    """Return the form of an input of the region."""
    sizes = [int(size or 0) for size in shape[1:]]
    if len(sizes) == 3:
        return new_value("cpp", sizes[:1], (sizes[1], sizes[2]), storage)
    if len(sizes) == 2:
        return new_value("pc", sizes[1:], (1, sizes[0]), storage)
    if len(sizes) == 1:
        return new_value("c", sizes, (1, 1), storage)
    raise UnsupportedError(f"a value of {len(shape)} axes")


def new_value(labels: str, channels: Sequence[int], pixels: tuple[int, int], storage: int) -> ValueForm:
    """Return a value in a new storage."""
    count = prod(channels)
    planes = np.stack([np.full(count, storage, dtype=np.int64), np.arange(count, dtype=np.int64)], axis=-1)
    return ValueForm(labels, planes.reshape(*channels, 2), pixels)


def transposed(form: ValueForm, axes: Sequence[int]) -> ValueForm:
    """Permute the axes, given as axes of the whole value: the batch, axis 0, stays."""
    order = [axis - 1 for axis in axes[1:]]
    places = [axis for axis in order if form.labels[axis] == "p"]
    if places != sorted(places) or form.labels == "f":
        raise UnsupportedError("a transposition of rows and columns")
    numbers = {axis: count for count, axis in enumerate(a for a, label in enumerate(form.labels) if label == "c")}
    channel_order = [numbers[axis] for axis in order if form.labels[axis] == "c"]
    planes = form.planes.transpose(*channel_order, len(channel_order))
    return ValueForm("".join(form.labels[axis] for axis in order), planes, form.pixels)


def reshaped(form: ValueForm, shape: Sequence[int | None]) -> ValueForm:
    """Split or merge axes; each new axis must consist of channels only or of positions only."""
    if form.labels == "f":
        raise UnsupportedError("a new shape of a flattened value")
    old, new = list(form.axes), [int(size or 0) for size in shape[1:]]
    labels: list[str] = []
    channels: list[int] = []
    pixels: list[int] = []
    position = 0
    for group_old, group_new in _matching_axis_runs(old, new):
        kinds = set(form.labels[position : position + len(group_old)])
        position += len(group_old)
        if len(kinds) > 1:
            raise UnsupportedError("a shape that joins channels and positions")
        kind = kinds.pop() if kinds else "c"
        labels += [kind] * len(group_new)
        (channels if kind == "c" else pixels).extend(group_new)
    if len(pixels) > 2 or (len(pixels) == 2 and tuple(pixels) != form.pixels):
        raise UnsupportedError("a shape that splits positions")
    return ValueForm("".join(labels), form.planes.reshape(*channels, 2), form.pixels)


def _matching_axis_runs(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """Return the shortest runs of old and of new axes with equal numbers of elements."""
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right and i < len(old):
                left, i = left * old[i], i + 1
            elif right < left and j < len(new):
                right, j = right * new[j], j + 1
            else:
                raise UnsupportedError("a shape of another number of elements")
        blocks.append((old[a:i], new[b:j]))
    return blocks


def flattened(form: ValueForm) -> ValueForm:
    """Flatten to [N, everything]: channels only if planes have one pixel, else "f"."""
    if form.labels.lstrip("c").strip("p") or "c" not in form.labels:
        raise UnsupportedError("a flattened value whose positions come before its channels")
    if form.pixels == (1, 1) or "p" not in form.labels:
        return ValueForm("c", form.planes.reshape(-1, 2), form.pixels)
    return ValueForm("f", form.planes.reshape(-1, 2), form.pixels)


def joined(forms: Sequence[ValueForm], axis: int) -> ValueForm:
    """Concatenate along a channel axis: join the lists of planes."""
    first = forms[0]
    if any(form.labels != first.labels or form.pixels != first.pixels for form in forms):
        raise UnsupportedError("a concatenation of values that lie differently")
    return replace(
        first, planes=np.concatenate([form.planes for form in forms], axis=_channel_axis_number(first, axis))
    )


def sliced(form: ValueForm, axis: int, start: int, stop: int) -> ValueForm:
    """Slice a channel axis."""
    number = _channel_axis_number(form, axis)
    return replace(form, planes=form.planes[(slice(None),) * number + (slice(start, stop),)])


def shuffled(form: ValueForm, groups: int) -> ValueForm:
    """Shuffle channels as in ShuffleNet: [g, C / g] transposed."""
    if form.labels != "cpp":
        raise UnsupportedError("a shuffle of other than images")
    planes = form.planes.reshape(groups, -1, 2).transpose(1, 0, 2).reshape(-1, 2)
    return replace(form, planes=planes)


def _channel_axis_number(form: ValueForm, axis: int) -> int:
    """Return the position of an axis of the value among its channel axes."""
    label = form.labels[axis - 1]
    if label != "c" or form.labels == "f":
        raise UnsupportedError("a part of or an addition to positions")
    return form.labels[: axis - 1].count("c")
