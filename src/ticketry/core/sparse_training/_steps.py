"""Who wants to know of the steps of any optimiser, told by two hooks of torch that stay once they are there.

Torch goes through these hooks whenever any thread takes a step, and fails if one comes or goes meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Told = Callable[[Optimizer, object, object], None]

_guard = threading.Lock()
_hooked: list[object] = []
_listening: tuple[Stepping, ...] = ()
"""Never changed, but replaced: whoever goes through it needs no lock."""


class Stepping:
    """Whoever is told `before` and `after` each step of any optimiser, until `remove`."""

    def __init__(self, *, before: Told | None = None, after: Told | None = None) -> None:
        global _listening
        self.before, self.after = before, after
        with _guard:
            if not _hooked:
                _hooked.append(register_optimizer_step_pre_hook(_before))
                _hooked.append(register_optimizer_step_post_hook(_after))
            _listening = (*_listening, self)

    def remove(self) -> None:
        """Hear no more; more than once is no error."""
        global _listening
        with _guard:
            _listening = tuple(one for one in _listening if one is not self)


def _before(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _listening:
        if one.before is not None:
            one.before(optimizer, args, kwargs)


def _after(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _listening:
        if one.after is not None:
            one.after(optimizer, args, kwargs)
