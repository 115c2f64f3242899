"""Looking after a store: finding damage, setting it aside, freeing space."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import file_digest
from ticketry.folders import delete_tree, iterate_files
from ticketry.lab.store import parts
from ticketry.lab.store.files import InaccessibleError, explained, is_as_written, is_there, read_json, write_json
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.running import under_way
from ticketry.lab.store.store import DESCRIBED, Store, read_format

GRACE_SECONDS = 3600.0
"""What is younger than this may belong to what begins now, or is between two trainings: `collect` leaves it."""


@dataclass
class Health:
    """What a check of a store found."""

    blobs: int = 0
    results: int = 0
    damaged: list[Path] = field(default_factory=list)
    """Files whose contents do not match their digest, or that are no JSON; and tickets that have such files."""
    missing: list[Path] = field(default_factory=list)
    """Results that refer to a file that is damaged or gone."""
    leftover: list[Path] = field(default_factory=list)
    """Temporary files of writers that were killed."""
    set_aside: list[Path] = field(default_factory=list)
    """What a repair moved to the store's folder `damaged`."""

    @property
    def sound(self) -> bool:
        return not (self.damaged or self.missing)


def check(store: Store, *, repair: bool = False, more: Iterable[Path] = ()) -> Health:
    """Read every file of the store and compare it with its digest.

    With `repair`, damaged files and the results that need them are moved into the folder ``damaged``, so that the next
    run trains those segments again; nothing is deleted.

    Args:
        more: what else was found damaged: records, tickets and pages, of which the lab knows nothing.
    """
    store.link.fetch(everything=True)
    health = Health()
    if not _is_whole(store.paths.format, lambda: read_json(store.paths.format) == DESCRIBED):
        health.damaged.append(store.paths.format)
    # What refers to blobs first: a search that runs meanwhile writes its blobs before a result that names them.
    needed: dict[Path, set[str]] = {}
    unreadable = []
    for path in [*store.paths.result_files(), *store.paths.memo_files()]:
        health.results += path.is_relative_to(store.paths.results)
        found: dict[str, Any] = {}
        if _is_whole(path, lambda: found.update(store.read(path) or {}) is None):  # noqa: B023
            needed[path] = blobs_of(found)
        else:
            unreadable.append(path)
    good = {path.stem for path in store.paths.memo_files() if path.parent.parent.name == "left-out"}
    for path in store.paths.blob_files():
        health.blobs += 1
        if _is_damaged(path, path.stem):
            health.damaged.append(path)
        else:
            good.add(path.stem)
    health.damaged += unreadable
    health.missing = [path for path, blobs in needed.items() if not blobs <= good and is_there(path)]
    for path in store.paths.partial_files():
        if _is_damaged(path, path.stem.rpartition("-")[2]):
            health.damaged.append(path)
    health.damaged += [folder for folder in store.paths.partial_folders() if not parts.is_whole(folder)]
    health.damaged += more
    health.leftover = list(store.paths.leftovers())
    if repair:
        health.set_aside = [_set_aside(store, path) for path in (*health.damaged, *health.missing)]
        if not is_there(store.paths.format):
            write_json(store.paths.format, DESCRIBED)
            store.link.written(store.paths.format, replace=True)
    return health


def mend_format(root: Path) -> list[Path]:
    """Set a damaged ``store.json`` aside and make it anew, without which the store cannot be opened to be repaired.

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
            _move(paths.format, paths.aside(paths.format))
            write_json(paths.format, DESCRIBED)
            return [paths.format]
    return []


def _is_whole(path: Path, reads: Callable[[], bool]) -> bool:
    """Return whether a JSON file has the bytes that were written; also if it went away just now.

    Raises:
        InaccessibleError: if it cannot be read: it may be whole.
    """
    try:
        return not is_there(path) or (reads() and is_as_written(path))
    except InaccessibleError:
        raise
    except StoreError:
        return False


def collect(store: Store, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> tuple[int, int]:
    """Delete what no result refers to: tensors, leftovers of killed writers. Returns (files, bytes) freed.

    Raises:
        StoreError: if a record is damaged, a folder or a file cannot be read, since what it needs is not known; or if
            something is carried out in the store: its tensors are named by a result only once that is there, which may
            take longer than any time of grace.
    """
    if what := under_way(store):
        raise StoreError(f"{what}: free space when it has ended")
    store.link.fetch(results=True)
    needed: set[str] = set()
    for path in [*store.paths.result_files(), *store.paths.memo_files()]:
        needed |= blobs_of(store.read(path) or {})
    now = time.time()
    candidates = [path for path in store.paths.blob_files() if path.stem not in needed]
    candidates += [*store.paths.leftovers(), *_finished_partials(store)]
    files = size = 0
    for path in candidates:
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
    elsewhere = store.link.collect(needed, grace_seconds, dry_run=dry_run)
    return elsewhere or (files, size)


def blobs_of(record: dict[str, Any]) -> set[str]:
    """The digests that a stored record refers to."""
    segment, variants = _object(record, "segment"), _object(record, "variants")
    blobs = segment.get("blobs")
    found = (record.get("model"), record.get("training"), record.get("mask"), record.get("plan"))
    return {
        digest
        for digest in (*found, *variants.values(), *(blobs if isinstance(blobs, list) else ()))
        if isinstance(digest, str)
    }


def _object(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _finished_partials(store: Store) -> Iterator[Path]:
    """Checkpoints of segments whose results are stored."""
    for path in itertools.chain(store.paths.partial_files(), store.paths.partial_folders()):
        trajectory, _, rest = path.stem.partition("-")
        step = rest.partition("-")[0]
        if step.isdecimal() and any(int(step) <= done for done in store.stored_steps(trajectory)):
            yield path


def _is_damaged(path: Path, digest: str) -> bool:
    with explained(path, "read"):
        try:
            return file_digest(path) != digest
        except FileNotFoundError:
            return False  # a search that runs now has dropped it


def _set_aside(store: Store, path: Path) -> Path:
    place = _move(path, store.paths.aside(path))
    store.link.set_aside(path, place)
    return place


def _move(path: Path, target: Path) -> Path:
    with explained(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return target
