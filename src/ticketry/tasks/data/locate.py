"""Find the files of data sets in folders, download them, and read them with a check of their digests.

A download that is incomplete or has another digest than the published one leaves no file.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from ticketry.errors import DataError, needs
from ticketry.files import cache_folder as cache_folder
from ticketry.version import __version__

_TIMEOUT = 30.0
"""Number of seconds without an answer after which a download fails."""


@dataclass(frozen=True)
class Origin:
    """A published file, with its URL, its path in the folder of data sets, and its digest."""

    url: str
    path: str
    """Path of the file, relative to a folder of data sets."""
    md5: str
    """MD5 digest of the downloaded file, before any decompression."""


def fetch(origin: Origin, folder: Path) -> None:
    """Download a file to `folder / origin.path`; raise `DataError` if this fails or $TICKETRY_OFFLINE is set."""
    if os.environ.get("TICKETRY_OFFLINE"):
        raise DataError(f"not tried, because $TICKETRY_OFFLINE is set ({origin.url})")
    needs("pooch", "lab", f"downloading {origin.url}")
    import pooch  # its import takes longer than a command that finds its data
    from requests.exceptions import ChunkedEncodingError

    pooch.get_logger().setLevel("WARNING")
    target = folder / origin.path
    agent = {"User-Agent": f"ticketry/{__version__}"}
    try:
        pooch.retrieve(
            origin.url,
            f"md5:{origin.md5}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(headers=agent, timeout=_TIMEOUT),
        )
    except (ValueError, ChunkedEncodingError) as error:  # another digest, or a truncated download
        got = re.search(r"but got (\w+)", str(error))
        found = got[1] if got else "a part of it"
        raise DataError(f"{origin.url} is not the published file: md5 {origin.md5} expected, {found} found") from error
    except OSError as error:  # includes errors of requests
        raise DataError(f"{origin.url} could not be downloaded to {target}: {error}") from error


@dataclass(frozen=True)
class Place:
    """A folder that may hold data sets, and the option or environment variable that names it."""

    folder: Path
    named_by: str


@dataclass(frozen=True)
class Layout:
    """The names of a data set's files, and the sub-folder that contains them."""

    folder: str
    files: tuple[str, ...]
    packings: tuple[str, ...] = ("",)
    """Suffixes that each file may have, such as none, .gz or .xz; the first file that exists is used."""

    def find(self, place: Path) -> tuple[Path, ...] | None:
        """Return the paths of `files`, in order, below the folder `place`; None if a file is missing."""
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
    """A data set, with the layouts that its files may have on disk, and the files to download."""

    title: str
    layouts: tuple[Layout, ...]
    origins: tuple[Origin, ...]
    """The files to download, which have one of the layouts; empty if the data set cannot be downloaded."""


def places(data: Path | None = None) -> tuple[Place, ...]:
    """Return the folders to search for data sets: `data` and $TICKETRY_DATA, if given, then the cache folder."""
    found = []
    if data is not None:
        if not data.expanduser().is_dir():
            raise DataError(f"--data {data}: there is no such folder")
        found.append(Place(data.expanduser().absolute(), "--data"))
    if variable := os.environ.get("TICKETRY_DATA"):
        found.append(Place(Path(variable).expanduser().absolute(), "$TICKETRY_DATA"))
    found.append(Place(cache_folder(), "the cache folder"))
    return tuple(found)


def find_files(collection: Collection, where: tuple[Place, ...]) -> tuple[Path, ...]:
    """Return the data set's files in the first folder of `where` that has all of them; empty if there is none."""
    for place in where:
        for layout in collection.layouts:
            if found := layout.find(place.folder):
                return found
    return ()


def find_or_download(collection: Collection, where: tuple[Place, ...]) -> tuple[Path, ...]:
    """Return the files in the first folder of `where` that has all of them; else download them to the last folder."""
    if found := find_files(collection, where):
        return found
    cache = where[-1].folder
    if not collection.origins:
        raise DataError(_explain_missing(collection, where, "none"))
    try:
        for origin in collection.origins:
            if not (cache / origin.path).is_file():
                fetch(origin, cache)
    except DataError as error:
        raise DataError(_explain_missing(collection, where, str(error))) from error
    return tuple(cache / origin.path for origin in collection.origins)


def _explain_missing(collection: Collection, where: tuple[Place, ...], download: str) -> str:
    lines = [f"{collection.title} was not found.", "Wanted:"]
    lines += [f"  {'or ' if index else ''}{layout}" for index, layout in enumerate(collection.layouts)]
    lines.append("Looked in:")
    for place in where:
        state = "" if place.folder.is_dir() else " (no such folder)"
        lines.append(f"  {place.folder}, {place.named_by}{state}")
    lines.append(f"Download: {download}")
    lines.append("Put the files into a folder and name it by --data or $TICKETRY_DATA.")
    return "\n".join(lines)


DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
"""The types of errors that are raised when a damaged compressed file or archive is read."""


def unpack(path: Path, content: bytes) -> bytes:
    """Return `content`, decompressed if the file name ends in .gz or .xz; raise one of `DAMAGED` if it is damaged."""
    kinds = {".gz": gzip.decompress, ".xz": lzma.decompress}
    return kinds[path.suffix](content) if path.suffix in kinds else content


def read_verified(path: Path, md5: str) -> bytes:
    """Return the content of a file, decompressed if its name ends in .gz or .xz, after a check of its digest `md5`."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        content = unpack(path, packed)
    except DAMAGED as error:
        found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        raise DataError(
            f"{path} cannot be unpacked ({error}): md5 {md5} expected once unpacked, {found} found as it is. "
            "Delete it and get it again"
        ) from error
    check_digest(content, md5, str(path))
    return content


def iterate_members(path: Path) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    """Yield, for each file in a .zip or .tar.gz, its path and a function that reads it; raise one of `DAMAGED`."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield PurePosixPath(name), partial(archive.read, name)
    else:
        with tarfile.open(path, "r:gz") as tape:
            for member in tape:
                if (file := tape.extractfile(member)) is not None:
                    yield PurePosixPath(member.name), file.read


def read_text(path: Path) -> bytes:
    """Return the text of a UTF-8 file, decompressed if its name ends in .gz or .xz."""
    try:
        content = unpack(path, path.read_bytes())
    except DAMAGED as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not content:
        raise DataError(f"{path} is empty: there is nothing to learn from")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text: byte {error.start} is not UTF-8. Convert it (iconv -t utf-8), or leave it out"
        ) from None
    if (place := content.find(b"\0")) >= 0:
        raise DataError(f"{path} is no text: byte {place} is 0. Leave it out, or the bytes that are 0")
    return content


def check_digest(content: bytes, md5: str, what: str) -> None:
    """Raise `DataError` unless the digest of `content` is `md5`; `what` names the file in the message."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"{what} is not the published file: md5 {md5} expected, {found} found (unpacked, {len(content):,} bytes). "
            "Delete it and get it again"
        )
