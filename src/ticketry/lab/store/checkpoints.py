"""Store sharded checkpoints of unfinished segments in folders, and upload all checkpoints to shared stores.

A sharded checkpoint is a folder with one or more files from each process that trains a network. The folder is written
under a temporary name, and renamed when all files are on the disk. It contains a list of the files' digests, and a
digest of that list, so that an incomplete or damaged folder is recognised and ignored.

In a shared store a checkpoint is one object; a sharded checkpoint has one object for each file, and one for the list of
files. The list is uploaded last and fetched first, and the names of the objects contain the list's digest. A thread
uploads the newest checkpoint, so that training never waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ticketry.errors import StoreError
from ticketry.files import delete_tree, delete_tree_if_possible, exists, file_digest, flush_to_disk, read_bytes
from ticketry.lab.store.files import (
    InaccessibleError,
    explain_os_errors,
    path_exists,
    read_with_digest,
    write_atomically,
    write_with_digest,
)
from ticketry.lab.store.objects import Objects, limit_retry_time
from ticketry.lab.store.paths import Paths, partial_name

SHARD_LIST = "parts.json"
"""Name of the file that lists the SHA-256 of all other files in the folder."""


def create_shard_folder(paths: Paths, trajectory: str, step: int) -> Path:
    """Create a folder with a temporary name for a sharded checkpoint; `StoreError` if that fails."""
    with explain_os_errors(paths.partial, "write"):
        paths.partial.mkdir(parents=True, exist_ok=True)
        target = paths.partial_folder(trajectory, step)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))


def digest_shards(folder: Path, rank: int, world: int) -> dict[str, str]:
    """Return the SHA-256, by file name, of every `world`-th file in a folder, beginning with file number `rank`."""
    with explain_os_errors(folder, "read"):
        return {path.name: file_digest(path) for path in sorted(folder.iterdir())[rank::world]}


def finish_shard_folder(folder: Path, paths: Paths, trajectory: str, step: int, digests: Mapping[str, str]) -> None:
    """Write `digests` into a folder with a temporary name, give it its final name, and delete older folders."""
    write_with_digest(folder / SHARD_LIST, {"files": dict(digests)})
    target = paths.partial_folder(trajectory, step)
    with explain_os_errors(target, "write"):
        flush_to_disk(folder)
        if exists(target):  # damaged: otherwise training would have resumed from it
            delete_tree(target)
        os.chmod(folder, stat.S_IMODE(target.parent.stat().st_mode))
        os.rename(folder, target)
        flush_to_disk(target.parent)
    delete_shard_folders(paths, trajectory, step - 1)


def _link_shard_folder(folder: Path) -> Path:
    """Return a new folder with hard links to the files in `folder`; `FileNotFoundError` if `folder` was deleted."""
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        for path in sorted(folder.iterdir()):
            try:
                os.link(path, place / path.name)
            except FileNotFoundError:
                raise
            except OSError:  # the file system has no links
                shutil.copyfile(path, place / path.name)
    except BaseException:
        delete_tree_if_possible(place)
        raise
    return place


def find_newest_shard_folder(paths: Paths, trajectory: str, last: int) -> tuple[int, Path] | None:
    """Return step and folder of the newest undamaged sharded checkpoint up to step `last`, or None."""
    for step, folder in sorted(_list_shard_folders(paths, trajectory), reverse=True):
        with contextlib.suppress(InaccessibleError):  # an older checkpoint gives the same bits
            if step <= last and has_all_shards(folder):
                return step, folder
    return None


def has_all_shards(folder: Path) -> bool:
    """Return whether a folder has exactly the files in its list; `InaccessibleError` if a file cannot be read."""
    try:
        listed = read_with_digest(folder / SHARD_LIST)
        files = (listed or {}).get("files")
        if not isinstance(files, dict) or not files:
            return False
        with explain_os_errors(folder, "read"):
            return {path.name for path in folder.iterdir()} == {*files, SHARD_LIST} and all(
                file_digest(folder / name) == digest for name, digest in files.items()
            )
    except InaccessibleError:
        raise
    except StoreError:
        return False


def delete_shard_folders(paths: Paths, trajectory: str, last: int) -> None:
    """Delete the sharded checkpoints, up to step `last`, of the training with the key `trajectory`."""
    for step, folder in list(_list_shard_folders(paths, trajectory)):
        if step <= last:
            with contextlib.suppress(OSError):
                delete_tree(folder)


def _list_shard_folders(paths: Paths, trajectory: str) -> Iterator[tuple[int, Path]]:
    for folder in paths.partial_folders(trajectory):
        step = folder.stem.rpartition("-")[2]
        if step.isdecimal():
            yield int(step), folder


# -- checkpoints in a shared store -------------------------------------------------------------------------------------


_LAST_SECONDS = 15.0
"""Seconds that a stopped training waits for its last upload; schedulers allow about 30."""

_log = logging.getLogger(__name__)


class _List(msgspec.Struct):
    """Lists the files of a sharded checkpoint, with the SHA-256 of each file."""

    files: dict[Annotated[str, Meta(pattern=r"^\.?\w[\w.-]*$", max_length=200)], str]


class Checkpoint(NamedTuple):
    """Identifies a checkpoint in a shared store."""

    trajectory: str
    step: int
    digest: str
    """SHA-256 of the checkpoint's file, or of the file list of a sharded checkpoint."""
    in_parts: bool
    """Whether the checkpoint is sharded, with several files."""

    @property
    def name(self) -> str:
        """Name of the checkpoint's object, or for a sharded checkpoint the prefix of the names of its objects."""
        name = partial_name(self.trajectory, self.step, self.digest)
        return name.removesuffix(".safetensors") + ".parts" if self.in_parts else name


def parse_checkpoint_name(name: str) -> Checkpoint | None:
    """Return the checkpoint to which the object `name` belongs; None if the name is not that of a checkpoint."""
    head = PurePosixPath("/".join(name.split("/")[1:2]))
    trajectory, step, digest = [*head.stem.rsplit("-", 2), "", ""][:3]
    if not step.isdecimal() or head.suffix not in (".safetensors", ".parts"):
        return None
    return Checkpoint(trajectory, int(step), digest, head.suffix == ".parts")


def list_checkpoints(remote: Objects, trajectory: str) -> Iterator[tuple[Checkpoint, str]]:
    """Yield, for each object that belongs to a checkpoint of the training `trajectory`, the checkpoint and the name."""
    for one in remote.list(f"partial/{trajectory}-"):
        if (found := parse_checkpoint_name(one.name)) and found.trajectory == trajectory:
            yield found, one.name


def upload_checkpoint(remote: Objects, trajectory: str, step: int, path: Path) -> None:
    """Upload the checkpoint at `path`; `FileNotFoundError` if a newer checkpoint has replaced it."""
    if not path.is_dir():
        digest = path.stem.rpartition("-")[2]
        remote.create_if_absent(Checkpoint(trajectory, step, digest, False).name, read_bytes(path))
        return
    linked = _link_shard_folder(path)
    try:
        listed = read_bytes(linked / SHARD_LIST)
        name = Checkpoint(trajectory, step, hashlib.sha256(listed).hexdigest(), True).name
        for file in _parse_file_list(listed):
            remote.create_if_absent(f"{name}/{file}", read_bytes(linked / file))
        remote.create_if_absent(f"{name}/{SHARD_LIST}", listed)
    finally:
        delete_tree_if_possible(linked)


def fetch_newest_checkpoint(remote: Objects, paths: Paths, trajectory: str, last: int) -> None:
    """Download the newest undamaged checkpoint, up to step `last`, of the training with the key `trajectory`."""
    found = {checkpoint for checkpoint, _ in list_checkpoints(remote, trajectory) if checkpoint.step <= last}
    for checkpoint in sorted(found, key=lambda one: one.step, reverse=True):
        if (_download_sharded_checkpoint if checkpoint.in_parts else _download_checkpoint_file)(
            remote, paths, checkpoint
        ):
            return


def _download_checkpoint_file(remote: Objects, paths: Paths, checkpoint: Checkpoint) -> bool:
    path = paths.partial_file(checkpoint.trajectory, checkpoint.step, checkpoint.digest)
    if path_exists(path):
        return True
    data = remote.get(checkpoint.name)
    if data is None or hashlib.sha256(data).hexdigest() != checkpoint.digest:
        return False
    write_atomically(path, data)
    return True


def _download_sharded_checkpoint(remote: Objects, paths: Paths, checkpoint: Checkpoint) -> bool:
    trajectory, step = checkpoint.trajectory, checkpoint.step
    if path_exists(paths.partial_folder(trajectory, step)):
        return True
    listed = remote.get(f"{checkpoint.name}/{SHARD_LIST}")
    if listed is None or hashlib.sha256(listed).hexdigest() != checkpoint.digest:
        _log.warning("the checkpoint at %s/%s is damaged: it is ignored", remote.address, checkpoint.name)
        return False
    if not (files := _parse_file_list(listed)):
        return False
    folder = create_shard_folder(paths, trajectory, step)
    try:
        for file in files:
            if (data := remote.get(f"{checkpoint.name}/{file}")) is None:
                return False
            write_atomically(folder / file, data)
        finish_shard_folder(folder, paths, trajectory, step, files)
    finally:
        delete_tree_if_possible(folder)
    return True


def _parse_file_list(listed: bytes) -> dict[str, str]:
    """Return the SHA-256 of each file in an encoded file list, by name; empty if the list is invalid."""
    try:
        return dict(msgspec.json.decode(listed, type=_List).files)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


class Uploads:
    """Uploads checkpoints of one training in a thread; a newer checkpoint replaces a checkpoint that still waits."""

    def __init__(self, remote: Objects, trajectory: str) -> None:
        self._remote, self._trajectory = remote, trajectory
        self._changed = threading.Condition()
        self._waiting: tuple[int, Path] | None = None
        self._busy = self._closed = False
        self._step = self._dropped = -1
        """Step of the checkpoint that is being uploaded, and the step up to which checkpoints were cancelled."""
        self._thread: threading.Thread | None = None

    def enqueue(self, step: int, path: Path) -> None:
        with self._changed:
            self._waiting = (step, path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._upload_queued, name="uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cancel(self, last: int) -> None:
        """Cancel uploads of checkpoints up to step `last`; call `delete_cancelled` to delete those already uploaded."""
        with self._changed:
            self._dropped = last
            if self._waiting and self._waiting[0] <= last:
                self._waiting = None

    def close(self) -> None:
        """Wait at most 15 seconds for the last upload unless it was cancelled, and end the thread."""
        with self._changed:
            self._changed.wait_for(lambda: not self._has_upload_to_await(), timeout=_LAST_SECONDS)
            if self._has_upload_to_await():
                _log.warning("the last checkpoint of a training was not uploaded in time: only this machine has it")
            self._closed = True
            self._changed.notify_all()

    def delete_cancelled(self) -> None:
        """Delete the objects of cancelled checkpoints from the shared store."""
        try:
            with limit_retry_time(_LAST_SECONDS):
                self._delete_checkpoints_up_to(self._dropped)
        except StoreError as error:
            _log.info("old checkpoints stay until `ticketry store gc`: %s", error)

    def _has_upload_to_await(self) -> bool:
        return bool(self._waiting or (self._busy and self._step > self._dropped))

    def _delete_checkpoints_up_to(self, last: int) -> None:
        if last < 0:
            return
        found = [name for one, name in list_checkpoints(self._remote, self._trajectory) if one.step <= last]
        # Lists first: without its list, a checkpoint is ignored.
        self._remote.delete(sorted(found, key=lambda name: not name.endswith(f"/{SHARD_LIST}")))

    def _upload_queued(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._waiting is None:
                    return
                step, path = self._waiting
                self._waiting, self._busy, self._step = None, True, step
            try:
                upload_checkpoint(self._remote, self._trajectory, step, path)
                self._delete_checkpoints_up_to(max(step - 1, self._dropped))
            except FileNotFoundError:
                pass  # a newer checkpoint has replaced this one
            except (StoreError, OSError) as error:
                _log.warning("a checkpoint was not uploaded, the next one will be: %s", error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
