"""A store by its address, which is what travels to a worker: the one way by which a store is opened."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ticketry.errors import UsageError
from ticketry.lab.remote.address import address_of, place_of
from ticketry.lab.store.files import is_there
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.store import Store

if TYPE_CHECKING:  # what a shared store needs is imported with the first one
    from ticketry.lab.remote.mirror import Mirror
    from ticketry.lab.remote.objects import Remote

_mirrors: dict[Path, Mirror] = {}
_guard = threading.Lock()


def open_store(address: str | Path) -> Store:
    """The store at an address, made if absent.

    Args:
        address: a folder; the URL of a store that many machines share (``s3://bucket/folder``, ``gs://``, ``az://``,
            ``file:///shared/folder``); or the folder of the mirror of one.

    Raises:
        UsageError: for a URL of a kind that is not known, or with credentials in it.
        MissingExtraError: for a bucket without obstore.
        StoreError: if it cannot be made, does not answer, or holds something else or a store of another format.
    """
    place = place_of(address)
    with _guard:  # one mirror for each address: two threads that open it at once share its connections
        if place in _mirrors:
            return Store(place, _mirrors[place])
        url = address_of(place)
        if url is None:
            return Store(place)
        mirror = _mirror(url, place)
        store = Store(place, mirror)
        _mirrors[place] = mirror
        return store


def _mirror(url: str, place: Path) -> Mirror:
    from ticketry.lab.remote.mirror import Mirror

    return Mirror(remote_at(url), place, lease_seconds=_lease_seconds())


def _lease_seconds() -> float:
    """``$TICKETRY_LEASE_SECONDS``: after how long another machine takes over what one that is gone was training."""
    said = os.environ.get("TICKETRY_LEASE_SECONDS", "")
    try:
        seconds = float(said or 60.0)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise UsageError(f"TICKETRY_LEASE_SECONDS is {said!r:.40}: it is a number of seconds from 1 to 86400")
    return seconds


def existing_store(address: str | Path) -> Store | None:
    """The store at an address, with the records of a shared one fetched; None, and nothing is made, if there is none.

    Raises:
        UsageError, StoreError: as `open_store`.
    """
    place = place_of(address)
    if (url := address_of(place)) and not _mirror(url, place).is_there():
        return None
    if not url and not has_store(place):
        return None
    store = open_store(place)
    store.link.fetch()
    return store


def has_store(place: Path) -> bool:
    """Return whether a folder holds a store; `StoreError` if the system does not tell."""
    return is_there(Paths(place).format)


def publish_opened() -> None:
    """Let others see the runs and evidence that this process has written to shared stores."""
    for mirror in list(_mirrors.values()):
        mirror.publish()


def remote_at(url: str) -> Remote:
    """The objects at a URL that `checked_url` gave."""
    from ticketry.lab.remote.buckets import Bucket
    from ticketry.lab.remote.shared_folder import SharedFolder

    return SharedFolder(url) if url.startswith("file://") else Bucket(url)
