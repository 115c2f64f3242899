"""Steps of optimisers that gates are told of, whatever loop they are made in."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

from torch.optim import Optimizer

from ticketry.core.sparse_training._steps import Stepping


class Told(Protocol):
    """What is told of each step of any optimiser."""

    def _note_update(self, optimizer: Optimizer) -> None:
        """Called after the step."""


_guard = threading.Lock()
_living: tuple[weakref.ref[Told], ...] = ()
"""Never changed, but replaced: other threads go through it."""
_hearing: list[Stepping] = []


def tell_of_updates(told: Told) -> None:
    """Call `_note_update` after each step of any optimiser, for as long as the object lives."""
    global _living
    with _guard:
        if not _hearing:
            _hearing.append(Stepping(after=_tell))
        _living = (*(one for one in _living if one() is not None), weakref.ref(told))


def _tell(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _living:
        told = one()
        if told is not None:
            told._note_update(optimizer)
