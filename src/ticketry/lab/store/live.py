"""Messages between a driver and its workers while they train: small objects of the store.

They work wherever the store works. Only progress and stopping depend on them: a reader that comes too early or too
late finds nothing. In a shared store training never waits for a message: a thread writes the newest, and looks.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import parse_json
from ticketry.folders import delete_tree_if_possible
from ticketry.lab.store.address import address_of, place_of
from ticketry.lab.store.folder import Folder
from ticketry.lab.store.objects import Objects, patience

_DRIVER, _STOP = "driver", "stop"
_PATIENCE_SECONDS = 10.0
"""A message without an answer for this long is lost: the next one follows."""
_KNOWN_SECONDS = 3.0
"""How long it is known whether an object of a shared store exists."""


class Live:
    """The messages of one driver.

    Args:
        objects: the store.
        driver: name of the driver, which no other driver has.
        remote: whether the store is far away, so that training must not wait for it.
    """

    def __init__(self, objects: Objects, driver: str, *, remote: bool) -> None:
        self._objects, self._folder = objects, f"live/{driver}"
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        if remote:
            self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="live")
        self._known: dict[str, tuple[float, bool]] = {}
        self._waiting: dict[str, bytes] = {}

    # -- the driver's side -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Show workers that this is the store; called again now and then to show that the driver is alive.

        A ``store gc`` looks at the age of the object. `StoreError` if it cannot be written.
        """
        self._put(_DRIVER, b"{}")

    def request_stop(self) -> None:
        """Request all workers to store what they train, and stop."""
        self._put(_STOP, b"{}")

    def read_message(self, key: str) -> dict[str, Any]:
        """Return the last message of the worker that trains a segment, or an empty dict."""
        with contextlib.suppress(StoreError, ValueError, RecursionError), patience(_PATIENCE_SECONDS):
            found = parse_json(self._objects.get(self._name(key)) or b"{}")
            return found if isinstance(found, dict) else {}
        return {}

    def forget(self, key: str) -> None:
        """Delete the message about a segment."""
        with contextlib.suppress(StoreError), patience(_PATIENCE_SECONDS):
            self._objects.delete([self._name(key)])

    def end(self) -> None:
        """Delete all messages of this driver."""
        with contextlib.suppress(StoreError), patience(_PATIENCE_SECONDS):
            self._objects.delete([one.name for one in self._objects.list(f"{self._folder}/")])
            if isinstance(self._objects, Folder):
                delete_tree_if_possible(self._objects.path(self._folder))

    # -- a worker's side ---------------------------------------------------------------------------------------------

    def has_begun(self) -> bool:
        """Return whether this is the driver's store, and the driver has not ended."""
        return self._exists(_DRIVER)

    def is_stop_requested(self) -> bool:
        """Return whether the driver requested to stop, or has ended."""
        return self._exists(_STOP) or not self.has_begun()

    def report(self, key: str, what: Mapping[str, Any]) -> None:
        """Report how far a segment is; training continues if that fails."""
        if not self.has_begun():  # else the driver's folder would be created again
            return
        name, data = self._name(key), json.dumps(dict(what)).encode()
        if self._thread is None:
            self._put_waiting(name, data)
            return
        waits, self._waiting[name] = name in self._waiting, data
        if not waits:
            self._thread.submit(self._put_waiting, name)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        return f"{self._folder}/{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _put(self, name: str, data: bytes) -> None:
        with patience(_PATIENCE_SECONDS):
            self._objects.put(f"{self._folder}/{name}", data)

    def _put_waiting(self, name: str, data: bytes | None = None) -> None:
        data = self._waiting.pop(name, None) if data is None else data
        if data is not None:
            with contextlib.suppress(StoreError), patience(_PATIENCE_SECONDS):
                self._objects.put(name, data)

    def _exists(self, name: str) -> bool:
        """Return whether an object exists; in a shared store only the first call waits for the answer."""
        if self._thread is None:
            return self._objects.get(f"{self._folder}/{name}") is not None
        asked, there = self._known.get(name, (0.0, False))
        if not asked:
            self._look(name)
            return self._known.get(name, (0.0, False))[1]
        if time.monotonic() - asked > _KNOWN_SECONDS:
            self._known[name] = time.monotonic(), there
            self._thread.submit(self._look, name)
        return there

    def _look(self, name: str) -> None:
        with contextlib.suppress(StoreError), patience(_PATIENCE_SECONDS):
            self._known[name] = time.monotonic(), self._objects.get(f"{self._folder}/{name}") is not None


def live_at(address: str, driver: str) -> Live:
    """Return the messages of a driver in the store at an address, which is not created if it is missing."""
    from ticketry.lab.store.store import open_remote

    place = place_of(address)
    if url := address_of(place):
        return Live(open_remote(url), driver, remote=True)
    return Live(Folder(place), driver, remote=False)
