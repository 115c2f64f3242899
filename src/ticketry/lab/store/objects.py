"""The interface of store backends (objects by name, in a folder or bucket), and how failed requests are repeated."""

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
    """An object in a listing."""

    name: str
    size: int
    version: str
    """Changes whenever the object is written with other content."""
    modified: float
    """Time of the last write, by the clock of `Objects.now`."""


class Objects(Protocol):
    """Named objects; names may contain ``/``. Every method raises `StoreError` when it gives up."""

    address: str

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        """Return the content, or None if the object is missing; if `fresh`, do not use a cached copy."""

    def put(self, name: str, data: bytes) -> str:
        """Write an object, in place of any of this name; return its version as in `Listed`, empty if unknown."""

    def create_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object and return True; if the name exists, mark that object as in use and return False."""

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield all objects whose names begin with a prefix."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""

    def now(self) -> float:
        """Return the time by the backend's own clock, in seconds since 1970."""


# -- repeating requests ------------------------------------------------------------------------------------------------
#
# obstore can repeat requests, but gives up a conditional write whose connection breaks, since it may have been carried
# out. Here every write can be repeated, as an object's content shows whether an earlier try succeeded.

PATIENCE_SECONDS = 180.0
"""Seconds for which requests are repeated after the first try; a network may be unavailable for two minutes."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_STOPPING_SECONDS = 15.0
"""The same once the worker was requested to stop: schedulers allow about 30 s."""
_LONGEST_TRY = 45.0
"""Maximum seconds that one try with its pause counts; a longer one means that this process was suspended."""
_limit = threading.local()


class PassingError(Exception):
    """A request failed but may succeed later: no answer, a broken connection, or a busy server."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """In a block, let this thread repeat requests for at most `seconds`."""
    before = getattr(_limit, "seconds", PATIENCE_SECONDS)
    _limit.seconds = min(before, seconds)
    try:
        yield
    finally:
        _limit.seconds = before


def repeat(what: str, attempt: Callable[[int], T]) -> T:
    """Call `attempt` until it raises no `PassingError`, and return its result; its argument is the number of earlier
    tries.

    Raises:
        StoreError: if the thread's `patience` is exhausted; the message begins with `what`.
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
