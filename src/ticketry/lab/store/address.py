"""Parse the addresses of stores: a folder, or the URL of a store that several machines share.

A shared store has a mirror, a local folder in the user's cache, so that code for folders also works for shared stores.
`local_folder` returns the folder for an address, `shared_url` the URL for a folder. The module needs neither torch nor
the network.
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
"""URL schemes that obstore opens: Amazon S3 and compatible services, Google Cloud Storage, Azure Blob Storage."""
SCHEMES = (*BUCKETS, "file")
_MIRROR, _FACTS = "store", "address.json"
"""Folder of a mirror, and the file next to it with the store's URL and the mirror's id."""


def is_url(address: str | Path) -> bool:
    """Return whether an address is a URL, not a folder."""
    return isinstance(address, str) and "://" in address


def canonical_url(address: str) -> str:
    """Return a URL in its canonical form.

    Raises:
        UsageError: for an unknown scheme, a missing bucket, or a URL with credentials, which the message omits.
    """
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise UsageError(f"stores have no {scheme[:20]}:// addresses: name a folder, or a URL with {known}")
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
        raise UsageError(f"the address {address!r:.200} has a part that is not a plain name")
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not names:
            raise UsageError(f"{address!r:.200}: a shared folder is written file:///path/to/folder")
    elif not parts.netloc:
        raise UsageError(f"{address!r:.200}: a shared store is written {scheme}://bucket/folder")
    return "/".join([f"{scheme}://{'' if scheme == 'file' else parts.netloc}", *names])


def local_folder(address: str | Path) -> Path:
    """Return the local folder of a store: the address itself, or for a URL the mirror of the shared store.

    Raises:
        UsageError: if `canonical_url` rejects the URL.
        StoreError: if the folder for mirrors belongs to another user, or cannot be written.
    """
    if not is_url(address):
        return Path(address)
    url = canonical_url(str(address))
    folder = _mirrors_folder() / hashlib.sha256(url.encode()).hexdigest()[:32]
    if why := why_not_private(folder):
        raise StoreError(f"{why}: remove write permission for others, or set TICKETRY_CACHE to a folder of your own")
    if _read_mirror_facts(folder).get("address") != url:
        facts = json.dumps({"address": url, "mirror": uuid.uuid4().hex}).encode()
        try:
            write_atomically(folder / _FACTS, facts, private=True)
        except OSError as error:
            raise StoreError(
                f"cannot write {folder}: {error.strerror}; set TICKETRY_CACHE to another folder"
            ) from error
    return folder / _MIRROR


def shared_url(place: Path) -> str | None:
    """Return the URL of the shared store whose mirror is the folder `place`; None if the folder is not a mirror."""
    place = place.absolute()
    if place.name != _MIRROR or place.parent.parent != _mirrors_folder():
        return None
    return _read_mirror_facts(place.parent).get("address")


def split_address(url: str) -> tuple[str, tuple[str, ...]] | None:
    """Split the URL of a run or ticket into the store's URL and the folder names below it; None for other URLs."""
    parts = canonical_url(url).split("/")
    if "runs" not in parts[3:-1]:
        return None
    at = len(parts) - 1 - parts[::-1].index("runs")
    return "/".join(parts[:at]), tuple(parts[at:])


def mirror_name(place: Path) -> str:
    """Return the random id of the mirror in the folder `place`; mirrors on other machines have other ids."""
    return _read_mirror_facts(place.parent).get("mirror", "")


def display_address(place: str | Path) -> str:
    """Return a path for messages to the user: a path inside a mirror is shown with the URL of the shared store."""
    path = Path(place)
    for folder in (path, *path.parents):
        if url := shared_url(folder):
            return "/".join([url, *path.relative_to(folder).parts])
    return str(place)


def _mirrors_folder() -> Path:
    return cache_folder() / "stores"


def _read_mirror_facts(folder: Path) -> dict[str, str]:
    try:
        found = parse_json(content_of(folder / _FACTS, most=1 << 16))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
