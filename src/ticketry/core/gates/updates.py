"""Steps of optimisers that gates are told of, whatever loop they are made in."""

from __future__ import annotations

import weakref
from typing import Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_post_hook


class Told(Protocol):
    """What is told of each step of any optimiser."""

    def _note_update(self, optimizer: Optimizer) -> None:
        """Called after the step."""


_living: weakref.WeakSet[Told] = weakref.WeakSet()


def tell_of_updates(told: Told) -> None:
    """Call `_note_update` after each step of any optimiser, for as long as the object lives."""
    # One hook for all, which stays: gates may be collected while torch goes through its hooks, and nothing may be
    # taken out of them then.
    if _tell not in _global_optimizer_post_hooks.values():
        register_optimizer_step_post_hook(_tell)
    _living.add(told)


def _tell(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for told in _living:
        told._note_update(optimizer)
