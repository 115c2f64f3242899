"""The engine's cache: kernels, plans and profiles of this machine, each file with a digest before its content.

The digest finds damage and not forgery. Files are trusted because only the user can write in their folder.
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
    """Return a digest of the content of some files, in the order of their names."""
    return hashlib.blake2b(b"".join(file.read_bytes() for file in sorted(files)), digest_size=16).hexdigest()


def folder(name: str) -> Path:
    """Return the folder of cached files of a kind, in `ticketry.files.cache_folder`.

    Cached files are executed, so that only the user may write there: if the plain name belongs to another user, the
    folder's name contains the user's number. The folder may be missing or not private: `kept` and `keep` check it.
    """
    found = cache_folder() / name
    return found if not why_not_private(found) else cache_folder() / f"{name}-{getattr(os, 'geteuid', int)()}"


def _file_digest(name: str, code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=16, salt=name[-16:].encode()).digest()


def kept(path: Path) -> bytes | None:
    """Return what `keep` wrote to a file; None if the file is missing, damaged or renamed, or if others could have
    written it."""
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
    """Write a file with its digest before it, under a temporary name, and rename it.

    Nothing is written if the cache cannot be written, or others could write there.
    """
    if not _is_usable(path.parent):
        return
    try:
        write_atomically(path, _file_digest(path.stem, data) + data, private=True)
    except OSError as error:
        _log.info("%s is not cached: %s", path, error)


def _is_usable(cache: Path) -> bool:
    """Return whether only the user can write in a folder of the cache; warn once if others can."""
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
