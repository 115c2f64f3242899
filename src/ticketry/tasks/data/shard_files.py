"""Files of shards: in a folder, or at a URL, from which each comes into the cache once a machine, digest checked."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ticketry.errors import DataError, MissingExtraError, TaskError
from ticketry.files import cache_folder, file_digest, join_inside, replacing

SCHEMES = ("s3", "gs", "az", "http", "https", "file")
_CHUNK = 8 << 20
_SECONDS = 600


@dataclass(frozen=True)
class Source:
    """Where shards lie. It is small and can be pickled: reading processes have it."""

    url: str = ""
    folder: str = ""
    """Where they are read: their own folder, or the one of the cache that those of the URL come into."""

    def __str__(self) -> str:
        return self.url or self.folder

    def local(self, name: str, sha256: str = "", size: int | None = None) -> Path:
        """A file's path on this machine; fetched first, if it is at a URL and not here yet.

        Args:
            name: below the source, as a manifest (which is data) names it.
            sha256: hex, of what is fetched; empty where it is not known, which only the manifest's own is not.
            size: in bytes; of a file that is here already it is compared, its digest is not computed again.

        Raises:
            DataError: if it is not there, cannot be fetched, or has another digest or size.
            OutsideError: for a name that leads out of the source.
        """
        # Of a URL by its digest, so that a shard that was exchanged there is another one here.
        path = join_inside(Path(self.folder), *([sha256] if self.url and sha256 else name.split("/")))
        if self.url and not (sha256 and path.is_file()):
            self._fetch(name, path, sha256)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if size is not None and found != size:
            raise DataError(
                f"{path} has {found:,} bytes, where its manifest says {size:,}: get it again, or describe the shards"
                " anew (ticketry.tasks.data.write_shards.describe)"
            )
        return path

    def _fetch(self, name: str, path: Path, sha256: str) -> None:
        """Once for all processes of the machine: the others wait for the one that fetches it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if sha256 and path.is_file():
                return
            if os.environ.get("TICKETRY_OFFLINE"):
                if path.is_file():  # the manifest, as it was the last time
                    return
                raise DataError(f"{self.url}/{name} is not in the cache, and $TICKETRY_OFFLINE is set")
            try:
                with replacing(path) as temporary:
                    self._download(name, temporary)
                    if sha256 and (found := file_digest(temporary)) != sha256:
                        raise DataError(
                            f"{self.url}/{name} is not the shard of the manifest: SHA-256 {sha256} expected, {found}"
                            " found. Put it there again, or describe the shards anew"
                        )
            except OSError as error:
                raise DataError(f"{self.url}/{name} could not be brought to {path}: {error}") from error

    def _download(self, name: str, target: Path) -> None:
        store = _opened(self.url)
        import obstore
        from obstore.exceptions import BaseError

        try:
            with open(target, "wb") as file:
                for chunk in obstore.get(store, name).stream(min_chunk_size=_CHUNK):
                    file.write(bytes(chunk))
        except FileNotFoundError:
            raise DataError(f"there is no {self.url}/{name}: a set of shards at a URL has a shards.json") from None
        except (BaseError, OSError) as error:
            text = str(error).partition("\n")[0].partition("?")[0]  # what follows a ? may be secret
            raise DataError(f"{self.url}/{name} cannot be fetched: {text:.300}") from None


def _opened(url: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError:
        raise MissingExtraError("obstore", "cloud", "data at a URL") from None
    plain = url.startswith("http://") or any(
        os.environ.get(f"{provider}_ALLOW_HTTP", "").lower() in ("true", "1") for provider in ("AWS", "AZURE", "GOOGLE")
    )
    if url.startswith("file://"):
        return from_url(url)
    try:
        return from_url(url, client_options={"timeout": f"{_SECONDS}s", "connect_timeout": "10s", "allow_http": plain})
    except Exception as error:
        raise DataError(f"{url} cannot be opened: {error!s:.300}") from None


def source_of(address: str) -> Source:
    """The source that a user named: a folder or a URL.

    Raises:
        TaskError: for a URL of an unknown scheme, or one with credentials in it, which are not repeated.
    """
    scheme, found, rest = address.partition("://")
    if not found:
        return Source(folder=str(Path(address).expanduser().absolute()))
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise TaskError(f"no shards are read from {scheme:.20}:// addresses: name a folder, or a URL with {known}")
    parts = urllib.parse.urlsplit(address)
    if "@" in parts.netloc or "?" in rest or "#" in rest:
        raise TaskError(
            f"the address of shards ({scheme}://…) holds a password or a signature: leave it out. Credentials come from"
            " the provider's usual place (environment, instance role), and are never written down"
        )
    url = address.rstrip("/")
    if url.startswith("file://"):
        return Source(folder=urllib.parse.unquote(parts.path))
    name = hashlib.sha256(url.encode()).hexdigest()[:32]
    return Source(url, str(cache_folder() / "shards" / name))
