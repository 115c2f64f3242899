"""Who is told of what torch calls its hooks for, by hooks that stay once they are there.

Torch goes through hooks that hold for all modules, or all optimisers, whenever any thread builds a module or takes a
step, and fails if one comes or goes meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Listener = TypeVar("Listener")


class Listeners(Generic[Listener]):
    """Whoever listens at present: threads may go through them while others come and go.

    Args:
        hook: registers torch's hooks, which go through `present`; called with the first listener.
    """

    def __init__(self, hook: Callable[[], object]) -> None:
        self.present: tuple[Listener, ...] = ()
        """Never changed, but replaced: whoever goes through it needs no lock."""
        self._hook, self._hooked, self._guard = hook, False, threading.Lock()

    def add(self, one: Listener) -> None:
        with self._guard:
            if not self._hooked:
                self._hook()
                self._hooked = True
            self.present = (*self.present, one)

    def remove(self, gone: Listener) -> None:
        """More than once is no error."""
        with self._guard:
            self.present = tuple(one for one in self.present if one is not gone)
