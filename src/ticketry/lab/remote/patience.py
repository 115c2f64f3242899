"""Trying again: what a store's network does not answer now it may answer soon.

obstore can try again by itself, but not where it must be known what came of a request: a conditional write whose
connection breaks is given up at once, since it may have been carried out. Here every write can be repeated (an object
is named by its content, or its old version is asked for), so that all requests are tried again in one place, which
knows when training is asked to stop, too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ticketry.errors import StoreError
from ticketry.lab.signals import stop_signal

T = TypeVar("T")

_FIRST_SECONDS, _LONGEST_SECONDS = 0.1, 10.0
_ASKED_TO_STOP_SECONDS = 15.0
"""A scheduler that asked a worker to end gives it some 30."""
_ONE_TRY_SECONDS = 45.0
"""What a try and the pause behind it count at most. Small requests end within 20 s: where it took longer, this process
was stopped or its machine asleep, and the store was asked once, however long that was. Large ones are tried four
times."""


class PassingError(Exception):
    """A request that may succeed later: no answer, a broken connection, an answer that the server is busy."""


@dataclass(frozen=True)
class Patience:
    """How long requests are repeated."""

    seconds: float = 180.0
    """Since the first, so that a network may be away for two minutes."""

    def until_done(self, what: str, attempt: Callable[[], T]) -> T:
        """What `attempt` gives, called again after a random, growing time while it raises `PassingError`.

        Raises:
            StoreError: if the time is over.
        """
        last, spent, tries = time.monotonic(), 0.0, 0
        while True:
            try:
                return attempt()
            except PassingError as error:
                tries, now = tries + 1, time.monotonic()
                spent += min(now - last, _ONE_TRY_SECONDS)
                last = now
                limit = min(self.seconds, _ASKED_TO_STOP_SECONDS) if stop_signal() else self.seconds
                pause = random.uniform(0, min(_LONGEST_SECONDS, _FIRST_SECONDS * 2 ** min(tries, 20)))
                if spent + pause > limit:
                    raise StoreError(
                        f"{what}: no success in {spent:.0f} s and {tries} tries ({error}). What was trained is kept"
                        " on this machine; the same command goes on from there, and publishes it, later"
                    ) from error
                time.sleep(pause)


PATIENT = Patience()
