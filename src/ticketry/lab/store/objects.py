"""Define the interface to a store's objects (files in a folder or a bucket), and repeat requests that fail."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ticketry.errors import StoreError
from ticketry.lab.signals import stop_signal

T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """Describes an object in a listing."""

    name: str
    size: int
    """Bytes."""
    version: str
    """Text that changes whenever the object is written with other content."""
    modified: float
    """Time of the last write in seconds since 1970, by the clock of `Objects.now`."""


class Objects(Protocol):
    """Reads and writes objects (byte strings) by name; every method raises `StoreError` if it fails in the end.

    Names may contain ``/``.
    """

    address: str

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        """Return the content of an object, or None if it is missing; if `fresh`, do not return a cached copy."""

    def put(self, name: str, data: bytes) -> str:
        """Write an object, replacing one of the same name; return `Listed.version`, or an empty text if unknown."""

    def create_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object and return True; if the name exists, mark the old object as used and return False."""

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the descriptions of all objects whose names begin with `prefix`."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete the objects with these `names`; names of missing objects are ignored."""

    def now(self) -> float:
        """Return the time by the backend's own clock, in seconds since 1970."""


# -- repeating requests ------------------------------------------------------------------------------------------------
#
# obstore can repeat requests, but gives up a conditional write whose connection breaks, since it may have been carried
# out. Here every write can be repeated, as an object's content shows whether an earlier try succeeded.

PATIENCE_SECONDS = 180.0
"""Seconds for which a failed request is repeated, since a network may be unavailable for two minutes."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_STOPPING_SECONDS = 15.0
"""Seconds for which a failed request is repeated once this process was asked to end; schedulers allow about 30 s."""
_LONGEST_TRY = 45.0
"""Maximum seconds that a try and its pause count; if they take longer, this process was suspended meanwhile."""
_limit = threading.local()


class PassingError(Exception):
    """Raised if a request failed but may succeed later: no answer, a broken connection, or a busy server."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within a ``with`` block, let this thread repeat a failed request for at most `seconds`."""
    before = getattr(_limit, "seconds", PATIENCE_SECONDS)
    _limit.seconds = min(before, seconds)
    try:
        yield
    finally:
        _limit.seconds = before


def repeat(what: str, attempt: Callable[[int], T]) -> T:
    """Call `attempt` until it raises no `PassingError`, and return its result.

    Args:
        what: begin of the error message.
        attempt: sends the request; its argument is the number of earlier tries.

    Raises:
        StoreError: if there is no success within the seconds that `patience` allows.
    """
    last, spent, tries = time.monotonic(), 0.0, 0
    while True:
        try:
            return attempt(tries)
        except PassingError as error:
            tries, now = tries + 1, time.monotonic()
            spent += min(now - last, _LONGEST_TRY)
            last = now
            limit = getattr(_limit, "seconds", PATIENCE_SECONDS)
            limit = min(limit, _STOPPING_SECONDS) if stop_signal() else limit
            pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries, 20)))
            if spent + pause > limit:
                raise StoreError(
                    f"{what}: no success in {spent:.0f} s and {tries} tries ({error}). What was trained is stored on"
                    " this machine; the same command continues from there, and publishes it, later"
                ) from error
            time.sleep(pause)
