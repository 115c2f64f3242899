"""A store by its address, which is what travels to a worker: the one way by which a store is opened."""

from __future__ import annotations

from pathlib import Path

from ticketry.errors import UsageError
from ticketry.lab.store.store import Store


def open_store(address: str | Path) -> Store:
    """The store at an address, made if absent.

    Args:
        address: a folder.

    Raises:
        UsageError: for a URL of a kind that is not known.
        StoreError: if it cannot be made, or holds a store of another format.
    """
    if isinstance(address, str) and "://" in address:
        raise UsageError(f"no store is kept at {address.partition('://')[0]}:// addresses: name a folder with --store")
    return Store(address)
