"""Values of a region: the planes that store them, lifetimes and constraints of storages, and memory.

Each axis after the batch has a label: "c" for channels or "p" for pixels (positions). [N, C, H, W] is "cpp", tokens
[N, T, D] are "pc", heads [N, h, T, d] are "cpc". A value is an array of planes with the shape of its channel axes.
Transposing, splitting and joining channels give another array of the same planes, and move no data. "f" is the single
axis of a flattened value [N, C * H * W]; a linear layer reads it like a convolution with a kernel of a whole plane.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np

from ticketry_engine.ir.native import MOST_MOVED

Planned = np.ndarray[Any, np.dtype[np.int64]]


class UnsupportedError(Exception):
    """Error for a node that kernels cannot run; torch then runs the node, and `Compiled.layers` shows the message."""


@dataclass(frozen=True, eq=False)
class ValueForm:
    """Memory layout of a tensor: which axes are channels and which are pixels, and where each channel is stored."""

    labels: str
    planes: Planned
    """Array [channel axes..., 2] of (number of a storage, number of a plane in the storage)."""
    pixels: tuple[int, int]
    """Height and width of a plane; (1, T) for a single axis of T tokens."""

    @property
    def flat(self) -> Planned:
        """Return (memory area, position in it) of each channel as [channels, 2], with all channel axes flattened."""
        return self.planes.reshape(-1, 2)

    @property
    def channels(self) -> int:
        return len(self.flat)

    @property
    def storages(self) -> list[int]:
        """Return the numbers of the memory areas that contain the tensor's channels."""
        found: list[int] = np.unique(self.planes[..., 0]).tolist()
        return found

    @property
    def axes(self) -> tuple[int, ...]:
        """Return the tensor's shape without the batch."""
        sizes = iter(self.planes.shape[:-1])
        if self.labels == "f":
            return (prod(self.planes.shape[:-1]) * prod(self.pixels),)
        places = iter(self.pixels if self.labels.count("p") == 2 else (prod(self.pixels),))
        return tuple(next(sizes) if label == "c" else next(places) for label in self.labels)

    def transposed(self, axes: Sequence[int]) -> ValueForm:
        """Return the tensor with permuted axes; `axes` includes the batch, axis 0, which stays in place."""
        order = [axis - 1 for axis in axes[1:]]
        places = [axis for axis in order if self.labels[axis] == "p"]
        if places != sorted(places) or self.labels == "f":
            raise UnsupportedError("a transposition of rows and columns")
        numbers = {axis: count for count, axis in enumerate(a for a, label in enumerate(self.labels) if label == "c")}
        channel_order = [numbers[axis] for axis in order if self.labels[axis] == "c"]
        planes = self.planes.transpose(*channel_order, len(channel_order))
        return ValueForm("".join(self.labels[axis] for axis in order), planes, self.pixels)

    def reshaped(self, shape: Sequence[int | None]) -> ValueForm:
        """Return the tensor in a new shape (with batch); raise an error if a new axis would mix channels and pixels."""
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
        """Return the tensor with a single axis besides the batch.

        The axis has the label "c" (channels) if each channel is one pixel, else "f" (channels and pixels flattened).
        """
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
        """Return the tensor with channels shuffled between groups as in ShuffleNet."""
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
    """Return an input of a subgraph with the given shape; `storage` is the number of its memory area."""
    sizes = [int(size or 0) for size in shape[1:]]
    if len(sizes) == 3:
        return new_value("cpp", sizes[:1], (sizes[1], sizes[2]), storage)
    if len(sizes) == 2:
        return new_value("pc", sizes[1:], (1, sizes[0]), storage)
    if len(sizes) == 1:
        return new_value("c", sizes, (1, 1), storage)
    raise UnsupportedError(f"a value of {len(shape)} axes")


def new_value(labels: str, channels: Sequence[int], pixels: tuple[int, int], storage: int) -> ValueForm:
    """Return a tensor that consists of all channels in the memory area with the number `storage`.

    `labels` has "c" (channels) or "p" (pixels) for each axis, `channels` are the sizes of the channel axes, and
    `pixels` is (height, width).
    """
    count = prod(channels)
    planes = np.stack([np.full(count, storage, dtype=np.int64), np.arange(count, dtype=np.int64)], axis=-1)
    return ValueForm(labels, planes.reshape(*channels, 2), pixels)


def _matching_axis_runs(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """Divide old and new axes of a reshape into the shortest groups with equal numbers of elements.

    Return pairs (sizes of the old axes, sizes of the new axes) of a group.
    """
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


def join_channels(forms: Sequence[ValueForm], axis: int) -> ValueForm:
    """Return the tensors concatenated along the channel axis `axis`, where the batch is axis 0."""
    first = forms[0]
    if any(form.labels != first.labels or form.pixels != first.pixels for form in forms):
        raise UnsupportedError("a concatenation of values in different layouts")
    return replace(first, planes=np.concatenate([form.planes for form in forms], axis=first._channel_axis_number(axis)))


@dataclass
class Storage:
    """Requirements of a memory area: the channels that one operation writes, their size, and zeros around them."""

    channels: int
    pixels: tuple[int, int]
    halo: int = 0
    """Largest number of zeros around each plane that a reader needs."""
    halo_of_few: int = 0
    """Largest number of zeros around each plane that a reader uses if images do not fill a vector."""
    born: int = 0
    dies: int = 0
    """Number of the last operation that reads the storage; `born` is the number of the operation that writes it."""


class Union:
    """Disjoint sets of storages (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, one: int) -> int:
        self._parent.setdefault(one, one)
        while self._parent[one] != one:
            self._parent[one] = self._parent[self._parent[one]]
            one = self._parent[one]
        return one

    def join(self, several: Iterable[int]) -> None:
        roots = [self.find(one) for one in several]
        for other in roots[1:]:
            self._parent[self.find(other)] = self.find(roots[0])


@dataclass
class Storages:
    """All memory areas of a subgraph's tensors, and the conditions under which they are arranged."""

    all: list[Storage] = field(default_factory=list)
    halos: Union = field(default_factory=Union)
    """Sets of storages that must have equal geometries, because they are concatenated, added, or read as one value."""
    rows: Union = field(default_factory=Union)
    """Sets of storages with equal distances between rows, such as the input and output of a layer with stride 1."""

    orders: Union = field(default_factory=Union)
    """Sets of storages that must have the same order of channels, because an operation works channel by channel."""
    pinned: set[int] = field(default_factory=set)
    """Storages whose channels must keep their original order."""
    over: dict[int, int] = field(default_factory=dict)
    """Number of a storage -> number of another storage, which it may overwrite as soon as no operation reads the other.

    Both storages have the same geometry."""
    once: set[int] = field(default_factory=set)
    """Numbers of the storages in `over` whose elements every layout writes only once."""

    def add_storage(self, channels: int, pixels: tuple[int, int], born: int) -> int:
        self.all.append(Storage(channels, pixels, born=born, dies=born))
        return len(self.all) - 1

    def record_read(self, form: ValueForm, when: int, halo: int = 0, halo_of_few: int | None = None) -> None:
        """Record that operation `when` reads a tensor with `halo` zeros around each channel's image.

        If there are too few images to fill a vector register with one pixel of each, `halo_of_few` replaces `halo`.
        """
        for number in form.storages:
            storage = self.all[number]
            storage.dies = max(storage.dies, when)
            storage.halo = max(storage.halo, halo)
            storage.halo_of_few = max(storage.halo_of_few, halo if halo_of_few is None else halo_of_few)
        self.require_equal_geometry([form])

    def require_equal_geometry(self, forms: Iterable[ValueForm]) -> None:
        """Require that all channels of these tensors have equal distances and equally many zeros around them."""
        numbers = [number for form in forms for number in form.storages]
        self.halos.join(numbers)
        self.rows.join(numbers)

    def require_equal_order(self, *forms: ValueForm) -> None:
        """Require that the channels of all given tensors are stored in the same order."""
        for numbers in zip(*(form.flat[:, 0].tolist() for form in forms), strict=True):
            self.orders.join(numbers)
        for form in forms:
            if len(form.storages) > 1 or form.channels != self.all[form.storages[0]].channels:
                self.pin_channel_order(form)

    def pin_channel_order(self, form: ValueForm) -> None:
        """Require that the channels of a tensor keep their original order."""
        self.pinned.update(form.storages)

    def require_equal_row_distances(self, one: ValueForm, other: ValueForm) -> None:
        self.rows.join([*one.storages, *other.storages])

    def allow_overwriting(self, y: ValueForm, x: ValueForm, others: Iterable[ValueForm], *, once: bool) -> None:
        """Allow y to overwrite x: the operation that computes y reads each element of x right before writing it in y.

        `others` are further inputs, which must not share memory with y. `once` says whether every layout writes each
        element only once, which is not true of a convolution in the channels-last layout.
        """
        whole = len(x.storages) == 1 and x.channels == self.all[x.storages[0]].channels == y.channels
        elsewhere = all(x.storages[0] not in other.storages for other in others)
        if whole and elsewhere and bool((x.flat[:, 1] == range(x.channels)).all()):
            self.over[y.storages[0]] = x.storages[0]
            if once:
                self.once.add(y.storages[0])

    def memory_owners(self, *, once: bool = False) -> list[int]:
        """Return, for each memory area, the number of the area that it overwrites; its own number if none.

        If `once`, areas overwrite others only if each of their elements is written once.
        """
        found: list[int] = []
        for number, storage in enumerate(self.all):
            below = self.over.get(number)
            over = below is not None and self.all[below].dies == storage.born and (not once or number in self.once)
            found.append(found[below] if over and below is not None else number)
        return found

    def largest_halo(self, number: int, *, few: bool = False) -> int:
        """Return the largest number of zeros around a channel among the areas that must have as many as area `number`.

        If `few`, return the number for batches that are too small to fill a vector register with one pixel of each
        image.
        """
        key = self.halos.find(number)
        relatives = [storage for other, storage in enumerate(self.all) if self.halos.find(other) == key]
        return max(storage.halo_of_few if few else storage.halo for storage in relatives)


# -- allocation of working memory: buffers that are in use at the same time never overlap ------------------------------

#     inference   lifetimes are known in advance; each layout has its own memory, so that its zero borders stay zero
#     training    buffers are taken and released as operations are emitted; all layouts share one memory
#
# Operations may wait to run together, block by block. Then one operation may be at its first block when another is at
# its last. Until these operations have run, a buffer that they release is reused only by a buffer of the same layout,
# whose blocks are in the same places.


LARGEST_ARENA = (1 << 31) - (1 << 24)
"""Maximum bytes of working memory that the 32-bit offsets of tables can address."""


@dataclass(frozen=True)
class Buffer:
    """A range of memory, in bytes or in slots of equal size."""

    begin: int
    end: int
    layout: Hashable
    """Identifier of the buffer's layout; buffers of equal layouts have zeros at the same places."""

    def overlaps(self, other: Buffer) -> bool:
        """Return whether two buffers have bytes in common."""
        return self.begin < other.end and other.begin < self.end


class BufferAllocator:
    """Allocates buffers in one memory, and reuses released buffers."""

    def __init__(self) -> None:
        self.size = 0
        """Size of the memory, in bytes or slots."""
        self._free: list[tuple[int, int]] = []
        """Free ranges (begin, end) in ascending order; adjacent ranges are joined."""
        self._clean: list[Buffer] = []
        """Released buffers that nothing has overwritten; buffers that waiting operations may still use come last."""
        self._waiting = 0
        """Number of released buffers that waiting operations may still use."""
        self._given: list[Buffer] = []

    def allocate(self, size: int, layout: Hashable) -> tuple[Buffer, bool]:
        """Return (a buffer, whether its zero borders are still intact).

        The borders are intact if all earlier users of the buffer had the same `layout`.
        """
        for number in reversed(range(len(self._clean))):
            buffer = self._clean[number]
            if buffer.layout == layout and buffer.end - buffer.begin == size:
                del self._clean[number]
                if number >= len(self._clean) + 1 - self._waiting:
                    self._waiting -= 1
                else:
                    self._mark_occupied(buffer)
                self._given.append(buffer)
                return buffer, True
        fitting = [(end - begin, begin) for begin, end in self._free if end - begin >= size]
        extends = bool(self._free) and self._free[-1][1] == self.size  # the free range at the end
        begin = min(fitting)[1] if fitting else self._free[-1][0] if extends else self.size
        buffer = Buffer(begin, begin + size, layout)
        self.size = max(self.size, buffer.end)
        self._mark_occupied(buffer)
        self._given.append(buffer)
        return buffer, False

    def release(self, buffer: Buffer) -> None:
        """Release a buffer; operations that are added from now on do not use its content.

        Operations that were added before may not have run yet. Until `free_released_buffers` is called, only a buffer
        of equal layout and size reuses the memory.
        """
        self._clean.append(buffer)
        self._waiting += 1

    def free_released_buffers(self) -> None:
        """Make all released buffers available; call this when the operations that use them have run."""
        for buffer in self._clean[len(self._clean) - self._waiting :]:
            bisect.insort(self._free, (buffer.begin, buffer.end))
        self._waiting = 0
        joined: list[tuple[int, int]] = []
        for begin, end in self._free:
            if joined and joined[-1][1] == begin:
                begin, _ = joined.pop()
            joined.append((begin, end))
        self._free = joined

    def is_exclusive(self, buffer: Buffer) -> bool:
        """Return whether all buffers that ever used these bytes had the same layout, so that borders stay zero."""
        return all(
            other.layout == buffer.layout and other.begin == buffer.begin
            for other in self._given
            if other.overlaps(buffer)
        )

    def _mark_occupied(self, buffer: Buffer) -> None:
        left: list[tuple[int, int]] = []
        for begin, end in self._free:
            parts = [(begin, min(end, buffer.begin)), (max(begin, buffer.end), end)]
            left += [part for part in parts if part[0] < part[1]]
        self._free = left
        settled = len(self._clean) - self._waiting
        clean = [other for other in self._clean[:settled] if not other.overlaps(buffer)]
        self._clean = clean + self._clean[settled:]


G = TypeVar("G", bound=Hashable)


class LayoutSlots(Generic[G]):
    """Assigns places of equal size (slots) to values, in a separate memory for each layout.

    Values are added in the order in which they are written.
    """

    def __init__(self) -> None:
        self._memories: dict[G, BufferAllocator] = {}
        self._live: dict[G, list[tuple[int, Buffer]]] = {}

    def add_value(self, layout: G, size: int, born: int, dies: int) -> int:
        """Reserve `size` consecutive slots for a value, and return the number of the first slot.

        The operation with the number `born` writes the value, and operation `dies` is the last that reads it.
        """
        memory, live = self._memories.setdefault(layout, BufferAllocator()), self._live.setdefault(layout, [])
        for end, buffer in live:
            if end < born:
                memory.release(buffer)
        memory.free_released_buffers()
        buffer, _ = memory.allocate(size, layout)
        self._live[layout] = [(end, other) for end, other in live if end >= born] + [(dies, buffer)]
        return buffer.begin

    def offsets_and_total_bytes(self, bytes_of: Callable[[G], int]) -> tuple[dict[G, int], int]:
        """Return (first byte of each layout's memory, total bytes); a slot takes ``bytes_of(layout)`` bytes."""
        starts, end = {}, 0
        for layout, memory in self._memories.items():
            starts[layout] = end
            end += memory.size * bytes_of(layout)
        return starts, end


# -- rearranged values: rolled, padded, cut into windows, or with channels and pixels exchanged ------------------------

# A rearranged value is a table that contains the source of each element. A view of the value is a view of the table, so
# views take no time at run time. The elements are copied to new memory when an operation computes with the value.


ZERO = -1
"""Index in a table of sources that stands for an element that is 0."""


@dataclass(frozen=True, eq=False)
class Rearranged:
    """A tensor whose elements are elements of other tensors in any arrangement; a table says which."""

    sources: tuple[int, ...]
    """Numbers of the storages that the elements come from."""
    where: Planned
    """Table [axes without the batch] with the index of each element in the concatenated sources, or `ZERO`.

    The elements of a source are counted channel by channel, and those of a channel pixel by pixel."""

    @property
    def axes(self) -> tuple[int, ...]:
        """Return the tensor's shape without the batch."""
        return tuple(self.where.shape)

    def with_sources(self, where: Planned) -> Rearranged:
        """Return a copy in which the table `where` says which element is where."""
        return replace(self, where=where)

    def transposed(self, axes: Sequence[int]) -> Rearranged:
        """Return the tensor with permuted axes; `axes` includes the batch, axis 0, which stays in place."""
        return self.with_sources(self.where.transpose([axis - 1 for axis in axes[1:]]))

    def reshaped(self, shape: Sequence[int | None]) -> Rearranged:
        """Return the tensor reshaped to `shape`, which includes the batch."""
        return self.with_sources(self.where.reshape([int(size or 0) for size in shape[1:]]))

    def flattened(self) -> Rearranged:
        """Return the tensor flattened to one axis besides the batch."""
        return self.with_sources(self.where.reshape(-1))

    def sliced(self, axis: int, start: int, stop: int) -> Rearranged:
        """Return the entries from `start` to before `stop` along `axis`, where the batch is axis 0."""
        return self.with_sources(self.where[(slice(None),) * (axis - 1) + (slice(start, stop),)])

    def padded(self, before: Sequence[int], after: Sequence[int]) -> Rearranged:
        """Return the tensor padded with zeros; `before` and `after` are counts for each axis except the batch."""
        room = list(zip(before, after, strict=True))
        return self.with_sources(np.pad(self.where, room, constant_values=ZERO))

    def shuffled(self, groups: int) -> Rearranged:
        """Return the tensor with channels shuffled between groups as in ShuffleNet."""
        channels, *rest = self.axes
        split = self.where.reshape(groups, channels // groups, *rest).swapaxes(0, 1)
        return self.with_sources(split.reshape(channels, *rest))


def as_rearranged(value: ValueForm | Rearranged, storages: Storages) -> Rearranged:
    """Return a tensor as a table that says where each element is; raise `UnsupportedError` for too many elements."""
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


def as_whole_planes(value: Rearranged, labels: str, storages: Storages) -> ValueForm | None:
    """Return a tensor as a list of whole channels of other tensors; None if its elements are in another order.

    `labels` has "c" (channels) or "p" (pixels) for each axis.
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
    """Return the table `where` transposed and reshaped to [channel axes..., pixels].

    `labels` has "c" (channels) or "p" (pixels) for each axis."""
    order = [axis for kind in "cp" for axis, label in enumerate(labels) if label == kind]
    channels = [where.shape[axis] for axis, label in enumerate(labels) if label == "c"]
    made: Planned = where.transpose(order).reshape(*channels, -1)
    return made


def source_table(value: Rearranged, labels: str) -> tuple[Planned, list[int], tuple[int, int]]:
    """Return (table [channels, pixels] of where each element is, sizes of channel axes, (height, width)) of a tensor.

    `labels` has "c" (channels) or "p" (pixels) for each axis.
    """
    places = [size for size, label in zip(value.axes, labels, strict=True) if label == "p"]
    channels = [size for size, label in zip(value.axes, labels, strict=True) if label == "c"]
    if len(places) > 2 or len(labels) != len(value.axes):
        raise UnsupportedError("positions of more than two axes")
    pixels = (places[0], places[1]) if len(places) == 2 else (1, prod(places))
    return _elements_by_channel(value.where, labels).reshape(prod(channels), prod(pixels)), channels, pixels


def join_rearranged(values: Sequence[Rearranged], axis: int, storages: Storages) -> Rearranged:
    """Return the tensors concatenated along `axis`, where the batch is axis 0."""
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


def value_of_all_planes(storage: int, storages: Storages) -> ValueForm:
    """Return the tensor that consists of all channels in the memory area with the number `storage`."""
    one = storages.all[storage]
    return new_value("cpp", [one.channels], one.pixels, storage)
