"""A store's folder on this machine as the mirror of a store that many machines share.

What is read is looked for here and then there; digests are checked in both places. What is written is written here,
durably, noted as not published, and then created there: tensors before the record that names them, so that whoever
finds a record finds all of it. Killed or cut off in between, the next one to open the mirror publishes what is noted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from ticketry.errors import DamagedBlobError, StoreError
from ticketry.files import content_of, join_inside, make_folder, parse_json, write_atomically
from ticketry.folders import is_file, iterate_files, list_matching
from ticketry.lab.remote.address import mirror_name
from ticketry.lab.remote.lease import Known, Lease, Terms, known_of, object_of
from ticketry.lab.remote.objects import Listed, Remote
from ticketry.lab.remote.records import Records
from ticketry.lab.remote.states import States, is_of, state_of, trajectory_of
from ticketry.lab.remote.uploads import Uploads
from ticketry.lab.store.files import explained, is_there
from ticketry.lab.store.link import Link
from ticketry.lab.store.paths import Paths

_OPENING_SECONDS = 10.0
"""Within which an address has to answer when it is opened."""
_RELIED_ON_SECONDS = 900.0
"""How long an object that was seen is taken to be there: less than what `store gc` leaves alone."""
_OWN = (
    "store.json",
    "blobs",
    "results",
    "partial",
    "memo",
    "runs",
    "evidence",
    "campaigns",
    "trajectories",
    "live",
    "damaged",
)
"""What a shared store has at its top."""
_IMMUTABLE = ("blobs", "results", "memo")

_log = logging.getLogger(__name__)


class Mirror(Link):
    """Keeps the folder of a store in step with objects elsewhere. One for each address and process; thread-safe."""

    shared = True

    def __init__(self, remote: Remote, root: Path, *, lease_seconds: float) -> None:
        self.remote, self.paths = remote, Paths(root)
        self._terms = Terms(_identity(root), lease_seconds)
        self._pending = root.parent / "unpublished"
        self._seen: dict[str, float] = {}
        """Object -> when it was last known to be there."""
        self._leases: dict[str, Lease] = {}
        self._uploads: dict[str, Uploads] = {}
        self._listed: dict[str, Listed] = {}
        self._begun = False
        self.records = Records(remote, self.paths)

    def address(self, root: Path) -> str:
        return self.remote.address

    def begin(self) -> None:
        """See that the address answers and is a store's, or empty, and publish what was not.

        Raises:
            StoreError: if it does not answer soon, may not be read, or has other things in it.
        """
        if self._begun and is_there(self.paths.format):
            return
        remote = self.remote.impatient(_OPENING_SECONDS)
        found = remote.read("store.json")
        if found is None and self._holds_other_things(remote):
            raise StoreError(
                f"{self.remote.address} has other things in it, and is no store: choose another folder below it"
            )
        if found is not None:
            self._keep(self.paths.format, found.data)
            try:
                parse_json(found.data)
            except (ValueError, RecursionError):
                raise StoreError(
                    f"{self.remote.address}/store.json is damaged: delete this object, the next command makes it anew"
                ) from None
        elif is_there(self.paths.format):  # its mirror outlived it
            self._publish_one("store.json", replace=False)
        self.publish_unpublished()
        self._begun = True

    def is_there(self) -> bool:
        """Whether there is a store at the address."""
        return self.remote.impatient(_OPENING_SECONDS).read("store.json") is not None

    def _holds_other_things(self, remote: Remote) -> bool:
        for one in remote.list():
            top = one.name.partition("/")[0]
            if not top.startswith(".") and top not in _OWN:
                return True
        return False

    # -- files -------------------------------------------------------------------------------------------------------

    def wanted(self, path: Path, *, renew: bool = False) -> None:
        if is_there(path) and not renew:
            return
        name = self._name(path)
        if renew and is_there(self._marker(name)):
            return  # it is newer here
        found = self.remote.read(name)
        if found is None:
            return
        if name.startswith("blobs/") and hashlib.sha256(found.data).hexdigest() != path.stem:
            found = self.remote.read(name)  # broken on its way, or there
            if found is None or hashlib.sha256(found.data).hexdigest() != path.stem:
                raise DamagedBlobError(
                    f"{self.remote.address}/{name} is damaged: its contents do not match its digest. Run `ticketry"
                    " store check --repair`: it sets damaged files aside, and the next run makes them again"
                )
        self._keep(path, found.data)
        self._seen[name] = time.monotonic()

    def _keep(self, path: Path, data: bytes) -> None:
        with explained(path, "write"):
            write_atomically(path, data)

    def intended(self, path: Path, *, replace: bool = False) -> None:
        name = self._name(path)
        marker = self._marker(name)
        with explained(marker, "write"):
            make_folder(marker.parent, private=True)
            write_atomically(marker, json.dumps({"name": name, "replace": replace}).encode())

    def written(self, path: Path, *, replace: bool = False) -> None:
        name = self._name(path)
        if not is_there(self._marker(name)):
            self.intended(path, replace=replace)
        self._publish_one(name, replace=replace)
        if name.startswith("results/"):
            self._tell_step(path)

    def kept(self, path: Path) -> None:
        """See that it is still there for others, and not so old that `store gc` may take it for forgotten."""
        name = self._name(path)
        if time.monotonic() - self._seen.get(name, -_RELIED_ON_SECONDS) < _RELIED_ON_SECONDS:
            return
        age = self.remote.age(name)
        if age is None or age > _RELIED_ON_SECONDS:
            self.written(path, replace=age is not None)
        self._seen[name] = time.monotonic()

    def discarded(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.remote.delete([self._name(path)])

    def publish_unpublished(self) -> None:
        """Publish what an earlier process of this mirror could not: tensors before the records that name them."""
        order = {folder: number for number, folder in enumerate(_IMMUTABLE[:1] + _IMMUTABLE[:0:-1])}
        waiting = []
        with explained(self._pending, "read"):
            markers = list_matching(self._pending, "*.json")
        for marker in markers:
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, RecursionError):
                told = parse_json(content_of(marker))
                waiting.append((order.get(told["name"].partition("/")[0], 9), told["name"], bool(told["replace"])))
        for _, name, replace in sorted(waiting):
            if is_there(self.paths.root / name):
                self._publish_one(name, replace=replace)
                if name.startswith("results/"):
                    self._tell_step(self.paths.root / name)
            else:
                self._marker(name).unlink(missing_ok=True)

    def _publish_one(self, name: str, *, replace: bool) -> None:
        with explained(self.paths.root / name, "read"):
            data = content_of(self.paths.root / name)
        if replace:
            self.remote.replace(name, data)
        else:
            self.remote.create(name, data)  # or it is there: what it says is the same
        self._seen[name] = time.monotonic()
        self._marker(name).unlink(missing_ok=True)

    def _marker(self, name: str) -> Path:
        return self._pending / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.paths.root).as_posix()

    # -- trajectories ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def holding(self, trajectory: str) -> Iterator[None]:
        lease = Lease(self.remote, trajectory, self._terms)
        lease.take()
        uploads = Uploads(self.remote, lease, self.paths)
        self._leases[trajectory], self._uploads[trajectory] = lease, uploads
        try:
            yield
        finally:
            del self._leases[trajectory], self._uploads[trajectory]
            uploads.close()
            lease.release()
            uploads.tidy()

    def trajectory(self, trajectory: str) -> None:
        lease = self._leases.get(trajectory)
        if lease is None:
            return
        for step in lease.known.steps:
            self.wanted(self.paths.result(trajectory, step))
        if state := state_of(lease.known):
            States(self.remote, self.paths, trajectory).fetch(state)

    def known_steps(self, trajectory: str) -> list[int]:
        known = known_of(self.remote.read(object_of(trajectory)))
        return [*known.steps, *([known.partial[0]] if known.partial else [])]

    def partial_written(self, trajectory: str, step: int, path: Path) -> None:
        if uploads := self._uploads.get(trajectory):
            uploads.newest(step, path)

    def partials_dropped(self, trajectory: str, last: int) -> None:
        if uploads := self._uploads.get(trajectory):
            uploads.drop(last)

    def _tell_step(self, path: Path) -> None:
        trajectory, step = path.parent.name, int(path.stem)
        if (lease := self._leases.get(trajectory)) and step not in lease.known.steps:
            lease.change(lambda known: _with_step(known, step))

    # -- as a whole --------------------------------------------------------------------------------------------------

    def fetch(self, *, records: bool = True, results: bool = False, everything: bool = False) -> None:
        if everything:
            self.publish()
            self._list()
            for name in sorted(self._listed):
                if name.partition("/")[0] not in ("partial", "trajectories", "live") and not name.startswith("."):
                    self._renew(name)
            self.records.fetch()
            return
        if results:
            self._list()
            for name in sorted(self._listed):
                if name.startswith(("results/", "memo/")):
                    self.wanted(join_inside(self.paths.root, *name.split("/")))
        if records or results:
            self.records.fetch()

    def _list(self) -> None:
        self._listed = {one.name: one for one in self.remote.list()}

    def _renew(self, name: str) -> None:
        """What is there takes the place of what is here, so that it is what gets checked."""
        path = join_inside(self.paths.root, *name.split("/"))
        if name.startswith(("runs/", "evidence/", "campaigns/")):
            self.records.get(name)
        elif not is_there(self._marker(name)) and (found := self.remote.read(name)):
            self._keep(path, found.data)

    def fetch_folder(self, folder: Path) -> None:
        self.records.fetch_folder(self._name(folder))

    def publish(self) -> None:
        self.publish_unpublished()
        self.records.publish()

    def files(self) -> Iterator[tuple[Path, int]]:
        if not self._listed:
            self._list()
        for name, one in self._listed.items():
            path = self.paths.root / name
            if not is_there(path) and not name.startswith((".", "trajectories/", "live/")):
                yield path, one.size

    def removed(self, paths: Collection[Path]) -> None:
        names = [self._name(path) for path in paths]
        self.remote.delete(names)
        self.records.forget(names)
        for name in names:
            self._listed.pop(name, None)
            self._seen.pop(name, None)

    def set_aside(self, path: Path, place: Path) -> None:
        with explained(place, "read"):
            data = content_of(place) if is_file(place) else None
            inside = [] if data is not None else list(iterate_files(place))
        if data is not None:
            self.remote.replace(self._name(place), data)
            self.removed([path])
            return
        for one in inside:
            self.remote.replace(self._name(one), content_of(one))
        self.removed([path / one.relative_to(place) for one in inside])

    def collect(self, needed: Collection[str], grace_seconds: float, *, dry_run: bool) -> tuple[int, int] | None:
        now = self.remote.now()
        doomed = [one for one in self.remote.list() if self._is_forgotten(one, needed, now, grace_seconds)]
        if not dry_run:
            self.removed([self.paths.root / one.name for one in doomed])
        return len(doomed), sum(one.size for one in doomed)

    def _is_forgotten(self, one: Listed, needed: Collection[str], now: float, grace_seconds: float) -> bool:
        if now - one.modified < grace_seconds:
            return False
        folder, _, rest = one.name.partition("/")
        if folder == "blobs":
            return Path(rest).stem not in needed
        if folder == "partial":
            known = known_of(self.remote.read(object_of(trajectory_of(rest))))
            state = state_of(known)
            return state is None or not is_of(state, rest) or state.step <= max(known.steps, default=-1)
        return folder in (".clock", "live")

    def busy(self) -> str:
        now = self.remote.now()
        for one in self.remote.list("trajectories"):
            if now - one.modified < 2 * self._terms.seconds:
                known = known_of(self.remote.read(one.name))
                if known.lease is not None and known.lease.mirror != self._terms.mirror:
                    return f"the training {Path(one.name).stem[:12]}…"
        return ""


def _with_step(known: Known, step: int) -> Known:
    return msgspec.structs.replace(known, steps=tuple(sorted({*known.steps, step})))


def _identity(root: Path) -> str:
    """Of this mirror on this machine: a home folder may be seen by many."""
    return hashlib.sha256(f"{socket.gethostname()} {mirror_name(root)}".encode()).hexdigest()[:32]
