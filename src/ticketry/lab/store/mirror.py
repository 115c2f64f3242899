"""A folder of this machine as the cache of a store that many machines share.

Objects are looked for here and then there; digests are checked in both places. An object is written here, durably and
marked as unpublished, and then there; tensors before the record that names them, so that a record is only visible with
all of it. If the process is killed or cut off in between, the next one to open the mirror publishes what is marked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ticketry.errors import DamagedBlobError, StoreError
from ticketry.files import content_of, make_folder, parse_json, write_atomically
from ticketry.folders import is_file, iterate_files, list_matching
from ticketry.lab.store import lease
from ticketry.lab.store.address import mirror_name
from ticketry.lab.store.checkpoints import Uploads, fetch_newest
from ticketry.lab.store.files import REPAIR, explained, is_there
from ticketry.lab.store.folder import Folder
from ticketry.lab.store.objects import Listed, Objects, patience
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.records import FOLDERS, Records

_OPENING_SECONDS = 10.0
"""Patience of opening an address."""
_FRESH_SECONDS = 900.0
"""How long an object that was seen is assumed to exist: less than the age at which `store gc` deletes."""
_CONTENT = ("blobs", "memo", "results")
"""Folders of trained objects, in the order of publishing."""
_TOP = ("store.json", *_CONTENT, "partial", "runs", "evidence", "campaigns", "trajectories", "live", "damaged")
"""Top-level names of a shared store."""


class Mirror:
    """A cached shared store, see `Objects`. There is one for each address and process; thread-safe.

    Args:
        remote: the shared store.
        root: the folder of the cache.
        lease_seconds: length of its leases.
    """

    def __init__(self, remote: Objects, root: Path, *, lease_seconds: float) -> None:
        self.remote, self.paths, self.folder = remote, Paths(root), Folder(root)
        self.address = remote.address
        self.records = Records(remote, self.paths)
        host = hashlib.sha256(f"{socket.gethostname()} {mirror_name(root)}".encode())  # many may see a home folder
        self._terms = lease.Terms(host.hexdigest()[:32], lease_seconds)
        self._unpublished = root.parent / "unpublished"
        self._seen: dict[str, float] = {}
        """When each object was last known to exist in the shared store."""
        self._uploads: dict[str, Uploads] = {}
        self._opened = False

    def open(self) -> None:
        """Check that the address answers and has a store or nothing, and publish what was not.

        Raises:
            StoreError: if it does not answer soon, may not be read, or has other things in it.
        """
        if self._opened and is_there(self.paths.format):
            return
        with patience(_OPENING_SECONDS):
            found = self.remote.get("store.json")
            if found is None and self._has_other_things():
                raise StoreError(f"{self.address} has other things in it, not a store: choose another folder below it")
        if found is not None:
            self.folder.put("store.json", found)
            try:
                parse_json(found)
            except (ValueError, RecursionError):
                raise StoreError(
                    f"{self.address}/store.json is damaged: delete this object, the next command writes it again"
                ) from None
        elif is_there(self.paths.format):  # the mirror outlived its store
            self._publish("store.json", replace=False)
        self.publish_unpublished()
        self._opened = True

    def exists(self) -> bool:
        """Return whether there is a store at the address."""
        with patience(_OPENING_SECONDS):
            return self.remote.get("store.json") is not None

    def _has_other_things(self) -> bool:
        tops = (one.name.partition("/")[0] for one in self.remote.list())
        return any(top not in _TOP and not top.startswith(".") for top in tops)

    # -- objects -----------------------------------------------------------------------------------------------------

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        if fresh and is_there(self._marker(name)):  # the copy here is the newer one
            fresh = False
        data = None if fresh else self.folder.get(name)
        if data is not None:
            return data
        data = self._download(name)
        if data is None:
            return self.folder.get(name) if fresh else None
        self.folder.put(name, data)
        self._seen[name] = time.monotonic()
        return data

    def _download(self, name: str) -> bytes | None:
        for _ in range(2):  # the first may have been damaged on its way
            data = self.remote.get(name)
            digest = PurePosixPath(name).stem
            if data is None or not name.startswith("blobs/") or hashlib.sha256(data).hexdigest() == digest:
                return data
        raise DamagedBlobError(f"{self.address}/{name} is damaged: its contents do not match its digest; {REPAIR}")

    def put(self, name: str, data: bytes) -> str:
        self._mark(name, replace=True)
        self.folder.put(name, data)
        self._publish(name, replace=True)
        return ""

    def create_if_absent(self, name: str, data: bytes) -> bool:
        if is_there(self.folder.path(name)):
            self.folder.create_if_absent(name, data)
            self._refresh(name)
            return False
        self._mark(name, replace=False)
        self.folder.create_if_absent(name, data)
        return self._publish(name, replace=False)

    def move_in(self, name: str, file: Path) -> None:
        """Move a finished file of the same file system into place."""
        known = is_there(self.folder.path(name))
        if not known:
            self._mark(name, replace=False)
        self.folder.move_in(name, file)
        if known:
            self._refresh(name)
        else:
            self._publish(name, replace=False)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        found = {one.name: one for one in self.folder.list(prefix)}
        yield from (found | {one.name: one for one in self.remote.list(prefix)}).values()

    def delete(self, names: Iterable[str]) -> None:
        names = list(names)
        self.remote.delete(names)
        self.folder.delete(names)
        self.records.forget(names)
        for name in names:
            self._seen.pop(name, None)

    def now(self) -> float:
        return self.remote.now()

    def _refresh(self, name: str) -> None:
        """Check that an object still exists for others, and is not so old that `store gc` may delete it."""
        if time.monotonic() - self._seen.get(name, -_FRESH_SECONDS) < _FRESH_SECONDS:
            return
        found = [one for one in self.remote.list(name) if one.name == name]
        if not found or self.remote.now() - found[0].modified > _FRESH_SECONDS:
            self._mark(name, replace=bool(found))
            self._publish(name, replace=bool(found))
        self._seen[name] = time.monotonic()

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish_unpublished(self) -> None:
        """Publish what an earlier process of this mirror did not: tensors before the records that name them."""
        waiting = []
        with explained(self._unpublished, "read"):
            markers = list_matching(self._unpublished, "*.json")
        for marker in markers:
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, RecursionError):
                told = parse_json(content_of(marker))
                folder = told["name"].partition("/")[0]
                order = _CONTENT.index(folder) if folder in _CONTENT else len(_CONTENT)
                waiting.append((order, told["name"], bool(told["replace"])))
        for _, name, replace in sorted(waiting):
            if is_there(self.paths.root / name):
                self._publish(name, replace=replace)
            else:
                self._marker(name).unlink(missing_ok=True)

    def _mark(self, name: str, *, replace: bool) -> None:
        marker = self._marker(name)
        with explained(marker, "write"):
            make_folder(marker.parent, private=True)
            write_atomically(marker, json.dumps({"name": name, "replace": replace}).encode())

    def _publish(self, name: str, *, replace: bool) -> bool:
        """Upload an object; return whether it is new there."""
        with explained(self.paths.root / name, "read"):
            data = content_of(self.paths.root / name)
        if replace:
            self.remote.put(name, data)
        new = replace or self.remote.create_if_absent(name, data)
        self._seen[name] = time.monotonic()
        self._marker(name).unlink(missing_ok=True)
        return new

    def _marker(self, name: str) -> Path:
        return self._unpublished / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    # -- trajectories ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def leased(self, trajectory: str) -> Iterator[None]:
        """In a block, prevent other machines from training a trajectory; upload its checkpoints."""
        held = lease.Lease(self.remote, trajectory, self._terms)
        held.take()
        uploads = self._uploads[trajectory] = Uploads(self.remote, trajectory)
        try:
            yield
        finally:
            del self._uploads[trajectory]
            uploads.close()
            held.release()
            uploads.delete_dropped()

    def busy_trajectory(self) -> str:
        """Return a trajectory that another machine trains now, or an empty text."""
        return lease.busy_trajectory(self.remote, self._terms)

    def fetch_checkpoint(self, trajectory: str, last: int) -> None:
        """Get the newest checkpoint of a trajectory up to step `last` into the folder."""
        fetch_newest(self.remote, self.paths, trajectory, last)

    def upload_checkpoint(self, trajectory: str, step: int, path: Path) -> None:
        """Upload a checkpoint soon, if the trajectory is leased."""
        if uploads := self._uploads.get(trajectory):
            uploads.submit(step, path)

    def drop_checkpoints(self, trajectory: str, last: int) -> None:
        """Delete the checkpoints up to step `last` when the lease is released."""
        if uploads := self._uploads.get(trajectory):
            uploads.drop(last)

    # -- the store as a whole ----------------------------------------------------------------------------------------

    def fetch(self, *, results: bool = False, everything: bool = False) -> None:
        """Get the records; also results and remembered values; or everything again, to be checked."""
        if everything:
            self.publish()
            for one in sorted(self.remote.list(), key=lambda one: one.name):
                self._renew(one.name)
        elif results:
            for folder in ("memo/", "results/"):
                for one in self.remote.list(folder):
                    if not is_there(self.folder.path(one.name)):
                        self.get(one.name)
        self.records.fetch()

    def _renew(self, name: str) -> None:
        """Get an object again, so that the shared store is checked and not this copy."""
        if name.startswith((".", "partial/", "trajectories/", "live/")):
            return
        if name.startswith(FOLDERS):
            self.records.get(name)
        elif not is_there(self._marker(name)) and (data := self.remote.get(name)) is not None:
            self.folder.put(name, data)

    def publish(self) -> None:
        """Upload everything that was written here."""
        self.publish_unpublished()
        self.records.publish()

    def move_aside(self, path: Path, place: Path) -> None:
        """Move a damaged object in the shared store, as its file or folder was moved here."""
        with explained(place, "read"):
            files = [place] if is_file(place) else list(iterate_files(place))
            for file in files:
                self.remote.put(self.paths.name(file), content_of(file))
        self.delete([self.paths.name(path / file.relative_to(place)) for file in files])
