"""The durable store: content-addressed tensors, results by segment key, locks, checkpoints inside segments."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from ticketry.core.mask import Mask
from ticketry.core.pack import from_bytes, to_bytes
from ticketry.errors import DamagedBlobError, MaskError, StoreError
from ticketry.lab.files import explained, read_json, write_atomically, write_json
from ticketry.lab.paths import Paths

FORMAT = 1


class Store:
    """A folder that remembers every trained segment. Safe for several processes at once.

    Raises:
        StoreError: if the folder cannot be made, or holds a store of another format.
    """

    def __init__(self, root: str | Path) -> None:
        self.paths = Paths(Path(root))
        known = read_json(self.paths.format)
        if known is None:
            if self.paths.root.exists() and any(self.paths.root.iterdir()) and not self.paths.results.exists():
                raise StoreError(f"{self.paths.root} is a folder with other things in it: choose another with --store")
            write_json(self.paths.format, {"format": FORMAT, "kind": "ticketry.store"})
        elif known.get("format") != FORMAT:
            raise StoreError(
                f"{self.paths.root} has the store format {known.get('format')!r}, this ticketry reads {FORMAT}:"
                " use the ticketry that made it, or another folder with --store"
            )

    # -- tensors -----------------------------------------------------------------------------------------------------

    def put_bytes(self, data: bytes) -> str:
        """Store a file under its SHA-256 and return that."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.paths.blob(digest)
        if path.exists():
            with contextlib.suppress(OSError):
                os.utime(path)  # tells a `store gc` that runs now that it is in use again
        else:
            write_atomically(path, data)
        return digest

    def get_bytes(self, digest: str) -> bytes:
        """The file of this digest.

        Raises:
            DamagedBlobError: if it is gone or its contents have another digest.
        """
        path = self.paths.blob(digest)
        try:
            with explained(path, "read"):
                data = path.read_bytes()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise DamagedBlobError(f"{path} is missing. {_REPAIR}") from None
            raise
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedBlobError(f"{path} is damaged: its contents do not match its digest. {_REPAIR}")
        return data

    def put_tensors(self, tensors: Mapping[str, Tensor]) -> str:
        return self.put_bytes(tensors_to_bytes(tensors))

    def get_tensors(self, digest: str) -> dict[str, Tensor]:
        return safetensors_load(self.get_bytes(digest))

    def put_mask(self, mask: Mask) -> str:
        return self.put_bytes(to_bytes(mask))

    def get_mask(self, digest: str) -> Mask:
        try:
            return from_bytes(self.get_bytes(digest))
        except MaskError as error:
            raise DamagedBlobError(f"{self.paths.blob(digest)} holds no mask: {error}") from None

    # -- results -----------------------------------------------------------------------------------------------------

    def result(self, trajectory: str, step: int) -> dict[str, Any] | None:
        """The record of a trajectory at a step, or None."""
        return read_json(self.paths.result(trajectory, step))

    def put_result(self, trajectory: str, step: int, record: Mapping[str, Any]) -> None:
        write_json(self.paths.result(trajectory, step), record)

    def stored_steps(self, trajectory: str) -> list[int]:
        """The steps at which a trajectory has results, in order."""
        folder = self.paths.trajectory(trajectory)
        return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())

    # -- checkpoints inside a segment --------------------------------------------------------------------------------

    def put_partial(self, trajectory: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep this state of an unfinished segment, and drop the older ones."""
        data = tensors_to_bytes(tensors)
        path = self.paths.partial_file(trajectory, step, hashlib.sha256(data).hexdigest())
        write_atomically(path, data)
        self.drop_partials(trajectory, but=path)

    def partial(self, trajectory: str, last: int) -> tuple[int, dict[str, Tensor]] | None:
        """The newest undamaged state of an unfinished segment that is not beyond step `last`."""
        for path in sorted(self.paths.partial.glob(self.paths.partial_pattern(trajectory)), key=_step_of, reverse=True):
            if _step_of(path) > last:
                continue
            try:
                data = path.read_bytes()
            except OSError:
                continue
            if hashlib.sha256(data).hexdigest() == path.stem.rpartition("-")[2]:
                return _step_of(path), safetensors_load(data)
        return None

    def drop_partials(self, trajectory: str, but: Path | None = None) -> None:
        for path in self.paths.partial.glob(self.paths.partial_pattern(trajectory)):
            if path != but:
                with contextlib.suppress(OSError):
                    path.unlink()

    # -- small answers -----------------------------------------------------------------------------------------------

    def memo(self, kind: str, key: str) -> dict[str, Any] | None:
        """What `put_memo` remembered under this key."""
        return read_json(self.paths.memo_file(kind, key))

    def put_memo(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        write_json(self.paths.memo_file(kind, key), value)

    # -- locks -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, trajectory: str) -> Iterator[None]:
        """Hold the right to train a trajectory; waits for another process, not for one that was killed."""
        path = self.paths.lock(trajectory)
        with explained(path, "lock"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


_REPAIR = "Run `ticketry store check --repair`: it sets damaged files aside, and the next run trains them again"


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file; equal tensors give equal bytes. Shared ones are written each on its own."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}
    return bytes(safetensors_save(plain))


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])
