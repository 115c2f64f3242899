"""Store tensors under their digests, results under the keys of segments, and checkpoints of unfinished segments."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from ticketry.core.mask import Mask, from_bytes, to_bytes
from ticketry.errors import DamagedBlobError, MaskError, StoreError, UsageError
from ticketry.files import exists, read_bytes
from ticketry.lab.store import files
from ticketry.lab.store.checkpoints import delete_shard_folders
from ticketry.lab.store.files import digest_of as digest_of
from ticketry.lab.store.objects import Bucket, Folder, Objects, SharedFolder
from ticketry.lab.store.paths import Paths, blob_name, local_folder, memo_name, result_name, results_name, shared_url

if TYPE_CHECKING:  # imported with the first shared store
    from ticketry.lab.store.mirror import Mirror

NUMERICS = 1
"""Version of all code that affects computed numbers; keys contain it, so results of other versions are not found."""
FORMAT = 2
DESCRIBED = {"format": FORMAT, "kind": "ticketry.store"}
"""Content of ``store.json``."""
_ADVICE = files.REPAIR[0].upper() + files.REPAIR[1:]
_NOT_TENSORS = (SafetensorError, ValueError, TypeError, LookupError, RuntimeError)
"""Errors that occur for a file that is not a safetensors file, or has a dtype unknown to torch."""

_log = logging.getLogger(__name__)


class Store:
    """Stores tensors, results and checkpoints of trainings in a folder, which several processes may use at once.

    Args:
        mirror: access to the shared store that the folder mirrors; None for a store on this machine only.
    """

    retrain: Callable[[str, str, int], None] | None = None
    """Function that is called if weights are missing because a bundle left them out. It trains them again; its
    arguments are the digest of the weights, the trajectory, and the step."""

    def __init__(self, root: str | Path, mirror: Mirror | None = None) -> None:
        self.paths = Paths(Path(root))
        self.mirror = mirror
        self.objects: Mirror | Folder = mirror or Folder(self.paths.root)
        if mirror:
            mirror.open()
        known = self._read_own_format()
        if known is None:
            if self._has_foreign_files():
                raise StoreError(f"{self.paths.root} is a folder with other things in it: choose another with --store")
            files.write_json(self.paths.format, DESCRIBED)
            if mirror:
                mirror.create_if_absent("store.json", read_bytes(self.paths.format))
        elif known != FORMAT:
            raise StoreError(
                f"{self.paths.format} says that the store has the store format {known}, this ticketry reads {FORMAT}:"
                " use the ticketry that made it, or another folder with --store"
            )

    @property
    def address(self) -> str:
        """Address with which another process can open the store, see `open_store`."""
        return self.mirror.address if self.mirror else str(self.paths.root.resolve())

    def _read_own_format(self) -> int | None:
        try:
            return read_format_version(self.paths.format)
        except StoreError as error:
            if error.__cause__ is not None:  # the file cannot be read
                raise
            if not self.paths.has_folders():
                raise StoreError(f"{self.paths.format} is no store's: choose another folder with --store") from None
            raise StoreError(
                f"{self.paths.format} is damaged: delete this one file, the next search writes it again;"
                " so does `ticketry store check --repair`"
            ) from None

    def _has_foreign_files(self) -> bool:
        with files.explain_os_errors(root := self.paths.root, "read"):
            if not exists(root) or self.paths.has_folders():
                return False
            others = [name for name in os.listdir(root) if not name.startswith(f".{self.paths.format.name}.")]
        # Another process may have created the store this very moment.
        return bool(others) and self._read_own_format() is None

    # -- tensors -----------------------------------------------------------------------------------------------------

    def put_bytes(self, data: bytes) -> str:
        """Store bytes as a file named by their SHA-256, and return that digest."""
        digest = hashlib.sha256(data).hexdigest()
        self.objects.create_if_absent(blob_name(digest), data)
        return digest

    def put_pieces(self, pieces: Iterable[bytes]) -> str:
        """Store the concatenation of `pieces` as a file, with one piece in memory at a time; return its SHA-256."""
        self.paths.blobs.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with (
            files.explain_os_errors(self.paths.blobs, "write"),
            tempfile.NamedTemporaryFile(prefix=".pieces.", suffix=".tmp", dir=self.paths.blobs, delete=False) as file,
        ):
            try:
                for piece in pieces:
                    found.update(piece)
                    file.write(piece)
                file.close()
                self.objects.adopt_file(blob_name(found.hexdigest()), Path(file.name))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name)
        return found.hexdigest()

    def get_bytes(self, digest: str) -> bytes:
        """Return the content of the file with this digest; `DamagedBlobError` if it is missing or damaged."""
        for fresh in (False, True):
            data = self.objects.get(blob_name(digest), fresh=fresh)
            if data is None:
                return self._retrain_missing_weights(digest)
            if hashlib.sha256(data).hexdigest() == digest:
                return data
        raise DamagedBlobError(f"{self.paths.blob(digest)} is damaged: its contents do not match its digest. {_ADVICE}")

    def has(self, digest: str) -> bool:
        return files.path_exists(self.paths.blob(digest)) or (
            self.mirror is not None and self.objects.get(blob_name(digest)) is not None
        )

    def put_tensors(self, tensors: Mapping[str, Tensor]) -> str:
        return self.put_bytes(tensors_to_bytes(tensors))

    def get_tensors(self, digest: str) -> dict[str, Tensor]:
        """Return the tensors in the file of this digest, by name, in the order of names."""
        try:
            return _read_tensors(self.get_bytes(digest))
        except _NOT_TENSORS as error:
            raise DamagedBlobError(f"{self.paths.blob(digest)} holds no tensors: {error!s:.120}. {_ADVICE}") from None

    def put_mask(self, mask: Mask) -> str:
        return self.put_bytes(to_bytes(mask))

    def get_mask(self, digest: str) -> Mask:
        """Return the mask with this digest; `DamagedBlobError` if it is missing, damaged, or not a mask."""
        try:
            return from_bytes(self.get_bytes(digest))
        except MaskError as error:
            raise DamagedBlobError(f"{self.paths.blob(digest)} holds no mask: {error}") from None

    # -- weights that a bundle left out ------------------------------------------------------------------------------

    def is_left_out(self, digest: str) -> bool:
        """Return whether the store lacks the weights `digest` because a bundle (archive) was packed without them."""
        if self.has(digest) or self.load_memo("left-out", digest) is None:
            return False
        again = self.load_memo("again", digest)
        return again is None or not self.has(again["model"])

    def _retrain_missing_weights(self, digest: str) -> bytes:
        """Return the bytes of weights that a bundle was packed without, after training them again where necessary."""
        path, source = self.paths.blob(digest), self.load_memo("left-out", digest)
        if source is None:
            raise DamagedBlobError(f"{path} is missing. {_ADVICE}")
        if self.is_left_out(digest):
            if self.retrain is None or source["trajectory"] is None:
                raise StoreError(
                    f"the weights {digest[:12]}… were left out of the bundle that was unpacked here: run the search"
                    " that made them again, or pack them too, with --weights"
                )
            self.retrain(digest, source["trajectory"], source["step"])
        again = self.load_memo("again", digest)
        if again is None and not files.path_exists(path):
            raise DamagedBlobError(f"{path} is missing, and training again does not give it. {_ADVICE}")
        return self.get_bytes(digest if again is None else again["model"])

    # -- results -----------------------------------------------------------------------------------------------------

    def load_result(self, trajectory: str, step: int) -> dict[str, Any] | None:
        """Return the result at a step of the training with the key `trajectory`; None if it is not stored."""
        record = self._read_result(trajectory, step)
        if record is not None and record.get("metrics") is None and self.mirror:
            record = self._read_result(trajectory, step, fresh=True)  # another machine may have measured metrics
        return record

    def _read_result(self, trajectory: str, step: int, *, fresh: bool = False) -> dict[str, Any] | None:
        data = self.objects.get(result_name(trajectory, step), fresh=fresh)
        return None if data is None else files.parse_with_digest(data, str(self.paths.result(trajectory, step)))

    def put_result(self, trajectory: str, step: int, record: Mapping[str, Any]) -> None:
        """Store a result; replace a result of this machine, but not a result that another machine uploaded."""
        name, data = result_name(trajectory, step), files.bytes_with_digest(record)
        if files.path_exists(self.paths.result(trajectory, step)):
            self.objects.put(name, data)
        else:
            self.objects.create_if_absent(name, data)

    def load_valid_result(self, trajectory: str, step: int) -> dict[str, Any] | None:
        """Return the result of training `trajectory` at `step`, after checking its entries; None if not stored."""
        record = self.load_result(trajectory, step)
        if record is not None and (why := files.describe_mismatch(files.Trained, record)):
            raise StoreError(f"{self.paths.result(trajectory, step)} is no result: {why}; {files.REPAIR}")
        return record

    def stored_steps(self, trajectory: str) -> list[int]:
        """Return the sorted steps at which the training with the key `trajectory` has stored results."""
        prefix = results_name(trajectory)
        names = (one.name.removeprefix(prefix) for one in self.objects.list(prefix))
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal())

    # -- checkpoints inside a segment --------------------------------------------------------------------------------

    def put_checkpoint(self, trajectory: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Store a checkpoint of an unfinished segment at a step, and delete older checkpoints."""
        data = tensors_to_bytes(tensors)
        path = self.paths.partial_file(trajectory, step, hashlib.sha256(data).hexdigest())
        Folder(self.paths.root).put(self.paths.object_name(path), data)
        self._delete_local_checkpoints(trajectory, step, but=path)
        self.upload_checkpoint(trajectory, step, path)

    def upload_checkpoint(self, trajectory: str, step: int, path: Path) -> None:
        """Upload the checkpoint at `path`, so that other machines can use it; do nothing if the store is not shared."""
        if self.mirror:
            self.mirror.upload_checkpoint(trajectory, step, path)

    def newest_checkpoint(self, trajectory: str, last: int) -> tuple[int, dict[str, Tensor]] | None:
        """Return step and tensors of the newest undamaged checkpoint up to step `last`; None without a checkpoint."""
        if self.mirror:
            self.mirror.fetch_checkpoint(trajectory, last)
        for path in sorted(self.paths.partial_files(trajectory), key=_step_in_file_name, reverse=True):
            if _step_in_file_name(path) > last:
                continue
            try:
                data = read_bytes(path)
            except OSError:
                continue
            if hashlib.sha256(data).hexdigest() == path.stem.rpartition("-")[2]:
                with contextlib.suppress(*_NOT_TENSORS):  # another program's file, named by its digest
                    return _step_in_file_name(path), _read_tensors(data)
        return None

    def last_stored_step(self, trajectory: str, last: int) -> int:
        """Return the largest step up to `last` that has a stored checkpoint or result; -1 if no step has."""
        names = (one.name.partition("/")[2] for one in self.objects.list(f"partial/{trajectory}-"))
        steps = [*self.stored_steps(trajectory), *(_step_in_file_name(Path(name.partition("/")[0])) for name in names)]
        return max((step for step in steps if step <= last), default=-1)

    def drop_checkpoints(self, trajectory: str, last: int) -> None:
        """Delete the checkpoints of the training with the key `trajectory` at steps up to `last`."""
        self._delete_local_checkpoints(trajectory, last)
        if self.mirror:
            self.mirror.drop_checkpoints(trajectory, last)

    def _delete_local_checkpoints(self, trajectory: str, last: int, but: Path | None = None) -> None:
        for path in self.paths.partial_files(trajectory):
            if path != but and _step_in_file_name(path) <= last:
                with contextlib.suppress(OSError):
                    path.unlink()
        delete_shard_folders(self.paths, trajectory, last)

    # -- remembered values -------------------------------------------------------------------------------------------

    def load_memo(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return the value that `put_memo` stored under `kind` and `key`; None if it is missing or damaged."""
        path, why = self.paths.memo_file(kind, key), ""
        for fresh in (False, True):
            try:
                data = self.objects.get(memo_name(kind, key), fresh=fresh)
                if data is None:
                    return None
                known = files.parse_with_digest(data, str(path))
                why = files.describe_mismatch(files.MEMOS[kind], known) if kind in files.MEMOS else ""
                if not why:
                    return known
                why = f"is not valid: {why}"
            except StoreError as error:
                why = str(error).removeprefix(f"{path} ").partition(";")[0].partition(": run")[0]
            if not self.mirror:
                break
        _log.warning("%s is computed again: it %s", path, why)
        return None

    def load_or_compute(self, kind: str, key: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the value stored under `kind` and `key`; if it is missing, call `make` and store the result."""
        known = self.load_memo(kind, key)
        if known is None:
            known = dict(make())
            self.put_memo(kind, key, known)
        return known

    def put_memo(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Store a small value, such as the digest of a computed mask, under `kind` (such as "masks") and `key`."""
        self.objects.put(memo_name(kind, key), files.bytes_with_digest(value))

    # -- other processes and machines --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock_trajectory(self, trajectory: str) -> Iterator[None]:
        """Within a ``with`` block, hold the lock of the training `trajectory`; first wait for other processes."""
        path = self.paths.lock(trajectory)
        with files.explain_os_errors(path, "lock"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path)
            lock.acquire()
        try:
            with self.mirror.hold_lease(trajectory) if self.mirror else contextlib.nullcontext():
                yield
        finally:
            lock.release()

    def fetch(self, *, results: bool = False, everything: bool = False) -> None:
        """Download the records of a shared store.

        With `results`, also download results that the folder lacks; with `everything`, download all objects again.
        """
        if self.mirror:
            self.mirror.fetch(results=results, everything=everything)

    def fetch_folder(self, folder: Path) -> None:
        """Download all files below `folder`, such as a run's folder, from the shared store."""
        if self.mirror:
            self.mirror.records.fetch_folder(self.paths.object_name(folder))

    def publish(self) -> None:
        """Upload the records that this machine has written to the shared store."""
        if self.mirror:
            self.mirror.publish()


def read_format_version(path: Path) -> int | None:
    """Return the format version in the file ``store.json``; None if the file is missing, `StoreError` if damaged."""
    described = files.read_json(path)
    if described is None:
        return None
    number = described.get("format")
    if type(number) is not int:
        raise StoreError(f"{path} is damaged: it names no format of a store")
    return number


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file with these tensors; equal tensors give equal bytes."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}
    return bytes(safetensors_save(plain))


def _read_tensors(data: bytes) -> dict[str, Tensor]:
    return dict(sorted(safetensors_load(data).items()))


def _step_in_file_name(path: Path) -> int:
    return int(path.stem.split("-")[1])


# -- opening -----------------------------------------------------------------------------------------------------------

_mirrors: dict[Path, Mirror] = {}
_guard = threading.Lock()


def open_store(address: str | Path) -> Store:
    """Open the store at an address; create it if it is missing.

    Args:
        address: a folder; the URL of a store that many machines share (``s3://bucket/folder``, ``gs://``, ``az://``,
            ``file:///shared/folder``); or the mirror folder of a shared store.
    """
    place = local_folder(address)
    with _guard:  # one mirror for each address: two threads that open it at once share its connections
        if (mirror := _mirrors.get(place)) is None and (url := shared_url(place)):
            mirror = _create_mirror(url, place)
        if mirror is None:
            return Store(place)
        store = Store(place, mirror)
        _mirrors[place] = mirror
        return store


def open_existing_store(address: str | Path) -> Store | None:
    """Open the store at an address and download the records of a shared store; None if there is no store."""
    place = local_folder(address)
    if (url := shared_url(place)) and not _create_mirror(url, place).exists():
        return None
    if not url and not files.path_exists(Paths(place).format):
        return None
    store = open_store(place)
    store.fetch()
    return store


def publish_opened_stores() -> None:
    """Upload the records that this process has written to shared stores."""
    for mirror in list(_mirrors.values()):
        mirror.publish()


def open_remote(url: str) -> Objects:
    """Return access to the objects at a URL, which must have the form that `canonical_url` returns."""
    return SharedFolder(url) if url.startswith("file://") else Bucket(url)


def _create_mirror(url: str, place: Path) -> Mirror:
    from ticketry.lab.store.mirror import Mirror

    text = os.environ.get("TICKETRY_LEASE_SECONDS", "")
    try:
        seconds = float(text or 60.0)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise UsageError(f"TICKETRY_LEASE_SECONDS is {text!r:.40}: it must be a number of seconds from 1 to 86400")
    return Mirror(open_remote(url), place, lease_seconds=seconds)
