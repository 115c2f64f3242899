"""The right to train a trajectory, held by one machine at a time, and what is known of the trajectory meanwhile.

One small object for each trajectory, ``trajectories/xx/KEY.json``, written under the condition that nobody wrote it
since it was read. It names the holder of the lease, the steps that have results and the newest partial state, so that
another machine goes on from there without a listing. The holder changes it every third of the lease's time. A lease
has run out when the object stays unchanged for that time as seen by who waits (a monotonic clock), or is that old by
the store's own clock: the clocks of two machines are never compared.

A lease that was lost (its holder was stopped for long, or cut off) wastes the work of one of the two who then train,
and damages nothing: results are named by their keys, tensors by their digests.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ticketry.errors import StoreError
from ticketry.lab.remote.objects import Content, Remote

_SLACK = 1.25
"""A lease is taken over after so many times its length."""
_TRIES = 8
_LAST_SECONDS = 8.0
"""What letting go of a lease waits for an answer; else it runs out by itself."""

_log = logging.getLogger(__name__)
_Hex = Annotated[str, Meta(pattern="^[0-9a-f]{1,64}$")]
_Step = Annotated[int, Meta(ge=0, le=1 << 60)]


class Holder(msgspec.Struct, frozen=True):
    """Who trains."""

    owner: _Hex
    """A random number of this one lease."""
    mirror: str
    """Of the machine and its mirror: a process that holds the mirror's own lock knows that an earlier one is gone."""
    seconds: Annotated[float, Meta(gt=0, le=86_400)]


class Known(msgspec.Struct, frozen=True):
    """The object."""

    lease: Holder | None = None
    steps: tuple[_Step, ...] = ()
    """That have results."""
    partial: tuple[_Step, _Hex] | None = None
    """Step and SHA-256 of the newest state inside a segment."""
    in_parts: bool = False
    """Whether that is a folder, and the digest that of its list of files."""
    beat: str = ""
    """Random, so that no two versions have the same content."""


def object_of(trajectory: str) -> str:
    """The name of a trajectory's object."""
    return f"trajectories/{trajectory[:2]}/{trajectory}.json"


def known_of(found: Content | None) -> Known:
    """What an object says; nothing, if it is none or damaged."""
    try:
        return msgspec.json.decode(found.data, type=Known) if found else Known()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Known()


@dataclass(frozen=True)
class Terms:
    """Of the leases of a process."""

    mirror: str
    seconds: float


class Lease:
    """The right to train one trajectory, kept up by a thread of its own until `release`."""

    def __init__(self, remote: Remote, trajectory: str, terms: Terms) -> None:
        self._remote, self._terms, self.trajectory = remote, terms, trajectory
        self._name = object_of(trajectory)
        self._mine = Holder(uuid.uuid4().hex, terms.mirror, terms.seconds)
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._version = ""
        self.known = Known()
        """What the object says, as last seen."""
        self.lost = False
        """Whether another has taken over."""

    # -- taking and letting go ---------------------------------------------------------------------------------------

    def take(self) -> None:
        """Wait until nobody else holds it, and take it.

        Raises:
            StoreError: if the store does not answer.
        """
        seen, unchanged_since, patience = "", time.monotonic(), 0.1
        while True:
            found = self._remote.read(self._name)
            known, now = known_of(found), time.monotonic()
            if found and found.version != seen:
                seen, unchanged_since = found.version, now
                if known.lease is not None and (age := self._remote.age(self._name)):
                    unchanged_since = now - age
            if self._is_free(known.lease, now - unchanged_since) and self._written(known, found):
                break
            time.sleep(random.uniform(0.5, 1) * patience)
            patience = min(patience * 1.5, 2.0, self._terms.seconds / 10)
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    def _is_free(self, lease: Holder | None, unchanged: float) -> bool:
        return lease is None or lease.mirror == self._terms.mirror or unchanged > _SLACK * lease.seconds

    def _written(self, known: Known, found: Content | None) -> bool:
        wanted = msgspec.structs.replace(known, lease=self._mine, beat=uuid.uuid4().hex)
        data = msgspec.json.encode(wanted)
        version = (
            self._remote.replace(self._name, data, found.version) if found else self._remote.create(self._name, data)
        )
        if version is not None:
            self._version, self.known = version, wanted
        return version is not None

    def release(self) -> None:
        """Let go; another can take it at once."""
        self._ended.set()
        try:
            self._change(lambda known: known, self._remote.impatient(_LAST_SECONDS), release=True)
        except StoreError as error:
            _log.warning("a lease could not be given back, and runs out in %.0f s: %s", self._terms.seconds, error)

    # -- while it is held --------------------------------------------------------------------------------------------

    def change(self, change: Callable[[Known], Known]) -> None:
        """Write what is known now, whoever holds the lease by now.

        Raises:
            StoreError: if the store does not answer.
        """
        self._change(change, self._remote)

    def _change(self, change: Callable[[Known], Known], remote: Remote, *, release: bool = False) -> None:
        with self._guard:
            for _ in range(_TRIES):
                if not self._version:
                    self._look(remote)
                    continue
                wanted: Any = {"beat": uuid.uuid4().hex}
                if release and not self.lost:
                    wanted["lease"] = None
                known = msgspec.structs.replace(change(self.known), **wanted)
                version = remote.replace(self._name, msgspec.json.encode(known), self._version)
                if version is not None:
                    self._version, self.known = version, known
                    return
                self._look(remote)

    def _look(self, remote: Remote) -> None:
        """Somebody else wrote it."""
        found = remote.read(self._name)
        self.known, self._version = known_of(found), found.version if found else ""
        if not self.lost and self.known.lease != self._mine:
            self.lost = True
            _log.warning("a lease was lost, another machine trains the same now: harmless, its result is the same")
        if found is None and (version := remote.create(self._name, msgspec.json.encode(Known(beat=uuid.uuid4().hex)))):
            self._version = version

    def _beat(self) -> None:
        # A beat that is not answered within the lease is too late anyway; the next one tells whether it is still ours.
        remote = self._remote.impatient(self._terms.seconds / 3)
        while not self._ended.wait(self._terms.seconds / 3) and not self.lost:
            try:
                self._change(lambda known: known, remote)
            except StoreError as error:
                _log.info("no answer to a heartbeat: %s", error)
