"""Read and write a store's objects by name: files in a folder, or objects in a bucket; repeat requests that fail.

Buckets (Amazon S3 and compatible services, Google Cloud Storage, Azure) are accessed through obstore, which finds the
provider's credentials (environment, instance role, web identity). Addresses contain no credentials; error messages
contain none either, because the query part of a request's URL is left out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ticketry import files
from ticketry.errors import MissingExtraError, StoreError
from ticketry.lab.process import received_stop_signal
from ticketry.lab.store.files import LARGEST_JSON, explain_os_errors

T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """Describes an object in a listing."""

    name: str
    size: int
    """Bytes."""
    version: str
    """Text that changes whenever the object is written with other content."""
    modified: float
    """Time of the last write in seconds since 1970, by the clock of `Objects.now`."""


class Objects(Protocol):
    """Reads and writes objects (byte strings) by name, such as ``a/b``; methods raise `StoreError` if they fail."""

    address: str

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        """Return the content of an object, or None if it is missing; if `fresh`, do not return a cached copy."""

    def put(self, name: str, data: bytes) -> str:
        """Write an object, replacing any object of this name; return `Listed.version`, or an empty text if unknown."""

    def create_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object and return True; if the name exists, mark the old object as used and return False."""

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the descriptions of all objects whose names begin with `prefix`."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete the objects with these `names`; names of missing objects are ignored."""

    def now(self) -> float:
        """Return the time by the backend's own clock, in seconds since 1970."""


# -- repeating requests ------------------------------------------------------------------------------------------------
#
# obstore can repeat requests, but gives up a conditional write whose connection breaks, since it may have been carried
# out. Here every write can be repeated, as an object's content shows whether an earlier try succeeded.

PATIENCE_SECONDS = 180.0
"""Seconds for which a failed request is repeated, since a network may be unavailable for two minutes."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_STOPPING_SECONDS = 15.0
"""Seconds for which a failed request is repeated once this process was asked to end; schedulers allow about 30 s."""
_LONGEST_TRY = 45.0
"""Maximum seconds that a try and its pause count; a longer time means that this process was suspended."""
_limit = threading.local()


class TransientError(Exception):
    """Raised if a request failed but may succeed later: no answer, a broken connection, or a busy server."""


@contextlib.contextmanager
def limit_retry_time(seconds: float) -> Iterator[None]:
    """Within a ``with`` block, let this thread repeat a failed request for at most `seconds`."""
    before = getattr(_limit, "seconds", PATIENCE_SECONDS)
    _limit.seconds = min(before, seconds)
    try:
        yield
    finally:
        _limit.seconds = before


def retry(what: str, attempt: Callable[[int], T]) -> T:
    """Call `attempt` again after each `TransientError`, with the number of earlier tries, and return its result."""
    last, spent, tries = time.monotonic(), 0.0, 0
    while True:
        try:
            return attempt(tries)
        except TransientError as error:
            tries, now = tries + 1, time.monotonic()
            spent += min(now - last, _LONGEST_TRY)
            last = now
            limit = getattr(_limit, "seconds", PATIENCE_SECONDS)
            limit = min(limit, _STOPPING_SECONDS) if received_stop_signal() else limit
            pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries, 20)))
            if spent + pause > limit:
                raise StoreError(
                    f"{what}: no success in {spent:.0f} s and {tries} tries ({error}). What was trained is stored on"
                    " this machine; the same command continues from there, and publishes it, later"
                ) from error
            time.sleep(pause)


_TRANSIENT = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EBUSY, errno.ENETDOWN, errno.EHOSTDOWN)
"""Errors of a network file system while its server is unavailable or a file is being replaced."""
_MISSING = (FileNotFoundError, NotADirectoryError)


class Folder:
    """Stores objects as files in a folder, see `Objects`; names that lead out of the folder raise `OutsideError`."""

    def __init__(self, place: Path) -> None:
        self.root = place
        self.address = str(place)

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        path = self.path(name)

        def read_file(_: int) -> bytes | None:
            try:
                return files.read_bytes(path, most=None if name.startswith(("blobs/", "partial/")) else LARGEST_JSON)
            except _MISSING:
                if path.is_symlink():
                    raise
                return None

        return self._call_converting_os_errors("read", path, read_file)

    def put(self, name: str, data: bytes) -> str:
        path = self.path(name)
        self._call_converting_os_errors(
            "write", path, lambda _: files.write_atomically(path, data, durable=not name.startswith("live/"))
        )
        return ""

    def create_if_absent(self, name: str, data: bytes) -> bool:
        path = self.path(name)

        def create_file(tries: int) -> bool:
            if files.exists(path):
                with contextlib.suppress(OSError):  # the file belongs to another user
                    os.utime(path)
                return False if tries == 0 else files.read_bytes(path) == data
            return self._create(path, data)

        return self._call_converting_os_errors("write", path, create_file)

    def _create(self, path: Path, data: bytes) -> bool:
        files.write_atomically(path, data, durable=True)  # no race: the caller holds a lock, or the name is a digest
        return True

    def adopt_file(self, name: str, file: Path) -> None:
        """Rename a finished file to the object `name`; if the object exists, mark it as used."""
        path = self.path(name)
        with explain_os_errors(path, "write"):
            if files.exists(path):
                os.utime(path)
                return
            with files.replace_on_success(path, durable=True) as place:
                os.replace(file, place)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        at = prefix.rpartition("/")[0]
        start = self.path(at) if at else self.root
        yield from self._call_converting_os_errors("read", start, lambda _: tuple(self._list_files(start, prefix)))

    def delete(self, names: Iterable[str]) -> None:
        for path in map(self.path, names):
            self._call_converting_os_errors("delete", path, lambda _: path.unlink(missing_ok=True))  # noqa: B023

    def now(self) -> float:
        return time.time()

    def path(self, name: str) -> Path:
        """Return the path of the file that stores the object `name`."""
        return files.join_inside(self.root, *name.split("/"))

    def _call_converting_os_errors(self, verb: str, path: Path, action: Callable[[int], T]) -> T:
        """Return the result of ``action(0)``; turn an `OSError` into a `StoreError` that names `verb` and `path`."""
        with explain_os_errors(path, verb):
            return action(0)

    def _list_files(self, start: Path, prefix: str) -> Iterator[Listed]:
        for entry in files.list_entries(start):
            name = Path(entry.path).relative_to(self.root).as_posix()
            if not name.startswith(prefix):
                continue
            inner = entry.is_dir(follow_symlinks=False)
            for path in files.iterate_files(Path(entry.path)) if inner else [Path(entry.path)]:
                if path.name.endswith(".tmp") or path.name == "lock" or path.is_symlink():
                    continue
                with contextlib.suppress(FileNotFoundError):
                    about = path.stat()
                    version = f"{about.st_size}-{about.st_mtime_ns}"
                    yield Listed(path.relative_to(self.root).as_posix(), about.st_size, version, about.st_mtime)


class SharedFolder(Folder):
    """Stores objects as files in ``file:///folder`` on a network file system; `now` returns the file server's time.

    An object is created by making a hard link to a temporary file. This is atomic on every server, and fails if the
    name exists (see the Linux manual, open(2), on O_EXCL and NFS).
    """

    def __init__(self, address: str) -> None:
        super().__init__(Path(address.removeprefix("file://")))
        self.address = address
        with explain_os_errors(self.root, "look for"):
            if not files.exists(self.root) and not files.is_folder(self.root.parent):
                raise StoreError(f"{address}: there is no folder {self.root.parent}: is it mounted on this machine?")

    def now(self) -> float:
        def read_server_time(_: int) -> float:
            self.root.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".clock.", suffix=".tmp", dir=self.root)
            try:
                os.write(handle, b"0")
                return os.fstat(handle).st_mtime
            finally:
                os.close(handle)
                os.unlink(name)

        return self._call_converting_os_errors("write", self.root, read_server_time)

    def _call_converting_os_errors(self, verb: str, path: Path, action: Callable[[int], T]) -> T:
        what = f"cannot {verb} {path}"

        def convert_errors(tries: int) -> T:
            try:
                return action(tries)
            except OSError as error:
                if error.errno in _TRANSIENT:
                    raise TransientError(error.strerror) from error
                raise StoreError(f"{what}: {files.describe_os_error(error)}") from error

        return retry(what, convert_errors)

    def _create(self, path: Path, data: bytes) -> bool:
        """Create a file by a hard link; return False if the name exists."""
        files.make_folder(path.parent)
        temporary = files.temporary_sibling_path(path)
        try:
            temporary.write_bytes(data)
            files.flush_to_disk(temporary)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:
                if os.stat(temporary).st_nlink != 2:  # with 2 links, only the answer was lost
                    raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        files.flush_to_disk(path.parent)
        return True


# -- buckets -----------------------------------------------------------------------------------------------------------


_SMALL, _SMALL_SECONDS = 4 << 20, 20
"""Maximum bytes of a small request, and the time limit for small requests in seconds."""
_LARGE_SECONDS = 600
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist", "BucketNotFound")
_TRANSIENT_CODES = (408, 409, 425, 429)
"""HTTP statuses after which a request is repeated; S3 answers 409 to simultaneous conditional writes of one object."""


class Bucket:
    """Stores objects below a prefix of a bucket; the methods are described in `Objects`."""

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            import obstore
            import obstore.exceptions
            import obstore.store
        except ImportError:
            raise MissingExtraError("obstore", "cloud", "a store in a bucket") from None
        self._obstore: Any = obstore
        self._small, self._large = (self._open_client(seconds) for seconds in (_SMALL_SECONDS, _LARGE_SECONDS))
        self._ahead: float | None = None
        """Provider's time in seconds since 1970 minus ``time.monotonic()``; None if not measured yet."""

    def _open_client(self, seconds: float) -> Any:
        plain = any(
            os.environ.get(f"{provider}_ALLOW_HTTP", "").lower() in ("true", "1")
            for provider in ("AWS", "AZURE", "GOOGLE")
        )
        try:
            return self._obstore.store.from_url(
                self.address,
                retry_config={"max_retries": 0},
                client_options={"timeout": f"{seconds}s", "connect_timeout": "5s", "allow_http": plain},
            )
        except Exception as error:
            raise StoreError(f"{self.address} cannot be opened: {_message_without_secrets(error)}") from None

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        def download(_: int) -> bytes | None:
            try:
                found = self._obstore.get(self._large, name)
                data = bytes(found.bytes())
            except FileNotFoundError as error:
                self._raise_if_bucket_missing(error)
                return None
            if len(data) != found.meta["size"]:
                raise TransientError("the answer ended early")
            return data

        return self._request("read", name, download)

    def put(self, name: str, data: bytes) -> str:
        return self._request("write", name, lambda _: self._write(name, data, "overwrite"))

    def create_if_absent(self, name: str, data: bytes) -> bool:
        def create_object(tries: int) -> bool:
            try:
                self._write(name, data, "create")
            except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError):
                return tries > 0 and self.get(name) == data  # an earlier try whose answer was lost
            return True

        return self._request("write", name, create_object)

    def _write(self, name: str, data: bytes, mode: str) -> str:
        client = self._small if len(data) <= _SMALL else self._large
        try:
            return _object_version(self._obstore.put(client, name, data, mode=mode, use_multipart=False))
        except FileNotFoundError as error:
            self._raise_if_bucket_missing(error)
            raise StoreError(f"cannot write {self.address}/{name}: {_message_without_secrets(error)}") from None

    def list(self, prefix: str = "") -> Iterator[Listed]:
        folder = prefix.rpartition("/")[0]

        def list_objects(_: int) -> list[Listed]:
            return [
                Listed(one["path"], one["size"], _object_version(one), one["last_modified"].timestamp())
                for page in self._obstore.list(self._small, f"{folder}/" if folder else None)
                for one in page
                if one["path"].startswith(prefix)
            ]

        yield from self._request("list", prefix, list_objects)

    def delete(self, names: Iterable[str]) -> None:
        def delete_object(name: str) -> None:
            try:
                self._obstore.delete(self._small, name)
            except FileNotFoundError as error:
                self._raise_if_bucket_missing(error)

        for name in names:
            self._request("delete", name, lambda _: delete_object(name))  # noqa: B023

    def now(self) -> float:
        if self._ahead is None:
            name = f".clock/{uuid.uuid4().hex}"
            self.put(name, b"")
            meta = self._request("read", name, lambda _: self._obstore.head(self._small, name))
            self._ahead = meta["last_modified"].timestamp() - time.monotonic()
            self.delete([name])
        return time.monotonic() + self._ahead

    def _request(self, verb: str, name: str, action: Callable[[int], T]) -> T:
        """Call `action` again after each transient error, with the number of earlier tries, and return its result."""
        known = self._obstore.exceptions

        def convert_errors(tries: int) -> T:
            try:
                return action(tries)
            except (known.PermissionDeniedError, known.UnauthenticatedError) as error:
                raise StoreError(
                    f"{self.address}: no permission to {verb} there. Credentials are looked for where the provider's"
                    f" own tools look (environment, instance role), see docs/cluster.md."
                    f" ({_message_without_secrets(error)})"
                ) from None
            except known.BaseError as error:
                self._raise_if_bucket_missing(error)
                found = re.search(r"status code: (\d{3})", str(error))
                code = int(found[1]) if found else None
                if code is not None and code < 500 and code not in _TRANSIENT_CODES:
                    raise StoreError(
                        f"cannot {verb} {self.address}/{name}: {_message_without_secrets(error)}"
                    ) from None
                raise TransientError(_message_without_secrets(error)) from None

        return retry(f"cannot {verb} {self.address}/{name}", convert_errors)

    def _raise_if_bucket_missing(self, error: BaseException) -> None:
        if any(text in str(error) for text in _NO_BUCKET):
            bucket = self.address.split("/")[2]
            raise StoreError(f"{self.address}: there is no bucket {bucket}: create it, or correct its name") from None


def _object_version(meta: Any) -> str:
    """Return the ETag in an object's metadata, followed by the version number if the provider has one."""
    return f"{meta.get('e_tag') or ''} {meta.get('version') or ''}"


def _message_without_secrets(error: BaseException) -> str:
    """Return the error as one short line without URLs or anything else that may be secret."""
    text = str(error).partition("\n")[0]
    text = re.sub(r"\?[^\s\"'<>)]*", "", re.sub(r"<\?xml.*", "", text))
    return " ".join(text.split())[:300]
