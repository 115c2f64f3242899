"""Objects in a bucket: Amazon S3 and what speaks like it, Google Cloud Storage, Azure, all by obstore.

Credentials are those that obstore finds for each provider (environment, instance role, web identity); none is taken
from an address, and none is in a message: of a request's URL, what follows its path is left out.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace as changed
from typing import Any, TypeVar

from ticketry.errors import MissingExtraError, StoreError
from ticketry.lab.remote.objects import Content, Listed, Remote
from ticketry.lab.remote.patience import PATIENT, PassingError, Patience

T = TypeVar("T")

_SMALL, _SMALL_SECONDS = 4 << 20, 20
"""Bytes of a request that has to be done within so many seconds."""
_LARGE_SECONDS = 600
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist", "BucketNotFound")
_PASSING_CODES = (408, 409, 425, 429)
"""409 is what S3 answers to two conditional writes of one object at the same time."""
_CLOCK = ".clock"


class Bucket:
    """The objects below a prefix of a bucket, see `objects.Remote`.

    Raises:
        MissingExtraError: without obstore.
        StoreError: if the address or what the environment says of it cannot be.
    """

    def __init__(self, address: str, patience: Patience = PATIENT) -> None:
        self.address, self._patience = address, patience
        self._obstore = _obstore()
        self._small, self._large = (self._opened(seconds) for seconds in (_SMALL_SECONDS, _LARGE_SECONDS))
        self._ahead: float | None = None
        """Of the store's clock before this process's monotonic one."""

    def impatient(self, seconds: float) -> Remote:
        other = object.__new__(Bucket)
        vars(other).update(vars(self))
        other._patience = changed(self._patience, seconds=seconds)
        return other

    def _opened(self, seconds: float) -> Any:
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
            raise StoreError(f"{self.address} cannot be opened: {_words(error)}") from None

    # -- objects -----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> Content | None:
        def attempt() -> Content | None:
            try:
                found = self._obstore.get(self._large, name)
                data = bytes(found.bytes())
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None
            if len(data) != found.meta["size"]:
                raise PassingError("the answer ended early")
            return Content(data, _version(found.meta), self._age(found.meta))

        return self._asked("read", name, attempt)

    def age(self, name: str) -> float | None:
        def attempt() -> float | None:
            try:
                return self._age(self._obstore.head(self._small, name)) or 0.0
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

        self.now()
        return self._asked("look for", name, attempt)

    def create(self, name: str, data: bytes) -> str | None:
        return self._put(name, data, "create")

    def replace(self, name: str, data: bytes, version: str | None = None) -> str | None:
        return self._put(name, data, "overwrite" if version is None else _mode(version))

    def _put(self, name: str, data: bytes, mode: Any) -> str | None:
        tries = 0

        def attempt() -> str | None:
            nonlocal tries
            tries += 1
            try:
                client = self._small if len(data) <= _SMALL else self._large
                return _version(self._obstore.put(client, name, data, mode=mode, use_multipart=False))
            except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError):
                if tries == 1:
                    return None
                found = self.read(name)  # it may have been an earlier try, whose answer was lost
                return found.version if found and found.data == data else None
            except FileNotFoundError as error:
                self._check_bucket(error)
                raise StoreError(f"cannot write {self.address}/{name}: {_words(error)}") from None

        return self._asked("write", name, attempt)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._asked("delete", name, lambda: self._delete(name))  # noqa: B023

    def _delete(self, name: str) -> None:
        try:
            self._obstore.delete(self._small, name)
        except FileNotFoundError as error:
            self._check_bucket(error)

    def list(self, folder: str = "") -> Iterator[Listed]:
        def attempt() -> list[Listed]:
            return [
                Listed(one["path"], one["size"], _version(one), one["last_modified"].timestamp())
                for part in self._obstore.list(self._small, f"{folder}/" if folder else None)
                for one in part
            ]

        yield from self._asked("list", folder, attempt)

    # -- the store's clock -------------------------------------------------------------------------------------------

    def now(self) -> float:
        if self._ahead is None:
            name = f"{_CLOCK}/{uuid.uuid4().hex}"
            self._put(name, b"", "overwrite")
            meta = self._asked("read", name, lambda: self._obstore.head(self._small, name))
            self._ahead = meta["last_modified"].timestamp() - time.monotonic()
            self.delete([name])
        return time.monotonic() + self._ahead

    def _age(self, meta: Any) -> float | None:
        """None until the clock was asked for."""
        return None if self._ahead is None else max(0.0, self.now() - meta["last_modified"].timestamp())

    # -- errors ------------------------------------------------------------------------------------------------------

    def _asked(self, doing: str, name: str, attempt: Callable[[], T]) -> T:
        def told() -> T:
            known = self._obstore.exceptions
            try:
                return attempt()
            except (known.PermissionDeniedError, known.UnauthenticatedError) as error:
                raise StoreError(
                    f"{self.address}: no permission to {doing} there. Credentials are looked for where the provider's"
                    f" own tools look (environment, instance role), see docs/cluster.md. ({_words(error)})"
                ) from None
            except known.BaseError as error:
                self._check_bucket(error)
                code = _code(error)
                if code is not None and code < 500 and code not in _PASSING_CODES:
                    raise StoreError(f"cannot {doing} {self.address}/{name}: {_words(error)}") from None
                raise PassingError(_words(error)) from None

        return self._patience.until_done(f"cannot {doing} {self.address}/{name}", told)

    def _check_bucket(self, error: BaseException) -> None:
        if any(word in str(error) for word in _NO_BUCKET):
            bucket = self.address.split("/")[2]
            raise StoreError(f"{self.address}: there is no bucket {bucket}: make it, or correct its name") from None


def _obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise MissingExtraError("obstore", "cloud", "a store in a bucket") from None
    return obstore


def _version(meta: Any) -> str:
    """An ETag, with a version where the provider goes by that."""
    return f"{meta.get('e_tag') or ''} {meta.get('version') or ''}"


def _mode(version: str) -> dict[str, str]:
    tag, _, number = version.partition(" ")
    return {name: value for name, value in (("e_tag", tag), ("version", number)) if value}


def _code(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _words(error: BaseException) -> str:
    """What happened, on one short line, without anything that might be secret."""
    text = str(error).partition("\n")[0]
    text = re.sub(r"\?[^\s\"'<>)]*", "", re.sub(r"<\?xml.*", "", text))
    return " ".join(text.split())[:300]
