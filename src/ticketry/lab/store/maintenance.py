"""Maintain a store: find damaged files and move them away, delete unneeded files, and find the files of a run."""

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
from ticketry.files import delete_tree, file_digest, iterate_files, list_entries, require_inside
from ticketry.lab.store.checkpoints import has_all_shards, parse_checkpoint_name
from ticketry.lab.store.files import (
    InaccessibleError,
    explain_os_errors,
    has_canonical_bytes,
    path_exists,
    read_json,
    read_with_digest,
    write_json,
)
from ticketry.lab.store.locks import is_locked, is_running
from ticketry.lab.store.paths import Paths, display_address
from ticketry.lab.store.references import Results, referenced_digests, result_keys_in
from ticketry.lab.store.store import DESCRIBED, Store, read_format_version

GRACE_SECONDS = 3600.0
"""Age in seconds below which `collect_garbage` deletes no file, since an unfinished training may need the file."""


def describe_activity(store: Store) -> str:
    """Return a text that describes the current work in the store; an empty text if no process works in the store."""
    paths, place = store.paths, display_address(store.paths.root)
    with explain_os_errors(paths.runs, "read"):
        runs = [entry.name for entry in list_entries(paths.runs)]
    for name in runs:
        if is_running(paths.run(name)):
            return f"the run {name} is being carried out in {place}"
    # A command marks the store; a user's own loop with a lab holds the lock of what it trains.
    with explain_os_errors(paths.results, "read"):
        if is_running(require_inside(paths.root, paths.live)) or any(map(is_locked, paths.locks())):
            return f"something is being trained in {place}"
    trajectory = store.mirror.find_busy_trajectory() if store.mirror else ""
    return f"the training {trajectory[:12]}… is under way on another machine" if trajectory else ""


# -- damage ------------------------------------------------------------------------------------------------------------


@dataclass
class Health:
    """Holds the result of a check of a store."""

    blobs: int = 0
    results: int = 0
    damaged: list[Path] = field(default_factory=list)
    """Files that do not match their digest or are not valid JSON, and folders of tickets with such files."""
    missing: list[Path] = field(default_factory=list)
    """Results that refer to a damaged or missing file."""
    leftover: list[Path] = field(default_factory=list)
    """Temporary files of processes that were killed while writing."""

    @property
    def is_undamaged(self) -> bool:
        return not (self.damaged or self.missing)


def check(store: Store, *, repair: bool = False, more: Iterable[Path] = ()) -> Health:
    """Read every file of the store and compare it with its digest.

    Args:
        repair: whether to move damaged files, and the results that refer to them, to the folder ``damaged``. The next
            run computes these results again; nothing is deleted.
        more: further damaged files, which the caller found among records, tickets and pages.
    """
    store.fetch(everything=True)
    health, paths = Health(), store.paths
    if not _is_undamaged(paths.format, lambda: read_json(paths.format) == DESCRIBED):
        health.damaged.append(paths.format)
    # Results before blobs: a search that runs meanwhile writes blobs before the result that names them.
    needed: dict[Path, set[str]] = {}
    unreadable = []
    for path in [*paths.result_files(), *paths.memo_files()]:
        health.results += path.is_relative_to(paths.results)
        found: dict[str, Any] = {}
        if _is_undamaged(path, lambda: found.update(read_with_digest(path) or {}) is None):  # noqa: B023
            needed[path] = referenced_digests(found)
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
    health.missing = [path for path, blobs in needed.items() if not blobs <= good and path_exists(path)]
    health.damaged += [path for path in paths.partial_files() if _is_damaged(path, path.stem.rpartition("-")[2])]
    health.damaged += [folder for folder in paths.partial_folders() if not has_all_shards(folder)]
    health.damaged += more
    health.leftover = list(paths.leftovers())
    if repair:
        for path in (*health.damaged, *health.missing):
            place = _move_file(path, paths.unused_damaged_path(path))
            if store.mirror:
                store.mirror.move_aside(path, place)
        if not path_exists(paths.format):
            write_json(paths.format, DESCRIBED)
            if store.mirror:
                store.mirror.put("store.json", paths.format.read_bytes())
    return health


def repair_format(root: Path) -> list[Path]:
    """Replace a damaged ``store.json``; return a list with its path, or an empty list if the file is undamaged."""
    paths = Paths(root)
    try:
        read_format_version(paths.format)
    except InaccessibleError:
        raise
    except StoreError:
        if paths.has_folders():
            _move_file(paths.format, paths.unused_damaged_path(paths.format))
            write_json(paths.format, DESCRIBED)
            return [paths.format]
    return []


def _is_undamaged(path: Path, reads: Callable[[], bool]) -> bool:
    """Return whether a JSON file is missing or undamaged.

    An undamaged file has the bytes that ticketry would write, and `reads`, which reads it, returns True.
    """
    try:
        return not path_exists(path) or (reads() and has_canonical_bytes(path))
    except InaccessibleError:
        raise
    except StoreError:
        return False


def _is_damaged(path: Path, digest: str) -> bool:
    with explain_os_errors(path, "read"):
        try:
            return file_digest(path) != digest
        except FileNotFoundError:
            return False  # deleted by a search that runs now


def _move_file(path: Path, target: Path) -> Path:
    with explain_os_errors(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return target


# -- freeing space -----------------------------------------------------------------------------------------------------


def collect_garbage(store: Store, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> tuple[int, int]:
    """Delete tensors to which no result refers, and leftover temporary files; return the number of files and of bytes.

    Raises:
        StoreError: if a process uses the store, if a record is damaged, or if a file or folder cannot be read. In these
            cases it is not known which tensors are needed.
    """
    if what := describe_activity(store):
        raise StoreError(f"{what}: free space when it has ended")
    store.fetch(results=True)
    needed: set[str] = set()
    for path in [*store.paths.result_files(), *store.paths.memo_files()]:
        needed |= referenced_digests(read_with_digest(path) or {})
    now = store.objects.now()
    doomed = [one for one in _find_deletable_objects(store, needed) if now - one.modified >= grace_seconds]
    if not dry_run:
        store.objects.delete([one.name for one in doomed])
        for folder in {store.paths.root / one.name for one in doomed}:
            if folder.parent.suffix == ".parts":
                with contextlib.suppress(OSError):  # the folder is not empty
                    folder.parent.rmdir()
    files, size = _delete_leftovers(store, grace_seconds, dry_run=dry_run)
    return len(doomed) + files, sum(one.size for one in doomed) + size


def _find_deletable_objects(store: Store, needed: set[str]) -> Iterator[Any]:
    """Yield objects that can be deleted: tensors that are not in `needed`, and checkpoints that are not the newest."""
    for one in store.objects.list("blobs/"):
        if one.name.endswith(".safetensors") and Path(one.name).stem not in needed:
            yield one
    found = [
        (one, checkpoint) for one in store.objects.list("partial/") if (checkpoint := parse_checkpoint_name(one.name))
    ]
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
            is_folder = stat.S_ISDIR(about.st_mode)  # an unfinished ticket
            with explain_os_errors(path, "read"):
                freed = list(iterate_files(path)) if is_folder else [path]
                files, size = files + len(freed), size + sum(os.lstat(one).st_size for one in freed)
            if not dry_run:
                with explain_os_errors(path, "delete"):
                    delete_tree(path) if is_folder else path.unlink(missing_ok=True)
    return files, size


# -- which files a run needs -------------------------------------------------------------------------------------------


class Usage:
    """Finds the files that a record needs, directly or through other files; no needed result may be missing."""

    def __init__(self, store: Store, *, damaged: bool = False) -> None:
        self.store = store
        self._lenient = damaged
        self._elsewhere: dict[Path, int] = {}
        """Bytes of the files that the shared store has and the local folder lacks."""
        if store.mirror:
            for one in store.mirror.remote.list():
                path = store.paths.root / one.name
                if not one.name.startswith((".", "trajectories/", "live/")) and not path_exists(path):
                    self._elsewhere[path] = one.size
        self._places: dict[str, Path | None] = {}

    def find_referenced_files(self, records: Iterable[Mapping[str, Any]]) -> set[Path]:
        """Return the files of all results and values to which records refer, back to the initialisation."""
        trajectories = {trajectory for record in records for trajectory, _ in result_keys_in(record)}
        files = set(self._results.select_with_references(trajectories, referenced_digests))
        blobs = {blob for path in files for blob in referenced_digests(self._results.records[path])}
        memos = {path for path, named in self._memo_references.items() if named & blobs}
        blobs = blobs.union(*(self._memo_references[path] for path in memos))
        return files | memos | {path for path in map(self._find_tensor_file, blobs) if path}

    def files_below(self, folder: Path) -> list[Path]:
        with explain_os_errors(folder, "read"):
            here = list(iterate_files(folder))
        return [*here, *(path for path in self._elsewhere if path.is_relative_to(folder))]

    def bytes_of(self, files: Iterable[Path]) -> int:
        paths = list(files)
        elsewhere = sum(self._elsewhere.get(path, 0) for path in paths)
        return elsewhere + count_file_bytes(path for path in paths if path not in self._elsewhere)

    def _find_tensor_file(self, digest: str) -> Path | None:
        """Return the path of the tensor file with this digest, or None if the file is missing; cache the answer."""
        if digest not in self._places:
            path = self.store.paths.blob(digest)
            self._places[digest] = path if path in self._elsewhere or path_exists(path) else None
        return self._places[digest]

    def _read_record(self, path: Path) -> dict[str, Any]:
        try:
            return read_with_digest(path) or {}
        except StoreError as error:
            if not self._lenient or isinstance(error, InaccessibleError):
                raise
            return {}

    @cached_property
    def _results(self) -> Results:
        return Results(self.store.paths, self._read_record)

    @cached_property
    def _memo_references(self) -> dict[Path, set[str]]:
        return {path: referenced_digests(self._read_record(path)) for path in self.store.paths.memo_files()}


def count_file_bytes(files: Iterable[Path]) -> int:
    """Return the total bytes of files; a file that does not exist counts as 0."""
    total = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
