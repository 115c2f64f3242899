"""Store objects as files in a folder, on this machine or on a network file system that several machines use."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from ticketry.errors import StoreError
from ticketry.files import (
    beside,
    content_of,
    exists,
    flush,
    is_folder,
    iterate_files,
    join_inside,
    list_entries,
    make_folder,
    reason_of,
    replacing,
    write_atomically,
)
from ticketry.lab.store.files import LARGEST_JSON, explain_os_errors
from ticketry.lab.store.objects import Listed, PassingError, repeat

T = TypeVar("T")

_PASSING = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EBUSY, errno.ENETDOWN, errno.EHOSTDOWN)
"""Errors of a network file system while its server is unavailable or a file is being replaced."""
_MISSING = (FileNotFoundError, NotADirectoryError)


class Folder:
    """Stores objects as files in a folder; the methods are described in `Objects`.

    They raise `OutsideError` for a name or link that leads out of the folder.

    Args:
        place: the folder, which may be missing.
    """

    def __init__(self, place: Path) -> None:
        self.root = place
        self.address = str(place)

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        path = self.path(name)

        def read(_: int) -> bytes | None:
            try:
                return content_of(path, most=None if name.startswith(("blobs/", "partial/")) else LARGEST_JSON)
            except _MISSING:
                if path.is_symlink():
                    raise
                return None

        return self._do("read", path, read)

    def put(self, name: str, data: bytes) -> str:
        path = self.path(name)
        self._do("write", path, lambda _: write_atomically(path, data, durable=not name.startswith("live/")))
        return ""

    def create_if_absent(self, name: str, data: bytes) -> bool:
        path = self.path(name)

        def create(tries: int) -> bool:
            if exists(path):
                with contextlib.suppress(OSError):  # another user's
                    os.utime(path)
                return False if tries == 0 else content_of(path) == data
            return self._create(path, data)

        return self._do("write", path, create)

    def _create(self, path: Path, data: bytes) -> bool:
        write_atomically(path, data, durable=True)  # the caller holds a local lock, or the name stands for the content
        return True

    def adopt_file(self, name: str, file: Path) -> None:
        """Turn a finished file into the object `name` by renaming it; an existing object stays and is marked as used.

        Args:
            name: name of the object.
            file: the file, which must be on the same file system as the folder.
        """
        path = self.path(name)
        with explain_os_errors(path, "write"):
            if exists(path):
                os.utime(path)
                return
            with replacing(path, durable=True) as place:
                os.replace(file, place)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        at = prefix.rpartition("/")[0]
        start = self.path(at) if at else self.root
        yield from self._do("read", start, lambda _: tuple(self._walk(start, prefix)))

    def delete(self, names: Iterable[str]) -> None:
        for path in map(self.path, names):
            self._do("delete", path, lambda _: path.unlink(missing_ok=True))  # noqa: B023

    def now(self) -> float:
        return time.time()

    def path(self, name: str) -> Path:
        """Return the path of the file that stores the object `name`."""
        return join_inside(self.root, *name.split("/"))

    def _do(self, verb: str, path: Path, action: Callable[[int], T]) -> T:
        """Call `action(0)`, and turn an `OSError` into a `StoreError`.

        Args:
            verb: what is attempted, for error messages: read, write or delete.
            path: the file.
            action: reads or writes the file; its argument is the number of earlier tries.
        """
        with explain_os_errors(path, verb):
            return action(0)

    def _walk(self, start: Path, prefix: str) -> Iterator[Listed]:
        for entry in list_entries(start):
            name = Path(entry.path).relative_to(self.root).as_posix()
            if not name.startswith(prefix):
                continue
            inner = entry.is_dir(follow_symlinks=False)
            for path in iterate_files(Path(entry.path)) if inner else [Path(entry.path)]:
                if path.name.endswith(".tmp") or path.name == "lock" or path.is_symlink():
                    continue
                with contextlib.suppress(FileNotFoundError):
                    about = path.stat()
                    version = f"{about.st_size}-{about.st_mtime_ns}"
                    yield Listed(path.relative_to(self.root).as_posix(), about.st_size, version, about.st_mtime)


class SharedFolder(Folder):
    """Stores objects as files in a folder of a network file system; `now` returns the time of the file server.

    An object is created by making a hard link to a temporary file. This is atomic on every server, and fails if the
    name exists (see the Linux manual, open(2), on O_EXCL and NFS).

    Args:
        address: ``file:///path/to/folder``.

    Raises:
        StoreError: if the parent folder is missing.
    """

    def __init__(self, address: str) -> None:
        super().__init__(Path(address.removeprefix("file://")))
        self.address = address
        with explain_os_errors(self.root, "look for"):
            if not exists(self.root) and not is_folder(self.root.parent):
                raise StoreError(f"{address}: there is no folder {self.root.parent}: is it mounted on this machine?")

    def now(self) -> float:
        def write(_: int) -> float:
            self.root.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".clock.", suffix=".tmp", dir=self.root)
            try:
                os.write(handle, b"0")
                return os.fstat(handle).st_mtime
            finally:
                os.close(handle)
                os.unlink(name)

        return self._do("write", self.root, write)

    def _do(self, verb: str, path: Path, action: Callable[[int], T]) -> T:
        what = f"cannot {verb} {path}"

        def attempt(tries: int) -> T:
            try:
                return action(tries)
            except OSError as error:
                if error.errno in _PASSING:
                    raise PassingError(error.strerror) from error
                raise StoreError(f"{what}: {reason_of(error)}") from error

        return repeat(what, attempt)

    def _create(self, path: Path, data: bytes) -> bool:
        """Create a file by a hard link; return False if the name exists."""
        make_folder(path.parent)
        temporary = beside(path)
        try:
            temporary.write_bytes(data)
            flush(temporary)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:
                if os.stat(temporary).st_nlink != 2:  # else only the answer was lost
                    raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        flush(path.parent)
        return True
