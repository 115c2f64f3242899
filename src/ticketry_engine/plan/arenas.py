"""Assigns each value of a region a place in a thread's working memory, in the channels-last or the planar layout.

In the channels-last layout, concatenated values are parts of one wider value. All values of a residual stream have the
same order of channels, which the most expensive layer with grouped rows determines. In the planar layout, only values
of the same geometry share memory, so that the zeros around their planes (halos) are never overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from ticketry_engine.kernels import channels_last, planar
from ticketry_engine.kernels.channels_last.attention import MOST_KEYS
from ticketry_engine.kernels.channels_last.geometry import FLOAT
from ticketry_engine.plan.sketch import RegionTask, Sketch
from ticketry_engine.plan.storage import LayoutSlots, Storages, UnsupportedError, ValueForm
from ticketry_engine.support.row_groups import row_groups

_WORTH_APART = 2
"""An input is stored channel by channel if the channels-last layout would need this many times the memory."""

Order = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class _WideValue:
    """Neighbouring memory areas, so that an operation can read their channels as one tensor."""

    members: list[int]
    firsts: list[int]
    """First channel of each member in the wider value."""
    channels: int
    geometry: channels_last.ChannelsLastGeometry = field(init=False)
    offset: int = field(init=False, default=0)


class PixelsArena:
    """Assigns memory to the tensors of a subgraph, in the channels-last layout, for `images` images at a time."""

    layout: ModuleType = channels_last

    def __init__(self, sketch: Sketch, images: int, lanes: int, element_bytes: int = FLOAT) -> None:
        """Assign memory to all tensors of the tasks in `sketch`.

        `lanes` is the number of lanes of a vector register, `element_bytes` the number of bytes of an element.
        """
        self._item = element_bytes
        self._storages = sketch.storages
        self._wides = _join_wide_values(sketch, lanes)
        self._in = {
            member: (wide, first)
            for wide in self._wides
            for member, first in zip(wide.members, wide.firsts, strict=True)
        }
        self._apart = _inputs_with_separate_channels(sketch) if element_bytes == FLOAT else set()
        self._channel_orders = (
            _reordered_residual_channels(sketch)
            if element_bytes == FLOAT
            else pair_channels(sketch, _reordered_residual_channels(sketch), lanes)
        )
        self.bytes = self._assign_offsets(images)

    def value_memory(self, form: ValueForm) -> channels_last.ChannelsLastValue:
        """Return a tensor's location in memory; if it is computed in chunks of channels, the location of one chunk.

        Raise `UnsupportedError` if the tensor's channels are not consecutive.
        """
        runs = _channel_runs(form, self._storages)
        wide, first = self._in[runs[0][0]]
        if runs[0][2] > self._storages.all[runs[0][0]].channels:  # see `choose_chunks`
            return channels_last.ChannelsLastValue(wide.geometry, wide.offset)
        start = first + runs[0][1]
        at = start
        for storage, low, high in runs:
            other, base = self._in[storage]
            if other is not wide or base + low != at:
                raise UnsupportedError("channels that are not side by side")
            at = base + high
        return channels_last.ChannelsLastValue(wide.geometry, wide.offset, start, at - start)

    def channel_order(self, form: ValueForm) -> Order | None:
        """Return the channel numbers of a value in their order in memory; None if they keep their original order."""
        number = int(form.flat[0, 0])
        return self._channel_orders.get(self._storages.orders.find(number))

    def check_task(self, task: RegionTask) -> None:
        """Raise `UnsupportedError` if the channels-last layout cannot store the task's inputs or compute the task."""
        values = [self.value_memory(form) for form in task.inputs]
        if task.kind not in ("attention", "window_attention"):
            return
        q, k, v = values
        windows = task.kind == "window_attention"
        keys = k.geometry.width * (1 if windows else k.geometry.height)
        halos = not windows and (q.geometry.halo or k.geometry.halo or v.geometry.halo)
        shapes = [form.planes.shape for form in task.inputs]
        if halos or keys > MOST_KEYS or k.channels != v.channels or len({shape[1] for shape in shapes}) != 1:
            raise UnsupportedError("an attention that pixels have no kernel for")

    def _assign_offsets(self, images: int) -> int:
        """Assign to each tensor its first byte in the working memory, and return the memory's size in bytes."""
        memory: LayoutSlots[channels_last.ChannelsLastGeometry] = LayoutSlots()
        slots: dict[int, int] = {}
        order = sorted(self._wides, key=lambda wide: min(self._storages.all[one].born for one in wide.members))
        first = self._storages.memory_owners(once=True)
        under = [self._memory_owner(wide, first) for wide in order]
        dies: dict[int, int] = {}
        for wide, place in zip(order, under, strict=True):
            ends = max(self._storages.all[one].dies for one in wide.members)
            dies[id(place)] = max(dies.get(id(place), 0), ends)
        for wide, place in zip(order, under, strict=True):
            members = [self._storages.all[one] for one in wide.members]
            wide.geometry = self._geometry_of_joined_values(wide)
            if place is wide:
                slots[id(wide)] = memory.add_value(wide.geometry, 1, min(one.born for one in members), dies[id(wide)])
            else:
                slots[id(wide)] = slots[id(place)]
        starts, size = memory.offsets_and_total_bytes(lambda geometry: geometry.bytes(images))
        for wide in order:
            wide.offset = starts[wide.geometry] + slots[id(wide)] * wide.geometry.bytes(images)
        return size

    def _geometry_of_joined_values(self, wide: _WideValue) -> channels_last.ChannelsLastGeometry:
        height, width = self._storages.all[wide.members[0]].pixels
        halo = max(self._storages.largest_halo(one) for one in wide.members)
        found = channels_last.ChannelsLastGeometry.build(height, width, wide.channels, halo, self._item)
        if len(wide.members) > 1 or wide.members[0] not in self._apart:
            return found
        flat = channels_last.ChannelsLastGeometry.build_channel_planes(height, width, wide.channels, halo)
        return flat if _WORTH_APART * flat.image <= found.image else found

    def _memory_owner(self, wide: _WideValue, first: Sequence[int]) -> _WideValue:
        """Return the tensors whose memory `wide` uses: `wide` itself, or others that it may overwrite.

        `first` has, by number of a memory area, the number of the area that it overwrites, or else its own number.
        """
        if len(wide.members) > 1:
            return wide
        found, _ = self._in[first[wide.members[0]]]
        return found if len(found.members) == 1 else wide


Run = tuple[int, int, int]
"""Consecutive channels of a storage: (number of the storage, first channel, channel after the last)."""


def _channel_runs(form: ValueForm, storages: Storages) -> list[Run]:
    """Return a value's channels as the shortest list of runs of consecutive channels."""
    flat = form.flat
    if not len(flat):
        raise UnsupportedError("a value without channels")
    breaks = np.flatnonzero((np.diff(flat[:, 0]) != 0) | (np.diff(flat[:, 1]) != 1)) + 1
    return [(int(part[0, 0]), int(part[0, 1]), int(part[-1, 1]) + 1) for part in np.split(flat, breaks)]


def _join_wide_values(sketch: Sketch, lanes: int) -> list[_WideValue]:
    """Return the memory areas of all tensors; those that one operation reads as a single tensor are joined to one."""
    storages = sketch.storages
    sequences: dict[int, list[int]] = {}
    for task in sketch.tasks:
        for form in task.inputs:
            runs = _channel_runs(form, storages)
            if len(runs) > 1:
                _require_neighbours_in_memory(sequences, storages, runs, lanes)
    wides, seen = [], set()
    for number in range(len(storages.all)):
        members = sequences.get(number, [number])
        if members[0] in seen:
            continue
        seen.update(members)
        sizes = [storages.all[one].channels for one in members]
        wides.append(_WideValue(members, [sum(sizes[:index]) for index in range(len(sizes))], sum(sizes)))
    return wides


def _require_neighbours_in_memory(
    sequences: dict[int, list[int]], storages: Storages, runs: Sequence[Run], lanes: int
) -> None:
    """Record that the tensors in `runs` must be neighbours in memory; raise `UnsupportedError` if they cannot be.

    `sequences` is changed: it has, by number of a tensor's memory area, the areas that must follow each other.
    """
    whole = [storage for storage, low, high in runs if (low, high) == (0, storages.all[storage].channels)]
    if len(whole) != len(runs) or len(set(whole)) != len(whole):
        raise UnsupportedError("parts of values side by side")
    if any(storages.all[one].channels % lanes for one in whole[:-1]):
        raise UnsupportedError("values side by side whose channels are not whole vectors")
    known = sequences.get(whole[0], [whole[0]])
    shorter = min(len(known), len(whole))
    if known[:shorter] != whole[:shorter] or any(one in sequences for one in whole[shorter:]):
        raise UnsupportedError("values that would have to be side by side in two orders")
    longer = whole if len(whole) > len(known) else known
    for one in longer:
        sequences[one] = longer


def _inputs_with_separate_channels(sketch: Sketch) -> set[int]:
    """Return the numbers of the inputs that may be stored one channel after the other.

    These are the inputs that only linear layers and convolutions with one group read.
    """
    found = {int(task.output.flat[0, 0]) for task in sketch.tasks if task.kind == "load"}
    for task in sketch.tasks:
        whole = task.kind == "conv2d" and task.node.attrs.get("groups", 1) == 1
        flattened = task.kind == "linear" and task.inputs[0].labels == "f"
        for number, form in enumerate(task.inputs):
            if number or not (whole or flattened):
                found.difference_update(form.storages)
    return found


def _reordered_residual_channels(sketch: Sketch) -> dict[int, Order]:
    """Return a new order of channels for tensors that are connected by residual additions.

    The key of an order is the number of one of these tensors' memory areas. The order follows the most expensive layer
    that writes to such a tensor: weight rows of this layer that retain equal columns become neighbours.
    """
    storages = sketch.storages
    pinned = {storages.orders.find(one) for one in storages.pinned}
    best: dict[int, tuple[int, Order]] = {}
    for task, node in sketch.layer_tasks():
        root = storages.orders.find(int(task.output.flat[0, 0]))
        if root in pinned:
            continue
        weight = sketch.weight(node)
        work = int(weight.count_nonzero()) * task.output.pixels[0] * task.output.pixels[1]
        if root in best and best[root][0] >= work:
            continue
        groups = row_groups(weight)
        if 1 < len(groups) <= weight.shape[0] // 2:
            largest = sorted(groups, key=lambda group: (-len(group.rows), int(group.rows[0])))
            best[root] = (work, np.concatenate([group.rows for group in largest]))
    return {root: order for root, (_, order) in best.items() if not np.array_equal(order, np.sort(order))}


class PlanesArena:
    """Assigns memory to the tensors of a subgraph in the planar layout, in which each channel is stored separately.

    If `halos` is True, zeros surround the channels that convolutions read; else convolutions copy (unfold) their input.
    If there are enough images to fill a vector register with one pixel of each, `halos` has no effect.
    """

    layout: ModuleType = planar

    def __init__(self, storages: Storages, images: int, lanes: int, halos: bool = True) -> None:
        self.geometries = _plane_geometries(storages, images, lanes, halos)
        self._channels = np.array([one.channels for one in storages.all], dtype=np.int64)
        memory: LayoutSlots[planar.Geometry] = LayoutSlots()
        under = storages.memory_owners()
        dies: dict[int, int] = {}
        for place, one in zip(under, storages.all, strict=True):
            dies[place] = max(dies.get(place, 0), one.dies)
        slots = {
            number: memory.add_value(self.geometries[number], one.channels, one.born, dies[number])
            for number, one in enumerate(storages.all)
            if under[number] == number
        }
        self._slots = np.array([slots[number] for number in under], dtype=np.int64)
        self._starts, self.bytes = memory.offsets_and_total_bytes(lambda geometry: geometry.bytes)

    def value_memory(self, form: ValueForm) -> planar.Planes:
        """Return a tensor's location in memory; if it is computed in chunks of channels, the location of one chunk."""
        storages, numbers = form.flat[:, 0], form.flat[:, 1]
        if (
            numbers >= self._channels[storages]
        ).any():  # see `choose_chunks`: of one storage, from its first channel on
            storages, numbers = storages[: self._channels[storages[0]]], numbers[: self._channels[storages[0]]]
        geometry = self.geometries[int(storages[0])] if len(storages) else self.geometries[0]
        return planar.Planes(geometry, self._starts[geometry] + geometry.bytes * (self._slots[storages] + numbers))

    def channel_order(self, form: ValueForm) -> None:
        """Return None, because the planar layout never reorders channels."""

    def check_task(self, task: RegionTask) -> None:
        """Do nothing, because the planar layout has a kernel for every task."""


def _plane_geometries(storages: Storages, images: int, lanes: int, with_halos: bool) -> list[planar.Geometry]:
    """Return, for each tensor, how its channels are arranged in memory.

    The halo (zeros around a channel) is the largest that an operation needs. It is 0 if a row does not fill a vector,
    because a halo would leave lanes unused. If `with_halos` is False, it is also 0 if the images that are computed at a
    time do not fill a vector.
    """
    few = images < lanes
    none = [storage.pixels[1] * images < lanes or (few and not with_halos) for storage in storages.all]
    halos = [0 if none[number] else storages.largest_halo(number, few=few) for number in range(len(storages.all))]
    rows: dict[int, int] = {}
    for number, storage in enumerate(storages.all):
        key = storages.rows.find(number)
        rows[key] = max(rows.get(key, 0), storage.pixels[1] + halos[number])
    for number, storage in enumerate(storages.all):
        if storage.pixels == (1, 1) and not few:  # of one pixel it is all the same, and whole vectors read it anywhere
            rows[number] = 1 + halos[number]
    return [
        planar.Geometry(*storage.pixels, halos[number], images, rows.get(number, rows[storages.rows.find(number)]))
        for number, storage in enumerate(storages.all)
    ]


# -- pairs of channels -------------------------------------------------------------------------------------------------
#
# Reorder channels so that bfloat16 pairs are retained or pruned together as often as possible.
#
# Kernels multiply two neighbouring channels at once, and a pair with one retained channel takes as long as one with
# two. The planner may order the channels of a stream, as long as the rows of each producer's groups stay neighbours.
# Within these runs, channels that the stream's readers retain together become neighbours.

Array = np.ndarray[Any, Any]

_MOST = 256
"""Maximum number of channels among which pairs are chosen; longer runs are divided."""


def pair_channels(sketch: Sketch, orders: Mapping[int, Array], lanes: int) -> dict[int, Array]:
    """Return `orders` with changes, so that channels which layers retain together become neighbours.

    `orders` has, by number of a tensor's memory area, the channel numbers in their order in memory.
    """
    storages = sketch.storages
    pinned = {storages.orders.find(one) for one in storages.pinned}
    readers: dict[int, list[Array]] = {}
    writers: dict[int, list[Array]] = {}
    for task, node in sketch.layer_tasks():
        if node.attrs.get("groups", 1) == 1:
            read = storages.orders.find(int(task.inputs[0].flat[0, 0]))
            readers.setdefault(read, []).append(_work_roots_by_channel(sketch, task, lanes))
            labels = np.zeros(len(sketch.weight(node)), np.int64)  # number of each row's group
            for number, group in enumerate(row_groups(sketch.weight(node))):
                labels[np.asarray(group.rows)] = number
            writers.setdefault(storages.orders.find(int(task.output.flat[0, 0])), []).append(labels)
    found = dict(orders)
    for root, supports in readers.items():
        if root in pinned:
            continue
        kept = np.concatenate(supports, axis=1)
        order = orders.get(root, np.arange(len(kept)))
        found[root] = order[_order_similar_rows_together(kept[order], [each[order] for each in writers.get(root, [])])]
    return found


def _work_roots_by_channel(sketch: Sketch, task: RegionTask, lanes: int) -> Array:
    """Return, for each input channel, the square root of the work of each group of rows that retains the channel.

    The result is float32 [channels, groups * kernel size]; groups that prune the channel have 0.
    """
    weight = sketch.weight(task.node)
    groups = [group for group in row_groups(weight) if group.width]
    channels = task.inputs[0].channels
    if not groups:
        return np.zeros((channels, 0), np.float32)
    first = weight.detach().cpu().numpy()[[int(group.rows[0]) for group in groups]] != 0
    work = [-(-len(group.rows) // lanes) * task.output.pixels[0] * task.output.pixels[1] for group in groups]
    scaled = first.reshape(len(groups), channels, -1) * np.sqrt(np.array(work, np.float32))[:, None, None]
    return np.ascontiguousarray(scaled.swapaxes(0, 1).reshape(channels, -1), np.float32)


def _order_similar_rows_together(kept: Array, labels: list[Array]) -> Array:
    """Return an order of the rows of `kept` in which similar rows are neighbours.

    Two rows can change places only if every array in `labels` has equal numbers for them and for all rows in between.
    """
    count = len(kept)
    new = np.zeros(count, bool)
    for each in labels:
        new[1:] |= each[1:] != each[:-1]
    order = np.arange(count)
    for run in np.split(order, np.flatnonzero(new)):
        # Pairs begin at even places: the channel before the run's first one is its neighbour's.
        even = run[run[0] % 2 :] if len(run) else run
        for some in np.split(even, range(_MOST, len(even), _MOST)):
            if len(some) > 2:
                order[some] = some[order_by_best_pairs(kept[some] @ kept[some].T)]
    return order


def order_by_best_pairs(together: Array) -> Array:
    """Return an order of n elements in which the two elements at positions 2c and 2c + 1 have much in common.

    The matrix `together` [n, n] says how much two elements have in common.
    """
    count = len(together)
    rows, columns = np.triu_indices(count, 1)
    free = np.ones(count, bool)
    pairs: list[tuple[int, int]] = []
    for index in np.argsort(-together[rows, columns], kind="stable").tolist():
        one, other = int(rows[index]), int(columns[index])
        if free[one] and free[other]:
            free[one] = free[other] = False
            pairs.append((one, other))
            if len(pairs) == count // 2:
                break
    _exchange_partners(together, pairs)
    return np.array([*(one for pair in sorted(pairs) for one in pair), *np.flatnonzero(free)], dtype=np.int64)


def _exchange_partners(together: Array, pairs: list[tuple[int, int]]) -> None:
    """Exchange elements between `pairs`, in place, while this increases the sum of `together` over all pairs."""
    better = True
    while better:
        better = False
        for i in range(len(pairs)):
            for j in range(i):
                (a, b), (c, d) = pairs[i], pairs[j]
                now = together[a, b] + together[c, d]
                crossed, straight = together[a, d] + together[c, b], together[a, c] + together[b, d]
                if max(crossed, straight) > now * (1 + 1e-6):
                    pairs[i], pairs[j] = ((a, d), (c, b)) if crossed >= straight else ((a, c), (b, d))
                    better = True
