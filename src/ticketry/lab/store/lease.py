"""Leases: in a shared store, only one machine at a time may train a trajectory.

A lease is a sequence of small objects, ``trajectories/xx/KEY.json@N``. A machine takes or renews the lease by creating
the object with the next number, which only one machine can; the newest object names the holder. The holder renews the
lease every third of its length. A lease has expired when its newest object is older than its length, by the clock of
the store's server or by the monotonic clock of the waiting machine; clocks of two machines are never compared.

If a holder loses its lease (it was suspended or disconnected), two machines train the same and one result is wasted.
Nothing is damaged: results are named by their keys, tensors by their digests.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

import msgspec
from msgspec import Meta

from ticketry.errors import StoreError
from ticketry.lab.store.objects import Listed, Objects, patience

_SLACK = 1.25
"""A lease can be taken over when its newest object is this many times as old as the lease's length."""
_RETAINED = 4
"""Number of older objects that are retained while the lease is held, for readers with an outdated listing."""
_RELEASE_SECONDS = 8.0
"""Seconds for which releasing a lease is attempted; after that it expires."""

_log = logging.getLogger(__name__)


class Holder(msgspec.Struct, frozen=True):
    """The process that holds a lease."""

    owner: Annotated[str, Meta(pattern="^[0-9a-f]{1,64}$")]
    """Random id of this lease."""
    mirror: str
    """Id of the machine's mirror of the store: a process with the mirror's local lock knows that an earlier holder is
    gone.
    """
    seconds: Annotated[float, Meta(gt=0, le=86_400)]


class _Content(msgspec.Struct, frozen=True):
    """Content of a lease object."""

    lease: Holder | None = None
    beat: str = ""
    """A random text, so that no two objects have the same content."""


@dataclass(frozen=True)
class LeaseSettings:
    """Settings of the leases of a process."""

    mirror: str
    seconds: float


def lease_name(trajectory: str) -> str:
    """Return the name of a trajectory's lease objects, without the number."""
    return f"trajectories/{trajectory[:2]}/{trajectory}.json"


def newest_lease(remote: Objects, name: str) -> tuple[int, Holder | None, Listed | None]:
    """Return the newest number of a lease (0 if there is none), its holder and its entry in the listing."""
    while numbers := _list_numbers(remote, name):
        newest = max(numbers)
        if (data := remote.get(f"{name}@{newest}")) is not None:
            return newest, read_holder(data), numbers[newest]
    return 0, None, None


def read_holder(data: bytes) -> Holder | None:
    """Return the holder named in a lease object; None if the lease is released or the object is damaged."""
    try:
        return msgspec.json.decode(data, type=_Content).lease
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def busy_trajectory(remote: Objects, terms: LeaseSettings) -> str:
    """Return a trajectory whose lease another machine renewed recently, or an empty string."""
    now = remote.now()
    names = {
        one.name.rpartition("@")[0]
        for one in remote.list("trajectories/")
        if "@" in one.name and now - one.modified < 2 * terms.seconds
    }
    for name in sorted(names):
        holder = newest_lease(remote, name)[1]
        if holder is not None and holder.mirror != terms.mirror:
            return PurePosixPath(name).stem
    return ""


def _list_numbers(remote: Objects, name: str) -> dict[int, Listed]:
    found = ((one.name.rpartition("@")[2], one) for one in remote.list(f"{name}@"))
    return {int(number): one for number, one in found if number.isdecimal()}


class Lease:
    """The right to train one trajectory. A thread renews it until `release`."""

    def __init__(self, remote: Objects, trajectory: str, terms: LeaseSettings) -> None:
        self._remote, self._terms = remote, terms
        self._name = lease_name(trajectory)
        self._mine = Holder(uuid.uuid4().hex, terms.mirror, terms.seconds)
        self._number = 0
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self.lost = False
        """Whether another machine has taken over."""

    def take(self) -> None:
        """Wait until no other machine holds the lease, and take it.

        Raises:
            StoreError: if the store does not answer.
        """
        seen, unchanged_since, pause = 0, time.monotonic(), 0.1
        while True:
            number, holder, listed = newest_lease(self._remote, self._name)
            now = time.monotonic()
            if number != seen:
                seen, unchanged_since = number, now
                if holder is not None and listed is not None:
                    unchanged_since -= max(0.0, self._remote.now() - listed.modified)
            if self._is_free(holder, now - unchanged_since) and self._write(number + 1, self._mine):
                break
            time.sleep(random.uniform(0.5, 1) * pause)
            pause = min(pause * 1.5, 2.0, self._terms.seconds / 10)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def release(self) -> None:
        """Release the lease, so that another machine can take it at once."""
        self._ended.set()
        try:
            with patience(_RELEASE_SECONDS), self._guard:
                if not self.lost and self._write(self._number + 1, None):
                    old = (number for number in _list_numbers(self._remote, self._name) if number < self._number)
                    self._remote.delete([f"{self._name}@{number}" for number in old])
        except StoreError as error:
            _log.warning("a lease could not be released, and expires in %.0f s: %s", self._terms.seconds, error)

    def _is_free(self, holder: Holder | None, unchanged: float) -> bool:
        return holder is None or holder.mirror == self._terms.mirror or unchanged > _SLACK * holder.seconds

    def _write(self, number: int, holder: Holder | None) -> bool:
        """Create the object with this number; return False if another machine was faster."""
        data = msgspec.json.encode(_Content(holder, uuid.uuid4().hex))
        if not self._remote.create_if_absent(f"{self._name}@{number}", data):
            return False
        numbers = _list_numbers(self._remote, self._name)
        if max(numbers, default=0) > number:  # this machine was suspended, and the number was deleted meanwhile
            self._remote.delete([f"{self._name}@{number}"])
            return False
        self._remote.delete([f"{self._name}@{old}" for old in numbers if old <= number - _RETAINED])
        self._number = number
        return True

    def _renew(self) -> None:
        # A renewal that takes longer than the lease is too late anyway; the next one shows whether it is still ours.
        interval = self._terms.seconds / 3
        while not self._ended.wait(interval):
            try:
                with patience(interval), self._guard:
                    if self._ended.is_set() or self._write(self._number + 1, self._mine):
                        continue
                    number, holder, _ = newest_lease(self._remote, self._name)
                    if holder == self._mine:  # written by a try that was given up
                        self._number = number
                        continue
            except StoreError as error:
                _log.info("a lease could not be renewed now: %s", error)
                continue
            self.lost = True
            _log.warning("a lease was lost, another machine trains the same now: harmless, its result is the same")
            return
