"""Objects by name, as a bucket or a shared folder keeps them: what a mirror needs, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Content:
    """An object that was read."""

    data: bytes
    version: str
    """Changes whenever the object is written with other content; of the conditional `Remote.replace`."""
    age: float | None = None
    """Seconds since it was written by the store's own clock, if it has one that can be asked."""


@dataclass(frozen=True)
class Listed:
    """An object in a listing."""

    name: str
    size: int
    version: str
    modified: float
    """By the clock of `Remote.now`."""


class Remote(Protocol):
    """Objects by name (plain names with ``/`` between). Every method raises `StoreError` when it has tried for long."""

    address: str

    def read(self, name: str) -> Content | None:
        """The object, or None."""

    def create(self, name: str, data: bytes) -> str | None:
        """Its version; None, and nothing is done, if there is one of this name already."""

    def replace(self, name: str, data: bytes, version: str | None = None) -> str | None:
        """Its new version. With `version`: None, and nothing is done, if that is not the object's version any more."""

    def delete(self, names: Iterable[str]) -> None:
        """Those that are there."""

    def list(self, folder: str = "") -> Iterator[Listed]:
        """All objects below a folder, or all of the store."""

    def age(self, name: str) -> float | None:
        """Seconds since the object was written, by the store's clock; None if there is none."""

    def now(self) -> float:
        """The time by the store's own clock, seconds since 1970."""

    def impatient(self, seconds: float) -> Remote:
        """The same objects, given up on after so many seconds."""
