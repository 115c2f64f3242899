"""Which of the segments that could be trained now are sent to workers next."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

Begin = Callable[[], None]


class Frontier:
    """All segments that could be trained now. The one that most steps wait for goes first, of equals the oldest.

    No more are sent than there is room for, so that what comes later, and is waited for by more, need not queue behind
    what was sent before.

    Args:
        room: how many workers may have at once; None for no limit.
    """

    def __init__(self, room: Callable[[], int | None]) -> None:
        self._room = room
        self._heap: list[tuple[int, int, Begin]] = []
        self._numbers = itertools.count()
        self._sent = 0
        self._filling = self._again = False
        self._guard = threading.Lock()

    def put(self, ahead: int, begin: Begin) -> None:
        """A segment that `ahead` further steps wait for; `begin` sends it, now or later, from any thread."""
        with self._guard:
            heapq.heappush(self._heap, (-ahead, next(self._numbers), begin))
        self.fill()

    def ended(self) -> None:
        """One of those that were sent has come to its end."""
        with self._guard:
            self._sent -= 1
        self.fill()

    def fill(self) -> None:
        """Send as many as there is room for. One thread at a time does, and looks once more for those that came by.

        An error of who was asked for room is raised; the next call asks again.
        """
        with self._guard:
            self._again = True
            if self._filling:
                return
            self._filling = True
        try:
            while begin := self._next():
                begin()
        except BaseException:
            with self._guard:
                self._filling = False
            raise

    def _next(self) -> Begin | None:
        with self._guard:
            self._again = False
        room = self._room()  # outside: it may ask others
        with self._guard:
            if self._heap and (room is None or self._sent < room):
                *_, begin = heapq.heappop(self._heap)
                self._sent += 1
                return begin
            if self._again:
                return _nothing
            self._filling = False
            return None


def _nothing() -> None:
    """Look again."""
