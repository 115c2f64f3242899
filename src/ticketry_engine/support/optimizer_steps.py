"""Who wants to know of the steps of any optimiser."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ticketry_engine.support.listeners import Listeners

Told = Callable[[Optimizer, object, object], None]


class Stepping:
    """Whoever is told `before` and `after` each step of any optimiser, until `remove`."""

    def __init__(self, *, before: Told | None = None, after: Told | None = None) -> None:
        self.before, self.after = before, after
        _listening.add(self)

    def remove(self) -> None:
        """Hear no more; more than once is no error."""
        _listening.remove(self)


def _hook() -> None:
    register_optimizer_step_pre_hook(_before)
    register_optimizer_step_post_hook(_after)


def _before(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _listening.present:
        if one.before is not None:
            one.before(optimizer, args, kwargs)


def _after(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _listening.present:
        if one.after is not None:
            one.after(optimizer, args, kwargs)


_listening = Listeners[Stepping](_hook)
