"""Reads and writes files safely: regular files, atomic writes, JSON, safetensors with a digest, and the cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_ROOT = 0


def cache_folder() -> Path:
    """Return ticketry's cache folder: $TICKETRY_CACHE if set, else $XDG_CACHE_HOME/ticketry, else ~/.cache/ticketry."""
    if own := os.environ.get("TICKETRY_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser().absolute() / "ticketry"


def read_bytes(path: Path, *, most: int | None = None) -> bytes:
    """Return the content of a regular file; reject pipes and devices, which might never end.

    Raise `OSError` if the file does not exist, is no regular file, has more than `most` bytes, or cannot be read.
    """
    with open_regular_file(path) as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MB", str(path))
        return file.read()


def read_private_bytes(path: Path) -> bytes:
    """Return the content of a regular file that only the user can write, such as executable code.

    The check applies to the open file, so that the file cannot be replaced between check and reading. The caller must
    check the folder with `why_not_private`. Raise `OSError` if the file does not exist, is no regular file, is too
    large, or cannot be read. Also raise it if the file is a link, or if another user owns or can write the file.
    """
    with open_regular_file(path, follow_links=False) as file:
        if not _only_user_can_write(os.fstat(file.fileno())):
            raise PermissionError(errno.EPERM, "it is another user's, or others may write it", str(path))
        return file.read()


def why_not_private(folder: Path) -> str:
    """Return the reason why other users could put files into a folder; "" if only this user can.

    The folder must belong to the user. Each parent folder, up to the home folder, must belong to the user or to root,
    and others may write in a parent only if its sticky bit is set, as for /tmp. A missing folder is accepted, because
    the user will create it.
    """
    if not hasattr(os, "geteuid"):  # Windows: a user's folders are their own
        return ""
    folder = Path(os.path.abspath(folder))
    try:
        about = os.lstat(folder)
        if stat.S_ISLNK(about.st_mode):
            return f"{folder} is a link"
        if not stat.S_ISDIR(about.st_mode):
            return f"{folder} is not a folder"
        if not _only_user_can_write(about):
            return f"{folder} belongs to another user, or others may write in it"
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"{folder} cannot be examined: {error.strerror}"
    return _why_parents_not_private(folder)


def _why_parents_not_private(folder: Path) -> str:
    home = os.path.abspath(os.path.expanduser("~"))
    for place in folder.parents:
        try:
            about = os.lstat(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{place} cannot be examined: {error.strerror}"
        if about.st_uid not in (os.geteuid(), _ROOT):
            return f"{place} belongs to another user"
        if stat.S_ISLNK(about.st_mode):
            if why := _why_parents_not_private(Path(os.path.realpath(place), "inner")):
                return why
            continue
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not about.st_mode & stat.S_ISVTX:
            return f"others may write in {place}"
        if str(place) == home and about.st_uid == os.geteuid():
            break
    return ""


def _only_user_can_write(about: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    return about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def open_regular_file(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading, and return it; reject pipes and devices, which might never end.

    If `follow_links` is false, links are rejected too. Raise `OSError` if the file is rejected, does not exist, or
    cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0)))
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no file, but a pipe or a device", str(path))


def describe_os_error(error: OSError) -> str:
    """Return the cause of an `OSError` as text, for some causes with advice."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open at once: allow more (ulimit -n), or use fewer workers"
    if error.errno == errno.ENAMETOOLONG:
        return "its name is too long, or it is nested too deeply, for this file system: rename or delete it"
    if error.errno == errno.ELOOP:
        return "it is a link that is not followed, or links there lead in a circle: delete the link"
    return str(error.strerror or error)


@contextlib.contextmanager
def replace_on_success(
    target: Path, *, durable: bool = False, parents: bool = True, private: bool = False
) -> Iterator[Path]:
    """Yield the path of an empty temporary file, which replaces `target` at the end of the `with` block.

    The temporary file is in the folder of `target`. Readers see the whole old file or the whole new file. If the block
    raises an error, the old file stays and the temporary file is deleted. If the process is killed, a file named
    ``.*.tmp`` may remain. Permissions follow the umask of the process.

    If `durable`, flush the new content to disk before the replacement, so that the old or the new file exists after a
    power cut. If `parents`, create missing parent folders. If `private`, only the user may read the file and enter the
    created folders. Raise `OSError` if the file cannot be written.
    """
    if parents:
        make_folder(target.parent, private=private)
    place = temporary_sibling_path(target, private=private)
    mode = stat.S_IMODE(place.stat().st_mode)
    try:
        yield place
        if durable:
            flush_to_disk(place)
        os.chmod(place, mode)  # the block may have put another file there
        os.replace(place, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(place)
        raise


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Create a folder and its missing parents; if `private`, only the user may enter the created folders."""
    missing = [folder]
    while not missing[-1].parent.exists():  # pathlib recurses: a stranger may nest folders deeper than Python calls
        missing.append(missing[-1].parent)
    for place in reversed(missing):
        place.mkdir(exist_ok=True, mode=0o700 if private else 0o777)


def temporary_sibling_path(target: Path, *, private: bool = False) -> Path:
    """Create an empty temporary file, named ``.*.tmp``, in the folder of `target`, and return the path of the file."""
    place = target.with_name(f".{target.name[:80]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
    return place


def write_atomically(
    path: Path, data: bytes, *, durable: bool = False, parents: bool = True, private: bool = False
) -> None:
    """Write a file completely or not at all; `durable`, `parents` and `private` mean the same as in `replacing`."""
    with replace_on_success(path, durable=durable, parents=parents, private=private) as temporary:
        temporary.write_bytes(data)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the list of files in a folder, is on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows: a folder cannot be opened, and needs no flush
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest (hexadecimal) of a file's content; raise `OSError` if the file cannot be read."""
    found = hashlib.sha256()
    with open_regular_file(path) as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


# -- JSON --------------------------------------------------------------------------------------------------------------

_DEEPEST = 100
"""Maximum nesting depth of JSON, because recursive functions read the values."""
_MOST_DIGITS = 300
"""Maximum number of digits of an integer; Python cannot convert much longer integers to a float, or print them."""
_GIANT = re.compile(rf"\d{{{_MOST_DIGITS + 1}}}")


def parse_json(text: str | bytes | bytearray, **hooks: Any) -> Any:
    """Return the value that a JSON text describes.

    `hooks` are further arguments of `json.loads`, such as ``parse_constant``. Raise `ValueError` if the text is no
    JSON, is nested deeper than 100 values, or has an integer of over 300 digits.

    Examples:
        >>> from ticketry_engine.support.files import parse_json
        >>> parse_json('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
        >>> parse_json("[" * 1000 + "]" * 1000)
        Traceback (most recent call last):
            ...
        ValueError: it is nested too deeply
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        value = json.loads(text, parse_int=_parse_integer if _GIANT.search(text) else None, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _is_too_deep(value, text):
        raise ValueError("it is nested too deeply")
    return value


def _parse_integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _is_too_deep(value: object, text: str) -> bool:
    if text.count("[") + text.count("{") <= _DEEPEST:
        return False
    level = [value]
    for _ in range(_DEEPEST):
        parts = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for part in parts for one in part]
    return bool(level)


def one_line(text: str) -> str:
    """Return `text` with "?" for line breaks and control characters, to print names from untrusted files."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# -- digests in safetensors files, so that a damaged bit is noticed when a file is read --------------------------------

# The first entry of the metadata is the SHA-256 of the file without this entry. Other loaders ignore the entry.


_HEAD = b'{"__metadata__":{'
_KEY = "sha256-all"  # its entry has 80 bytes: what follows keeps its place in eights
_BEGIN = f'"{_KEY}":"'.encode()
_END = b'",'
_DIGITS = 64
_ENTRY = len(_BEGIN) + _DIGITS + len(_END)


def append_digest(data: bytes) -> bytes:
    """Return `data`, a safetensors file with metadata, with a digest of `data` added to the metadata."""
    length, rest = int.from_bytes(data[:8], "little"), data[8:]
    if not rest.startswith(_HEAD):
        raise ValueError("only a file with metadata can be sealed")
    entry = _BEGIN + hashlib.sha256(data).hexdigest().encode() + _END
    return (length + _ENTRY).to_bytes(8, "little") + _HEAD + entry + rest[len(_HEAD) :]


def verify_and_strip_digest(data: bytes, *, required: bool = True) -> bytes:
    """Return the safetensors file to which `sealed` added a digest; `data` is the file with the digest.

    Raise `ValueError` if the content does not match the digest, or if the digest is missing. If not `required`, return
    the bytes of a file without a digest unchanged.
    """
    start = 8 + len(_HEAD)
    if not data[8:].startswith(_HEAD + _BEGIN):
        if required or len(read_metadata(data)) != 1:  # one entry is all that our files have beside it
            raise ValueError("it has no digest of its contents, or a damaged one: make it anew")
        return data
    at = start + len(_BEGIN)
    length = int.from_bytes(data[:8], "little") - _ENTRY
    if length < 0 or data[at + _DIGITS : start + _ENTRY] != _END:
        raise ValueError("the digest of its contents is damaged: fetch it or make it anew")
    inner = length.to_bytes(8, "little") + _HEAD + data[start + _ENTRY :]
    if hashlib.sha256(inner).hexdigest().encode() != data[at : at + _DIGITS]:
        raise ValueError("it is damaged: its contents do not match its digest; fetch it or make it anew")
    return inner


def read_metadata(data: bytes) -> Mapping[str, str]:
    """Return the metadata (texts by name) in the header of a safetensors file; the header must be valid."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = parse_json(data[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


# -- the cache of kernels, plans and profiles for this machine ---------------------------------------------------------

# Each file begins with a digest, which detects damaged files, but not forged files. Files are trusted because only the
# user can write in their folder.


_log = logging.getLogger(__name__)


def digest_of_files(files: Iterable[Path]) -> str:
    """Return a digest of the contents of `files`, sorted by path."""
    return hashlib.blake2b(b"".join(file.read_bytes() for file in sorted(files)), digest_size=16).hexdigest()


def private_cache_folder(name: str) -> Path:
    """Return the folder called `name` for cached files, in ticketry's cache folder.

    Cached files are executed, so only the user may write in the folder. If others can write in the folder called
    `name`, the name of the returned folder also contains the user's number. `read_cached` and `write_cached` check the
    folder again.
    """
    found = cache_folder() / name
    return found if not why_not_private(found) else cache_folder() / f"{name}-{getattr(os, 'geteuid', int)()}"


def _file_digest(name: str, code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=16, salt=name[-16:].encode()).digest()


def read_cached(path: Path) -> bytes | None:
    """Return the data that `write_cached` wrote; None if the file is missing, damaged, or writable by others."""
    if not _is_usable(path.parent):
        return None
    try:
        data = read_private_bytes(path)
    except FileNotFoundError:
        return None  # not made yet
    except OSError as error:
        _log.info("%s is made anew: %s", path, error)
        return None
    if _file_digest(path.stem, data[16:]) == data[:16]:
        return data[16:]
    _log.info("%s is made anew: it is damaged", path)
    return None


def write_cached(path: Path, data: bytes) -> None:
    """Write a digest and `data` to a file; do nothing if the folder is not writable, or if others can write in it."""
    if not _is_usable(path.parent):
        return
    try:
        write_atomically(path, _file_digest(path.stem, data) + data, private=True)
    except OSError as error:
        _log.info("%s is not cached: %s", path, error)


def _is_usable(cache: Path) -> bool:
    """Return whether only the user can write in the folder `cache`; if others can, log a warning once."""
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
