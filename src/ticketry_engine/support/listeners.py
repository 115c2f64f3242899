"""Keeps lists of listeners for torch's global hooks; a hook itself is registered once and never removed.

Torch iterates over its global hooks whenever a thread builds a module or takes an optimiser step, and fails if another
thread adds or removes a hook meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Listener = TypeVar("Listener")


class Listeners(Generic[Listener]):
    """The current listeners of a torch hook; threads may iterate over them while listeners are added or removed.

    Args:
        hook: function that registers torch's hooks, which iterate over `present`; called when the first listener is
            added.
    """

    def __init__(self, hook: Callable[[], object]) -> None:
        self.present: tuple[Listener, ...] = ()
        """Current listeners; a change replaces the tuple, so that iterating over it needs no lock."""
        self._hook, self._hooked, self._guard = hook, False, threading.Lock()

    def add(self, one: Listener) -> None:
        with self._guard:
            if not self._hooked:
                self._hook()
                self._hooked = True
            self.present = (*self.present, one)

    def remove(self, gone: Listener) -> None:
        """Remove a listener; do nothing if it is not in the list."""
        with self._guard:
            self.present = tuple(one for one in self.present if one is not gone)


# -- listeners for steps of optimisers ---------------------------------------------------------------------------------


Told = Callable[[Optimizer, object, object], None]


class Stepping:
    """Calls functions before and after each step of every torch optimiser, until `remove` is called."""

    def __init__(self, *, before: Told | None = None, after: Told | None = None) -> None:
        self.before, self.after = before, after
        _listening.add(self)

    def remove(self) -> None:
        """Stop calling the functions; do nothing if that was done before."""
        _listening.remove(self)


def _hook() -> None:
    register_optimizer_step_pre_hook(_call_before)
    register_optimizer_step_post_hook(_call_after)


def _call_before(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _listening.present:
        if one.before is not None:
            one.before(optimizer, args, kwargs)


def _call_after(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _listening.present:
        if one.after is not None:
            one.after(optimizer, args, kwargs)


_listening = Listeners[Stepping](_hook)
