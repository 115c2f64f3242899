"""Where the files of a data set are looked for, and what happens when they are nowhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ticketry.errors import DataError
from ticketry.tasks.data.download import Origin, fetch


@dataclass(frozen=True)
class Place:
    """A folder that may hold data sets, and who named it."""

    folder: Path
    named_by: str


@dataclass(frozen=True)
class Layout:
    """Files that together are a data set, in one folder of a place."""

    folder: str
    files: tuple[str, ...]
    packings: tuple[str, ...] = ("",)
    """What may follow each name: nothing, .gz, .xz; the first that exists is taken."""

    def find(self, place: Path) -> tuple[Path, ...] | None:
        """The files, in the order of `files`, if all of them are there."""
        found = []
        for file in self.files:
            choices = [place / self.folder / f"{file}{packing}" for packing in self.packings]
            existing = next((choice for choice in choices if choice.is_file()), None)
            if existing is None:
                return None
            found.append(existing)
        return tuple(found)

    def __str__(self) -> str:
        packed = [packing for packing in self.packings if packing]
        also = f" (plain or {', '.join(packed)})" if packed else ""
        return f"{', '.join(str(Path(self.folder) / file) for file in self.files)}{also}"


@dataclass(frozen=True)
class Collection:
    """A data set: the layouts it may have on disk, and where its files come from."""

    title: str
    layouts: tuple[Layout, ...]
    origins: tuple[Origin, ...]
    """Downloaded, they form one of the layouts; none if there is no download."""


def cache_folder() -> Path:
    """Where ticketry keeps what it can get again: $TICKETRY_CACHE, $XDG_CACHE_HOME/ticketry or ~/.cache/ticketry."""
    if own := os.environ.get("TICKETRY_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser().absolute() / "ticketry"


def places(data: Path | None = None) -> tuple[Place, ...]:
    """The folder asked for, $TICKETRY_DATA and the cache folder, in this order; the first two only if they are set.

    Raises:
        DataError: if the folder asked for does not exist.
    """
    found = []
    if data is not None:
        if not data.expanduser().is_dir():
            raise DataError(f"--data {data}: there is no such folder")
        found.append(Place(data.expanduser().absolute(), "--data"))
    if variable := os.environ.get("TICKETRY_DATA"):
        found.append(Place(Path(variable).expanduser().absolute(), "$TICKETRY_DATA"))
    found.append(Place(cache_folder(), "the cache folder"))
    return tuple(found)


def obtain(collection: Collection, where: tuple[Place, ...]) -> tuple[Path, ...]:
    """The files of the first place that has a whole layout; else downloaded into the last place.

    Raises:
        DataError: if there is no whole layout and no download.
    """
    for place in where:
        for layout in collection.layouts:
            if found := layout.find(place.folder):
                return found
    cache = where[-1].folder
    if not collection.origins:
        raise DataError(_absence(collection, where, "none"))
    try:
        for origin in collection.origins:
            if not (cache / origin.path).is_file():
                fetch(origin, cache)
    except DataError as error:
        raise DataError(_absence(collection, where, str(error))) from error
    return tuple(cache / origin.path for origin in collection.origins)


def _absence(collection: Collection, where: tuple[Place, ...], download: str) -> str:
    lines = [f"{collection.title} was not found.", "Wanted:"]
    lines += [f"  {'or ' if index else ''}{layout}" for index, layout in enumerate(collection.layouts)]
    lines.append("Looked in:")
    for place in where:
        state = "" if place.folder.is_dir() else " (no such folder)"
        lines.append(f"  {place.folder}, {place.named_by}{state}")
    lines.append(f"Download: {download}")
    lines.append("Put the files into a folder and name it by --data or $TICKETRY_DATA.")
    return "\n".join(lines)
