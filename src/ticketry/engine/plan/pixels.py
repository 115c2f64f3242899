"""Storages as pixels in an arena, with the channels of each stream in an order in which groups of rows are runs.

What is concatenated lies side by side in one wider value. A residual stream has one order of channels: that of its most
expensive producer whose rows are grouped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ticketry.core.structure.groups import row_groups
from ticketry.engine.cpu.pixels.geometry import FLOAT, Geometry, Pixels
from ticketry.engine.plan.forms import Form, UnsupportedError
from ticketry.engine.plan.pairing import paired
from ticketry.engine.plan.sketch import Sketch
from ticketry.engine.plan.storage import Storages, first_gap

Order = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class _Wide:
    """Storages side by side."""

    members: list[int]
    firsts: list[int]
    """The first channel of each."""
    channels: int
    geometry: Geometry = field(init=False)
    offset: int = field(init=False, default=0)


class PixelsArena:
    """Where each value of a region lies, for blocks of so many images."""

    def __init__(self, sketch: Sketch, images: int, lanes: int, item: int = FLOAT) -> None:
        """`item`: bytes of a value."""
        self._item = item
        self._storages = sketch.storages
        self._wides = _side_by_side(sketch, lanes)
        self._in = {
            member: (wide, first)
            for wide in self._wides
            for member, first in zip(wide.members, wide.firsts, strict=True)
        }
        self._orders = _orders(sketch) if item == FLOAT else paired(sketch, _orders(sketch), lanes)
        self.bytes = self._place(images)

    def value(self, form: Form) -> Pixels:
        """Where a value lies."""
        runs = _runs(form, self._storages)
        wide, first = self._in[runs[0][0]]
        start = first + runs[0][1]
        at = start
        for storage, low, high in runs:
            other, base = self._in[storage]
            if other is not wide or base + low != at:
                raise UnsupportedError("channels that do not lie side by side")
            at = base + high
        return Pixels(wide.geometry, wide.offset, start, at - start)

    def order(self, form: Form) -> Order | None:
        """The value's channels in the order in which they lie; None for their own."""
        number = int(form.flat[0, 0])
        return self._orders.get(self._storages.orders.find(number))

    def _place(self, images: int) -> int:
        """Give each value its place: in memory that no other living value of its geometry uses. Returns the size."""
        placed: dict[Geometry, list[tuple[int, int, int]]] = {}
        counts: dict[Geometry, int] = {}
        slots = []
        for wide in sorted(self._wides, key=lambda wide: min(self._storages.all[one].born for one in wide.members)):
            members = [self._storages.all[one] for one in wide.members]
            born, dies = min(one.born for one in members), max(one.dies for one in members)
            halo = max(self._storages.halo(one) for one in wide.members)
            wide.geometry = Geometry.of(*members[0].pixels, wide.channels, halo, self._item)
            others = placed.setdefault(wide.geometry, [])
            taken = sorted((slot, slot + 1) for slot, begin, end in others if end >= born and begin <= dies)
            slot = first_gap(taken, 1)
            others.append((slot, born, dies))
            counts[wide.geometry] = max(counts.get(wide.geometry, 0), slot + 1)
            slots.append((wide, slot))
        starts, end = {}, 0
        for geometry, count in counts.items():
            starts[geometry] = end
            end += count * geometry.bytes(images)
        for wide, slot in slots:
            wide.offset = starts[wide.geometry] + slot * wide.geometry.bytes(images)
        return end


Run = tuple[int, int, int]
"""A storage, and its channels from … to."""


def _runs(form: Form, storages: Storages) -> list[Run]:
    """The value's channels as the shortest list of runs."""
    flat = form.flat
    if not len(flat):
        raise UnsupportedError("a value without channels")
    breaks = np.flatnonzero((np.diff(flat[:, 0]) != 0) | (np.diff(flat[:, 1]) != 1)) + 1
    return [(int(part[0, 0]), int(part[0, 1]), int(part[-1, 1]) + 1) for part in np.split(flat, breaks)]


def _side_by_side(sketch: Sketch, lanes: int) -> list[_Wide]:
    """Which storages are parts of one wider value, because some task reads them as one."""
    storages = sketch.storages
    sequences: dict[int, list[int]] = {}
    for task in sketch.tasks:
        for form in task.inputs:
            runs = _runs(form, storages)
            if len(runs) > 1:
                _join(sequences, storages, runs, lanes)
    wides, seen = [], set()
    for number in range(len(storages.all)):
        members = sequences.get(number, [number])
        if members[0] in seen:
            continue
        seen.update(members)
        sizes = [storages.all[one].channels for one in members]
        wides.append(_Wide(members, [sum(sizes[:index]) for index in range(len(sizes))], sum(sizes)))
    return wides


def _join(sequences: dict[int, list[int]], storages: Storages, runs: Sequence[Run], lanes: int) -> None:
    """Put the storages of a value's runs side by side, behind those that are so already."""
    whole = [storage for storage, low, high in runs if (low, high) == (0, storages.all[storage].channels)]
    if len(whole) != len(runs) or len(set(whole)) != len(whole):
        raise UnsupportedError("parts of values side by side")
    if any(storages.all[one].channels % lanes for one in whole[:-1]):
        raise UnsupportedError("values side by side whose channels are not whole vectors")
    known = sequences.get(whole[0], [whole[0]])
    shorter = min(len(known), len(whole))
    if known[:shorter] != whole[:shorter] or any(one in sequences for one in whole[shorter:]):
        raise UnsupportedError("values that would have to lie side by side in two orders")
    longer = whole if len(whole) > len(known) else known
    for one in longer:
        sequences[one] = longer


def _orders(sketch: Sketch) -> dict[int, Order]:
    """The order of the channels of each stream that has one of its own, by the stream's root."""
    storages = sketch.storages
    pinned = {storages.orders.find(one) for one in storages.pinned}
    best: dict[int, tuple[int, Order]] = {}
    for task in sketch.tasks:
        if task.node is None or task.output is None or task.kind not in ("conv2d", "linear"):
            continue
        root = storages.orders.find(int(task.output.flat[0, 0]))
        if root in pinned:
            continue
        weight = sketch.weight(task.node)
        work = int(weight.count_nonzero()) * task.output.pixels[0] * task.output.pixels[1]
        if root in best and best[root][0] >= work:
            continue
        groups = row_groups(weight)
        if 1 < len(groups) <= weight.shape[0] // 2:
            largest = sorted(groups, key=lambda group: (-len(group.rows), int(group.rows[0])))
            best[root] = (work, np.concatenate([group.rows for group in largest]))
    return {root: order for root, (_, order) in best.items() if not np.array_equal(order, np.sort(order))}
