"""Steps of optimisers that gates are told of, whatever loop they are made in."""

from __future__ import annotations

import weakref
from typing import Protocol

from torch.optim import Optimizer

from ticketry_engine.support.listeners import Listeners, Stepping


class Told(Protocol):
    """What is told of each step of any optimiser."""

    def _note_update(self, optimizer: Optimizer) -> None:
        """Called after the step."""


def tell_of_updates(told: Told) -> None:
    """Call `_note_update` after each step of any optimiser, for as long as the object lives."""
    for one in _living.present:
        if one() is None:
            _living.remove(one)
    _living.add(weakref.ref(told))


def _tell(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _living.present:
        told = one()
        if told is not None:
            told._note_update(optimizer)


_living = Listeners["weakref.ref[Told]"](lambda: Stepping(after=_tell))
