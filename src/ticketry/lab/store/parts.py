"""Checkpoints inside a segment that several processes write, each a part: a folder of files with their digests.

A folder is written under a temporary name and renamed when all its files are on the disk. The list of their digests is
sealed, so that a folder is complete or ignored.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ticketry.errors import StoreError
from ticketry.files import file_digest, flush
from ticketry.folders import delete_tree, delete_tree_if_possible, exists
from ticketry.lab.store.files import InaccessibleError, explained, read_sealed, write_sealed
from ticketry.lab.store.paths import Paths

LIST = "parts.json"
"""File with the SHA-256 of each file beside it, by name."""


def create_folder(paths: Paths, trajectory: str, step: int) -> Path:
    """Create a folder for the parts of a checkpoint, under a temporary name; `StoreError` if that fails."""
    with explained(paths.partial, "write"):
        paths.partial.mkdir(parents=True, exist_ok=True)
        target = paths.partial_folder(trajectory, step)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))


def compute_digests(folder: Path, rank: int, world: int) -> dict[str, str]:
    """Return the SHA-256 of one rank's share of the files in a folder, by name."""
    with explained(folder, "read"):
        return {path.name: file_digest(path) for path in sorted(folder.iterdir())[rank::world]}


def finish(folder: Path, paths: Paths, trajectory: str, step: int, digests: Mapping[str, str]) -> None:
    """Give the folder its name, once all its files are on the disk; delete older checkpoints."""
    write_sealed(folder / LIST, {"files": dict(digests)})
    target = paths.partial_folder(trajectory, step)
    with explained(target, "write"):
        flush(folder)
        if exists(target):  # damaged, else training would not have come to this step again
            delete_tree(target)
        os.chmod(folder, stat.S_IMODE(target.parent.stat().st_mode))
        os.rename(folder, target)
        flush(target.parent)
    drop(paths, trajectory, step - 1)


def link_folder(folder: Path) -> Path:
    """Return a second folder with the same files, under a temporary name, which outlives the first.

    Raises:
        FileNotFoundError: if a newer checkpoint has replaced the folder.
    """
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        for path in sorted(folder.iterdir()):
            try:
                os.link(path, place / path.name)
            except FileNotFoundError:
                raise
            except OSError:  # file systems without links
                shutil.copyfile(path, place / path.name)
    except BaseException:
        delete_tree_if_possible(place)
        raise
    return place


def newest(paths: Paths, trajectory: str, last: int) -> tuple[int, Path] | None:
    """Return step and folder of the newest undamaged checkpoint that is not beyond step `last`."""
    for step, folder in sorted(_folders(paths, trajectory), reverse=True):
        with contextlib.suppress(InaccessibleError):  # an older one gives the same bits
            if step <= last and is_whole(folder):
                return step, folder
    return None


def is_whole(folder: Path) -> bool:
    """Return whether no file of a folder has changed since it was written.

    Raises:
        InaccessibleError: if one cannot be read.
    """
    try:
        listed = read_sealed(folder / LIST)
        files = (listed or {}).get("files")
        if not isinstance(files, dict) or not files:
            return False
        with explained(folder, "read"):
            return {path.name for path in folder.iterdir()} == {*files, LIST} and all(
                file_digest(folder / name) == digest for name, digest in files.items()
            )
    except InaccessibleError:
        raise
    except StoreError:
        return False


def steps(paths: Paths, trajectory: str) -> list[int]:
    """Return the steps that have a folder, damaged ones too."""
    return [step for step, _ in _folders(paths, trajectory)]


def drop(paths: Paths, trajectory: str, last: int) -> None:
    """Delete the folders of checkpoints up to step `last`."""
    for step, folder in list(_folders(paths, trajectory)):
        if step <= last:
            with contextlib.suppress(OSError):
                delete_tree(folder)


def _folders(paths: Paths, trajectory: str) -> Iterator[tuple[int, Path]]:
    for folder in paths.partial_folders(trajectory):
        step = folder.stem.rpartition("-")[2]
        if step.isdecimal():
            yield int(step), folder
