"""Maintenance of a store: finding damage and setting it aside, freeing space, and which files a run needs."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import file_digest, require_inside
from ticketry.folders import delete_tree, iterate_files, list_entries
from ticketry.lab.store import parts
from ticketry.lab.store.address import display_address
from ticketry.lab.store.checkpoints import read_name
from ticketry.lab.store.files import (
    InaccessibleError,
    explained,
    is_as_written,
    is_there,
    read_json,
    read_sealed,
    write_json,
)
from ticketry.lab.store.marks import is_locked, is_running
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.references import Results, blobs_of, keys_of
from ticketry.lab.store.store import DESCRIBED, Store, read_format

GRACE_SECONDS = 3600.0
"""Age below which `collect` deletes nothing: the file may belong to what begins now, or is between two trainings."""


def under_way(store: Store) -> str:
    """Return a description of what is carried out or trained in a store now; empty if nothing is.

    Raises:
        StoreError: if a folder of the store cannot be read.
    """
    paths, place = store.paths, display_address(store.paths.root)
    with explained(paths.runs, "read"):
        runs = [entry.name for entry in list_entries(paths.runs)]
    for name in runs:
        if is_running(paths.run(name)):
            return f"the run {name} is being carried out in {place}"
    # A command marks the store; a user's own loop with a lab holds the lock of what it trains.
    with explained(paths.results, "read"):
        if is_running(require_inside(paths.root, paths.live)) or any(map(is_locked, paths.locks())):
            return f"something is being trained in {place}"
    trajectory = store.mirror.busy_trajectory() if store.mirror else ""
    return f"the training {trajectory[:12]}… is under way on another machine" if trajectory else ""


# -- damage ------------------------------------------------------------------------------------------------------------


@dataclass
class Health:
    """Result of a check of a store."""

    blobs: int = 0
    results: int = 0
    damaged: list[Path] = field(default_factory=list)
    """Files whose contents do not match their digest or are not JSON, and tickets that have such files."""
    missing: list[Path] = field(default_factory=list)
    """Results that refer to a file that is damaged or missing."""
    leftover: list[Path] = field(default_factory=list)
    """Temporary files of killed writers."""
    set_aside: list[Path] = field(default_factory=list)
    """Files that a repair moved to the store's folder `damaged`."""

    @property
    def sound(self) -> bool:
        return not (self.damaged or self.missing)


def check(store: Store, *, repair: bool = False, more: Iterable[Path] = ()) -> Health:
    """Read every file of the store and compare it with its digest.

    With `repair`, damaged files and the results that need them are moved into the folder ``damaged``, so that the next
    run trains those segments again; nothing is deleted.

    Args:
        store: the store.
        repair: set damaged files aside.
        more: further damaged files that the caller found: records, tickets and pages, whose contents the lab does not
            know.
    """
    store.fetch(everything=True)
    health, paths = Health(), store.paths
    if not _is_whole(paths.format, lambda: read_json(paths.format) == DESCRIBED):
        health.damaged.append(paths.format)
    # First what refers to blobs: a search that runs meanwhile writes its blobs before a result that names them.
    needed: dict[Path, set[str]] = {}
    unreadable = []
    for path in [*paths.result_files(), *paths.memo_files()]:
        health.results += path.is_relative_to(paths.results)
        found: dict[str, Any] = {}
        if _is_whole(path, lambda: found.update(read_sealed(path) or {}) is None):  # noqa: B023
            needed[path] = blobs_of(found)
        else:
            unreadable.append(path)
    good = {path.stem for path in paths.memo_files() if path.parent.parent.name == "left-out"}
    for path in paths.blob_files():
        health.blobs += 1
        if _is_damaged(path, path.stem):
            health.damaged.append(path)
        else:
            good.add(path.stem)
    health.damaged += unreadable
    health.missing = [path for path, blobs in needed.items() if not blobs <= good and is_there(path)]
    health.damaged += [path for path in paths.partial_files() if _is_damaged(path, path.stem.rpartition("-")[2])]
    health.damaged += [folder for folder in paths.partial_folders() if not parts.is_whole(folder)]
    health.damaged += more
    health.leftover = list(paths.leftovers())
    if repair:
        health.set_aside = [_set_aside(store, path) for path in (*health.damaged, *health.missing)]
        if not is_there(paths.format):
            write_json(paths.format, DESCRIBED)
            if store.mirror:
                store.mirror.put("store.json", paths.format.read_bytes())
    return health


def repair_format(root: Path) -> list[Path]:
    """Set a damaged ``store.json`` aside and write it again: without it the store cannot be opened to be repaired.

    Returns:
        The file, if it was damaged.
    """
    paths = Paths(root)
    try:
        read_format(paths.format)
    except InaccessibleError:
        raise
    except StoreError:
        if paths.has_folders():
            _move(paths.format, paths.damaged_place(paths.format))
            write_json(paths.format, DESCRIBED)
            return [paths.format]
    return []


def _is_whole(path: Path, reads: Callable[[], bool]) -> bool:
    """Return whether a JSON file has the bytes that were written; also if it was deleted just now.

    Raises:
        InaccessibleError: if it cannot be read: it may be whole.
    """
    try:
        return not is_there(path) or (reads() and is_as_written(path))
    except InaccessibleError:
        raise
    except StoreError:
        return False


def _is_damaged(path: Path, digest: str) -> bool:
    with explained(path, "read"):
        try:
            return file_digest(path) != digest
        except FileNotFoundError:
            return False  # deleted by a search that runs now


def _set_aside(store: Store, path: Path) -> Path:
    place = _move(path, store.paths.damaged_place(path))
    if store.mirror:
        store.mirror.move_aside(path, place)
    return place


def _move(path: Path, target: Path) -> Path:
    with explained(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return target


# -- freeing space -----------------------------------------------------------------------------------------------------


def collect(store: Store, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> tuple[int, int]:
    """Delete what no result refers to: tensors, leftovers of killed writers. Return (files, bytes) freed.

    Raises:
        StoreError: if a record is damaged, or a folder or file cannot be read, since what it needs is not known; or if
            something is carried out in the store: a result names its tensors only when it is stored, which may take
            longer than any grace period.
    """
    if what := under_way(store):
        raise StoreError(f"{what}: free space when it has ended")
    store.fetch(results=True)
    needed: set[str] = set()
    for path in [*store.paths.result_files(), *store.paths.memo_files()]:
        needed |= blobs_of(read_sealed(path) or {})
    now = store.objects.now()
    doomed = [one for one in _unneeded(store, needed) if now - one.modified >= grace_seconds]
    if not dry_run:
        store.objects.delete([one.name for one in doomed])
        for folder in {store.paths.root / one.name for one in doomed}:
            if folder.parent.suffix == ".parts":
                with contextlib.suppress(OSError):  # not empty
                    folder.parent.rmdir()
    files, size = _delete_leftovers(store, grace_seconds, dry_run=dry_run)
    return len(doomed) + files, sum(one.size for one in doomed) + size


def _unneeded(store: Store, needed: set[str]) -> Iterator[Any]:
    """Yield objects that nothing needs: blobs that no result names, checkpoints that were superseded."""
    for one in store.objects.list("blobs/"):
        if one.name.endswith(".safetensors") and Path(one.name).stem not in needed:
            yield one
    found = [(one, checkpoint) for one in store.objects.list("partial/") if (checkpoint := read_name(one.name))]
    superseded: dict[str, int] = {}
    for _, checkpoint in found:
        superseded[checkpoint.trajectory] = max(checkpoint.step - 1, superseded.get(checkpoint.trajectory, -1))
    for trajectory in superseded:
        done = store.stored_steps(trajectory)
        superseded[trajectory] = max(superseded[trajectory], *done) if done else superseded[trajectory]
    yield from (one for one, checkpoint in found if checkpoint.step <= superseded[checkpoint.trajectory])
    if store.mirror:
        for prefix in (".clock/", "live/"):
            yield from store.mirror.remote.list(prefix)


def _delete_leftovers(store: Store, grace_seconds: float, *, dry_run: bool) -> tuple[int, int]:
    files = size = 0
    now = time.time()
    for path in store.paths.leftovers():
        with contextlib.suppress(FileNotFoundError):
            about = os.lstat(path)
            if now - about.st_mtime < grace_seconds:
                continue
            is_folder = stat.S_ISDIR(about.st_mode)  # of a ticket
            with explained(path, "read"):
                freed = list(iterate_files(path)) if is_folder else [path]
                files, size = files + len(freed), size + sum(os.lstat(one).st_size for one in freed)
            if not dry_run:
                with explained(path, "delete"):
                    delete_tree(path) if is_folder else path.unlink(missing_ok=True)
    return files, size


# -- which files a run needs -------------------------------------------------------------------------------------------


class Usage:
    """The files of a store that belong to what a record names. All results are read once.

    Args:
        store: the store, with all results fetched.
        damaged: ignore damaged files, as if they named nothing; otherwise they are a `StoreError`.
    """

    def __init__(self, store: Store, *, damaged: bool = False) -> None:
        self.store = store
        self._lenient = damaged
        self._elsewhere: dict[Path, int] = {}
        """Sizes of files that are in the shared store and not in this folder."""
        if store.mirror:
            for one in store.mirror.remote.list():
                path = store.paths.root / one.name
                if not one.name.startswith((".", "trajectories/", "live/")) and not is_there(path):
                    self._elsewhere[path] = one.size
        self._places: dict[str, Path | None] = {}

    def files_of(self, records: Iterable[Mapping[str, Any]]) -> set[Path]:
        """Return results, remembered values and tensors that records name, with everything these started from."""
        trajectories = {trajectory for record in records for trajectory, _ in keys_of(record)}
        files = set(self._results.follow(trajectories, blobs_of))
        blobs = {blob for path in files for blob in blobs_of(self._results.records[path])}
        memos = {path for path, named in self._memos.items() if named & blobs}
        blobs = blobs.union(*(self._memos[path] for path in memos))
        return files | memos | {path for path in map(self._blob, blobs) if path}

    def files_below(self, folder: Path) -> list[Path]:
        """Return all files of the store under a folder."""
        with explained(folder, "read"):
            here = list(iterate_files(folder))
        return [*here, *(path for path in self._elsewhere if path.is_relative_to(folder))]

    def bytes_of(self, files: Iterable[Path]) -> int:
        """Return the size of files."""
        paths = list(files)
        elsewhere = sum(self._elsewhere.get(path, 0) for path in paths)
        return elsewhere + size_of(path for path in paths if path not in self._elsewhere)

    def _blob(self, digest: str) -> Path | None:
        """Return the file of tensors; None if it is not stored. Runs share most of theirs: each is looked up once."""
        if digest not in self._places:
            path = self.store.paths.blob(digest)
            self._places[digest] = path if path in self._elsewhere or is_there(path) else None
        return self._places[digest]

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return read_sealed(path) or {}
        except StoreError as error:
            if not self._lenient or isinstance(error, InaccessibleError):
                raise
            return {}

    @cached_property
    def _results(self) -> Results:
        return Results(self.store.paths, self._read)

    @cached_property
    def _memos(self) -> dict[Path, set[str]]:
        return {path: blobs_of(self._read(path)) for path in self.store.paths.memo_files()}


def size_of(files: Iterable[Path]) -> int:
    """Return the bytes of files; one that was deleted just now has none."""
    total = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
