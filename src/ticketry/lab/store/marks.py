"""Mark runs as running: a process that works on a run holds the lock of a file, the mark, in the run's folder."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from ticketry.files import exists, is_file, list_entries, require_inside
from ticketry.lab.store.files import explain_os_errors
from ticketry.lab.store.paths import Paths

if sys.platform != "win32":
    import fcntl

_MARK, _MOST = "running", 64


def is_mark(name: str) -> bool:
    """Return whether a file of this name in a run's folder is a mark."""
    return name == _MARK or name.startswith(f"{_MARK}-")


@contextlib.contextmanager
def mark_running(folder: Path) -> Iterator[None]:
    """Within a ``with`` block, mark the run in `folder` as running, by a lock that ends with this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = next(filter(None, map(_lock_mark, _mark_candidates(folder))), None)
    except OSError:  # a folder that cannot be written: the caller reports that when it writes results
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
            folder.rmdir()  # if the run stored nothing


def mark_in_use(paths: Paths) -> contextlib.AbstractContextManager[None]:
    """Within a ``with`` block, mark a store as in use; commands then refuse to remove runs or to move the store."""
    return mark_running(require_inside(paths.root, paths.live))


def is_running(folder: Path) -> bool:
    """Return whether a process works on the run in `folder`, without writing anything.

    Raises:
        StoreError: if the folder or a mark in it cannot be read.
    """
    with explain_os_errors(folder, "read"):
        return any(is_mark(entry.name) and is_locked(folder / entry.name) for entry in list_entries(folder))


def _mark_candidates(folder: Path) -> Iterator[Path]:
    """Yield paths for a new mark; a process uses the first path whose file is missing or not locked."""
    for number in range(1, _MOST + 1):
        yield folder / (_MARK if number == 1 else f"{_MARK}-{number}")


def _lock_mark(mark: Path) -> filelock.FileLock | None:
    """Create and lock a mark; return None if another process holds the lock, or the file is another user's."""
    if mark.is_symlink() or (exists(mark) and not is_file(mark)):  # a lock opens, and empties, its file
        return None
    try:
        lock = _try_lock(mark)
    except PermissionError:  # another user's: this process takes the next one
        return None
    if lock is None or is_locked(mark):
        return lock
    lock.release()  # of a file that its former holder has deleted meanwhile
    return None


def is_locked(mark: Path) -> bool:
    """Return whether a process holds the lock of the file `mark`, without writing; it may be another user's file."""
    if sys.platform == "win32":  # where the only way to test a lock is to take it
        return is_file(mark) and _is_taken(mark)
    try:
        handle = os.open(mark, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):  # missing, a link, or a socket
            return False
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return False
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return True
        if error.errno == errno.ENOSYS:  # a file system without locks: there filelock tests whether the file exists
            return _is_taken(mark)
        raise
    finally:
        os.close(handle)
    return False


def _is_taken(mark: Path) -> bool:
    if (lock := _try_lock(mark)) is None:
        return True
    lock.release()
    return False


def _try_lock(mark: Path) -> filelock.FileLock | None:
    lock = filelock.FileLock(mark)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return None
    return lock
