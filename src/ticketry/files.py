"""Files: written whole or not at all, flushed to the disk, told apart by their digests, and kept inside their place.

What a file's content names becomes a path by `inside` alone; what a stranger may have put there is read by
`content_of`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ticketry.errors import OutsideError

_CHUNK = 1 << 20
_LONGEST_NAME = 255
_NO_NAMES = ("", ".", "..")
_SEPARATORS = "/\\" if os.sep == "/" else "/\\:"


def cache_folder() -> Path:
    """Where ticketry keeps what it can get again: $TICKETRY_CACHE, $XDG_CACHE_HOME/ticketry or ~/.cache/ticketry."""
    if own := os.environ.get("TICKETRY_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser().absolute() / "ticketry"


def inside(root: Path, *names: str) -> Path:
    """`root` / names, where the names may come from the content of a file: the path stays below `root`.

    Raises:
        OutsideError: if one is no plain name (a path, ``..``, empty, too long, with characters that are not printed),
            or a link on the way leads out of `root`.
    """
    for name in names:
        plain = isinstance(name, str) and name not in _NO_NAMES and name.isprintable()
        if not plain or any(letter in name for letter in _SEPARATORS) or len(os.fsencode(name)) > _LONGEST_NAME:
            raise OutsideError(f"{name!r:.80} is no name of a file in {root}: what names it is damaged or forged")
    return within(root, root.joinpath(*names))


def within(root: Path, path: Path) -> Path:
    """The path itself, if it lies below `root` once links are followed.

    Raises:
        OutsideError: if it does not.
    """
    real = os.path.realpath(root)
    if os.path.commonpath([real, os.path.realpath(path)]) != real:
        raise OutsideError(f"{path} is a link to outside of {root} and is not followed")
    return path


def content_of(path: Path, *, most: int | None = None) -> bytes:
    """The content of a regular file. A pipe or a device, which might never end, is not read.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: if it is not there, is no regular file or too large, or cannot be read.
    """
    with regular(path) as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MB", str(path))
        return file.read()


def private_content_of(path: Path) -> bytes:
    """The content of a regular file that is the user's own, and that nobody else may write: of code to be run.

    What is looked at is the open file itself, so that it cannot be exchanged in between.

    Raises:
        OSError: as `content_of`; and for a file of another's.
    """
    with regular(path) as file:
        if not _is_private(os.fstat(file.fileno())):
            raise PermissionError(errno.EPERM, "it is another user's, or others may write it", str(path))
        return file.read()


def is_own_folder(path: Path) -> bool:
    """Whether a folder is the user's own, and nobody else may write in it; also if it is not there."""
    try:
        return _is_private(path.stat())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _is_private(about: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):  # Windows: a user's folders are their own
        return True
    return about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def regular(path: Path) -> BinaryIO:
    """A regular file, opened to be read; a pipe or a device, which might never end, is refused.

    Raises:
        OSError: if it is not there, is no regular file, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no file, but a pipe or a device", str(path))


@contextlib.contextmanager
def replacing(target: Path, *, durable: bool = False, parents: bool = True, private: bool = False) -> Iterator[Path]:
    """The name of an empty temporary file beside `target`, to write to in the block; at its end it becomes `target`.

    A reader sees the old file or the new one, never a part. If the block raises, the old file stays and the temporary
    one is gone. What a kill leaves behind is called ``.*.tmp``. Who may read it is as the process's umask says.

    Args:
        durable: whether the new content is on the disk before it takes the old one's place, so that a power cut leaves
            one of the two.
        parents: whether missing folders above are made.
        private: whether nobody else may read the file, nor enter the folder if it is made here.

    Raises:
        OSError: if it cannot be written.
    """
    if parents:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
    place = beside(target, private=private)
    mode = stat.S_IMODE(place.stat().st_mode)
    try:
        yield place
        if durable:
            flush(place)
        os.chmod(place, mode)  # the block may have put another file there
        os.replace(place, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(place)
        raise


def beside(target: Path, *, private: bool = False) -> Path:
    """A new, empty file beside `target`, called ``.*.tmp``: see `replacing`."""
    place = target.with_name(f".{target.name[:80]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
    return place


def write_atomically(
    path: Path, data: bytes, *, durable: bool = False, parents: bool = True, private: bool = False
) -> None:
    """Write a file whole or not at all, see `replacing`."""
    with replacing(path, durable=durable, parents=parents, private=private) as temporary:
        temporary.write_bytes(data)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows: a folder cannot be opened, and needs no flush
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content, of which a little is in memory at a time; `OSError` if it cannot be read."""
    found = hashlib.sha256()
    with regular(path) as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
