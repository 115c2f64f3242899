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
from ticketry.lab.segment import digest_of

FORMAT = 1


class Store:
    """A folder that remembers every trained segment. Safe for several processes at once.

    Raises:
        StoreError: if the folder cannot be made, or holds a store of another format.
    """

    def __init__(self, root: str | Path) -> None:
        self.paths = Paths(Path(root))
        known = self._format()
        if known is None:
            if self._holds_other_things():
                raise StoreError(f"{self.paths.root} is a folder with other things in it: choose another with --store")
            write_json(self.paths.format, {"format": FORMAT, "kind": "ticketry.store"})
        elif known.get("format") != FORMAT:
            raise StoreError(
                f"{self.paths.root} has the store format {known.get('format')!r}, this ticketry reads {FORMAT}:"
                " use the ticketry that made it, or another folder with --store"
            )

    def _format(self) -> dict[str, Any] | None:
        try:
            return read_json(self.paths.format)
        except StoreError as error:
            if error.__cause__ is not None:  # it cannot be read at all
                raise
            raise StoreError(
                f"{self.paths.format} is damaged: delete this one file, the next search makes it anew"
            ) from None

    def _holds_other_things(self) -> bool:
        root = self.paths.root
        with explained(root, "read"):
            if not root.exists() or self.paths.results.exists():
                return False
            others = [path for path in root.iterdir() if not path.name.startswith(f".{self.paths.format.name}.")]
        return bool(others) and self._format() is None  # another process may have made the store this very moment

    # -- tensors -----------------------------------------------------------------------------------------------------

    def put_bytes(self, data: bytes) -> str:
        """Store a file under its SHA-256 and return that."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.paths.blob(digest)
        try:
            os.utime(path)  # tells a `store gc` that runs now that it is in use again
        except OSError:
            if not path.exists():  # else it is another user's
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
        return self.read(self.paths.result(trajectory, step))

    def put_result(self, trajectory: str, step: int, record: Mapping[str, Any]) -> None:
        _write(self.paths.result(trajectory, step), record)

    def read(self, path: Path) -> dict[str, Any] | None:
        """A result or a small answer, or None if it is not there; `StoreError` if it is not what was written."""
        record = read_json(path)
        if record is None:
            return None
        seal = record.pop(_SEAL, None)  # early stores have none
        if seal is not None and seal != digest_of(record):
            raise StoreError(f"{path} is damaged: its contents do not match its digest. {_REPAIR}")
        return record

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
        self.drop_partials(trajectory, step, but=path)

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

    def drop_partials(self, trajectory: str, last: int, but: Path | None = None) -> None:
        """Delete the states up to step `last`; one beyond it is of a longer segment that was interrupted."""
        for path in self.paths.partial.glob(self.paths.partial_pattern(trajectory)):
            if path != but and _step_of(path) <= last:
                with contextlib.suppress(OSError):
                    path.unlink()

    # -- small answers -----------------------------------------------------------------------------------------------

    def memo(self, kind: str, key: str) -> dict[str, Any] | None:
        """What `put_memo` remembered under this key."""
        return self.read(self.paths.memo_file(kind, key))

    def put_memo(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        _write(self.paths.memo_file(kind, key), value)

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


_SEAL = "sha256"
"""The entry of a record that holds the digest of all others."""
_REPAIR = "Run `ticketry store check --repair`: it sets damaged files aside, and the next run trains them again"


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file; equal tensors give equal bytes. Shared ones are written each on its own."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}
    return bytes(safetensors_save(plain))


def _write(path: Path, record: Mapping[str, Any]) -> None:
    write_json(path, {**record, _SEAL: digest_of(record)})


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])
