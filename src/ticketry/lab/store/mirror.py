"""Cache a shared store in a folder on this machine, the mirror.

An object is read from the folder or, if the folder lacks it, from the shared store; its digest is verified. An object
is written to the folder, marked as unpublished, and then uploaded. Tensors are uploaded before the record that refers
to them, so that other machines see complete records only. If the process is killed before an upload, the next process
that opens the mirror uploads the marked objects.

Records of runs, evidence and campaigns are uploaded when a command ends, tickets before the run's record. Paths in
records begin with the mirror's folder on this machine, and with the store's URL in the shared store. HTML pages are not
shared: each machine renders pages from the records, so that no script of another machine runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import filelock

from ticketry import files
from ticketry.errors import DamagedBlobError, StoreError
from ticketry.lab.store.checkpoints import Uploads, fetch_newest_checkpoint
from ticketry.lab.store.files import REPAIR, bytes_with_digest, explain_os_errors, parse_canonical_record, path_exists
from ticketry.lab.store.locks import Lease, find_busy_trajectory, is_running_mark
from ticketry.lab.store.objects import Folder, Listed, Objects, limit_retry_time
from ticketry.lab.store.paths import Paths, read_mirror_id

FOLDERS = ("runs/", "evidence/", "campaigns/")


class Records:
    """Synchronises the folders ``runs``, ``evidence`` and ``campaigns`` of a mirror with the shared store.

    An index file next to the mirror lists, for the last synchronisation of each file, the file's size and time on this
    machine and its version in the shared store.
    """

    def __init__(self, remote: Objects, paths: Paths) -> None:
        self._remote, self._paths = remote, paths
        self._index = paths.root.parent / "records.json"
        self._lock = filelock.FileLock(paths.root.parent / "records.lock")
        self._guard = threading.RLock()

    def publish(self) -> None:
        """Upload files that were written here since the last synchronisation."""
        with self._locked_index() as index:
            names = []
            for folder in FOLDERS:
                with explain_os_errors(self._paths.root / folder, "read"):
                    found = [self._paths.object_name(path) for path in files.iterate_files(self._paths.root / folder)]
                for name in found:
                    *folders, last = name.split("/")
                    hidden = any(part.startswith(".") for part in (*folders, last))
                    if not (hidden or is_running_mark(last) or last.endswith(".html")):
                        names.append(name)
            names = [one for one in names if index.get(one, {}).get("here") != self._file_size_and_time(one)]
            for name in sorted(names, key=lambda name: (_is_record(name), name)):
                with contextlib.suppress(FileNotFoundError):
                    stamp, data = self._file_size_and_time(name), files.read_bytes(self._paths.root / name)
                    data = self._replace_store_folder(name, data, str(self._paths.root), self._remote.address)
                    index[name] = {"here": stamp, "there": self._remote.put(name, data).strip()}

    def fetch(self) -> None:
        """Download new records of runs, evidence and campaigns, and delete records that other machines deleted."""
        self.publish()
        with self._locked_index() as index:
            there = {one.name: one for folder in FOLDERS for one in self._remote.list(folder)}
            for name, one in there.items():
                if _is_record(name) and self._is_newer_than_index(one, index):
                    self._download(name, index, one)
            for name in [name for name in index if name not in there]:
                record = self._paths.root / name
                page = record.with_name("report.html") if record.name == "run.json" else record.with_suffix(".html")
                record.unlink(missing_ok=True)
                page.unlink(missing_ok=True)
                del index[name]
            with explain_os_errors(self._paths.runs, "read"):
                folders = list(files.iterate_folders(self._paths.runs))
            for folder in reversed(folders):
                with contextlib.suppress(OSError):  # the folder is not empty
                    folder.rmdir()

    def fetch_folder(self, folder: str) -> None:
        """Download all new files below `folder`, such as the tickets of a run."""
        with self._locked_index() as index:
            for one in self._remote.list(f"{folder}/"):
                if self._is_newer_than_index(one, index):
                    self._download(one.name, index, one)

    def get(self, name: str) -> None:
        """Download the file `name`, even if the mirror has it."""
        with self._locked_index() as index:
            self._download(name, index)

    def remove_from_index(self, names: Iterable[str]) -> None:
        """Remove files from the index; the caller has deleted them in the mirror and in the shared store."""
        with self._locked_index() as index:
            for name in names:
                index.pop(name, None)

    def _is_newer_than_index(self, listed: Listed, index: dict[str, Any]) -> bool:
        known = index.get(listed.name)
        return (
            known is None or known["there"] != listed.version.strip() or not path_exists(self._paths.root / listed.name)
        )

    def _download(self, name: str, index: dict[str, Any], listed: Listed | None = None) -> None:
        if name.endswith(".html") or (data := self._remote.get(name)) is None:
            return
        path = files.join_inside(self._paths.root, *name.split("/"))
        data = self._replace_store_folder(name, data, self._remote.address, str(self._paths.root))
        with explain_os_errors(path, "write"):
            files.write_atomically(path, data)
            if listed is not None:
                os.utime(path, (listed.modified, listed.modified))  # `ticketry list runs` shows when a run changed
        index[name] = {"here": self._file_size_and_time(name), "there": listed.version.strip() if listed else ""}

    def _replace_store_folder(self, name: str, data: bytes, old: str, new: str) -> bytes:
        """Return `data`; if it is an undamaged record, replace the folder `old` by `new` in all paths."""
        if not (_is_record(name) and name.endswith(".json")):
            return data
        try:
            return bytes_with_digest(replace_folder_in_paths(parse_canonical_record(data, name), old, new))
        except StoreError:
            return data

    @contextlib.contextmanager
    def _locked_index(self) -> Iterator[dict[str, Any]]:
        """Within a ``with`` block, lock the index and yield its entries; afterwards store the entries."""
        with self._guard:
            files.make_folder(self._index.parent, private=True)
            with self._lock:
                try:
                    index = files.parse_json(files.read_bytes(self._index))
                except (OSError, ValueError, RecursionError):
                    index = {}
                try:
                    yield index
                finally:
                    with explain_os_errors(self._index, "write"):
                        files.write_atomically(self._index, json.dumps(index).encode(), private=True)

    def _file_size_and_time(self, name: str) -> list[int]:
        about = (self._paths.root / name).stat()
        return [about.st_size, about.st_mtime_ns]


def replace_folder_in_paths(value: Any, old: str, new: str) -> Any:
    """Return a copy of a JSON value, with the folder `new` in place of `old` at the beginning of all paths."""
    match value:
        case str():
            return new + value[len(old) :] if value.startswith(f"{old}/") else value
        case list():
            return [replace_folder_in_paths(one, old, new) for one in value]
        case dict():
            return {name: replace_folder_in_paths(one, old, new) for name, one in value.items()}
    return value


def _is_record(name: str) -> bool:
    folder, _, rest = name.partition("/")
    if folder == "runs":
        return rest.count("/") == 1 and rest.endswith(("/run.json", "/run.toml"))
    return rest.count("/") == 0 and rest.endswith((".json", ".toml", ".md"))


_OPENING_SECONDS = 10.0
"""Seconds for which opening a shared store is attempted."""
_FRESH_SECONDS = 900.0
"""Seconds for which an object is assumed to exist after it was seen; `store gc` deletes only older objects."""
_CONTENT = ("blobs", "memo", "results")
"""Folders of tensors, stored values and results, in the order in which they are uploaded."""
_TOP = ("store.json", *_CONTENT, "partial", "runs", "evidence", "campaigns", "trajectories", "live", "damaged")
"""Top-level names of a shared store."""


class Mirror:
    """Reads and writes the objects of a shared store through a local folder; methods are described in `Objects`.

    A process has one mirror for each address, and several threads may use it.
    """

    def __init__(self, remote: Objects, root: Path, *, lease_seconds: float) -> None:
        self.remote, self.paths, self.folder = remote, Paths(root), Folder(root)
        self.address = remote.address
        self.records = Records(remote, self.paths)
        # The host is part of the id, since many hosts may share a home folder.
        host = hashlib.sha256(f"{socket.gethostname()} {read_mirror_id(root)}".encode())
        self._id, self._lease_seconds = host.hexdigest()[:32], lease_seconds
        self._unpublished = root.parent / "unpublished"
        self._seen: dict[str, float] = {}
        """When each object was last known to exist in the shared store."""
        self._uploads: dict[str, Uploads] = {}
        self._opened = False

    def open(self) -> None:
        """Check that the address holds a store or is empty, and upload the objects that are marked as unpublished."""
        if self._opened and path_exists(self.paths.format):
            return
        with limit_retry_time(_OPENING_SECONDS):
            found = self.remote.get("store.json")
            tops = (one.name.partition("/")[0] for one in self.remote.list())
            if found is None and any(top not in _TOP and not top.startswith(".") for top in tops):
                raise StoreError(f"{self.address} has other things in it, not a store: choose another folder below it")
        if found is not None:
            self.folder.put("store.json", found)
            try:
                files.parse_json(found)
            except (ValueError, RecursionError):
                raise StoreError(
                    f"{self.address}/store.json is damaged: delete this object, the next command writes it again"
                ) from None
        elif path_exists(self.paths.format):  # the mirror outlived its store
            self._upload_object("store.json", replace=False)
        self.publish_unpublished()
        self._opened = True

    def exists(self) -> bool:
        with limit_retry_time(_OPENING_SECONDS):
            return self.remote.get("store.json") is not None

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        if fresh and path_exists(self._unpublished_marker_path(name)):  # the local copy is newer
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
        for _ in range(2):  # the first download may be damaged
            data = self.remote.get(name)
            digest = PurePosixPath(name).stem
            if data is None or not name.startswith("blobs/") or hashlib.sha256(data).hexdigest() == digest:
                return data
        raise DamagedBlobError(f"{self.address}/{name} is damaged: its contents do not match its digest; {REPAIR}")

    def put(self, name: str, data: bytes) -> str:
        self._mark_unpublished(name, replace=True)
        self.folder.put(name, data)
        self._upload_object(name, replace=True)
        return ""

    def create_if_absent(self, name: str, data: bytes) -> bool:
        if path_exists(self.folder.path(name)):
            self.folder.create_if_absent(name, data)
            self._ensure_published(name)
            return False
        self._mark_unpublished(name, replace=False)
        self.folder.create_if_absent(name, data)
        return self._upload_object(name, replace=False)

    def adopt_file(self, name: str, file: Path) -> None:
        """Rename a finished file, so that it becomes the object `name`, and upload it."""
        known = path_exists(self.folder.path(name))
        if not known:
            self._mark_unpublished(name, replace=False)
        self.folder.adopt_file(name, file)
        if known:
            self._ensure_published(name)
        else:
            self._upload_object(name, replace=False)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        found = {one.name: one for one in self.folder.list(prefix)}
        yield from (found | {one.name: one for one in self.remote.list(prefix)}).values()

    def delete(self, names: Iterable[str]) -> None:
        names = list(names)
        self.remote.delete(names)
        self.folder.delete(names)
        self.records.remove_from_index(names)
        for name in names:
            self._seen.pop(name, None)

    def now(self) -> float:
        return self.remote.now()

    def _ensure_published(self, name: str) -> None:
        """Upload an object again if the shared store lacks it, or if `store gc` might delete it because of its age."""
        if time.monotonic() - self._seen.get(name, -_FRESH_SECONDS) < _FRESH_SECONDS:
            return
        found = [one for one in self.remote.list(name) if one.name == name]
        if not found or self.remote.now() - found[0].modified > _FRESH_SECONDS:
            self._mark_unpublished(name, replace=bool(found))
            self._upload_object(name, replace=bool(found))
        self._seen[name] = time.monotonic()

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish_unpublished(self) -> None:
        """Upload all objects that are marked as unpublished, tensors first and the records that refer to them last."""
        waiting = []
        with explain_os_errors(self._unpublished, "read"):
            markers = files.list_matching(self._unpublished, "*.json")
        for marker in markers:
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, RecursionError):
                told = files.parse_json(files.read_bytes(marker))
                folder = told["name"].partition("/")[0]
                order = _CONTENT.index(folder) if folder in _CONTENT else len(_CONTENT)
                waiting.append((order, told["name"], bool(told["replace"])))
        for _, name, replace in sorted(waiting):
            if path_exists(self.paths.root / name):
                self._upload_object(name, replace=replace)
            else:
                self._unpublished_marker_path(name).unlink(missing_ok=True)

    def _mark_unpublished(self, name: str, *, replace: bool) -> None:
        marker = self._unpublished_marker_path(name)
        with explain_os_errors(marker, "write"):
            files.make_folder(marker.parent, private=True)
            files.write_atomically(marker, json.dumps({"name": name, "replace": replace}).encode())

    def _upload_object(self, name: str, *, replace: bool) -> bool:
        """Upload an object; return False if the shared store already had it and `replace` is False."""
        with explain_os_errors(self.paths.root / name, "read"):
            data = files.read_bytes(self.paths.root / name)
        if replace:
            self.remote.put(name, data)
        new = replace or self.remote.create_if_absent(name, data)
        self._seen[name] = time.monotonic()
        self._unpublished_marker_path(name).unlink(missing_ok=True)
        return new

    def _unpublished_marker_path(self, name: str) -> Path:
        return self._unpublished / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    # -- trajectories ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold_lease(self, trajectory: str) -> Iterator[None]:
        """Within a ``with`` block, hold the lease (exclusive right) of a training; a thread uploads checkpoints."""
        held = Lease(self.remote, trajectory, self._id, self._lease_seconds)
        held.acquire()
        uploads = self._uploads[trajectory] = Uploads(self.remote, trajectory)
        try:
            yield
        finally:
            del self._uploads[trajectory]
            uploads.close()
            held.release()
            uploads.delete_cancelled()

    def find_busy_trajectory(self) -> str:
        """Return the key of a training that another machine carries out now, or an empty string."""
        return find_busy_trajectory(self.remote, self._id, self._lease_seconds)

    def fetch_checkpoint(self, trajectory: str, last: int) -> None:
        """Download the newest checkpoint, up to step `last`, of the training with the key `trajectory`."""
        fetch_newest_checkpoint(self.remote, self.paths, trajectory, last)

    def upload_checkpoint(self, trajectory: str, step: int, path: Path) -> None:
        """Queue the upload of the checkpoint at `path`, if this process has the exclusive right to the training."""
        if uploads := self._uploads.get(trajectory):
            uploads.enqueue(step, path)

    def drop_checkpoints(self, trajectory: str, last: int) -> None:
        """Mark the checkpoints up to step `last`; they are deleted when this machine releases the training's lease."""
        if uploads := self._uploads.get(trajectory):
            uploads.cancel(last)

    # -- the store as a whole ----------------------------------------------------------------------------------------

    def fetch(self, *, results: bool = False, everything: bool = False) -> None:
        """Download records; with `results` also results that the folder lacks; with `everything` all objects again."""
        if everything:
            self.publish()
            for name in sorted(one.name for one in self.remote.list()):
                marker = self._unpublished_marker_path(name)
                if name.startswith((".", "partial/", "trajectories/", "live/")):  # checkpoints, leases, messages
                    continue
                if name.startswith(FOLDERS):
                    self.records.get(name)
                elif not path_exists(marker) and (data := self.remote.get(name)) is not None:
                    self.folder.put(name, data)
        elif results:
            for folder in ("memo/", "results/"):
                for one in self.remote.list(folder):
                    if not path_exists(self.folder.path(one.name)):
                        self.get(one.name)
        self.records.fetch()

    def publish(self) -> None:
        """Upload everything that this machine has written and not uploaded yet."""
        self.publish_unpublished()
        self.records.publish()

    def move_aside(self, path: Path, place: Path) -> None:
        """Move a damaged file or folder in the shared store, after the mirror has moved it from `path` to `place`."""
        with explain_os_errors(place, "read"):
            moved = [place] if files.is_file(place) else list(files.iterate_files(place))
            for file in moved:
                self.remote.put(self.paths.object_name(file), files.read_bytes(file))
        self.delete([self.paths.object_name(path / file.relative_to(place)) for file in moved])
