"""Looking after a store: finding damage, setting it aside, freeing space."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.lab.files import explained
from ticketry.lab.store import Store

GRACE_SECONDS = 3600.0
"""What is younger than this may belong to a search that runs now: `collect` leaves it."""


@dataclass
class Health:
    """What a check of a store found."""

    blobs: int = 0
    results: int = 0
    damaged: list[Path] = field(default_factory=list)
    """Files whose contents do not match their digest, or that are no JSON."""
    missing: list[Path] = field(default_factory=list)
    """Results that refer to a file that is damaged or gone."""
    leftover: list[Path] = field(default_factory=list)
    """Temporary files of writers that were killed."""
    set_aside: list[Path] = field(default_factory=list)
    """What a repair moved to the store's folder `damaged`."""

    @property
    def sound(self) -> bool:
        return not (self.damaged or self.missing)


def check(store: Store, *, repair: bool = False) -> Health:
    """Read every file of the store and compare it with its digest.

    With `repair`, damaged files and the results that need them are moved into the folder ``damaged``, so that the next
    run trains those segments again; nothing is deleted.
    """
    health = Health()
    good: set[str] = set()
    for path in sorted(store.paths.blobs.glob("*/*.safetensors")):
        health.blobs += 1
        if _is_damaged(path, path.stem):
            health.damaged.append(path)
        else:
            good.add(path.stem)
    for path in [*_results(store), *_memos(store)]:
        health.results += path.is_relative_to(store.paths.results)
        try:
            record = store.read(path)
        except StoreError:
            health.damaged.append(path)
            continue
        if record is not None and not blobs_of(record) <= good:
            health.missing.append(path)
    for path in sorted(store.paths.partial.glob("*.safetensors")):
        if _is_damaged(path, path.stem.rpartition("-")[2]):
            health.damaged.append(path)
    health.leftover = list(_leftovers(store))
    if repair:
        health.set_aside = [_set_aside(store, path) for path in (*health.damaged, *health.missing)]
    return health


def collect(store: Store, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> tuple[int, int]:
    """Delete what no result refers to: tensors, leftovers of killed writers. Returns (files, bytes) freed."""
    needed: set[str] = set()
    for path in [*_results(store), *_memos(store)]:
        needed |= blobs_of(store.read(path) or {})
    now = time.time()
    candidates = [path for path in store.paths.blobs.glob("*/*.safetensors") if path.stem not in needed]
    candidates += [*_leftovers(store), *_finished_partials(store)]
    files = size = 0
    for path in candidates:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if now - status.st_mtime < grace_seconds:
                continue
            files, size = files + 1, size + status.st_size
            if not dry_run:
                with explained(path, "delete"):
                    path.unlink(missing_ok=True)
    return files, size


def blobs_of(record: dict[str, Any]) -> set[str]:
    """The digests that a stored record refers to."""
    segment = record.get("segment") or {}
    start = segment.get("start") or {}
    found = (record.get("model"), record.get("training"), record.get("mask"), record.get("gates"), segment.get("mask"))
    others = (start.get("state"), start.get("optimizer"), start.get("gates"), record.get("plan"))
    return {digest for digest in (*found, *others) if isinstance(digest, str)}


def _results(store: Store) -> list[Path]:
    return sorted(store.paths.results.glob("*/*/*.json"))


def _memos(store: Store) -> list[Path]:
    return sorted(store.paths.memo.glob("*/*/*.json"))


def _leftovers(store: Store) -> Iterator[Path]:
    yield from store.paths.root.glob("**/.*.tmp")


def _finished_partials(store: Store) -> Iterator[Path]:
    """Checkpoints of segments whose results are stored."""
    for path in store.paths.partial.glob("*.safetensors"):
        trajectory, step, _ = path.stem.split("-")
        if any(int(step) <= done for done in store.stored_steps(trajectory)):
            yield path


def _is_damaged(path: Path, digest: str) -> bool:
    found = hashlib.sha256()
    with explained(path, "read"):
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    found.update(chunk)
        except FileNotFoundError:
            return False  # a search that runs now has dropped it
    return found.hexdigest() != digest


def _set_aside(store: Store, path: Path) -> Path:
    target = store.paths.root / "damaged" / path.relative_to(store.paths.root)
    with explained(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return target
