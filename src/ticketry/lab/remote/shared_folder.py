"""Objects in a folder that several machines see, such as one on a network file system, with no lock to be trusted.

An object is a file. It is created by a hard link from a temporary file, which is one step on every server, and fails if
the name is taken (Linux, open(2), on O_EXCL and NFS). What is replaced under a condition, the small objects of
`lease`, is kept as files with growing numbers, ``name@7``: who creates the next number has replaced the one before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import TypeVar

from ticketry.errors import StoreError
from ticketry.files import beside, content_of, flush, join_inside, make_folder, reason_of, require_inside
from ticketry.folders import exists, is_folder, iterate_files, list_entries
from ticketry.lab.remote.objects import Content, Listed, Remote
from ticketry.lab.remote.patience import PATIENT, PassingError, Patience
from ticketry.lab.store.files import explained

T = TypeVar("T")

NUMBERED = "trajectories"
"""The folder whose objects are replaced under a condition."""
_KEPT = 4
"""Numbers that stay, for those who have just listed them."""
_PASSING = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EBUSY, errno.ENETDOWN, errno.EHOSTDOWN)
"""What a network file system tells while its server is away or a file was exchanged under it."""


class SharedFolder:
    """The objects below a folder, see `objects.Remote`. Its clock is that of the machine whose disk it is.

    Raises:
        StoreError: if the folder it should lie in is not there.
    """

    def __init__(self, address: str, patience: Patience = PATIENT) -> None:
        self.address, self._patience = address, patience
        self.root = Path(address.removeprefix("file://"))
        with explained(self.root, "look for"):
            if not exists(self.root) and not is_folder(self.root.parent):
                raise StoreError(f"{address}: there is no folder {self.root.parent}: is it mounted on this machine?")

    def impatient(self, seconds: float) -> Remote:
        return SharedFolder(self.address, changed(self._patience, seconds=seconds))

    def read(self, name: str) -> Content | None:
        if _is_numbered(name):
            return self._asked("read", name, lambda: self._newest(name))

        def attempt() -> Content | None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return Content(content_of(self._path(name)), "")
            return None

        return self._asked("read", name, attempt)

    def age(self, name: str) -> float | None:
        def attempt() -> float | None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return max(0.0, self.now() - self._path(name).stat().st_mtime)
            return None

        return None if _is_numbered(name) else self._asked("look for", name, attempt)

    def create(self, name: str, data: bytes) -> str | None:
        if _is_numbered(name):
            return self._asked("write", name, lambda: self._next(name, data, 0))
        return self._asked("write", name, lambda: "" if self._linked(self._path(name), data) else None)

    def replace(self, name: str, data: bytes, version: str | None = None) -> str | None:
        if version is not None:
            return self._asked("write", name, lambda: self._next(name, data, int(version)))

        def attempt() -> str:
            with _temporary(self._path(name), data) as temporary:
                os.replace(temporary, self._path(name))
            return ""

        return self._asked("write", name, attempt)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            paths = self._numbers(name).values() if _is_numbered(name) else [self._path(name)]
            for path in paths:
                self._asked("delete", name, lambda: path.unlink(missing_ok=True))  # noqa: B023

    def list(self, folder: str = "") -> Iterator[Listed]:
        return iter(self._asked("list", folder, lambda: list(self._files(folder))))

    def now(self) -> float:
        def attempt() -> float:
            self.root.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".clock.", suffix=".tmp", dir=self.root)
            try:
                os.write(handle, b"0")
                return os.fstat(handle).st_mtime
            finally:
                os.close(handle)
                os.unlink(name)

        return self._asked("write", ".clock", attempt)

    # -- files -------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return join_inside(self.root, *name.split("/"))

    def _files(self, folder: str) -> Iterator[Listed]:
        start = self._path(folder) if folder else self.root
        newest: dict[str, Listed] = {}
        for path in iterate_files(start):
            with contextlib.suppress(FileNotFoundError):
                if path.name.endswith(".tmp") or path.name == "lock":
                    continue
                about, name = require_inside(self.root, path).stat(), path.relative_to(self.root).as_posix()
                mark = f"{about.st_size}-{about.st_mtime_ns}"
                one = Listed(
                    name.partition("@")[0] if _is_numbered(name) else name, about.st_size, mark, about.st_mtime
                )
                if one.name not in newest or newest[one.name].modified <= one.modified:
                    newest[one.name] = one  # of those with numbers
        yield from newest.values()

    def _linked(self, path: Path, data: bytes) -> bool:
        """Whether the file was made; not if there is one."""
        if exists(path):
            return False
        with _temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # an answer that got lost: NFS then tells by the number of links
                if os.stat(temporary).st_nlink != 2:
                    raise
        flush(path.parent)
        return True

    # -- objects that are replaced under a condition -----------------------------------------------------------------

    def _numbers(self, name: str) -> dict[int, Path]:
        path = self._path(name)
        found = (one.name.rpartition("@") for one in list_entries(path.parent))
        return {
            int(number): path.with_name(f"{base}@{number}")
            for base, _, number in found
            if base == path.name and number.isdecimal()
        }

    def _newest(self, name: str) -> Content | None:
        while numbers := self._numbers(name):
            newest = max(numbers)
            with contextlib.suppress(FileNotFoundError):
                return Content(content_of(numbers[newest]), str(newest))
        return None

    def _next(self, name: str, data: bytes, before: int) -> str | None:
        numbers, path = self._numbers(name), self._path(name)
        if max(numbers, default=0) != before:
            return None
        mine = path.with_name(f"{path.name}@{before + 1}")
        if not self._linked(mine, data):
            return None
        if max(self._numbers(name), default=0) > before + 1:  # the list was an old one
            mine.unlink(missing_ok=True)
            return None
        for number, old in numbers.items():
            if number <= before - _KEPT:
                old.unlink(missing_ok=True)
        return str(before + 1)

    def _asked(self, doing: str, name: str, attempt: Callable[[], T]) -> T:
        what = f"cannot {doing} {self.root / name}"

        def told() -> T:
            try:
                return attempt()
            except OSError as error:
                if error.errno in _PASSING:
                    raise PassingError(error.strerror) from error
                raise StoreError(f"{what}: {reason_of(error)}") from error

        return self._patience.until_done(what, told)


def _is_numbered(name: str) -> bool:
    return name.startswith(f"{NUMBERED}/")


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside `path` with the data, on the disk; gone afterwards, if it still has its name."""
    make_folder(path.parent)
    place = beside(path)
    try:
        place.write_bytes(data)
        flush(place)
        yield place
    finally:
        with contextlib.suppress(FileNotFoundError):
            place.unlink()
