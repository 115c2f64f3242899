"""Published files brought into the cache folder: whole and with the published digest, or not at all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from ticketry.errors import DataError
from ticketry.tasks.data.files import replacing
from ticketry.version import __version__

_TIMEOUT = 30.0
"""Seconds without an answer."""
_CHUNK = 1 << 20
"""Bytes."""


@dataclass(frozen=True)
class Origin:
    """A file as its authors publish it."""

    url: str
    path: str
    """Where it is kept, below a data folder."""
    md5: str
    """Of the file as it is sent."""


def fetch(origin: Origin, folder: Path) -> None:
    """Download one file to `folder / origin.path`.

    Raises:
        DataError: if $TICKETRY_OFFLINE is set, the network or the disk refuses, or the digest is another.
    """
    if os.environ.get("TICKETRY_OFFLINE"):
        raise DataError(f"not tried, because $TICKETRY_OFFLINE is set ({origin.url})")
    request = Request(origin.url, headers={"User-Agent": f"ticketry/{__version__}"})
    try:
        with replacing(folder / origin.path) as temporary:
            found = hashlib.md5(usedforsecurity=False)
            with urlopen(request, timeout=_TIMEOUT) as answer, temporary.open("xb") as out:
                while chunk := answer.read(_CHUNK):
                    found.update(chunk)
                    out.write(chunk)
            if found.hexdigest() != origin.md5:
                raise DataError(
                    f"{origin.url} is not the published file: md5 {origin.md5} expected, {found.hexdigest()} found"
                )
    except (OSError, HTTPException) as error:
        raise DataError(f"{origin.url} could not be brought to {folder / origin.path}: {error}") from error
