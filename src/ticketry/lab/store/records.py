"""Synchronise the records of runs, evidence and campaigns between a mirror and its shared store.

Files are uploaded when a command ends, tickets before the run's record, so that a record that other machines see is
complete. Paths in records begin with the mirror's folder on this machine, and with the store's URL in the shared store.
HTML pages are not shared: each machine renders pages from the records, so that no script of another machine runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import filelock

from ticketry.errors import StoreError
from ticketry.files import (
    content_of,
    iterate_files,
    iterate_folders,
    join_inside,
    make_folder,
    parse_json,
    write_atomically,
)
from ticketry.lab.store.files import explain_os_errors, parse_canonical_record, path_exists, sealed_bytes
from ticketry.lab.store.marks import is_mark
from ticketry.lab.store.objects import Listed, Objects
from ticketry.lab.store.paths import Paths

FOLDERS = ("runs/", "evidence/", "campaigns/")


class Records:
    """Synchronises the folders ``runs``, ``evidence`` and ``campaigns`` of a mirror with the shared store.

    An index file next to the mirror says for each file which size and time it had on this machine, and which version in
    the shared store, when it was last synchronised.
    """

    def __init__(self, remote: Objects, paths: Paths) -> None:
        self._remote, self._paths = remote, paths
        self._index = paths.root.parent / "records.json"
        self._lock = filelock.FileLock(paths.root.parent / "records.lock")
        self._guard = threading.RLock()

    def publish(self) -> None:
        """Upload files that were written here since the last synchronisation."""
        with self._locked_index() as index:
            names = [name for name in self._local_names() if index.get(name, {}).get("here") != self._stamp(name)]
            for name in sorted(names, key=lambda name: (_is_record(name), name)):
                with contextlib.suppress(FileNotFoundError):
                    stamp, data = self._stamp(name), content_of(self._paths.root / name)
                    data = self._relocate(name, data, str(self._paths.root), self._remote.address)
                    index[name] = {"here": stamp, "there": self._remote.put(name, data).strip()}

    def fetch(self) -> None:
        """Download new records of runs, evidence and campaigns, and delete records that other machines deleted."""
        self.publish()
        with self._locked_index() as index:
            there = {one.name: one for folder in FOLDERS for one in self._remote.list(folder)}
            for name, one in there.items():
                if _is_record(name) and self._is_newer(one, index):
                    self._download(name, index, one)
            for name in [name for name in index if name not in there]:
                record = self._paths.root / name
                page = record.with_name("report.html") if record.name == "run.json" else record.with_suffix(".html")
                record.unlink(missing_ok=True)
                page.unlink(missing_ok=True)
                del index[name]
            with explain_os_errors(self._paths.runs, "read"):
                folders = list(iterate_folders(self._paths.runs))
            for folder in reversed(folders):
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()

    def fetch_folder(self, folder: str) -> None:
        """Download all new files below `folder`, such as the tickets of a run."""
        with self._locked_index() as index:
            for one in self._remote.list(f"{folder}/"):
                if self._is_newer(one, index):
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

    def _local_names(self) -> Iterator[str]:
        for folder in FOLDERS:
            with explain_os_errors(self._paths.root / folder, "read"):
                found = [self._paths.object_name(path) for path in iterate_files(self._paths.root / folder)]
            for name in found:
                parts = name.split("/")
                if not (is_mark(parts[-1]) or _is_page(name) or any(part.startswith(".") for part in parts)):
                    yield name

    def _is_newer(self, one: Listed, index: dict[str, Any]) -> bool:
        known = index.get(one.name)
        return known is None or known["there"] != one.version.strip() or not path_exists(self._paths.root / one.name)

    def _download(self, name: str, index: dict[str, Any], listed: Listed | None = None) -> None:
        data = None if _is_page(name) else self._remote.get(name)
        if data is None:
            return
        path = join_inside(self._paths.root, *name.split("/"))
        with explain_os_errors(path, "write"):
            write_atomically(path, self._relocate(name, data, self._remote.address, str(self._paths.root)))
            if listed is not None:
                os.utime(path, (listed.modified, listed.modified))  # `ticketry list runs` shows when a run changed
        index[name] = {"here": self._stamp(name), "there": listed.version.strip() if listed else ""}

    def _relocate(self, name: str, data: bytes, old: str, new: str) -> bytes:
        """Return the content of a file; in an undamaged record, paths get the folder `new` instead of `old`."""
        if not (_is_record(name) and name.endswith(".json")):
            return data
        try:
            return sealed_bytes(replace_folder_in_paths(parse_canonical_record(data, name), old, new))
        except StoreError:
            return data

    @contextlib.contextmanager
    def _locked_index(self) -> Iterator[dict[str, Any]]:
        """Within a ``with`` block, lock the index for other processes and yield it; store it afterwards."""
        with self._guard:
            make_folder(self._index.parent, private=True)
            with self._lock:
                try:
                    index = parse_json(content_of(self._index))
                except (OSError, ValueError, RecursionError):
                    index = {}
                try:
                    yield index
                finally:
                    with explain_os_errors(self._index, "write"):
                        write_atomically(self._index, json.dumps(index).encode(), private=True)

    def _stamp(self, name: str) -> list[int]:
        about = (self._paths.root / name).stat()
        return [about.st_size, about.st_mtime_ns]


def replace_folder_in_paths(value: Any, old: str, new: str) -> Any:
    """Return a copy of a JSON value, with the folder `new` in place of `old` at the begin of all paths."""
    match value:
        case str():
            return new + value[len(old) :] if value.startswith(f"{old}/") else value
        case list():
            return [replace_folder_in_paths(one, old, new) for one in value]
        case dict():
            return {name: replace_folder_in_paths(one, old, new) for name, one in value.items()}
    return value


def _is_record(name: str) -> bool:
    """Return whether `name` is the record of a run, of evidence or of a campaign; not a ticket, page or figure."""
    folder, _, rest = name.partition("/")
    if folder == "runs":
        return rest.count("/") == 1 and rest.endswith(("/run.json", "/run.toml"))
    return rest.count("/") == 0 and rest.endswith((".json", ".toml", ".md"))


def _is_page(name: str) -> bool:
    return name.endswith(".html")
