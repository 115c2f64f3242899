"""What is carried out in a store now. Marks of runs: files in a run's folder, each locked by a process as long as it
carries the run out; and the locks of trainings."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from ticketry.files import require_inside
from ticketry.folders import exists, is_file, list_entries
from ticketry.lab.remote.address import shown
from ticketry.lab.store.files import explained

if TYPE_CHECKING:  # a store reads records of others, which are told from marks
    from ticketry.lab.store.paths import Paths
    from ticketry.lab.store.store import Store

if sys.platform != "win32":
    import fcntl

_MARK, _MOST = "running", 64


def is_mark(name: str) -> bool:
    """Whether a file of that name in a run's folder is a mark."""
    return name == _MARK or name.startswith(f"{_MARK}-")


@contextlib.contextmanager
def marked_running(folder: Path) -> Iterator[None]:
    """Marks a run as one that is carried out now; other processes that carry it out too have marks of their own."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = next(filter(None, map(_locked, _marks(folder))), None)
    except OSError:  # a place that cannot be written: who writes results tells that
        lock = None
    if lock is None:
        yield
        return
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
            folder.rmdir()  # where the run came to nothing


def marked_in_use(paths: Paths) -> contextlib.AbstractContextManager[None]:
    """Marks a store as one in which something is carried out: who removes runs, or moves the store, waits."""
    return marked_running(require_inside(paths.root, paths.live))


def is_running(folder: Path) -> bool:
    """Return whether a process carries out the run of a folder; nothing is written to find out.

    Raises:
        StoreError: if the folder or a mark in it cannot be read.
    """
    with explained(folder, "read"):
        return any(is_mark(entry.name) and _is_held(folder / entry.name) for entry in list_entries(folder))


def under_way(store: Store) -> str:
    """Return what is carried out or trained in a store now, in words; empty if nothing is.

    Raises:
        StoreError: if a folder of the store cannot be read.
    """
    paths, place = store.paths, shown(store.paths.root)
    with explained(paths.runs, "read"):
        runs = [entry.name for entry in list_entries(paths.runs)]
    for name in runs:
        if is_running(paths.run(name)):
            return f"the run {name} is being carried out in {place}"
    # A command marks the store; anybody's own loop, with a lab of its own, holds the lock of what it trains.
    with explained(paths.results, "read"):
        if is_running(require_inside(paths.root, paths.live)) or any(map(_is_held, paths.locks())):
            return f"something is being trained in {place}"
    training = store.link.busy()
    return training and f"{training} is under way on another machine"


def _marks(folder: Path) -> Iterator[Path]:
    """Places for marks, of which the first free one is taken: those of processes that were killed are used again."""
    for number in range(1, _MOST + 1):
        yield folder / (_MARK if number == 1 else f"{_MARK}-{number}")


def _locked(mark: Path) -> filelock.FileLock | None:
    """Take the lock of a mark; None if another process has it, or another user made it."""
    try:
        lock = _taken(mark) if _is_plain(mark) else None
    except PermissionError:  # another user's: this process takes the next one
        return None
    if lock is None or _is_held(mark):
        return lock
    lock.release()  # of a file that whoever had it before has deleted meanwhile
    return None


def _is_held(mark: Path) -> bool:
    """Return whether a process holds the lock of a file. The file is only read, and may be another user's."""
    if sys.platform == "win32":  # where a lock can only be tried by taking it
        return is_file(mark) and _is_taken(mark)
    try:
        handle = os.open(mark, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):  # gone, or a link, or a socket
            return False
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return False
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return True
        if error.errno == errno.ENOSYS:  # no locks on this file system: there filelock goes by whether the file exists
            return _is_taken(mark)
        raise
    finally:
        os.close(handle)
    return False


def _is_taken(mark: Path) -> bool:
    if (lock := _taken(mark)) is None:
        return True
    lock.release()
    return False


def _taken(mark: Path) -> filelock.FileLock | None:
    lock = filelock.FileLock(mark)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return None
    return lock


def _is_plain(mark: Path) -> bool:
    """Return whether it is no link, pipe or folder that somebody put there: a lock opens, and empties, its file."""
    return not mark.is_symlink() and (is_file(mark) or not exists(mark))
