"""What of a store a run stands on: the results that its record names, what these began from, and their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.folders import iterate_files
from ticketry.lab.store.files import InaccessibleError, explained, is_there
from ticketry.lab.store.maintenance import blobs_of
from ticketry.lab.store.packing import keys_of, outputs
from ticketry.lab.store.store import Store


class Usage:
    """Which files of a store belong to what a record names. All results are read once."""

    def __init__(self, store: Store, *, damaged: bool = False) -> None:
        """`damaged`: whether a damaged file is passed over as if it named nothing; else it is a `StoreError`."""
        self.store = store
        self._lenient = damaged
        self.elsewhere = dict(store.link.files())
        """Path and size of what is in the store, and not in its folder here."""
        self._places: dict[str, Path | None] = {}

    def of(self, records: Iterable[Mapping[str, Any]]) -> set[Path]:
        """Results, answers and tensors that these records name, with all that gave what they began from."""
        waiting = sorted({trajectory for record in records for trajectory, _ in keys_of(record)})
        results, blobs = set[str](), set[str]()
        while waiting:
            trajectory = waiting.pop()
            if trajectory in results:
                continue
            results.add(trajectory)
            for path in self._of_trajectory.get(trajectory, ()):
                found = blobs_of(self._results[path])
                blobs |= found
                waiting += [self._makers[blob] for blob in found if blob in self._makers]
        files = {path for trajectory in results for path in self._of_trajectory.get(trajectory, ())}
        files |= {path for path, named in self._answers.items() if named & blobs}
        for path in files & self._answers.keys():
            blobs |= self._answers[path]
        return files | {path for path in map(self._tensors, blobs) if path}

    def within(self, folder: Path) -> list[Path]:
        """All files of the store under a folder."""
        with explained(folder, "read"):
            here = list(iterate_files(folder))
        return [*here, *(path for path in self.elsewhere if path.is_relative_to(folder))]

    def bytes_of(self, files: Iterable[Path]) -> int:
        """Bytes of files of the store."""
        paths = list(files)
        here = [path for path in paths if path not in self.elsewhere]
        return size_of(here) + sum(self.elsewhere[path] for path in paths if path in self.elsewhere)

    def _tensors(self, digest: str) -> Path | None:
        """Where tensors lie; None where they are not stored. Runs share most of theirs: each is looked up once."""
        if digest not in self._places:
            path = self.store.paths.blob(digest)
            self._places[digest] = path if path in self.elsewhere or is_there(path) else None
        return self._places[digest]

    @cached_property
    def _results(self) -> dict[Path, dict[str, Any]]:
        return {path: self._read(path) for path in self.store.paths.result_files()}

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return self.store.read(path) or {}
        except StoreError as error:
            if not self._lenient or isinstance(error, InaccessibleError):
                raise
            return {}

    @cached_property
    def _of_trajectory(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self._results:
            found.setdefault(path.parent.name, []).append(path)
        return found

    @cached_property
    def _makers(self) -> dict[str, str]:
        """Digest of weights -> the trajectory of the store that gave them."""
        return {
            digest: path.parent.name
            for path, record in self._results.items()
            if {"model", "training", "variants"} <= record.keys()
            for digest in outputs(record)
        }

    @cached_property
    def _answers(self) -> dict[Path, set[str]]:
        return {path: blobs_of(self._read(path)) for path in self.store.paths.memo_files()}


def size_of(files: Iterable[Path]) -> int:
    """Bytes of files; of one that went away just now, none."""
    total = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
