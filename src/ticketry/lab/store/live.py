"""What a driver and its workers tell each other while they train: small files of the store, and nothing else.

They work wherever the store works, through whatever stands between two machines. Nothing depends on them but progress
and a stop: they are not flushed to the disk, and a reader that comes too early or too late finds nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import content_of, parse_json, write_atomically
from ticketry.folders import delete_tree_if_possible
from ticketry.lab.remote.address import address_of, place_of
from ticketry.lab.remote.live_objects import LiveObjects
from ticketry.lab.store.files import explained, is_there
from ticketry.lab.store.opening import remote_at
from ticketry.lab.store.paths import Paths

_DRIVER, _STOP = "driver", "stop"
_LARGEST = 1 << 16


class LiveFiles:
    """The files of one driver, in a folder that all of its workers see. Of a shared store: `remote.live_objects`."""

    def __init__(self, paths: Paths, driver: str) -> None:
        self._paths, self._driver = paths, driver

    def read(self, name: str) -> bytes | None:
        """What was written last; None if nothing."""
        with contextlib.suppress(OSError):
            return content_of(self._path(name), most=_LARGEST)
        return None

    def exists(self, name: str) -> bool:
        """Return whether it is there; `StoreError` if the system does not tell."""
        return is_there(self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write it; `StoreError` if that cannot be."""
        path = self._path(name)
        with explained(path, "write"):
            write_atomically(path, data)

    def write_later(self, name: str, data: bytes) -> None:
        """Write it, if that can be."""
        with contextlib.suppress(StoreError):
            self.write(name, data)

    def delete(self, name: str) -> None:
        """If it is there."""
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def end(self) -> None:
        """Delete all of the driver's."""
        delete_tree_if_possible(self._path(_STOP).parent)

    def _path(self, name: str) -> Path:
        return self._paths.live_file(self._driver, name)


class Live:
    """What is told in the files of one driver."""

    def __init__(self, files: LiveFiles | LiveObjects) -> None:
        self._files = files

    # -- of the driver -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let workers see that this is the store, and anew now and then that its driver is alive (a ``store gc`` looks
        at the file's age); `StoreError` if it cannot be written."""
        self._write(_DRIVER, {})

    def ask_to_stop(self) -> None:
        """Ask all workers to store what they train, and stop."""
        self._write(_STOP, {})

    def told(self, key: str) -> dict[str, Any]:
        """What the worker that trains a segment told last; empty if nothing."""
        with contextlib.suppress(ValueError, RecursionError):
            found = parse_json(self._files.read(_name(key)) or b"{}")
            return found if isinstance(found, dict) else {}
        return {}

    def forget(self, key: str) -> None:
        """Delete what was told of a segment."""
        self._files.delete(_name(key))

    def end(self) -> None:
        """Delete all of this driver's files."""
        self._files.end()

    # -- of a worker -------------------------------------------------------------------------------------------------

    def begun(self) -> bool:
        """Whether this is the driver's store, and the driver has not ended."""
        return self._files.exists(_DRIVER)

    def stop_asked(self) -> bool:
        """Whether the driver asked to stop, or has ended."""
        return self._files.exists(_STOP) or not self.begun()

    def tell(self, key: str, what: Mapping[str, Any]) -> None:
        """How far a segment is. That this cannot be told is no reason not to train."""
        if self.begun():  # else the driver's folder would be made again
            self._files.write_later(_name(key), json.dumps(dict(what)).encode())

    def _write(self, name: str, what: Mapping[str, Any]) -> None:
        self._files.write(name, json.dumps(dict(what)).encode())


def live_at(address: str, driver: str) -> Live:
    """What is told in the store at an address, which is not made if it is not there.

    Args:
        driver: its name, which no other driver has.
    """
    place = place_of(address)
    if url := address_of(place):
        return Live(LiveObjects(remote_at(url), driver))
    return Live(LiveFiles(Paths(place), driver))


def _name(key: str) -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
