"""Upload and fetch checkpoints of unfinished segments, which other machines resume from a shared store.

A checkpoint is one object; a sharded checkpoint has one object for each file, and one for the list of files. The list
is uploaded last and fetched first, and the names of the objects contain the list's digest. A thread uploads the newest
checkpoint, so that training never waits.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ticketry.errors import StoreError
from ticketry.files import content_of, delete_tree_if_possible
from ticketry.lab.store import parts
from ticketry.lab.store.files import path_exists, write_atomically
from ticketry.lab.store.objects import Objects, patience
from ticketry.lab.store.paths import Paths, partial_name

_LAST_SECONDS = 15.0
"""Seconds that a stopped training waits for its last upload; schedulers allow about 30."""

_log = logging.getLogger(__name__)


class _List(msgspec.Struct):
    """Lists the files of a sharded checkpoint, with the SHA-256 of each."""

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
    """Yield the names of all objects with checkpoints of the training `trajectory`, each with its checkpoint."""
    for one in remote.list(f"partial/{trajectory}-"):
        if (found := parse_checkpoint_name(one.name)) and found.trajectory == trajectory:
            yield found, one.name


def upload(remote: Objects, trajectory: str, step: int, path: Path) -> None:
    """Upload the checkpoint at `path`, which is a file or, for a sharded checkpoint, a folder.

    Raises:
        FileNotFoundError: if a newer checkpoint replaces this one before it is read.
        StoreError: if the store does not answer.
    """
    if not path.is_dir():
        digest = path.stem.rpartition("-")[2]
        remote.create_if_absent(Checkpoint(trajectory, step, digest, False).name, content_of(path))
        return
    linked = parts.link_folder(path)
    try:
        listed = content_of(linked / parts.LIST)
        name = Checkpoint(trajectory, step, hashlib.sha256(listed).hexdigest(), True).name
        for file in _parse_file_list(listed):
            remote.create_if_absent(f"{name}/{file}", content_of(linked / file))
        remote.create_if_absent(f"{name}/{parts.LIST}", listed)
    finally:
        delete_tree_if_possible(linked)


def fetch_newest(remote: Objects, paths: Paths, trajectory: str, last: int) -> None:
    """Download the newest undamaged checkpoint, up to step `last`, of the training with the key `trajectory`."""
    found = {checkpoint for checkpoint, _ in list_checkpoints(remote, trajectory) if checkpoint.step <= last}
    for checkpoint in sorted(found, key=lambda one: one.step, reverse=True):
        if (_fetch_parts if checkpoint.in_parts else _fetch_file)(remote, paths, checkpoint):
            return


def _fetch_file(remote: Objects, paths: Paths, checkpoint: Checkpoint) -> bool:
    path = paths.partial_file(checkpoint.trajectory, checkpoint.step, checkpoint.digest)
    if path_exists(path):
        return True
    data = remote.get(checkpoint.name)
    if data is None or hashlib.sha256(data).hexdigest() != checkpoint.digest:
        return False
    write_atomically(path, data)
    return True


def _fetch_parts(remote: Objects, paths: Paths, checkpoint: Checkpoint) -> bool:
    trajectory, step = checkpoint.trajectory, checkpoint.step
    if path_exists(paths.partial_folder(trajectory, step)):
        return True
    listed = remote.get(f"{checkpoint.name}/{parts.LIST}")
    if listed is None or hashlib.sha256(listed).hexdigest() != checkpoint.digest:
        _log.warning("the checkpoint at %s/%s is damaged: it is ignored", remote.address, checkpoint.name)
        return False
    if not (files := _parse_file_list(listed)):
        return False
    folder = parts.create_folder(paths, trajectory, step)
    try:
        for file in files:
            if (data := remote.get(f"{checkpoint.name}/{file}")) is None:
                return False
            write_atomically(folder / file, data)
        parts.finish_folder(folder, paths, trajectory, step, files)
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
    """Uploads checkpoints of one training in a thread; a newer checkpoint replaces one that was not uploaded yet."""

    def __init__(self, remote: Objects, trajectory: str) -> None:
        self._remote, self._trajectory = remote, trajectory
        self._changed = threading.Condition()
        self._waiting: tuple[int, Path] | None = None
        self._busy = self._closed = False
        self._step = self._dropped = -1
        """Step of the checkpoint that is being uploaded, and the step up to which checkpoints were cancelled."""
        self._thread: threading.Thread | None = None

    def enqueue(self, step: int, path: Path) -> None:
        """Queue the upload of a checkpoint."""
        with self._changed:
            self._waiting = (step, path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._upload_queued, name="uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cancel(self, last: int) -> None:
        """Cancel uploads of checkpoints up to step `last`; `delete_cancelled` deletes those that were uploaded."""
        with self._changed:
            self._dropped = last
            if self._waiting and self._waiting[0] <= last:
                self._waiting = None

    def close(self) -> None:
        """Wait at most 15 seconds for the last upload, and end the thread; a cancelled upload is not waited for."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_awaited(), timeout=_LAST_SECONDS)
            if self._is_awaited():
                _log.warning("the last checkpoint of a training was not uploaded in time: only this machine has it")
            self._closed = True
            self._changed.notify_all()

    def delete_cancelled(self) -> None:
        """Delete the objects of cancelled checkpoints from the shared store."""
        try:
            with patience(_LAST_SECONDS):
                self._delete_up_to(self._dropped)
        except StoreError as error:
            _log.info("old checkpoints stay until `ticketry store gc`: %s", error)

    def _is_awaited(self) -> bool:
        return bool(self._waiting or (self._busy and self._step > self._dropped))

    def _delete_up_to(self, last: int) -> None:
        if last < 0:
            return
        found = [name for one, name in list_checkpoints(self._remote, self._trajectory) if one.step <= last]
        # Each list first: without it the other parts are ignored.
        self._remote.delete(sorted(found, key=lambda name: not name.endswith(f"/{parts.LIST}")))

    def _upload_queued(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._waiting is None:
                    return
                step, path = self._waiting
                self._waiting, self._busy, self._step = None, True, step
            try:
                upload(self._remote, self._trajectory, step, path)
                self._delete_up_to(max(step - 1, self._dropped))
            except FileNotFoundError:
                pass  # a newer one has replaced it
            except (StoreError, OSError) as error:
                _log.warning("a checkpoint was not uploaded, the next one will be: %s", error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
