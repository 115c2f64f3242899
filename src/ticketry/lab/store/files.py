"""Writing files so that a reader sees all of one or nothing, and telling what went wrong if it cannot be done."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ticketry import files
from ticketry.errors import StoreError
from ticketry.files import parse_json
from ticketry.folders import exists

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_LARGEST = 1 << 30
"""Bytes of a JSON file."""
_NO_PERMISSION = (errno.EACCES, errno.EPERM)
_ABOUT_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EFBIG, errno.EINVAL, errno.ELOOP)
"""Errors that say what is at a path: nothing, a folder, a pipe, a link, or too much. All others leave it unknown."""


class InaccessibleError(StoreError):
    """A file or folder that the system did not let ticketry read or write: nothing is known about what is there."""


@contextlib.contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an operating system's error into a `StoreError` that says what to do.

    Args:
        path: what is read or written.
        doing: what was attempted, a verb such as "read" or "write".

    Raises:
        InaccessibleError: if the error does not say what is at the path.
        StoreError: if it does.
    """
    try:
        yield
    except OSError as error:
        kind = StoreError if error.errno in _ABOUT_THE_FILE else InaccessibleError
        raise kind(f"cannot {doing} {_place_of(error, path)}: {_advice(error, doing)}") from error


def is_there(path: Path) -> bool:
    """Return whether something is at a path; `StoreError` if the system does not tell."""
    with explained(path, "look for"):
        return exists(path)


def _place_of(error: OSError, path: Path) -> str:
    """The file or folder below `path` that an error names, else `path`; shortened where it is nested deeply."""
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    found = str(named if path in named.parents and not named.name.endswith(".tmp") else path)
    return found if len(found) <= _LONGEST_SHOWN else f"{found[:_LONGEST_SHOWN]}…"


_LONGEST_SHOWN = 500
"""Characters of a path in a message."""
_READING = ("read", "list", "compare", "look for")


def _advice(error: OSError, doing: str) -> str:
    reads = doing.startswith(_READING)
    if error.errno in _NO_SPACE:
        return "no space is left there: free some and run the same command again, it goes on where it stopped"
    if error.errno in _NO_PERMISSION and reads:
        return "it may not be read: change its permissions, or run the command as the user whose it is"
    if error.errno in _NO_PERMISSION:
        return "it may not be written: choose another folder with --store, or change its permissions"
    if error.errno == errno.EROFS:
        return "it may not be written, since the file system is read-only: choose another folder with --store"
    if error.errno == errno.EFBIG and reads:
        return f"{error.strerror}: ticketry wrote no such file; `ticketry store check --repair` sets it aside"
    if error.errno == errno.EFBIG:
        return "it is larger than the file system or a limit (ulimit -f) allows: choose another folder with --store"
    return files.reason_of(error)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it into place; `StoreError` if it fails."""
    with explained(path, "write"):
        files.write_atomically(path, data, durable=True)


def write_json(path: Path, value: object) -> None:
    """A JSON file, written atomically."""
    write_atomically(path, _bytes_of(value))


def _bytes_of(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file; `StoreError` if it is damaged."""
    try:
        with explained(path, "read"):
            data = files.content_of(path, most=_LARGEST)
    except StoreError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)) and not path.is_symlink():
            return None
        raise
    value = _object_in(data)
    if value is None:
        raise StoreError(f"{path} is damaged (not a JSON object): run `ticketry store check --repair`")
    return value


def _object_in(data: bytes) -> dict[str, Any] | None:
    """The JSON object in the bytes; None if they hold none, or one with half of a letter in it."""
    try:
        value = parse_json(data)
        if b"\\ud" in data.lower():  # half of a letter, which nothing could write or compare
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


_SEAL = "sha256"
"""The entry of a record that holds the digest of all others."""
REPAIR = "run `ticketry store check --repair`: it sets damaged files aside, and the next run makes them again"


def digest_of(value: object) -> str:
    """SHA-256 (hex) of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """A JSON file with a digest of what is in it, written atomically."""
    write_atomically(path, sealed_bytes(record))


def sealed_bytes(record: Mapping[str, Any]) -> bytes:
    """What `write_sealed` writes."""
    return _bytes_of({**record, _SEAL: digest_of(record)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, or None if there is no such file.

    Raises:
        StoreError: if it is not what was written; one without a digest may be anything.
    """
    record = read_json(path)
    if record is None:
        return None
    seal = record.pop(_SEAL, None)
    if seal is None:
        raise StoreError(f"{path} has no digest of its contents: {REPAIR}")
    if seal != digest_of(record):
        raise StoreError(f"{path} is damaged: its contents do not match its digest; {REPAIR}")
    return record


def is_as_written(path: Path) -> bool:
    """Whether a JSON file has the very bytes that `write_json` gives its values."""
    with explained(path, "read"):
        data = files.content_of(path, most=_LARGEST)
    return data == _bytes_of(parse_json(data))


def unsealed(data: bytes, what: str) -> dict[str, Any]:
    """The record in the bytes that `sealed_bytes` gave: in the very form in which they are written.

    Raises:
        StoreError: if they are not; `what` says of what.
    """
    record = _object_in(data)
    if record is None or data != _bytes_of(record) or record.pop(_SEAL, None) != digest_of(record):
        raise StoreError(f"{what} is damaged or forged: it is no record with its digest")
    return record
