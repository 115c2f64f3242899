"""Read and write sharded checkpoints: folders with one or more files from each process that trains a network.

A folder is written under a temporary name, and renamed when all files are on the disk. It contains a list of the files'
digests, which has a digest of its own. So an incomplete or damaged folder is recognised, and ignored.
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
from ticketry.files import delete_tree, delete_tree_if_possible, exists, file_digest, flush
from ticketry.lab.store.files import InaccessibleError, explain_os_errors, read_sealed, write_sealed
from ticketry.lab.store.paths import Paths

LIST = "parts.json"
"""Name of the file that lists the SHA-256 of all other files in the folder."""


def create_folder(paths: Paths, trajectory: str, step: int) -> Path:
    """Create a folder with a temporary name for a sharded checkpoint; `StoreError` if that fails."""
    with explain_os_errors(paths.partial, "write"):
        paths.partial.mkdir(parents=True, exist_ok=True)
        target = paths.partial_folder(trajectory, step)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))


def compute_digests(folder: Path, rank: int, world: int) -> dict[str, str]:
    """Return the SHA-256, by file name, of every `world`-th file in a folder, beginning with file number `rank`."""
    with explain_os_errors(folder, "read"):
        return {path.name: file_digest(path) for path in sorted(folder.iterdir())[rank::world]}


def finish_folder(folder: Path, paths: Paths, trajectory: str, step: int, digests: Mapping[str, str]) -> None:
    """Write the list of digests into a folder, give the folder its final name, and delete older checkpoints.

    Args:
        folder: the folder with its temporary name, which contains all other files.
        paths: the store.
        trajectory, step: key of the training, and the step of the checkpoint.
        digests: SHA-256 of each file, by name.
    """
    write_sealed(folder / LIST, {"files": dict(digests)})
    target = paths.partial_folder(trajectory, step)
    with explain_os_errors(target, "write"):
        flush(folder)
        if exists(target):  # damaged, else training would not have come to this step again
            delete_tree(target)
        os.chmod(folder, stat.S_IMODE(target.parent.stat().st_mode))
        os.rename(folder, target)
        flush(target.parent)
    delete_folders(paths, trajectory, step - 1)


def link_folder(folder: Path) -> Path:
    """Return a new folder with hard links to the files in `folder`; the files stay available if `folder` is deleted.

    Raises:
        FileNotFoundError: if `folder` was deleted because of a newer checkpoint.
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


def newest_folder(paths: Paths, trajectory: str, last: int) -> tuple[int, Path] | None:
    """Return step and folder of the newest undamaged sharded checkpoint up to step `last`; None if there is none."""
    for step, folder in sorted(_folders(paths, trajectory), reverse=True):
        with contextlib.suppress(InaccessibleError):  # an older one gives the same bits
            if step <= last and is_whole(folder):
                return step, folder
    return None


def is_whole(folder: Path) -> bool:
    """Return whether a folder has exactly the files in its list, with the digests in the list.

    Raises:
        InaccessibleError: if a file cannot be read.
    """
    try:
        listed = read_sealed(folder / LIST)
        files = (listed or {}).get("files")
        if not isinstance(files, dict) or not files:
            return False
        with explain_os_errors(folder, "read"):
            return {path.name for path in folder.iterdir()} == {*files, LIST} and all(
                file_digest(folder / name) == digest for name, digest in files.items()
            )
    except InaccessibleError:
        raise
    except StoreError:
        return False


def stored_steps(paths: Paths, trajectory: str) -> list[int]:
    """Return the steps for which there is a sharded checkpoint, damaged or not."""
    return [step for step, _ in _folders(paths, trajectory)]


def delete_folders(paths: Paths, trajectory: str, last: int) -> None:
    """Delete the sharded checkpoints, up to step `last`, of the training with the key `trajectory`."""
    for step, folder in list(_folders(paths, trajectory)):
        if step <= last:
            with contextlib.suppress(OSError):
                delete_tree(folder)


def _folders(paths: Paths, trajectory: str) -> Iterator[tuple[int, Path]]:
    for folder in paths.partial_folders(trajectory):
        step = folder.stem.rpartition("-")[2]
        if step.isdecimal():
            yield int(step), folder
