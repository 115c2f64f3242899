"""Runs, evidence and campaigns of a shared store: what is told of trainings, and changes as commands write it again.

Published when a command ends, records last, so that whoever finds a run's record finds its tickets. Records name files
of the store: here by the mirror's folder, there by the store's address. Pages stay where they were made: of the same
records each machine makes its own, and runs no script of another's.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from ticketry.errors import StoreError
from ticketry.files import content_of, join_inside, make_folder, parse_json, write_atomically
from ticketry.folders import iterate_files, iterate_folders
from ticketry.lab.remote.objects import Listed, Remote
from ticketry.lab.store.files import explained, is_there, sealed_bytes, unsealed
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.running import is_mark

_FOLDERS = ("runs", "evidence", "campaigns")


class Records:
    """Keeps the folders ``runs``, ``evidence`` and ``campaigns`` of a mirror and of its store alike."""

    def __init__(self, remote: Remote, paths: Paths) -> None:
        self._remote, self._paths = remote, paths
        self._index = paths.root.parent / "records.json"
        self._lock = filelock.FileLock(paths.root.parent / "records.lock")
        self._guard = threading.RLock()

    # -- there -------------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Publish what was written here since."""
        with self._indexed() as index:
            changed = [path for path in self._here() if index.get(self._name(path), {}).get("here") != _mark(path)]
            for path in sorted(changed, key=lambda path: (_is_record(self._name(path)), path)):
                with contextlib.suppress(FileNotFoundError):
                    self._put(path, index)

    def _put(self, path: Path, index: dict[str, Any]) -> None:
        name, mark = self._name(path), _mark(path)
        data = self._translated(path, content_of(path), str(self._paths.root), self._remote.address)
        version = self._remote.replace(name, data)
        index[name] = {"here": mark, "there": version if version and version.strip() else ""}

    def _here(self) -> Iterator[Path]:
        for folder in _FOLDERS:
            with explained(self._paths.root / folder, "read"):
                found = list(iterate_files(self._paths.root / folder))
            for path in found:
                names = path.relative_to(self._paths.root).parts
                plain = not is_mark(path.name) and not _is_page(path.name)
                if plain and not any(name.startswith(".") for name in names):
                    yield path

    # -- here --------------------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Get the records of all runs and evidence, and campaigns; what others deleted is deleted here."""
        self.publish()
        with self._indexed() as index:
            there = {one.name: one for folder in _FOLDERS for one in self._remote.list(folder)}
            for name, one in there.items():
                if _is_record(name) and self._is_newer(one, index):
                    self._get(name, index, one)
            for name in [name for name in index if name not in there]:
                for path in (self._paths.root / name, _page_of(self._paths.root / name)):
                    path.unlink(missing_ok=True)
                del index[name]
            with explained(self._paths.runs, "read"):
                folders = list(iterate_folders(self._paths.runs))
            for folder in reversed(folders):
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()

    def fetch_folder(self, folder: str) -> None:
        """Get all that lies below a folder."""
        with self._indexed() as index:
            for one in self._remote.list(folder):
                if self._is_newer(one, index):
                    self._get(one.name, index, one)

    def get(self, name: str) -> None:
        """Get one file, again."""
        with self._indexed() as index:
            self._get(name, index)

    def forget(self, names: Iterable[str]) -> None:
        """These were deleted, there and here."""
        with self._indexed() as index:
            for name in names:
                index.pop(name, None)

    def _is_newer(self, one: Listed, index: dict[str, Any]) -> bool:
        known = index.get(one.name)
        return known is None or known["there"] != one.version or not is_there(self._paths.root / one.name)

    def _get(self, name: str, index: dict[str, Any], listed: Listed | None = None) -> None:
        found = None if _is_page(name) else self._remote.read(name)
        if found is None:
            return
        path = join_inside(self._paths.root, *name.split("/"))
        data = self._translated(path, found.data, self._remote.address, str(self._paths.root))
        with explained(path, "write"):
            write_atomically(path, data)
            if listed is not None:
                os.utime(path, (listed.modified, listed.modified))  # `ticketry list runs` tells when a run changed
        index[name] = {"here": _mark(path), "there": listed.version if listed else found.version}

    # -- both --------------------------------------------------------------------------------------------------------

    def _translated(self, path: Path, data: bytes, old: str, new: str) -> bytes:
        """A record with what lies in the store at its other place; anything else, and what is damaged, as it is."""
        if not (_is_record(self._name(path)) and path.suffix == ".json"):
            return data
        try:
            return sealed_bytes(moved_inside(unsealed(data, str(path)), old, new))
        except StoreError:
            return data

    @contextlib.contextmanager
    def _indexed(self) -> Iterator[dict[str, Any]]:
        """What is known of both places, by name; for one process at a time."""
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
                    with explained(self._index, "write"):
                        write_atomically(self._index, json.dumps(index).encode(), private=True)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._paths.root).as_posix()


def moved_inside(value: Any, old: str, new: str) -> Any:
    """A value of JSON in which whatever lies in the folder `old` lies in `new`."""
    match value:
        case str():
            return new + value[len(old) :] if value.startswith(f"{old}/") else value
        case list():
            return [moved_inside(one, old, new) for one in value]
        case dict():
            return {name: moved_inside(one, old, new) for name, one in value.items()}
    return value


def _is_record(name: str) -> bool:
    """Whether it tells of a run, of evidence or of a campaign, in contrast to tickets, pages and figures."""
    folder, _, rest = name.partition("/")
    if folder == "runs":
        return rest.count("/") == 1 and rest.endswith(("/run.json", "/run.toml"))
    return rest.count("/") == 0 and rest.endswith((".json", ".toml", ".md"))


def _is_page(name: str) -> bool:
    return name.endswith(".html")


def _page_of(record: Path) -> Path:
    """Where the page of a run, of evidence or of a campaign would lie."""
    return record.with_name("report.html") if record.name == "run.json" else record.with_suffix(".html")


def _mark(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]
