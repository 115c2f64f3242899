"""Assigns the axes of a value to channels and pixels.

Each axis after the batch has a label: "c" for channels or "p" for pixels (positions). [N, C, H, W] is "cpp", tokens
[N, T, D] are "pc", heads [N, h, T, d] are "cpc". A value is an array of planes with the shape of its channel axes.
Transposing, splitting and joining channels give another array of the same planes, and move no data. "f" is the single
axis of a flattened value [N, C * H * W]; a linear layer reads it like a convolution with a kernel of a whole plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

Planned = np.ndarray[Any, np.dtype[np.int64]]


class UnsupportedError(Exception):
    """Error for a node that a layout cannot run; torch then runs the node, and `Compiled.layers` shows the message."""


@dataclass(frozen=True, eq=False)
class ValueForm:
    """The axis labels of a value, the planes that store it, and the pixels of a plane."""

    labels: str
    planes: Planned
    """Array [channel axes..., 2] of (number of a storage, number of a plane in the storage)."""
    pixels: tuple[int, int]
    """Height and width of a plane; (1, T) for a single axis of T tokens."""

    @property
    def flat(self) -> Planned:
        """Return the planes as [channels, 2], with all channel axes flattened."""
        return self.planes.reshape(-1, 2)

    @property
    def channels(self) -> int:
        return len(self.flat)

    @property
    def storages(self) -> list[int]:
        """Return the numbers of the storages that contain the value's planes."""
        found: list[int] = np.unique(self.planes[..., 0]).tolist()
        return found

    @property
    def axes(self) -> tuple[int, ...]:
        """Return the value's shape without the batch."""
        sizes = iter(self.planes.shape[:-1])
        if self.labels == "f":
            return (prod(self.planes.shape[:-1]) * prod(self.pixels),)
        places = iter(self.pixels if self.labels.count("p") == 2 else (prod(self.pixels),))
        return tuple(next(sizes) if label == "c" else next(places) for label in self.labels)

    def transposed(self, axes: Sequence[int]) -> ValueForm:
        """Return the value with permuted axes; `axes` includes the batch, axis 0, which stays in place."""
        order = [axis - 1 for axis in axes[1:]]
        places = [axis for axis in order if self.labels[axis] == "p"]
        if places != sorted(places) or self.labels == "f":
            raise UnsupportedError("a transposition of rows and columns")
        numbers = {axis: count for count, axis in enumerate(a for a, label in enumerate(self.labels) if label == "c")}
        channel_order = [numbers[axis] for axis in order if self.labels[axis] == "c"]
        planes = self.planes.transpose(*channel_order, len(channel_order))
        return ValueForm("".join(self.labels[axis] for axis in order), planes, self.pixels)

    def reshaped(self, shape: Sequence[int | None]) -> ValueForm:
        """Return the value in a new shape (with batch); raise `UnsupportedError` if it mixes channels and pixels."""
        if self.labels == "f":
            raise UnsupportedError("a new shape of a flattened value")
        old, new = list(self.axes), [int(size or 0) for size in shape[1:]]
        labels: list[str] = []
        channels: list[int] = []
        pixels: list[int] = []
        position = 0
        for group_old, group_new in _matching_axis_runs(old, new):
            kinds = set(self.labels[position : position + len(group_old)])
            position += len(group_old)
            if len(kinds) > 1:
                raise UnsupportedError("a shape that joins channels and positions")
            kind = kinds.pop() if kinds else "c"
            labels += [kind] * len(group_new)
            (channels if kind == "c" else pixels).extend(group_new)
        if len(pixels) > 2 or (len(pixels) == 2 and tuple(pixels) != self.pixels):
            raise UnsupportedError("a shape that splits positions")
        return ValueForm("".join(labels), self.planes.reshape(*channels, 2), self.pixels)

    def flattened(self) -> ValueForm:
        """Return the value flattened to one axis besides the batch: "c" if planes have one pixel, else "f"."""
        if self.labels.lstrip("c").strip("p") or "c" not in self.labels:
            raise UnsupportedError("a flattened value whose positions come before its channels")
        if self.pixels == (1, 1) or "p" not in self.labels:
            return ValueForm("c", self.planes.reshape(-1, 2), self.pixels)
        return ValueForm("f", self.planes.reshape(-1, 2), self.pixels)

    def sliced(self, axis: int, start: int, stop: int) -> ValueForm:
        """Return the entries from `start` to before `stop` along the channel axis `axis`, where the batch is axis 0."""
        number = self._channel_axis_number(axis)
        return replace(self, planes=self.planes[(slice(None),) * number + (slice(start, stop),)])

    def shuffled(self, groups: int) -> ValueForm:
        """Return the value with channels shuffled between groups as in ShuffleNet."""
        if self.labels != "cpp":
            raise UnsupportedError("a shuffle of other than images")
        planes = self.planes.reshape(groups, -1, 2).transpose(1, 0, 2).reshape(-1, 2)
        return replace(self, planes=planes)

    def _channel_axis_number(self, axis: int) -> int:
        """Return the number of channel axes before `axis`, which must be a channel axis; the batch is axis 0."""
        label = self.labels[axis - 1]
        if label != "c" or self.labels == "f":
            raise UnsupportedError("a part of or an addition to positions")
        return self.labels[: axis - 1].count("c")


def region_input(shape: Sequence[int | None], storage: int) -> ValueForm:
    """Return an input of a region with the given shape as a value in the storage with the number `storage`."""
    sizes = [int(size or 0) for size in shape[1:]]
    if len(sizes) == 3:
        return new_value("cpp", sizes[:1], (sizes[1], sizes[2]), storage)
    if len(sizes) == 2:
        return new_value("pc", sizes[1:], (1, sizes[0]), storage)
    if len(sizes) == 1:
        return new_value("c", sizes, (1, 1), storage)
    raise UnsupportedError(f"a value of {len(shape)} axes")


def new_value(labels: str, channels: Sequence[int], pixels: tuple[int, int], storage: int) -> ValueForm:
    """Return a value that consists of all planes of the storage `storage`; `channels` are its channel axes."""
    count = prod(channels)
    planes = np.stack([np.full(count, storage, dtype=np.int64), np.arange(count, dtype=np.int64)], axis=-1)
    return ValueForm(labels, planes.reshape(*channels, 2), pixels)


def _matching_axis_runs(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """Return pairs of shortest runs of old axes and of new axes that have equal numbers of elements."""
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


def joined(forms: Sequence[ValueForm], axis: int) -> ValueForm:
    """Return the values concatenated along the channel axis `axis`, where the batch is axis 0."""
    first = forms[0]
    if any(form.labels != first.labels or form.pixels != first.pixels for form in forms):
        raise UnsupportedError("a concatenation of values that lie differently")
    return replace(first, planes=np.concatenate([form.planes for form in forms], axis=first._channel_axis_number(axis)))
