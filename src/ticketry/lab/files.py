"""Writing files so that a reader sees all of one or nothing, and telling what went wrong if it cannot be done."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an operating system's error into a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            advice = "no space is left there: free some and run the same command again, it goes on where it stopped"
        elif error.errno in _NO_PERMISSION:
            advice = "it may not be written: choose another folder with --store, or change its permissions"
        else:
            advice = str(error.strerror or error)
        raise StoreError(f"cannot {doing} {path}: {advice}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it into place."""
    with explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep a shared store from being shared
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_json(path: Path, value: object) -> None:
    """A JSON file, written atomically."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file; `StoreError` if it is damaged."""
    try:
        with explained(path, "read"):
            text = path.read_text(encoding="utf-8")
    except StoreError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return None
        raise
    except UnicodeDecodeError:
        text = ""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged (not a JSON object): run `ticketry store check --repair`")
    return value
