"""What the engine makes for this machine and finds again: files in the user's cache, each with a digest before it.

Kernels, plans and captures are trusted as far as the folder is: it has to be the user's own.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from ticketry.files import cache_folder, is_own_folder, private_content_of, write_atomically

_log = logging.getLogger(__name__)


def digest_of_files(files: Iterable[Path]) -> str:
    """A digest of what is in some files, in the order of their names."""
    return hashlib.blake2b(b"".join(file.read_bytes() for file in sorted(files)), digest_size=16).hexdigest()


def folder(name: str) -> Path:
    """Where files of a kind are kept: a folder of that name in `ticketry.files.cache_folder`.

    What is there is run, so nobody else may have written it: in a folder of several users each has one of their own.
    """
    found = cache_folder() / name
    return found if is_own_folder(found) else cache_folder() / f"{name}-{getattr(os, 'geteuid', int)()}"


def _digest(name: str, code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=16, salt=name[-16:].encode()).digest()


def kept(path: Path) -> bytes | None:
    """What `keep` wrote to a file; None if there is none, or a torn, damaged or renamed one."""
    try:
        data = private_content_of(path)
    except FileNotFoundError:
        return None  # not made yet
    except OSError as error:
        _log.info("%s is made anew: %s", path, error)
        return None
    if _digest(path.stem, data[16:]) == data[:16]:
        return data[16:]
    _log.info("%s is made anew: it is damaged", path)
    return None


def keep(path: Path, data: bytes) -> None:
    """Write a file, its digest before it, under a temporary name and rename it.

    A cache that cannot be written to, or is another user's, is done without.
    """
    try:
        if not is_own_folder(path.parent):
            raise PermissionError(errno.EPERM, f"{path.parent} is another user's, or others may write in it")
        write_atomically(path, _digest(path.stem, data) + data, private=True)
    except OSError as error:
        _log.info("%s is not kept: %s", path, error)
