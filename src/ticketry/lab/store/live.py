"""What a driver and its workers tell each other while they train: small files of the store, and nothing else.

They work wherever the store works, through whatever stands between two machines. Nothing depends on them but progress
and a stop: they are not flushed to the disk, and a reader that comes too early or too late finds nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import content_of, write_atomically
from ticketry.lab.remote.address import place_of
from ticketry.lab.store.files import explained
from ticketry.lab.store.paths import Paths

_DRIVER, _STOP = "driver", "stop"
_LARGEST = 1 << 16


class Live:
    """The files of one driver.

    Args:
        driver: its name, which no other driver has.
    """

    def __init__(self, paths: Paths, driver: str) -> None:
        self._paths, self._driver = paths, driver

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
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(content_of(self._paths.live_file(self._driver, _name(key)), most=_LARGEST))
            return found if isinstance(found, dict) else {}
        return {}

    def forget(self, key: str) -> None:
        """Delete what was told of a segment."""
        with contextlib.suppress(OSError):
            self._paths.live_file(self._driver, _name(key)).unlink()

    def end(self) -> None:
        """Delete all of this driver's files."""
        shutil.rmtree(self._paths.live_file(self._driver, _STOP).parent, ignore_errors=True)

    # -- of a worker -------------------------------------------------------------------------------------------------

    def begun(self) -> bool:
        """Whether this is the driver's store, and the driver has not ended."""
        return self._there(_DRIVER)

    def stop_asked(self) -> bool:
        """Whether the driver asked to stop, or has ended."""
        return self._there(_STOP) or not self.begun()

    def tell(self, key: str, what: Mapping[str, Any]) -> None:
        """How far a segment is. That this cannot be told is no reason not to train."""
        if self.begun():  # else the driver's folder would be made again
            with contextlib.suppress(StoreError):
                self._write(_name(key), what)

    def _there(self, name: str) -> bool:
        return self._paths.live_file(self._driver, name).exists()

    def _write(self, name: str, what: Mapping[str, Any]) -> None:
        path = self._paths.live_file(self._driver, name)
        with explained(path, "write"):
            write_atomically(path, json.dumps(dict(what)).encode())


def live_at(address: str, driver: str) -> Live:
    """The files of a driver in the store at an address, which is not made if it is not there."""
    return Live(Paths(place_of(address)), driver)


def _name(key: str) -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
