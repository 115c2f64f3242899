"""Memory of a region: which planes exist when, which must have one geometry, and where in the arena they lie.

Values of one geometry follow one another in the same planes, whose halos stay zero; those of another have others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ticketry.engine.cpu.planes.geometry import Geometry, Planes
from ticketry.engine.plan.forms import Form


@dataclass
class Storage:
    """Planes that one operation writes."""

    channels: int
    pixels: tuple[int, int]
    halo: int = 0
    """The most that any reader needs around the pixels."""
    born: int = 0
    dies: int = 0
    """Numbers of the operations that write it and that read it last."""
    slot: int = 0
    """Its first plane among those of its geometry."""


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
        first, *others = [self.find(one) for one in several]
        for other in others:
            self._parent[other] = first


@dataclass
class Storages:
    """All storages of a region, and what binds them."""

    all: list[Storage] = field(default_factory=list)
    halos: Union = field(default_factory=Union)
    """Storages of one geometry: concatenated, added, or read by one operation as one value."""
    rows: Union = field(default_factory=Union)
    """Storages whose rows are equally far apart: one is read at constant shifts to make the other."""

    def add(self, channels: int, pixels: tuple[int, int], born: int) -> int:
        self.all.append(Storage(channels, pixels, born=born, dies=born))
        return len(self.all) - 1

    def read(self, form: Form, when: int, halo: int = 0) -> None:
        """An operation reads a value, with so many positions around its pixels."""
        for number in form.storages:
            storage = self.all[number]
            storage.dies = max(storage.dies, when)
            storage.halo = max(storage.halo, halo)
        self.alike([form])

    def alike(self, forms: Iterable[Form]) -> None:
        """These values have one geometry."""
        numbers = [number for form in forms for number in form.storages]
        self.halos.join(numbers)
        self.rows.join(numbers)

    def same_rows(self, one: Form, other: Form) -> None:
        self.rows.join([*one.storages, *other.storages])

    def geometries(self, images: int) -> list[Geometry]:
        """The geometry of each storage."""
        halos: dict[int, int] = {}
        for number, storage in enumerate(self.all):
            key = self.halos.find(number)
            halos[key] = max(halos.get(key, 0), storage.halo)
        rows: dict[int, int] = {}
        for number, storage in enumerate(self.all):
            key = self.rows.find(number)
            rows[key] = max(rows.get(key, 0), storage.pixels[1] + halos[self.halos.find(number)])
        return [
            Geometry(*storage.pixels, halos[self.halos.find(number)], images, rows[self.rows.find(number)])
            for number, storage in enumerate(self.all)
        ]

    def place(self, images: int) -> Arena:
        """Lay all storages out, each in planes that no other living value of its geometry uses."""
        geometries = self.geometries(images)
        counts: dict[Geometry, int] = {}
        for number in sorted(range(len(self.all)), key=lambda n: (self.all[n].born, n)):
            storage, geometry = self.all[number], geometries[number]
            taken = sorted(
                (other.slot, other.slot + other.channels)
                for index, other in enumerate(self.all[:number])
                if geometries[index] == geometry and other.dies >= storage.born
            )
            storage.slot = _first_gap(taken, storage.channels)
            counts[geometry] = max(counts.get(geometry, 0), storage.slot + storage.channels)
        starts, end = {}, 0
        for geometry, count in counts.items():
            starts[geometry] = end
            end += count * geometry.bytes
        return Arena(self.all, geometries, starts, end)


@dataclass
class Arena:
    """Storages at their places."""

    storages: list[Storage]
    geometries: list[Geometry]
    starts: dict[Geometry, int]
    bytes: int

    def planes(self, form: Form) -> Planes:
        """Where a value lies."""
        import numpy as np

        storages, numbers = form.flat[:, 0], form.flat[:, 1]
        geometry = self.geometries[int(storages[0])]
        slots = np.array([storage.slot for storage in self.storages], dtype=np.int64)
        return Planes(geometry, self.starts[geometry] + geometry.bytes * (slots[storages] + numbers))


def _first_gap(taken: list[tuple[int, int]], size: int) -> int:
    """The first place for ``size`` planes between those taken."""
    at = 0
    for start, end in taken:
        if start - at >= size:
            break
        at = max(at, end)
    return at
