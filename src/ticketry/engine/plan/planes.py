"""Storages as planes in an arena.

Values of one geometry follow one another in the same planes, whose halos stay zero; those of another have others.
"""

from __future__ import annotations

import numpy as np

from ticketry.engine.cpu.planes.geometry import Geometry, Planes
from ticketry.engine.plan.forms import Form
from ticketry.engine.plan.storage import Storages, first_gap


class PlanesArena:
    """Where each plane of a region lies, for blocks of so many images and vectors of so many lanes.

    Args:
        halos: whether planes have the halo that convolutions read; without it they unfold what they read, which they
            can only where images do not fill a vector (and ``halos`` counts only there).
    """

    def __init__(self, storages: Storages, images: int, lanes: int, halos: bool = True) -> None:
        self.geometries = _geometries(storages, images, lanes, halos)
        counts: dict[Geometry, int] = {}
        self._slots = np.zeros(len(storages.all), dtype=np.int64)
        for number, storage in enumerate(storages.all):
            geometry = self.geometries[number]
            taken = sorted(
                (int(self._slots[index]), int(self._slots[index]) + other.channels)
                for index, other in enumerate(storages.all[:number])
                if self.geometries[index] == geometry and other.dies >= storage.born
            )
            self._slots[number] = slot = first_gap(taken, storage.channels)
            counts[geometry] = max(counts.get(geometry, 0), slot + storage.channels)
        self._starts: dict[Geometry, int] = {}
        self.bytes = 0
        for geometry, count in counts.items():
            self._starts[geometry] = self.bytes
            self.bytes += count * geometry.bytes

    def value(self, form: Form) -> Planes:
        """Where a value lies."""
        storages, numbers = form.flat[:, 0], form.flat[:, 1]
        geometry = self.geometries[int(storages[0])] if len(storages) else self.geometries[0]
        return Planes(geometry, self._starts[geometry] + geometry.bytes * (self._slots[storages] + numbers))

    def order(self, form: Form) -> None:
        """Planes are taken in any order: channels keep their own."""


def _geometries(storages: Storages, images: int, lanes: int, wanted: bool) -> list[Geometry]:
    """The geometry of each storage: the neediest reader's halo, and rows as far apart as its relatives' are.

    Rows that do not fill a vector have no halo: convolutions unfold them, and then a halo would leave lanes empty.
    """
    none = [storage.pixels[1] * images < lanes or (images < lanes and not wanted) for storage in storages.all]
    halos = [0 if none[number] else storages.halo(number) for number in range(len(storages.all))]
    rows: dict[int, int] = {}
    for number, storage in enumerate(storages.all):
        key = storages.rows.find(number)
        rows[key] = max(rows.get(key, 0), storage.pixels[1] + halos[number])
    return [
        Geometry(*storage.pixels, halos[number], images, rows[storages.rows.find(number)])
        for number, storage in enumerate(storages.all)
    ]
