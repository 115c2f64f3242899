"""Keeps the engine's cache of kernels, plans and profiles for this machine; each file begins with a digest.

The digest detects damaged files, but not forged files. Files are trusted because only the user can write in their
folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from ticketry_engine.support.files import cache_folder, private_content_of, why_not_private, write_atomically

_log = logging.getLogger(__name__)


def digest_of_files(files: Iterable[Path]) -> str:
    """Return a digest of the contents of `files`, sorted by path."""
    return hashlib.blake2b(b"".join(file.read_bytes() for file in sorted(files)), digest_size=16).hexdigest()


def folder(name: str) -> Path:
    """Return the folder for cached files of the kind `name`, in `support.files.cache_folder`.

    Cached files are executed, so only the user may write in the folder. If others can write in the folder called
    `name`, the name of the returned folder also contains the user's number. `kept` and `keep` check the folder again.
    """
    found = cache_folder() / name
    return found if not why_not_private(found) else cache_folder() / f"{name}-{getattr(os, 'geteuid', int)()}"


def _file_digest(name: str, code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=16, salt=name[-16:].encode()).digest()


def kept(path: Path) -> bytes | None:
    """Return the data that `keep` wrote to a file.

    Return None if the file is missing, damaged or renamed, or if other users could have written it.
    """
    if not _is_usable(path.parent):
        return None
    try:
        data = private_content_of(path)
    except FileNotFoundError:
        return None  # not made yet
    except OSError as error:
        _log.info("%s is made anew: %s", path, error)
        return None
    if _file_digest(path.stem, data[16:]) == data[:16]:
        return data[16:]
    _log.info("%s is made anew: it is damaged", path)
    return None


def keep(path: Path, data: bytes) -> None:
    """Write `data` to a file, after a digest, atomically.

    Do nothing if the folder cannot be written, or if other users can write in it.
    """
    if not _is_usable(path.parent):
        return
    try:
        write_atomically(path, _file_digest(path.stem, data) + data, private=True)
    except OSError as error:
        _log.info("%s is not cached: %s", path, error)


def _is_usable(cache: Path) -> bool:
    """Return whether only the user can write in the folder `cache`; log a warning once if other users can."""
    why = why_not_private(cache)
    if why and why not in _warned:
        _warned.add(why)
        _log.warning(
            "nothing is cached in %s: %s. Take the right to write from others, or set TICKETRY_CACHE to a folder of"
            " your own",
            *(cache, why),
        )
    return not why


_warned = set[str]()
