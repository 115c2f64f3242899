"""Read and write objects in a bucket (Amazon S3 and compatible services, Google Cloud Storage, Azure) through obstore.

obstore finds the provider's credentials (environment, instance role, web identity). Addresses contain no credentials;
error messages contain none either, because the query part of a request's URL is left out.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ticketry.errors import MissingExtraError, StoreError
from ticketry.lab.store.objects import Listed, PassingError, repeat

T = TypeVar("T")

_SMALL, _SMALL_SECONDS = 4 << 20, 20
"""Maximum bytes of a small request, and the time limit for small requests in seconds."""
_LARGE_SECONDS = 600
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist", "BucketNotFound")
_PASSING_CODES = (408, 409, 425, 429)
"""HTTP statuses after which a request is repeated; S3 answers 409 to simultaneous conditional writes of one object."""


class Bucket:
    """Stores objects below a prefix of a bucket; the methods are described in `Objects`.

    Raises:
        MissingExtraError: if obstore is not installed.
        StoreError: if the address is invalid, or the settings in environment variables are.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._obstore = _import_obstore()
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
        def attempt(_: int) -> bytes | None:
            try:
                found = self._obstore.get(self._large, name)
                data = bytes(found.bytes())
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None
            if len(data) != found.meta["size"]:
                raise PassingError("the answer ended early")
            return data

        return self._request("read", name, attempt)

    def put(self, name: str, data: bytes) -> str:
        return self._request("write", name, lambda _: self._write(name, data, "overwrite"))

    def create_if_absent(self, name: str, data: bytes) -> bool:
        def attempt(tries: int) -> bool:
            try:
                self._write(name, data, "create")
            except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError):
                return tries > 0 and self.get(name) == data  # an earlier try whose answer was lost
            return True

        return self._request("write", name, attempt)

    def _write(self, name: str, data: bytes, mode: str) -> str:
        client = self._small if len(data) <= _SMALL else self._large
        try:
            return _version(self._obstore.put(client, name, data, mode=mode, use_multipart=False))
        except FileNotFoundError as error:
            self._check_bucket(error)
            raise StoreError(f"cannot write {self.address}/{name}: {_message_without_secrets(error)}") from None

    def list(self, prefix: str = "") -> Iterator[Listed]:
        folder = prefix.rpartition("/")[0]

        def attempt(_: int) -> list[Listed]:
            return [
                Listed(one["path"], one["size"], _version(one), one["last_modified"].timestamp())
                for page in self._obstore.list(self._small, f"{folder}/" if folder else None)
                for one in page
                if one["path"].startswith(prefix)
            ]

        yield from self._request("list", prefix, attempt)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._request("delete", name, lambda _: self._delete(name))  # noqa: B023

    def _delete(self, name: str) -> None:
        try:
            self._obstore.delete(self._small, name)
        except FileNotFoundError as error:
            self._check_bucket(error)

    def now(self) -> float:
        if self._ahead is None:
            name = f".clock/{uuid.uuid4().hex}"
            self.put(name, b"")
            meta = self._request("read", name, lambda _: self._obstore.head(self._small, name))
            self._ahead = meta["last_modified"].timestamp() - time.monotonic()
            self.delete([name])
        return time.monotonic() + self._ahead

    # -- errors ------------------------------------------------------------------------------------------------------

    def _request(self, verb: str, name: str, action: Callable[[int], T]) -> T:
        """Send a request, and repeat it after errors that may pass.

        Args:
            verb: what is attempted, for error messages: read, write, list or delete.
            name: name of the object.
            action: sends the request; its argument is the number of earlier tries.
        """
        known = self._obstore.exceptions

        def attempt(tries: int) -> T:
            try:
                return action(tries)
            except (known.PermissionDeniedError, known.UnauthenticatedError) as error:
                raise StoreError(
                    f"{self.address}: no permission to {verb} there. Credentials are looked for where the provider's"
                    f" own tools look (environment, instance role), see docs/cluster.md."
                    f" ({_message_without_secrets(error)})"
                ) from None
            except known.BaseError as error:
                self._check_bucket(error)
                code = _status_code(error)
                if code is not None and code < 500 and code not in _PASSING_CODES:
                    raise StoreError(
                        f"cannot {verb} {self.address}/{name}: {_message_without_secrets(error)}"
                    ) from None
                raise PassingError(_message_without_secrets(error)) from None

        return repeat(f"cannot {verb} {self.address}/{name}", attempt)

    def _check_bucket(self, error: BaseException) -> None:
        if any(text in str(error) for text in _NO_BUCKET):
            bucket = self.address.split("/")[2]
            raise StoreError(f"{self.address}: there is no bucket {bucket}: create it, or correct its name") from None


def _import_obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise MissingExtraError("obstore", "cloud", "a store in a bucket") from None
    return obstore


def _version(meta: Any) -> str:
    """Return the ETag in an object's metadata, followed by the version number if the provider has one."""
    return f"{meta.get('e_tag') or ''} {meta.get('version') or ''}"


def _status_code(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _message_without_secrets(error: BaseException) -> str:
    """Return the error as one short line without URLs or anything else that may be secret."""
    text = str(error).partition("\n")[0]
    text = re.sub(r"\?[^\s\"'<>)]*", "", re.sub(r"<\?xml.*", "", text))
    return " ".join(text.split())[:300]
