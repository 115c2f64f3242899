"""Small words between a driver and its workers, as objects of a shared store: training never waits for one."""

from __future__ import annotations

import concurrent.futures
import time
from contextlib import suppress

from ticketry.errors import StoreError
from ticketry.lab.remote.objects import Remote

_SECONDS = 10.0
"""After so long without an answer a word is lost: the next one follows."""
_KNOWN_SECONDS = 3.0
"""So long it is not asked again whether an object is there."""


class LiveObjects:
    """The objects of one driver, with the methods of `lab.store.live.LiveFiles`."""

    def __init__(self, remote: Remote, driver: str) -> None:
        self._remote, self._folder = remote.impatient(_SECONDS), f"live/{driver}"
        self._aside: concurrent.futures.ThreadPoolExecutor | None = None
        self._known: dict[str, tuple[float, bool]] = {}
        self._words: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        """What was written last; None if nothing, or there is no answer."""
        with suppress(StoreError):
            found = self._remote.read(f"{self._folder}/{name}")
            return found.data if found else None
        return None

    def exists(self, name: str) -> bool:
        """Whether it is there, or was a moment ago; only the first question waits for the answer."""
        asked, there = self._known.get(name, (0.0, False))
        if not asked:
            self._look(name)
            return self._known.get(name, (0.0, False))[1]
        if time.monotonic() - asked > _KNOWN_SECONDS:
            self._known[name] = time.monotonic(), there
            self._later().submit(self._look, name)
        return there

    def _look(self, name: str) -> None:
        with suppress(StoreError):
            self._known[name] = time.monotonic(), self._remote.read(f"{self._folder}/{name}") is not None

    def write(self, name: str, data: bytes) -> None:
        """Write it now; `StoreError` if that cannot be."""
        self._remote.replace(f"{self._folder}/{name}", data)

    def write_later(self, name: str, data: bytes) -> None:
        """Write it soon; of several the newest."""
        waits = name in self._words
        self._words[name] = data
        if not waits:
            self._later().submit(self._say, name)

    def _say(self, name: str) -> None:
        if (data := self._words.pop(name, None)) is not None:
            with suppress(StoreError):
                self.write(name, data)

    def delete(self, name: str) -> None:
        """If it is there."""
        with suppress(StoreError):
            self._remote.delete([f"{self._folder}/{name}"])

    def end(self) -> None:
        """Delete all of the driver's."""
        with suppress(StoreError):
            self._remote.delete([one.name for one in self._remote.list(self._folder)])

    def _later(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._aside is None:
            self._aside = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="live")
        return self._aside
