"""Lock runs on this machine by marks, and trainings of a shared store by leases.

A process that works on a run holds the lock of a file, the mark, in the run's folder. A lease ensures that only one
machine at a time trains a trajectory (one training). A lease is a sequence of small objects,
``trajectories/xx/KEY.json@N``. A machine takes or renews the lease by creating the object with the next number N; only
one machine can do so, and the newest object names this machine. A lease lasts for a number of seconds, and is renewed
every third of that time. It has expired if its newest object is too old, by the clock of the store's server or by the
monotonic clock of the waiting machine; clocks of two machines are never compared.

If a machine loses its lease (because it was suspended or disconnected), two machines train the same, and one result is
wasted. Nothing is damaged, because results are named by their keys and tensors by their digests.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

import filelock
import msgspec
from msgspec import Meta

from ticketry.errors import StoreError
from ticketry.files import exists, is_file, list_entries, require_inside
from ticketry.lab.store.files import explain_os_errors
from ticketry.lab.store.objects import Listed, Objects, limit_retry_time
from ticketry.lab.store.paths import Paths

if sys.platform != "win32":
    import fcntl

_MARK, _MOST = "running", 64


def is_running_mark(name: str) -> bool:
    """Return whether a file of this name in a run's folder marks the run as running."""
    return name == _MARK or name.startswith(f"{_MARK}-")


@contextlib.contextmanager
def mark_running(folder: Path) -> Iterator[None]:
    """Within a ``with`` block, mark the run in `folder` as running, by a lock that ends with this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = (_MARK, *(f"{_MARK}-{number}" for number in range(2, _MOST + 1)))
        lock = next(filter(None, (_lock_mark_file(folder / name) for name in names)), None)
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
            folder.rmdir()  # succeeds if the run stored nothing


def mark_in_use(paths: Paths) -> contextlib.AbstractContextManager[None]:
    """Within a ``with`` block, mark a store as in use, so that no command removes its runs or moves the store."""
    return mark_running(require_inside(paths.root, paths.live))


def is_running(folder: Path) -> bool:
    """Return whether a process works on the run in `folder`, without writing anything."""
    with explain_os_errors(folder, "read"):
        return any(is_running_mark(entry.name) and is_locked(folder / entry.name) for entry in list_entries(folder))


def _lock_mark_file(mark: Path) -> filelock.FileLock | None:
    """Create and lock the file `mark`; return None if another process holds the lock, or another user owns the file."""
    if mark.is_symlink() or (exists(mark) and not is_file(mark)):  # FileLock would open and empty the file
        return None
    try:
        lock = _try_lock(mark)
    except PermissionError:  # another user's mark: the caller tries the next name
        return None
    if lock is None or is_locked(mark):
        return lock
    lock.release()  # the former holder has deleted the file meanwhile
    return None


def is_locked(mark: Path) -> bool:
    """Return whether a process holds the lock of the file `mark`, without writing; the file may be another user's."""
    if sys.platform == "win32":  # a lock can be tested only by taking it
        return is_file(mark) and _is_locked_by_other(mark)
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
        if error.errno == errno.ENOSYS:  # without locks of the file system, filelock tests whether the file exists
            return _is_locked_by_other(mark)
        raise
    finally:
        os.close(handle)
    return False


def _is_locked_by_other(mark: Path) -> bool:
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


# -- leases among machines ---------------------------------------------------------------------------------------------


_SLACK = 1.25
"""A lease can be taken over when the age of its newest object is this many times the length of the lease."""
_RETAINED = 4
"""Number of older objects that are retained while the lease is held, for machines with an outdated listing."""
_RELEASE_SECONDS = 8.0
"""Seconds for which releasing a lease is attempted; a lease that could not be released expires later."""

_log = logging.getLogger(__name__)


class Holder(msgspec.Struct, frozen=True):
    """Describes the process that holds a lease, which is the exclusive right to carry out a training."""

    owner: Annotated[str, Meta(pattern="^[0-9a-f]{1,64}$")]
    """Random id of this lease."""
    mirror: str
    """Id of the mirror of the store on the holder's machine. Another process of that machine that has the mirror's
    lock may take the lease at once, because the holder must have ended.
    """
    seconds: Annotated[float, Meta(gt=0, le=86_400)]
    """Length of the lease."""


class _Content(msgspec.Struct, frozen=True):
    """Describes the JSON content of a lease object; `lease` is None in an object that releases the lease."""

    lease: Holder | None = None
    beat: str = ""
    """A random text, so that no two objects have the same content."""


def lease_name(trajectory: str) -> str:
    """Return the name of the lease objects of the training with the key `trajectory`; ``@`` and a number follow it."""
    return f"trajectories/{trajectory[:2]}/{trajectory}.json"


def find_newest_lease(remote: Objects, name: str) -> tuple[int, Holder | None, Listed | None]:
    """Return the number of the newest object of a lease (0 without objects), the holder, and the object's listing."""
    while numbers := _list_lease_numbers(remote, name):
        newest = max(numbers)
        if (data := remote.get(f"{name}@{newest}")) is not None:
            return newest, read_holder(data), numbers[newest]
    return 0, None, None


def read_holder(data: bytes) -> Holder | None:
    """Return the holder that a lease object names; None if the object releases the lease or is damaged."""
    try:
        return msgspec.json.decode(data, type=_Content).lease
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def find_busy_trajectory(remote: Objects, mirror: str, seconds: float) -> str:
    """Return the key of a training whose lease another machine has renewed recently, or an empty string.

    `mirror` is the id of this machine's mirror, and `seconds` the length of leases.
    """
    now = remote.now()
    names = {
        one.name.rpartition("@")[0]
        for one in remote.list("trajectories/")
        if "@" in one.name and now - one.modified < 2 * seconds
    }
    for name in sorted(names):
        holder = find_newest_lease(remote, name)[1]
        if holder is not None and holder.mirror != mirror:
            return PurePosixPath(name).stem
    return ""


def _list_lease_numbers(remote: Objects, name: str) -> dict[int, Listed]:
    found = ((one.name.rpartition("@")[2], one) for one in remote.list(f"{name}@"))
    return {int(number): one for number, one in found if number.isdecimal()}


class Lease:
    """Gives this machine the exclusive right to one training; a thread renews the lease until `release`.

    `mirror` is the id of this machine's mirror, and `seconds` the length of the lease.
    """

    def __init__(self, remote: Objects, trajectory: str, mirror: str, seconds: float) -> None:
        self._remote, self._name, self._seconds = remote, lease_name(trajectory), seconds
        self._mine = Holder(uuid.uuid4().hex, mirror, seconds)
        self._number = 0
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self.lost = False
        """Whether another machine has taken the lease over."""

    def acquire(self) -> None:
        """Wait until no other machine holds the lease, and take it."""
        seen, unchanged_since, pause = 0, time.monotonic(), 0.1
        while True:
            number, holder, listed = find_newest_lease(self._remote, self._name)
            now = time.monotonic()
            if number != seen:
                seen, unchanged_since = number, now
                if holder is not None and listed is not None:
                    unchanged_since -= max(0.0, self._remote.now() - listed.modified)
            old = holder is not None and now - unchanged_since > _SLACK * holder.seconds
            free = holder is None or old or holder.mirror == self._mine.mirror
            if free and self._write(number + 1, self._mine):
                break
            time.sleep(random.uniform(0.5, 1) * pause)
            pause = min(pause * 1.5, 2.0, self._seconds / 10)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def release(self) -> None:
        """Release the lease, so that another machine can take it at once."""
        self._ended.set()
        try:
            with limit_retry_time(_RELEASE_SECONDS), self._guard:
                if not self.lost and self._write(self._number + 1, None):
                    old = (number for number in _list_lease_numbers(self._remote, self._name) if number < self._number)
                    self._remote.delete([f"{self._name}@{number}" for number in old])
        except StoreError as error:
            _log.warning("a lease could not be released, and expires in %.0f s: %s", self._seconds, error)

    def _write(self, number: int, holder: Holder | None) -> bool:
        """Create the lease object with this number; return False if another machine created it first."""
        data = msgspec.json.encode(_Content(holder, uuid.uuid4().hex))
        if not self._remote.create_if_absent(f"{self._name}@{number}", data):
            return False
        numbers = _list_lease_numbers(self._remote, self._name)
        if max(numbers, default=0) > number:  # this machine was suspended, and the number was deleted meanwhile
            self._remote.delete([f"{self._name}@{number}"])
            return False
        self._remote.delete([f"{self._name}@{old}" for old in numbers if old <= number - _RETAINED])
        self._number = number
        return True

    def _renew(self) -> None:
        # After a third of the lease a renewal is given up; the next one shows whether the lease is still ours.
        interval = self._seconds / 3
        while not self._ended.wait(interval):
            try:
                with limit_retry_time(interval), self._guard:
                    if self._ended.is_set() or self._write(self._number + 1, self._mine):
                        continue
                    number, holder, _ = find_newest_lease(self._remote, self._name)
                    if holder == self._mine:  # an earlier try succeeded, but its answer was lost
                        self._number = number
                        continue
            except StoreError as error:
                _log.info("a lease could not be renewed now: %s", error)
                continue
            self.lost = True
            _log.warning("a lease was lost, another machine trains the same now: harmless, its result is the same")
            return
