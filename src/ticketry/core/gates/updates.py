"""Lets gates know of the steps that optimisers take with them: fused ones do not count up the versions of tensors."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_post_hook

if TYPE_CHECKING:
    from ticketry.core.gates.handle import Gates

_living: weakref.WeakSet[Gates] = weakref.WeakSet()


def count_updates(gates: Gates) -> None:
    """Count the steps of `gates`, for as long as they live."""
    # One hook for all, which stays: gates may be collected while torch goes through its hooks, and nothing may be
    # taken out of them then.
    if _tell not in _global_optimizer_post_hooks.values():
        register_optimizer_step_post_hook(_tell)
    _living.add(gates)


def _tell(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for gates in _living:
        gates.note_update(optimizer)
