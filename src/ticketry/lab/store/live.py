"""Exchange messages between a driver and its workers during training, as small objects of the store.

The driver is the process of the search; workers train for it. Workers report progress, and the driver requests to stop.
In a shared store, a thread writes the newest message and looks for requests, so that training never waits.
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
from ticketry.files import delete_tree_if_possible, parse_json
from ticketry.lab.store.objects import Folder, Objects, limit_retry_time
from ticketry.lab.store.paths import local_folder, shared_url

_DRIVER, _STOP = "driver", "stop"
_PATIENCE_SECONDS = 10.0
"""Seconds after which the writing of a message is given up if the store does not answer."""
_KNOWN_SECONDS = 3.0
"""Seconds for which this process assumes that an object of a shared store still exists, or is still missing."""


class Messages:
    """Exchanges messages between a driver (the process that requests trainings) and its workers, through the store."""

    def __init__(self, objects: Objects, driver: str, *, remote: bool) -> None:
        self._objects, self._folder = objects, f"live/{driver}"
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        if remote:
            self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="live")
        self._known: dict[str, tuple[float, bool]] = {}
        self._waiting: dict[str, bytes] = {}

    def announce_driver(self) -> None:
        """Announce that the driver runs, every few minutes; ``store gc`` deletes messages of drivers that do not."""
        self._write(_DRIVER, b"{}")

    def request_stop(self) -> None:
        """Request all workers to store their states and stop."""
        self._write(_STOP, b"{}")

    def read_message(self, key: str) -> dict[str, Any]:
        """Return the last message of the worker that trains the segment `key`; an empty dict if there is none."""
        with contextlib.suppress(StoreError, ValueError, RecursionError), limit_retry_time(_PATIENCE_SECONDS):
            found = parse_json(self._objects.get(self._message_object_name(key)) or b"{}")
            return found if isinstance(found, dict) else {}
        return {}

    def delete_message(self, key: str) -> None:
        with contextlib.suppress(StoreError), limit_retry_time(_PATIENCE_SECONDS):
            self._objects.delete([self._message_object_name(key)])

    def delete_all(self) -> None:
        with contextlib.suppress(StoreError), limit_retry_time(_PATIENCE_SECONDS):
            self._objects.delete([one.name for one in self._objects.list(f"{self._folder}/")])
            if isinstance(self._objects, Folder):
                delete_tree_if_possible(self._objects.path(self._folder))

    def is_driver_active(self) -> bool:
        """Return whether the driver has announced itself in this store and has not ended."""
        return self._object_exists(_DRIVER)

    def is_stop_requested(self) -> bool:
        """Return whether the worker should stop, because the driver requested it or has ended."""
        return self._object_exists(_STOP) or not self.is_driver_active()

    def report(self, key: str, what: Mapping[str, Any]) -> None:
        """Report the progress `what` of the segment with the key `key`; errors of the store are ignored."""
        if not self.is_driver_active():  # otherwise the driver's deleted folder would be created again
            return
        name, data = self._message_object_name(key), json.dumps(dict(what)).encode()
        if self._thread is None:
            self._write_newest_message(name, data)
            return
        waits, self._waiting[name] = name in self._waiting, data
        if not waits:
            self._thread.submit(self._write_newest_message, name)

    def _message_object_name(self, key: str) -> str:
        return f"{self._folder}/{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _write(self, name: str, data: bytes) -> None:
        with limit_retry_time(_PATIENCE_SECONDS):
            self._objects.put(f"{self._folder}/{name}", data)

    def _write_newest_message(self, name: str, data: bytes | None = None) -> None:
        data = self._waiting.pop(name, None) if data is None else data
        if data is not None:
            with contextlib.suppress(StoreError), limit_retry_time(_PATIENCE_SECONDS):
                self._objects.put(name, data)

    def _object_exists(self, name: str) -> bool:
        """Return whether an object exists; in a shared store, return the last known answer, which a thread renews."""
        if self._thread is None:
            return self._objects.get(f"{self._folder}/{name}") is not None
        asked, there = self._known.get(name, (0.0, False))
        if not asked:
            self._update_known_existence(name)
            return self._known.get(name, (0.0, False))[1]
        if time.monotonic() - asked > _KNOWN_SECONDS:
            self._known[name] = time.monotonic(), there
            self._thread.submit(self._update_known_existence, name)
        return there

    def _update_known_existence(self, name: str) -> None:
        with contextlib.suppress(StoreError), limit_retry_time(_PATIENCE_SECONDS):
            self._known[name] = time.monotonic(), self._objects.get(f"{self._folder}/{name}") is not None


def messages_at(address: str, driver: str) -> Messages:
    """Return the `Messages` of a driver in the store at `address`, without creating a store that is missing."""
    from ticketry.lab.store.store import open_remote

    place = local_folder(address)
    if url := shared_url(place):
        return Messages(open_remote(url), driver, remote=True)
    return Messages(Folder(place), driver, remote=False)
