"""What ``--store`` may be: a folder, or the URL of a store that many machines share. No torch, and no request.

A shared store has a place on this machine, the folder of its mirror in the user's cache; whatever works on the folder
of a store works there. ``place_of`` leads from the address to the place, ``address_of`` back.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ticketry.errors import StoreError, UsageError
from ticketry.files import cache_folder, content_of, parse_json, why_not_private, write_atomically

BUCKETS = ("s3", "gs", "az")
"""Schemes that obstore opens: Amazon S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage."""
SCHEMES = (*BUCKETS, "file")
_MIRROR, _NAMED = "store", "address.json"


def is_url(address: str | Path) -> bool:
    """Whether it is a URL and no folder."""
    return isinstance(address, str) and "://" in address


def checked_url(address: str) -> str:
    """The URL in the form in which it is known.

    Raises:
        UsageError: for an unknown scheme, no bucket, or a URL that holds credentials; they are not repeated.
    """
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise UsageError(f"no store is kept at {scheme[:20]}:// addresses: name a folder, or a URL with {known}")
    parts = urlsplit(f"{scheme}://{rest}")
    if "@" in parts.netloc:
        raise UsageError(
            f"the address of a store ({scheme}://…) holds a user name or password before the @: leave it out."
            " Credentials come from the provider's usual place (environment, instance role), and are never written down"
        )
    if parts.query or parts.fragment or "?" in rest or "#" in rest:
        raise UsageError(
            f"the address of a store ({scheme}://{parts.netloc}…) ends at its path: leave out what follows the ? or #,"
            " such as a signature. Credentials come from the provider's usual place (environment, instance role)"
        )
    names = [unquote(name) for name in parts.path.split("/") if name]
    if any(name in (".", "..") or not name.isprintable() or "\\" in name for name in names):
        raise UsageError(f"the address {address!r:.200} has a part that is no plain name")
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not names:
            raise UsageError(f"{address!r:.200}: a shared folder is written file:///path/to/folder")
    elif not parts.netloc:
        raise UsageError(f"{address!r:.200}: a shared store is written {scheme}://bucket/folder")
    return "/".join([f"{scheme}://{'' if scheme == 'file' else parts.netloc}", *names])


def place_of(address: str | Path) -> Path:
    """The folder of this machine in which a store is worked on: itself, or the mirror of a shared one.

    Raises:
        UsageError: as `checked_url`.
        StoreError: if the cache is another user's, or cannot be written.
    """
    if not is_url(address):
        return Path(address)
    url = checked_url(str(address))
    folder = _mirrors() / hashlib.sha256(url.encode()).hexdigest()[:32]
    if why := why_not_private(folder):
        raise StoreError(f"{why}: take the right to write from others, or set TICKETRY_CACHE to a folder of your own")
    if _told(folder).get("address") != url:
        told = json.dumps({"address": url, "mirror": uuid.uuid4().hex}).encode()
        try:
            write_atomically(folder / _NAMED, told, private=True)
        except OSError as error:
            raise StoreError(
                f"cannot write {folder}: {error.strerror}; set TICKETRY_CACHE to another folder"
            ) from error
    return folder / _MIRROR


def address_of(place: Path) -> str | None:
    """The URL of the shared store whose mirror a folder is; None for any other folder."""
    place = place.absolute()
    if place.name != _MIRROR or place.parent.parent != _mirrors():
        return None
    return _told(place.parent).get("address")


def split_address(url: str) -> tuple[str, tuple[str, ...]] | None:
    """The store and the names of the folder in it that the URL of a run or of a ticket names; None if it is of none."""
    parts = checked_url(url).split("/")
    if "runs" not in parts[3:-1]:
        return None
    at = len(parts) - 1 - parts[::-1].index("runs")
    return "/".join(parts[:at]), tuple(parts[at:])


def mirror_name(place: Path) -> str:
    """What tells this mirror from those of other machines."""
    return _told(place.parent).get("mirror", "")


def shown(place: str | Path) -> str:
    """A store's folder, or a file or folder in it, as its users know it: of a mirror by the store's URL."""
    path = Path(place)
    for folder in (path, *path.parents):
        if url := address_of(folder):
            return "/".join([url, *path.relative_to(folder).parts])
    return str(place)


def _mirrors() -> Path:
    return cache_folder() / "stores"


def _told(folder: Path) -> dict[str, str]:
    try:
        found = parse_json(content_of(folder / _NAMED, most=1 << 16))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
