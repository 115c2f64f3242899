"""Which planes of a region exist when, and which must have one geometry, whatever the layout makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ticketry_engine.plan.value_axes import Form


@dataclass
class Storage:
    """Planes that one operation writes."""

    channels: int
    pixels: tuple[int, int]
    halo: int = 0
    """The most that any reader needs around the pixels."""
    halo_of_few: int = 0
    """The most that any reader gains by, over planes whose images do not fill a vector."""
    born: int = 0
    dies: int = 0
    """Numbers of the operations that write it and that read it last."""


class Union:
    """Sets of storages that have something in common."""

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
    """All storages of a region, and what binds them."""

    all: list[Storage] = field(default_factory=list)
    halos: Union = field(default_factory=Union)
    """Storages of one geometry: concatenated, added, or read by one operation as one value."""
    rows: Union = field(default_factory=Union)
    """Storages whose rows are equally far apart: one is read at constant shifts to make the other."""

    orders: Union = field(default_factory=Union)
    """Storages whose channels lie in one order: an operation reads and writes them channel by channel."""
    pinned: set[int] = field(default_factory=set)
    """Storages whose channels lie in their own order."""
    over: dict[int, int] = field(default_factory=dict)
    """Storage -> another one of its geometry, in whose place it may lie if nothing reads that one afterwards."""
    once: set[int] = field(default_factory=set)
    """Those of which every element is written once, in any layout."""

    def add(self, channels: int, pixels: tuple[int, int], born: int) -> int:
        self.all.append(Storage(channels, pixels, born=born, dies=born))
        return len(self.all) - 1

    def read(self, form: Form, when: int, halo: int = 0, halo_of_few: int | None = None) -> None:
        """An operation reads a value, with so many positions around its pixels; as many of few images unless said."""
        for number in form.storages:
            storage = self.all[number]
            storage.dies = max(storage.dies, when)
            storage.halo = max(storage.halo, halo)
            storage.halo_of_few = max(storage.halo_of_few, halo if halo_of_few is None else halo_of_few)
        self.alike([form])

    def alike(self, forms: Iterable[Form]) -> None:
        """These values have one geometry."""
        numbers = [number for form in forms for number in form.storages]
        self.halos.join(numbers)
        self.rows.join(numbers)

    def one_order(self, *forms: Form) -> None:
        """The channels of these values correspond."""
        for numbers in zip(*(form.flat[:, 0].tolist() for form in forms), strict=True):
            self.orders.join(numbers)
        for form in forms:
            if len(form.storages) > 1 or form.channels != self.all[form.storages[0]].channels:
                self.pin(form)

    def pin(self, form: Form) -> None:
        """The value's channels lie in their own order."""
        self.pinned.update(form.storages)

    def same_rows(self, one: Form, other: Form) -> None:
        self.rows.join([*one.storages, *other.storages])

    def may_lie_over(self, y: Form, x: Form, others: Iterable[Form], *, once: bool) -> None:
        """The operation that makes y reads each element of x just before it writes that of y.

        Args:
            others: that it reads besides, when it likes: they must lie elsewhere.
            once: whether it writes each element once, also over pixels, where the last tile of a convolution lies over
                the one before.
        """
        whole = len(x.storages) == 1 and x.channels == self.all[x.storages[0]].channels == y.channels
        elsewhere = all(x.storages[0] not in other.storages for other in others)
        if whole and elsewhere and bool((x.flat[:, 1] == range(x.channels)).all()):
            self.over[y.storages[0]] = x.storages[0]
            if once:
                self.once.add(y.storages[0])

    def places(self, *, once: bool = False) -> list[int]:
        """Of each storage the one in whose place it lies: itself, or the first of those that it lies over."""
        found: list[int] = []
        for number, storage in enumerate(self.all):
            below = self.over.get(number)
            over = below is not None and self.all[below].dies == storage.born and (not once or number in self.once)
            found.append(found[below] if over and below is not None else number)
        return found

    def halo(self, number: int, *, few: bool = False) -> int:
        """The halo of a storage: the most that any reader of any storage of its geometry needs; or gains by (`few`)."""
        key = self.halos.find(number)
        relatives = [storage for other, storage in enumerate(self.all) if self.halos.find(other) == key]
        return max(storage.halo_of_few if few else storage.halo for storage in relatives)


G = TypeVar("G")


class Places(Generic[G]):
    """Slots of values in memory of their geometry: those that live at the same time have different ones."""

    def __init__(self) -> None:
        self._taken: dict[G, list[tuple[int, int, int, int]]] = {}
        """Of each geometry: slots from … to, born, dies."""

    def slot(self, geometry: G, size: int, born: int, dies: int) -> int:
        """The first of ``size`` slots side by side that no other value of the geometry uses while this one lives."""
        others = self._taken.setdefault(geometry, [])
        slot = first_gap(sorted((low, high) for low, high, b, d in others if d >= born and b <= dies), size)
        others.append((slot, slot + size, born, dies))
        return slot

    def laid_out(self, bytes_of: Callable[[G], int]) -> tuple[dict[G, int], int]:
        """Where the slots of each geometry begin, and where the last of them end."""
        starts, end = {}, 0
        for geometry, taken in self._taken.items():
            starts[geometry] = end
            end += max(high for _, high, _, _ in taken) * bytes_of(geometry)
        return starts, end


def first_gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    """The first place of ``size`` between those taken, which are (from, to) in order."""
    at = 0
    for start, end in taken:
        if start - at >= size:
            break
        at = max(at, end)
    return at
