"""The durable store: content-addressed tensors, results by segment key, locks, checkpoints inside segments."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from ticketry.core.mask import Mask, from_bytes, to_bytes
from ticketry.errors import DamagedBlobError, MaskError, StoreError
from ticketry.files import content_of, replacing
from ticketry.folders import exists, list_entries
from ticketry.lab.store import parts
from ticketry.lab.store.files import (
    REPAIR,
    explained,
    is_there,
    read_json,
    read_sealed,
    write_atomically,
    write_json,
    write_sealed,
)
from ticketry.lab.store.files import (
    digest_of as digest_of,
)
from ticketry.lab.store.link import Link
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.shapes import ANSWERS, Trained, fault

NUMERICS = 1
"""Version of whatever in this library decides the numbers of a segment; a change of it makes old results unfound."""


FORMAT = 2
DESCRIBED = {"format": FORMAT, "kind": "ticketry.store"}
"""What the store's own file says."""


def read_format(path: Path) -> int | None:
    """The number in the store's own file, or None if there is no such file; `StoreError` if it is damaged."""
    described = read_json(path)
    if described is None:
        return None
    number = described.get("format")
    if type(number) is not int:
        raise StoreError(f"{path} is damaged: it names no format of a store")
    return number


_log = logging.getLogger(__name__)


class Store:
    """A folder that remembers every trained segment. Safe for several processes at once.

    Raises:
        StoreError: if the folder cannot be made, or holds a store of another format.
    """

    remake: Callable[[str, str, int], None] | None = None
    """Trains again what a bundle left out: digest, and the trajectory and step that give it."""

    def __init__(self, root: str | Path, link: Link | None = None) -> None:
        self.paths = Paths(Path(root))
        self.link = link or Link()
        self.link.begin()
        known = self._format()
        if known is None:
            if self._holds_other_things():
                raise StoreError(f"{self.paths.root} is a folder with other things in it: choose another with --store")
            write_json(self.paths.format, DESCRIBED)
            self.link.written(self.paths.format)
        elif known != FORMAT:
            raise StoreError(
                f"{self.paths.format} says that the store has the store format {known}, this ticketry reads {FORMAT}:"
                " use the ticketry that made it, or another folder with --store"
            )

    @property
    def address(self) -> str:
        """By which another process opens it, see `open_store`."""
        return self.link.address(self.paths.root)

    def _format(self) -> int | None:
        try:
            return read_format(self.paths.format)
        except StoreError as error:
            if error.__cause__ is not None:  # it cannot be read at all
                raise
            if not self.paths.has_folders():
                raise StoreError(f"{self.paths.format} is no store's: choose another folder with --store") from None
            raise StoreError(
                f"{self.paths.format} is damaged: delete this one file, the next search makes it anew;"
                " so does `ticketry store check --repair`"
            ) from None

    def _holds_other_things(self) -> bool:
        with explained(root := self.paths.root, "read"):
            if not exists(root) or self.paths.has_folders():
                return False
            others = [name for name in os.listdir(root) if not name.startswith(f".{self.paths.format.name}.")]
        return bool(others) and self._format() is None  # another process may have made the store this very moment

    # -- tensors -----------------------------------------------------------------------------------------------------

    def put_bytes(self, data: bytes) -> str:
        """Store a file under its SHA-256 and return that."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.paths.blob(digest)
        try:
            os.utime(path)  # tells a `store gc` that runs now that it is in use again
        except OSError:
            if not is_there(path):  # else it is another user's
                self.link.intended(path)
                write_atomically(path, data)
                self.link.written(path)
                return digest
        self.link.kept(path)
        return digest

    def get_bytes(self, digest: str) -> bytes:
        """The file of this digest.

        Raises:
            DamagedBlobError: if it is gone or its contents have another digest.
        """
        path = self.paths.blob(digest)
        self.link.wanted(path)
        try:
            with explained(path, "read"):
                data = content_of(path)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return self._made_again(digest)
            raise
        if hashlib.sha256(data).hexdigest() != digest and self.link.shared:
            self.link.wanted(path, renew=True)  # the mirror's copy is the damaged one, as a rule
            with explained(path, "read"):
                data = content_of(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedBlobError(f"{path} is damaged: its contents do not match its digest. {_ADVICE}")
        return data

    def left_out(self, digest: str) -> bool:
        """Whether these are weights that a bundle left out, and that were not trained again since."""
        if self.has(digest) or self.memo("left-out", digest) is None:
            return False
        again = self.memo("again", digest)
        return again is None or not self.has(again["model"])

    def has(self, digest: str) -> bool:
        """Whether the file of this digest is there."""
        path = self.paths.blob(digest)
        self.link.wanted(path)
        return is_there(path)

    def _made_again(self, digest: str) -> bytes:
        """The file of a digest that is not there, if a bundle left it out: trained again, once."""
        path, told = self.paths.blob(digest), self.memo("left-out", digest)
        if told is None:
            raise DamagedBlobError(f"{path} is missing. {_ADVICE}")
        if self.left_out(digest):
            if self.remake is None or told["trajectory"] is None:
                raise StoreError(
                    f"the weights {digest[:12]}… were left out of the bundle that was unpacked here: run the search"
                    " that made them again, or pack them too, with --weights"
                )
            self.remake(digest, told["trajectory"], told["step"])
        again = self.memo("again", digest)
        if again is None and not is_there(path):
            raise DamagedBlobError(f"{path} is missing, and training again does not give it. {_ADVICE}")
        return self.get_bytes(digest if again is None else again["model"])

    def put_tensors(self, tensors: Mapping[str, Tensor]) -> str:
        return self.put_bytes(tensors_to_bytes(tensors))

    def put_pieces(self, pieces: Iterable[bytes]) -> str:
        """Store a file that comes in pieces, of which one at a time is in memory."""
        self.paths.blobs.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with (
            explained(self.paths.blobs, "write"),
            tempfile.NamedTemporaryFile(prefix=".pieces.", suffix=".tmp", dir=self.paths.blobs, delete=False) as file,
        ):
            try:
                for piece in pieces:
                    found.update(piece)
                    file.write(piece)
                file.close()
                path = self.paths.blob(found.hexdigest())
                if known := exists(path):
                    os.utime(path)
                else:
                    self.link.intended(path)
                    with replacing(path, durable=True) as place:
                        os.replace(file.name, place)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name)
        (self.link.kept if known else self.link.written)(path)
        return found.hexdigest()

    def get_tensors(self, digest: str) -> dict[str, Tensor]:
        """The tensors in the file of this digest, by name, in the order of names.

        Raises:
            DamagedBlobError: as `get_bytes`; and if it holds something else.
        """
        try:
            return _tensors_of(self.get_bytes(digest))
        except _NO_TENSORS as error:
            raise DamagedBlobError(f"{self.paths.blob(digest)} holds no tensors: {error!s:.120}. {_ADVICE}") from None

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
        path = self.paths.result(trajectory, step)
        self.link.wanted(path)
        record = self.read(path)
        if record is not None and record.get("metrics") is None and self.link.shared:
            self.link.wanted(path, renew=True)  # they may have been measured elsewhere since
            record = self.read(path)
        return record

    def put_result(self, trajectory: str, step: int, record: Mapping[str, Any]) -> None:
        """Store a result; in place of one that was stored without metrics, if it has them."""
        path = self.paths.result(trajectory, step)
        again = is_there(path)
        self.link.intended(path, replace=again)
        write_sealed(path, record)
        self.link.written(path, replace=again)

    def trained(self, trajectory: str, step: int) -> dict[str, Any] | None:
        """A result that can be gone by, or None.

        Raises:
            StoreError: if it is damaged, or is no result.
        """
        record = self.result(trajectory, step)
        if record is not None and (why := fault(Trained, record)):
            raise StoreError(f"{self.paths.result(trajectory, step)} is no result: {why}; {REPAIR}")
        return record

    def read(self, path: Path) -> dict[str, Any] | None:
        """A result or a small answer, or None if it is not there; `StoreError` if it is not what was written."""
        return read_sealed(path)

    def stored_steps(self, trajectory: str) -> list[int]:
        """The steps at which a trajectory has results, in order."""
        self.link.trajectory(trajectory)
        folder = self.paths.trajectory(trajectory)
        with explained(folder, "read"):
            names = [Path(entry.name) for entry in list_entries(folder)]
        return sorted(int(name.stem) for name in names if name.suffix == ".json" and name.stem.isdecimal())

    # -- checkpoints inside a segment --------------------------------------------------------------------------------

    def put_partial(self, trajectory: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep this state of an unfinished segment, and drop the older ones."""
        data = tensors_to_bytes(tensors)
        path = self.paths.partial_file(trajectory, step, hashlib.sha256(data).hexdigest())
        write_atomically(path, data)
        self._drop(trajectory, step, but=path)
        self.link.partial_written(trajectory, step, path)

    def partial(self, trajectory: str, last: int) -> tuple[int, dict[str, Tensor]] | None:
        """The newest undamaged state of an unfinished segment that is not beyond step `last`."""
        self.link.trajectory(trajectory)
        for path in sorted(self._partials(trajectory), key=_step_of, reverse=True):
            if _step_of(path) > last:
                continue
            try:
                data = content_of(path)
            except OSError:
                continue
            if hashlib.sha256(data).hexdigest() == path.stem.rpartition("-")[2]:
                with contextlib.suppress(*_NO_TENSORS):  # another's file, with a digest that is right
                    return _step_of(path), _tensors_of(data)
        return None

    def furthest(self, trajectory: str, last: int) -> int:
        """The step of the furthest stored state, inside a segment or at the end of one, up to `last`; -1 if none is."""
        steps = [*map(_step_of, self._partials(trajectory)), *self.stored_steps(trajectory)]
        steps += parts.steps(self.paths, trajectory)
        steps += self.link.known_steps(trajectory)
        return max((step for step in steps if step <= last), default=-1)

    def drop_partials(self, trajectory: str, last: int) -> None:
        """Delete the states up to step `last`; one beyond it is of a longer segment that was interrupted."""
        self._drop(trajectory, last)
        self.link.partials_dropped(trajectory, last)

    def _drop(self, trajectory: str, last: int, but: Path | None = None) -> None:
        for path in self._partials(trajectory):
            if path != but and _step_of(path) <= last:
                with contextlib.suppress(OSError):
                    path.unlink()
        parts.drop(self.paths, trajectory, last)

    def _partials(self, trajectory: str) -> Iterator[Path]:
        return self.paths.partial_files(self.paths.partial_pattern(trajectory))

    # -- small answers -----------------------------------------------------------------------------------------------

    def memo(self, kind: str, key: str) -> dict[str, Any] | None:
        """What `put_memo` remembered under this key; None if that is nothing, or damaged, which is told."""
        path = self.paths.memo_file(kind, key)
        self.link.wanted(path)
        known, why = self._answer(kind, path)
        if why and self.link.shared:
            self.link.wanted(path, renew=True)
            known, why = self._answer(kind, path)
        if why:
            self.link.discarded(path)
            _log.warning("%s is made anew: it %s", path, why.partition(";")[0].partition(": run")[0])
        return None if why else known

    def _answer(self, kind: str, path: Path) -> tuple[dict[str, Any] | None, str]:
        """What a file remembers, and what is wrong with it."""
        try:
            known = self.read(path)
            why = "" if known is None or kind not in ANSWERS else fault(ANSWERS[kind], known)
            return known, why and f"is none: {why}"
        except StoreError as error:
            return None, str(error).removeprefix(f"{path} ")

    def remembered(self, kind: str, key: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What was remembered under this key, or else what `make` gives now, which is remembered from here on."""
        known = self.memo(kind, key)
        if known is None:
            known = dict(make())
            self.put_memo(kind, key, known)
        return known

    def put_memo(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        path = self.paths.memo_file(kind, key)
        self.link.intended(path)
        write_sealed(path, value)
        self.link.written(path)

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
            with self.link.holding(trajectory):
                yield
        finally:
            lock.release()


_ADVICE = REPAIR[0].upper() + REPAIR[1:]


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file; equal tensors give equal bytes. Shared ones are written each on its own."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}
    return bytes(safetensors_save(plain))


_NO_TENSORS = (SafetensorError, ValueError, TypeError, LookupError, RuntimeError)
"""What reading a file raises that is no safetensors file, or has a type that torch does not."""


def _tensors_of(data: bytes) -> dict[str, Tensor]:
    """By name, in the order of names: what is made of them must not depend on the order in which a file is read."""
    return dict(sorted(safetensors_load(data).items()))


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])
