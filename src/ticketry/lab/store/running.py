"""What is carried out in a store now. Marks of runs: files in a run's folder, each locked by a process as long as it
carries the run out; and the locks of trainings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from ticketry.files import within
from ticketry.lab.remote.address import shown
from ticketry.lab.store.files import explained

if TYPE_CHECKING:  # a store reads records of others, which are told from marks
    from ticketry.lab.store.paths import Paths
    from ticketry.lab.store.store import Store

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
    return marked_running(within(paths.root, paths.live))


def is_running(folder: Path) -> bool:
    """Whether a process carries out the run of a folder."""
    return any(is_mark(one.name) and _is_held(one) for one in folder.glob(f"{_MARK}*"))


def under_way(store: Store) -> str:
    """What is carried out or trained in a store now, in words; empty if nothing is."""
    paths, place = store.paths, shown(store.paths.root)
    with explained(paths.root, "look for trainings in"):
        for folder in sorted(paths.runs.glob("*")):
            if is_running(paths.run(folder.name)):
                return f"the run {folder.name} is being carried out in {place}"
        # A command marks the store; anybody's own loop, with a lab of its own, holds the lock of what it trains.
        if is_running(within(paths.root, paths.live)) or any(map(_is_held, paths.locks())):
            return f"something is being trained in {place}"
    training = store.link.busy()
    return training and f"{training} is under way on another machine"


def _marks(folder: Path) -> Iterator[Path]:
    """Places for marks, of which the first free one is taken: those of processes that were killed are used again."""
    for number in range(1, _MOST + 1):
        yield folder / (_MARK if number == 1 else f"{_MARK}-{number}")


def _locked(mark: Path) -> filelock.FileLock | None:
    """The lock of a mark, if nobody has it."""
    lock = _taken(mark) if _is_plain(mark) else None
    if lock is None or _is_held(mark):
        return lock
    lock.release()  # of a file that whoever had it before has deleted meanwhile
    return None


def _is_held(mark: Path) -> bool:
    if not mark.exists() or not _is_plain(mark):
        return False
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
    """Whether it is no link, pipe or folder that somebody put there: a lock opens, and empties, its file."""
    return not mark.is_symlink() and (mark.is_file() or not mark.exists())
